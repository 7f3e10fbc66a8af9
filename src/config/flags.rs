//! The flags that were given: for each its texts, which are read together with the file.

use std::collections::BTreeMap;
use std::path::Path;

use super::setting_value::go_bool;

/// The flags of the agent that were given. The default is none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// Every occurrence of each, in order, never empty; by the names of [`super::FLAGS`].
    given: BTreeMap<&'static str, Vec<String>>,
}

impl Flags {
    /// Adds an occurrence of `--<name>=<text>`.
    pub(super) fn push(&mut self, name: &'static str, text: String) {
        self.given.entry(name).or_default().push(text);
    }

    /// Every occurrence of `--<name>`; empty when it was not given.
    pub(super) fn texts(&self, name: &str) -> &[String] {
        self.given.get(name).map_or(&[], Vec::as_slice)
    }

    /// `--config`: the file whose text goes to [`super::Config::resolve`].
    pub fn config(&self) -> Option<&Path> {
        self.path("config")
    }

    /// `--write-config-to`.
    pub fn write_config_to(&self) -> Option<&Path> {
        self.path("write-config-to")
    }

    /// `--cleanup`.
    pub fn is_cleanup(&self) -> bool {
        self.is_on("cleanup")
    }

    /// `--init-only`.
    pub fn is_init_only(&self) -> bool {
        self.is_on("init-only")
    }

    fn path(&self, name: &str) -> Option<&Path> {
        self.texts(name).last().filter(|text| !text.is_empty()).map(Path::new)
    }

    /// A text that is no boolean counts as not given here; [`super::Config::resolve`] reports it.
    fn is_on(&self, name: &str) -> bool {
        self.texts(name).last().is_some_and(|text| go_bool(text) == Some(true))
    }
}
