//! How lists and watches are asked for: so that they cost the API server little, and that nothing goes
//! back in time.
//!
//! - A *streaming list* begins without a version: "as of now". Of several API servers, one that lags
//!   behind answers once it knows all that was written before the request; it asks etcd for
//!   its newest version, and answers from memory. Later ones name the last version that was seen
//!   (`NotOlderThan`), which no server has to ask etcd for. Source: client-go's reflector, v0.36.
//! - A *plain list*, where streaming lists are not served, is taken from the server's memory too: the
//!   first of any version (`0`), for without one 5 000 nodes that start would read etcd 5 000 times;
//!   later ones not older than the last version that was seen. It is asked for whole: pages of later
//!   versions would come from etcd.
//! - A version that the server does not reach (etcd was restored from a backup) or no longer has is not
//!   asked for again: the next list is as of now, whatever its version.

use http::{HeaderValue, Request, header};
use kube::api::{ListParams, VersionMatch, WatchParams};

/// The newest version of a kind that is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Version {
    /// Nothing was listed yet.
    Unknown,
    /// This one.
    Seen(String),
    /// The server cannot serve the one that is known.
    Unusable,
}

/// What is asked for of one kind.
#[derive(Clone, Debug)]
pub struct Query {
    /// The path of all objects of the kind.
    pub path: String,
    /// Selectors.
    pub labels: Option<String>,
    /// Selectors.
    pub fields: Option<String>,
}

/// A request, or why there is none.
pub type Asking = Result<Request<Vec<u8>>, kube::core::request::Error>;

impl Query {
    /// A streaming list, which goes on as a watch until `seconds` are over.
    pub fn streaming(&self, version: &Version, seconds: u32) -> Asking {
        let version = match version {
            Version::Seen(version) => version,
            Version::Unknown | Version::Unusable => "",
        };
        self.request().watch(&self.watching(seconds, true), version)
    }

    /// All objects at once.
    pub fn list(&self, version: &Version) -> Asking {
        let version = match version {
            Version::Unknown => Some("0".to_owned()),
            Version::Seen(version) => Some(version.clone()),
            Version::Unusable => None,
        };
        let list = ListParams {
            label_selector: self.labels.clone(),
            field_selector: self.fields.clone(),
            version_match: version.is_some().then_some(VersionMatch::NotOlderThan),
            resource_version: version,
            ..ListParams::default()
        };
        self.request().list(&list)
    }

    /// What changes after `version`, until `seconds` are over. Events are small: no compression.
    pub fn watch(&self, version: &str, seconds: u32) -> Asking {
        let mut request = self.request().watch(&self.watching(seconds, false), version)?;
        request.headers_mut().insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        Ok(request)
    }

    fn request(&self) -> kube::core::Request {
        kube::core::Request::new(self.path.clone())
    }

    fn watching(&self, seconds: u32, is_streaming: bool) -> WatchParams {
        WatchParams {
            label_selector: self.labels.clone(),
            field_selector: self.fields.clone(),
            timeout: Some(seconds),
            bookmarks: true,
            send_initial_events: is_streaming,
        }
    }
}
