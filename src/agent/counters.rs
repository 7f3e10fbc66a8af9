//! Which nfacct counters rules may name: those that the kernel has, and the programs take.

use tracing::warn;

use crate::kernel::programs::{self, KernelIptables};
use crate::kernel::{Iptables, nfacct};
use crate::model::host::Counters;
use crate::rules::fixed;

/// Which counters the kernel has, and the programs of all `kernels` take in a rule.
pub(super) fn usable(kernels: &mut [KernelIptables]) -> Counters {
    if !nfacct::is_supported() {
        return Counters::default();
    }
    let made =
        Counters { invalid: is_made(fixed::INVALID_COUNTER), localhost: is_made(fixed::LOCALHOST_COUNTER) };
    if !made.invalid {
        return Counters::default();
    }
    let takes = |kernel: &mut KernelIptables| {
        let taken = programs::accepts_rule(kernel, &fixed::counter_probe());
        if let Err(error) = &taken {
            warn!(family = %kernel.family(), %error, "no match nfacct; rules do without counters");
        }
        taken.is_ok()
    };
    if kernels.iter_mut().all(takes) { made } else { Counters::default() }
}

fn is_made(name: &str) -> bool {
    let made = nfacct::ensure(name);
    if let Err(error) = &made {
        warn!(counter = name, %error, "no nfacct counter; rules do without");
    }
    made.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Backend;
    use crate::kernel::in_new_namespace;
    use crate::kernel::programs::Programs;
    use crate::net::IpFamily;

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
