//! Which of file and flags counts (config.md 1), and the outcome as kube-proxy shows it.

use std::collections::BTreeMap;

use serde_json::{Value as Json, json};

use super::document::{KubeProxyConfiguration, with_port};
use super::duration::GoDuration;
use super::flags::{Flags, Scope};
use super::origin::{Origin, Origins, Report, Warning};
use super::settings::{Chainsmith, Folders};
use super::value::Value;
use super::{Config, ConfigErrors, file, validate};

/// The configuration as fields, after defaults and flags.
#[derive(Clone, Debug, PartialEq)]
pub struct Effective {
    /// kube-proxy's fields.
    pub document: KubeProxyConfiguration,
    /// Chainsmith's own.
    pub chainsmith: Chainsmith,
    /// Where each comes from.
    pub origins: Origins,
}

/// One setting, for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// `iptables.masqueradeBit`.
    pub path: String,
    /// As JSON.
    pub value: String,
    /// Where it comes from.
    pub origin: Origin,
}

impl Config {
    /// The checked configuration of `file` (the text of `--config`, when that was given) and
    /// `flags`, with what is to be said about it; or everything that is wrong with it.
    pub fn resolve(file: Option<&str>, flags: &Flags) -> Result<(Config, Vec<Warning>), ConfigErrors> {
        let mut report = Report::default();
        let (mut document, mut own) = match file {
            Some(text) => file::read(text, &mut report),
            None => Default::default(),
        };
        let without_meaning = document.without_meaning();
        report.warnings.extend(without_meaning.into_iter().map(|path| Warning::NoMeaning(path.to_owned())));
        document.fill_defaults(&mut report.origins);
        document.drop_other_modes();

        let mut given = Given { flags, report: &mut report };
        if file.is_none() {
            given.without_file(&mut document);
        } else {
            given.report_ignored();
        }
        let master = given.always(&mut document);
        given.own(&mut own);
        own.fill_defaults(&report.origins);

        let config = validate::check(&document, &own, master, &mut report);
        if !report.errors.is_empty() {
            return Err(ConfigErrors(report.errors));
        }
        raise("iptables.syncPeriod", &mut document.iptables.sync_period, &mut report);
        raise("chainsmith.auditPeriod", &mut own.audit_period, &mut report);
        let effective = Effective { document, chainsmith: own, origins: report.origins };
        let config = config.expect("checks that find nothing wrong give a configuration");
        Ok((config(effective), report.warnings))
    }
}

/// Raises a period that would leave the process no rest, as [`validate`] does with its value.
fn raise(path: &str, period: &mut GoDuration, report: &mut Report) {
    let shortest = GoDuration::from(validate::SHORTEST_PERIOD);
    if *period < shortest {
        report.note(path, format!("{period} is too short; raised to {shortest}"));
        *period = shortest;
    }
}

/// Flags on their way into the fields.
struct Given<'a> {
    flags: &'a Flags,
    report: &'a mut Report,
}

impl Given<'_> {
    /// Sets `field` if the flag was given; a wrong text is reported.
    fn value<T: Value>(&mut self, name: &'static str, path: &str, field: &mut T) {
        let texts = self.flags.texts(name);
        if texts.is_empty() {
            return;
        }
        let Some(value) = T::from_flag(texts) else {
            let reason = format!("must be {}", T::EXPECTED);
            return self.report.refuse_flag(name, texts, reason);
        };
        *field = value;
        self.report.origins.set(path, Origin::Flag(name));
    }

    /// The same for flags that change nothing when they are empty.
    fn unless_empty(&mut self, name: &'static str, path: &str, field: &mut String) {
        if self.flags.texts(name).last().is_some_and(|text| !text.is_empty()) {
            self.value(name, path, field);
        }
    }

    fn report_ignored(&mut self) {
        let ignored =
            self.flags.given().filter(|flag| matches!(flag.scope, Scope::WithoutFile | Scope::Nothing));
        let ignored: Vec<&'static str> = ignored.map(|flag| flag.name).collect();
        if !ignored.is_empty() {
            self.report.warnings.push(Warning::IgnoredFlags(ignored));
        }
    }

    /// The flags that count only when there is no file.
    fn without_file(&mut self, document: &mut KubeProxyConfiguration) {
        let d = document;
        self.unless_empty("bind-address", "bindAddress", &mut d.bind_address);
        self.value("bind-address-hard-fail", "bindAddressHardFail", &mut d.bind_address_hard_fail);
        self.value("cluster-cidr", "clusterCIDR", &mut d.cluster_cidr);
        self.value("config-sync-period", "configSyncPeriod", &mut d.config_sync_period);
        self.value("detect-local-mode", "detectLocalMode", &mut d.detect_local_mode);
        self.value("feature-gates", "featureGates", &mut d.feature_gates);
        self.value("nodeport-addresses", "nodePortAddresses", &mut d.node_port_addresses);
        self.value("oom-score-adj", "oomScoreAdj", &mut d.oom_score_adj);
        self.value("profiling", "enableProfiling", &mut d.enable_profiling);
        self.value("proxy-mode", "mode", &mut d.mode);
        let version = &mut d.show_hidden_metrics_for_version;
        self.value("show-hidden-metrics-for-version", "showHiddenMetricsForVersion", version);

        let c = &mut d.client_connection;
        self.value("kubeconfig", "clientConnection.kubeconfig", &mut c.kubeconfig);
        self.value("kube-api-content-type", "clientConnection.contentType", &mut c.content_type);
        self.value("kube-api-burst", "clientConnection.burst", &mut c.burst);
        self.value("kube-api-qps", "clientConnection.qps", &mut c.qps);

        let i = &mut d.iptables;
        self.value("iptables-masquerade-bit", "iptables.masqueradeBit", &mut i.masquerade_bit);
        self.value("masquerade-all", "iptables.masqueradeAll", &mut i.masquerade_all);
        self.value(
            "iptables-localhost-nodeports",
            "iptables.localhostNodePorts",
            &mut i.localhost_node_ports,
        );
        self.value("iptables-sync-period", "iptables.syncPeriod", &mut i.sync_period);
        self.value("iptables-min-sync-period", "iptables.minSyncPeriod", &mut i.min_sync_period);

        let l = &mut d.detect_local;
        self.value("pod-bridge-interface", "detectLocal.bridgeInterface", &mut l.bridge_interface);
        self.value(
            "pod-interface-name-prefix",
            "detectLocal.interfaceNamePrefix",
            &mut l.interface_name_prefix,
        );

        let c = &mut d.conntrack;
        self.value("conntrack-max-per-core", "conntrack.maxPerCore", &mut c.max_per_core);
        self.value("conntrack-min", "conntrack.min", &mut c.min);
        let established = &mut c.tcp_established_timeout;
        self.value("conntrack-tcp-timeout-established", "conntrack.tcpEstablishedTimeout", established);
        let close_wait = &mut c.tcp_close_wait_timeout;
        self.value("conntrack-tcp-timeout-close-wait", "conntrack.tcpCloseWaitTimeout", close_wait);
        self.value("conntrack-tcp-be-liberal", "conntrack.tcpBeLiberal", &mut c.tcp_be_liberal);
        self.value("conntrack-udp-timeout", "conntrack.udpTimeout", &mut c.udp_timeout);
        self.value("conntrack-udp-timeout-stream", "conntrack.udpStreamTimeout", &mut c.udp_stream_timeout);

        self.server("healthz", "healthzBindAddress", &mut d.healthz_bind_address);
        self.server("metrics", "metricsBindAddress", &mut d.metrics_bind_address);
        self.without_meaning(d);
        d.fill_modes(&mut self.report.origins);
    }

    /// `--<server>-bind-address` and the deprecated `--<server>-port` (config.md 5.3), for the field
    /// at `path`.
    fn server(&mut self, server: &str, path: &str, field: &mut String) {
        let (address_flag, port_flag, default) = match server {
            "healthz" => ("healthz-bind-address", "healthz-port", 10256),
            _ => ("metrics-bind-address", "metrics-port", 10249),
        };
        self.unless_empty(address_flag, path, field);
        let port = match self.flags.texts(port_flag) {
            // As kube-proxy, which writes the configuration before it comes to these flags.
            _ if self.flags.write_config_to().is_some() => Some(default),
            [] => Some(default),
            texts => {
                let note = format!("deprecated, use --{address_flag}");
                self.report.warnings.push(Warning::Note { place: format!("--{port_flag}"), note });
                i32::from_flag(texts)
            }
        };
        match port.map(u16::try_from) {
            Some(Ok(0)) => {
                field.clear();
                self.report.origins.set(path, Origin::Flag(port_flag));
            }
            Some(Ok(port)) => with_port(field, port),
            Some(Err(_)) | None => {
                let texts = self.flags.texts(port_flag);
                self.report.refuse_flag(port_flag, texts, "must be a port, 0 to 65535".to_owned());
            }
        }
    }

    /// The flags of other modes: read for their types, then dropped.
    fn without_meaning(&mut self, document: &mut KubeProxyConfiguration) {
        let mut unused = document.ipvs.clone();
        self.value("ipvs-sync-period", "ipvs.syncPeriod", &mut unused.sync_period);
        self.value("ipvs-min-sync-period", "ipvs.minSyncPeriod", &mut unused.min_sync_period);
        self.value("ipvs-scheduler", "ipvs.scheduler", &mut unused.scheduler);
        self.value("ipvs-exclude-cidrs", "ipvs.excludeCIDRs", &mut unused.exclude_cidrs);
        self.value("ipvs-strict-arp", "ipvs.strictARP", &mut unused.strict_arp);
        self.value("ipvs-tcp-timeout", "ipvs.tcpTimeout", &mut unused.tcp_timeout);
        self.value("ipvs-tcpfin-timeout", "ipvs.tcpFinTimeout", &mut unused.tcp_fin_timeout);
        self.value("ipvs-udp-timeout", "ipvs.udpTimeout", &mut unused.udp_timeout);
        document.ipvs = unused;
        document.drop_other_modes();
        for flag in self.flags.given().filter(|flag| flag.scope == Scope::Nothing) {
            self.report.warnings.push(Warning::NoMeaning(format!("--{}", flag.name)));
        }
    }

    /// The flags that count beside a file too. Gives `--master`, which has no field.
    fn always(&mut self, document: &mut KubeProxyConfiguration) -> Option<String> {
        self.unless_empty("hostname-override", "hostnameOverride", &mut document.hostname_override);
        let l = &mut document.logging;
        self.value("logging-format", "logging.format", &mut l.format);
        self.value("log-flush-frequency", "logging.flushFrequency", &mut l.flush_frequency);
        self.value("v", "logging.verbosity", &mut l.verbosity);
        let mut of_file = std::mem::take(&mut l.vmodule);
        self.value("vmodule", "logging.vmodule", &mut l.vmodule);
        l.vmodule.append(&mut of_file);
        let (text, json) = (&mut l.options.text, &mut l.options.json);
        self.value("log-text-split-stream", "logging.options.text.splitStream", &mut text.split_stream);
        let size = &mut text.info_buffer_size;
        self.value("log-text-info-buffer-size", "logging.options.text.infoBufferSize", size);
        self.value("log-json-split-stream", "logging.options.json.splitStream", &mut json.split_stream);
        let size = &mut json.info_buffer_size;
        self.value("log-json-info-buffer-size", "logging.options.json.infoBufferSize", size);

        let mut unused = false;
        self.value("cleanup", "--cleanup", &mut unused);
        self.value("init-only", "--init-only", &mut unused);
        let mut master = String::new();
        self.value("master", "--master", &mut master);
        (!master.is_empty()).then_some(master)
    }

    /// Chainsmith's own flags.
    fn own(&mut self, own: &mut Chainsmith) {
        let mut manifests = Folders(std::mem::take(&mut own.manifests));
        self.value("manifests", "chainsmith.manifests", &mut manifests);
        own.manifests = manifests.0;
        self.value("iptables-backend", "chainsmith.iptablesBackend", &mut own.iptables_backend);
        self.value("layout", "chainsmith.layout", &mut own.layout);
        self.value("audit-period", "chainsmith.auditPeriod", &mut own.audit_period);
        self.value("debug-bind-address", "chainsmith.debugBindAddress", &mut own.debug_bind_address);
    }
}

impl Effective {
    /// The body of `/configz`: kube-proxy's configuration under kube-proxy's name, byte for byte as
    /// kube-proxy prints it, and Chainsmith's own under `chainsmith`.
    pub fn configz(&self) -> String {
        let document = serde_json::to_string(&self.document).expect("fields have no form but JSON's");
        let own = serde_json::to_string(&self.chainsmith).expect("as above");
        format!("{{\"kubeproxy.config.k8s.io\":{document},\"chainsmith\":{own}}}")
    }

    /// The file of `--write-config-to`: YAML, keys sorted, read back as the same configuration.
    pub fn to_file(&self) -> String {
        let mut json = self.json();
        json["kind"] = json!(self.document.kind);
        json["apiVersion"] = json!(self.document.api_version);
        serde_saphyr::to_string(&sorted(json)).expect("JSON is YAML")
    }

    /// Every setting with its origin, by path.
    pub fn settings(&self) -> Vec<Setting> {
        let mut settings = Vec::new();
        let json = sorted(self.json());
        flatten("", &json, &mut |path, value| {
            let origin = self.origins.of(path);
            settings.push(Setting { path: path.to_owned(), value: value.to_string(), origin });
        });
        settings
    }

    fn json(&self) -> Json {
        let mut json = serde_json::to_value(&self.document).expect("fields have no form but JSON's");
        json["chainsmith"] = serde_json::to_value(&self.chainsmith).expect("as above");
        json
    }
}

fn sorted(json: Json) -> Json {
    match json {
        Json::Object(entries) => {
            let entries: BTreeMap<String, Json> = entries.into_iter().map(|(k, v)| (k, sorted(v))).collect();
            Json::Object(entries.into_iter().collect())
        }
        other => other,
    }
}

fn flatten(path: &str, json: &Json, each: &mut dyn FnMut(&str, &Json)) {
    match json {
        Json::Object(entries) => {
            for (key, value) in entries {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                flatten(&path, value, each);
            }
        }
        value => each(path, value),
    }
}
