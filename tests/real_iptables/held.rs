//! A rule of somebody else leads to a chain of ours that is no longer wanted.

use std::sync::atomic::AtomicBool;

use chainsmith::config::Config;
use chainsmith::config::host::Host;
use chainsmith::iptables::{ChainName, Table, parse};
use chainsmith::kernel::iptables::open;
use chainsmith::model::{Change, Touched};
use chainsmith::net::IpFamily;
use chainsmith::rules::Settings;
use chainsmith::sync::{FamilySync, View};

use super::compact::{PLACE, small};
use super::namespace::{everywhere, load, saved};

#[test]
fn a_chain_that_others_lead_to_stays_empty_and_holds_up_nobody() {
    everywhere(|family, backend| {
        let mut snapshot = small(family);
        let settings = Settings::new(&Config::default(), None, &Host::default(), family);
        let mut sync = FamilySync::new(open(family, Some(backend)).expect("iptables works"));
        sync.set_settings(settings);
        let mut run = |sync: &mut FamilySync<_>, snapshot: &_| {
            sync.sync(View { snapshot, place: PLACE }, &AtomicBool::new(false))
        };
        assert_eq!(run(&mut sync, &snapshot).outcome, Ok(()));
        let chains =
            |family: IpFamily| parse::save(family, &saved(family, backend)).expect("a save can be read");
        let is_service = |name: &&ChainName| name.as_str().starts_with("KUBE-SVC-");
        let held = *chains(family).tables[&Table::Nat].keys().find(is_service).expect("there is a Service");
        load(family, backend, &format!("*nat\n:MINE - [0:0]\n-A MINE -j {held}\nCOMMIT\n"));

        let first = snapshot.services().map(|service| service.name.clone()).collect::<Vec<_>>();
        for name in first {
            let mut touched = Touched::default();
            snapshot.apply(Change::Service(name, None), &mut touched);
            sync.touch(touched.services.get(family).clone());
            let report = run(&mut sync, &snapshot);
            assert_eq!((report.outcome, report.quarantined.len()), (Ok(()), 0));
        }
        let there = chains(family);
        let left: Vec<&ChainName> = there.tables[&Table::Nat].keys().filter(is_service).collect();
        assert_eq!(left, [&held]);
        assert!(there.chain(Table::Nat, &held).is_some_and(|chain| chain.rules.is_empty()));

        // At an audit it is tried again.
        load(family, backend, "*nat\n:MINE - [0:0]\nCOMMIT\n");
        sync.touch_everything(true);
        assert_eq!(run(&mut sync, &snapshot).outcome, Ok(()));
        assert!(!chains(family).tables[&Table::Nat].contains_key(&held));
    });
}
