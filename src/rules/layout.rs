//! The two layouts of the same rules, and which of them applies.

use crate::config::LayoutChoice;

/// With more endpoints than this in a family, kube-proxy omits the comments of endpoint rules, and layout
/// `auto` becomes compact. Source: kube-proxy v1.36, `largeClusterEndpointsThreshold`.
pub const LARGE_CLUSTER_ENDPOINTS: usize = 1000;

/// With fewer endpoints than this, layout `auto` returns to classic, so that a cluster of about
/// [`LARGE_CLUSTER_ENDPOINTS`] does not alternate.
pub const SMALL_CLUSTER_ENDPOINTS: usize = 800;

/// The layout of a family's rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// kube-proxy's own rules, to the byte.
    Classic {
        /// Without comments in rules for endpoints, as kube-proxy writes them in a large cluster.
        is_large: bool,
    },
    /// The same verdict for every packet, with shorter paths and a third of the rules.
    Compact,
}

impl Layout {
    /// The layout for `n_endpoints` where none is in force.
    pub fn plain(choice: LayoutChoice, n_endpoints: usize) -> Layout {
        let is_large = n_endpoints > LARGE_CLUSTER_ENDPOINTS;
        match choice {
            LayoutChoice::Compact => Layout::Compact,
            LayoutChoice::Auto if is_large => Layout::Compact,
            LayoutChoice::Auto | LayoutChoice::Classic => Layout::Classic { is_large },
        }
    }

    /// The layout for `n_endpoints` where `current` is in force: between the thresholds, and without a
    /// full sync, compact stays.
    pub fn next(choice: LayoutChoice, n_endpoints: usize, current: Layout, is_full: bool) -> Layout {
        let may_go_back = is_full && n_endpoints < SMALL_CLUSTER_ENDPOINTS;
        match (choice, current) {
            (LayoutChoice::Auto, Layout::Compact) if !may_go_back => Layout::Compact,
            _ => Layout::plain(choice, n_endpoints),
        }
    }

    /// Its name, as in `--layout`.
    pub fn as_str(self) -> &'static str {
        match self {
            Layout::Classic { .. } => "classic",
            Layout::Compact => "compact",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLASSIC: Layout = Layout::Classic { is_large: false };

    #[test]
    fn auto_is_compact_above_a_thousand_endpoints_and_classic_again_below_eight_hundred() {
        let check = |n_endpoints, current, is_full, expected| {
            let next = Layout::next(LayoutChoice::Auto, n_endpoints, current, is_full);
            assert_eq!(next, expected, "{n_endpoints} {current:?} {is_full}");
        };
        check(1000, CLASSIC, true, CLASSIC);
        check(1001, CLASSIC, false, Layout::Compact);
        check(800, Layout::Compact, true, Layout::Compact);
        check(799, Layout::Compact, false, Layout::Compact);
        check(799, Layout::Compact, true, CLASSIC);
    }

    #[test]
    fn a_configured_layout_stays() {
        for (choice, n_endpoints, expected) in [
            (LayoutChoice::Classic, 5000, Layout::Classic { is_large: true }),
            (LayoutChoice::Classic, 5, CLASSIC),
            (LayoutChoice::Compact, 0, Layout::Compact),
        ] {
            assert_eq!(Layout::plain(choice, n_endpoints), expected);
            for current in [CLASSIC, Layout::Compact] {
                assert_eq!(Layout::next(choice, n_endpoints, current, false), expected);
            }
        }
    }
}
