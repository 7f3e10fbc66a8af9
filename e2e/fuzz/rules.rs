//! Rules as text and as values, back and forth, and the outcome of a packet under them.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use chainsmith::iptables::trace::{Origin, Packet, RecentLists, TracedNode, trace};
use chainsmith::iptables::{Match, Rule, Ruleset, parse, write};
use chainsmith::net::{IpFamily, Protocol};
use proptest::strategy::{BoxedStrategy, Strategy};

use super::dice::SEEDS;
use super::rulesets::rulesets;
use super::served::is_one_line;
use super::texts::family;
use super::{Dice, Trial};

/// The output of `iptables-save` as another program, another release or an accident may have left it.
pub fn saved(dice: &mut Dice) -> Trial {
    let family = family(dice);
    let input = dice.mutated(&SEEDS.saves[usize::from(family == IpFamily::V6)]);
    let to = destination(dice, family);
    let claim = move |input: &[u8]| {
        let text = String::from_utf8_lossy(input);
        for line in text.lines() {
            if let Err(error) = parse::line(family, line) {
                is_one_line(&error.what)?;
            }
        }
        match parse::save(family, &text) {
            Ok(ruleset) => check(family, &ruleset, to),
            Err(_) => Ok(()),
        }
    };
    Trial { input, claim: Box::new(claim) }
}

thread_local! {
    static RULESETS: [BoxedStrategy<Ruleset>; 2] = IpFamily::BOTH.map(|family| rulesets(family).boxed());
}

/// All kinds of rules.
pub fn random(dice: &mut Dice) -> Trial {
    let family = family(dice);
    let ruleset = RULESETS.with(|all| dice.value(&all[usize::from(family == IpFamily::V6)]));
    let to = destination(dice, family);
    let input = write::save(family, &ruleset).into_bytes();
    let claim = move |input: &[u8]| {
        let text = String::from_utf8_lossy(input);
        match parse::save(family, &text) {
            Ok(read) if read == ruleset => check(family, &ruleset, to),
            other => Err(format!("read back as {other:?}")),
        }
    };
    Trial { input, claim: Box::new(claim) }
}

fn destination(dice: &mut Dice, family: IpFamily) -> SocketAddr {
    let ip = match family {
        IpFamily::V4 => *dice.pick(&["172.30.0.41", "192.0.2.1", "10.0.0.1", "127.0.0.1"][..]),
        IpFamily::V6 => *dice.pick(&["fd00:172:30::41", "2001:db8::1", "::1"][..]),
    };
    SocketAddr::new(ip.parse().expect("an address"), *dice.pick(&[80, 443, 30_080]))
}

/// Claims that rules are written as they were read, and that the probabilities of a packet's outcomes add up to one.
fn check(family: IpFamily, ruleset: &Ruleset, to: SocketAddr) -> Result<(), String> {
    let text = write::save(family, ruleset);
    let again = parse::save(family, &text).map_err(|error| format!("our own text is refused: {error}"))?;
    // An option that belongs to no module may stand after one: iptables rejects such a line.
    let has_stray = |rule: &Rule| {
        rule.matches.iter().any(|m| matches!(m, Match::Other { module, .. } if module.is_empty()))
    };
    let mut rules = ruleset.tables.values().flat_map(|chains| chains.values()).flat_map(|chain| &chain.rules);
    if again != *ruleset && !rules.any(has_stray) {
        return Err(format!("written as\n{text}\nand read back otherwise"));
    }
    let own: BTreeSet<IpAddr> = ["192.0.2.1", "2001:db8::1"].map(|ip| ip.parse().expect("an address")).into();
    let node = TracedNode { ruleset, local_addresses: &own, routes: &[] };
    let source = SocketAddr::new(
        match family {
            IpFamily::V4 => IpAddr::from([192, 0, 2, 99]),
            IpFamily::V6 => IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x99]),
        },
        40_000,
    );
    for origin in [Origin::Node, Origin::Arrives(Some("eth0".into()))] {
        let packet = Packet::new(origin, source, to, Protocol::Tcp);
        let branches = trace(&node, &packet, &RecentLists::default());
        let sum: f64 = branches.iter().map(|branch| branch.weight.to_f64()).sum();
        if (sum - 1.0).abs() > 1e-6 {
            return Err(format!("the shares of a packet's fates are {sum} together"));
        }
    }
    Ok(())
}
