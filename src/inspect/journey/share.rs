//! Probabilities for people and programs.

use super::trace_report::Share;
use crate::iptables::trace::Weight;

/// The most digits in base 2^31 of an exact number.
const MAX_EXACT_DIGITS: usize = 64;

/// The share of one of `n` equal ones is `1/n`, less or more a rounding of the kernel at each of its rules.
const ROUNDING: f64 = 1e-8;

/// The shares of `weights`, each of which stands for `n` of all endpoints; the weights add up to 1.
pub(super) fn shares(weights: &[(Weight, usize)]) -> Vec<Share> {
    let n_all: usize = weights.iter().map(|(_, n)| n).sum();
    let is_equal =
        |(weight, n): &(Weight, usize)| (weight.to_f64() - *n as f64 / n_all as f64).abs() < ROUNDING;
    let texts = match weights.iter().all(is_equal) {
        true => weights.iter().map(|(_, n)| fraction(*n, n_all)).collect(),
        false => percentages(&weights.iter().map(|(weight, _)| weight.to_f64()).collect::<Vec<_>>()),
    };
    let share = |((weight, _), text): (&(Weight, usize), String)| Share {
        text,
        probability: weight.to_f64(),
        exact: weight.fraction(MAX_EXACT_DIGITS),
    };
    weights.iter().zip(texts).map(share).collect()
}

fn fraction(n: usize, n_all: usize) -> String {
    let (mut a, mut b) = (n, n_all);
    while b != 0 {
        (a, b) = (b, a % b);
    }
    match (n / a.max(1), n_all / a.max(1)) {
        (n, 1) => n.to_string(),
        (n, n_all) => format!("{n}/{n_all}"),
    }
}

/// Percentages with two decimals, more for many, that add up to 100: those whose rest is greatest are rounded up.
fn percentages(parts: &[f64]) -> Vec<String> {
    let n_decimals = if parts.len() > 100 { 4 } else { 2 };
    let one = 100 * 10u64.pow(n_decimals);
    let mut units: Vec<u64> = parts.iter().map(|part| (part * one as f64) as u64).collect();
    let mut order: Vec<usize> = (0..parts.len()).collect();
    let rest = |n: &usize| (parts[*n] * one as f64).fract();
    order.sort_by(|a, b| rest(b).total_cmp(&rest(a)));
    let missing = one.saturating_sub(units.iter().sum());
    for n in order.into_iter().take(missing as usize) {
        units[n] += 1;
    }
    let scale = 10u64.pow(n_decimals);
    let width = n_decimals as usize;
    units.iter().map(|unit| format!("{}.{:0width$} %", unit / scale, unit % scale)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(weights: &[(Weight, usize)]) -> Vec<String> {
        shares(weights).into_iter().map(|share| share.text).collect()
    }

    #[test]
    fn equal_shares_are_fractions_and_others_percentages_that_add_up() {
        let (third, rest) = Weight::ONE.split(715_827_883);
        let (second, last) = rest.split(1 << 30);
        let all = [(third.clone(), 1), (second, 1), (last, 1)];
        assert_eq!(texts(&all), ["1/3", "1/3", "1/3"]);
        assert_eq!(texts(&[(third.clone(), 1), (rest.clone(), 2)]), ["1/3", "2/3"]);
        assert_eq!(texts(&[(Weight::ONE, 1)]), ["1"]);
        assert_eq!(texts(&[(third, 1), (rest, 1)]), ["33.33 %", "66.67 %"]);
        let (half, other) = Weight::ONE.split(1 << 30);
        let (quarter, eighths) = other.split(1 << 30);
        let weights = [half, quarter, eighths.clone()].map(|weight| (weight, 1));
        assert_eq!(texts(&weights), ["50.00 %", "25.00 %", "25.00 %"]);
    }

    #[test]
    fn the_exact_number_is_a_fraction_of_a_power_of_two() {
        let (third, _) = Weight::ONE.split(715_827_883);
        assert_eq!(shares(&[(third, 1)])[0].exact.as_deref(), Some("715827883/2^31"));
    }
}
