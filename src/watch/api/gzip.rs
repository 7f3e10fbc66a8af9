//! Answers that come compressed, unpacked as they arrive.
//!
//! Kubernetes 1.37 compresses streaming lists, each event a gzip member of its own; lists are one
//! member. A member is passed on as far as it came, so no event waits for the next one.

use std::io::Write;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::Bytes;
use flate2::write::MultiGzDecoder;
use http::{HeaderMap, HeaderValue, Response, header};
use http_body::{Body, Frame};
use hyper::body::Incoming;
use tokio::sync::watch;
use tower::BoxError;

/// Ends when a link is retired.
type Retired = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Asks for compression, unless the request says otherwise.
pub fn accept(headers: &mut HeaderMap) {
    headers.entry(header::ACCEPT_ENCODING).or_insert(HeaderValue::from_static("gzip"));
}

/// Unpacks the body of an answer, if it is packed. It ends in order once `retired` says so.
pub fn unzip(mut answer: Response<Incoming>, retired: Option<watch::Receiver<bool>>) -> Response<Unzipped> {
    let is_packed = answer.headers().get(header::CONTENT_ENCODING).is_some_and(|value| value == "gzip");
    if is_packed {
        answer.headers_mut().remove(header::CONTENT_ENCODING);
        answer.headers_mut().remove(header::CONTENT_LENGTH);
    }
    let retired = retired.map(|mut retired| {
        Box::pin(async move {
            // Dropped without a word is not retired: what was sent this way goes on.
            if retired.wait_for(|is_retired| *is_retired).await.is_err() {
                std::future::pending::<()>().await;
            }
        }) as Retired
    });
    answer.map(|body| Unzipped { body, decoder: is_packed.then(|| MultiGzDecoder::new(Vec::new())), retired })
}

/// A body as it was before it was packed.
pub struct Unzipped {
    body: Incoming,
    decoder: Option<MultiGzDecoder<Vec<u8>>>,
    retired: Option<Retired>,
}

impl Body for Unzipped {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Unzipped { body, decoder, retired } = &mut *self;
        loop {
            let frame = match Pin::new(&mut *body).poll_frame(context) {
                Poll::Pending if is_over(retired, context) => return Poll::Ready(None),
                frame => ready!(frame),
            };
            let Some(decoding) = decoder else {
                return Poll::Ready(frame.map(|frame| frame.map_err(BoxError::from)));
            };
            let Some(frame) = frame else {
                // What is missing at its end is an error, as in a body that breaks off.
                let end = decoding.try_finish();
                *decoder = None;
                return Poll::Ready(end.err().map(|error| Err(error.into())));
            };
            let Ok(data) = frame?.into_data() else { continue };
            decoding.write_all(&data)?;
            decoding.flush()?;
            let unpacked = std::mem::take(decoding.get_mut());
            if !unpacked.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(unpacked.into()))));
            }
        }
    }
}

fn is_over(retired: &mut Option<Retired>, context: &mut Context<'_>) -> bool {
    retired.as_mut().is_some_and(|retired| retired.as_mut().poll(context).is_ready())
}
