//! Sends the desired rules as iptables-save prints them, in pieces.

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::Body;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use tokio::sync::{mpsc, oneshot};

use super::questions::Questions;
use crate::http::{NO_SNIFF, TEXT};
use crate::inspect::Subject;
use crate::iptables::{Table, write};
use crate::net::IpFamily;

/// The size from which a piece is sent, in bytes.
const PIECE: usize = 64 << 10;
/// How many pieces wait for the client.
const MAX_PIECES: usize = 4;

/// An answer with the rules of `families`, a line `# ipv4` or `# ipv6` before each if there are two, and of one `table`
/// if it is given. The question's turn lasts until the client has read all but the last pieces.
pub(super) async fn stream(
    questions: &Arc<Questions>,
    families: &[IpFamily],
    table: Option<Table>,
) -> Response {
    let (pieces, mut received) = mpsc::channel::<String>(MAX_PIECES);
    let (begun, beginning) = oneshot::channel();
    let (questions, families) = (questions.clone(), families.to_vec());
    let writing = tokio::spawn(async move {
        let write = move |subject: Subject| {
            // A client that has gone needs no rules.
            if begun.send(()).is_ok() {
                let _ = write_rules(subject, table, &pieces);
            }
        };
        questions.with_subject(&families, write).await
    });
    if beginning.await.is_err() {
        return match writing.await {
            Ok(Err(why)) => why.into(),
            Ok(Ok(())) => unreachable!("it begins before it ends"),
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        };
    }
    let pieces = futures::stream::poll_fn(move |cx| {
        received.poll_recv(cx).map(|piece| piece.map(Ok::<String, Infallible>))
    });
    ([(header::CONTENT_TYPE, TEXT), NO_SNIFF], Body::from_stream(pieces)).into_response()
}

/// Sends the rules in pieces; an error when the client is gone.
fn write_rules(
    mut subject: Subject,
    table: Option<Table>,
    pieces: &mpsc::Sender<String>,
) -> Result<(), mpsc::error::SendError<String>> {
    let has_both = subject.families().count() > 1;
    let mut out = String::new();
    for family in IpFamily::BOTH {
        let Some(mut ruleset) = subject.rulesets.get_mut(family).take() else { continue };
        ruleset.tables.retain(|name, _| table.is_none_or(|table| table == *name));
        if has_both {
            out.push_str(&format!("# {}\n", family.lower()));
        }
        write::save_in_pieces(family, &ruleset, &mut out, &mut |out| match out.len() >= PIECE {
            true => pieces.blocking_send(std::mem::take(out)),
            false => Ok(()),
        })?;
    }
    if !out.is_empty() {
        pieces.blocking_send(out)?;
    }
    Ok(())
}
