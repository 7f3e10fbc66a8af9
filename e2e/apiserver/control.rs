//! Settings of the server that a test can change, besides faults.

use std::time::Duration;

use tokio::time::Instant;

use super::serve::Door;
use super::tls::ClientCertificate;
use super::{ApiServer, Etcd, Gzip};

impl ApiServer {
    /// Rejects (401) every request without this bearer token; `None` accepts all. Open watches
    /// stay, as on a real server.
    pub fn require_token(&self, token: Option<&str>) {
        self.shared.access().token = token.map(str::to_owned);
    }

    /// Rejects (401) every request on a connection without one of these client certificates; `None` accepts
    /// all. A client with the required token needs no certificate.
    pub fn require_certificate(&self, certificates: Option<Vec<ClientCertificate>>) {
        self.shared.access().certificates = certificates;
    }

    /// Makes every connection refuse further requests and end after its current response: GOAWAY
    /// over HTTP/2, `Connection: close` over HTTP/1.1.
    pub fn go_away(&self) {
        self.shared.door.send_modify(|door| door.n_goaways += 1);
    }

    /// Ends as a real server does on SIGTERM: it refuses connections, open ones accept no
    /// further requests, and watches go on for `grace` (60 s there) and then end in order.
    pub fn shut_down(&self, grace: Duration) {
        self.shared.door.send_modify(|door| *door = Door { is_open: false, n_goaways: door.n_goaways + 1 });
        self.shared.pulse.send_modify(|pulse| pulse.ends_at = Some(Instant::now() + grace));
    }

    /// Accepts connections again after [`ApiServer::shut_down`].
    pub fn come_back(&self) {
        self.shared.pulse.send_modify(|pulse| pulse.ends_at = None);
        self.shared.door.send_modify(|door| door.is_open = true);
    }

    /// Behaves as with this etcd from now on, also for open watches.
    pub fn set_etcd(&self, etcd: Etcd) {
        self.shared.pulse.send_modify(|pulse| pulse.etcd = etcd);
    }

    /// Compresses streaming lists that begin from now on, for clients that accept it.
    pub fn set_compression(&self, compression: Option<Gzip>) {
        self.shared.pulse.send_modify(|pulse| pulse.compression = compression);
    }

    /// Divides by this factor the times for which requests wait for a version or for an etcd that is
    /// away, and for which new connections may be idle.
    pub fn set_pace(&self, pace: u32) {
        self.shared.pulse.send_modify(|pulse| pulse.pace = pace.max(1));
    }

    /// Sends a bookmark at this interval (default 60 s, from the begin of the watch) to watches that
    /// ask for them, including open ones.
    pub fn set_bookmark_interval(&self, every: Duration) {
        self.shared.pulse.send_modify(|pulse| pulse.bookmark_every = every);
    }
}
