//! The nfacct counters that rules name. Somebody may remove them (`nfacct flush`), and a rule that names
//! one that is gone is refused with its whole table: each sync makes sure of them first.

use tracing::warn;

use crate::config::host::Counters;
use crate::kernel::iptables::{self, KernelIptables};
use crate::kernel::{Iptables, nfacct};
use crate::rules::fixed;

/// Which counters the kernel has, and the programs of all `kernels` take in a rule.
pub(super) fn usable(kernels: &mut [KernelIptables]) -> Counters {
    if !nfacct::is_supported() {
        return Counters::default();
    }
    let made = ensured(Counters { invalid: true, localhost: true });
    if !made.invalid {
        return Counters::default();
    }
    let takes = |kernel: &mut KernelIptables| {
        let taken = iptables::takes(kernel, &fixed::counter_probe());
        if let Err(error) = &taken {
            warn!(family = %kernel.family(), %error, "no match nfacct; rules do without counters");
        }
        taken.is_ok()
    };
    if kernels.iter_mut().all(takes) { made } else { Counters::default() }
}

/// Those of `usable` that are there now, after making what is missing.
pub(super) fn ensured(usable: Counters) -> Counters {
    let ensure = |is_usable: bool, name: &str| {
        let made = |name| {
            nfacct::ensure(name).inspect_err(
                |error| warn!(counter = name, %error, "cannot make the nfacct counter; rules do without"),
            )
        };
        is_usable && made(name).is_ok()
    };
    Counters {
        invalid: ensure(usable.invalid, fixed::INVALID_COUNTER),
        localhost: ensure(usable.localhost, fixed::LOCALHOST_COUNTER),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Backend;
    use crate::kernel::in_new_namespace;
    use crate::kernel::iptables::Programs;
    use crate::net::IpFamily;

    #[test]
    fn counters_that_somebody_removed_are_made_again() {
        in_new_namespace(|| {
            let both = Counters { invalid: true, localhost: true };
            assert_eq!(ensured(Counters::default()), Counters::default());
            assert!(nfacct::packets(fixed::INVALID_COUNTER).is_err(), "what is not usable is not made");
            // A namespace without any is one whose counters were flushed.
            assert_eq!(ensured(both), both);
            assert_eq!(nfacct::packets(fixed::INVALID_COUNTER).unwrap(), 0);
            assert_eq!(nfacct::packets(fixed::LOCALHOST_COUNTER).unwrap(), 0);
        });
    }

    #[test]
    fn a_program_that_refuses_the_match_costs_the_counters_and_nothing_else() {
        in_new_namespace(|| {
            let real =
                |family| KernelIptables::new(family, Backend::Nft, Programs::new(family, Some(Backend::Nft)));
            let mut kernels = IpFamily::BOTH.map(real);
            assert_eq!(usable(&mut kernels), Counters { invalid: true, localhost: true });
            let refuses = Programs { restore: "false", ..Programs::new(IpFamily::V6, Some(Backend::Nft)) };
            kernels[1] = KernelIptables::new(IpFamily::V6, Backend::Nft, refuses);
            assert_eq!(usable(&mut kernels), Counters::default());
        });
    }
}
