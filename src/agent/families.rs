//! Which IP families can be proxied on this node. A transient failure at start (a held lock) is retried for a
//! minute, because a family that is given up is not proxied until the process restarts.

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

/// How long the start tries to use a family.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// The delay after the first attempt; each delay is twice the one before, up to the maximum.
const MIN_DELAY: Duration = Duration::from_millis(500);
const MAX_DELAY: Duration = Duration::from_secs(8);

/// The tables of the families that can be proxied, all of one back-end, and a finding for a family that cannot.
/// It is an error if that is the primary family, or the only family of the pods.
pub(super) async fn usable(config: &Config) -> anyhow::Result<(Vec<KernelIptables>, Option<Finding>)> {
    let backend = match config.backend {
        BackendChoice::Nft => Some(Backend::Nft),
        BackendChoice::Legacy => Some(Backend::Legacy),
        BackendChoice::Auto => blocking(detect_backend).await,
    };
    let deadline = Instant::now() + START_TIMEOUT;
    let v4 = retry_transient(deadline, async || blocking(move || open(IpFamily::V4, backend)).await).await;
    let v6 = if programs::is_ipv6_disabled(Path::new(PROC)) {
        info!("IPv6 is disabled in the kernel; proxying IPv4 only");
        None
    } else {
        Some(retry_transient(deadline, async || blocking(move || open(IpFamily::V6, backend)).await).await)
    };
    let (kernels, lost) = choose(primary(config), v4, v6)?;
    let families: Vec<IpFamily> = kernels.iter().map(crate::kernel::Iptables::family).collect();
    check(config, &families)?;
    Ok((kernels, lost))
}

/// The back-end that the kubelet uses, or an earlier kube-proxy used.
fn detect_backend() -> Option<Backend> {
    programs::detect_backend(&[
        names::KUBE_IPTABLES_HINT,
        names::KUBE_KUBELET_CANARY,
        names::KUBE_PROXY_CANARY,
    ])
}

/// Tries `open` until it succeeds, fails permanently, or fails after `deadline`.
async fn retry_transient<T>(
    deadline: Instant,
    mut open: impl AsyncFnMut() -> Result<T, Unusable>,
) -> Result<T, Unusable> {
    let mut delay = MIN_DELAY;
    loop {
        match open().await {
            Err(error) if error.is_transient() && Instant::now() + delay <= deadline => {
                warn!(%error, retry_in = ?delay, "cannot use iptables yet");
                tokio::time::sleep(delay).await;
                delay = (delay * 2).min(MAX_DELAY);
            }
            outcome => return outcome,
        }
    }
}

/// The family that has to be proxied: that of `bindAddress`, else the only family of the pods, else IPv4.
/// kube-proxy uses the Node's addresses, which are not known yet.
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

/// The families that could be opened, and a finding for one that could not. `v6` is `None` if the kernel has no IPv6.
fn choose<T>(
    primary: IpFamily,
    v4: Result<T, Unusable>,
    v6: Option<Result<T, Unusable>>,
) -> Result<(Vec<T>, Option<Finding>), Unusable> {
    let lost = |family: IpFamily, error: Unusable| {
        warn!(%family, %error, "cannot use iptables; family not proxied");
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

/// Rejects a configuration whose pods are all of a family that this node cannot proxy.
fn check(config: &Config, families: &[IpFamily]) -> anyhow::Result<()> {
    let [only] = families else { return Ok(()) };
    let cidrs = &config.cluster_cidrs;
    if !cidrs.is_empty() && cidrs.iter().all(|cidr| cidr.family() != *only) {
        bail!("clusterCIDR has no network of {only}, the only family that this node can proxy");
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
    async fn a_lock_held_for_half_a_minute_loses_no_family() {
        let start = Instant::now();
        let free_at = start + Duration::from_secs(30);
        let open = async || if Instant::now() < free_at { Err(busy()) } else { Ok("nat") };
        assert_eq!(retry_transient(start + START_TIMEOUT, open).await.unwrap(), "nat");
        assert!(start.elapsed() < Duration::from_secs(40), "{:?}", start.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_lock_held_for_ever_is_given_up_and_a_permanent_failure_is_tried_once() {
        let start = Instant::now();
        let error = retry_transient(start + START_TIMEOUT, async || Err::<(), _>(busy())).await.unwrap_err();
        assert!(error.is_transient(), "{error}");
        let elapsed = start.elapsed();
        assert!(elapsed <= START_TIMEOUT && elapsed > START_TIMEOUT - MAX_DELAY, "{elapsed:?}");
        let (mut n, again) = (0, Instant::now());
        let outcome = retry_transient(again + START_TIMEOUT, async || {
            n += 1;
            Err::<(), _>(missing())
        });
        assert!(outcome.await.is_err());
        assert_eq!((n, again.elapsed()), (1, Duration::ZERO));
    }

    #[test]
    fn without_the_primary_family_it_is_an_error_and_a_lost_other_family_is_a_finding() {
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
