//! Decompresses response bodies as they arrive.
//!
//! Kubernetes 1.37 compresses each event of a streaming list as a gzip member of its own; a plain list is
//! one member. Data is passed on as soon as it is decompressed, so no event waits for the next one.

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

/// Completes when the link is retired.
type Retired = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Requests compression, unless the request already sets an encoding.
pub fn request_compression(headers: &mut HeaderMap) {
    headers.entry(header::ACCEPT_ENCODING).or_insert(HeaderValue::from_static("gzip"));
}

/// Decompresses the body of a response where it is compressed. The body ends, without an error, once `retired` is true.
pub fn unzip(mut response: Response<Incoming>, retired: Option<watch::Receiver<bool>>) -> Response<Unzipped> {
    let is_compressed = response.headers().get(header::CONTENT_ENCODING).is_some_and(|value| value == "gzip");
    if is_compressed {
        response.headers_mut().remove(header::CONTENT_ENCODING);
        response.headers_mut().remove(header::CONTENT_LENGTH);
    }
    let retired = retired.map(|mut retired| {
        Box::pin(async move {
            // A dropped sender is not a retirement: the response goes on.
            if retired.wait_for(|is_retired| *is_retired).await.is_err() {
                std::future::pending::<()>().await;
            }
        }) as Retired
    });
    response.map(|body| Unzipped {
        body,
        decoder: is_compressed.then(|| MultiGzDecoder::new(Vec::new())),
        retired,
    })
}

/// A body without its compression.
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
                Poll::Pending if is_retired(retired, context) => return Poll::Ready(None),
                frame => ready!(frame),
            };
            let Some(gzip) = decoder else {
                return Poll::Ready(frame.map(|frame| frame.map_err(BoxError::from)));
            };
            let Some(frame) = frame else {
                // A missing end is an error, as in any body that is cut off.
                let end = gzip.try_finish();
                *decoder = None;
                return Poll::Ready(end.err().map(|error| Err(error.into())));
            };
            let Ok(data) = frame?.into_data() else { continue };
            gzip.write_all(&data)?;
            gzip.flush()?;
            let plain = std::mem::take(gzip.get_mut());
            if !plain.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(plain.into()))));
            }
        }
    }
}

fn is_retired(retired: &mut Option<Retired>, context: &mut Context<'_>) -> bool {
    retired.as_mut().is_some_and(|retired| retired.as_mut().poll(context).is_ready())
}
