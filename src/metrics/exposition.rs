//! The text that Prometheus scrapes.

use anyhow::Context;
use prometheus::{Registry, TextEncoder};

/// Bucket bounds that Go spells otherwise than Rust; Prometheus takes another spelling for another series.
const SPELLINGS: [(&str, &str); 3] = [
    (r#"le="1048576""#, r#"le="1.048576e+06""#),
    (r#"le="4194304""#, r#"le="4.194304e+06""#),
    (r#"le="16777216""#, r#"le="1.6777216e+07""#),
];

/// All metrics of `registry` in Prometheus' text format, with bucket bounds spelled as kube-proxy spells them.
pub fn exposition(registry: &Registry) -> anyhow::Result<String> {
    let text = TextEncoder::new().encode_to_string(&registry.gather()).context("writing metrics")?;
    Ok(SPELLINGS.into_iter().fold(text, |text, (rust, go)| text.replace(rust, go)))
}
