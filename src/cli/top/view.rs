//! What is drawn of a report.

use clap::ValueEnum;

use crate::inspect::busiest::TopOrder;

/// What a row is: `--by`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum By {
    /// A service port.
    Service,
    /// An endpoint of a service port.
    Endpoint,
}

/// What is drawn of a report.
#[derive(Clone, Copy, Debug)]
pub(super) struct TopView {
    pub(super) by: By,
    pub(super) order: TopOrder,
    /// The most rows.
    pub(super) max: usize,
}
