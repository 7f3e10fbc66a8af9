//! Who gets the connections: a report of new connections by service port and endpoint.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::ledger::PortTotal;
use crate::iptables::FirstPackets;
use crate::model::ServicePortName;

/// New connections on one node, by service port.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct TopReport {
    /// Where the counts come from, as `rules in force` or `agent`.
    pub origin: String,
    /// What totals count from.
    pub counts_since: CountsSince,
    /// The time that rates are an average of, in seconds; absent after a single reading, which has no rates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval_seconds: Option<f64>,
    /// All connections to Services, also to Services that exist no more.
    pub all: CountedConnections,
    /// Service ports with connections, sorted.
    pub service_ports: Vec<PortConnections>,
    /// How many service ports with fewer connections are left out.
    pub n_left_out: usize,
}

/// What totals count from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub enum CountsSince {
    /// The start of the agent.
    AgentStarted,
    /// For each endpoint, when its rule was written or its counters were reset; while `top` runs, also what counted
    /// before a later rewrite.
    RulesWritten,
}

/// Connections to one service port.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct PortConnections {
    /// `<ns>/<name>[:<port>]`, or the name of a chain whose Service is not known.
    pub service_port: String,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// To all its endpoints, also to those that it has no more.
    #[serde(flatten)]
    pub all: CountedConnections,
    /// Its endpoints with connections, sorted; absent where endpoints are not counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoints: Option<Vec<EndpointConnections>>,
}

/// Connections to one endpoint of a service port.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct EndpointConnections {
    /// `<ip>:<port>` or `[<ip6>]:<port>`.
    pub endpoint: String,
    /// To this endpoint.
    #[serde(flatten)]
    pub all: CountedConnections,
}

/// Counted connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct CountedConnections {
    /// New connections.
    pub connections: u64,
    /// New connections a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections_per_second: Option<f64>,
    /// Bytes of their first packets, IP headers included; nat counters know of no others.
    pub first_packet_bytes: u64,
}

/// The order of a report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TopOrder {
    /// Most new connections a second first; without rates, most connections.
    #[default]
    Rate,
    /// Most connections first.
    Total,
    /// Most bytes of first packets first.
    Bytes,
    /// By name.
    Name,
}

impl CountedConnections {
    fn of(counted: FirstPackets) -> CountedConnections {
        CountedConnections {
            connections: counted.n_packets,
            connections_per_second: None,
            first_packet_bytes: counted.n_bytes,
        }
    }

    fn rate_since(&mut self, earlier: Option<&CountedConnections>, seconds: f64) {
        // What was not there in the earlier report was not used until then, or is counted anew.
        let before = earlier.map_or(0, |earlier| earlier.connections);
        let more = self.connections.checked_sub(before).unwrap_or(self.connections);
        self.connections_per_second = Some(more as f64 / seconds);
    }

    /// The larger, the earlier.
    fn rank(&self, order: TopOrder) -> Reverse<(u64, u64)> {
        let per_hour = |rate: f64| (rate * 3_600.0).round() as u64;
        Reverse(match order {
            TopOrder::Rate => (self.connections_per_second.map_or(0, per_hour), self.connections),
            TopOrder::Total => (self.connections, 0),
            TopOrder::Bytes => (self.first_packet_bytes, self.connections),
            TopOrder::Name => (0, 0),
        })
    }
}

impl TopReport {
    /// The report of `totals`, by name; `all` is what they add up to, and what was counted for Services that exist no
    /// more. `has_endpoints`: whether endpoints were counted.
    pub fn new(
        origin: String,
        counts_since: CountsSince,
        totals: &BTreeMap<ServicePortName, PortTotal>,
        all: FirstPackets,
        has_endpoints: bool,
    ) -> TopReport {
        let port = |(name, total): (&ServicePortName, &PortTotal)| {
            let endpoint = |(at, counted): (&std::net::SocketAddr, &FirstPackets)| EndpointConnections {
                endpoint: at.to_string(),
                all: CountedConnections::of(*counted),
            };
            PortConnections {
                service_port: name_of(name),
                protocol: name.protocol.to_string(),
                all: CountedConnections::of(total.all),
                endpoints: has_endpoints.then(|| total.endpoints.iter().map(endpoint).collect()),
            }
        };
        TopReport {
            origin,
            counts_since,
            interval_seconds: None,
            all: CountedConnections::of(all),
            service_ports: totals.iter().map(port).collect(),
            n_left_out: 0,
        }
    }

    /// Adds rates: what was counted since the report `earlier`, made `seconds` before.
    pub fn add_rates(&mut self, earlier: &TopReport, seconds: f64) {
        self.interval_seconds = Some((seconds * 1_000.0).round() / 1_000.0);
        self.all.rate_since(Some(&earlier.all), seconds);
        let ports: BTreeMap<(&str, &str), &PortConnections> = earlier
            .service_ports
            .iter()
            .map(|port| ((port.service_port.as_str(), port.protocol.as_str()), port))
            .collect();
        for port in &mut self.service_ports {
            let before = ports.get(&(port.service_port.as_str(), port.protocol.as_str()));
            port.all.rate_since(before.map(|port| &port.all), seconds);
            let before: BTreeMap<&str, &CountedConnections> = before
                .and_then(|port| port.endpoints.as_ref())
                .into_iter()
                .flatten()
                .map(|endpoint| (endpoint.endpoint.as_str(), &endpoint.all))
                .collect();
            for endpoint in port.endpoints.iter_mut().flatten() {
                let earlier = before.get(endpoint.endpoint.as_str()).copied();
                endpoint.all.rate_since(earlier, seconds);
            }
        }
    }

    /// Sorts service ports, and the endpoints of each; those of equal rank by name.
    pub fn sort(&mut self, order: TopOrder) {
        self.service_ports.sort_by(|a, b| {
            let name = |port: &PortConnections| (port.service_port.clone(), port.protocol.clone());
            a.all.rank(order).cmp(&b.all.rank(order)).then_with(|| name(a).cmp(&name(b)))
        });
        for port in &mut self.service_ports {
            // By name they are in the order of addresses already.
            port.endpoints.iter_mut().for_each(|endpoints| {
                endpoints.sort_by_key(|endpoint| endpoint.all.rank(order));
            });
        }
    }

    /// The endpoints of all service ports in one list, sorted; those of equal rank in the order of the report.
    pub fn endpoints(&self, order: TopOrder) -> Vec<(&PortConnections, &EndpointConnections)> {
        let mut endpoints = Vec::new();
        for port in &self.service_ports {
            endpoints.extend(port.endpoints.iter().flatten().map(|endpoint| (port, endpoint)));
        }
        endpoints.sort_by_key(|(_, endpoint)| endpoint.all.rank(order));
        endpoints
    }

    /// Keeps the first `n` service ports.
    pub fn truncate(&mut self, n: usize) {
        self.n_left_out += self.service_ports.len().saturating_sub(n);
        self.service_ports.truncate(n);
    }
}

/// `<ns>/<name>[:<port>]`; for a chain whose Service is not known, its name.
fn name_of(port: &ServicePortName) -> String {
    let text = port.to_string();
    text.strip_prefix('/').map(str::to_owned).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ObjectName;
    use crate::net::Protocol;

    /// A report of service ports with these connections, each of 60 bytes, to one endpoint.
    fn report(counts: &[(&str, u64)]) -> TopReport {
        let count = |n| FirstPackets { n_packets: n, n_bytes: 60 * n };
        let total = |(name, n): &(&str, u64)| {
            let service = ObjectName::new("shop", name);
            let port = ServicePortName { service, port: "http".into(), protocol: Protocol::Tcp };
            let endpoints = BTreeMap::from([("10.0.0.1:80".parse().unwrap(), count(*n))]);
            (port, PortTotal { all: count(*n), endpoints })
        };
        let totals = counts.iter().map(total).collect();
        let all = count(counts.iter().map(|(_, n)| n).sum());
        TopReport::new("rules in force".to_owned(), CountsSince::RulesWritten, &totals, all, true)
    }

    fn names(report: &TopReport) -> Vec<&str> {
        report.service_ports.iter().map(|port| port.service_port.as_str()).collect()
    }

    #[test]
    fn rates_are_what_was_counted_since_the_earlier_report() {
        let mut now = report(&[("a", 100), ("b", 60), ("new", 8), ("again", 2)]);
        now.add_rates(&report(&[("a", 90), ("b", 0), ("again", 50)]), 4.0);
        let rate = |name: &str| {
            let port = now.service_ports.iter().find(|port| port.service_port == format!("shop/{name}:http"));
            let port = port.unwrap();
            let endpoint = &port.endpoints.as_ref().unwrap()[0];
            assert_eq!(endpoint.all.connections_per_second, port.all.connections_per_second);
            port.all.connections_per_second.unwrap()
        };
        assert_eq!((rate("a"), rate("b"), rate("new"), rate("again")), (2.5, 15.0, 2.0, 0.5));
        assert_eq!(now.interval_seconds, Some(4.0));
        now.sort(TopOrder::Rate);
        assert_eq!(names(&now), ["shop/b:http", "shop/a:http", "shop/new:http", "shop/again:http"]);
        now.sort(TopOrder::Total);
        assert_eq!(names(&now), ["shop/a:http", "shop/b:http", "shop/new:http", "shop/again:http"]);
        now.sort(TopOrder::Name);
        now.truncate(1);
        assert_eq!((names(&now), now.n_left_out), (vec!["shop/a:http"], 3));
    }

    #[test]
    fn a_report_is_the_same_after_its_way_through_json() {
        let mut now = report(&[("a", 100)]);
        let text = serde_json::to_string(&now).unwrap();
        assert!(!text.contains("PerSecond") && !text.contains("interval"), "{text}");
        assert_eq!(serde_json::from_str::<TopReport>(&text).unwrap(), now);
        now.add_rates(&report(&[]), 2.0);
        let text = serde_json::to_string(&now).unwrap();
        assert_eq!(serde_json::from_str::<TopReport>(&text).unwrap(), now, "{text}");
    }
}
