//! The text of a `KubeProxyConfiguration` to the values of its settings, by path.
//!
//! Lenient where kube-proxy is (an unknown field is a warning), strict in the `chainsmith:` section.
//! Every error is reported, not only the first. The types of the values are checked when they are used.

use std::collections::{BTreeMap, BTreeSet};

use super::diagnostics::{Diagnostics, quoted_key};
use super::setting::Setting;
use super::yaml::FileValue;

/// The only `apiVersion`.
pub(super) const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";
/// The only `kind`.
pub(super) const KIND: &str = "KubeProxyConfiguration";

/// The values of a file by the paths of their settings.
pub(super) type FileValues = BTreeMap<String, FileValue>;

/// Reads the values of `settings` in `text`; its errors are in `diagnostics`.
pub(super) fn read(text: &str, settings: &[Setting], diagnostics: &mut Diagnostics) -> FileValues {
    let parsed = match FileValue::parse(text) {
        Ok(parsed) => parsed,
        Err(error) => {
            diagnostics.refuse("", "", format!("the file is neither YAML nor JSON: {error}"));
            return FileValues::new();
        }
    };
    if parsed.n_ignored > 0 {
        diagnostics.warn("", format!("{} more documents in the file, ignored", parsed.n_ignored));
    }
    let FileValue::Map(mut entries) = parsed.value else {
        diagnostics.refuse("", parsed.value, format!("the file must be a {KIND} ({API_VERSION})"));
        return FileValues::new();
    };
    let mut reader = FieldCollector { settings, values: FileValues::new(), diagnostics };
    if reader.is_configuration(&mut entries) {
        reader.read_section("", entries);
    }
    reader.values
}

struct FieldCollector<'a> {
    settings: &'a [Setting],
    values: FileValues,
    diagnostics: &'a mut Diagnostics,
}

impl FieldCollector<'_> {
    /// Takes `kind` and `apiVersion` out of `entries`, reports wrong ones, and returns whether the file can
    /// be a configuration at all.
    fn is_configuration(&mut self, entries: &mut Vec<(String, FileValue)>) -> bool {
        let mut is_ours = true;
        for (name, expected) in [("apiVersion", API_VERSION), ("kind", KIND)] {
            match entries.extract_if(.., |(key, _)| key == name).last() {
                Some((_, FileValue::Text(text))) if text == expected => {}
                Some((_, other)) => {
                    is_ours = false;
                    self.diagnostics.refuse(name, other, format!("must be {expected:?}"));
                }
                None => self.diagnostics.refuse(name, "", format!("is missing, must be {expected:?}")),
            }
        }
        is_ours
    }

    /// Reads the section whose settings begin with `prefix` (`iptables.`, or empty for the whole file).
    fn read_section(&mut self, prefix: &str, entries: Vec<(String, FileValue)>) {
        let mut n_left: BTreeMap<String, usize> = BTreeMap::new();
        entries.iter().for_each(|(key, _)| *n_left.entry(key.clone()).or_default() += 1);
        let mut repeated = BTreeSet::new();
        for (key, value) in entries {
            let path = format!("{prefix}{key}");
            let fields = format!("{path}.");
            let is_setting = self.settings.iter().any(|setting| setting.path == path);
            let is_section = self.settings.iter().any(|setting| setting.path.starts_with(&fields));
            if !is_setting && !is_section {
                self.report_unknown(format!("{prefix}{}", quoted_key(&key)), &value);
                continue;
            }
            if let Some(n_left) = n_left.get_mut(&key).filter(|n_left| **n_left > 1) {
                *n_left -= 1;
                repeated.insert(key);
                continue;
            }
            if repeated.contains(&key) {
                self.report_duplicate(&path);
            }
            match value {
                value if is_setting => drop(self.values.insert(path, value)),
                FileValue::Map(entries) => self.read_section(&fields, entries),
                FileValue::Null => {}
                other => self.diagnostics.refuse(path, other, "must be a section with fields"),
            }
        }
    }

    fn report_unknown(&mut self, path: String, value: &FileValue) {
        match is_strict(&path) {
            true => self.diagnostics.refuse(path, value, "unknown field"),
            false => self.diagnostics.warn(path, "unknown field, ignored"),
        }
    }

    fn report_duplicate(&mut self, path: &str) {
        match is_strict(path) {
            true => self.diagnostics.refuse(path, "", "set twice"),
            false => self.diagnostics.warn(path, "set twice, the later one counts"),
        }
    }
}

fn is_strict(path: &str) -> bool {
    path.starts_with("chainsmith.")
}
