//! The name that a mistyped one probably stands for, for "did you mean" in messages.

/// The candidate that `given` is probably a typing error of: at most a quarter of its letters differ (one in a short
/// name), or only case does. Of equally near ones the first.
pub fn nearest<'a>(given: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let given = given.to_lowercase();
    let mut best: Option<(usize, &str)> = None;
    for candidate in candidates {
        let n_letters = candidate.chars().count().max(given.chars().count());
        let n_differ = strsim::osa_distance(&given, &candidate.to_lowercase());
        if n_differ <= (n_letters / 4).max(1) && best.is_none_or(|(fewest, _)| n_differ < fewest) {
            best = Some((n_differ, candidate));
        }
    }
    best.map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typing_error_has_a_near_match_and_another_word_has_none() {
        let check = |given: &str, expected: Option<&str>| {
            assert_eq!(nearest(given, ["Service", "EndpointSlice", "Node", "shop/db"]), expected, "{given}");
        };
        check("service", Some("Service"));
        check("Services", Some("Service"));
        check("Endpointslices", Some("EndpointSlice"));
        check("nod", Some("Node"));
        check("shop/bd", Some("shop/db"));
        check("Deployment", None);
        check("ConfigMap", None);
        check("NodePool", None);
        check("ServiceAccount", None);
        check("", None);
    }
}
