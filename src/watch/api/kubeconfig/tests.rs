//! Tests of reading kubeconfigs.

#![allow(clippy::disallowed_methods, reason = "writes files")]

use super::*;

/// A file with this text.
pub fn file(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    file
}

pub const TWO_CLUSTERS: &str = "
current-context: b
contexts:
- {name: a, context: {cluster: a, user: u}}
- {name: b, context: {cluster: b, user: u}}
clusters:
- {name: a, cluster: {server: 'https://a.example:1'}}
- {name: b, cluster: {server: 'https://b.example:2', proxy-url: 'http://proxy.example:3128'}}
users:
- {name: u, user: {token: secret}}
";

async fn config(kubeconfig: Option<&Path>, master: Option<&str>) -> anyhow::Result<Config> {
    let source =
        ApiServerSource { kubeconfig: kubeconfig.map(Path::to_owned), master: master.map(str::to_owned) };
    source.config().await
}

#[tokio::test]
async fn an_error_names_the_invalid_proxy() {
    let file = file(&TWO_CLUSTERS.replace("http://proxy.example:3128", "http://pro xy"));
    let error = config(Some(file.path()), None).await.expect_err("invalid address");
    let error = format!("{error:#}");
    assert!(error.contains(&file.path().display().to_string()) && error.contains("proxy url"), "{error}");
}

#[tokio::test]
async fn server_and_proxy_come_from_the_current_context() {
    let file = file(TWO_CLUSTERS);
    let config = config(Some(file.path()), None).await.unwrap();
    assert_eq!(config.cluster_url.to_string(), "https://b.example:2/");
    assert_eq!(config.proxy_url.unwrap().to_string(), "http://proxy.example:3128/");
}

#[tokio::test]
async fn master_replaces_the_server_and_is_enough_alone() {
    let file = file(TWO_CLUSTERS);
    let both = config(Some(file.path()), Some("https://c.example:3")).await.unwrap();
    assert_eq!(both.cluster_url.to_string(), "https://c.example:3/");
    let alone = config(None, Some("http://127.0.0.1:8080")).await.unwrap();
    assert_eq!(alone.cluster_url.to_string(), "http://127.0.0.1:8080/");
}

#[tokio::test]
async fn an_error_names_the_unusable_kubeconfig() {
    for (text, expected) in [("contexts: [", "kubeconfig"), ("{}", "names no cluster")] {
        let file = file(text);
        let error = config(Some(file.path()), None).await.expect_err("unusable");
        let error = format!("{error:#}");
        assert!(error.contains(&file.path().display().to_string()), "{error}");
        assert!(error.contains(expected), "{error}");
    }
    assert!(config(Some(Path::new("/nonexistent/kubeconfig")), None).await.is_err());
    assert!(config(None, Some("not a url")).await.is_err());
}
