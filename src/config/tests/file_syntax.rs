//! The syntax of files.

use super::*;

#[test]
fn json_is_read_like_yaml() {
    let json = "\t{\"apiVersion\": \"kubeproxy.config.k8s.io/v1alpha1\",\n\t\"kind\": \"KubeProxyConfiguration\", \"iptables\": {\"masqueradeAll\": true}}";
    let (config, warnings) = Config::resolve(Some(json), &Flags::default()).unwrap();
    assert_eq!(warnings, []);
    assert!(config.masquerade_all);
}

#[test]
fn booleans_of_yaml_1_1_are_booleans() {
    for (text, expected) in [("yes", true), ("On", true), ("no", false), ("OFF", false), ("true", true)] {
        let config = of_file(&format!("iptables: {{masqueradeAll: {text}}}"));
        assert_eq!(config.masquerade_all, expected, "{text}");
    }
}

#[test]
fn kind_and_version_are_mandatory() {
    let check = |text: &str, expected: &[&str]| {
        assert_eq!(error_texts(Config::resolve(Some(text), &Flags::default())), expected, "{text:?}");
    };
    let version = "apiVersion: is missing, must be \"kubeproxy.config.k8s.io/v1alpha1\"";
    let kind = "kind: is missing, must be \"KubeProxyConfiguration\"";
    check("mode: iptables", &[version, kind]);
    check(
        "apiVersion: v1\nkind: ConfigMap\nunrelated: 1",
        &[
            "apiVersion: \"v1\": must be \"kubeproxy.config.k8s.io/v1alpha1\"",
            "kind: \"ConfigMap\": must be \"KubeProxyConfiguration\"",
        ],
    );
    let other = "the file must be a KubeProxyConfiguration (kubeproxy.config.k8s.io/v1alpha1)";
    check("", &[&format!("null: {other}")]);
    check("- a", &[&format!("[\"a\"]: {other}")]);
    check("just text", &[&format!("\"just text\": {other}")]);
}

#[test]
fn broken_text_is_one_error() {
    for text in ["a: b: c", "{\"kind\": ", "a: [1", "\u{0}", "a: *nowhere", "? [x]: y\n: : :"] {
        let errors = error_texts(Config::resolve(Some(text), &Flags::default()));
        assert!(!errors.is_empty(), "{text:?}");
        assert!(errors.iter().all(|error| !error.contains('\n')), "{errors:?}");
    }
    let errors = error_texts(Config::resolve(Some("a: [1"), &Flags::default()));
    assert!(errors[0].starts_with("the file is neither YAML nor JSON: "), "{errors:?}");
}

#[test]
fn unknown_fields_are_named_and_ignored() {
    let text = file(
        "BindAddress: 1.2.3.4\nresourceContainer: x\niptables: {syncperiod: 1s, \"a\\n-A\": 1}\nudpIdleTimeout: 250ms\n",
    );
    let expected = [
        "BindAddress: unknown field, ignored",
        "resourceContainer: unknown field, ignored",
        "iptables.syncperiod: unknown field, ignored",
        "iptables.\"a\\n-A\": unknown field, ignored",
        "udpIdleTimeout: unknown field, ignored",
    ];
    assert_eq!(warnings(&text, &[]), expected);
    let (config, _) = Config::resolve(Some(&text), &Flags::default()).unwrap();
    assert_eq!(config, Config::default());
}

#[test]
fn a_field_set_twice_has_the_later_value() {
    let text = file("mode: ipvs\nmode: iptables\niptables: {masqueradeBit: 1, masqueradeBit: 2}\n");
    let expected =
        ["mode: set twice, the later one counts", "iptables.masqueradeBit: set twice, the later one counts"];
    assert_eq!(warnings(&text, &[]), expected);
    let (config, _) = Config::resolve(Some(&text), &Flags::default()).unwrap();
    assert_eq!(config.mark.value(), 4);
}

#[test]
fn chainsmiths_section_is_strict() {
    let fields = "chainsmith: {layouts: compact, layout: short, layout: long, auditPeriod: 0s, connectionMetrics: on, iptablesBackend: '', manifests: a, debugBindAddress: here}";
    let expected = [
        "chainsmith.layouts: \"compact\": unknown field",
        "chainsmith.layout: set twice",
        "chainsmith.manifests: \"a\": must be a list of strings",
        "chainsmith.iptablesBackend: \"\": must be one of auto, nft, legacy",
        "chainsmith.layout: \"long\": must be one of auto, classic, compact",
        "chainsmith.auditPeriod: 0s: must be more than 0s",
        "chainsmith.connectionMetrics: \"on\": must be one of off, service, endpoint",
        "chainsmith.debugBindAddress: \"here\": must be <ip>:<port>, an IPv6 address in brackets, the port 1 to 65535",
    ];
    assert_eq!(errors(fields, &[]), expected);
}

#[test]
fn a_bare_off_is_no_boolean() {
    for text in ["off", "'off'", "false"] {
        let config = of_file(&format!("chainsmith: {{connectionMetrics: {text}}}"));
        assert_eq!(config.connection_metrics, ConnectionMetrics::Off, "{text}");
        assert_eq!(config.effective.get("chainsmith.connectionMetrics").unwrap().value, "off");
    }
}

#[test]
fn zero_means_default() {
    let fields = "bindAddress: ''\nhealthzBindAddress: ''\nmetricsBindAddress: ''\nconfigSyncPeriod: 0s\nclientConnection: {qps: 0, burst: 0}\niptables: {syncPeriod: 0s, minSyncPeriod: '0'}\nlogging: {format: '', flushFrequency: 0}\n";
    let config = of_file(fields);
    assert_eq!(config, Config { effective: config.effective.clone(), ..Config::default() });
    for zero in ["0", "-0", "0.0"] {
        let config = of_flags(&["--kube-api-qps", zero, "--kube-api-burst=0"]);
        assert_eq!((config.client.qps, config.client.burst), (Some(5.0), 10), "{zero}");
    }
}

#[test]
fn fields_that_may_be_null_keep_an_explicit_zero() {
    let config = of_file(
        "oomScoreAdj: 0\niptables: {masqueradeBit: 0, localhostNodePorts: false}\nconntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}\n",
    );
    assert_eq!((config.oom_score_adj, config.mark.value(), config.localhost_node_ports), (0, 1, false));
    let c = &config.conntrack;
    assert_eq!(
        (c.max_per_core, c.min, c.tcp_established_timeout, c.tcp_close_wait_timeout),
        (None, 0, None, None)
    );
    let nulls = "oomScoreAdj: null\niptables: {masqueradeBit: ~, localhostNodePorts: null, masqueradeAll: null}\nconntrack: {maxPerCore:, min: null, tcpEstablishedTimeout: null}\nfeatureGates: null\nnodePortAddresses: null\nipvs: null\n";
    assert_eq!(of_file(nulls), Config::default());
}

#[test]
fn wrong_types_are_errors() {
    let check = |fields: &str, expected: &str| assert_eq!(errors(fields, &[]), [expected], "{fields}");
    let duration = "must be a duration such as \"1h30m\", \"30s\" or \"0s\"";
    check("configSyncPeriod: 900", &format!("configSyncPeriod: 900: {duration}"));
    check("configSyncPeriod: null", &format!("configSyncPeriod: null: {duration}"));
    check("iptables: {syncPeriod: 30}", &format!("iptables.syncPeriod: 30: {duration}"));
    check("iptables: {syncPeriod: soon}", &format!("iptables.syncPeriod: \"soon\": {duration}"));
    check(
        "conntrack: {tcpEstablishedTimeout: 1}",
        &format!("conntrack.tcpEstablishedTimeout: 1: {duration}"),
    );
    check("ipvs: {udpTimeout: 1}", &format!("ipvs.udpTimeout: 1: {duration}"));
    check("bindAddressHardFail: 'true'", "bindAddressHardFail: \"true\": must be true or false");
    check("hostnameOverride: 12", "hostnameOverride: 12: must be a string");
    check("oomScoreAdj: '-999'", "oomScoreAdj: \"-999\": must be a whole number of 32 bits");
    check("oomScoreAdj: 1.5", "oomScoreAdj: 1.5: must be a whole number of 32 bits");
    check("oomScoreAdj: 4294967296", "oomScoreAdj: 4294967296: must be a whole number of 32 bits");
    check("nodePortAddresses: 10.0.0.0/8", "nodePortAddresses: \"10.0.0.0/8\": must be a list of strings");
    check("nodePortAddresses: [1]", "nodePortAddresses: [1]: must be a list of strings");
    check("iptables: []", "iptables: []: must be a section with fields");
    check("winkernel: {enableDSR: 1}", "winkernel.enableDSR: 1: must be true or false");
    check("featureGates: {A: 1}", "featureGates: {\"A\": 1}: must be names, each with true or false");
    check(
        "logging: {flushFrequency: x}",
        "logging.flushFrequency: \"x\": must be a duration such as \"5s\", or a number of nanoseconds",
    );
    check(
        "logging: {verbosity: -1}",
        "logging.verbosity: -1: must be a whole number of 32 bits, not negative",
    );
    check("clientConnection: {qps: fast}", "clientConnection.qps: \"fast\": must be a number");
}

#[test]
fn the_flush_frequency_may_be_nanoseconds() {
    let config = of_file("logging: {flushFrequency: 1500000000}");
    assert_eq!(config.effective.get("logging.flushFrequency").unwrap().value, "1.5s");
}

#[test]
fn sections_of_other_modes_are_named_and_ignored() {
    let text = file(
        "ipvs: {scheduler: rr, strictARP: true, syncPeriod: 5s}\nnftables: {masqueradeBit: 3}\nwinkernel: {networkName: x}\nportRange: 1-2\nwindowsRunAsService: true\n",
    );
    let expected = [
        "ipvs.syncPeriod",
        "ipvs.scheduler",
        "ipvs.strictARP",
        "nftables.masqueradeBit",
        "winkernel.networkName",
        "portRange",
        "windowsRunAsService",
    ]
    .map(|path| format!("{path}: has no effect in iptables mode, ignored"));
    assert_eq!(warnings(&text, &[]), expected);
    let (config, _) = Config::resolve(Some(&text), &Flags::default()).unwrap();
    assert_eq!(config, Config { effective: config.effective.clone(), ..Config::default() });
    // kube-proxy does not check values of modes that do not run.
    let unchecked = file("ipvs: {tcpTimeout: -1s, excludeCIDRs: [x]}\nnftables: {masqueradeBit: 99}\n");
    assert!(Config::resolve(Some(&unchecked), &Flags::default()).is_ok());
}

#[test]
fn documents_after_the_first_are_ignored() {
    let text = format!("---\n{}---\nkind: Other\n", file("mode: iptables\n"));
    assert_eq!(warnings(&text, &[]), ["1 more documents in the file, ignored"]);
}

#[test]
fn a_file_that_grows_when_read_is_an_error() {
    let mut text = file("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for i in 1..9 {
        let aliases = vec![format!("*a{}", i - 1); 10].join(", ");
        text.push_str(&format!("a{i}: &a{i} [{aliases}]\n"));
    }
    assert_eq!(error_texts(Config::resolve(Some(&text), &Flags::default())).len(), 1);
    // Fewer of them, which still expand to 50 MB.
    let levels: String =
        (0..8).map(|n| format!("l{}: &l{} [*l{n}, *l{n}, *l{n}, *l{n}]\n", n + 1, n + 1)).collect();
    let text = file(&format!("l0: &l0 [x, x]\n{levels}"));
    assert_eq!(error_texts(Config::resolve(Some(&text), &Flags::default())).len(), 1);
    let deep = format!("{}x: {}{}", file(""), "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(error_texts(Config::resolve(Some(&deep), &Flags::default())).len(), 1);
    let deep = format!("{{\"x\": {}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(error_texts(Config::resolve(Some(&deep), &Flags::default())).len(), 1);
    let deep = format!("{}x:\n- {}x", file(""), "- ".repeat(100_000));
    assert_eq!(error_texts(Config::resolve(Some(&deep), &Flags::default())).len(), 1);
}

proptest::proptest! {
    /// Any text of a file or a flag is read or is an error; no message has control characters.
    #[test]
    fn any_text_is_read_or_is_an_error(
        text in "(a|:| |\n|- |\\[|\\]|\\{|\\}|\"|'|&|\\*|!|#|,|0|1|iptables|mode|\\PC){0,40}",
        name in 0..FLAGS.len(),
    ) {
        for file in [text.clone(), file(&text), file(&format!("iptables: {text}")), file(&format!("{text}: 1"))] {
            let flags = Flags::default().with(FLAGS[name].flag, &text);
            match Config::resolve(Some(&file), &flags) {
                Ok((_, warnings)) => {
                    for warning in warnings {
                        proptest::prop_assert!(!warning.to_string().contains(char::is_control), "{warning}");
                    }
                }
                Err(ConfigErrors(errors)) => {
                    proptest::prop_assert!(!errors.is_empty());
                    for error in errors {
                        proptest::prop_assert!(!error.to_string().contains(char::is_control), "{error}");
                    }
                }
            }
            let _ = Config::resolve(None, &flags);
        }
    }
}
