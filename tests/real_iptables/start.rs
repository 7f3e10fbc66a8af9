//! A start on a node without rules, in a cluster so large that the first sync is divided.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use chainsmith::apply::FamilySync;
use chainsmith::compile::View;
use chainsmith::config::LayoutChoice;
use chainsmith::iptables::{Ruleset, parse};
use chainsmith::kernel::Backend;
use chainsmith::kernel::programs::open;

use super::large::Recorded;
use super::namespace::{in_namespace, saved};
use super::starting::{self, Claims, FAMILY, service_chains, urgent_chains};

const N_SERVICES: usize = 3_000;

/// The tables that a packet passes now.
fn now(backend: Backend) -> Ruleset {
    let mut ruleset = Ruleset::with_built_in_chains();
    let there = parse::save(FAMILY, &saved(FAMILY, backend)).expect("a save can be read");
    for (table, chains) in there.tables {
        ruleset.tables.entry(table).or_default().extend(chains);
    }
    ruleset
}

#[test]
fn urgent_services_work_first_and_no_other_client_is_rejected_meanwhile() {
    for (backend, layout) in [
        (Backend::Nft, LayoutChoice::Auto),
        (Backend::Nft, LayoutChoice::Classic),
        (Backend::Legacy, LayoutChoice::Auto),
        (Backend::Legacy, LayoutChoice::Classic),
    ] {
        in_namespace(|| {
            let cluster = starting::cluster(N_SERVICES, 1, layout);
            let claims = Claims::new(&cluster, N_SERVICES, 53);
            let (n_others, urgent) = (claims.n_others(), urgent_chains(&cluster));
            let served = Arc::new(Mutex::new(Vec::new()));
            let noted = Arc::clone(&served);
            let look = move || {
                let (now, mut noted) = (now(backend), noted.lock().expect("no panic while locked"));
                let what = format!("{backend:?} {layout:?}, process {}", noted.len());
                claims.urgent_are_served(&what, &now);
                if noted.is_empty() {
                    assert_eq!(service_chains(&now), urgent, "{what}: these and no others");
                }
                noted.push(claims.others_have_their_first_or_final_fate(&what, &now));
            };
            let kernel = open(FAMILY, Some(backend)).expect("iptables works");
            let mut family = FamilySync::new(Recorded::new(kernel, look));
            family.set_settings(cluster.settings.clone());
            let view = View { snapshot: &cluster.snapshot, place: cluster.place() };
            let report = family.sync(view, &AtomicBool::new(false));
            assert_eq!(report.outcome, Ok(()));
            let served = served.lock().expect("no panic while locked");
            assert_eq!(served.len(), report.tally.n_processes);
            assert_eq!((served.first(), served.last()), (Some(&0), Some(&n_others)), "{served:?}");
        });
    }
}
