//! Whether session affinity holds: the kernel remembers so many clients of an endpoint, and forgets
//! the one not seen for the longest time when another comes.

use std::collections::BTreeSet;
use std::io;
use std::time::Duration;

use tokio::time::Instant;
use tracing::warn;

use super::FamilySync;
use crate::kernel::Iptables;
use crate::kernel::affinity_lists::{AffinityLists, FullLists};
use crate::model::ServicePortName;
use crate::net::IpFamily;

/// How often the lists are looked at, unless audits come more often.
const PERIOD: Duration = Duration::from_secs(60);

/// Looks at the lists from time to time, and says of each service port once that one of its is full.
pub(super) struct Affinity {
    lists: AffinityLists,
    period: Duration,
    look_at: Instant,
    said: BTreeSet<(IpFamily, ServicePortName)>,
    /// Whether it was said that the lists cannot be read.
    is_troubled: bool,
}

impl Affinity {
    pub(super) fn new(lists: AffinityLists, audit_period: Duration, now: Instant) -> Affinity {
        let period = audit_period.min(PERIOD);
        Affinity { lists, period, look_at: now + period, said: BTreeSet::new(), is_troubled: false }
    }

    /// When to look next.
    pub(super) fn look_at(&self) -> Instant {
        self.look_at
    }

    /// What to look at now.
    pub(super) fn begin(&mut self, now: Instant) -> AffinityLists {
        self.look_at = now + self.period;
        self.lists.clone()
    }

    /// Notes what was found.
    pub(super) fn looked<K: Iptables>(
        &mut self,
        found: io::Result<FullLists>,
        families: &[FamilySync<K>],
        tell: &dyn Fn(IpFamily, usize),
    ) {
        let full = match found {
            Ok(full) => full,
            Err(error) => {
                if !std::mem::replace(&mut self.is_troubled, true) {
                    warn!(%error, "cannot tell whether the kernel remembers all clients for session affinity");
                }
                return;
            }
        };
        self.is_troubled = false;
        self.said.retain(|(family, port)| {
            families.iter().any(|sync| sync.family() == *family && sync.compiled().has_service_port(port))
        });
        for sync in families {
            let family = sync.family();
            let ours = sync.compiled().owners_of(&full.names);
            tell(family, ours.len());
            for (list, port) in ours {
                if self.said.insert((family, port.clone())) {
                    warn!(
                        %family, service_port = %port, protocol = %port.protocol, %list, clients = full.capacity,
                        "the kernel remembers no more clients of an endpoint: with each new one, the one not seen \
                         for the longest time loses its session affinity (more: ip_list_tot of xt_recent)"
                    );
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::sync::atomic::AtomicBool;

    use super::*;
    use crate::compile::View;
    use crate::config::Config;
    use crate::iptables::{ChainName, Table};
    use crate::kernel::Backend;
    use crate::kernel::fake::FakeIptables;
    use crate::model::decode::{Interner, manifest};
    use crate::model::host::Host;
    use crate::model::{Change, Inventory, ObjectName, Touched};
    use crate::policy::Place;
    use crate::rules::Settings;

    const STICKY: &str = "
kind: Service
metadata: {name: sticky}
spec: {clusterIP: 10.96.0.1, sessionAffinity: ClientIP, ports: [{name: http, port: 80}]}
---
kind: EndpointSlice
metadata: {name: sticky-1, labels: {kubernetes.io/service-name: sticky}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints: [{addresses: [10.1.0.1]}, {addresses: [10.1.0.2]}]
";

    #[test]
    fn a_full_list_is_said_once_for_its_service_port_while_that_exists() {
        let (mut inventory, mut interner) = (Inventory::default(), Interner::default());
        manifest::read(STICKY.as_bytes(), "test", &mut |object| {
            assert_eq!(inventory.add(&object, &mut interner), []);
        });
        let mut snapshot = inventory.snapshot_for("n");
        let mut sync = FamilySync::new(FakeIptables::new(IpFamily::V4, Backend::Nft));
        sync.set_settings(Settings::new(&Config::default(), None, &Host::default(), IpFamily::V4));
        let place = Place { node: "n", zone: None };
        sync.sync(View { snapshot: &snapshot, place }, &AtomicBool::new(false));
        let chains = sync.kernel().ruleset.tables[&Table::Nat].keys().copied();
        let mut names: Vec<ChainName> =
            chains.filter(|name| name.as_str().starts_with("KUBE-SEP-")).collect();
        assert_eq!(names.len(), 2);
        names.push(ChainName::literal("NOT-OURS"));

        let n_full = Cell::new(None);
        let mut affinity =
            Affinity::new(AffinityLists::at("/nowhere", "/nowhere"), PERIOD * 5, Instant::now());
        let mut families = [sync];
        let mut look = |names: &[ChainName], families: &[FamilySync<FakeIptables>]| {
            let found = Ok(FullLists { capacity: 100, names: names.to_vec() });
            let now = Instant::now();
            affinity.begin(now);
            affinity.looked(found, families, &|family, n| n_full.set(Some((family, n))));
            assert_eq!(affinity.look_at(), now + PERIOD, "audits are rarer");
            let (family, n) = n_full.take().unwrap();
            assert_eq!(family, IpFamily::V4);
            (affinity.said.len(), n)
        };
        assert_eq!(look(&names, &families), (1, 2), "two endpoints, one service port");
        assert_eq!(look(&names[..1], &families), (1, 1));
        assert_eq!(look(&[], &families), (1, 0), "and is not said again when it fills up again");

        let mut touched = Touched::default();
        snapshot.apply(Change::Service(ObjectName::new("default", "sticky"), None), &mut touched);
        families[0].touch(touched.services.v4);
        families[0].sync(View { snapshot: &snapshot, place }, &AtomicBool::new(false));
        assert_eq!(look(&names, &families), (0, 0));
    }

    #[test]
    fn lists_that_cannot_be_read_are_said_once_and_looked_at_again() {
        let start = Instant::now();
        let short = Duration::from_secs(5);
        let mut affinity = Affinity::new(AffinityLists::at("/nowhere", "/nowhere"), short, start);
        let families: [FamilySync<FakeIptables>; 0] = [];
        for is_troubled in [true, true, false] {
            let lists = affinity.begin(start);
            let found = if is_troubled { Err(io::ErrorKind::PermissionDenied.into()) } else { lists.full() };
            affinity.looked(found, &families, &|_, _| {});
            assert_eq!((affinity.is_troubled, affinity.look_at()), (is_troubled, start + short));
        }
    }
}
