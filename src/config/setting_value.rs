//! The types of settings: each from a value of the file, from the text of a flag, and to JSON. File and
//! flag differ on purpose: the file is typed, the flag follows pflag.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;
use serde_json::{Value as Json, json};

use super::diagnostics::quoted;
use super::duration::GoDuration;
use super::setting::FlagSyntax;
use super::yaml::FileValue;

/// The type of a setting. Its `Default` is Go's zero value.
pub(super) trait SettingValue: Clone + Default + PartialEq + Serialize {
    /// The expected value, for messages.
    const EXPECTED: &'static str;

    /// The form of its flag.
    const SYNTAX: FlagSyntax = FlagSyntax::One;

    /// Whether `null` in the file is wrong; otherwise it means unset.
    const REFUSES_NULL: bool = false;

    /// Reads a value of the file that is not `null`.
    fn from_file(value: &FileValue) -> Option<Self>;

    /// Reads the text of a flag.
    fn from_text(text: &str) -> Option<Self>;

    /// Reads the texts of all occurrences of a flag, in order.
    fn from_texts(texts: &[String]) -> Option<Self> {
        match Self::SYNTAX {
            FlagSyntax::Switch | FlagSyntax::One => Self::from_text(texts.last()?),
            FlagSyntax::Many => {
                let texts: Vec<&str> =
                    texts.iter().map(String::as_str).filter(|text| !text.is_empty()).collect();
                Self::from_text(&texts.join(","))
            }
        }
    }

    /// Reads the default in the table.
    fn from_default(text: &str) -> Self {
        let text = if text == "[]" { "" } else { text };
        Self::from_text(text).expect("the default in the table is well-formed")
    }

    /// As `/configz` shows it.
    fn to_json(&self) -> Json {
        json!(self)
    }

    /// As messages show it.
    fn quoted(&self) -> String {
        self.to_json().to_string()
    }

    /// The value when the flag gives `self` and the file gives `file`.
    fn over(self, _file: Option<Self>) -> Self {
        self
    }
}

/// One of several words, one of which is `off`: bare in YAML, it is read as `false`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct OffOrWord(pub(super) String);

impl SettingValue for OffOrWord {
    const EXPECTED: &'static str = "a string";

    fn from_file(value: &FileValue) -> Option<OffOrWord> {
        match value {
            FileValue::Text(text) => Some(OffOrWord(text.clone())),
            FileValue::Bool(is_on) => Some(OffOrWord(if *is_on { "on" } else { "off" }.to_owned())),
            _ => None,
        }
    }

    fn from_text(text: &str) -> Option<OffOrWord> {
        Some(OffOrWord(text.to_owned()))
    }
}

impl SettingValue for String {
    const EXPECTED: &'static str = "a string";

    fn from_file(value: &FileValue) -> Option<String> {
        match value {
            FileValue::Text(text) => Some(text.clone()),
            _ => None,
        }
    }

    fn from_text(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    fn quoted(&self) -> String {
        quoted(self)
    }
}

impl SettingValue for bool {
    const EXPECTED: &'static str = "true or false";
    const SYNTAX: FlagSyntax = FlagSyntax::Switch;

    fn from_file(value: &FileValue) -> Option<bool> {
        match value {
            FileValue::Bool(value) => Some(*value),
            _ => None,
        }
    }

    fn from_text(text: &str) -> Option<bool> {
        go_bool(text)
    }
}

/// Go's `strconv.ParseBool`.
pub(super) fn go_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// A port of a flag; 0 for none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(super) struct FlagPort(pub(super) u16);

impl TryFrom<i64> for FlagPort {
    type Error = std::num::TryFromIntError;

    fn try_from(port: i64) -> Result<FlagPort, Self::Error> {
        port.try_into().map(FlagPort)
    }
}

macro_rules! whole_number {
    ($type:ty, $expected:literal) => {
        impl SettingValue for $type {
            const EXPECTED: &'static str = $expected;

            /// `10`, and `10.0`, which is the same number in JSON.
            fn from_file(value: &FileValue) -> Option<$type> {
                match value {
                    FileValue::Int(value) => (*value).try_into().ok(),
                    FileValue::Float(value) if value.fract() == 0.0 && value.abs() < 1e15 => {
                        (*value as i64).try_into().ok()
                    }
                    _ => None,
                }
            }

            fn from_text(text: &str) -> Option<$type> {
                go_integer(text)?.try_into().ok()
            }
        }
    };
}
whole_number!(i32, "a whole number of 32 bits");
whole_number!(u32, "a whole number of 32 bits, not negative");
whole_number!(FlagPort, "a port, 0 to 65535");

/// Go's `strconv.ParseInt` with base 0: `10`, `-10`, `0x0e`, `0b1`, `0o17`, `017`.
fn go_integer(text: &str) -> Option<i64> {
    let (is_negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let lower = digits.to_ascii_lowercase();
    let (base, digits) = [("0x", 16), ("0b", 2), ("0o", 8)]
        .into_iter()
        .find_map(|(prefix, base)| Some((base, lower.strip_prefix(prefix)?)))
        .unwrap_or(if lower.len() > 1 && lower.starts_with('0') { (8, &lower[1..]) } else { (10, &lower) });
    if digits.starts_with(['+', '-']) {
        return None;
    }
    let value = i64::from_str_radix(digits, base).ok()?;
    Some(if is_negative { -value } else { value })
}

impl SettingValue for f32 {
    const EXPECTED: &'static str = "a number";

    fn from_file(value: &FileValue) -> Option<f32> {
        match value {
            FileValue::Int(value) => Some(*value as f32),
            FileValue::Float(value) => Some(*value as f32).filter(|value| value.is_finite()),
            _ => None,
        }
    }

    fn from_text(text: &str) -> Option<f32> {
        text.parse().ok().filter(|value: &f32| value.is_finite())
    }

    /// As Go: the float 5 is `5`, and 0.1 is not `0.10000000149011612`.
    fn to_json(&self) -> Json {
        let is_whole = self.fract() == 0.0 && self.abs() < 1e15;
        if is_whole {
            json!(*self as i64)
        } else {
            json!(self.to_string().parse::<f64>().unwrap_or_default())
        }
    }
}

impl SettingValue for GoDuration {
    const EXPECTED: &'static str = "a duration such as \"1h30m\", \"30s\" or \"0s\"";
    const REFUSES_NULL: bool = true;

    fn from_file(value: &FileValue) -> Option<GoDuration> {
        match value {
            FileValue::Text(text) => GoDuration::parse(text),
            _ => None,
        }
    }

    fn from_text(text: &str) -> Option<GoDuration> {
        GoDuration::parse(text)
    }

    fn quoted(&self) -> String {
        self.to_string()
    }
}

impl SettingValue for Vec<String> {
    const EXPECTED: &'static str = "a list of strings";
    const SYNTAX: FlagSyntax = FlagSyntax::Many;

    fn from_file(value: &FileValue) -> Option<Vec<String>> {
        match value {
            FileValue::List(items) => items.iter().map(String::from_file).collect(),
            _ => None,
        }
    }

    fn from_text(text: &str) -> Option<Vec<String>> {
        Some(text.split(',').filter(|_| !text.is_empty()).map(str::to_owned).collect())
    }

    /// Go shows a list without elements as `null`.
    fn to_json(&self) -> Json {
        if self.is_empty() { Json::Null } else { json!(self) }
    }
}

/// Folders: a flag that is repeated, never split at commas.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Folders(pub(super) Vec<PathBuf>);

impl SettingValue for Folders {
    const EXPECTED: &'static str = "a list of strings";
    const SYNTAX: FlagSyntax = FlagSyntax::Many;

    fn from_file(value: &FileValue) -> Option<Folders> {
        Folders::from_texts(&Vec::from_file(value)?)
    }

    fn from_text(text: &str) -> Option<Folders> {
        Some(Folders(Some(text).filter(|text| !text.is_empty()).map(PathBuf::from).into_iter().collect()))
    }

    fn from_texts(texts: &[String]) -> Option<Folders> {
        Some(Folders(texts.iter().map(PathBuf::from).collect()))
    }
}

impl SettingValue for BTreeMap<String, bool> {
    const EXPECTED: &'static str = "names, each with true or false";
    const SYNTAX: FlagSyntax = FlagSyntax::Many;

    fn from_file(value: &FileValue) -> Option<BTreeMap<String, bool>> {
        match value {
            FileValue::Map(entries) => {
                entries.iter().map(|(key, value)| Some((key.clone(), bool::from_file(value)?))).collect()
            }
            _ => None,
        }
    }

    /// `name=bool,...`
    fn from_text(text: &str) -> Option<BTreeMap<String, bool>> {
        let entries = text.split(',').map(str::trim).filter(|entry| !entry.is_empty());
        entries
            .map(|entry| {
                let (name, value) = entry.split_once('=')?;
                Some((name.trim().to_owned(), go_bool(value.trim())?))
            })
            .collect()
    }
}
