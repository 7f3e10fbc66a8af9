//! One setting from a value of the file or from the text of a flag. The two differ on purpose: a
//! file has types, and a flag follows pflag.

use std::collections::BTreeMap;

use super::duration::GoDuration;
use super::tree::Tree;

/// A setting that a file and, mostly, a flag can give.
pub(super) trait Value: Sized {
    /// What belongs there, for the message.
    const EXPECTED: &'static str;

    /// Whether `null` is wrong; otherwise it leaves the setting as it is.
    const REFUSES_NULL: bool = false;

    /// Reads a value of the file that is not `null`.
    fn from_tree(tree: &Tree) -> Option<Self>;

    /// Reads a flag: the texts of all its occurrences, never empty. For most, the last one counts.
    fn from_flag(texts: &[String]) -> Option<Self>;
}

fn last(texts: &[String]) -> &str {
    texts.last().map_or("", String::as_str)
}

impl Value for String {
    const EXPECTED: &'static str = "a string";

    fn from_tree(tree: &Tree) -> Option<String> {
        match tree {
            Tree::Text(text) => Some(text.clone()),
            _ => None,
        }
    }

    fn from_flag(texts: &[String]) -> Option<String> {
        Some(last(texts).to_owned())
    }
}

impl Value for bool {
    const EXPECTED: &'static str = "true or false";

    fn from_tree(tree: &Tree) -> Option<bool> {
        match tree {
            Tree::Bool(value) => Some(*value),
            _ => None,
        }
    }

    fn from_flag(texts: &[String]) -> Option<bool> {
        go_bool(last(texts))
    }
}

/// Go's `strconv.ParseBool`.
fn go_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

impl Value for i32 {
    const EXPECTED: &'static str = "a whole number of 32 bits";

    fn from_tree(tree: &Tree) -> Option<i32> {
        whole_number(tree)?.try_into().ok()
    }

    fn from_flag(texts: &[String]) -> Option<i32> {
        go_integer(last(texts))?.try_into().ok()
    }
}

impl Value for u32 {
    const EXPECTED: &'static str = "a whole number of 32 bits, not negative";

    fn from_tree(tree: &Tree) -> Option<u32> {
        whole_number(tree)?.try_into().ok()
    }

    fn from_flag(texts: &[String]) -> Option<u32> {
        go_integer(last(texts))?.try_into().ok()
    }
}

/// `10` and, as the way through JSON makes no difference, `10.0`.
fn whole_number(tree: &Tree) -> Option<i128> {
    match tree {
        Tree::Int(value) => Some(*value),
        Tree::Float(value) if value.fract() == 0.0 && value.abs() < 1e15 => Some(*value as i128),
        _ => None,
    }
}

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

impl Value for f32 {
    const EXPECTED: &'static str = "a number";

    fn from_tree(tree: &Tree) -> Option<f32> {
        match tree {
            Tree::Int(value) => Some(*value as f32),
            Tree::Float(value) => Some(*value as f32).filter(|value| value.is_finite()),
            _ => None,
        }
    }

    fn from_flag(texts: &[String]) -> Option<f32> {
        last(texts).parse().ok().filter(|value: &f32| value.is_finite())
    }
}

impl Value for GoDuration {
    const EXPECTED: &'static str = "a duration such as \"1h30m\", \"30s\" or \"0s\"";
    const REFUSES_NULL: bool = true;

    fn from_tree(tree: &Tree) -> Option<GoDuration> {
        match tree {
            Tree::Text(text) => GoDuration::parse(text),
            _ => None,
        }
    }

    fn from_flag(texts: &[String]) -> Option<GoDuration> {
        GoDuration::parse(last(texts))
    }
}

/// A pointer field: `null` is "unset".
impl<T: Value> Value for Option<T> {
    const EXPECTED: &'static str = T::EXPECTED;

    fn from_tree(tree: &Tree) -> Option<Option<T>> {
        T::from_tree(tree).map(Some)
    }

    fn from_flag(texts: &[String]) -> Option<Option<T>> {
        T::from_flag(texts).map(Some)
    }
}

impl Value for Vec<String> {
    const EXPECTED: &'static str = "a list of strings";

    fn from_tree(tree: &Tree) -> Option<Vec<String>> {
        match tree {
            Tree::List(items) => items.iter().map(String::from_tree).collect(),
            _ => None,
        }
    }

    /// Comma separated, repeated, or both.
    fn from_flag(texts: &[String]) -> Option<Vec<String>> {
        let texts = texts.iter().filter(|text| !text.is_empty());
        Some(texts.flat_map(|text| text.split(',')).map(str::to_owned).collect())
    }
}

impl Value for BTreeMap<String, bool> {
    const EXPECTED: &'static str = "names, each with true or false";

    fn from_tree(tree: &Tree) -> Option<BTreeMap<String, bool>> {
        match tree {
            Tree::Map(entries) => {
                entries.iter().map(|(key, value)| Some((key.clone(), bool::from_tree(value)?))).collect()
            }
            _ => None,
        }
    }

    /// `name=bool,...`, also repeated.
    fn from_flag(texts: &[String]) -> Option<BTreeMap<String, bool>> {
        let entries = texts.iter().flat_map(|text| text.split(','));
        let entries = entries.map(str::trim).filter(|entry| !entry.is_empty());
        entries
            .map(|entry| {
                let (name, value) = entry.split_once('=')?;
                Some((name.trim().to_owned(), go_bool(value.trim())?))
            })
            .collect()
    }
}
