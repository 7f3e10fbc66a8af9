//! Where each setting comes from, and what is said about settings: warnings and errors.

use std::collections::BTreeMap;
use std::fmt;

/// Where the value of a setting comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// The configuration file.
    File,
    /// The flag of this name, without `--`.
    Flag(&'static str),
}

/// `default`, `file` or `flag --<name>`.
impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File => f.write_str("file"),
            Origin::Flag(name) => write!(f, "flag --{name}"),
        }
    }
}

/// The origin of every setting that is not a default, by its path in the file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Origins(BTreeMap<String, Origin>);

impl Origins {
    /// The origin of the setting at `path` (`iptables.masqueradeBit`). An element of a list or a map
    /// (`nodePortAddresses[0]`, `featureGates.ComponentFlagz`) has that of the whole.
    pub fn of(&self, path: &str) -> Origin {
        let mut path = path;
        loop {
            if let Some(origin) = self.0.get(path) {
                return *origin;
            }
            let Some(end) = path.rfind(['.', '[']) else { return Origin::Default };
            path = &path[..end];
        }
    }

    pub(super) fn set(&mut self, path: &str, origin: Origin) {
        self.0.insert(path.to_owned(), origin);
    }

    pub(super) fn forget(&mut self, path: &str) {
        self.0.remove(path);
    }

    /// What a message calls the setting: its flag if that set it, else its path.
    pub(super) fn place(&self, path: &str) -> String {
        match self.of(path) {
            Origin::Flag(name) => format!("--{name}"),
            _ => path.to_owned(),
        }
    }
}

/// Something that does not stop the start, to be logged once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Warning {
    /// A field that v1alpha1 does not have; ignored.
    UnknownField(String),
    /// A field that stands twice; the later one counts.
    DuplicateField(String),
    /// Documents after the first one of the file; ignored. Their number.
    MoreDocuments(usize),
    /// Flags that were given, and that do not count because there is a configuration file.
    IgnoredFlags(Vec<&'static str>),
    /// A field or flag that means nothing in iptables mode; ignored.
    NoMeaning(String),
    /// A field or flag that does not mean what it seems to.
    Note {
        /// Path of the field, or the flag with its `--`.
        place: String,
        /// What to know.
        note: String,
    },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Warning::UnknownField(path) => write!(f, "{path}: unknown field, ignored"),
            Warning::DuplicateField(path) => write!(f, "{path}: set twice, the later one counts"),
            Warning::MoreDocuments(n) => write!(f, "{n} more documents in the file, ignored"),
            Warning::IgnoredFlags(names) => {
                write!(f, "ignored, as --config is given: --{}", names.join(", --"))
            }
            Warning::NoMeaning(place) => write!(f, "{place}: means nothing in iptables mode, ignored"),
            Warning::Note { place, note } => write!(f, "{place}: {note}"),
        }
    }
}

/// One wrong setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// Path of the field (`iptables.masqueradeBit`), or the flag with its `--`; empty for the file
    /// as a whole.
    pub place: String,
    /// The value, quoted.
    pub value: String,
    /// What is wrong with it.
    pub reason: String,
}

/// `<place>: <value>: <reason>`.
impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in [&self.place, &self.value] {
            if !part.is_empty() {
                write!(f, "{part}: ")?;
            }
        }
        f.write_str(&self.reason)
    }
}

/// Every wrong setting of one configuration, never empty.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid configuration: {}", .0.iter().map(ConfigError::to_string).collect::<Vec<_>>().join("; "))]
pub struct ConfigErrors(pub Vec<ConfigError>);

/// What reading and checking have to say, collected.
#[derive(Default)]
pub(super) struct Report {
    pub(super) origins: Origins,
    pub(super) warnings: Vec<Warning>,
    pub(super) errors: Vec<ConfigError>,
}

impl Report {
    /// The setting at `path` is wrong.
    pub(super) fn refuse(&mut self, path: &str, value: impl fmt::Display, reason: impl Into<String>) {
        let place = self.origins.place(path);
        self.errors.push(ConfigError { place, value: value.to_string(), reason: reason.into() });
    }

    /// The texts given for `--<flag>` are wrong.
    pub(super) fn refuse_flag(&mut self, flag: &str, texts: &[String], reason: String) {
        let (place, value) = (format!("--{flag}"), quoted(&texts.join(",")));
        self.errors.push(ConfigError { place, value, reason });
    }

    /// There is something to know about the setting at `path`.
    pub(super) fn note(&mut self, path: &str, note: impl Into<String>) {
        let place = self.origins.place(path);
        self.warnings.push(Warning::Note { place, note: note.into() });
    }
}

/// How a text is quoted: escaped, cut after 100 characters.
pub(super) fn quoted(text: &str) -> String {
    match text.char_indices().nth(100) {
        Some((end, _)) => format!("{:?}...", &text[..end]),
        None => format!("{text:?}"),
    }
}
