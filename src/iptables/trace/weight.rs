//! Exact probabilities of rules with `statistic`.

use std::fmt;

const BASE_BITS: u32 = 31;
const BASE: u64 = 1 << BASE_BITS;

/// A number from 0 to 1, exact: the kernel keeps probabilities in units of 2^-31, so every product of
/// them has finitely many digits in base 2^31.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Weight {
    whole: u32,
    /// Behind the point, the highest first, each below 2^31; the last is not 0.
    digits: Vec<u32>,
}

impl Weight {
    /// Certain.
    pub const ONE: Weight = Weight { whole: 1, digits: Vec::new() };
    /// Impossible.
    pub const ZERO: Weight = Weight { whole: 0, digits: Vec::new() };

    /// `threshold` times in 2^31.
    pub fn of(threshold: u32) -> Weight {
        Weight::ONE.times(threshold)
    }

    /// Whether it is impossible.
    pub fn is_zero(&self) -> bool {
        *self == Weight::ZERO
    }

    /// This times `threshold` / 2^31; `threshold` is at most 2^31.
    pub fn times(&self, threshold: u32) -> Weight {
        let factor = u64::from(threshold).min(BASE);
        let mut digits = vec![0; self.digits.len() + 1];
        let mut carry = 0;
        for (n, digit) in self.digits.iter().enumerate().rev() {
            let product = u64::from(*digit) * factor + carry;
            digits[n + 1] = (product % BASE) as u32;
            carry = product / BASE;
        }
        let product = u64::from(self.whole) * factor + carry;
        digits[0] = (product % BASE) as u32;
        Weight { whole: (product / BASE) as u32, digits }.trimmed()
    }

    /// Splits it into the share of `threshold` in 2^31, and the rest.
    pub fn split(&self, threshold: u32) -> (Weight, Weight) {
        let threshold = threshold.min(1 << BASE_BITS);
        (self.times(threshold), self.times((1 << BASE_BITS) - threshold))
    }

    /// Adds `other`.
    pub fn add(&mut self, other: &Weight) {
        if self.digits.len() < other.digits.len() {
            self.digits.resize(other.digits.len(), 0);
        }
        let mut carry = 0;
        for n in (0..self.digits.len()).rev() {
            let sum = self.digits[n] + other.digits.get(n).copied().unwrap_or(0) + carry;
            self.digits[n] = (u64::from(sum) % BASE) as u32;
            carry = (u64::from(sum) / BASE) as u32;
        }
        self.whole += other.whole + carry;
        *self = std::mem::replace(self, Weight::ZERO).trimmed();
    }

    /// The nearest floating-point number.
    pub fn to_f64(&self) -> f64 {
        let base = BASE as f64;
        // More than three digits do not fit into 53 bits.
        let digits = self.digits.iter().take(3).rev();
        f64::from(self.whole) + digits.fold(0.0, |sum, digit| (sum + f64::from(*digit)) / base)
    }

    /// The exact number as `<numerator>/2^<bits>`, reduced, or as `0` or `1`; `None` if it has more than `max_digits`
    /// digits in base 2^31.
    pub fn fraction(&self, max_digits: usize) -> Option<String> {
        let Some(last) = self.digits.last() else { return Some(self.whole.to_string()) };
        if self.digits.len() > max_digits {
            return None;
        }
        // The last digit is not 0, so the fraction is reduced by fewer bits than a digit has.
        let n_even = last.trailing_zeros();
        let mut carry = 0u64;
        let mut numerator = vec![0u32];
        for digit in std::iter::once(&self.whole).chain(&self.digits) {
            let shifted = carry << (BASE_BITS - n_even) | u64::from(digit >> n_even);
            carry = u64::from(*digit) & ((1 << n_even) - 1);
            push_digit(&mut numerator, shifted);
        }
        let mut text = String::new();
        for (n, part) in numerator.iter().rev().enumerate() {
            text.push_str(&if n == 0 { part.to_string() } else { format!("{part:09}") });
        }
        let n_bits = self.digits.len() as u32 * BASE_BITS - n_even;
        Some(format!("{text}/2^{n_bits}"))
    }

    fn trimmed(mut self) -> Weight {
        while self.digits.last() == Some(&0) {
            self.digits.pop();
        }
        self
    }
}

/// Replaces `number`, in base 10^9 with the lowest digit first, by itself times 2^31 plus `digit`.
fn push_digit(number: &mut Vec<u32>, digit: u64) {
    const DECIMAL: u64 = 1_000_000_000;
    let mut carry = digit;
    for part in number.iter_mut() {
        let sum = u64::from(*part) * BASE + carry;
        *part = (sum % DECIMAL) as u32;
        carry = sum / DECIMAL;
    }
    while carry > 0 {
        number.push((carry % DECIMAL) as u32);
        carry /= DECIMAL;
    }
}

/// As a decimal number, rounded.
impl fmt::Display for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.to_f64(), f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HALF: u32 = 1 << 30;
    const THIRD: u32 = 715_827_883;

    #[test]
    fn parts_add_up_to_the_whole() {
        let mut rest = Weight::ONE;
        let mut sum = Weight::ZERO;
        for n in (2..300u32).rev() {
            let (taken, left) = rest.split(((1u64 << 31) / u64::from(n)) as u32);
            sum.add(&taken);
            rest = left;
        }
        assert!(sum < Weight::ONE && !rest.is_zero());
        sum.add(&rest);
        assert_eq!(sum, Weight::ONE);
    }

    #[test]
    fn exact_fractions_are_reduced_and_bounded() {
        let check = |weight: &Weight, expected: Option<&str>| {
            assert_eq!(weight.fraction(2).as_deref(), expected);
        };
        check(&Weight::ONE, Some("1"));
        check(&Weight::ZERO, Some("0"));
        check(&Weight::of(HALF), Some("1/2^1"));
        check(&Weight::of(THIRD), Some("715827883/2^31"));
        let (_, rest) = Weight::ONE.split(THIRD);
        check(&rest.times(HALF), Some("1431655765/2^32"));
        // 715827883^2
        check(&Weight::of(THIRD).times(THIRD), Some("512409558080261689/2^62"));
        check(&Weight::of(THIRD).times(THIRD).times(THIRD), None);
    }

    #[test]
    fn products_are_exact() {
        assert_eq!(Weight::of(HALF).times(HALF), Weight::of(HALF / 2));
        assert_eq!(Weight::of(1 << 31), Weight::ONE);
        assert_eq!(Weight::of(0), Weight::ZERO);
        let (third, rest) = Weight::ONE.split(THIRD);
        assert_eq!(third.to_f64(), f64::from(THIRD) / 2f64.powi(31));
        assert_eq!(rest.split(HALF).0, rest.split(HALF).1);
        assert!(third > rest.split(HALF).0, "the kernel's third is a bit more than a third");
    }
}
