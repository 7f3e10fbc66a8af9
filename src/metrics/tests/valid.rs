//! Checks of `promtool check metrics` and of a scrape.

use std::collections::{BTreeMap, BTreeSet};

/// Gauges of kube-proxy whose names end like those of counters; dashboards use them.
const GAUGES_CALLED_TOTAL: [&str; 2] =
    ["kubeproxy_sync_proxy_rules_iptables_total", "kubeproxy_sync_proxy_rules_no_local_endpoints_total"];

/// One line of an exposition.
#[derive(Clone, Debug)]
pub struct Sample {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

impl Sample {
    /// Reads `name{label="value",...} number`.
    ///
    /// # Panics
    /// If the line has another form.
    pub fn read(line: &str) -> Sample {
        let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no value: {line:?}"));
        let (name, labels) = match series.split_once('{') {
            Some((name, rest)) => {
                (name, rest.strip_suffix('}').unwrap_or_else(|| panic!("not closed: {line:?}")))
            }
            None => (series, ""),
        };
        assert!(is_name(name, true), "{line:?}");
        let mut read = BTreeMap::new();
        let mut rest = labels;
        while !rest.is_empty() {
            let (label, value) = rest.split_once("=\"").unwrap_or_else(|| panic!("no label: {line:?}"));
            let end = (0..value.len())
                .find(|at| value[*at..].starts_with('"') && !value[..*at].ends_with('\\'))
                .unwrap_or_else(|| panic!("not closed: {line:?}"));
            assert!(is_name(label, false), "{line:?}");
            assert!(read.insert(label.to_owned(), value[..end].to_owned()).is_none(), "twice: {line:?}");
            rest = value[end + 1..].strip_prefix(',').unwrap_or(&value[end + 1..]);
        }
        let value = value.parse().unwrap_or_else(|_| panic!("not a number: {line:?}"));
        Sample { name: name.to_owned(), labels: read, value }
    }
}

fn is_name(text: &str, with_colons: bool) -> bool {
    text.bytes().next().is_some_and(|first| !first.is_ascii_digit())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || with_colons && b == b':')
}

/// The lines from a `# TYPE` line to the next.
#[derive(Debug, Default)]
struct ParsedFamily {
    name: String,
    kind: String,
    has_help: bool,
    samples: Vec<Sample>,
}

/// # Panics
/// If Prometheus cannot read `exposition`, or `promtool` reports a problem of it.
#[track_caller]
pub fn assert_valid(exposition: &str) {
    assert!(exposition.ends_with('\n'), "the last line has no end");
    let mut families: Vec<ParsedFamily> = Vec::new();
    let mut help = None;
    for line in exposition.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, text) = rest.split_once(' ').unwrap_or_else(|| panic!("no help: {line:?}"));
            assert!(!text.trim().is_empty(), "{line:?}");
            help = Some(name.to_owned());
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap_or_else(|| panic!("no type: {line:?}"));
            let has_help = help.take().as_deref() == Some(name);
            families.push(ParsedFamily {
                name: name.to_owned(),
                kind: kind.to_owned(),
                has_help,
                samples: vec![],
            });
        } else {
            let family = families.last_mut().unwrap_or_else(|| panic!("of no family: {line:?}"));
            family.samples.push(Sample::read(line));
        }
    }
    // Recorded expositions are shortened: some families have a type line only.
    families.retain(|family| family.has_help || !family.samples.is_empty());
    assert!(!families.is_empty());
    let names: Vec<&str> = families.iter().map(|family| family.name.as_str()).collect();
    assert!(names.is_sorted() && names.iter().collect::<BTreeSet<_>>().len() == names.len(), "{names:?}");
    families.iter().for_each(check);
}

#[track_caller]
fn check(family: &ParsedFamily) {
    let ParsedFamily { name, kind, has_help, samples } = family;
    assert!(["counter", "gauge", "histogram"].contains(&kind.as_str()), "{name}: {kind}");
    assert!(has_help, "{name} has no help");
    let is_called_total = name.ends_with("_total");
    let is_named_total = GAUGES_CALLED_TOTAL.contains(&name.as_str());
    assert_eq!(is_called_total, kind == "counter" || is_named_total, "{name} is a {kind}");
    for word in ["milliseconds", "millis", "minutes", "kilobytes", "kib"] {
        assert!(!name.contains(word), "{name}: seconds and bytes are the base units");
    }
    let mut series = BTreeSet::new();
    for sample in samples {
        assert!(series.insert((&sample.name, &sample.labels)), "twice: {sample:?}");
        assert!(kind == "histogram" || sample.name == *name, "{sample:?} in {name}");
        assert!(kind == "gauge" || sample.value >= 0.0 || sample.name.ends_with("_sum"), "{sample:?}");
    }
    if kind == "histogram" {
        check_histogram(name, samples);
    }
}

#[track_caller]
fn check_histogram(name: &str, samples: &[Sample]) {
    let mut buckets: BTreeMap<BTreeMap<String, String>, Vec<(f64, f64)>> = BTreeMap::new();
    let mut ends: BTreeMap<BTreeMap<String, String>, BTreeMap<&str, f64>> = BTreeMap::new();
    for sample in samples {
        let mut labels = sample.labels.clone();
        match sample.name.strip_prefix(name) {
            Some("_bucket") => {
                let bound = labels.remove("le").unwrap_or_else(|| panic!("no le: {sample:?}"));
                let bound = if bound == "+Inf" { f64::INFINITY } else { bound.parse().unwrap() };
                buckets.entry(labels).or_default().push((bound, sample.value));
            }
            Some(end @ ("_sum" | "_count")) => {
                ends.entry(labels).or_default().insert(end, sample.value);
            }
            _ => panic!("{sample:?} in {name}"),
        }
    }
    assert_eq!(buckets.keys().collect::<Vec<_>>(), ends.keys().collect::<Vec<_>>(), "{name}");
    for (labels, buckets) in buckets {
        assert!(buckets.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1), "{name} {labels:?}: {buckets:?}");
        let (last, n_all) = buckets[buckets.len() - 1];
        assert_eq!((last, Some(&n_all)), (f64::INFINITY, ends[&labels].get("_count")), "{name} {labels:?}");
        assert!(ends[&labels].contains_key("_sum"), "{name} {labels:?}");
    }
}

#[test]
fn invalid_expositions_are_detected() {
    let good = "# HELP a_total x\n# TYPE a_total counter\na_total{b=\"c\"} 1\n";
    assert_valid(good);
    let histogram = |lines: &str| format!("# HELP h x\n# TYPE h histogram\n{lines}h_sum 1\nh_count 2\n");
    assert_valid(&histogram("h_bucket{le=\"1\"} 1\nh_bucket{le=\"+Inf\"} 2\n"));
    for bad in [
        good.replace("a_total", "a"),
        good.replace("counter", "gauge"),
        good.replace("counter", "meter"),
        good.replace(" x", " "),
        good.replace("# HELP a_total x\n", ""),
        good.replace("# TYPE a_total counter\n", ""),
        good.replace(" 1\n", " one\n"),
        good.replace(" 1\n", " -1\n"),
        good.replace(" 1\n", " 1"),
        good.replace("{b", "{9"),
        good.replace("\"}", "\""),
        format!("{good}a_total{{b=\"c\"}} 2\n"),
        format!("{good}other 2\n"),
        format!("{good}{good}"),
        format!("{}{good}", good.replace("a_total", "b_total")),
        good.replace("a_total", "a_milliseconds_total"),
        histogram("h_bucket{le=\"1\"} 1\n"),
        histogram("h_bucket{le=\"1\"} 3\nh_bucket{le=\"+Inf\"} 2\n"),
        histogram("h_bucket{le=\"2\"} 1\nh_bucket{le=\"1\"} 1\nh_bucket{le=\"+Inf\"} 2\n"),
        histogram("h_bucket{le=\"+Inf\"} 1\n"),
        histogram("h_bucket 2\n"),
        histogram(""),
    ] {
        assert!(std::panic::catch_unwind(|| assert_valid(&bad)).is_err(), "{bad}");
    }
}
