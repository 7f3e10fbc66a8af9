//! Tests with bodies in pieces of every size.

use futures::{StreamExt, TryStreamExt};

use super::*;

/// A body that arrives in pieces of `n` bytes.
fn in_pieces(body: &[u8], n: usize) -> impl AsyncBufRead + Send + use<> {
    let pieces: Vec<io::Result<Vec<u8>>> = body.chunks(n).map(|piece| Ok(piece.to_vec())).collect();
    futures::stream::iter(pieces).boxed().into_async_read()
}

async fn items_of(body: &str, n: usize) -> (Vec<String>, Result<ListMetadata, serde_json::Error>) {
    let mut items = ListItems::new(in_pieces(body.as_bytes(), n));
    let mut texts = Vec::new();
    while let Some(item) = items.next().await.unwrap() {
        texts.push(String::from_utf8(item.to_vec()).unwrap());
    }
    (texts, items.end())
}

#[tokio::test]
async fn a_list_is_split_into_its_items_whatever_the_pieces() {
    let version =
        |text: &str| ListMetadata { resource_version: text.to_owned(), continuation: String::new() };
    for (body, expected) in [
        (r#"{"kind":"L","metadata":{"resourceVersion":"7"},"items":[{"a":1},{"b":[{"c":"]}"}]}]}"#, 2),
        (
            "{ \"items\" : [ {\"a\": \"\\\"}\\\\\"} ,\n\t{\"items\":[{}]} ] ,\n \"metadata\": {\"resourceVersion\": \"7\"} }\n",
            2,
        ),
        (r#"{"metadata":{"resourceVersion":"7"},"items":[]}"#, 0),
        (r#"{"metadata":{"resourceVersion":"7"},"items":null}"#, 0),
        (
            r#"{"metadata":{"resourceVersion":"7","x":["items",{"y":[1]}]},"others":[{"z":1}],"items":[{"a":1}]}"#,
            1,
        ),
        (r#"{"x":"items","y":[{"a":1}],"metadata":{"resourceVersion":"7"},"items":[{}]}"#, 1),
    ] {
        for n in 1..=body.len() {
            let (items, end) = items_of(body, n).await;
            assert_eq!(items.len(), expected, "{body} in pieces of {n}: {items:?}");
            for item in items {
                serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(&item).expect(&item);
            }
            assert_eq!(end.unwrap(), version("7"), "{body} in pieces of {n}");
        }
    }
}

#[tokio::test]
async fn a_list_cut_off_anywhere_has_no_metadata() {
    let body = r#"{"metadata":{"resourceVersion":"7"},"items":[{"a":"1,2"},{"b":[1]}]}"#;
    for n in 0..body.len() {
        let (items, end) = items_of(&body[..n], 10).await;
        assert!(end.is_err() && items.len() <= 2, "{n}");
    }
}

#[tokio::test]
async fn a_body_that_is_not_a_list_has_no_metadata() {
    for body in ["", "null", "[]", "Too many requests, please try again later.\n", "{}", "]]}}"] {
        assert!(items_of(body, 3).await.1.is_err(), "{body}");
    }
    for body in [r#"{"items":[5]}"#, r#"{"items":["x"]}"#, r#"{"items":[{},[]]}"#, r#"{"items":[null"#] {
        let mut items = ListItems::new(in_pieces(body.as_bytes(), 3));
        let error = loop {
            match items.next().await {
                Ok(item) => assert!(item.is_some(), "{body}"),
                Err(error) => break error,
            }
        };
        assert!(error.to_string().contains("not an object"), "{body}: {error}");
    }
    let (items, end) = items_of(r#"{"metadata":{"continue":"more"},"items":[{"a":1}]}"#, 3).await;
    assert_eq!((items.len(), end.unwrap().continuation.as_str()), (1, "more"));
}

#[tokio::test]
async fn a_watch_is_split_into_lines_and_an_incomplete_line_is_dropped() {
    let body = b"{\"a\":1}\n{\"b\":2}\n\n{\"half";
    for n in 1..=body.len() {
        let mut lines = EventLines::new(in_pieces(body, n));
        let mut texts = Vec::new();
        while let Some(line) = lines.next().await.unwrap() {
            texts.push(String::from_utf8(line.to_vec()).unwrap());
        }
        assert_eq!(texts, ["{\"a\":1}\n", "{\"b\":2}\n", "\n"], "in pieces of {n}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_read_loses_nothing() {
    let slow = futures::stream::iter(["{\"a\"", ":1}", "\n"]).then(|piece| async move {
        tokio::time::sleep(std::time::Duration::from_secs(2)).await;
        Ok::<_, io::Error>(piece)
    });
    let mut lines = EventLines::new(slow.boxed().into_async_read());
    let mut n_timeouts = 0;
    loop {
        match tokio::time::timeout(std::time::Duration::from_millis(1500), lines.next()).await {
            Err(_) => n_timeouts += 1,
            Ok(line) => {
                assert_eq!(line.unwrap(), Some(&b"{\"a\":1}\n"[..]));
                break;
            }
        }
    }
    assert!(n_timeouts >= 3, "{n_timeouts}");
}

#[tokio::test]
async fn lines_and_items_have_a_maximum_length() {
    let endless = || futures::stream::repeat_with(|| Ok(vec![b'x'; 1 << 20])).boxed().into_async_read();
    let error = EventLines::new(endless()).next().await.unwrap_err();
    assert!(error.to_string().contains("in one line or item"), "{error}");
    assert!(ListItems::new(endless()).next().await.is_err());
    let opened = futures::stream::iter([Ok(b"{\"items\":[{\"a\":\"".to_vec())]);
    let endless = opened.chain(futures::stream::repeat_with(|| Ok(vec![b'x'; 1 << 20])));
    assert!(ListItems::new(endless.boxed().into_async_read()).next().await.is_err());
}
