//! Durations as Go writes them (`1h30m`, `100ms`, `-1s`), text to value and back.

use std::fmt;
use std::time::Duration;

use serde::{Serialize, Serializer};

/// A Go `time.Duration`: nanoseconds; may be negative until it is checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct GoDuration(i64);

/// Nanoseconds of each unit.
const UNITS: [(&str, i128); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("\u{b5}s", 1_000),
    ("\u{3bc}s", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

impl GoDuration {
    /// `nanos` nanoseconds.
    pub const fn from_nanos(nanos: i64) -> GoDuration {
        GoDuration(nanos)
    }

    /// Reads what Go's `time.ParseDuration` reads: an optional sign, then decimal numbers, each with
    /// its unit (`ns`, `us`, `ms`, `s`, `m`, `h`); also a bare `0`.
    pub fn parse(text: &str) -> Option<GoDuration> {
        let (is_negative, mut rest) = match text.as_bytes().first()? {
            b'-' => (true, &text[1..]),
            b'+' => (false, &text[1..]),
            _ => (false, text),
        };
        if rest == "0" {
            return Some(GoDuration(0));
        }
        if rest.is_empty() {
            return None;
        }
        let mut total: i128 = 0;
        while !rest.is_empty() {
            let end = rest.find(|c: char| c != '.' && !c.is_ascii_digit())?;
            let (number, tail) = rest.split_at(end);
            let end = tail.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(tail.len());
            let (unit, tail) = tail.split_at(end);
            let (_, nanos) = UNITS.iter().find(|(name, _)| *name == unit)?;
            total = total.checked_add(scaled(number, *nanos)?)?;
            rest = tail;
        }
        i64::try_from(if is_negative { -total } else { total }).ok().map(GoDuration)
    }

    /// `None` when it is negative.
    pub fn to_std(self) -> Option<Duration> {
        u64::try_from(self.0).ok().map(Duration::from_nanos)
    }
}

/// `number` (`12`, `1.5`, `.5`, `1.`) times `unit`; fractions of a nanosecond are cut.
fn scaled(number: &str, unit: i128) -> Option<i128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') || whole.len() > 19 {
        return None;
    }
    let whole = if whole.is_empty() { 0 } else { whole.parse::<i128>().ok()? };
    let fraction = &fraction[..fraction.len().min(18)];
    let part = if fraction.is_empty() { 0 } else { fraction.parse::<i128>().ok()? };
    Some(whole * unit + part * unit / 10i128.pow(fraction.len() as u32))
}

impl From<Duration> for GoDuration {
    fn from(duration: Duration) -> GoDuration {
        GoDuration(i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX))
    }
}

/// As Go prints it: `24h0m0s`, `1.5s`, `100ms`, `0s`.
impl fmt::Display for GoDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        let nanos = self.0.unsigned_abs();
        let (unit, per_unit) = match nanos {
            0 => return f.write_str("0s"),
            1..1_000 => ("ns", 1),
            1_000..1_000_000 => ("\u{b5}s", 1_000),
            1_000_000..1_000_000_000 => ("ms", 1_000_000),
            _ => {
                let seconds = nanos / 1_000_000_000;
                f.write_str(sign)?;
                if seconds >= 3600 {
                    write!(f, "{}h", seconds / 3600)?;
                }
                if seconds >= 60 {
                    write!(f, "{}m", seconds / 60 % 60)?;
                }
                return write!(f, "{}s", decimal(nanos % 60_000_000_000, 1_000_000_000));
            }
        };
        write!(f, "{sign}{}{unit}", decimal(nanos, per_unit))
    }
}

/// `value / per_unit` (a power of ten) without trailing zeros.
fn decimal(value: u64, per_unit: u64) -> String {
    let (whole, part) = (value / per_unit, value % per_unit);
    if part == 0 {
        return whole.to_string();
    }
    let n_digits = per_unit.ilog10() as usize;
    format!("{whole}.{}", format!("{part:0n_digits$}").trim_end_matches('0'))
}

impl Serialize for GoDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_and_printed_as_go_does() {
        for (text, printed) in [
            ("0", "0s"),
            ("0s", "0s"),
            ("-0", "0s"),
            ("30s", "30s"),
            ("1h30m", "1h30m0s"),
            ("24h", "24h0m0s"),
            ("90s", "1m30s"),
            ("1.5s", "1.5s"),
            ("+.5s", "500ms"),
            ("1.h", "1h0m0s"),
            ("100ms", "100ms"),
            ("1.25ms", "1.25ms"),
            ("7us", "7\u{b5}s"),
            ("7\u{3bc}s", "7\u{b5}s"),
            ("3ns", "3ns"),
            ("0.9999ns", "0s"),
            ("-1m0.25s", "-1m0.25s"),
            ("1h1ns", "1h0m0.000000001s"),
            ("2562047h47m16.854775807s", "2562047h47m16.854775807s"),
        ] {
            assert_eq!(GoDuration::parse(text).unwrap().to_string(), printed, "{text:?}");
        }
    }

    #[test]
    fn texts_that_go_rejects_are_rejected() {
        for text in [
            "",
            "-",
            "+",
            "1",
            "00",
            "s",
            ".s",
            "1.2.3s",
            "1 s",
            " 1s",
            "1s ",
            "1d",
            "1S",
            "1e3s",
            "1h-1m",
            "3000000h",
            "99999999999999999999s",
            "1\u{661}s",
        ] {
            assert_eq!(GoDuration::parse(text), None, "{text:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn printed_durations_read_back(nanos in proptest::prelude::any::<i64>(), shift in 0u32..63) {
            let duration = GoDuration(nanos >> shift);
            proptest::prop_assert_eq!(GoDuration::parse(&duration.to_string()), Some(duration));
        }
    }
}
