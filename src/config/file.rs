//! The file's text to the fields of [`KubeProxyConfiguration`] and of Chainsmith's own section.
//!
//! Lenient where kube-proxy is (an unknown field is a warning), strict in the `chainsmith:` section.
//! Every wrong value is reported, not only the first.

use super::Report;
use super::document::{API_VERSION, KIND, KubeProxyConfiguration};
use super::origin::{Origin, Warning, quoted};
use super::settings::Chainsmith;
use super::tree::Tree;
use super::value::Value;

/// Reads `text`; what is wrong with it is in `report`, and those fields are as if they were not there.
pub(super) fn read(text: &str, report: &mut Report) -> (KubeProxyConfiguration, Chainsmith) {
    let mut document = KubeProxyConfiguration::default();
    let mut own = Chainsmith::default();
    let parsed = match Tree::parse(text) {
        Ok(parsed) => parsed,
        Err(error) => {
            report.refuse("", "", format!("the file is neither YAML nor JSON: {error}"));
            return (document, own);
        }
    };
    if parsed.n_ignored > 0 {
        report.warnings.push(Warning::MoreDocuments(parsed.n_ignored));
    }
    let Tree::Map(entries) = parsed.tree else {
        report.refuse("", parsed.tree, format!("the file must be a {KIND} ({API_VERSION})"));
        return (document, own);
    };
    let mut fields = Fields { path: String::new(), entries, is_strict: false, report };
    if !fields.is_document() {
        return (document, own);
    }
    document.read(&mut fields);
    fields.strict_section("chainsmith", |fields| own.read(fields));
    fields.finish();
    (document, own)
}

/// The entries of one mapping of the file that nobody has taken yet.
pub(super) struct Fields<'a> {
    /// With its final dot, empty at the top.
    path: String,
    entries: Vec<(String, Tree)>,
    is_strict: bool,
    report: &'a mut Report,
}

impl Fields<'_> {
    /// Sets `field` if `name` is there; a wrong value is reported and leaves it as it is.
    pub(super) fn value<T: Value>(&mut self, name: &str, field: &mut T) {
        let Some(tree) = self.take(name) else { return };
        if tree == Tree::Null && !T::REFUSES_NULL {
            return;
        }
        let path = format!("{}{name}", self.path);
        match T::from_tree(&tree) {
            Some(value) => {
                *field = value;
                self.report.origins.set(&path, Origin::File);
            }
            None => self.report.refuse(&path, tree, format!("must be {}", T::EXPECTED)),
        }
    }

    /// Reads the mapping `name`, if it is there, with `read`; what `read` leaves is unknown.
    pub(super) fn section(&mut self, name: &str, read: impl FnOnce(&mut Fields<'_>)) {
        self.mapping(name, self.is_strict, read);
    }

    fn strict_section(&mut self, name: &str, read: impl FnOnce(&mut Fields<'_>)) {
        self.mapping(name, true, read);
    }

    fn mapping(&mut self, name: &str, is_strict: bool, read: impl FnOnce(&mut Fields<'_>)) {
        let path = format!("{}{name}", self.path);
        match self.take(name) {
            None | Some(Tree::Null) => {}
            Some(Tree::Map(entries)) => {
                let path = format!("{path}.");
                let mut fields = Fields { path, entries, is_strict, report: self.report };
                read(&mut fields);
                fields.finish();
            }
            Some(tree) => self.report.refuse(&path, tree, "must be a section with fields"),
        }
    }

    /// The last value of `name`.
    fn take(&mut self, name: &str) -> Option<Tree> {
        let mut found = None;
        let mut n_found = 0;
        self.entries.retain_mut(|(key, value)| {
            let is_it = key == name;
            if is_it {
                n_found += 1;
                found = Some(std::mem::replace(value, Tree::Null));
            }
            !is_it
        });
        if n_found > 1 {
            let path = format!("{}{name}", self.path);
            match self.is_strict {
                true => self.report.refuse(&path, "", "set twice"),
                false => self.report.warnings.push(Warning::DuplicateField(path)),
            }
        }
        found
    }

    /// Whether the mapping can be a configuration at all; a wrong `kind` or `apiVersion` is reported.
    fn is_document(&mut self) -> bool {
        let mut is_ours = true;
        for (name, expected) in [("apiVersion", API_VERSION), ("kind", KIND)] {
            match self.take(name) {
                Some(Tree::Text(text)) if text == expected => {}
                Some(other) => {
                    is_ours = false;
                    self.report.refuse(name, other, format!("must be {expected:?}"));
                }
                None => self.report.refuse(name, "", format!("is missing, must be {expected:?}")),
            }
        }
        is_ours
    }

    /// Reports the entries that are left.
    fn finish(self) {
        for (name, value) in self.entries {
            // Names are text of the file: quoted unless they are plain words.
            let is_word =
                !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
            let name = if is_word { name } else { quoted(&name) };
            let path = format!("{}{name}", self.path);
            match self.is_strict {
                true => self.report.refuse(&path, value, "unknown field"),
                false => self.report.warnings.push(Warning::UnknownField(path)),
            }
        }
    }
}
