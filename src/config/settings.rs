//! Chainsmith's own settings: the `chainsmith:` section of the file, and flags that always count.

use serde::Serialize;

use super::duration::GoDuration;
use super::file::Fields;
use super::origin::Origins;
use super::value::Value;

/// The section as it stands in the file; unset is `None`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Chainsmith {
    /// Folders of manifests; empty: objects come from the API server.
    pub manifests: Vec<String>,
    /// `auto`, `nft` or `legacy`.
    pub iptables_backend: String,
    /// `auto`, `classic` or `compact`.
    pub layout: String,
    /// How often the kernel is compared with what was written.
    pub audit_period: GoDuration,
    /// `<ip>:<port>`, or empty: no debug server.
    pub debug_bind_address: String,
}

impl Chainsmith {
    pub(super) fn read(&mut self, fields: &mut Fields<'_>) {
        fields.value("manifests", &mut self.manifests);
        fields.value("iptablesBackend", &mut self.iptables_backend);
        fields.value("layout", &mut self.layout);
        fields.value("auditPeriod", &mut self.audit_period);
        fields.value("debugBindAddress", &mut self.debug_bind_address);
    }

    /// Only for what nobody set: a zero that somebody wrote is refused later, not replaced.
    pub(super) fn fill_defaults(&mut self, origins: &Origins) {
        let is_unset = |path| origins.of(path) == super::Origin::Default;
        if is_unset("chainsmith.iptablesBackend") {
            self.iptables_backend = "auto".to_owned();
        }
        if is_unset("chainsmith.layout") {
            self.layout = "auto".to_owned();
        }
        if is_unset("chainsmith.auditPeriod") {
            self.audit_period = GoDuration::from_secs(300);
        }
    }
}

/// Folders: a flag that is repeated, never split at commas.
#[derive(Default)]
pub(super) struct Folders(pub(super) Vec<String>);

impl Value for Folders {
    const EXPECTED: &'static str = "a list of strings";

    fn from_tree(tree: &super::tree::Tree) -> Option<Folders> {
        Vec::from_tree(tree).map(Folders)
    }

    fn from_flag(texts: &[String]) -> Option<Folders> {
        Some(Folders(texts.to_vec()))
    }
}
