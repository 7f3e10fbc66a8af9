//! Which nfacct counters rules may name: those that the kernel has and the iptables programs accept.

use tracing::warn;

use crate::kernel::programs::{self, KernelIptables};
use crate::kernel::{Iptables, nfacct};
use crate::model::host::Counters;
use crate::rules::fixed;

/// The counters that the kernel has and the programs of all `kernels` accept in a rule.
pub(super) fn usable(kernels: &mut [KernelIptables]) -> Counters {
    if !nfacct::is_supported() {
        return Counters::default();
    }
    let made =
        Counters { invalid: is_made(fixed::INVALID_COUNTER), localhost: is_made(fixed::LOCALHOST_COUNTER) };
    if !made.invalid {
        return Counters::default();
    }
    let accepts = |kernel: &mut KernelIptables| {
        let accepted = programs::accepts_rule(kernel, &fixed::counter_probe());
        if let Err(error) = &accepted {
            warn!(family = %kernel.family(), %error, "iptables does not accept the nfacct match; rules have no counters");
        }
        accepted.is_ok()
    };
    if kernels.iter_mut().all(accepts) { made } else { Counters::default() }
}

fn is_made(name: &str) -> bool {
    let made = nfacct::ensure(name);
    if let Err(error) = &made {
        warn!(counter = name, %error, "cannot make the nfacct counter; rules do not have it");
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
    fn a_program_that_rejects_the_match_costs_only_the_counters() {
        in_new_namespace(|| {
            let real =
                |family| KernelIptables::new(family, Backend::Nft, Programs::new(family, Some(Backend::Nft)));
            let mut kernels = IpFamily::BOTH.map(real);
            assert_eq!(usable(&mut kernels), Counters { invalid: true, localhost: true });
            let rejecting = Programs { restore: "false", ..Programs::new(IpFamily::V6, Some(Backend::Nft)) };
            kernels[1] = KernelIptables::new(IpFamily::V6, Backend::Nft, rejecting);
            assert_eq!(usable(&mut kernels), Counters::default());
        });
    }
}
