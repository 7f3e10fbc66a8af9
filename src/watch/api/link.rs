//! One link to an API server with one set of credentials: sockets, proxy, TLS, HTTP/2.
//!
//! HTTP/2 is offered over `https://`; where the server accepts it, one connection carries all watches,
//! lists and events. A server or gateway without HTTP/2, and every `http://` address, gets HTTP/1.1, with a
//! connection for each watch. A connection that dies silently is detected: by HTTP/2 pings within 45 s, by
//! TCP probes within two minutes.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use data_encoding::BASE64;
use http::uri::Scheme;
use http::{HeaderValue, Request, Response, Uri, header};
use hyper::body::Incoming;
use hyper::rt::{Read, Write};
use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::legacy::connect::{Connection, HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::client::{Body, ConfigExt};
use kube::config::Config;
use percent_encoding::percent_decode_str;
use tokio::sync::watch;
use tower::util::BoxCloneSyncService;
use tower::{BoxError, Service, ServiceBuilder, ServiceExt};

use super::gzip::{self, Unzipped};
use super::token::TokenFile;
use super::traffic::TrafficObserver;

/// Timeout for a connection, all handshakes included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The server is pinged after this long without a frame. As in client-go.
const PING_AFTER: Duration = Duration::from_secs(30);

/// Timeout for the server's reply to a ping. As in client-go.
const PING_TIMEOUT: Duration = Duration::from_secs(15);

/// TCP probes the peer after this long without a packet, and then every [`PROBE_EVERY`].
const PROBE_AFTER: Duration = Duration::from_secs(30);
const PROBE_EVERY: Duration = Duration::from_secs(15);

/// How long the peer may leave packets and probes unacknowledged. With the probe that detects it, less than
/// two minutes.
const PEER_TIMEOUT: Duration = Duration::from_secs(90);

/// HTTP/2 windows: how many bytes the server may send ahead, for one response and for the connection. They
/// cover the delay between two data centres and limit memory.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;

type BoxedHttp = BoxCloneSyncService<Request<Body>, Response<Incoming>, BoxError>;

/// A link to an API server. Clones share it.
#[derive(Clone)]
pub struct Link {
    service: BoxedHttp,
    token: Option<Arc<TokenFile>>,
    retired: watch::Sender<bool>,
    /// `addr:port` of the API server, as configured.
    pub host: String,
}

impl Link {
    /// Prepares a link by `config`; no connection is made yet. Each later connection is reported to
    /// `observer`. Fails if a certificate or a key is unusable.
    pub fn new(
        config: &Config,
        token: Option<Arc<TokenFile>>,
        observer: &Arc<dyn TrafficObserver>,
    ) -> anyhow::Result<Link> {
        let sockets = sockets();
        let http = match &config.proxy_url {
            None => https_client(sockets, config, observer)?,
            Some(proxy) => match proxy.scheme_str() {
                Some("http") => https_client(tunnel(proxy, sockets)?, config, observer)?,
                Some("https") => {
                    let sockets = with_tls(config)?.enable_http1().wrap_connector(sockets);
                    https_client(tunnel(proxy, sockets)?, config, observer)?
                }
                _ => bail!("proxy {proxy}: the scheme must be http or https"),
            },
        };
        let auth = config.auth_layer().context("preparing the credentials")?;
        let service = ServiceBuilder::new()
            .layer(config.base_uri_layer())
            .option_layer(auth)
            .layer(config.extra_headers_layer().context("preparing headers")?)
            .map_err(BoxError::from)
            .service(http);
        let host = config.cluster_url.authority().map(ToString::to_string).unwrap_or_default();
        let service = BoxCloneSyncService::new(service);
        Ok(Link { service, token, retired: watch::Sender::new(false), host })
    }

    /// Sends one request. The response body is decompressed, and a watch ends normally when this link is
    /// retired.
    pub async fn send(self, mut request: Request<Body>) -> Result<Response<Unzipped>, BoxError> {
        if let Some(token) = &self.token {
            request.headers_mut().insert(header::AUTHORIZATION, token.header());
        }
        let is_watch = request.uri().query().is_some_and(|query| query.contains("watch=true"));
        gzip::request_compression(request.headers_mut());
        let response = self.service.oneshot(request).await?;
        Ok(gzip::unzip(response, is_watch.then(|| self.retired.subscribe())))
    }

    /// Ends running watches normally, so that they continue over the link that replaces this one.
    pub fn retire(&self) {
        self.retired.send_replace(true);
    }

    /// Whether [`Link::retire`] was called.
    pub fn is_retired(&self) -> bool {
        *self.retired.borrow()
    }

    /// Waits until the token file holds another token than the one sent last; without a token file, for
    /// ever.
    pub async fn token_changed(&self) {
        match &self.token {
            Some(token) => token.changed().await,
            None => std::future::pending().await,
        }
    }
}

/// TCP connections that detect a dead peer.
fn sockets() -> HttpConnector {
    let mut sockets = HttpConnector::new();
    sockets.enforce_http(false);
    sockets.set_nodelay(true);
    sockets.set_connect_timeout(Some(CONNECT_TIMEOUT));
    sockets.set_keepalive(Some(PROBE_AFTER));
    sockets.set_keepalive_interval(Some(PROBE_EVERY));
    sockets.set_tcp_user_timeout(Some(PEER_TIMEOUT));
    sockets
}

/// Tunnels through `proxy`, with the user and password from its address.
fn tunnel<C>(proxy: &Uri, connector: C) -> anyhow::Result<Tunnel<C>> {
    let tunnel = Tunnel::new(proxy.clone(), connector);
    let user = proxy.authority().and_then(|authority| authority.as_str().rsplit_once('@'));
    Ok(match user {
        Some((user, _)) => {
            let user: Vec<u8> = percent_decode_str(user).collect();
            tunnel.with_auth(HeaderValue::try_from(format!("Basic {}", BASE64.encode(&user)))?)
        }
        None => tunnel,
    })
}

type TlsBuilder = HttpsConnectorBuilder<hyper_rustls::builderstates::WantsProtocols1>;

fn with_tls(config: &Config) -> anyhow::Result<TlsBuilder> {
    let tls = config.rustls_client_config().context("preparing TLS")?;
    let builder = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http();
    Ok(match &config.tls_server_name {
        Some(name) => {
            let name = name.clone().try_into().map_err(|_| anyhow!("{name:?} is not a server name"))?;
            builder.with_server_name_resolver(FixedServerNameResolver::new(name))
        }
        None => builder,
    })
}

/// An HTTP client over connections that `tcp` makes.
fn https_client<H>(tcp: H, config: &Config, observer: &Arc<dyn TrafficObserver>) -> anyhow::Result<BoxedHttp>
where
    H: Service<Uri> + Clone + Send + Sync + 'static,
    H::Response: Connection + Read + Write + Send + Unpin + 'static,
    H::Future: Send + 'static,
    H::Error: Into<BoxError>,
{
    let connector = with_tls(config)?.enable_all_versions().wrap_connector(tcp);
    let mut builder = Client::builder(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .http2_keep_alive_interval(PING_AFTER)
        .http2_keep_alive_timeout(PING_TIMEOUT)
        .http2_keep_alive_while_idle(true)
        .http2_initial_stream_window_size(STREAM_WINDOW)
        .http2_initial_connection_window_size(CONNECTION_WINDOW);
    let http1 = BoxCloneSyncService::new(
        builder
            .build(connect_with_timeout(connector.clone(), HttpVersions::Any, observer.clone()))
            .map_err(BoxError::from),
    );
    if config.cluster_url.scheme() == Some(&Scheme::HTTP) {
        return Ok(http1);
    }
    // With HTTP/2 only, requests that arrive while the connection is being made wait for it instead of
    // opening more. The connection has no idle timeout here: the server ends idle ones itself.
    builder.http2_only(true).pool_idle_timeout(None);
    let http2 = builder.build(connect_with_timeout(connector, HttpVersions::Http2, observer.clone()));
    let http2 = BoxCloneSyncService::new(http2.map_err(BoxError::from));
    let rejects_http2 = Arc::new(AtomicBool::new(false));
    Ok(BoxCloneSyncService::new(tower::service_fn(move |request| {
        send_negotiated(http2.clone(), http1.clone(), rejects_http2.clone(), request)
    })))
}

/// Sends over HTTP/2; after the server has rejected HTTP/2 once, over HTTP/1.1.
async fn send_negotiated(
    http2: BoxedHttp,
    http1: BoxedHttp,
    rejects_http2: Arc<AtomicBool>,
    request: Request<Body>,
) -> Result<Response<Incoming>, BoxError> {
    if rejects_http2.load(Ordering::Relaxed) {
        return http1.oneshot(request).await;
    }
    let (parts, body) = request.into_parts();
    let retry = body.try_clone().map(|body| Request::from_parts(parts.clone(), body));
    match http2.oneshot(Request::from_parts(parts, body)).await {
        Err(error) if is_no_http2(&*error) => {
            rejects_http2.store(true, Ordering::Relaxed);
            http1.oneshot(retry.ok_or(error)?).await
        }
        result => result,
    }
}

/// The HTTP versions that a connection may negotiate.
#[derive(Clone, Copy, PartialEq, Eq)]
enum HttpVersions {
    Any,
    Http2,
}

/// The server is reachable, but does not support HTTP/2.
#[derive(Debug, thiserror::Error)]
#[error("the server does not support HTTP/2")]
struct NoHttp2;

fn is_no_http2(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut errors = std::iter::successors(Some(error), |error| error.source());
    errors.any(|error| error.is::<NoHttp2>())
}

type ConnectFuture<T> = Pin<Box<dyn Future<Output = Result<T, BoxError>> + Send>>;

/// Makes connections, with a timeout.
fn connect_with_timeout<H>(
    connector: HttpsConnector<H>,
    versions: HttpVersions,
    observer: Arc<dyn TrafficObserver>,
) -> impl Service<
    Uri,
    Response = hyper_rustls::MaybeHttpsStream<H::Response>,
    Error = BoxError,
    Future = ConnectFuture<hyper_rustls::MaybeHttpsStream<H::Response>>,
> + Clone
+ Send
+ Sync
+ 'static
where
    H: Service<Uri> + Clone + Send + Sync + 'static,
    H::Response: Connection + Read + Write + Send + Unpin + 'static,
    H::Future: Send + 'static,
    H::Error: Into<BoxError>,
{
    tower::service_fn(move |uri| {
        let (connector, observer) = (connector.clone(), observer.clone());
        let connected = async move {
            let stream = tokio::time::timeout(CONNECT_TIMEOUT, connector.oneshot(uri))
                .await
                .map_err(|_| format!("no connection within {} s", CONNECT_TIMEOUT.as_secs()))??;
            if versions == HttpVersions::Http2 && !stream.connected().is_negotiated_h2() {
                return Err(NoHttp2.into());
            }
            observer.connection_opened();
            Ok(stream)
        };
        Box::pin(connected) as ConnectFuture<_>
    })
}

#[cfg(test)]
pub mod tests;
