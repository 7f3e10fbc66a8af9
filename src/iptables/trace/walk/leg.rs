//! The hooks that a packet passes, in order.

use crate::iptables::Table;
use crate::iptables::trace::details::Route;
use crate::iptables::trace::outcome::Delivery;
use crate::iptables::trace::packet::Hook;

/// A part of a packet's path, between two routing decisions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Leg {
    Arriving,
    ToNode,
    Through,
    Sending,
    /// Sent by the node to itself, arriving on `lo`. It does not meet nat, as its connection is not new any more.
    Looped,
}

impl Leg {
    /// The hooks and tables, in the order of the kernel's priorities.
    pub(super) fn stages(self) -> &'static [(Hook, Table)] {
        use Hook::{Forward, Input, Output, Postrouting, Prerouting};
        use Table::{Filter, Mangle, Nat, Raw, Security};
        match self {
            Leg::Arriving => &[(Prerouting, Raw), (Prerouting, Mangle), (Prerouting, Nat)],
            Leg::ToNode => &[(Input, Mangle), (Input, Filter), (Input, Security), (Input, Nat)],
            Leg::Through => &[
                (Forward, Mangle),
                (Forward, Filter),
                (Forward, Security),
                (Postrouting, Mangle),
                (Postrouting, Nat),
            ],
            Leg::Sending => &[
                (Output, Raw),
                (Output, Mangle),
                (Output, Nat),
                (Output, Filter),
                (Output, Security),
                (Postrouting, Mangle),
                (Postrouting, Nat),
            ],
            Leg::Looped => &[
                (Prerouting, Raw),
                (Prerouting, Mangle),
                (Input, Mangle),
                (Input, Filter),
                (Input, Security),
            ],
        }
    }

    /// The next leg, by whether the packet's destination is the node.
    pub(super) fn next(self, is_local: bool) -> Result<Leg, Delivery> {
        match (self, is_local) {
            (Leg::Arriving, true) => Ok(Leg::ToNode),
            (Leg::Arriving, false) => Ok(Leg::Through),
            (Leg::Sending, true) => Ok(Leg::Looped),
            (Leg::Sending | Leg::Through, _) => Err(Delivery::Forwarded),
            (Leg::ToNode | Leg::Looped, _) => Err(Delivery::Local),
        }
    }

    /// The decision that was made before this leg, or behind OUTPUT, by whether the packet's destination is the
    /// node.
    pub(super) fn route(self, is_local: bool) -> Route {
        match self {
            Leg::Sending if is_local => Route::Loopback,
            Leg::Sending => Route::Output,
            Leg::Through => Route::Forward,
            Leg::Arriving | Leg::ToNode | Leg::Looped => Route::Input,
        }
    }
}
