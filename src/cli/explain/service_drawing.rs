//! A report on a Service as text.

use super::truth_drawing;
use crate::cli::output::{Plain, Screen, Style, styled};
use crate::inspect::explanation::{
    ChainExplanation, EndpointExplanation, ExplainReport, FrontendClass, FrontendExplanation,
    PortExplanation, ServiceSyncState, SliceEntryExplanation,
};
use crate::policy::{EndpointUse, HintsIgnored, HintsState};

/// The most endpoint chains that the text lists; JSON has more.
const MAX_ENDPOINT_CHAINS: usize = 20;

/// Draws `report`.
pub(super) fn draw(screen: &mut Screen, report: &ExplainReport) {
    draw_head(screen, report);
    for port in &report.ports {
        draw_port(screen, report, port);
    }
    if report.n_more_ports > 0 {
        screen.gap();
        screen.line(format!("and {} more ports; name one: NS/NAME:PORT", report.n_more_ports));
    }
    draw_vantages(screen, report);
    draw_list(screen, "Problems", Style::Bad, &report.problems);
    draw_list(screen, "Unknown: the rules alone do not tell", Style::Warning, &report.unknown);
}

fn draw_head(screen: &mut Screen, report: &ExplainReport) {
    let zone = report.zone.as_ref().map(|zone| format!(" (zone {zone})")).unwrap_or_default();
    let node = report.node.as_ref().map(|node| format!(" on node {node}{zone}")).unwrap_or_default();
    screen.line(styled(Style::Heading, format!("Service {}{node}, by the {}", report.service, report.rules)));
    if let Some(reason) = report.not_proxied {
        screen.line(format!("  kube-proxy does not serve it: it {reason}"));
        return;
    }
    let mut rows: Vec<Vec<String>> = Vec::new();
    let mut add = |name: &str, value: String| rows.push(vec![name.to_owned(), Plain(value).to_string()]);
    if let Some(policies) = &report.policies {
        add("internal traffic policy", policies.internal_traffic_policy.clone());
        add("external traffic policy", policies.external_traffic_policy.clone());
        let affinity = policies.affinity_seconds.map(|seconds| format!("ClientIP, {}", duration(seconds)));
        add("session affinity", affinity.unwrap_or_else(|| "none".to_owned()));
        if let Some(port) = policies.health_check_node_port {
            add("health check node port", port.to_string());
        }
    }
    if let Some(state) = &report.agent {
        add_sync_state(&mut add, state);
    }
    if !rows.is_empty() {
        screen.table(2, &[], rows);
    }
}

fn add_sync_state(add: &mut impl FnMut(&str, String), state: &ServiceSyncState) {
    let unknown = || "not since the agent started".to_owned();
    add("last change", state.last_change.clone().unwrap_or_else(unknown));
    let pending = if state.is_pending { "; a change waits" } else { "" };
    add("last sync", format!("{}{pending}", state.last_sync.clone().unwrap_or_else(unknown)));
    if !state.full_affinity_lists.is_empty() {
        add("affinity lists full", state.full_affinity_lists.join(", "));
    }
}

/// `3 h`, `90 s`
fn duration(seconds: u32) -> String {
    match seconds {
        0 => "0 s".to_owned(),
        _ if seconds.is_multiple_of(3_600) => format!("{} h", seconds / 3_600),
        _ if seconds.is_multiple_of(60) => format!("{} min", seconds / 60),
        _ => format!("{seconds} s"),
    }
}

fn draw_port(screen: &mut Screen, report: &ExplainReport, port: &PortExplanation) {
    let name = if port.name.is_empty() { "without a name".to_owned() } else { format!("{:?}", port.name) };
    let number = port.port.map(|port| format!(" {port}")).unwrap_or_default();
    screen.heading(format!("Port {name}, {}{number}, {}", port.protocol, port.family));
    if let Some(message) = &port.quarantined {
        let text = format!("  quarantined, not in force: the kernel rejected its rules: {message}");
        screen.line(styled(Style::Bad, text));
    }
    screen.table(2, &[], port.frontends.iter().map(|frontend| frontend_row(port, frontend)).collect());
    truth_drawing::draw(screen, port);
    draw_endpoints(screen, report, port);
    draw_chains(screen, port);
}

fn frontend_row(port: &PortExplanation, frontend: &FrontendExplanation) -> Vec<String> {
    let address = match frontend.address {
        Some(address) => std::net::SocketAddr::new(address, frontend.port).to_string(),
        None => frontend.port.to_string(),
    };
    let mut remarks = Vec::new();
    if frontend.kind == FrontendClass::NodePort {
        remarks.push(match &frontend.node_addresses {
            None => "every address of the node".to_owned(),
            Some(none) if none.is_empty() => "no address of the node".to_owned(),
            Some(some) => some.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        });
    }
    if frontend.kind == FrontendClass::LoadBalancerIp && !port.source_ranges.is_empty() {
        remarks.push(format!("only from {}", port.source_ranges.join(", ")));
    }
    if let Some(owner) = &frontend.owned_by {
        remarks.push(format!("belongs to {owner}"));
    }
    if !frontend.claimed_by.is_empty() {
        remarks.push(format!("claimed by {} too", frontend.claimed_by.join(", ")));
    }
    let style = if frontend.owned_by.is_some() { Style::Bad } else { Style::Faint };
    vec![frontend.kind.as_str().to_owned(), styled(Style::Name, address), styled(style, remarks.join("; "))]
}

fn draw_endpoints(screen: &mut Screen, report: &ExplainReport, port: &PortExplanation) {
    let n = port.endpoints.len() + port.n_more_endpoints;
    screen.gap();
    screen.line(format!("{}{}", styled(Style::Heading, "  Endpoints"), endpoint_counts(port, n)));
    let has_use = |list: fn(&EndpointExplanation) -> Option<EndpointUse>| {
        port.endpoints.iter().any(|endpoint| list(endpoint).is_some())
    };
    let columns = EndpointColumns {
        node: port.endpoints.iter().any(|endpoint| endpoint.node.is_some()),
        slice: port.endpoints.iter().any(|endpoint| endpoint.slice.is_some()),
        hints: port.endpoints.iter().any(|one| !one.hinted_zones.is_empty() || !one.hinted_nodes.is_empty()),
        cluster: has_use(|endpoint| endpoint.cluster),
        local: has_use(|endpoint| endpoint.local),
    };
    if !port.endpoints.is_empty() {
        let rows = port.endpoints.iter().map(|endpoint| columns.row(report, endpoint));
        draw_records(screen, &columns.heads(), rows.collect());
    }
    if port.n_more_endpoints > 0 {
        screen.line(format!("  and {} more", port.n_more_endpoints));
    }
    let hints = port.hints.iter().flat_map(|hints| {
        [hint_text("nodes", "this node", hints.nodes), hint_text("zones", "this zone", hints.zones)]
    });
    hints.flatten().for_each(|text| screen.line(format!("  {text}")));
    for entry in &port.other_entries {
        screen.line(format!("  {}", Plain(other_entry(port, entry))));
    }
}

/// `: 2 of 3 serve under policy Cluster, 1 under policy Local`
fn endpoint_counts(port: &PortExplanation, n: usize) -> String {
    let counts = [(port.n_cluster, "Cluster"), (port.n_local, "Local")];
    let counts = counts.into_iter().filter_map(|(count, policy)| Some((count?, policy)));
    let texts: Vec<String> = counts
        .enumerate()
        .map(|(at, (count, policy))| match at {
            0 => format!("{count} of {n} serve under policy {policy}"),
            _ => format!("{count} under policy {policy}"),
        })
        .collect();
    match (n, texts.is_empty()) {
        (0, _) => ": none".to_owned(),
        (_, true) => format!(": {n} in the rules"),
        (_, false) => format!(": {}", texts.join(", ")),
    }
}

/// Which columns the list of endpoints has.
struct EndpointColumns {
    node: bool,
    slice: bool,
    hints: bool,
    cluster: bool,
    local: bool,
}

impl EndpointColumns {
    fn heads(&self) -> Vec<&'static str> {
        let heads = [
            (true, "ADDRESS"),
            (self.node, "NODE"),
            (self.cluster, "POLICY CLUSTER"),
            (self.local, "POLICY LOCAL"),
            (self.hints, "HINTS"),
            (self.slice, "SLICE"),
        ];
        heads.into_iter().filter(|(is_shown, _)| *is_shown).map(|(_, head)| head).collect()
    }

    fn row(&self, report: &ExplainReport, endpoint: &EndpointExplanation) -> Vec<String> {
        let text = |text: Option<&String>| Plain(text.map_or("-", String::as_str)).to_string();
        let node = match &endpoint.node {
            Some(node) if report.node.as_ref() == Some(node) => format!("{} (here)", Plain(node)),
            node => text(node.as_ref()),
        };
        let hints = endpoint.hinted_nodes.iter().map(|node| format!("node {node}"));
        let hints: Vec<String> =
            hints.chain(endpoint.hinted_zones.iter().map(|zone| format!("zone {zone}"))).collect();
        let hints = if hints.is_empty() { "-".to_owned() } else { hints.join(", ") };
        let cells = [
            (true, styled(Style::Name, endpoint.address)),
            (self.node, node),
            (self.cluster, use_text(endpoint.cluster)),
            (self.local, use_text(endpoint.local)),
            (self.hints, Plain(hints).to_string()),
            (self.slice, text(endpoint.slice.as_ref())),
        ];
        cells.into_iter().filter(|(is_shown, _)| *is_shown).map(|(_, cell)| cell).collect()
    }
}

fn use_text(endpoint_use: Option<EndpointUse>) -> String {
    match endpoint_use {
        Some(of) if of.is_used() => styled(Style::Good, of),
        Some(of) => styled(Style::Warning, of),
        None => "-".to_owned(),
    }
}

fn hint_text(kind: &str, here: &str, state: HintsState) -> Option<String> {
    let reason = match state {
        HintsState::Absent => return None,
        HintsState::Counted => {
            return Some(format!("hints for {kind} count: policy Cluster uses only endpoints for {here}"));
        }
        HintsState::Ignored(reason) => reason,
    };
    let why = match reason {
        HintsIgnored::NotAll { without, n_without: 1 } => format!("{without} has none"),
        HintsIgnored::NotAll { without, n_without } => {
            format!("{without} and {} more have none", n_without - 1)
        }
        HintsIgnored::NotHere => format!("none is for {here}"),
        HintsIgnored::PlaceUnknown if kind == "zones" => "the node has no zone".to_owned(),
        HintsIgnored::PlaceUnknown => "the name of the node is unknown".to_owned(),
        HintsIgnored::NodesWin => "those for nodes count".to_owned(),
    };
    Some(format!("hints for {kind} are ignored: {why}"))
}

fn other_entry(port: &PortExplanation, entry: &SliceEntryExplanation) -> String {
    let name = |name: &str| if name.is_empty() { "without a name".to_owned() } else { format!("{name:?}") };
    match entry {
        SliceEntryExplanation::Superseded { address, slice, by } if slice == by => {
            format!("{address} is in slice {slice} twice; one of them counts")
        }
        SliceEntryExplanation::Superseded { address, slice, by } => {
            format!("{address} in slice {slice} is not used: its entry in slice {by} replaces it")
        }
        SliceEntryExplanation::NoSuchPort { slice, port_name, protocol, n_endpoints } => format!(
            "slice {slice} with {} is for port {} ({protocol}), not for port {} ({})",
            count(*n_endpoints),
            name(port_name),
            name(&port.name),
            port.protocol
        ),
        SliceEntryExplanation::OtherFamily { slice, family, n_endpoints } => {
            format!("slice {slice} with {} has {family} addresses", count(*n_endpoints))
        }
    }
}

/// `1 endpoint`, `2 endpoints`
fn count(n_endpoints: usize) -> String {
    format!("{n_endpoints} endpoint{}", if n_endpoints == 1 { "" } else { "s" })
}

fn draw_chains(screen: &mut Screen, port: &PortExplanation) {
    let (endpoints, others): (Vec<_>, Vec<_>) = port.chains.iter().partition(|chain| chain.is_endpoint);
    let shown = others.into_iter().chain(endpoints.iter().copied().take(MAX_ENDPOINT_CHAINS));
    let rows: Vec<Vec<String>> = shown
        .map(|chain| {
            let name = styled(Style::Name, &chain.name);
            vec![name, chain.role.clone(), chain.n_rules.to_string(), callers_text(chain)]
        })
        .collect();
    screen.gap();
    if rows.is_empty() {
        screen.line(format!("{}: none", styled(Style::Heading, "  Chains in nat")));
    } else {
        screen.line(styled(Style::Heading, "  Chains in nat"));
        draw_records(screen, &["CHAIN", "PURPOSE", "RULES", "REACHED FROM"], rows);
    }
    let n_more = endpoints.len().saturating_sub(MAX_ENDPOINT_CHAINS) + port.n_more_chains;
    if n_more > 0 {
        screen.line(format!("  and {n_more} more chains of endpoints"));
    }
    let others: Vec<Vec<String>> = port
        .entries
        .iter()
        .filter(|entry| !entry.action.starts_with("to "))
        .map(|entry| vec![styled(Style::Name, &entry.at), entry.packets.clone(), entry.action.clone()])
        .collect();
    if !others.is_empty() {
        screen.gap();
        screen.line(styled(Style::Heading, "  Rules in filter"));
        draw_records(screen, &["RULE", "PACKETS TO", "ACTION"], others);
    }
}

/// `KUBE-SERVICES rule 3; KUBE-EXT-2CMXP7HKUVJN7L6M rules 1, 3`
fn callers_text(chain: &ChainExplanation) -> String {
    let mut texts: Vec<String> = Vec::new();
    for callers in chain.reached_from.chunk_by(|a, b| a.chain == b.chain) {
        let rules: Vec<String> = callers.iter().map(|caller| caller.rule.to_string()).collect();
        let plural = if rules.len() == 1 { "rule" } else { "rules" };
        texts.push(format!("{} {plural} {}", callers[0].chain, rules.join(", ")));
    }
    if chain.n_more_callers > 0 {
        texts.push(format!("{} more", chain.n_more_callers));
    }
    if texts.is_empty() { "nowhere".to_owned() } else { texts.join("; ") }
}

/// A table, if no word in it has to be broken; else each row as a line with its first cell and a line for each of the
/// others.
fn draw_records(screen: &mut Screen, heads: &[&str], rows: Vec<Vec<String>>) {
    let head = heads.iter().map(|head| (*head).to_owned()).collect();
    let all: Vec<Vec<String>> = std::iter::once(head).chain(rows.iter().cloned()).collect();
    if screen.fits_words(2, &all) {
        return screen.table(2, heads, rows);
    }
    for row in rows {
        let mut cells = row.into_iter();
        screen.line(format!("  {}", cells.next().unwrap_or_default()));
        let named = heads.iter().skip(1).zip(cells);
        let rest = named.map(|(head, cell)| vec![styled(Style::Faint, head.to_lowercase()), cell]);
        screen.table(4, &[], rest.collect());
    }
}

fn draw_vantages(screen: &mut Screen, report: &ExplainReport) {
    if report.vantages.is_empty() {
        return;
    }
    for vantages in report.vantages.chunk_by(|a, b| a.family == b.family) {
        screen.heading(format!("Sources of the {} packets", vantages[0].family));
        let rows = vantages.iter().map(|vantage| {
            let stands_for = vantage.stands_for.as_ref().map(|what| format!("stands for {what}"));
            vec![
                vantage.from.clone(),
                styled(Style::Name, vantage.source),
                styled(Style::Faint, stands_for.unwrap_or_default()),
            ]
        });
        screen.table(2, &[], rows.collect());
    }
}

fn draw_list(screen: &mut Screen, head: &str, style: Style, lines: &[String]) {
    if lines.is_empty() {
        return;
    }
    screen.heading(head);
    lines.iter().for_each(|line| screen.line(format!("  {}", styled(style, line))));
}
