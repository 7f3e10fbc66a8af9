//! What a difference in the rules means for traffic, in a sentence or two.

use std::net::SocketAddr;

use crate::iptables::{ChainName, CtStates, Match, MaybeNot, Rule, Table, Target};
use crate::rules::dispatch::Key;
use crate::rules::names::{
    KUBE_EXTERNAL_SERVICES, KUBE_FORWARD, KUBE_MARK_MASQ, KUBE_NODEPORTS, KUBE_POSTROUTING,
    KUBE_PROXY_FIREWALL, KUBE_SERVICES, PortChain,
};
use crate::rules::ownership::ChainOwner;

/// Where a difference is.
pub(super) struct RulePlace<'a> {
    pub(super) table: Table,
    pub(super) chain: ChainName,
    /// The service port of the chain.
    pub(super) service: Option<&'a str>,
    /// The endpoint that a rule leads to.
    pub(super) endpoint: &'a dyn Fn(&Rule) -> Option<SocketAddr>,
}

impl RulePlace<'_> {
    fn owner(&self) -> ChainOwner {
        ChainOwner::of(self.table, &self.chain)
    }

    fn service(&self) -> &str {
        self.service.unwrap_or("a service port")
    }
}

/// A chain without its rules.
pub(super) fn of_lost_chain(place: &RulePlace<'_>, rules: &[Rule]) -> String {
    let service = place.service();
    match (place.table, place.owner()) {
        (Table::Nat, ChainOwner::ServicePort(PortChain::Endpoint)) => match rules.iter().find_map(dnat) {
            Some(to) => format!("Connections to {service} that are sent to endpoint {to} go nowhere: they fail."),
            None => format!("An endpoint of {service} gets no connections."),
        },
        (Table::Nat, ChainOwner::ServicePort(PortChain::Cluster | PortChain::Local)) => {
            format!("Connections to {service} that are led there reach no endpoint: they fail.")
        }
        (Table::Nat, ChainOwner::ServicePort(PortChain::External)) => format!(
            "Connections to {service} from outside (node port, external IP, load balancer IP) reach no endpoint."
        ),
        (Table::Nat, ChainOwner::ServicePort(PortChain::Firewall)) => {
            format!("No client reaches a load balancer IP of {service}, also within its source ranges.")
        }
        (Table::Nat, ChainOwner::Group) => {
            format!("A part of the connections to {service} reaches no endpoint: they fail.")
        }
        (Table::Nat, ChainOwner::Dispatch) => "Connections to the Services behind it reach no endpoint.".to_owned(),
        (Table::Nat, _) => match place.chain {
            KUBE_SERVICES => "No Service answers: no cluster IP, node port or load balancer IP leads to an endpoint.",
            KUBE_NODEPORTS => "No node port answers.",
            KUBE_POSTROUTING => {
                "Nothing is masqueraded: answers to clients outside the pods' network bypass this node, and pods that connect to their own Service get none."
            }
            _ => {
                "Nothing is marked for masquerading: answers to clients outside the pods' network bypass this node."
            }
        }
        .to_owned(),
        (_, ChainOwner::Dispatch) => "Clients of Services behind it that have no endpoints are not rejected.".to_owned(),
        _ => match place.chain {
            KUBE_SERVICES | KUBE_EXTERNAL_SERVICES => {
                "Clients of Services without endpoints are not rejected: they wait for a time-out."
            }
            KUBE_NODEPORTS => "A firewall behind it may drop health checks of load balancers.",
            KUBE_PROXY_FIREWALL => "Clients outside source ranges are not dropped.",
            KUBE_FORWARD => {
                "Where the policy of FORWARD is DROP, connections to Services that are forwarded fail; INVALID packets are not dropped."
            }
            _ => "Packets from outside reach programs that listen on 127.0.0.1.",
        }
        .to_owned(),
    }
}

/// A rule that is missing.
pub(super) fn of_missing_rule(place: &RulePlace<'_>, rule: &Rule) -> String {
    let service = place.service();
    let masquerades = rule.callee() == Some(KUBE_MARK_MASQ);
    match (place.table, place.owner()) {
        (Table::Nat, ChainOwner::ServicePort(PortChain::Endpoint)) if masquerades => {
            format!("A pod that connects to {service} and is sent to itself gets no answer.")
        }
        (Table::Nat, ChainOwner::ServicePort(PortChain::Endpoint)) => match dnat(rule) {
            Some(to) => format!(
                "Connections to {service} that are sent to endpoint {to} keep their destination: they fail."
            ),
            None => format!("Clients of {service} do not stay with this endpoint."),
        },
        (Table::Nat, ChainOwner::ServicePort(_)) if masquerades => format!(
            "Connections to {service} are not masqueraded where they have to be: answers may bypass this node."
        ),
        (Table::Nat, ChainOwner::ServicePort(PortChain::Cluster | PortChain::Local) | ChainOwner::Group) => {
            let who = (place.endpoint)(rule)
                .map_or_else(|| "an endpoint".to_owned(), |to| format!("endpoint {to}"));
            match rule.matches.iter().any(|part| matches!(part, Match::Recent { .. })) {
                true => format!("Clients of {service} do not stay with {who}."),
                false if is_random(rule) => {
                    format!(
                        "{} gets no connections to {service}; the others get more than their share.",
                        capital(&who)
                    )
                }
                false => format!(
                    "{} gets no connections to {service}; its share of them reaches no endpoint and fails.",
                    capital(&who)
                ),
            }
        }
        (Table::Nat, ChainOwner::ServicePort(PortChain::External)) => {
            format!("Connections to {service} from outside do not reach all endpoints that they should.")
        }
        (Table::Nat, ChainOwner::ServicePort(PortChain::Firewall)) => {
            format!("Clients{} do not reach the load balancer IPs of {service}.", from(rule))
        }
        _ => of_missing_shared_rule(place, rule),
    }
}

fn of_missing_shared_rule(place: &RulePlace<'_>, rule: &Rule) -> String {
    let key = Key::of(rule).map_or_else(|| "what it matches".to_owned(), |key| key.to_string());
    match (place.table, place.chain) {
        (Table::Nat, KUBE_SERVICES) if rule.callee() == Some(KUBE_NODEPORTS) => match rule.destination {
            Some(MaybeNot { negated: false, value }) => format!("Node ports do not answer on {}.", value.address()),
            _ => "No node port answers.".to_owned(),
        },
        (Table::Nat, KUBE_MARK_MASQ | KUBE_POSTROUTING) => of_lost_chain(place, &[]),
        (Table::Nat, _) if rule.matches.contains(&Match::Hairpin) => {
            "A pod that connects to a Service and is sent to itself gets no answer.".to_owned()
        }
        (Table::Nat, _) => format!("Connections to {key} are not led to the Service: they go on as if it did not exist."),
        (_, KUBE_FORWARD) => match rule.target {
            Some(Target::Drop) => {
                "Packets that conntrack calls INVALID leave untranslated; connections to Services may be reset.".to_owned()
            }
            _ => "Where the policy of FORWARD is DROP, connections to Services that are forwarded may fail.".to_owned(),
        },
        (_, KUBE_PROXY_FIREWALL) => format!("Clients outside the source ranges are not dropped at {key}."),
        (_, KUBE_NODEPORTS) => format!("A firewall behind it may drop health checks at {key}."),
        (_, KUBE_SERVICES | KUBE_EXTERNAL_SERVICES) => {
            format!("Clients of {key}, which has no endpoints to serve them, are not turned away: they wait for a time-out.")
        }
        (_, _) if place.owner() == ChainOwner::Dispatch => {
            format!("Packets to {key} are not rejected or dropped here.")
        }
        _ => "Packets from outside reach programs that listen on 127.0.0.1.".to_owned(),
    }
}

/// A rule in excess.
pub(super) fn of_added_rule(place: &RulePlace<'_>, rule: &Rule) -> String {
    let what = match place.service {
        Some(service) => format!("connections to {service} that it matches"),
        None => match Key::of(rule) {
            Some(key) => format!("connections to {key}"),
            None => "packets that it matches".to_owned(),
        },
    };
    match &rule.target {
        Some(Target::Drop) => format!("{} are dropped: the client waits for a time-out.", capital(&what)),
        Some(Target::Reject) => format!("{} are rejected.", capital(&what)),
        Some(Target::Dnat(to)) => format!("{} are sent to {to}.", capital(&what)),
        Some(Target::Return) => format!("{} leave this chain early.", capital(&what)),
        Some(Target::Accept) if place.table == Table::Nat => {
            format!("{} keep their destination: they reach no endpoint.", capital(&what))
        }
        Some(Target::Accept) => format!("{} pass, whatever later rules say.", capital(&what)),
        Some(Target::Jump(KUBE_MARK_MASQ)) => {
            format!("{} are masqueraded: the endpoint sees this node's address.", capital(&what))
        }
        Some(Target::Jump(chain) | Target::Goto(chain)) => match ChainOwner::of(place.table, chain) {
            ChainOwner::ServicePort(PortChain::Endpoint) => match (place.endpoint)(rule) {
                Some(to) => format!("{} may be sent to {to}, which should get none.", capital(&what)),
                None => format!("{} may be sent to an endpoint that should get none.", capital(&what)),
            },
            _ => format!("{} are led to {chain}.", capital(&what)),
        },
        Some(Target::SetXmark { .. } | Target::Masquerade { .. }) => {
            format!("{} are changed.", capital(&what))
        }
        Some(Target::Other { name, .. }) => format!("{} meet {name}.", capital(&what)),
        None => "None: it counts packets and nothing else.".to_owned(),
    }
}

/// A rule that took the place of another.
pub(super) fn of_changed_rule(place: &RulePlace<'_>, was: &Rule, is: &Rule) -> String {
    let service = place.service();
    let chance = |rule: &Rule| {
        rule.matches.iter().find_map(|part| match part {
            Match::Random { threshold } => Some(f64::from(*threshold) / f64::from(1u32 << 31)),
            _ => None,
        })
    };
    match ((place.endpoint)(was), (place.endpoint)(is)) {
        (Some(was), Some(is)) if was != is => {
            return format!("Connections to {service} are sent to {is} in place of {was}.");
        }
        _ => {}
    }
    match (chance(was), chance(is)) {
        (was, is) if was != is && place.service.is_some() => {
            let share = |chance: Option<f64>| {
                chance.map_or_else(|| "all".to_owned(), |chance| format!("{:.1} %", chance * 100.0))
            };
            format!(
                "Of the connections to {service} that reach this rule, {} and not {} go to its endpoint.",
                share(is),
                share(was)
            )
        }
        _ if was.target == is.target => "It matches other packets than it should.".to_owned(),
        _ => of_added_rule(place, is),
    }
}

/// Rules in another order: `is` stands where `should` belongs.
pub(super) fn of_order(place: &RulePlace<'_>, should: &Rule, is: &Rule) -> String {
    let service = place.service();
    match (place.table, place.owner()) {
        (Table::Nat, ChainOwner::ServicePort(PortChain::External)) => format!(
            "Connections to {service} from outside meet the wrong rule first: some are not masqueraded, or reach endpoints of other nodes."
        ),
        (Table::Nat, ChainOwner::ServicePort(PortChain::Endpoint)) => {
            format!("A pod that connects to {service} and is sent to itself gets no answer.")
        }
        (Table::Nat, ChainOwner::ServicePort(_) | ChainOwner::Group)
            if is_random(should) || is_random(is) =>
        {
            format!("Endpoints of {service} do not get equal shares of its connections.")
        }
        (Table::Nat, _) if place.chain == KUBE_POSTROUTING => {
            "Packets are masqueraded that should not be, or not those that should.".to_owned()
        }
        (_, _) if place.chain == KUBE_FORWARD => {
            "A packet is accepted before it is known to be INVALID, or the other way round.".to_owned()
        }
        _ => "Packets that several of these rules match meet the wrong one first.".to_owned(),
    }
}

/// A jump from a built-in chain that is missing.
pub(super) fn of_missing_jump(table: Table, from: &ChainName, to: ChainName) -> String {
    let text = match (table, from.as_str(), to) {
        (Table::Nat, "PREROUTING", _) => {
            "Packets that arrive from pods and from outside meet no Service: no connection of theirs reaches an endpoint."
        }
        (Table::Nat, "OUTPUT", _) => "Programs on this node reach no Service.",
        (Table::Nat, _, _) => {
            "Nothing is masqueraded: answers to clients outside the pods' network bypass this node, and pods that connect to their own Service get none."
        }
        (_, "FORWARD", KUBE_FORWARD) => {
            "Where the policy of FORWARD is DROP, connections to Services that are forwarded fail; INVALID packets are not dropped."
        }
        (_, _, KUBE_PROXY_FIREWALL) => {
            "Source ranges of load balancers do not hold for packets that pass here."
        }
        (_, "OUTPUT", KUBE_SERVICES) => {
            "Programs on this node that connect to a Service without endpoints wait for a time-out."
        }
        (_, _, KUBE_SERVICES | KUBE_EXTERNAL_SERVICES) => {
            "Clients of a Service without endpoints are not rejected: they wait for a time-out."
        }
        (_, _, KUBE_NODEPORTS) => "A firewall behind it may drop health checks of load balancers.",
        _ => "Packets from outside may reach programs that listen on 127.0.0.1.",
    };
    text.to_owned()
}

/// The address that the rule translates to.
pub(super) fn dnat(rule: &Rule) -> Option<SocketAddr> {
    match rule.target {
        Some(Target::Dnat(to)) => Some(to),
        _ => None,
    }
}

fn is_random(rule: &Rule) -> bool {
    rule.matches.iter().any(|part| matches!(part, Match::Random { .. }))
}

fn from(rule: &Rule) -> String {
    rule.source.map_or_else(String::new, |from| format!(" in {}", from.value))
}

/// The text with a capital at its head.
fn capital(text: &str) -> String {
    let mut characters = text.chars();
    characters.next().map_or_else(String::new, |first| first.to_uppercase().chain(characters).collect())
}

/// Whether a packet that begins a connection may match the rule, as far as its state says.
pub(super) fn may_match_new(rule: &Rule) -> bool {
    rule.matches.iter().all(|part| match part {
        Match::CtState(states) => states.value.contains(CtStates::NEW) != states.negated,
        _ => true,
    })
}
