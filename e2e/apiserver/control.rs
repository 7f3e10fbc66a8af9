//! What a test can have the server do and be, beside faults.

use std::time::Duration;

use tokio::time::Instant;

use super::serve::Door;
use super::tls::ClientCertificate;
use super::{ApiServer, Etcd, Gzip};

impl ApiServer {
    /// Refuses (401) every request without this bearer token; `None` lets everybody in. Open watches
    /// stay, as on a real server.
    pub fn require_token(&self, token: Option<&str>) {
        self.shared.access().token = token.map(str::to_owned);
    }

    /// Refuses (401) every request on a connection whose client did not show one of these; `None` lets
    /// everybody in. A client with the token that is required is let in without.
    pub fn require_certificate(&self, certificates: Option<Vec<ClientCertificate>>) {
        self.shared.access().certificates = certificates;
    }

    /// Has every connection take no further requests and end with the last answer under way: GOAWAY
    /// over HTTP/2, `Connection: close` over HTTP/1.1.
    pub fn go_away(&self) {
        self.shared.door.send_modify(|door| door.n_goaways += 1);
    }

    /// Ends as a real server does on SIGTERM: connections are refused, those that are open take no
    /// further requests, watches go on for `grace` (60 s there) and then end in order.
    pub fn shut_down(&self, grace: Duration) {
        self.shared.door.send_modify(|door| *door = Door { is_open: false, n_goaways: door.n_goaways + 1 });
        self.shared.pulse.send_modify(|pulse| pulse.ends_at = Some(Instant::now() + grace));
    }

    /// Takes connections again after [`ApiServer::shut_down`].
    pub fn come_back(&self) {
        self.shared.pulse.send_modify(|pulse| pulse.ends_at = None);
        self.shared.door.send_modify(|door| door.is_open = true);
    }

    /// Behaves as with this etcd from now on, also towards watches that are open.
    pub fn set_etcd(&self, etcd: Etcd) {
        self.shared.pulse.send_modify(|pulse| pulse.etcd = etcd);
    }

    /// Compresses streaming lists begun from now on, for clients that accept it.
    pub fn set_compression(&self, compression: Option<Gzip>) {
        self.shared.pulse.send_modify(|pulse| pulse.compression = compression);
    }

    /// Makes the times shorter by this factor that requests wait for a version, or for an etcd that is
    /// away.
    pub fn set_pace(&self, pace: u32) {
        self.shared.pulse.send_modify(|pulse| pulse.pace = pace.max(1));
    }

    /// Sends a bookmark this often (default 60 s, counted from the begin of the watch) to watches that
    /// want them, open ones included.
    pub fn set_bookmark_interval(&self, every: Duration) {
        self.shared.pulse.send_modify(|pulse| pulse.bookmark_every = every);
    }
}
