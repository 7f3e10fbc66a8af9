//! `KubeProxyConfiguration` v1alpha1 as kube-proxy declares it, field by field: the form in which
//! file and flags meet before they are checked, and which `/configz` and `--write-config-to` show.
//!
//! The order of the fields is the order of `/configz`. Source: kube-proxy v1.36,
//! `staging/src/k8s.io/kube-proxy/config/v1alpha1/types.go` and its `defaults.go`.

use std::collections::BTreeMap;

use serde::{Serialize, Serializer};

use super::duration::GoDuration;
use super::file::Fields;
use super::logging::LoggingFields;
use super::origin::Origins;

/// The only `apiVersion`.
pub const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";
/// The only `kind`.
pub const KIND: &str = "KubeProxyConfiguration";

pub(super) const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
pub(super) const JSON: &str = "application/json";

/// The document; every field has the name and the type that it has in the file, and those that can
/// be `null` there are options here.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "spec: kube-proxy's own documentation of v1alpha1")]
pub struct KubeProxyConfiguration {
    pub kind: String,
    pub api_version: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub feature_gates: BTreeMap<String, bool>,
    pub client_connection: ClientConnection,
    pub logging: LoggingFields,
    pub hostname_override: String,
    pub bind_address: String,
    pub healthz_bind_address: String,
    pub metrics_bind_address: String,
    pub bind_address_hard_fail: bool,
    pub enable_profiling: bool,
    pub show_hidden_metrics_for_version: String,
    pub mode: String,
    pub iptables: Iptables,
    pub ipvs: Ipvs,
    pub nftables: Nftables,
    pub winkernel: Winkernel,
    pub detect_local_mode: String,
    pub detect_local: DetectLocalFields,
    #[serde(rename = "clusterCIDR")]
    pub cluster_cidr: String,
    #[serde(serialize_with = "null_if_empty")]
    pub node_port_addresses: Vec<String>,
    pub oom_score_adj: Option<i32>,
    pub conntrack: ConntrackFields,
    pub config_sync_period: GoDuration,
    pub port_range: String,
    #[serde(skip)]
    pub windows_run_as_service: bool,
}

/// `clientConnection`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "as above")]
pub struct ClientConnection {
    pub kubeconfig: String,
    pub accept_content_types: String,
    pub content_type: String,
    #[serde(serialize_with = "whole_if_whole")]
    pub qps: f32,
    pub burst: i32,
}

/// `iptables`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "as above")]
pub struct Iptables {
    pub masquerade_bit: Option<i32>,
    pub masquerade_all: bool,
    pub localhost_node_ports: Option<bool>,
    pub sync_period: GoDuration,
    pub min_sync_period: GoDuration,
}

/// `ipvs`: accepted, means nothing here.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "as above")]
pub struct Ipvs {
    pub sync_period: GoDuration,
    pub min_sync_period: GoDuration,
    pub scheduler: String,
    #[serde(rename = "excludeCIDRs", serialize_with = "null_if_empty")]
    pub exclude_cidrs: Vec<String>,
    #[serde(rename = "strictARP")]
    pub strict_arp: bool,
    pub tcp_timeout: GoDuration,
    pub tcp_fin_timeout: GoDuration,
    pub udp_timeout: GoDuration,
}

/// `nftables`: accepted, means nothing here.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "as above")]
pub struct Nftables {
    pub masquerade_bit: Option<i32>,
    pub masquerade_all: bool,
    pub sync_period: GoDuration,
    pub min_sync_period: GoDuration,
}

/// `winkernel`: accepted, means nothing here.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "as above")]
pub struct Winkernel {
    pub network_name: String,
    pub source_vip: String,
    #[serde(rename = "enableDSR")]
    pub enable_dsr: bool,
    pub root_hns_endpoint_name: String,
    pub forward_health_check_vip: bool,
}

/// `detectLocal`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "as above")]
pub struct DetectLocalFields {
    pub bridge_interface: String,
    pub interface_name_prefix: String,
}

/// `conntrack`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "as above")]
pub struct ConntrackFields {
    pub max_per_core: Option<i32>,
    pub min: Option<i32>,
    pub tcp_established_timeout: Option<GoDuration>,
    pub tcp_close_wait_timeout: Option<GoDuration>,
    pub tcp_be_liberal: bool,
    pub udp_timeout: GoDuration,
    pub udp_stream_timeout: GoDuration,
}

/// Go shows a list that was never set as `null`.
fn null_if_empty<S: Serializer>(list: &Vec<String>, serializer: S) -> Result<S::Ok, S::Error> {
    if list.is_empty() { serializer.serialize_none() } else { serializer.collect_seq(list) }
}

/// Go shows the float 5 as `5`.
fn whole_if_whole<S: Serializer>(value: &f32, serializer: S) -> Result<S::Ok, S::Error> {
    if value.fract() == 0.0 && value.abs() < 1e15 {
        serializer.serialize_i64(*value as i64)
    } else {
        serializer.serialize_f32(*value)
    }
}

impl KubeProxyConfiguration {
    /// Takes every field of v1alpha1 out of `fields` except `apiVersion` and `kind`.
    pub(super) fn read(&mut self, fields: &mut Fields<'_>) {
        fields.value("featureGates", &mut self.feature_gates);
        fields.section("clientConnection", |fields| self.client_connection.read(fields));
        fields.section("logging", |fields| self.logging.read(fields));
        fields.value("hostnameOverride", &mut self.hostname_override);
        fields.value("bindAddress", &mut self.bind_address);
        fields.value("healthzBindAddress", &mut self.healthz_bind_address);
        fields.value("metricsBindAddress", &mut self.metrics_bind_address);
        fields.value("bindAddressHardFail", &mut self.bind_address_hard_fail);
        fields.value("enableProfiling", &mut self.enable_profiling);
        fields.value("showHiddenMetricsForVersion", &mut self.show_hidden_metrics_for_version);
        fields.value("mode", &mut self.mode);
        fields.section("iptables", |fields| self.iptables.read(fields));
        fields.section("ipvs", |fields| self.ipvs.read(fields));
        fields.section("nftables", |fields| self.nftables.read(fields));
        fields.section("winkernel", |fields| self.winkernel.read(fields));
        fields.value("detectLocalMode", &mut self.detect_local_mode);
        fields.section("detectLocal", |fields| {
            fields.value("bridgeInterface", &mut self.detect_local.bridge_interface);
            fields.value("interfaceNamePrefix", &mut self.detect_local.interface_name_prefix);
        });
        fields.value("clusterCIDR", &mut self.cluster_cidr);
        fields.value("nodePortAddresses", &mut self.node_port_addresses);
        fields.value("oomScoreAdj", &mut self.oom_score_adj);
        fields.section("conntrack", |fields| self.conntrack.read(fields));
        fields.value("configSyncPeriod", &mut self.config_sync_period);
        fields.value("portRange", &mut self.port_range);
        fields.value("windowsRunAsService", &mut self.windows_run_as_service);
    }

    /// Puts kube-proxy's defaults where nothing (or, for most fields, zero) was set.
    pub(super) fn fill_defaults(&mut self, origins: &mut Origins) {
        self.kind = KIND.to_owned();
        self.api_version = API_VERSION.to_owned();
        let mut fill = Fill(origins);
        fill.value("bindAddress", &mut self.bind_address, "0.0.0.0".to_owned());
        // An address that cannot be read counts as IPv6 here, as in kube-proxy.
        let is_v4 = crate::net::parse_ip(&self.bind_address).is_ok_and(|ip| ip.is_ipv4());
        let (any, loopback) = if is_v4 { ("0.0.0.0", "127.0.0.1") } else { ("[::]", "[::1]") };
        fill.value("healthzBindAddress", &mut self.healthz_bind_address, format!("{any}:{HEALTHZ_PORT}"));
        fill.value(
            "metricsBindAddress",
            &mut self.metrics_bind_address,
            format!("{loopback}:{METRICS_PORT}"),
        );
        with_port(&mut self.healthz_bind_address, HEALTHZ_PORT);
        with_port(&mut self.metrics_bind_address, METRICS_PORT);
        fill.value("oomScoreAdj", &mut self.oom_score_adj, Some(-999));
        fill.value("configSyncPeriod", &mut self.config_sync_period, GoDuration::from_secs(900));
        fill.value("nftables.masqueradeBit", &mut self.nftables.masquerade_bit, Some(14));

        let client = &mut self.client_connection;
        fill.value("clientConnection.contentType", &mut client.content_type, PROTOBUF.to_owned());
        fill.value("clientConnection.qps", &mut client.qps, 5.0);
        fill.value("clientConnection.burst", &mut client.burst, 10);

        let iptables = &mut self.iptables;
        fill.value("iptables.masqueradeBit", &mut iptables.masquerade_bit, Some(14));
        fill.value("iptables.localhostNodePorts", &mut iptables.localhost_node_ports, Some(true));
        fill.value("iptables.syncPeriod", &mut iptables.sync_period, GoDuration::from_secs(30));
        fill.value("iptables.minSyncPeriod", &mut iptables.min_sync_period, GoDuration::from_secs(1));

        let conntrack = &mut self.conntrack;
        fill.value("conntrack.maxPerCore", &mut conntrack.max_per_core, Some(32_768));
        fill.value("conntrack.min", &mut conntrack.min, Some(131_072));
        let (day, hour) = (GoDuration::from_secs(86_400), GoDuration::from_secs(3_600));
        fill.value("conntrack.tcpEstablishedTimeout", &mut conntrack.tcp_established_timeout, Some(day));
        fill.value("conntrack.tcpCloseWaitTimeout", &mut conntrack.tcp_close_wait_timeout, Some(hour));

        self.logging.fill_defaults(&mut fill);
        self.fill_modes(origins);
    }

    /// Puts the two modes where none was set; flags may have unset them again.
    pub(super) fn fill_modes(&mut self, origins: &mut Origins) {
        let mut fill = Fill(origins);
        fill.value("mode", &mut self.mode, "iptables".to_owned());
        fill.value("detectLocalMode", &mut self.detect_local_mode, "ClusterCIDR".to_owned());
    }

    /// The fields that are set although they mean nothing in iptables mode, by their paths.
    pub(super) fn without_meaning(&self) -> Vec<&'static str> {
        let (ipvs, nftables, winkernel) = (&self.ipvs, &self.nftables, &self.winkernel);
        let zero = GoDuration::ZERO;
        let set = [
            ("ipvs.syncPeriod", ipvs.sync_period != zero),
            ("ipvs.minSyncPeriod", ipvs.min_sync_period != zero),
            ("ipvs.scheduler", !ipvs.scheduler.is_empty()),
            ("ipvs.excludeCIDRs", !ipvs.exclude_cidrs.is_empty()),
            ("ipvs.strictARP", ipvs.strict_arp),
            ("ipvs.tcpTimeout", ipvs.tcp_timeout != zero),
            ("ipvs.tcpFinTimeout", ipvs.tcp_fin_timeout != zero),
            ("ipvs.udpTimeout", ipvs.udp_timeout != zero),
            ("nftables.masqueradeBit", ![None, Some(14)].contains(&nftables.masquerade_bit)),
            ("nftables.masqueradeAll", nftables.masquerade_all),
            ("nftables.syncPeriod", nftables.sync_period != zero),
            ("nftables.minSyncPeriod", nftables.min_sync_period != zero),
            ("winkernel.networkName", !winkernel.network_name.is_empty()),
            ("winkernel.sourceVip", !winkernel.source_vip.is_empty()),
            ("winkernel.enableDSR", winkernel.enable_dsr),
            ("winkernel.rootHnsEndpointName", !winkernel.root_hns_endpoint_name.is_empty()),
            ("winkernel.forwardHealthCheckVip", winkernel.forward_health_check_vip),
            ("portRange", !self.port_range.is_empty()),
            ("windowsRunAsService", self.windows_run_as_service),
        ];
        set.into_iter().filter(|(_, is_set)| *is_set).map(|(path, _)| path).collect()
    }

    /// Loses what kube-proxy's own conversion loses: the sync periods of other modes, `portRange`,
    /// `masqueradeAll` of nftables.
    pub(super) fn drop_other_modes(&mut self) {
        self.ipvs.sync_period = GoDuration::ZERO;
        self.ipvs.min_sync_period = GoDuration::ZERO;
        self.nftables.sync_period = GoDuration::ZERO;
        self.nftables.min_sync_period = GoDuration::ZERO;
        self.nftables.masquerade_all = false;
        self.port_range.clear();
    }
}

/// Port of the health server.
const HEALTHZ_PORT: u16 = 10256;
/// Port of the metrics server.
const METRICS_PORT: u16 = 10249;

/// Makes `<ip>` `<ip>:<port>`; what is no bare address stays. Source: `AppendPortIfNeeded`.
pub(super) fn with_port(address: &mut String, port: u16) {
    match crate::net::parse_ip(address) {
        Ok(_) if address.contains(':') => *address = format!("[{address}]:{port}"),
        Ok(_) => *address = format!("{address}:{port}"),
        Err(_) => {}
    }
}

/// Fills defaults in, and keeps the origins right.
pub(super) struct Fill<'a>(&'a mut Origins);

impl Fill<'_> {
    /// Sets `field` to `default` when it is zero, empty or unset.
    pub(super) fn value<T: Default + PartialEq>(&mut self, path: &'static str, field: &mut T, default: T) {
        if *field == T::default() {
            *field = default;
            self.0.forget(path);
        }
    }
}

impl ClientConnection {
    fn read(&mut self, fields: &mut Fields<'_>) {
        fields.value("kubeconfig", &mut self.kubeconfig);
        fields.value("acceptContentTypes", &mut self.accept_content_types);
        fields.value("contentType", &mut self.content_type);
        fields.value("qps", &mut self.qps);
        fields.value("burst", &mut self.burst);
    }
}

impl Iptables {
    fn read(&mut self, fields: &mut Fields<'_>) {
        fields.value("masqueradeBit", &mut self.masquerade_bit);
        fields.value("masqueradeAll", &mut self.masquerade_all);
        fields.value("localhostNodePorts", &mut self.localhost_node_ports);
        fields.value("syncPeriod", &mut self.sync_period);
        fields.value("minSyncPeriod", &mut self.min_sync_period);
    }
}

impl Ipvs {
    fn read(&mut self, fields: &mut Fields<'_>) {
        fields.value("syncPeriod", &mut self.sync_period);
        fields.value("minSyncPeriod", &mut self.min_sync_period);
        fields.value("scheduler", &mut self.scheduler);
        fields.value("excludeCIDRs", &mut self.exclude_cidrs);
        fields.value("strictARP", &mut self.strict_arp);
        fields.value("tcpTimeout", &mut self.tcp_timeout);
        fields.value("tcpFinTimeout", &mut self.tcp_fin_timeout);
        fields.value("udpTimeout", &mut self.udp_timeout);
    }
}

impl Nftables {
    fn read(&mut self, fields: &mut Fields<'_>) {
        fields.value("masqueradeBit", &mut self.masquerade_bit);
        fields.value("masqueradeAll", &mut self.masquerade_all);
        fields.value("syncPeriod", &mut self.sync_period);
        fields.value("minSyncPeriod", &mut self.min_sync_period);
    }
}

impl Winkernel {
    fn read(&mut self, fields: &mut Fields<'_>) {
        fields.value("networkName", &mut self.network_name);
        fields.value("sourceVip", &mut self.source_vip);
        fields.value("enableDSR", &mut self.enable_dsr);
        fields.value("rootHnsEndpointName", &mut self.root_hns_endpoint_name);
        fields.value("forwardHealthCheckVip", &mut self.forward_health_check_vip);
    }
}

impl ConntrackFields {
    fn read(&mut self, fields: &mut Fields<'_>) {
        fields.value("maxPerCore", &mut self.max_per_core);
        fields.value("min", &mut self.min);
        fields.value("tcpEstablishedTimeout", &mut self.tcp_established_timeout);
        fields.value("tcpCloseWaitTimeout", &mut self.tcp_close_wait_timeout);
        fields.value("tcpBeLiberal", &mut self.tcp_be_liberal);
        fields.value("udpTimeout", &mut self.udp_timeout);
        fields.value("udpStreamTimeout", &mut self.udp_stream_timeout);
    }
}
