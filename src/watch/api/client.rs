//! A connection to the API server, as the rest of the program uses it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use http::{Request, Response};
use kube::client::{Body, ClientBuilder};
use tower::{BoxError, Service};
use tracing::info;

use super::freshness::Freshness;
use super::observer::Observer;
use super::origin::Origin;
use super::renewal::Renewal;
use super::transport::{Limit, Transport};

/// What is not followed for this long is stale, unless the configuration says otherwise.
const STALE: Duration = Duration::from_secs(60);

/// A connection to an API server.
#[derive(Clone)]
pub struct Connection {
    /// Sends requests.
    pub client: kube::Client,
    /// `addr:port` of the API server, as configured at the start; for counting only.
    pub host: String,
    /// Follows the files of the credentials, if they are in files.
    pub renewal: Option<Arc<Renewal>>,
    /// How current each kind is that `follow` follows over this connection.
    pub freshness: Arc<Freshness>,
}

impl Connection {
    /// Sends through `service` what a transport with this limit lets pass.
    fn through<S, B>(
        service: S,
        host: String,
        limit: Limit,
        observer: Arc<dyn Observer>,
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

    /// How often another server has taken the place of the one before.
    pub async fn n_moves(&self) -> u64 {
        match &self.renewal {
            Some(renewal) => renewal.n_moves().await,
            None => 0,
        }
    }

    /// Sends through `service` what a transport with this limit lets pass.
    #[cfg(test)]
    pub fn to<S, B>(service: S, limit: Limit, observer: Arc<dyn Observer>) -> Connection
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

/// A connection by kube-proxy's rules: exactly the file `kubeconfig` (neither `KUBECONFIG` nor
/// `~/.kube/config` count), its server replaced by `master` if given; with neither of them, what a
/// pod finds in its environment. JSON is asked for whatever the content types configured; lists
/// may come compressed.
///
/// Errors when a file or the environment is unusable; nobody is contacted yet.
pub async fn connect(
    kubeconfig: Option<&Path>,
    master: Option<&str>,
    limit: Limit,
    observer: Arc<dyn Observer>,
) -> anyhow::Result<Connection> {
    let origin = Origin { kubeconfig: kubeconfig.map(Path::to_owned), master: master.map(str::to_owned) };
    if kubeconfig.is_none() && master.is_none() {
        info!("neither kubeconfig nor master given, using the pod's service account");
    }
    // Before they are used: what changes meanwhile is found to be different afterwards.
    let files = origin.files();
    let config = origin.config().await?;
    let proxy = config.proxy_url.as_ref().and_then(http::Uri::host).map(str::to_owned);
    let Limit { qps, burst } = limit;
    info!(server = %config.cluster_url, ?proxy, ?qps, burst, content = "application/json", "API client");
    let renewal = Arc::new(Renewal::new(origin, files, config, observer.clone())?);
    let host = renewal.current().await.host;
    let ways = renewal.clone();
    let service = tower::service_fn(move |request| {
        let ways = ways.clone();
        async move { ways.current().await.send(request).await }
    });
    Ok(Connection::through(service, host, limit, observer, Some(renewal)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watch::api::origin::tests::{TWO_CLUSTERS, file};

    const LIMIT: Limit = Limit { qps: Some(5.0), burst: 10 };

    async fn connected(text: &str) -> anyhow::Result<Connection> {
        let file = file(text);
        connect(Some(file.path()), None, LIMIT, Arc::new(())).await
    }

    #[tokio::test]
    async fn a_named_proxy_is_asked_for_a_tunnel() {
        use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = format!("http://us%40er:pass@{}", listener.local_addr().unwrap());
        let text = TWO_CLUSTERS.replace("http://proxy.example:3128", &proxy);
        let connection = connected(&text).await.unwrap();
        let asking = tokio::spawn(async move { connection.client.apiserver_version().await });
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
        assert!(asking.await.unwrap().is_err(), "the proxy hung up");
    }

    #[tokio::test]
    async fn a_proxy_of_another_kind_is_refused() {
        let error = connected(&TWO_CLUSTERS.replace("http://proxy", "socks5://proxy")).await.err();
        let error = format!("{:#}", error.expect("no such proxy"));
        assert!(error.contains("socks5://proxy.example:3128"), "{error}");
    }

    #[tokio::test]
    async fn a_token_file_counts_more_than_a_token_and_an_unreadable_one_less() {
        let token = file("from the file");
        let with = |auth: &str| TWO_CLUSTERS.replace("{token: secret}", auth);
        let both = with(&format!("{{token: secret, tokenFile: {:?}}}", token.path()));
        assert!(connected(&both).await.is_ok());
        assert!(connected(&with("{token: secret, tokenFile: /nonexistent/t}")).await.is_ok());
        let error = connected(&with("{tokenFile: /nonexistent/t}")).await.err().expect("no token at all");
        assert!(format!("{error:#}").contains("/nonexistent/t"), "{error:#}");
    }

    #[tokio::test]
    async fn a_master_alone_suffices() {
        connect(None, Some("http://127.0.0.1:8080"), LIMIT, Arc::new(())).await.unwrap();
    }
}
