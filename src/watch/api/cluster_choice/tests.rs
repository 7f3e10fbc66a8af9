//! Tests of the choice of a cluster in one kubeconfig; the environment is tested with the program (tests/cluster.rs).

use super::*;
use crate::watch::api::kubeconfig::tests::{TWO_CLUSTERS, file};

async fn chosen(text: &str, context: Option<&str>) -> Result<ChosenCluster, String> {
    let file = file(text);
    let choice =
        ClusterChoice { kubeconfig: Some(file.path().to_owned()), context: context.map(str::to_owned) };
    choice.resolve().await.map_err(|error| format!("{error:#}"))
}

#[tokio::test]
async fn a_context_is_the_named_one_or_the_current_one() {
    let text = TWO_CLUSTERS
        .replace("{name: a, context: {cluster: a,", "{name: a, context: {cluster: a, namespace: shop,");
    let current = chosen(&text, None).await.unwrap();
    assert_eq!(
        (current.config.cluster_url.to_string().as_str(), current.namespace.as_str()),
        ("https://b.example:2/", "default")
    );
    assert!(current.origin.starts_with("context \"b\" of /"), "{}", current.origin);
    assert_eq!(current.config.proxy_url.unwrap().to_string(), "http://proxy.example:3128/");
    let named = chosen(&text, Some("a")).await.unwrap();
    assert_eq!(
        (named.config.cluster_url.to_string().as_str(), named.namespace.as_str()),
        ("https://a.example:1/", "shop")
    );
}

#[tokio::test]
async fn an_error_names_the_file_and_what_it_has() {
    let check = async |text: &str, context: Option<&str>, expected: &[&str]| {
        let error = chosen(text, context).await.expect_err("unusable");
        expected.iter().for_each(|part| assert!(error.contains(part), "{part:?} not in {error}"));
    };
    check(TWO_CLUSTERS, Some("c"), &["--context: kubeconfig /", "has no context \"c\""]).await;
    let long =
        TWO_CLUSTERS.replace("name: a,", "name: production,").replace("cluster: a,", "cluster: production,");
    check(&long, Some("prodcution"), &["did you mean \"production\"?"]).await;
    check("{}", None, &["has no current context", "none"]).await;
    check("contexts: [", None, &["--kubeconfig: cannot read kubeconfig /"]).await;
    check(
        "{current-context: a, contexts: [{name: a, context: {cluster: x, user: u}}]}",
        None,
        &["names no cluster"],
    )
    .await;
    let missing = ClusterChoice { kubeconfig: Some("/nonexistent/config".into()), context: None };
    let error = format!("{:#}", missing.resolve().await.expect_err("missing"));
    assert!(error.contains("--kubeconfig: cannot read kubeconfig /nonexistent/config"), "{error}");
}
