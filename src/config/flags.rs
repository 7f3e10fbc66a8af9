//! The command line of the agent: one table of every flag, and the texts that were given for them.
//!
//! Values are read in [`super::Config::resolve`], so that every wrong flag is reported at once and a
//! flag and its field of the file are checked by the same code. The syntax is pflag's: a boolean
//! takes no separate argument (`--masquerade-all=false`), a list is comma separated or repeated.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;

use clap::{Arg, ArgAction, ArgMatches, Command};

/// When a flag counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Chainsmith's own: always, and it wins over the file.
    Own,
    /// kube-proxy's: also beside `--config`.
    Always,
    /// kube-proxy's: ignored when `--config` is given.
    WithoutFile,
    /// Accepted; means nothing in iptables mode.
    Nothing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// `--name` or `--name=BOOL`.
    Switch,
    /// `--name VALUE`, what VALUE is.
    One(&'static str),
    /// The same, may be repeated.
    Many(&'static str),
}

/// One flag.
#[derive(Clone, Copy, Debug)]
pub struct Flag {
    /// Without `--`.
    pub name: &'static str,
    /// As `/flagz` shows the default.
    pub default: &'static str,
    /// When it counts.
    pub scope: Scope,
    kind: Kind,
    shapes_rules: bool,
    help: &'static str,
}

const fn flag(name: &'static str, kind: Kind, default: &'static str, help: &'static str) -> Flag {
    Flag { name, default, scope: Scope::WithoutFile, kind, shapes_rules: false, help }
}

impl Flag {
    /// `render` takes it too.
    const fn rules(self) -> Flag {
        Flag { shapes_rules: true, ..self }
    }

    const fn scope(self, scope: Scope) -> Flag {
        Flag { scope, ..self }
    }

    fn arg(&self) -> Arg {
        let arg = Arg::new(self.name).long(self.name).help(self.help).action(ArgAction::Append);
        let arg = match self.kind {
            Kind::Switch => arg.num_args(0..=1).require_equals(true).default_missing_value("true"),
            Kind::One(what) | Kind::Many(what) => arg.num_args(1).allow_hyphen_values(true).value_name(what),
        };
        let arg = match self.kind {
            Kind::Switch => arg.value_name("BOOL"),
            Kind::One(_) | Kind::Many(_) => arg,
        };
        let arg = if self.name == "v" { arg.short('v') } else { arg };
        match self.scope {
            Scope::Own => arg.help_heading("Chainsmith"),
            Scope::Always => arg.help_heading("kube-proxy"),
            Scope::WithoutFile => arg.help_heading("kube-proxy, ignored when --config is given"),
            Scope::Nothing => arg.help_heading("kube-proxy, without meaning here").hide_short_help(true),
        }
    }
}

use Kind::{Many, One, Switch};
use Scope::{Always, Nothing, Own};

/// Every flag, by name within its scope. Source: kube-proxy v1.36, `cmd/kube-proxy/app/options.go`.
pub const FLAGS: &[Flag] = &[
    flag("audit-period", One("DURATION"), "5m0s", "compare the kernel with what was written this often")
        .scope(Own),
    flag("debug-bind-address", One("IP:PORT"), "", "has no effect yet").scope(Own),
    flag("iptables-backend", One("auto|nft|legacy"), "auto", "the iptables back-end").scope(Own),
    flag("layout", One("auto|classic|compact"), "auto", "the layout of the rules").scope(Own).rules(),
    flag("manifests", Many("DIR"), "[]", "take objects from the manifests in DIR instead of an API server")
        .scope(Own),
    //
    flag("cleanup", Switch, "false", "remove the rules of all modes, and exit").scope(Always),
    flag("config", One("FILE"), "", "a KubeProxyConfiguration").scope(Always).rules(),
    flag("hostname-override", One("NAME"), "", "the Node's name; empty: the host name").scope(Always).rules(),
    flag("init-only", Switch, "false", "do what needs full privileges, and exit").scope(Always),
    flag("log-flush-frequency", One("DURATION"), "5s", "accepted; nothing is held back").scope(Always),
    flag("log-json-info-buffer-size", One("QUANTITY"), "0", "needs the gate LoggingAlphaOptions")
        .scope(Always),
    flag("log-json-split-stream", Switch, "false", "needs the gate LoggingAlphaOptions").scope(Always),
    flag("log-text-info-buffer-size", One("QUANTITY"), "0", "needs the gate LoggingAlphaOptions")
        .scope(Always),
    flag("log-text-split-stream", Switch, "false", "needs the gate LoggingAlphaOptions").scope(Always),
    flag("logging-format", One("text|json"), "text", "the form of log lines").scope(Always),
    flag("master", One("URL"), "", "the API server, instead of the kubeconfig's").scope(Always),
    flag(
        "v",
        One("LEVEL"),
        "0",
        "log verbosity: 2 each sync, 4 changes of objects, 5 commands, 6 HTTP requests, 9 restore input",
    )
    .scope(Always),
    flag(
        "vmodule",
        Many("PATTERN=N,..."),
        "",
        "higher log verbosity for source files, by name or module path",
    )
    .scope(Always),
    flag("write-config-to", One("FILE"), "", "write the effective configuration to FILE, and exit")
        .scope(Always),
    //
    flag("bind-address", One("IP"), "0.0.0.0", "the Node's address; 0.0.0.0 or ::, take it from the Node")
        .rules(),
    flag("bind-address-hard-fail", Switch, "false", "exit when a server cannot bind its port"),
    flag("cluster-cidr", One("CIDR[,CIDR]"), "", "addresses of the pods, at most one CIDR a family").rules(),
    flag("config-sync-period", One("DURATION"), "15m0s", "accepted"),
    flag(
        "conntrack-max-per-core",
        One("N"),
        "32768",
        "conntrack entries for each CPU; 0: leave the kernel's",
    ),
    flag("conntrack-min", One("N"), "131072", "conntrack entries at least"),
    flag("conntrack-tcp-be-liberal", Switch, "false", "accept TCP packets outside the window").rules(),
    flag("conntrack-tcp-timeout-close-wait", One("DURATION"), "1h0m0s", "0: leave the kernel's"),
    flag("conntrack-tcp-timeout-established", One("DURATION"), "24h0m0s", "0: leave the kernel's"),
    flag("conntrack-udp-timeout", One("DURATION"), "0s", "0: leave the kernel's"),
    flag("conntrack-udp-timeout-stream", One("DURATION"), "0s", "0: leave the kernel's"),
    flag(
        "detect-local-mode",
        One("MODE"),
        "",
        "ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix",
    )
    .rules(),
    flag("feature-gates", Many("NAME=BOOL,..."), "", "feature gates").rules(),
    flag("healthz-bind-address", One("IP[:PORT]"), "0.0.0.0:10256", "the health server"),
    flag("healthz-port", One("PORT"), "10256", "deprecated; 0: no health server"),
    flag("iptables-localhost-nodeports", Switch, "true", "node ports on 127.0.0.1").rules(),
    flag(
        "iptables-masquerade-bit",
        One("BIT"),
        "14",
        "the bit of the packet mark that asks for masquerading",
    )
    .rules(),
    flag("iptables-min-sync-period", One("DURATION"), "1s", "from the end of one sync to the next, at least"),
    flag("iptables-sync-period", One("DURATION"), "30s", "how often the rest is checked"),
    flag("kube-api-burst", One("N"), "10", "requests to the API server at once"),
    flag(
        "kube-api-content-type",
        One("TYPE"),
        "application/vnd.kubernetes.protobuf",
        "accepted; JSON is used",
    ),
    flag("kube-api-qps", One("N"), "5", "requests to the API server each second"),
    flag("kubeconfig", One("FILE"), "", "how to reach the API server; empty: as a pod"),
    flag("masquerade-all", Switch, "false", "masquerade everything sent to cluster IPs").rules(),
    flag("metrics-bind-address", One("IP[:PORT]"), "127.0.0.1:10249", "the metrics server"),
    flag("metrics-port", One("PORT"), "10249", "deprecated; 0: no metrics server"),
    flag("nodeport-addresses", Many("CIDR,...|primary"), "[]", "addresses that serve node ports; empty: all")
        .rules(),
    flag("oom-score-adj", One("N"), "-999", "-1000 to 1000"),
    flag("pod-bridge-interface", One("NAME"), "", "the bridge of the pods, for BridgeInterface").rules(),
    flag(
        "pod-interface-name-prefix",
        One("PREFIX"),
        "",
        "how pods' interfaces begin, for InterfaceNamePrefix",
    )
    .rules(),
    flag("profiling", Switch, "false", "accepted; there are no profiles"),
    flag("proxy-mode", One("MODE"), "", "iptables, or empty").rules(),
    flag("show-hidden-metrics-for-version", One("VERSION"), "", "the release before this one, or empty"),
    //
    flag("boot-id-file", One("FILE"), "/proc/sys/kernel/random/boot_id", "").scope(Nothing),
    flag("ipvs-exclude-cidrs", Many("CIDR,..."), "[]", "").scope(Nothing),
    flag("ipvs-min-sync-period", One("DURATION"), "1s", "").scope(Nothing),
    flag("ipvs-scheduler", One("NAME"), "", "").scope(Nothing),
    flag("ipvs-strict-arp", Switch, "false", "").scope(Nothing),
    flag("ipvs-sync-period", One("DURATION"), "30s", "").scope(Nothing),
    flag("ipvs-tcp-timeout", One("DURATION"), "0s", "").scope(Nothing),
    flag("ipvs-tcpfin-timeout", One("DURATION"), "0s", "").scope(Nothing),
    flag("ipvs-udp-timeout", One("DURATION"), "0s", "").scope(Nothing),
    flag("machine-id-file", One("FILE"), "/etc/machine-id,/var/lib/dbus/machine-id", "").scope(Nothing),
];

/// The flags of the agent that were given. The default is none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// Every occurrence of each, in order, never empty; by the names of [`FLAGS`].
    given: BTreeMap<&'static str, Vec<String>>,
}

/// The flags that shape rules: those of the agent that `render` and its like take too.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuleFlags(pub Flags);

impl Flags {
    /// As if `--<name>=<text>` stood on the command line; for tests, and for callers that have no
    /// command line. Unknown names are a bug.
    pub fn with(mut self, name: &str, text: &str) -> Flags {
        let flag = FLAGS.iter().find(|flag| flag.name == name).expect("the flag is in the table");
        self.given.entry(flag.name).or_default().push(text.to_owned());
        self
    }

    /// Every occurrence of `--<name>`; empty when it was not given.
    pub(super) fn texts(&self, name: &str) -> &[String] {
        debug_assert!(FLAGS.iter().any(|flag| flag.name == name), "{name} is no flag");
        self.given.get(name).map_or(&[], Vec::as_slice)
    }

    /// The flags that were given.
    pub(super) fn given(&self) -> impl Iterator<Item = &'static Flag> {
        FLAGS.iter().filter(|flag| self.given.contains_key(flag.name))
    }

    /// Every flag, with its text or its default, by name: what `/flagz` and the log at start show.
    pub fn all(&self) -> Vec<(&'static str, String)> {
        let value = |flag: &Flag| match (self.texts(flag.name), flag.kind) {
            ([], _) => flag.default.to_owned(),
            (texts, Many("PATTERN=N,..." | "NAME=BOOL,...")) => texts.join(","),
            (texts, Many(_)) => format!("[{}]", texts.join(",")),
            ([.., text], _) => text.clone(),
        };
        let mut all: Vec<_> = FLAGS.iter().map(|flag| (flag.name, value(flag))).collect();
        // Two that end the program before anybody asks.
        all.extend([("help", "false".to_owned()), ("version", "false".to_owned())]);
        all.sort();
        all
    }

    /// `--config`: the file whose text goes to [`super::Config::resolve`].
    pub fn config(&self) -> Option<&Path> {
        self.path("config")
    }

    /// `--write-config-to`.
    pub fn write_config_to(&self) -> Option<&Path> {
        self.path("write-config-to")
    }

    /// `--cleanup`.
    pub fn is_cleanup(&self) -> bool {
        self.switch("cleanup")
    }

    /// `--init-only`.
    pub fn is_init_only(&self) -> bool {
        self.switch("init-only")
    }

    fn path(&self, name: &str) -> Option<&Path> {
        self.texts(name).last().filter(|text| !text.is_empty()).map(Path::new)
    }

    /// A text that is no boolean counts as not given here; [`super::Config::resolve`] refuses it.
    fn switch(&self, name: &str) -> bool {
        use super::value::Value;
        let texts = self.texts(name);
        !texts.is_empty() && bool::from_flag(texts).unwrap_or(false)
    }

    fn take(matches: &ArgMatches, only_rules: bool) -> Flags {
        let mut given = BTreeMap::new();
        for flag in FLAGS.iter().filter(|flag| flag.shapes_rules || !only_rules) {
            if let Some(texts) = matches.get_many::<String>(flag.name) {
                given.insert(flag.name, texts.cloned().collect());
            }
        }
        Flags { given }
    }
}

/// Written out because the table, not a struct with 60 fields, is the list.
impl clap::Args for Flags {
    fn augment_args(command: Command) -> Command {
        command.args(FLAGS.iter().map(Flag::arg))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Flags::augment_args(command)
    }
}

impl clap::FromArgMatches for Flags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Flags, clap::Error> {
        Ok(Flags::take(matches, false))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Flags::take(matches, false);
        Ok(())
    }
}

impl clap::Args for RuleFlags {
    fn augment_args(command: Command) -> Command {
        command.args(FLAGS.iter().filter(|flag| flag.shapes_rules).map(Flag::arg))
    }

    fn augment_args_for_update(command: Command) -> Command {
        RuleFlags::augment_args(command)
    }
}

impl clap::FromArgMatches for RuleFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<RuleFlags, clap::Error> {
        Ok(RuleFlags(Flags::take(matches, true)))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = RuleFlags(Flags::take(matches, true));
        Ok(())
    }
}

/// `argv` with `_` made `-` in the names of long flags, as kube-proxy reads them; to be done before
/// clap sees them. Arguments after `--` stay.
pub fn normalise(argv: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut is_flags = true;
    let normalise = |argument: OsString| {
        is_flags &= argument != "--";
        match argument.to_str() {
            Some(text) if is_flags && text.starts_with("--") => {
                let end = text.find('=').unwrap_or(text.len());
                OsString::from(format!("{}{}", text[..end].replace('_', "-"), &text[end..]))
            }
            _ => argument,
        }
    };
    argv.into_iter().map(normalise).collect()
}
