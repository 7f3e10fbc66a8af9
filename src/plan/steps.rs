//! The steps of a plan, in the orders in which they happen.
//!
//! After every commit, at whatever step the agent is stopped or killed, each packet meets its old or its new
//! rules. Two facts make that possible: a filter rule for a Service's address never meets a packet that nat
//! has sent to an endpoint, so old and new filter rules may stand together; and a chain's name says which
//! packets it is for, so new content is right for old callers (the exception is [`When::WithDispatch`]).
//!
//! [`When::WithDispatch`]: super::When::WithDispatch

/// One step of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlanStep {
    /// filter holds the rules in force and the desired ones together, the old ones first; then the jumps into
    /// it are complete. Until nat has changed, a packet that nat does not translate meets the old REJECT
    /// or DROP; one that nat is about to translate meets neither.
    FilterUnion,
    /// The chains of nat that no Service changes, in one commit: the mark that the service ports' chains set
    /// is always the mark that masquerading looks for.
    FixedNat,
    /// The chains of each service port that changed, callees first, in one commit for each service port.
    /// A packet that the old dispatch sends to them meets the new endpoints.
    ServicePorts,
    /// The shared chains: which service port a packet is for. With them come the chains that wait for the
    /// dispatch, in one commit. After it, new connections go to the new service ports.
    Dispatch,
    /// The fixed chains of nat that the old service ports' chains needed so far.
    FixedNatLast,
    /// The jumps into nat that are missing. On a node without rules, Services begin to work here.
    NatJumps,
    /// Stale chains of nat are deleted, or flushed where foreign rules refer to them. No packet met them
    /// since the dispatch.
    StaleNat,
    /// filter holds the desired rules alone, and its stale chains are deleted. A packet that nat does not
    /// translate any more meets no old rule.
    FilterDesired,
    /// Entries of filter are tried in a chain to which nothing leads and which is gone with the same commit.
    ProbeFilter,
    /// The same in nat. No packet meets either.
    ProbeNat,
}

/// In which order the steps happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepOrder {
    /// filter around nat: on a node that has rules.
    FilterAroundNat,
    /// filter after nat: on a node without rules whose nat is written in several commits. A REJECT for some
    /// of a Service's clients would meet all of them, as long as nat does not translate the rest.
    FilterAfterNat,
    /// Tries the chains and entries of some service ports; the dispatch does not change.
    Probe,
}

impl StepOrder {
    /// The steps in their order.
    pub fn steps(self) -> &'static [PlanStep] {
        use PlanStep::*;
        match self {
            StepOrder::FilterAroundNat => &[
                FilterUnion,
                FixedNat,
                ServicePorts,
                Dispatch,
                FixedNatLast,
                NatJumps,
                StaleNat,
                FilterDesired,
            ],
            StepOrder::FilterAfterNat => &[
                FixedNat,
                ServicePorts,
                Dispatch,
                FixedNatLast,
                NatJumps,
                StaleNat,
                FilterUnion,
                FilterDesired,
            ],
            StepOrder::Probe => &[ProbeFilter, FixedNat, ServicePorts, ProbeNat],
        }
    }
}
