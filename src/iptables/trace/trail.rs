//! What a walk has met, the last first; forks share their beginning.

use std::rc::Rc;

use super::details::{RoutingDecision, TraceEvent, UndecidedRule, Visit};
use super::step::Step;

/// One thing that a walk met.
pub(super) enum Met {
    /// A rule that matched, or a policy.
    Matched(Step),
    /// A chain, with what is known on entering.
    Entered(Visit),
    /// The end of the innermost chain, or RETURN, with the number of its rules that were compared.
    Left(usize),
    /// A routing decision.
    Routed(RoutingDecision),
    /// A rule that cannot be decided.
    Undecided(UndecidedRule),
}

struct Footprint {
    met: Met,
    /// Matched rules so far.
    n_steps: u16,
    before: Option<Rc<Footprint>>,
}

/// The way of a walk.
#[derive(Clone, Default)]
pub(super) struct Trail(Option<Rc<Footprint>>);

impl Trail {
    pub(super) fn push(&mut self, met: Met) {
        let n_steps = self.n_steps() + u16::from(matches!(met, Met::Matched(_)));
        self.0 = Some(Rc::new(Footprint { met, n_steps, before: self.0.take() }));
    }

    /// Matched rules and policies so far.
    pub(super) fn n_steps(&self) -> u16 {
        self.0.as_ref().map_or(0, |link| link.n_steps)
    }

    /// Everything met, the last first.
    pub(super) fn backwards(&self) -> impl Iterator<Item = &Met> {
        let mut at = self.0.as_deref();
        std::iter::from_fn(move || {
            let link = at?;
            at = link.before.as_deref();
            Some(&link.met)
        })
    }

    /// The matched rules, the first first.
    pub(super) fn path(&self) -> Vec<Step> {
        let steps =
            self.backwards().filter_map(|met| if let Met::Matched(step) = met { Some(*step) } else { None });
        let mut path: Vec<Step> = steps.collect();
        path.reverse();
        path
    }

    /// The undecided rules, the first first.
    pub(super) fn undecided(&self) -> Vec<UndecidedRule> {
        let rules = self.backwards().filter_map(|met| match met {
            Met::Undecided(rule) => Some(rule.clone()),
            _ => None,
        });
        let mut rules: Vec<UndecidedRule> = rules.collect();
        rules.reverse();
        rules
    }

    /// Chains and routing decisions, the first first. `last` is the number of the last rule that was compared,
    /// if that ended the walk without matching.
    pub(super) fn events(&self, last: Option<usize>) -> Vec<TraceEvent> {
        let met: Vec<&Met> = self.backwards().collect();
        let mut events = OpenVisits::default();
        met.into_iter().rev().for_each(|met| events.add(met));
        if let (Some(visit), Some(last)) = (events.innermost(), last) {
            visit.n_rules = last;
        }
        events.events
    }
}

/// Events, and which of them are chains that have not been left, outermost first.
#[derive(Default)]
struct OpenVisits {
    events: Vec<TraceEvent>,
    open: Vec<usize>,
}

impl OpenVisits {
    fn innermost(&mut self) -> Option<&mut Visit> {
        match self.events.get_mut(*self.open.last()?) {
            Some(TraceEvent::Entered(visit)) => Some(visit),
            _ => None,
        }
    }

    fn add(&mut self, met: &Met) {
        match met {
            Met::Entered(visit) => {
                // A built-in chain is entered once all chains of the hook and table before are left.
                if visit.depth == 0 {
                    self.open.clear();
                }
                self.open.push(self.events.len());
                self.events.push(TraceEvent::Entered(visit.clone()));
            }
            Met::Routed(decision) => {
                self.open.clear();
                self.events.push(TraceEvent::Routed(decision.clone()));
            }
            Met::Left(n_rules) => {
                if let Some(visit) = self.innermost() {
                    visit.n_rules = *n_rules;
                }
                // The policy of a built-in chain is met after its end.
                if self.open.len() > 1 {
                    self.open.pop();
                }
            }
            Met::Matched(step) => {
                if let Some(visit) = self.innermost() {
                    match step.rule {
                        Some(number) => {
                            visit.matched.push(number);
                            visit.n_rules = visit.n_rules.max(number);
                        }
                        None => visit.met_policy = true,
                    }
                }
            }
            Met::Undecided(rule) => {
                if let (Some(visit), Some(number)) = (self.innermost(), rule.step.rule) {
                    visit.undecided.push(number);
                }
            }
        }
    }
}
