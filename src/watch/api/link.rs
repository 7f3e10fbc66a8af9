//! One link to an API server, with one set of credentials: sockets, a proxy, TLS, HTTP/2.
//!
//! Over `https://` HTTP/2 is offered, and where the server takes it, one connection carries everything:
//! watches, lists, events. A server or a gateway that does not take it is asked by HTTP/1.1, each watch
//! on a connection of its own, and so is every `http://` address. A connection that died without a
//! word is noticed: by pings of HTTP/2 within 45 s, by probes of TCP within two minutes.

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
use super::observer::Observer;
use super::token::TokenFile;

/// How long it may take to reach the server, all handshakes included.
const CONNECT: Duration = Duration::from_secs(10);

/// After this long without a frame from the server it is pinged. As in client-go.
const PING_AFTER: Duration = Duration::from_secs(30);

/// How long the server has for its answer to a ping. As in client-go.
const PING_TIMEOUT: Duration = Duration::from_secs(15);

/// After this long without a packet TCP probes whether the peer is there, and then each
/// [`PROBE_EVERY`].
const PROBE_AFTER: Duration = Duration::from_secs(30);
const PROBE_EVERY: Duration = Duration::from_secs(15);

/// How long the peer may leave packets and probes without an answer; with the probe that finds it out,
/// less than two minutes.
const PEER_TIMEOUT: Duration = Duration::from_secs(90);

/// How many bytes the server may send ahead, of one answer and of all together: what is in the way
/// between two data centres, and no burden on memory.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;

type Sending = BoxCloneSyncService<Request<Body>, Response<Incoming>, BoxError>;

/// A link to an API server. Clones are the same one.
#[derive(Clone)]
pub struct Link {
    service: Sending,
    token: Option<Arc<TokenFile>>,
    retired: watch::Sender<bool>,
    /// `addr:port` of the API server, as configured.
    pub host: String,
}

impl Link {
    /// Prepares the way that `config` describes; nothing is contacted yet. Each connection is reported
    /// to `observer`. An error when a certificate or a key is unusable.
    pub fn new(
        config: &Config,
        token: Option<Arc<TokenFile>>,
        observer: &Arc<dyn Observer>,
    ) -> anyhow::Result<Link> {
        let sockets = sockets();
        let sending = match &config.proxy_url {
            None => over(sockets, config, observer)?,
            Some(proxy) => match proxy.scheme_str() {
                Some("http") => over(tunnel(proxy, sockets)?, config, observer)?,
                Some("https") => {
                    let sockets = with_tls(config)?.enable_http1().wrap_connector(sockets);
                    over(tunnel(proxy, sockets)?, config, observer)?
                }
                _ => bail!("proxy {proxy}: its scheme has to be http or https"),
            },
        };
        let auth = config.auth_layer().context("preparing the credentials")?;
        let service = ServiceBuilder::new()
            .layer(config.base_uri_layer())
            .option_layer(auth)
            .layer(config.extra_headers_layer().context("preparing headers")?)
            .map_err(BoxError::from)
            .service(sending);
        let host = config.cluster_url.authority().map(ToString::to_string).unwrap_or_default();
        let service = BoxCloneSyncService::new(service);
        Ok(Link { service, token, retired: watch::Sender::new(false), host })
    }

    /// Sends one request; the answer's body is unpacked, and a watch ends in order when this link is
    /// retired.
    pub async fn send(self, mut request: Request<Body>) -> Result<Response<Unzipped>, BoxError> {
        if let Some(token) = &self.token {
            request.headers_mut().insert(header::AUTHORIZATION, token.header());
        }
        let is_watch = request.uri().query().is_some_and(|query| query.contains("watch=true"));
        gzip::accept(request.headers_mut());
        let answer = self.service.oneshot(request).await?;
        Ok(gzip::unzip(answer, is_watch.then(|| self.retired.subscribe())))
    }

    /// Ends the watches that run, in order, so that they are begun again over the link that replaces it.
    pub fn retire(&self) {
        self.retired.send_replace(true);
    }

    /// Whether it was retired.
    pub fn is_retired(&self) -> bool {
        *self.retired.borrow()
    }

    /// Waits until the file of tokens holds another one than was sent last; for ever where there is
    /// none.
    pub async fn token_changed(&self) {
        match &self.token {
            Some(token) => token.changed().await,
            None => std::future::pending().await,
        }
    }
}

/// Sockets that notice when their peer is gone.
fn sockets() -> HttpConnector {
    let mut sockets = HttpConnector::new();
    sockets.enforce_http(false);
    sockets.set_nodelay(true);
    sockets.set_connect_timeout(Some(CONNECT));
    sockets.set_keepalive(Some(PROBE_AFTER));
    sockets.set_keepalive_interval(Some(PROBE_EVERY));
    sockets.set_tcp_user_timeout(Some(PEER_TIMEOUT));
    sockets
}

/// Leads through `proxy`, with the user and password that its address may hold.
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
            let name = name.clone().try_into().map_err(|_| anyhow!("{name:?} is no name of a server"))?;
            builder.with_server_name_resolver(FixedServerNameResolver::new(name))
        }
        None => builder,
    })
}

/// What sends requests over connections that `tcp` makes.
fn over<H>(tcp: H, config: &Config, observer: &Arc<dyn Observer>) -> anyhow::Result<Sending>
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
        builder.build(connecting(connector.clone(), Versions::Any, observer.clone())).map_err(BoxError::from),
    );
    if config.cluster_url.scheme() == Some(&Scheme::HTTP) {
        return Ok(http1);
    }
    // Known beforehand to be HTTP/2, requests that come while the connection is made wait for it instead
    // of making more. It is used for as long as it lives: the server ends idle ones itself.
    builder.http2_only(true).pool_idle_timeout(None);
    let http2 = builder.build(connecting(connector, Versions::Http2, observer.clone()));
    let http2 = BoxCloneSyncService::new(http2.map_err(BoxError::from));
    let refuses = Arc::new(AtomicBool::new(false));
    Ok(BoxCloneSyncService::new(tower::service_fn(move |request| {
        negotiated(http2.clone(), http1.clone(), refuses.clone(), request)
    })))
}

/// Sends by HTTP/2, or, from the first time on that the server does not take it, by what it does take.
async fn negotiated(
    http2: Sending,
    http1: Sending,
    refuses_http2: Arc<AtomicBool>,
    request: Request<Body>,
) -> Result<Response<Incoming>, BoxError> {
    if refuses_http2.load(Ordering::Relaxed) {
        return http1.oneshot(request).await;
    }
    let (parts, body) = request.into_parts();
    let again = body.try_clone().map(|body| Request::from_parts(parts.clone(), body));
    match http2.oneshot(Request::from_parts(parts, body)).await {
        Err(error) if is_refusal(&*error) => {
            refuses_http2.store(true, Ordering::Relaxed);
            http1.oneshot(again.ok_or(error)?).await
        }
        answer => answer,
    }
}

/// Which versions of HTTP a connection may turn out to speak.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Versions {
    Any,
    Http2,
}

/// The server is there, but takes no HTTP/2.
#[derive(Debug, thiserror::Error)]
#[error("the server takes no HTTP/2")]
struct NoHttp2;

fn is_refusal(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut errors = std::iter::successors(Some(error), |error| error.source());
    errors.any(|error| error.is::<NoHttp2>())
}

type Connecting<T> = Pin<Box<dyn Future<Output = Result<T, BoxError>> + Send>>;

/// Makes connections, in bounded time.
fn connecting<H>(
    connector: HttpsConnector<H>,
    versions: Versions,
    observer: Arc<dyn Observer>,
) -> impl Service<
    Uri,
    Response = hyper_rustls::MaybeHttpsStream<H::Response>,
    Error = BoxError,
    Future = Connecting<hyper_rustls::MaybeHttpsStream<H::Response>>,
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
            let stream = tokio::time::timeout(CONNECT, connector.oneshot(uri))
                .await
                .map_err(|_| format!("no connection within {} s", CONNECT.as_secs()))??;
            if versions == Versions::Http2 && !stream.connected().is_negotiated_h2() {
                return Err(NoHttp2.into());
            }
            observer.connected();
            Ok(stream)
        };
        Box::pin(connected) as Connecting<_>
    })
}

#[cfg(test)]
pub mod tests;
