//! Which families can be proxied on this machine. What fails at start and may pass (a held lock) is
//! tried again for a while: a family that is given up is not proxied as long as the process lives.

use std::path::Path;
use std::time::Duration;

use anyhow::bail;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::config::{BackendChoice, Config};
use crate::kernel::Backend;
use crate::kernel::programs::{self, KernelIptables, Unusable, open};
use crate::net::IpFamily;
use crate::rules::names;
use crate::sync::Finding;

use super::{PROC, blocking};

/// How long a family is tried.
const PATIENCE: Duration = Duration::from_secs(60);
/// The pause after the first attempt; each is twice the one before, up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(8);

/// The tables of the families that can be proxied, all of one back-end, and the family that is lost.
/// It is an error when that is the primary one, or the only one of the pods.
pub(super) async fn usable(config: &Config) -> anyhow::Result<(Vec<KernelIptables>, Option<Finding>)> {
    let backend = match config.backend {
        BackendChoice::Nft => Some(Backend::Nft),
        BackendChoice::Legacy => Some(Backend::Legacy),
        BackendChoice::Auto => blocking(in_use).await,
    };
    let deadline = Instant::now() + PATIENCE;
    let v4 = patiently(deadline, async || blocking(move || open(IpFamily::V4, backend)).await).await;
    let v6 = if programs::is_ipv6_disabled(Path::new(PROC)) {
        info!("IPv6 is switched off in the kernel; proxying IPv4 only");
        None
    } else {
        Some(patiently(deadline, async || blocking(move || open(IpFamily::V6, backend)).await).await)
    };
    let (kernels, lost) = choose(primary(config), v4, v6)?;
    let families: Vec<IpFamily> = kernels.iter().map(crate::kernel::Iptables::family).collect();
    check(config, &families)?;
    Ok((kernels, lost))
}

/// The back-end that the kubelet uses, or another kube-proxy used.
fn in_use() -> Option<Backend> {
    programs::detect_backend(&[
        names::KUBE_IPTABLES_HINT,
        names::KUBE_KUBELET_CANARY,
        names::KUBE_PROXY_CANARY,
    ])
}

/// Tries `open` until it succeeds, fails for good, or fails after `deadline`.
async fn patiently<T>(
    deadline: Instant,
    mut open: impl AsyncFnMut() -> Result<T, Unusable>,
) -> Result<T, Unusable> {
    let mut pause = FIRST_PAUSE;
    loop {
        match open().await {
            Err(error) if error.is_transient() && Instant::now() + pause <= deadline => {
                warn!(%error, again_in = ?pause, "cannot use iptables yet");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            outcome => return outcome,
        }
    }
}

/// The family that has to be proxied. The Node's addresses, which kube-proxy goes by, are not known
/// yet: that of `bindAddress`, else the only one of the pods, else IPv4.
fn primary(config: &Config) -> IpFamily {
    if let Some(bound) = config.bind_address.filter(|ip| !ip.is_unspecified()) {
        return IpFamily::of(bound);
    }
    let cidrs = &config.cluster_cidrs;
    match !cidrs.is_empty() && cidrs.iter().all(|cidr| cidr.family() == IpFamily::V6) {
        true => IpFamily::V6,
        false => IpFamily::V4,
    }
}

/// Those that could be opened, and what is lost thereby. `v6` is `None` where there is no IPv6.
fn choose<T>(
    primary: IpFamily,
    v4: Result<T, Unusable>,
    v6: Option<Result<T, Unusable>>,
) -> Result<(Vec<T>, Option<Finding>), Unusable> {
    let lost = |family: IpFamily, error: Unusable| {
        warn!(%family, %error, "the family is not proxied");
        Some(Finding::FamilyNotProxied { family, error: error.to_string() })
    };
    match (v4, v6) {
        (v4, None) => Ok((vec![v4?], None)),
        (Ok(v4), Some(Ok(v6))) => Ok((vec![v4, v6], None)),
        (Ok(v4), Some(Err(error))) if primary == IpFamily::V4 => Ok((vec![v4], lost(IpFamily::V6, error))),
        (Err(error), Some(Ok(v6))) if primary == IpFamily::V6 => Ok((vec![v6], lost(IpFamily::V4, error))),
        (Ok(_), Some(Err(error))) | (Err(error), Some(_)) => Err(error),
    }
}

/// Refuses a configuration whose pods are all of a family that this machine cannot proxy.
fn check(config: &Config, families: &[IpFamily]) -> anyhow::Result<()> {
    let [only] = families else { return Ok(()) };
    let cidrs = &config.cluster_cidrs;
    if !cidrs.is_empty() && cidrs.iter().all(|cidr| cidr.family() != *only) {
        bail!("clusterCIDR has no network of {only}, the only family that this machine can proxy");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn busy() -> Unusable {
        Unusable::Busy { program: "iptables", message: "the xtables lock".to_owned() }
    }

    fn missing() -> Unusable {
        Unusable::Missing { program: "ip6tables", error: "not there".to_owned() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_lock_held_for_half_a_minute_costs_no_family() {
        let start = Instant::now();
        let free_at = start + Duration::from_secs(30);
        let open = async || if Instant::now() < free_at { Err(busy()) } else { Ok("nat") };
        assert_eq!(patiently(start + PATIENCE, open).await.unwrap(), "nat");
        assert!(start.elapsed() < Duration::from_secs(40), "{:?}", start.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_lock_held_for_ever_is_given_up_and_what_stays_is_tried_once() {
        let start = Instant::now();
        let error = patiently(start + PATIENCE, async || Err::<(), _>(busy())).await.unwrap_err();
        assert!(error.is_transient(), "{error}");
        let elapsed = start.elapsed();
        assert!(elapsed <= PATIENCE && elapsed > PATIENCE - LONGEST_PAUSE, "{elapsed:?}");
        let (mut n, again) = (0, Instant::now());
        let outcome = patiently(again + PATIENCE, async || {
            n += 1;
            Err::<(), _>(missing())
        });
        assert!(outcome.await.is_err());
        assert_eq!((n, again.elapsed()), (1, Duration::ZERO));
    }

    #[test]
    fn without_the_primary_family_it_ends_and_the_other_one_is_told() {
        use IpFamily::{V4, V6};
        let kept = |primary, v4, v6| choose(primary, v4, v6).map(|(kept, lost)| (kept, lost.is_some()));
        assert_eq!(kept(V4, Ok(4), Some(Ok(6))).unwrap(), (vec![4, 6], false));
        assert_eq!(kept(V4, Ok(4), Some(Err(missing()))).unwrap(), (vec![4], true));
        assert_eq!(kept(V6, Err(busy()), Some(Ok(6))).unwrap(), (vec![6], true));
        assert_eq!(kept(V4, Ok(4), None).unwrap(), (vec![4], false));
        assert!(kept(V4, Err(busy()), Some(Ok(6))).unwrap_err().is_transient());
        assert!(kept(V6, Ok(4), Some(Err(missing()))).is_err());
        assert!(kept(V4, Err(busy()), None).is_err());
        let (_, lost) = choose(V4, Ok(4), Some(Err(missing()))).unwrap();
        let lost = lost.unwrap();
        assert_eq!((lost.as_str(), lost.is_warning()), ("FamilyNotProxied", true));
        assert!(
            lost.to_string().starts_with("IPv6 Services are not served: ip6tables cannot be run"),
            "{lost}"
        );
    }
}
