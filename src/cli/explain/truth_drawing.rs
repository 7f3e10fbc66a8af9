//! The truth table as text: a table where it fits, else a block for each frontend.

use crate::cli::output::{Plain, Screen, Style, styled};
use crate::inspect::explanation::{
    CellFate, CellVerdict, EndpointGroup, FrontendClass, FrontendExplanation, PacketReach, PortExplanation,
    TruthCell,
};
use std::net::SocketAddr;

/// The most endpoints that a cell names.
const MAX_NAMES: usize = 3;

/// Draws the truth table of `port`.
pub(super) fn draw(screen: &mut Screen, port: &PortExplanation) {
    if port.frontends.is_empty() {
        return;
    }
    let mut notes = Vec::new();
    let columns = columns(port, &mut notes);
    screen.gap();
    screen.line(styled(Style::Heading, "  Who answers packets"));
    let rows = table_rows(&columns);
    match screen.fits_words(2, &rows) {
        true => screen.table(2, &[], rows),
        false => draw_blocks(screen, &columns),
    }
    for (n, note) in notes.iter().enumerate() {
        screen.line(format!("  [{}] {}", n + 1, Plain(note)));
    }
}

/// Frontends of one kind that fare alike from everywhere.
struct Column {
    kind: FrontendClass,
    /// Where packets go, without duplicates.
    destinations: Vec<String>,
    /// The place and the text of each cell.
    cells: Vec<(String, CellText)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct CellText {
    text: String,
    style: Style,
}

fn columns(port: &PortExplanation, notes: &mut Vec<String>) -> Vec<Column> {
    let mut columns: Vec<Column> = Vec::new();
    for (n, frontend) in port.frontends.iter().enumerate() {
        let of_frontend = port.truth_table.iter().filter(|cell| cell.frontend == n);
        let cells: Vec<_> = of_frontend.map(|cell| (cell.from.clone(), cell_text(cell, notes))).collect();
        let destination = destination(port, frontend, n);
        let known = columns.iter_mut().find(|column| column.kind == frontend.kind && column.cells == cells);
        match known {
            Some(column) => column.destinations.push(destination),
            None => {
                let destinations = vec![destination];
                columns.push(Column { kind: frontend.kind, destinations, cells });
            }
        }
    }
    columns
}

/// `10.0.0.1:80`; for a node port `192.0.2.1:30080`, the address of the node that stands for all.
fn destination(port: &PortExplanation, frontend: &FrontendExplanation, n: usize) -> String {
    if let Some(address) = frontend.address {
        return SocketAddr::new(address, frontend.port).to_string();
    }
    let cells = port.truth_table.iter().filter(|cell| cell.frontend == n);
    let mut addresses = cells.map(|cell| cell.destination);
    let own = addresses.find(|to| !to.ip().is_loopback());
    own.map_or_else(|| frontend.port.to_string(), |to| to.to_string())
}

impl Column {
    fn heads(&self) -> Vec<String> {
        let kind = [self.kind.as_str().to_owned()];
        kind.into_iter().chain(self.destinations.iter().cloned()).collect()
    }
}

fn table_rows(columns: &[Column]) -> Vec<Vec<String>> {
    let lines =
        |style, lines: &[String]| lines.iter().map(|line| styled(style, line)).collect::<Vec<_>>().join("\n");
    let mut rows = vec![
        std::iter::once(styled(Style::Faint, "FROM"))
            .chain(columns.iter().map(|column| {
                let heads = column.heads();
                format!("{}\n{}", lines(Style::Faint, &heads[..1]), lines(Style::Name, &heads[1..]))
            }))
            .collect::<Vec<_>>(),
    ];
    let n_places = columns.first().map_or(0, |column| column.cells.len());
    for n in 0..n_places {
        let cells = columns.iter().filter_map(|column| column.cells.get(n));
        let cells = cells.map(|(_, cell)| styled(cell.style, &cell.text));
        let from = columns.first().and_then(|column| column.cells.get(n)).map(|(from, _)| from.clone());
        rows.push(from.into_iter().chain(cells).collect());
    }
    rows
}

fn draw_blocks(screen: &mut Screen, columns: &[Column]) {
    for column in columns {
        let destinations: Vec<String> =
            column.destinations.iter().map(|to| styled(Style::Name, to)).collect();
        screen.line(format!("  to {} {}", column.kind.as_str(), destinations.join(", ")));
        let cell = |(from, cell): &(String, CellText)| vec![from.clone(), styled(cell.style, &cell.text)];
        screen.table(4, &[], column.cells.iter().map(cell).collect());
    }
}

fn cell_text(cell: &TruthCell, notes: &mut Vec<String>) -> CellText {
    let plain = |text: &str, style| CellText { text: text.to_owned(), style };
    match cell.reach {
        PacketReach::OwnNode => return plain("handled by its own node", Style::Faint),
        PacketReach::NotRouted => return plain("not routed to the node", Style::Faint),
        PacketReach::ThisNode => {}
    }
    let texts: Vec<String> = cell
        .fates
        .iter()
        .map(|fate| {
            let share = match cell.fates.len() {
                1 => String::new(),
                _ => format!("{}: ", percent(fate.probability)),
            };
            format!("{share}{}{}", fate_text(fate), references(fate, notes))
        })
        .collect();
    let style = cell.fates.iter().map(fate_style).max_by_key(|style| match style {
        Style::Bad => 2,
        Style::Warning => 1,
        _ => 0,
    });
    CellText { text: texts.join("; "), style: style.unwrap_or(Style::Warning) }
}

/// ` [1]` for each rule that cannot be decided.
fn references(fate: &CellFate, notes: &mut Vec<String>) -> String {
    let mut text = String::new();
    for rule in &fate.undecided {
        let n = notes.iter().position(|known| known == rule).unwrap_or_else(|| {
            notes.push(rule.clone());
            notes.len() - 1
        });
        text.push_str(&format!(" [{}]", n + 1));
    }
    text
}

fn fate_style(fate: &CellFate) -> Style {
    match fate.verdict {
        CellVerdict::Rejected | CellVerdict::Dropped => Style::Bad,
        CellVerdict::Endpoint if fate.is_unanswerable || fate.other_service_port.is_some() => Style::Bad,
        CellVerdict::Endpoint if fate.undecided.is_empty() => Style::Good,
        _ => Style::Warning,
    }
}

fn fate_text(fate: &CellFate) -> String {
    let reason = fate.reason.as_deref().unwrap_or("unknown reason");
    match fate.verdict {
        CellVerdict::Endpoint => {}
        CellVerdict::ToNode => return "no rule: the node itself".to_owned(),
        CellVerdict::Untranslated => return "no rule: not translated".to_owned(),
        CellVerdict::Rejected => return format!("rejected: {reason}"),
        CellVerdict::Dropped => return format!("dropped: {reason}"),
        CellVerdict::Unknown => return format!("unknown: {reason}"),
    }
    let mut text = match (&fate.other_service_port, fate.group) {
        (Some(other), _) => format!("{other} answers"),
        (None, Some(EndpointGroup::All)) if fate.n_endpoints > 1 => format!("all {}", fate.n_endpoints),
        (None, Some(EndpointGroup::Zone)) => format!("{} for this zone", fate.n_endpoints),
        (None, Some(EndpointGroup::NodeHint)) => format!("{} for this node", fate.n_endpoints),
        (None, Some(EndpointGroup::Local)) => format!("{} on this node", fate.n_endpoints),
        _ if fate.n_endpoints > MAX_NAMES => format!("{} endpoints", fate.n_endpoints),
        _ => {
            let names: Vec<String> = fate.endpoints.iter().map(|share| share.address.to_string()).collect();
            names.join(", ")
        }
    };
    if fate.is_masqueraded {
        text.push_str(", masqueraded");
    }
    if fate.is_unanswerable {
        text.push_str(", no reply: the source stays loopback");
    }
    text
}

fn percent(probability: f64) -> String {
    match probability * 100.0 {
        small if small < 1.0 => "<1%".to_owned(),
        share => format!("{share:.0}%"),
    }
}
