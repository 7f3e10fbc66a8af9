//! Builds the requests for lists and watches, so that they cost the API server little and never return
//! older state than was seen before.
//!
//! - A *streaming list* begins without a version, which means "as of now". A lagging API server responds
//!   once it knows all that was written before the request; it asks etcd for the newest version and
//!   responds from memory. Later streaming lists name the last version seen (`NotOlderThan`), which needs
//!   no request to etcd. Source: client-go's reflector, v0.36.
//! - A *plain list*, where streaming lists are not supported, also comes from the server's memory. The
//!   first one accepts any version (`0`): without it, 5 000 starting nodes would read etcd 5 000 times.
//!   Later ones are not older than the last version seen. A list is requested whole: the second page of a
//!   paginated list would come from etcd.
//! - A version that the server has not reached (etcd was restored from a backup) or no longer has is not
//!   requested again: the next list is as of now, whatever its version.

use http::{HeaderValue, Request, header};
use kube::api::{ListParams, VersionMatch, WatchParams};

/// The newest version seen of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KnownVersion {
    /// No list is complete yet.
    None,
    /// The last version seen.
    Seen(String),
    /// The server cannot serve the last version seen.
    Unservable,
}

/// The objects of one kind to list and watch.
#[derive(Clone, Debug)]
pub struct ListQuery {
    /// Path of all objects of the kind.
    pub path: String,
    /// Label selector.
    pub labels: Option<String>,
    /// Field selector.
    pub fields: Option<String>,
}

/// A request, or why it cannot be built.
pub type BuiltRequest = Result<Request<Vec<u8>>, kube::core::request::Error>;

impl ListQuery {
    /// A streaming list, which continues as a watch for `seconds`.
    pub fn streaming(&self, version: &KnownVersion, seconds: u32) -> BuiltRequest {
        let version = match version {
            KnownVersion::Seen(version) => version,
            KnownVersion::None | KnownVersion::Unservable => "",
        };
        self.request().watch(&self.watch_params(seconds, true), version)
    }

    /// A plain list.
    pub fn list(&self, version: &KnownVersion) -> BuiltRequest {
        let version = match version {
            KnownVersion::None => Some("0".to_owned()),
            KnownVersion::Seen(version) => Some(version.clone()),
            KnownVersion::Unservable => None,
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

    /// A watch of the changes after `version`, for `seconds`. Events are small: no compression.
    pub fn watch(&self, version: &str, seconds: u32) -> BuiltRequest {
        let mut request = self.request().watch(&self.watch_params(seconds, false), version)?;
        request.headers_mut().insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        Ok(request)
    }

    fn request(&self) -> kube::core::Request {
        kube::core::Request::new(self.path.clone())
    }

    fn watch_params(&self, seconds: u32, is_streaming: bool) -> WatchParams {
        WatchParams {
            label_selector: self.labels.clone(),
            field_selector: self.fields.clone(),
            timeout: Some(seconds),
            bookmarks: true,
            send_initial_events: is_streaming,
        }
    }
}
