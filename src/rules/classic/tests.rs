use super::*;
use crate::net::IpFamily;

/// The kernel's value, in units of 2^-31, of a probability that is printed as `text`.
fn kept(text: &str) -> u32 {
    let probability: f64 = text.parse().unwrap();
    (probability * 2_147_483_648.0).round() as u32
}

#[test]
fn each_of_n_endpoints_has_kube_proxys_probability() {
    for n in 2..=3_000usize {
        let threshold = kept(&format!("{:.10}", 1.0 / n as f64));
        assert_eq!(one_of(n), Some(Match::Random { threshold }), "{n}");
    }
    assert_eq!(one_of(1), None);
}

#[test]
fn probabilities_are_saved_as_recorded() {
    let check = |n, saved: &str| {
        let rule = Rule { matches: one_of(n).into_iter().collect(), ..Rule::default() };
        let text = crate::iptables::write::rule_text(IpFamily::V4, &rule);
        assert_eq!(text, format!("-m statistic --mode random --probability {saved}"), "{n}");
    };
    check(2, "0.50000000000");
    check(3, "0.33333333349");
    check(4, "0.25000000000");
    check(5, "0.20000000019");
    check(6, "0.16666666651");
    check(7, "0.14285714272");
    check(8, "0.12500000000");
    check(9, "0.11111111101");
    check(10, "0.10000000009");
    check(11, "0.09090909082");
    check(12, "0.08333333349");
    check(20, "0.04999999981");
    check(50, "0.02000000002");
    check(100, "0.00999999978");
    check(500, "0.00199999986");
    check(1000, "0.00100000016");
}

#[test]
fn with_a_hundred_thousand_endpoints_each_still_has_one_in_n() {
    for (n, text) in [(10_000usize, "0.0001000000"), (100_000, "0.0000100000"), (100_001, "0.0000099999")] {
        assert_eq!(one_of(n), Some(Match::Random { threshold: kept(text) }), "{n}");
    }
}
