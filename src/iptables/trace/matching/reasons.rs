//! Why a rule cannot be decided, for a person.

use super::PacketAtHook;
use crate::iptables::{Match, MaybeNot, Rule, Target};

impl PacketAtHook<'_> {
    /// One text for each match of `rule` that cannot be decided, or for its target; never empty.
    pub(in crate::iptables::trace) fn reasons(&self, rule: &Rule) -> Vec<String> {
        let mut reasons = Vec::new();
        if let Some(MaybeNot { value, .. }) = &rule.in_interface
            && self.comes_in_on(value).is_none()
        {
            reasons.push(format!(
                "-i {}: the interface on which the packet arrives is not known",
                value.as_str()
            ));
        }
        if let Some(MaybeNot { value, .. }) = &rule.out_interface
            && self.goes_out_on(value).is_none()
        {
            let to = self.destination.ip();
            reasons.push(format!("-o {}: the interface for {to} is not known", value.as_str()));
        }
        let foreign = rule.matches.iter().filter_map(|part| match part {
            Match::Other { module, words } => Some((part, module, words)),
            _ => None,
        });
        let undecided = foreign.filter(|(part, ..)| self.fits_match(part).is_none());
        reasons.extend(undecided.map(|(_, module, words)| match_reason(module, words)));
        if reasons.is_empty() {
            reasons.push(match &rule.target {
                Some(Target::Jump(chain) | Target::Goto(chain)) => {
                    format!("-j {chain}: no such chain, or chains that call each other in a circle")
                }
                Some(Target::Other { name, .. }) if ["DNAT", "SNAT", "REDIRECT"].contains(&&**name) => {
                    format!("-j {name}: the kernel picks an address or a port of a range")
                }
                Some(Target::Other { name, .. }) => format!("-j {name}: its effect is not known"),
                _ => "too many rules".to_owned(),
            });
        }
        reasons
    }
}

/// `-m set --match-set blocked src: sets are not in the rules`
fn match_reason(module: &str, words: &[Box<str>]) -> String {
    let why = match module {
        "set" => "the content of sets is not in the rules",
        "limit" | "hashlimit" | "quota" | "connlimit" | "connbytes" | "recent" | "statistic" => {
            "depends on earlier packets"
        }
        "string" | "u32" | "bpf" | "length" | "tos" | "dscp" | "ttl" | "hl" | "ecn" | "tcpmss" | "mac" => {
            "depends on fields of the packet that are not given"
        }
        "owner" | "cgroup" | "socket" => "the sockets of the node are not known",
        "time" => "depends on the time of day",
        "physdev" => "the ports of bridges are not known",
        "policy" => "IPsec policies are not known",
        _ => "not a match that trace knows",
    };
    let option = if module.is_empty() { String::new() } else { format!("-m {module} ") };
    format!("{option}{}: {why}", words.join(" "))
}
