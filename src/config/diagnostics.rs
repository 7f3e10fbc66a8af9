//! The findings about a configuration: warnings, errors, and the origin of each setting.

use std::fmt;

/// The origin of a setting's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetBy {
    /// Neither file nor flag sets it.
    Default,
    /// The configuration file.
    File,
    /// The flag of this name, without `--`.
    Flag(&'static str),
}

/// `default`, `file` or `flag --<name>`.
impl fmt::Display for SetBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SetBy::Default => f.write_str("default"),
            SetBy::File => f.write_str("file"),
            SetBy::Flag(name) => write!(f, "flag --{name}"),
        }
    }
}

/// A finding that does not prevent the start; to be logged once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// Path of the field (`iptables.masqueradeBit`), or the flag with its `--`; empty for the file
    /// or the command line as a whole.
    pub place: String,
    /// What happens with it, or advice.
    pub note: String,
}

/// `<place>: <note>`.
impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.place.is_empty() {
            write!(f, "{}: ", self.place)?;
        }
        f.write_str(&self.note)
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
    /// Why it is wrong.
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

/// Findings so far.
#[derive(Default)]
pub(super) struct Diagnostics {
    pub(super) warnings: Vec<Warning>,
    pub(super) errors: Vec<ConfigError>,
}

impl Diagnostics {
    /// Records that `value` at `place` is wrong.
    pub(super) fn refuse(
        &mut self,
        place: impl Into<String>,
        value: impl fmt::Display,
        reason: impl Into<String>,
    ) {
        let (place, value, reason) = (place.into(), value.to_string(), reason.into());
        self.errors.push(ConfigError { place, value, reason });
    }

    /// Records a warning about `place`.
    pub(super) fn warn(&mut self, place: impl Into<String>, note: impl Into<String>) {
        self.warnings.push(Warning { place: place.into(), note: note.into() });
    }
}

/// A text as messages show it: escaped, cut after 100 characters.
pub(super) fn quoted(text: &str) -> String {
    match text.char_indices().nth(100) {
        Some((end, _)) => format!("{:?}...", &text[..end]),
        None => format!("{text:?}"),
    }
}

/// A key of the file as messages show it: quoted unless it is a plain word.
pub(super) fn quoted_key(key: &str) -> String {
    let is_word = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
    if is_word { key.to_owned() } else { quoted(key) }
}
