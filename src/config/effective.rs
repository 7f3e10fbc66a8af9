//! The settings in force with their origins, and the texts that show them: `/configz` and the file of
//! `--write-config-to`.

use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::Value as Json;

use super::diagnostics::SetBy;
use super::file::{API_VERSION, KIND};

/// One setting in force.
#[derive(Clone, Debug, PartialEq)]
pub struct EffectiveSetting {
    /// Path in the file (`iptables.masqueradeBit`), or `--<name>` of a setting that only a flag can give.
    pub path: String,
    /// As `/configz` shows it.
    pub value: Json,
    /// Where it was set.
    pub set_by: SetBy,
    /// Whether the value is the default.
    pub is_default: bool,
}

/// Every setting in force, in the order of the table.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Effective(Vec<EffectiveSetting>);

impl Effective {
    /// Every setting, in the order of the table.
    pub fn settings(&self) -> &[EffectiveSetting] {
        &self.0
    }

    /// The setting at `path`; `None` for an unknown path, and for defaults that `/configz` omits.
    pub fn get(&self, path: &str) -> Option<&EffectiveSetting> {
        self.0.iter().find(|setting| setting.path == path)
    }

    pub(super) fn push(&mut self, setting: EffectiveSetting) {
        self.0.push(setting);
    }

    pub(super) fn get_mut(&mut self, path: &str) -> Option<&mut EffectiveSetting> {
        self.0.iter_mut().find(|setting| setting.path == path)
    }

    /// The body of `/configz`: kube-proxy's configuration under kube-proxy's name, byte for byte as
    /// kube-proxy prints it, and Chainsmith's own under `chainsmith`.
    pub fn configz(&self) -> String {
        let (own, theirs): (Vec<_>, Vec<_>) =
            self.document().into_iter().partition(|(path, _)| path.starts_with("chainsmith."));
        let text = |section: &Section<'_>| serde_json::to_string(section).expect("every key is a string");
        let own = text(&Section(&own));
        format!("{{\"kubeproxy.config.k8s.io\":{},{}", text(&Section(&theirs)), &own[1..])
    }

    /// The file of `--write-config-to`: YAML, keys sorted, read back as the same configuration.
    pub fn to_file(&self) -> String {
        let mut document = self.document();
        document.sort_by(|(left, _), (right, _)| left.split('.').cmp(right.split('.')));
        serde_saphyr::to_string(&Section(&document)).expect("JSON is YAML")
    }

    /// The fields of the file, in the order of `/configz`.
    fn document(&self) -> Vec<(&str, Json)> {
        let head = [("kind", KIND.into()), ("apiVersion", API_VERSION.into())];
        let fields = self.0.iter().filter(|setting| !setting.path.starts_with("--"));
        head.into_iter().chain(fields.map(|setting| (&*setting.path, setting.value.clone()))).collect()
    }
}

/// The first key of a path.
fn key(path: &str) -> &str {
    path.split_once('.').map_or(path, |(key, _)| key)
}

/// Fields as a mapping: those whose paths begin with the same key make a section, and follow each other.
struct Section<'a>(&'a [(&'a str, Json)]);

impl<'a> Serialize for Section<'a> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for fields in self.0.chunk_by(|(left, _), (right, _)| key(left) == key(right)) {
            let (path, value) = &fields[0];
            let key = key(path);
            if key == *path {
                map.serialize_entry(key, value)?;
            } else {
                let inside = |(path, value): &(&'a str, Json)| (&path[key.len() + 1..], value.clone());
                map.serialize_entry(key, &Section(&fields.iter().map(inside).collect::<Vec<_>>()))?;
            }
        }
        map.end()
    }
}
