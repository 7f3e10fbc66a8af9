//! Written rules are read back as the same values.

use chainsmith::iptables::{ChainName, parse, write};
use chainsmith::kernel::Backend;
use chainsmith::kernel::fake::FakeIptables;
use chainsmith::net::IpFamily;
use chainsmith::plan::Restore;
use proptest::prelude::*;
use proptest::sample::select;

use crate::cluster::worlds;
use crate::for_all;
use crate::live::{families, same};
use crate::rulesets::{rules, rulesets, texts};

#[test]
fn any_rule_is_read_back_from_its_text() {
    for family in IpFamily::BOTH {
        for_all(3000, rules(family), |rule| {
            let line = format!("-A X {}", write::rule_text(family, &rule));
            prop_assert_eq!(
                parse::line(family, &line),
                Ok(parse::Line::Append(ChainName::literal("X"), rule)),
                "{}",
                line
            );
            Ok(())
        });
    }
}

#[test]
fn any_ruleset_is_read_back_from_its_text() {
    for family in IpFamily::BOTH {
        for_all(1000, rulesets(family), |ruleset| {
            let text = write::save(family, &ruleset);
            let read = parse::save(family, &text);
            prop_assert!(read.is_ok(), "{:?}\n{}", read, text);
            same(family, "read back", &read.expect("checked above"), &ruleset)
        });
    }
}

#[test]
fn rules_of_any_cluster_are_read_back_from_both_forms() {
    for_all(640, (worlds(), families()), |(world, family)| {
        let ruleset = world.ruleset(family);
        let saved = parse::save(family, &write::save(family, &ruleset));
        same(family, "save", &saved.expect("our own text"), &ruleset)?;
        let mut kernel = FakeIptables::new(family, Backend::Nft);
        kernel.begin();
        kernel.write(&write::restore(family, &ruleset));
        prop_assert_eq!(kernel.end(), Ok(()));
        same(family, "restore", &kernel.ruleset, &ruleset)
    });
}

/// Unparsable lines must not stop a reader, since it reads foreign rules from the kernel.
#[test]
fn no_text_makes_the_parser_panic() {
    let starts = select(vec![
        "-A X ",
        ":X ",
        "*",
        "-I ",
        "[1:2] -A ",
        "-X ",
        "-A X -m comment --comment ",
        "-A X -p tcp -m tcp ",
        "",
    ]);
    for_all(4000, (starts, texts(), texts()), |(start, a, b)| {
        for family in IpFamily::BOTH {
            let _ = parse::line(family, &format!("{start}{a} --dport {b}"));
            let _ = parse::line(family, &format!("{start}{a}"));
        }
        Ok(())
    });
}
