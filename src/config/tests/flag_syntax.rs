//! The syntax of flags.

use super::*;

#[test]
fn each_flag_sets_its_field() {
    let check = |arguments: &[&str], change: &dyn Fn(&mut Config)| {
        let config = of_flags(arguments);
        let mut expected = Config { effective: config.effective.clone(), ..Config::default() };
        assert_ne!(config, expected, "{arguments:?} changes nothing");
        change(&mut expected);
        assert_eq!(config, expected, "{arguments:?}");
    };
    check(&["--bind-address=10.0.0.1"], &|c| c.bind_address = Some("10.0.0.1".parse().unwrap()));
    check(&["--bind-address-hard-fail"], &|c| c.bind_address_hard_fail = true);
    check(&["--cluster-cidr=10.128.0.0/14,fd00:10:128::/48"], &|c| {
        c.cluster_cidrs = vec!["10.128.0.0/14", "fd00:10:128::/48"]
            .into_iter()
            .map(|text| Cidr::parse(text).unwrap())
            .collect();
    });
    check(&["--config-sync-period=1m"], &|c| c.config_sync_period = Duration::from_secs(60));
    check(&["--detect-local-mode=NodeCIDR"], &|c| c.detect_local = DetectLocal::NodeCidr);
    check(&["--detect-local-mode=BridgeInterface", "--pod-bridge-interface=cbr0"], &|c| {
        c.detect_local = DetectLocal::BridgeInterface("cbr0".to_owned());
    });
    check(&["--detect-local-mode=InterfaceNamePrefix", "--pod-interface-name-prefix=cali"], &|c| {
        c.detect_local = DetectLocal::InterfaceNamePrefix("cali".to_owned());
    });
    check(&["--healthz-bind-address=1.2.3.4:5"], &|c| {
        c.healthz_bind_address = Some("1.2.3.4:5".parse().unwrap());
    });
    check(&["--metrics-bind-address=0.0.0.0"], &|c| {
        c.metrics_bind_address = Some("0.0.0.0:10249".parse().unwrap());
    });
    check(&["--iptables-localhost-nodeports=false"], &|c| c.localhost_node_ports = false);
    check(&["--iptables-masquerade-bit=31"], &|c| c.mark = MasqueradeMark::from_bit(31).unwrap());
    check(&["--iptables-min-sync-period=0"], &|c| c.min_sync_period = Duration::ZERO);
    check(&["--iptables-sync-period=1h"], &|c| c.sync_period = Duration::from_secs(3600));
    check(&["--kube-api-burst=7"], &|c| c.client.burst = 7);
    check(&["--kube-api-qps=0.5"], &|c| c.client.qps = Some(0.5));
    check(&["--kube-api-qps", "-1"], &|c| c.client.qps = None);
    check(&["--kubeconfig=/k"], &|c| c.client.kubeconfig = Some("/k".into()));
    check(&["--master=http://m"], &|c| c.client.master = Some("http://m".to_owned()));
    check(&["--masquerade-all"], &|c| c.masquerade_all = true);
    check(&["--nodeport-addresses=primary"], &|c| c.node_port_addresses = NodePortAddresses::Primary);
    check(&["--oom-score-adj", "-998"], &|c| c.oom_score_adj = -998);
    check(&["--profiling"], &|c| c.enable_profiling = true);
    check(&["--conntrack-max-per-core=0"], &|c| c.conntrack.max_per_core = None);
    check(&["--conntrack-min=1"], &|c| c.conntrack.min = 1);
    check(&["--conntrack-tcp-be-liberal"], &|c| c.conntrack.tcp_be_liberal = true);
    check(&["--conntrack-tcp-timeout-established=0s"], &|c| c.conntrack.tcp_established_timeout = None);
    check(&["--conntrack-tcp-timeout-close-wait=1m"], &|c| {
        c.conntrack.tcp_close_wait_timeout = Some(Duration::from_secs(60));
    });
    check(&["--conntrack-udp-timeout=1m"], &|c| c.conntrack.udp_timeout = Some(Duration::from_secs(60)));
    check(&["--conntrack-udp-timeout-stream=1m"], &|c| {
        c.conntrack.udp_stream_timeout = Some(Duration::from_secs(60));
    });
    check(&["-v", "2"], &|c| c.logging.verbosity = 2);
    check(&["-v=2"], &|c| c.logging.verbosity = 2);
    check(&["--v", "2"], &|c| c.logging.verbosity = 2);
    check(&["--logging-format=json"], &|c| c.logging.format = LogFormat::Json);
}

#[test]
fn underscores_in_flag_names_are_dashes() {
    let config = of_flags(&["--masquerade_all", "--cluster_cidr=10.0.0.0/8", "--hostname_override=a_b"]);
    assert!(config.masquerade_all);
    assert_eq!(config.cluster_cidrs.len(), 1);
    assert_eq!(config.hostname_override.as_deref(), Some("a_b"));
    let after = normalise(["x", "--", "--a_b"].map(std::ffi::OsString::from));
    assert_eq!(after, ["x", "--", "--a_b"]);
}

#[test]
fn booleans_are_as_in_go() {
    for (text, expected) in
        [("--masquerade-all", true), ("--masquerade-all=T", true), ("--masquerade-all=0", false)]
    {
        assert_eq!(of_flags(&[text]).masquerade_all, expected, "{text}");
    }
    for text in ["yes", "", "on", "tRUE"] {
        let flag = format!("--masquerade-all={text}");
        let expected = format!("--masquerade-all: {text:?}: must be true or false");
        assert_eq!(flag_errors(&[&flag]), [expected]);
    }
}

#[test]
fn a_boolean_takes_no_separate_argument() {
    let command = <Flags as clap::Args>::augment_args(clap::Command::new("run"));
    assert!(command.try_get_matches_from(["run", "--masquerade-all", "false"]).is_err());
}

#[test]
fn the_last_of_a_repeated_flag_counts_and_lists_add_up() {
    let config = of_flags(&[
        "--iptables-masquerade-bit=1",
        "--iptables-masquerade-bit=2",
        "--masquerade-all",
        "--masquerade-all=false",
        "--nodeport-addresses=10.0.0.0/8,1.2.3.4/32",
        "--nodeport-addresses=fd00::/8",
    ]);
    assert_eq!(config.mark.value(), 4);
    assert!(!config.masquerade_all);
    let NodePortAddresses::Cidrs(cidrs) = config.node_port_addresses else { panic!("no CIDRs") };
    assert_eq!(cidrs.len(), 3);
}

#[test]
fn integers_are_as_in_go() {
    for (text, bit) in [("0x0e", 14), ("016", 14), ("0b1", 1), ("+3", 3), ("0", 0)] {
        let config = of_flags(&[&format!("--iptables-masquerade-bit={text}")]);
        assert_eq!(config.mark.value(), 1 << bit, "{text}");
    }
    for text in ["", "1.0", "0x", "08", "--1", "0x-1", "99999999999999999999", " 1"] {
        assert_eq!(flag_errors(&[&format!("--iptables-masquerade-bit={text}")]).len(), 1, "{text:?}");
    }
}

#[test]
fn flags_of_other_modes_are_one_warning_each() {
    let expected = [
        "--boot-id-file: has no effect in iptables mode, ignored",
        "--ipvs-scheduler: has no effect in iptables mode, ignored",
        "--ipvs-strict-arp: has no effect in iptables mode, ignored",
    ];
    let arguments = ["--ipvs-scheduler=rr", "--ipvs-strict-arp", "--boot-id-file=/x"];
    assert_eq!(warnings("", &arguments), expected);
}

#[test]
fn flags_of_other_modes_have_types() {
    let errors = flag_errors(&["--ipvs-udp-timeout=soon", "--ipvs-strict-arp=maybe"]);
    assert_eq!(errors.len(), 2, "{errors:?}");
}

#[test]
fn a_health_port_of_zero_switches_the_server_off() {
    let (config, warnings) =
        Config::resolve(None, &flags(&["--healthz-port=0", "--metrics-port=0"])).unwrap();
    assert_eq!((config.healthz_bind_address, config.metrics_bind_address), (None, None));
    let texts: Vec<String> = warnings.iter().map(ToString::to_string).collect();
    assert_eq!(
        texts,
        [
            "--healthz-port: deprecated, use --healthz-bind-address",
            "--metrics-port: deprecated, use --metrics-bind-address"
        ]
    );
}

#[test]
fn a_port_flag_completes_a_bare_address_only() {
    let address = |arguments: &[&str]| {
        let (config, _) = Config::resolve(None, &flags(arguments)).unwrap();
        config.healthz_bind_address.unwrap().to_string()
    };
    assert_eq!(address(&["--healthz-bind-address=::1", "--healthz-port=7"]), "[::1]:7");
    assert_eq!(address(&["--healthz-bind-address=1.2.3.4", "--healthz-port=7"]), "1.2.3.4:7");
    assert_eq!(address(&["--healthz-bind-address=1.2.3.4:8", "--healthz-port=7"]), "1.2.3.4:8");
    assert_eq!(address(&["--healthz-port=7"]), "0.0.0.0:10256");
    assert_eq!(address(&["--healthz-bind-address="]), "0.0.0.0:10256");
    assert_eq!(
        flag_errors(&["--healthz-port=70000"]),
        ["--healthz-port: \"70000\": must be a port, 0 to 65535"]
    );
}

#[test]
fn a_bind_address_flag_does_not_move_the_servers() {
    let config = of_flags(&["--bind-address=::"]);
    assert_eq!(config.bind_address, None);
    assert_eq!(config.healthz_bind_address, Some("0.0.0.0:10256".parse().unwrap()));
    assert_eq!(of_flags(&["--bind-address="]).bind_address, None);
}

#[test]
fn render_takes_the_flags_that_shape_rules_and_no_others() {
    use clap::FromArgMatches;
    let command = <RuleFlags as clap::Args>::augment_args(clap::Command::new("render"));
    let matches =
        command.clone().try_get_matches_from(["render", "--masquerade-all", "--layout=classic"]).unwrap();
    let flags = RuleFlags::from_arg_matches(&matches).unwrap();
    let (config, _) = Config::resolve(None, &flags.0).unwrap();
    assert!(config.masquerade_all);
    assert_eq!(config.layout, LayoutChoice::Classic);
    assert!(command.try_get_matches_from(["render", "--kubeconfig=/k"]).is_err());
}

#[test]
fn every_setting_of_the_table_has_a_path_or_a_flag_a_default_and_help() {
    let mut command = <Flags as clap::Args>::augment_args(clap::Command::new("run"));
    command.clone().debug_assert();
    let help = command.render_long_help().to_string();
    let readme = include_str!("../../../README.md");
    for setting in table::SETTINGS.iter() {
        let (path, flag) = (setting.path, setting.flag);
        assert!(!path.is_empty() || !flag.is_empty(), "{setting:?}");
        assert!(!setting.help.is_empty(), "{setting:?}");
        assert_eq!(flag.is_empty(), setting.value_name.is_empty(), "{setting:?}");
        assert!(flag.is_empty() || help.contains(&format!("--{flag}")), "{setting:?}");
        if let Some(key) = path.strip_prefix("chainsmith.") {
            assert!(
                readme.contains(&format!("`{key}` (`--{flag}"))
                    || readme.contains(&format!("`{key}`\n(`--{flag}")),
                "{setting:?}"
            );
        }
        // A flag with the default changes nothing.
        if !flag.is_empty() && !["", "[]"].contains(&setting.flag_default) {
            let flags = Flags::default().with(flag, setting.flag_default);
            let (config, _) = Config::resolve(None, &flags).unwrap();
            assert_eq!(config.differences().len(), 0, "{setting:?}");
        }
    }
    for name in [|setting: &Setting| setting.path, |setting: &Setting| setting.flag] {
        let mut names: Vec<&str> = table::SETTINGS.iter().map(name).filter(|name| !name.is_empty()).collect();
        let n_names = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), n_names, "a name occurs twice");
    }
}

/// Else `/configz` would have a section twice.
#[test]
fn settings_of_a_section_follow_each_other() {
    let paths: Vec<&str> = table::SETTINGS.iter().map(|setting| setting.path).collect();
    let sections = paths.iter().flat_map(|path| path.match_indices('.').map(|(end, _)| &path[..=end]));
    for section in sections {
        let is_inside = |path: &&str| path.starts_with(section);
        let runs = paths.chunk_by(|left, right| is_inside(left) == is_inside(right));
        assert_eq!(runs.filter(|run| is_inside(&run[0])).count(), 1, "{section}");
    }
}

#[test]
fn flagz_is_kube_proxys_but_for_our_own_flags() {
    let recorded = include_str!("../../../testdata/config/flagz.txt");
    let flags = flags(&["--config=/mnt/config.yaml", "--v=2"]);
    let is_own =
        |name: &str| FLAGS.iter().any(|setting| setting.flag == name && setting.scope == FlagScope::Own);
    let all = flags.all();
    let theirs = all.iter().filter(|(name, _)| !is_own(name));
    let lines: Vec<String> = theirs.map(|(name, value)| format!("{name}:{value}")).collect();
    assert_eq!(lines, recorded.lines().collect::<Vec<_>>());
}
