//! The checks of values.

use super::*;

#[test]
fn other_modes_are_errors_with_advice() {
    for mode in ["ipvs", "nftables"] {
        let errors = errors(&format!("mode: {mode}"), &[]);
        let start = format!(
            "mode: \"{mode}\": Chainsmith is kube-proxy's iptables mode only: set the mode to \"iptables\""
        );
        assert!(errors.len() == 1 && errors[0].starts_with(&start), "{errors:?}");
        let errors = flag_errors(&[&format!("--proxy-mode={mode}")]);
        assert!(errors.len() == 1 && errors[0].starts_with("--proxy-mode: "), "{errors:?}");
    }
    for mode in ["IPTables", "userspace", "kernelspace", "x\ny"] {
        let errors = errors(&format!("mode: {}", yaml(mode)), &[]);
        assert_eq!(errors, [format!("mode: {mode:?}: must be iptables, or empty")]);
    }
    assert_eq!(
        of_file("mode: iptables"),
        Config { effective: of_file("mode: iptables").effective, ..Config::default() }
    );
    of_file("mode: ''");
    of_flags(&["--proxy-mode="]);
    of_flags(&["--proxy-mode=iptables"]);
}

#[test]
fn every_error_is_reported_at_once() {
    let fields = "\
featureGates: {MultiCIDRServiceAllocator: false}
iptables: {masqueradeBit: 32, syncPeriod: 1s, minSyncPeriod: 2s}
conntrack: {maxPerCore: -1, min: -2, tcpEstablishedTimeout: -1s, tcpCloseWaitTimeout: -1s, udpTimeout: -1s, udpStreamTimeout: -1s}
oomScoreAdj: -1001
mode: userspace
clientConnection: {burst: -1}
configSyncPeriod: -1s
hostnameOverride: ' '
bindAddress: here
healthzBindAddress: 1.2.3.4:0
metricsBindAddress: '[::1]'
nodePortAddresses: [primary, 10.0.0.0/8]
showHiddenMetricsForVersion: '1.34'
detectLocalMode: Clustercidr
logging: {format: xml, flushFrequency: -1s, verbosity: 2147483648, vmodule: [{filePattern: 'a=b', verbosity: 1}]}
enableProfiling: 1
chainsmith: {layout: none}
";
    let places: Vec<String> = errors(fields, &["--v=x", "--log-flush-frequency=y"])
        .iter()
        .map(|error| error.split(": ").next().unwrap().to_owned())
        .collect();
    let expected = "featureGates.MultiCIDRServiceAllocator clientConnection.burst logging.format --log-flush-frequency \
        logging.flushFrequency --v logging.verbosity logging.vmodule[0] hostnameOverride bindAddress healthzBindAddress \
        metricsBindAddress enableProfiling showHiddenMetricsForVersion mode iptables.masqueradeBit iptables.syncPeriod \
        detectLocalMode nodePortAddresses oomScoreAdj conntrack.maxPerCore conntrack.min \
        conntrack.tcpEstablishedTimeout conntrack.tcpCloseWaitTimeout conntrack.udpTimeout conntrack.udpStreamTimeout \
        configSyncPeriod chainsmith.layout";
    let expected: Vec<&str> = expected.split_whitespace().collect();
    assert_eq!(places, expected);
}

#[test]
fn bounds_are_kube_proxys() {
    let good = |fields: &str| drop(of_file(fields));
    let bad = |fields: &str| assert_eq!(errors(fields, &[]).len(), 1, "{fields}");
    for bit in [0, 31] {
        good(&format!("iptables: {{masqueradeBit: {bit}}}"));
    }
    for bit in [-1, 32] {
        bad(&format!("iptables: {{masqueradeBit: {bit}}}"));
    }
    for score in [-1000, 1000] {
        good(&format!("oomScoreAdj: {score}"));
    }
    bad("oomScoreAdj: 1001");
    good("iptables: {syncPeriod: 1s, minSyncPeriod: 1s}");
    bad("iptables: {syncPeriod: 500ms}");
    bad("iptables: {minSyncPeriod: 31s}");
    bad("iptables: {minSyncPeriod: -1s}");
    bad("iptables: {syncPeriod: -1s}");
    good("showHiddenMetricsForVersion: '1.35'");
    bad("showHiddenMetricsForVersion: '1.36'");
}

#[test]
fn short_periods_are_raised_to_a_second_with_a_warning() {
    let fields = "iptables: {syncPeriod: 1ns, minSyncPeriod: 1ns}\nchainsmith: {auditPeriod: 999ms}";
    let (config, warnings) = Config::resolve(Some(&file(fields)), &Flags::default()).unwrap();
    let second = Duration::from_secs(1);
    assert_eq!((config.sync_period, config.audit_period), (second, second));
    assert_eq!(config.min_sync_period, Duration::from_nanos(1), "a pause between syncs may be short");
    let warnings: Vec<String> = warnings.iter().map(ToString::to_string).collect();
    let expected = [
        "iptables.syncPeriod: 1ns is too short; raised to 1s",
        "chainsmith.auditPeriod: 999ms is too short; raised to 1s",
    ];
    assert_eq!(warnings, expected);
    // `/configz` and the written file show the raised period.
    assert!(config.effective.configz().contains("\"syncPeriod\":\"1s\",\"minSyncPeriod\":\"1ns\""));
    assert!(config.effective.to_file().contains("auditPeriod: 1s"), "{}", config.effective.to_file());
    let none =
        Config::resolve(Some(&file("iptables: {syncPeriod: 1s, minSyncPeriod: 1s}")), &Flags::default());
    assert_eq!(none.unwrap().1, []);
}

#[test]
fn servers_listen_where_the_file_says() {
    let check = |fields: &str, healthz: &str, metrics: &str| {
        let config = of_file(fields);
        assert_eq!(config.healthz_bind_address.unwrap().to_string(), healthz, "{fields}");
        assert_eq!(config.metrics_bind_address.unwrap().to_string(), metrics, "{fields}");
    };
    check("bindAddress: 10.0.0.1", "0.0.0.0:10256", "127.0.0.1:10249");
    check("bindAddress: '::'", "[::]:10256", "[::1]:10249");
    check("healthzBindAddress: 1.2.3.4\nmetricsBindAddress: fd00::1", "1.2.3.4:10256", "[fd00::1]:10249");
    check("healthzBindAddress: 1.2.3.4:80\nmetricsBindAddress: '[::]:65535'", "1.2.3.4:80", "[::]:65535");
    for text in [
        "x",
        "1.2.3.4:",
        "1.2.3.4:x",
        "1.2.3.4:+1",
        "1.2.3.4:65536",
        ":80",
        "[1.2.3.4:80",
        "fd00::1:80:",
        "localhost:80",
        "[]:80",
        "1.2.3.4:80\n",
    ] {
        let errors = errors(&format!("healthzBindAddress: {}", yaml(text)), &[]);
        assert!(errors.len() == 1 && errors[0].starts_with("healthzBindAddress: "), "{text:?} {errors:?}");
    }
}

#[test]
fn an_unspecified_bind_address_is_none() {
    let address =
        |text: &str| of_file(&format!("bindAddress: {}", yaml(text))).bind_address.map(|ip| ip.to_string());
    assert_eq!(address("0.0.0.0"), None);
    assert_eq!(address("::"), None);
    assert_eq!(address("010.0.0.01").as_deref(), Some("10.0.0.1"));
    assert_eq!(address("fd00::1").as_deref(), Some("fd00::1"));
    assert_eq!(errors("bindAddress: '[::1]'", &[]), ["bindAddress: \"[::1]\": must be an IP address"]);
    assert_eq!(flag_errors(&["--bind-address=x"]), ["--bind-address: \"x\": must be an IP address"]);
}

#[test]
fn cluster_cidrs_are_one_of_each_family() {
    let check = |text: &str, expected: &[&str]| {
        let cidrs = of_file(&format!("clusterCIDR: {}", yaml(text))).cluster_cidrs;
        assert_eq!(cidrs.iter().map(ToString::to_string).collect::<Vec<_>>(), expected, "{text}");
    };
    check("", &[]);
    check("10.244.1.2/16", &["10.244.0.0/16"]);
    check("fd00:10:128::/48,10.128.0.0/14", &["fd00:10:128::/48", "10.128.0.0/14"]);
    for text in [
        "10.0.0.0/8, fd00::/8",
        "10.0.0.0/8,",
        ",",
        "10.0.0.0/8,11.0.0.0/8",
        "10.0.0.0",
        "0.0.0.0/0",
        "::/0",
        "10.0.0.0/8;x",
        "10.0.0.0/8\n-j ACCEPT",
    ] {
        let errors = errors(&format!("clusterCIDR: {}", yaml(text)), &[]);
        assert!(
            !errors.is_empty() && errors.iter().all(|error| error.starts_with("clusterCIDR: ")),
            "{text:?} {errors:?}"
        );
    }
    let three = errors("clusterCIDR: 10.0.0.0/8,fd00::/8,11.0.0.0/8", &[]);
    assert_eq!(
        three,
        ["clusterCIDR: \"10.0.0.0/8,fd00::/8,11.0.0.0/8\": must be one CIDR, or one of each family"]
    );
    assert_eq!(flag_errors(&["--cluster-cidr="]), ["--cluster-cidr: \"\": must be a CIDR"]);
}

#[test]
fn cluster_cidrs_are_not_checked_in_other_modes() {
    let config = of_file("detectLocalMode: NodeCIDR\nclusterCIDR: whatever");
    assert_eq!(config.cluster_cidrs, []);
    assert_eq!(of_flags(&["--detect-local-mode=NodeCIDR", "--cluster-cidr="]).cluster_cidrs, []);
}

#[test]
fn node_port_addresses_are_cidrs_or_primary_alone() {
    let of = |text: &str| of_file(&format!("nodePortAddresses: {text}")).node_port_addresses;
    assert_eq!(of("[]"), NodePortAddresses::All);
    assert_eq!(of("[primary]"), NodePortAddresses::Primary);
    assert_eq!(of("[10.0.0.1/8]"), NodePortAddresses::Cidrs(vec![Cidr::parse("10.0.0.0/8").unwrap()]));
    let bad = |text: &str| errors(&format!("nodePortAddresses: {text}"), &[]);
    let alone = "\"primary\" must be the only element";
    assert_eq!(bad("[primary, primary]"), [format!("nodePortAddresses: \"primary,primary\": {alone}")]);
    assert_eq!(bad("[10.0.0.0/8, primary]"), [format!("nodePortAddresses: \"10.0.0.0/8,primary\": {alone}")]);
    assert_eq!(
        bad("[10.0.0.0/8, x, '']"),
        [
            "nodePortAddresses[1]: \"x\": must be a CIDR, or \"primary\" alone",
            "nodePortAddresses[2]: \"\": must be a CIDR, or \"primary\" alone"
        ]
    );
    assert_eq!(
        flag_errors(&["--nodeport-addresses=x"]),
        ["--nodeport-addresses: \"x\": must be a CIDR, or \"primary\" alone"]
    );
}

#[test]
fn a_family_without_node_port_cidrs_matches_everything() {
    let of = |texts: &[&str], family| {
        let cidrs = texts.iter().map(|text| Cidr::parse(text).unwrap()).collect();
        let cidrs = NodePortAddresses::Cidrs(cidrs).of(family)?;
        Some(cidrs.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
    };
    assert_eq!(of(&["10.0.0.0/8"], IpFamily::V4).as_deref(), Some("10.0.0.0/8"));
    assert_eq!(of(&["10.0.0.0/8"], IpFamily::V6), None);
    assert_eq!(of(&["10.0.0.0/8", "0.0.0.0/0", "fd00::/8"], IpFamily::V4), None);
    assert_eq!(NodePortAddresses::All.of(IpFamily::V4), None);
    let node = ["10.0.0.1", "::1"].map(|ip| ip.parse::<IpAddr>().unwrap());
    let primary = NodePortAddresses::Primary.with_primary(node);
    assert_eq!(primary, NodePortAddresses::Cidrs(vec![Cidr::parse("10.0.0.1/32").unwrap()]));
    assert_eq!(NodePortAddresses::Primary.with_primary([node[1]]), NodePortAddresses::All);
    assert_eq!(NodePortAddresses::All.with_primary(node), NodePortAddresses::All);
}

#[test]
fn interface_names_have_their_grammar() {
    let bridge = |name: &str| {
        format!("detectLocalMode: BridgeInterface\ndetectLocal: {{bridgeInterface: {}}}", yaml(name))
    };
    let prefix = |name: &str| {
        format!("detectLocalMode: InterfaceNamePrefix\ndetectLocal: {{interfaceNamePrefix: {}}}", yaml(name))
    };
    for name in ["cbr0", "a.b-c_d@e", "123456789012345"] {
        assert_eq!(of_file(&bridge(name)).detect_local, DetectLocal::BridgeInterface(name.to_owned()));
    }
    for name in ["cali", "v", "12345678901234"] {
        assert_eq!(of_file(&prefix(name)).detect_local, DetectLocal::InterfaceNamePrefix(name.to_owned()));
    }
    let hostile = [
        "",
        " ",
        "a b",
        "a\tb",
        "a\nb",
        "a\u{0}b",
        "a/b",
        "a:b",
        "a\"b",
        "a'b",
        "a\\b",
        "a`b",
        ".",
        "..",
        "-j",
        "!",
        "!x",
        "\u{e4}",
        "1234567890123456",
        "x -j ACCEPT",
    ];
    for name in hostile {
        let errors = errors(&bridge(name), &[]);
        assert!(
            errors.len() == 1 && errors[0].starts_with("detectLocal.bridgeInterface: "),
            "{name:?} {errors:?}"
        );
        let errors = error_texts(Config::resolve(Some(&file(&prefix(name))), &Flags::default()));
        assert!(
            errors.len() == 1 && errors[0].starts_with("detectLocal.interfaceNamePrefix: "),
            "{name:?} {errors:?}"
        );
    }
    assert_eq!(errors(&bridge("+"), &[]).len(), 1);
    assert_eq!(errors(&prefix("123456789012345"), &[]).len(), 1);
    // Not checked in another mode.
    of_file("detectLocal: {bridgeInterface: 'a b'}");
}

#[test]
fn host_names_are_trimmed_and_lower_cased() {
    let of = |text: &str| of_file(&format!("hostnameOverride: {}", yaml(text))).hostname_override;
    assert_eq!(of(""), None);
    assert_eq!(of(" Node-1.Example "), Some("node-1.example".to_owned()));
    for text in
        [" ", "\n", "a b", "a,metadata.name!=b", "a\u{0}", "\"", "\\", "\u{e4}", "-j\n", &"a".repeat(254)]
    {
        assert_eq!(errors(&format!("hostnameOverride: {}", yaml(text)), &[]).len(), 1, "{text:?}");
    }
    assert_eq!(
        flag_errors(&["--hostname-override= "]),
        ["--hostname-override: \" \": must not be white space only"]
    );
}

#[test]
fn hostile_text_in_any_field_is_an_error_on_one_line() {
    let hostile = ["\"", "a\nb", "\\", "\u{0}", "-j DROP", "\u{e4}\u{f6}", "'; reboot"];
    let long = "x".repeat(10_000);
    for text in hostile.into_iter().chain([long.as_str()]) {
        for field in [
            "hostnameOverride",
            "bindAddress",
            "healthzBindAddress",
            "metricsBindAddress",
            "mode",
            "detectLocalMode",
            "clusterCIDR",
            "showHiddenMetricsForVersion",
        ] {
            let errors = errors(&format!("{field}: {}", yaml(text)), &[]);
            assert!(!errors.is_empty(), "{field} {text:?}");
            assert!(errors.iter().all(|error| error.len() < 500 && !error.contains('\n')), "{errors:?}");
        }
        for section in [
            "logging: {format",
            "chainsmith: {layout",
            "chainsmith: {iptablesBackend",
            "chainsmith: {debugBindAddress",
        ] {
            assert!(!errors(&format!("{section}: {}}}", yaml(text)), &[]).is_empty(), "{section} {text:?}");
        }
        assert!(!errors(&format!("nodePortAddresses: [{}]", yaml(text)), &[]).is_empty());
    }
}

#[test]
fn unknown_gates_are_a_warning_and_locked_gates_stay() {
    let text = file(
        "featureGates: {AllowServiceExternalIPs: false, DRAAdminAccess: true, NFTablesProxyMode: true, ComponentFlagz: false}",
    );
    let (config, _) = Config::resolve(Some(&text), &Flags::default()).unwrap();
    assert!(!config.allow_external_ips);
    assert!(!config.gates.is_on("ComponentFlagz") && config.gates.is_on("ComponentStatusz"));
    assert_eq!(
        warnings(&text, &[]),
        [
            "featureGates.AllowServiceExternalIPs: AllowServiceExternalIPs is a GA feature gate, set to false; it will go away",
            "featureGates.NFTablesProxyMode: NFTablesProxyMode is a GA feature gate, set to true; it will go away",
            "featureGates.DRAAdminAccess: \"DRAAdminAccess\" is not a feature gate of Chainsmith, ignored",
        ]
    );
    assert_eq!(
        errors("featureGates: {NFTablesProxyMode: false}", &[]),
        ["featureGates.NFTablesProxyMode: false: the gate NFTablesProxyMode is locked to true"]
    );
    let config =
        of_flags(&["--feature-gates=AllAlpha=true, AllBeta=false", "--feature-gates=ComponentFlagz=true"]);
    let on = |name| config.gates.is_on(name);
    assert!(
        on("NativeHistograms")
            && on("ComponentFlagz")
            && !on("ComponentStatusz")
            && on("AllowServiceExternalIPs")
    );
    assert_eq!(flag_errors(&["--feature-gates=a"]).len(), 1);
    assert_eq!(flag_errors(&["--feature-gates=a=b"]).len(), 1);
}

#[test]
fn alpha_log_options_need_their_gate() {
    let options = "logging: {options: {text: {splitStream: true, infoBufferSize: 64Ki}, json: {infoBufferSize: '0'}}}\n";
    let reason = "needs the feature gate LoggingAlphaOptions";
    assert_eq!(
        errors(options, &[]),
        [
            format!("logging.options.text.splitStream: true: {reason}"),
            format!("logging.options.text.infoBufferSize: 64Ki: {reason}")
        ]
    );
    of_file(&format!("{options}featureGates: {{LoggingAlphaOptions: true}}\n"));
    assert_eq!(errors("logging: {options: {text: {infoBufferSize: lots}}}", &[]).len(), 1);
    assert_eq!(
        flag_errors(&["--log-json-split-stream"]),
        [format!("--log-json-split-stream: true: {reason}")]
    );
}

#[test]
fn vmodule_is_for_text_and_every_malformed_pattern_is_named() {
    assert_eq!(errors("logging: {format: json, vmodule: [{filePattern: a, verbosity: 1}]}", &[]).len(), 1);
    let patterns = "[{filePattern: '[a', verbosity: 1}, {filePattern: 'sync::*', verbosity: 1}, {filePattern: a***, verbosity: 1}]";
    let expected = [
        "logging.vmodule[0]: \"[a\": invalid range pattern",
        "logging.vmodule[2]: \"a***\": wildcards are either regular `*` or recursive `**`",
    ];
    assert_eq!(errors(&format!("logging: {{vmodule: {patterns}}}"), &[]), expected);
    for malformed in ["a", "a=b", "=2", "a=-1", "a=1=2", "a=2147483648", "[a=2", "a=1,b"] {
        assert_eq!(flag_errors(&[&format!("--vmodule={malformed}")]).len(), 1, "{malformed}");
    }
    of_flags(&["--vmodule=a*=1,[bc]?=2,", "--vmodule=sync::*=4"]);
}

#[test]
fn another_content_type_is_a_warning() {
    let expected = ["clientConnection.contentType: Chainsmith asks the API server for JSON"];
    assert_eq!(warnings(&file("clientConnection: {contentType: application/cbor}"), &[]), expected);
    of_file("clientConnection: {contentType: application/vnd.kubernetes.protobuf}");
    of_file("clientConnection: {contentType: application/json}");
}

#[test]
fn conntrack_grows_with_cpus_to_a_cap() {
    let max = |max_per_core, min, n_cpus| {
        Conntrack { max_per_core, min, ..Config::default().conntrack }.max(n_cpus)
    };
    for (n_cpus, expected) in [(1, 131_072), (4, 131_072), (8, 262_144), (32, 1_048_576), (33, 1_048_576)] {
        assert_eq!(max(Some(32_768), 131_072, n_cpus), Some(expected), "{n_cpus}");
    }
    assert_eq!(max(None, 131_072, 8), None);
    assert_eq!(max(Some(1), 2_000_000, 8), Some(2_000_000));
    assert_eq!(max(Some(1_000_000), 2_000_000, 8), Some(1_048_576));
}

#[test]
fn conntrack_keys_are_in_kube_proxys_order() {
    let defaults = Config::default().conntrack;
    assert_eq!(
        defaults.sysctls(),
        [("nf_conntrack_tcp_timeout_established", 86_400), ("nf_conntrack_tcp_timeout_close_wait", 3_600)]
    );
    let all = of_file(
        "conntrack: {tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 1500ms, tcpBeLiberal: true, udpTimeout: 2s, udpStreamTimeout: 3s}",
    );
    assert_eq!(
        all.conntrack.sysctls(),
        [
            ("nf_conntrack_tcp_timeout_close_wait", 1),
            ("nf_conntrack_tcp_be_liberal", 1),
            ("nf_conntrack_udp_timeout", 2),
            ("nf_conntrack_udp_timeout_stream", 3),
        ]
    );
}
