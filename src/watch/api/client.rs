//! The connection to the API server that the rest of the program uses.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use http::{Request, Response};
use kube::client::{Body, ClientBuilder};
use kube::config::Config;
use tower::{BoxError, Service};
use tracing::info;

use super::freshness::Freshness;
use super::kubeconfig::ApiServerSource;
use super::renewal::{self, Renewal};
use super::traffic::TrafficObserver;
use super::transport::{RequestLimit, Transport};

/// A kind without an open watch for this long is stale, unless the caller sets another limit.
const STALE: Duration = Duration::from_secs(60);

/// A connection to an API server.
#[derive(Clone)]
pub struct Connection {
    /// The client for requests.
    pub client: kube::Client,
    /// `addr:port` of the API server as configured at the start; a metric label.
    pub host: String,
    /// Reloads credentials from files; `None` in tests.
    pub renewal: Option<Arc<Renewal>>,
    /// How current each watched kind is.
    pub freshness: Arc<Freshness>,
}

impl Connection {
    /// Sends through `service` what a transport with this limit lets pass.
    fn through<S, B>(
        service: S,
        host: String,
        limit: RequestLimit,
        observer: Arc<dyn TrafficObserver>,
        renewal: Option<Arc<Renewal>>,
    ) -> Connection
    where
        S: Service<Request<Body>, Response = Response<B>> + Clone + Send + 'static,
        S::Error: Into<BoxError>,
        S::Future: Send + 'static,
        B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Unpin + Send + 'static,
    {
        let transport = Transport::new(host.clone(), limit, observer);
        let builder = ClientBuilder::new(service, "default").with_layer(&transport);
        let freshness = Arc::new(Freshness::new(STALE));
        Connection { client: builder.build(), host, renewal, freshness }
    }

    /// How often the configuration has named another server.
    pub async fn n_server_changes(&self) -> u64 {
        match &self.renewal {
            Some(renewal) => renewal.n_server_changes().await,
            None => 0,
        }
    }

    /// Sends through `service` what a transport with this limit lets pass.
    #[cfg(test)]
    pub fn to<S, B>(service: S, limit: RequestLimit, observer: Arc<dyn TrafficObserver>) -> Connection
    where
        S: Service<Request<Body>, Response = Response<B>> + Send + 'static,
        S::Error: Into<BoxError> + Send + Sync,
        S::Future: Send + 'static,
        B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Unpin + Send + 'static,
    {
        let service = tower::buffer::Buffer::new(service, 64);
        Connection::through(service, "api.test:443".to_owned(), limit, observer, None)
    }
}

/// Connects by kube-proxy's rules: with exactly the file `kubeconfig` (`KUBECONFIG` and `~/.kube/config`
/// are ignored), its server replaced by `master` if given; without both, with the pod's service account.
/// Requests always ask for JSON, whatever content type is configured; lists may arrive compressed.
///
/// Fails if a file or the environment is unusable. No request is sent yet.
pub async fn connect(
    kubeconfig: Option<&Path>,
    master: Option<&str>,
    limit: RequestLimit,
    observer: Arc<dyn TrafficObserver>,
) -> anyhow::Result<Connection> {
    let source =
        ApiServerSource { kubeconfig: kubeconfig.map(Path::to_owned), master: master.map(str::to_owned) };
    if kubeconfig.is_none() && master.is_none() {
        info!("neither kubeconfig nor master set; using the pod's service account");
    }
    // Hashed before they are read: a change in between is then detected later.
    let files = source.files();
    let config = source.config().await?;
    let proxy = config.proxy_url.as_ref().and_then(http::Uri::host).map(str::to_owned);
    let RequestLimit { qps, burst } = limit;
    info!(server = %config.cluster_url, ?proxy, ?qps, burst, content = "application/json", "API client configured");
    let renewal = Arc::new(Renewal::new(source, files, config, observer.clone())?);
    let host = renewal.current().await.host;
    let links = renewal.clone();
    let service = tower::service_fn(move |request| {
        let links = links.clone();
        async move { links.current().await.send(request).await }
    });
    Ok(Connection::through(service, host, limit, observer, Some(renewal)))
}

/// Connects with `config` for one command: credentials are not reloaded, and requests are not limited. No request is
/// sent yet.
pub fn connect_once(config: Config) -> anyhow::Result<Connection> {
    let observer: Arc<dyn TrafficObserver> = Arc::new(());
    let link = renewal::link(config, &observer)?;
    let host = link.host.clone();
    let limit = RequestLimit { qps: None, burst: 1 };
    let service = tower::service_fn(move |request| link.clone().send(request));
    Ok(Connection::through(service, host, limit, observer, None))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watch::api::kubeconfig::tests::{TWO_CLUSTERS, file};

    const LIMIT: RequestLimit = RequestLimit { qps: Some(5.0), burst: 10 };

    async fn connect_with(text: &str) -> anyhow::Result<Connection> {
        let file = file(text);
        connect(Some(file.path()), None, LIMIT, Arc::new(())).await
    }

    #[tokio::test]
    async fn a_proxy_in_the_kubeconfig_is_used_as_a_tunnel() {
        use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = format!("http://us%40er:pass@{}", listener.local_addr().unwrap());
        let text = TWO_CLUSTERS.replace("http://proxy.example:3128", &proxy);
        let connection = connect_with(&text).await.unwrap();
        let request = tokio::spawn(async move { connection.client.apiserver_version().await });
        let (stream, _) = listener.accept().await.unwrap();
        let mut reader = BufReader::new(stream);
        let (mut line, mut rest) = (String::new(), [0; 200]);
        reader.read_line(&mut line).await.unwrap();
        assert_eq!(line.trim_end(), "CONNECT b.example:2 HTTP/1.1");
        let n = reader.read(&mut rest).await.unwrap();
        let rest = String::from_utf8_lossy(&rest[..n]).to_lowercase();
        // us@er:pass
        assert!(rest.contains("proxy-authorization: basic dxnazxi6cgfzcw=="), "{rest}");
        drop(reader);
        assert!(request.await.unwrap().is_err(), "the proxy closed the connection");
    }

    #[tokio::test]
    async fn a_proxy_with_an_unsupported_scheme_is_an_error() {
        let error = connect_with(&TWO_CLUSTERS.replace("http://proxy", "socks5://proxy")).await.err();
        let error = format!("{:#}", error.expect("unsupported scheme"));
        assert!(error.contains("socks5://proxy.example:3128"), "{error}");
    }

    #[tokio::test]
    async fn a_readable_token_file_has_precedence_over_a_token() {
        let token = file("from the file");
        let with = |auth: &str| TWO_CLUSTERS.replace("{token: secret}", auth);
        let both = with(&format!("{{token: secret, tokenFile: {:?}}}", token.path()));
        assert!(connect_with(&both).await.is_ok());
        assert!(connect_with(&with("{token: secret, tokenFile: /nonexistent/t}")).await.is_ok());
        let error = connect_with(&with("{tokenFile: /nonexistent/t}")).await.err().expect("no token at all");
        assert!(format!("{error:#}").contains("/nonexistent/t"), "{error:#}");
    }

    #[tokio::test]
    async fn a_server_address_alone_is_enough() {
        connect(None, Some("http://127.0.0.1:8080"), LIMIT, Arc::new(())).await.unwrap();
    }
}
