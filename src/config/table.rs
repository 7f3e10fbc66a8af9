//! The table of settings. Each row has a setting's path in the file, its flag, default, help text, type and
//! check, and stands where the value of its field in [`Config`] is made.
//!
//! To add a setting:
//! 1. Add a field to [`Config`] (`checked.rs`).
//! 2. Add its row here, among the settings of its section: rows stand in the order of `/configz`.
//!    `setting(path, default, help)` describes it, `.flag(name, value)` gives it a flag; a method of
//!    [`Setting`] says each thing that is unusual about it (`own`, `beside_file`, `for_render`, ...).
//!    [`Resolver::get`] reads it; [`Resolver::checked`] also applies a check of `check.rs`, or any function
//!    from its type to a `Result`. Its type is one of `setting_value.rs`.
//!
//! 3. A setting of `chainsmith:` also goes into README.md, and into `/configz` as `src/config/tests/shown.rs` expects it.
//!
//! The flag, `--help`, `/flagz`, `/configz`, `--write-config-to`, origins and error messages follow from the row.
//! Source: kube-proxy v1.36, `cmd/kube-proxy/app/options.go`, `staging/src/k8s.io/kube-proxy/config/v1alpha1`.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Duration;

use super::check;
use super::checked::{
    BackendChoice, Client, Config, ConnectionMetrics, Conntrack, DetectLocal, LayoutChoice, LogFormat,
    Logging, VModule,
};
use super::diagnostics::Diagnostics;
use super::duration::GoDuration;
use super::flags::Flags;
use super::gates::Gates;
use super::logging::{self, FlushFrequency, Quantity};
use super::resolver::Resolver;
use super::setting::{Setting, flag_only, other_mode, setting};
use super::setting_value::{Folders, OffOrWord};
use crate::net::{Cidr, parse_ip};

/// The socket of an agent that is not configured otherwise.
pub const DEFAULT_AGENT_SOCKET: &str = "@chainsmith";

/// Every setting, in the order of the table.
pub(super) static SETTINGS: LazyLock<Vec<Setting>> = LazyLock::new(|| {
    let no_flags = Flags::default();
    let mut resolver = Resolver::new(None, &no_flags, Diagnostics::default());
    read(&mut resolver);
    resolver.into_table()
});

/// Reads every setting into the checked configuration; errors are in `r`, and the result then means nothing.
pub(super) fn read(r: &mut Resolver<'_>) -> Config {
    process(r);
    let gates = r.get(
        setting("featureGates", "", "feature gates")
            .flag("feature-gates", "NAME=BOOL,...")
            .for_render()
            .omitted_if_default(),
    );
    let gates = Gates::new(&gates, r);
    let client = client(r);
    let logging = logging(r, gates.is_on("LoggingAlphaOptions"));
    let hostname_override = r.checked(
        setting("hostnameOverride", "", "name of the Node; empty: the host name")
            .flag("hostname-override", "NAME")
            .beside_file()
            .ignores_empty_flag()
            .for_render(),
        check::hostname,
    );
    let bind_address = r.checked(
        setting("bindAddress", "0.0.0.0", "IP of the Node; 0.0.0.0 or ::, from its object")
            .flag("bind-address", "IP")
            .ignores_empty_flag()
            .for_render(),
        check::address,
    );
    let (any, loopback) =
        if bind_address.is_ipv4() || !r.has_file() { ("0.0.0.0", "127.0.0.1") } else { ("[::]", "[::1]") };
    let healthz_bind_address = check::server_and_port(
        r,
        any,
        setting("healthzBindAddress", "0.0.0.0:10256", "address of the health server")
            .flag("healthz-bind-address", "IP[:PORT]"),
        flag_only("healthz-port", "PORT", "10256", "deprecated; 0: no health server")
            .deprecated("use --healthz-bind-address"),
    );
    let metrics_bind_address = check::server_and_port(
        r,
        loopback,
        setting("metricsBindAddress", "127.0.0.1:10249", "address of the metrics server")
            .flag("metrics-bind-address", "IP[:PORT]"),
        flag_only("metrics-port", "PORT", "10249", "deprecated; 0: no metrics server")
            .deprecated("use --metrics-bind-address"),
    );
    let bind_address_hard_fail = r.get(
        setting("bindAddressHardFail", "false", "exit if the health or metrics server cannot bind its port")
            .flag("bind-address-hard-fail", "BOOL"),
    );
    let enable_profiling = r.get(
        setting("enableProfiling", "false", "accepted; no profiles are served").flag("profiling", "BOOL"),
    );
    r.checked(
        setting("showHiddenMetricsForVersion", "", "the release before this one, or empty")
            .flag("show-hidden-metrics-for-version", "VERSION"),
        check::hidden_metrics,
    );
    r.checked(
        setting("mode", "iptables", "iptables, or empty")
            .flag("proxy-mode", "MODE")
            .flag_default("")
            .ignores_empty_flag()
            .for_render(),
        check::mode,
    );
    let mark = r.checked(
        setting("iptables.masqueradeBit", "14", "bit of the packet mark that asks for masquerading")
            .flag("iptables-masquerade-bit", "BIT")
            .nullable()
            .for_render(),
        check::mark,
    );
    let masquerade_all = r.get(
        setting("iptables.masqueradeAll", "false", "masquerade all traffic to cluster IPs")
            .flag("masquerade-all", "BOOL")
            .for_render(),
    );
    let localhost_node_ports = r.get(
        setting("iptables.localhostNodePorts", "true", "serve node ports on 127.0.0.1")
            .flag("iptables-localhost-nodeports", "BOOL")
            .nullable()
            .for_render(),
    );
    let (sync_period, min_sync_period) = sync_periods(r);
    let (ipvs_exclude_cidrs, winkernel_source_vip) = other_modes(r);
    let (detect_local, cluster_cidrs) = local_traffic(r);
    let node_port_addresses = r.get::<Vec<String>>(
        setting("nodePortAddresses", "[]", "networks whose node addresses serve node ports; empty: all")
            .flag("nodeport-addresses", "CIDR,...|primary")
            .for_render(),
    );
    let node_port_addresses = check::node_port_addresses(r, &node_port_addresses);
    let oom_score_adj = r.checked(
        setting("oomScoreAdj", "-999", "OOM score of the process: -1000 to 1000")
            .flag("oom-score-adj", "N")
            .nullable(),
        check::in_range(-1000, 1000),
    );
    let conntrack = conntrack(r);
    let config_sync_period = r.checked(
        setting("configSyncPeriod", "15m0s", "accepted; has no effect")
            .flag("config-sync-period", "DURATION"),
        check::positive,
    );
    r.get::<String>(other_mode("portRange", "").dropped());
    r.get::<bool>(other_mode("windowsRunAsService", "false").dropped().omitted_if_default());

    let Folders(manifests) = r.checked(
        setting("chainsmith.manifests", "[]", "folder of manifests to read instead of an API server")
            .flag("manifests", "DIR")
            .own(),
        check::folders,
    );
    let backends =
        [("auto", BackendChoice::Auto), ("nft", BackendChoice::Nft), ("legacy", BackendChoice::Legacy)];
    let backend = r.checked(
        setting("chainsmith.iptablesBackend", "auto", "iptables back-end; auto: the one in use")
            .flag("iptables-backend", "auto|nft|legacy")
            .own(),
        check::one_of(&backends),
    );
    let layouts = [
        ("auto", LayoutChoice::Auto),
        ("classic", LayoutChoice::Classic),
        ("compact", LayoutChoice::Compact),
    ];
    let layout = r.checked(
        setting("chainsmith.layout", "auto", "layout of the rules; auto: by the number of endpoints")
            .flag("layout", "auto|classic|compact")
            .own()
            .for_render(),
        check::one_of(&layouts),
    );
    let audit_period: Duration = r.checked(
        setting("chainsmith.auditPeriod", "5m0s", "how often to compare the rules in force with the desired ones, unless no other process has written")
            .flag("audit-period", "DURATION")
            .own(),
        check::positive,
    );
    let audit_period = check::at_least_a_second(r, "chainsmith.auditPeriod", audit_period);
    let granularities = [
        ("off", ConnectionMetrics::Off),
        ("service", ConnectionMetrics::Service),
        ("endpoint", ConnectionMetrics::Endpoint),
    ];
    let connection_metrics = r.checked(
        setting(
            "chainsmith.connectionMetrics",
            "off",
            "new connections to count: none, of each service port, or also of each endpoint",
        )
        .flag("connection-metrics", "off|service|endpoint")
        .own(),
        |OffOrWord(word)| check::one_of(&granularities)(word),
    );
    let debug_bind_address: Option<SocketAddr> = r.checked(
        setting("chainsmith.debugBindAddress", "", "address of the debug server; has no effect yet")
            .flag("debug-bind-address", "IP:PORT")
            .own(),
        check::server,
    );
    if debug_bind_address.is_some() {
        r.warn("chainsmith.debugBindAddress", "has no effect yet");
    }
    let agent_socket = r.checked(
        setting(
            "chainsmith.agentSocket",
            DEFAULT_AGENT_SOCKET,
            "Unix socket that answers root's questions: @NAME or /PATH; empty: none",
        )
        .flag("agent-socket", "ADDRESS")
        .own(),
        check::unix_socket,
    );
    Config {
        hostname_override,
        bind_address: Some(bind_address).filter(|ip| !ip.is_unspecified()),
        cluster_cidrs,
        detect_local,
        node_port_addresses,
        mark,
        masquerade_all,
        localhost_node_ports,
        sync_period,
        min_sync_period,
        allow_external_ips: gates.is_on("AllowServiceExternalIPs"),
        conntrack,
        client,
        healthz_bind_address,
        metrics_bind_address,
        bind_address_hard_fail,
        oom_score_adj,
        config_sync_period,
        enable_profiling,
        gates,
        logging,
        ipvs_exclude_cidrs,
        winkernel_source_vip,
        manifests,
        backend,
        layout,
        audit_period,
        connection_metrics,
        debug_bind_address,
        agent_socket,
        effective: r.take_effective(),
    }
}

/// The flags that decide what the process does; `cli` reads them with [`Flags`].
fn process(r: &mut Resolver<'_>) {
    r.declare::<String>(
        flag_only("config", "FILE", "", "configuration file, a KubeProxyConfiguration")
            .beside_file()
            .for_render(),
    );
    r.declare::<String>(
        flag_only("write-config-to", "FILE", "", "write the effective configuration to FILE and exit")
            .beside_file(),
    );
    r.declare::<bool>(
        flag_only("cleanup", "BOOL", "false", "remove the leftovers of all modes and exit").beside_file(),
    );
    r.declare::<bool>(flag_only("init-only", "BOOL", "false", "set sysctls and exit").beside_file());
    let no_effect = |flag, default| flag_only(flag, "FILE", default, "has no effect").without_effect();
    r.get::<String>(no_effect("boot-id-file", "/proc/sys/kernel/random/boot_id"));
    r.get::<String>(no_effect("machine-id-file", "/etc/machine-id,/var/lib/dbus/machine-id"));
}

/// `clientConnection`, and `--master`.
fn client(r: &mut Resolver<'_>) -> Client {
    let master = r.checked(
        flag_only("master", "URL", "", "URL of the API server; overrides the kubeconfig").beside_file(),
        check::master,
    );
    let kubeconfig: String = r.get(
        setting("clientConnection.kubeconfig", "", "how to reach the API server; empty: as a pod")
            .flag("kubeconfig", "FILE"),
    );
    r.get::<String>(setting("clientConnection.acceptContentTypes", "", "accepted; JSON is used"));
    const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
    let content_type: String = r.get(
        setting("clientConnection.contentType", PROTOBUF, "accepted; JSON is used")
            .flag("kube-api-content-type", "TYPE"),
    );
    if ![PROTOBUF, "application/json"].contains(&&*content_type) {
        r.warn("clientConnection.contentType", "Chainsmith asks the API server for JSON");
    }
    let qps: f32 = r.get(
        setting("clientConnection.qps", "5", "requests to the API server each second; negative: no limit")
            .flag("kube-api-qps", "N"),
    );
    let burst = r.checked(
        setting("clientConnection.burst", "10", "requests to the API server at once")
            .flag("kube-api-burst", "N"),
        check::not_negative,
    );
    // A flag can give 0, which is client-go's default. Source: `k8s.io/client-go/rest`, v0.36.
    let qps = if qps == 0.0 { 5.0 } else { qps };
    Client {
        kubeconfig: Some(kubeconfig).filter(|path| !path.is_empty()).map(PathBuf::from),
        master,
        qps: Some(qps).filter(|qps| *qps > 0.0),
        burst: if burst == 0 { 10 } else { burst },
    }
}

/// `logging`; alpha options need `is_alpha` (gate `LoggingAlphaOptions`).
fn logging(r: &mut Resolver<'_>, is_alpha: bool) -> Logging {
    let format = r.checked(
        setting("logging.format", "text", "format of log lines")
            .flag("logging-format", "text|json")
            .beside_file(),
        check::one_of(&[("text", LogFormat::Text), ("json", LogFormat::Json)]),
    );
    r.checked(
        setting("logging.flushFrequency", "5s", "accepted; log lines are not buffered")
            .flag("log-flush-frequency", "DURATION")
            .beside_file(),
        |FlushFrequency(period)| check::positive(period),
    );
    let help =
        "log verbosity: 2 each sync, 4 changes of objects, 5 commands, 6 HTTP requests, 9 restore input";
    let verbosity = r.checked(
        setting("logging.verbosity", "0", help).flag("v", "LEVEL").beside_file(),
        check::in_range(0, i32::MAX as u32),
    );
    let vmodule: Vec<VModule> = r.get(
        setting("logging.vmodule", "", "higher log verbosity for source files, by name or module path")
            .flag("vmodule", "PATTERN=N,...")
            .beside_file()
            .omitted_if_default(),
    );
    logging::check_vmodule(r, &vmodule, format);
    let help = "accepted with the feature gate LoggingAlphaOptions; has no effect";
    let needs_gate = |is_set: bool| match is_set && !is_alpha {
        true => Err("needs the feature gate LoggingAlphaOptions".to_owned()),
        false => Ok(()),
    };
    let split_stream = |r: &mut Resolver<'_>, path, flag| {
        let row = setting(path, "false", help).flag(flag, "BOOL").beside_file().omitted_if_default();
        r.checked(row, needs_gate)
    };
    let buffer_size = |r: &mut Resolver<'_>, path, flag| {
        let row = setting(path, "0", help).flag(flag, "QUANTITY").beside_file();
        r.checked(row, |size: Quantity| needs_gate(!size.is_zero()))
    };
    split_stream(r, "logging.options.text.splitStream", "log-text-split-stream");
    buffer_size(r, "logging.options.text.infoBufferSize", "log-text-info-buffer-size");
    split_stream(r, "logging.options.json.splitStream", "log-json-split-stream");
    buffer_size(r, "logging.options.json.infoBufferSize", "log-json-info-buffer-size");
    Logging { format, verbosity, vmodule }
}

/// `iptables.syncPeriod` and `iptables.minSyncPeriod`.
fn sync_periods(r: &mut Resolver<'_>) -> (Duration, Duration) {
    let n_errors = r.n_errors();
    let path = "iptables.syncPeriod";
    let help = "longest retry delay; canary interval; health turns bad after twice this";
    let period =
        r.checked(setting(path, "30s", help).flag("iptables-sync-period", "DURATION"), check::positive);
    let min_period = r.checked(
        setting("iptables.minSyncPeriod", "1s", "shortest pause between two syncs")
            .flag("iptables-min-sync-period", "DURATION"),
        check::period,
    );
    if period < min_period && r.n_errors() == n_errors {
        let reason = format!("must be at least iptables.minSyncPeriod, {}", GoDuration::from(min_period));
        r.refuse(path, GoDuration::from(period), reason);
    }
    (check::at_least_a_second(r, path, period), min_period)
}

/// The sections of other modes. Only the networks and the address that warnings need are returned.
fn other_modes(r: &mut Resolver<'_>) -> (Vec<Cidr>, Option<IpAddr>) {
    let dropped = |path| other_mode(path, "0s").dropped();
    r.get::<GoDuration>(dropped("ipvs.syncPeriod").flag("ipvs-sync-period", "DURATION").flag_default("30s"));
    r.get::<GoDuration>(
        dropped("ipvs.minSyncPeriod").flag("ipvs-min-sync-period", "DURATION").flag_default("1s"),
    );
    r.get::<String>(other_mode("ipvs.scheduler", "").flag("ipvs-scheduler", "NAME"));
    let excluded: Vec<String> =
        r.get(other_mode("ipvs.excludeCIDRs", "[]").flag("ipvs-exclude-cidrs", "CIDR,..."));
    r.get::<bool>(other_mode("ipvs.strictARP", "false").flag("ipvs-strict-arp", "BOOL"));
    r.get::<GoDuration>(other_mode("ipvs.tcpTimeout", "0s").flag("ipvs-tcp-timeout", "DURATION"));
    r.get::<GoDuration>(other_mode("ipvs.tcpFinTimeout", "0s").flag("ipvs-tcpfin-timeout", "DURATION"));
    r.get::<GoDuration>(other_mode("ipvs.udpTimeout", "0s").flag("ipvs-udp-timeout", "DURATION"));

    r.get::<i32>(other_mode("nftables.masqueradeBit", "14").nullable());
    r.get::<bool>(other_mode("nftables.masqueradeAll", "false").dropped());
    r.get::<GoDuration>(dropped("nftables.syncPeriod"));
    r.get::<GoDuration>(dropped("nftables.minSyncPeriod"));

    r.get::<String>(other_mode("winkernel.networkName", ""));
    let source_vip: String = r.get(other_mode("winkernel.sourceVip", ""));
    r.get::<bool>(other_mode("winkernel.enableDSR", "false"));
    r.get::<String>(other_mode("winkernel.rootHnsEndpointName", ""));
    r.get::<bool>(other_mode("winkernel.forwardHealthCheckVip", "false"));
    (excluded.iter().filter_map(|text| Cidr::parse(text).ok()).collect(), parse_ip(&source_vip).ok())
}

/// `detectLocalMode`, `detectLocal` and `clusterCIDR`, of which the mode decides what counts.
fn local_traffic(r: &mut Resolver<'_>) -> (DetectLocal, Vec<Cidr>) {
    let modes = [
        ("ClusterCIDR", DetectLocal::ClusterCidr),
        ("NodeCIDR", DetectLocal::NodeCidr),
        ("BridgeInterface", DetectLocal::BridgeInterface(String::new())),
        ("InterfaceNamePrefix", DetectLocal::InterfaceNamePrefix(String::new())),
    ];
    let mode = r.checked(
        setting("detectLocalMode", "ClusterCIDR", "how traffic of local pods is recognised")
            .flag("detect-local-mode", "ClusterCIDR|NodeCIDR|BridgeInterface|InterfaceNamePrefix")
            .flag_default("")
            .ignores_empty_flag()
            .for_render(),
        check::one_of(&modes),
    );
    let bridge: String = r.get(
        setting("detectLocal.bridgeInterface", "", "the pods' bridge, for BridgeInterface")
            .flag("pod-bridge-interface", "NAME")
            .for_render(),
    );
    let prefix: String = r.get(
        setting("detectLocal.interfaceNamePrefix", "", "of the pods' interfaces, for InterfaceNamePrefix")
            .flag("pod-interface-name-prefix", "PREFIX")
            .for_render(),
    );
    let cidrs: String = r.get(
        setting("clusterCIDR", "", "networks of the pods, at most one CIDR a family")
            .flag("cluster-cidr", "CIDR[,CIDR]")
            .for_render(),
    );
    match mode {
        DetectLocal::ClusterCidr => (mode, check::cluster_cidrs(r, &cidrs)),
        DetectLocal::NodeCidr => (mode, Vec::new()),
        DetectLocal::BridgeInterface(_) => {
            check::interface(r, "detectLocal.bridgeInterface", &bridge, 15);
            (DetectLocal::BridgeInterface(bridge), Vec::new())
        }
        DetectLocal::InterfaceNamePrefix(_) => {
            // The rule has `<prefix>+`, and iptables counts the plus.
            check::interface(r, "detectLocal.interfaceNamePrefix", &prefix, 14);
            (DetectLocal::InterfaceNamePrefix(prefix), Vec::new())
        }
    }
}

/// `conntrack`.
fn conntrack(r: &mut Resolver<'_>) -> Conntrack {
    let max_per_core = r.checked(
        setting(
            "conntrack.maxPerCore",
            "32768",
            "conntrack entries for each CPU; 0: keep the kernel's limit",
        )
        .flag("conntrack-max-per-core", "N")
        .nullable(),
        check::not_negative,
    );
    Conntrack {
        max_per_core: Some(max_per_core).filter(|max| *max > 0),
        min: r.checked(
            setting("conntrack.min", "131072", "lower bound of conntrack entries")
                .flag("conntrack-min", "N")
                .nullable(),
            check::not_negative,
        ),
        tcp_established_timeout: r.checked(
            setting(
                "conntrack.tcpEstablishedTimeout",
                "24h0m0s",
                "timeout of established TCP; 0: keep the kernel's",
            )
            .flag("conntrack-tcp-timeout-established", "DURATION")
            .nullable(),
            check::timeout,
        ),
        tcp_close_wait_timeout: r.checked(
            setting(
                "conntrack.tcpCloseWaitTimeout",
                "1h0m0s",
                "timeout of TCP in CLOSE_WAIT; 0: keep the kernel's",
            )
            .flag("conntrack-tcp-timeout-close-wait", "DURATION")
            .nullable(),
            check::timeout,
        ),
        tcp_be_liberal: r.get(
            setting("conntrack.tcpBeLiberal", "false", "accept TCP packets outside the window")
                .flag("conntrack-tcp-be-liberal", "BOOL")
                .for_render(),
        ),
        udp_timeout: r.checked(
            setting("conntrack.udpTimeout", "0s", "timeout of UDP without an answer; 0: keep the kernel's")
                .flag("conntrack-udp-timeout", "DURATION"),
            check::timeout,
        ),
        udp_stream_timeout: r.checked(
            setting("conntrack.udpStreamTimeout", "0s", "timeout of UDP with answers; 0: keep the kernel's")
                .flag("conntrack-udp-timeout-stream", "DURATION"),
            check::timeout,
        ),
    }
}
