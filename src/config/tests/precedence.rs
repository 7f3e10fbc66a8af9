//! Precedence of file and flags.

use super::*;

#[test]
fn no_file_and_no_flags_give_kube_proxys_defaults() {
    let config = Config::default();
    assert_eq!(config.hostname_override, None);
    assert_eq!(config.bind_address, None);
    assert_eq!(config.cluster_cidrs, []);
    assert_eq!(config.detect_local, DetectLocal::ClusterCidr);
    assert_eq!(config.node_port_addresses, NodePortAddresses::All);
    assert_eq!(config.mark.value(), 0x4000);
    assert!(!config.masquerade_all && config.localhost_node_ports && config.allow_external_ips);
    assert_eq!(config.sync_period, Duration::from_secs(30));
    assert_eq!(config.min_sync_period, Duration::from_secs(1));
    assert_eq!(config.healthz_bind_address, Some("0.0.0.0:10256".parse().unwrap()));
    assert_eq!(config.metrics_bind_address, Some("127.0.0.1:10249".parse().unwrap()));
    assert!(!config.bind_address_hard_fail && !config.enable_profiling);
    assert_eq!(config.oom_score_adj, -999);
    assert_eq!(config.config_sync_period, Duration::from_secs(900));
    let client = Client { kubeconfig: None, master: None, qps: Some(5.0), burst: 10 };
    assert_eq!(config.client, client);
    let conntrack = Conntrack {
        max_per_core: Some(32_768),
        min: 131_072,
        tcp_established_timeout: Some(Duration::from_secs(86_400)),
        tcp_close_wait_timeout: Some(Duration::from_secs(3_600)),
        tcp_be_liberal: false,
        udp_timeout: None,
        udp_stream_timeout: None,
    };
    assert_eq!(config.conntrack, conntrack);
    assert_eq!(config.logging, Logging { format: LogFormat::Text, verbosity: 0, vmodule: Vec::new() });
    assert_eq!(config.manifests, [] as [PathBuf; 0]);
    assert_eq!((config.backend, config.layout), (BackendChoice::Auto, LayoutChoice::Auto));
    assert_eq!(config.audit_period, Duration::from_secs(300));
    assert_eq!(config.debug_bind_address, None);
    assert_eq!(config.agent_socket, UnixAddress::parse("@chainsmith").ok());
}

#[test]
fn a_file_with_no_field_is_the_defaults() {
    assert_eq!(of_file(""), Config::default());
}

#[test]
fn kubeadms_file_loads_without_a_warning() {
    let (config, warnings) = Config::resolve(Some(KUBEADM), &Flags::default()).unwrap();
    assert_eq!(warnings, []);
    let expected = Config {
        cluster_cidrs: vec![Cidr::parse("10.244.0.0/16").unwrap()],
        client: Client {
            kubeconfig: Some("/var/lib/kube-proxy/kubeconfig.conf".into()),
            ..Config::default().client
        },
        effective: config.effective.clone(),
        ..Config::default()
    };
    assert_eq!(config, expected);
}

#[test]
fn kubeadms_command_line_names_the_node() {
    let flags = flags(&["--config=/var/lib/kube-proxy/config.conf", "--hostname-override=Node-1"]);
    assert_eq!(flags.config(), Some("/var/lib/kube-proxy/config.conf".as_ref()));
    let (config, warnings) = Config::resolve(Some(KUBEADM), &flags).unwrap();
    assert_eq!(warnings, []);
    assert_eq!(config.hostname_override.as_deref(), Some("node-1"));
}

#[test]
fn beside_a_file_kube_proxys_flags_are_ignored_with_one_warning() {
    let arguments = [
        "--config=x",
        "--masquerade-all",
        "--cluster-cidr=10.0.0.0/8",
        "--proxy-mode=ipvs",
        "--ipvs-scheduler=rr",
        "--kubeconfig=/k",
        "--healthz-port=0",
    ];
    let flags = flags(&arguments);
    let (config, warnings) = Config::resolve(Some(&file("")), &flags).unwrap();
    assert_eq!(config, Config::default());
    let expected = "ignored, as --config is given: --cluster-cidr, --healthz-port, --kubeconfig, \
                    --masquerade-all, --proxy-mode, --ipvs-scheduler";
    assert_eq!(warnings.iter().map(ToString::to_string).collect::<Vec<_>>(), [expected]);
}

#[test]
fn beside_a_file_some_flags_still_count() {
    let fields = "hostnameOverride: other\nlogging: {format: text, verbosity: 1, vmodule: [{filePattern: a, verbosity: 2}]}\n";
    let arguments = [
        "--hostname-override= Node-1 ",
        "--master=https://api:6443",
        "--v=4",
        "--vmodule=b=3,c=4",
        "--log-flush-frequency=1s",
    ];
    let (config, warnings) = Config::resolve(Some(&file(fields)), &flags(&arguments)).unwrap();
    assert_eq!(warnings, []);
    assert_eq!(config.hostname_override.as_deref(), Some("node-1"));
    assert_eq!(config.client.master.as_deref(), Some("https://api:6443"));
    assert_eq!(config.logging.verbosity, 4);
    let patterns: Vec<&str> = config.logging.vmodule.iter().map(|v| v.file_pattern.as_str()).collect();
    assert_eq!(patterns, ["b", "c", "a"]);
    assert_eq!(config.effective.get("logging.flushFrequency").unwrap().value, "1s");
    let (json, _) = Config::resolve(Some(&file("")), &flags(&["--logging-format=json"])).unwrap();
    assert_eq!(json.logging.format, LogFormat::Json);
}

#[test]
fn an_empty_hostname_flag_does_not_override_the_file() {
    let (config, _) =
        Config::resolve(Some(&file("hostnameOverride: a")), &flags(&["--hostname-override="])).unwrap();
    assert_eq!(config.hostname_override.as_deref(), Some("a"));
}

#[test]
fn chainsmiths_flags_override_the_file() {
    let fields = "chainsmith: {manifests: [/a, /b], iptablesBackend: nft, layout: classic, auditPeriod: 1m, connectionMetrics: service, debugBindAddress: 127.0.0.1:1}";
    let (config, warnings) = Config::resolve(Some(&file(fields)), &Flags::default()).unwrap();
    let warnings: Vec<String> = warnings.iter().map(ToString::to_string).collect();
    assert_eq!(warnings, ["chainsmith.debugBindAddress: has no effect yet"]);
    assert_eq!(config.manifests, [PathBuf::from("/a"), PathBuf::from("/b")]);
    assert_eq!((config.backend, config.layout), (BackendChoice::Nft, LayoutChoice::Classic));
    assert_eq!(config.audit_period, Duration::from_secs(60));
    assert_eq!(config.connection_metrics, ConnectionMetrics::Service);
    assert_eq!(config.debug_bind_address, Some("127.0.0.1:1".parse().unwrap()));
    let arguments = [
        "--manifests=/c,d",
        "--manifests",
        "/e",
        "--iptables-backend=legacy",
        "--layout=compact",
        "--audit-period=2m",
        "--connection-metrics=endpoint",
        "--debug-bind-address=[::1]:2",
    ];
    let (config, warnings) = Config::resolve(Some(&file(fields)), &flags(&arguments)).unwrap();
    let warnings: Vec<String> = warnings.iter().map(ToString::to_string).collect();
    assert_eq!(warnings, ["--debug-bind-address: has no effect yet"]);
    assert_eq!(config.manifests, [PathBuf::from("/c,d"), PathBuf::from("/e")]);
    assert_eq!((config.backend, config.layout), (BackendChoice::Legacy, LayoutChoice::Compact));
    assert_eq!(config.audit_period, Duration::from_secs(120));
    assert_eq!(config.connection_metrics, ConnectionMetrics::Endpoint);
    assert_eq!(config.debug_bind_address, Some("[::1]:2".parse().unwrap()));
}

#[test]
fn every_setting_has_its_origin() {
    let fields = "iptables: {masqueradeAll: false, minSyncPeriod: 0s}\nhostnameOverride: a\n";
    let flags = flags(&["--hostname-override=b", "--layout=compact"]);
    let (config, _) = Config::resolve(Some(&file(fields)), &flags).unwrap();
    let get = |path: &str| {
        let setting = config.effective.get(path).unwrap();
        (setting.value.to_string(), setting.set_by.to_string())
    };
    let check = |path, value: &str, origin: &str| {
        assert_eq!(get(path), (value.to_owned(), origin.to_owned()), "{path}");
    };
    check("iptables.masqueradeAll", "false", "file");
    check("iptables.minSyncPeriod", "\"1s\"", "default");
    check("iptables.masqueradeBit", "14", "default");
    check("hostnameOverride", "\"b\"", "flag --hostname-override");
    check("chainsmith.layout", "\"compact\"", "flag --layout");
    check("mode", "\"iptables\"", "default");
}

#[test]
fn a_configuration_is_written_without_the_deprecated_ports() {
    let arguments = [
        "--write-config-to=/x",
        "--healthz-port=0",
        "--metrics-port=1",
        "--healthz-bind-address=10.0.0.1:80",
    ];
    let (config, _) = Config::resolve(None, &flags(&arguments)).unwrap();
    let written = |path| config.effective.get(path).unwrap().value.clone();
    assert_eq!(written("healthzBindAddress"), "10.0.0.1:80");
    assert_eq!(written("metricsBindAddress"), "127.0.0.1:10249");
    // Without it they count.
    let (config, _) = Config::resolve(None, &flags(&["--healthz-port=0"])).unwrap();
    assert_eq!(config.healthz_bind_address, None);
}
