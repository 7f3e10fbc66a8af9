//! What commands print on stdout: a report as text for people, or as JSON for programs.
#![allow(clippy::disallowed_methods, reason = "reads COLUMNS")]

mod wrap;

use std::fmt::{self, Display};
use std::io::{self, Write};
use std::process::ExitCode;

use anstyle::{AnsiColor, Effects};
use clap::{Args, ValueEnum};
use serde::Serialize;
use tabled::builder::Builder;
use tabled::settings::object::Columns;
use tabled::settings::{Padding, Style as TableStyle};

use super::print_error;
pub use crate::inspect::envelope::to_json as json;
use crate::model::needs_escape;

/// The form of the output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum OutputForm {
    /// For people.
    #[default]
    Text,
    /// One JSON object.
    Json,
}

/// `-o`.
#[derive(Clone, Copy, Debug, Default, Args)]
pub struct OutputArguments {
    /// `text` for people, `json` for programs
    #[arg(short = 'o', long = "output", value_name = "FORM", default_value = "text")]
    output: OutputForm,
}

impl OutputArguments {
    /// Whether the output is JSON.
    pub fn is_json(self) -> bool {
        self.output == OutputForm::Json
    }

    /// Prints `report` as JSON of this `kind`, or as `draw` draws it. Returns `status`; failure when stdout cannot be
    /// written. A closed pipe is no failure.
    pub fn print_report<T: Serialize>(
        self,
        kind: &str,
        report: &T,
        status: ExitCode,
        draw: impl FnOnce(&mut Screen),
    ) -> ExitCode {
        match self.output {
            OutputForm::Json => print_text(&json(kind, report), status),
            OutputForm::Text => {
                let mut screen = Screen::new(terminal_width());
                draw(&mut screen);
                print_text(screen.as_str(), status)
            }
        }
    }
}

/// Writes `text`, without its styles where stdout is no terminal or `NO_COLOR` is set.
pub fn print_text(text: &str, status: ExitCode) -> ExitCode {
    let mut stdout = anstream::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        // `| head` reads only the beginning.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            print_error(format!("cannot write: {error}"));
            ExitCode::FAILURE
        }
        _ => status,
    }
}

/// Columns of the terminal, or as `COLUMNS` says; `None` when stdout is no terminal: then no line is wrapped.
fn terminal_width() -> Option<usize> {
    let given = std::env::var("COLUMNS").ok().and_then(|text| text.parse().ok());
    let width = given.or_else(|| {
        let (width, _) = terminal_size::terminal_size_of(io::stdout())?;
        Some(usize::from(width.0))
    });
    width.filter(|width| *width > 0).map(|width| width.max(MIN_WIDTH))
}

/// No table is squeezed below this.
const MIN_WIDTH: usize = 40;

/// What a text means, which decides its colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// The head of a section.
    Heading,
    /// The name of an object, chain or address.
    Name,
    /// As it should be.
    Good,
    /// To be looked at.
    Warning,
    /// Broken.
    Bad,
    /// Of less interest.
    Faint,
    /// Only in the second of two.
    Added,
    /// Only in the first of two.
    Removed,
}

impl Style {
    fn ansi(self) -> anstyle::Style {
        let color = |color: AnsiColor| color.on_default();
        match self {
            Style::Heading => anstyle::Style::new().effects(Effects::BOLD),
            Style::Name => color(AnsiColor::Cyan),
            Style::Good | Style::Added => color(AnsiColor::Green),
            Style::Warning => color(AnsiColor::Yellow),
            Style::Bad => color(AnsiColor::Red).effects(Effects::BOLD),
            Style::Faint => anstyle::Style::new().effects(Effects::DIMMED),
            Style::Removed => color(AnsiColor::Red),
        }
    }
}

/// `text` in the colour of `style`, with control characters escaped.
pub fn styled(style: Style, text: impl Display) -> String {
    let style = style.ansi();
    format!("{style}{}{style:#}", Plain(text))
}

/// Shows a value with control characters escaped, so that no text of an object moves the cursor.
pub struct Plain<T>(pub T);

impl<T: Display> Display for Plain<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.to_string().chars() {
            if needs_escape(c) { write!(f, "{}", c.escape_default())? } else { write!(f, "{c}")? }
        }
        Ok(())
    }
}

/// Text that a command draws, with styles, for a terminal of known width or for a file.
#[derive(Clone, Debug, Default)]
pub struct Screen {
    text: String,
    width: Option<usize>,
}

impl Screen {
    /// An empty one, of `width` columns; `None`: as wide as its lines.
    pub fn new(width: Option<usize>) -> Screen {
        Screen { text: String::new(), width }
    }

    /// Columns; `None`: no line needs wrapping.
    pub fn width(&self) -> Option<usize> {
        self.width
    }

    /// The text, with styles.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Adds a line. The caller escapes what comes from objects ([`styled`], [`Plain`]).
    pub fn line(&mut self, line: impl Display) {
        self.text.push_str(&line.to_string());
        self.text.push('\n');
    }

    /// Adds `text`, wrapped at spaces: the first line is indented by `indent` columns, further ones by `hanging`.
    pub fn paragraph(&mut self, (indent, hanging): (usize, usize), style: Option<Style>, text: impl Display) {
        let text = Plain(text).to_string();
        let show = |line: &str| style.map_or_else(|| line.to_owned(), |style| styled(style, line));
        let mut start = indent;
        let mut line = String::new();
        for word in text.split(' ') {
            let n_columns = start + line.chars().count() + 1 + word.chars().count();
            if !line.is_empty() && self.width.is_some_and(|width| n_columns > width) {
                self.line(format_args!("{:start$}{}", "", show(line.trim_end())));
                (start, line) = (hanging, String::new());
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
        self.line(format_args!("{:start$}{}", "", show(line.trim_end())));
    }

    /// Adds an empty line, unless the text is empty or ends with one.
    pub fn gap(&mut self) {
        if !self.text.is_empty() && !self.text.ends_with("\n\n") {
            self.text.push('\n');
        }
    }

    /// Adds the head of a section behind a gap.
    pub fn heading(&mut self, text: impl Display) {
        self.gap();
        self.line(styled(Style::Heading, text));
    }

    /// Adds a table, indented by `indent` columns, with a row of `heads` unless that is empty. Cells may have styles and
    /// several lines. In a table wider than the screen the widest columns are wrapped between words; a word is broken
    /// only where the table has no room for it (see [`Screen::fits_words`]).
    pub fn table(&mut self, indent: usize, heads: &[&str], rows: Vec<Vec<String>>) {
        let heads =
            (!heads.is_empty()).then(|| heads.iter().map(|head| styled(Style::Faint, head)).collect());
        let mut rows: Vec<Vec<String>> = heads.into_iter().chain(rows).collect();
        if let Some(width) = self.width {
            wrap::wrap_rows(&mut rows, width.saturating_sub(indent));
        }
        let mut builder = Builder::default();
        rows.into_iter().for_each(|row| builder.push_record(row));
        let mut table = builder.build();
        table.with(TableStyle::empty()).with(Padding::new(0, wrap::GAP, 0, 0));
        table.modify(Columns::first(), Padding::new(indent, wrap::GAP, 0, 0));
        table.to_string().lines().for_each(|line| self.line(wrap::trim_end(line)));
    }

    /// Whether a table of `rows` fits the screen without a broken word.
    pub fn fits_words(&self, indent: usize, rows: &[Vec<String>]) -> bool {
        self.width.is_none_or(|width| wrap::fits_words(rows, width.saturating_sub(indent)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_fits_its_width_and_loses_nothing() {
        let words = "one two three four five six seven eight nine ten eleven twelve";
        let rows =
            || vec![vec!["a".to_owned(), words.to_owned()], vec![styled(Style::Bad, "bb"), "x".to_owned()]];
        let drawn = |width| {
            let mut screen = Screen::new(width);
            screen.table(2, &["K", "VALUE"], rows());
            anstream::adapter::strip_str(screen.as_str()).to_string()
        };
        assert_eq!(drawn(None), format!("  K   VALUE\n  a   {words}\n  bb  x\n"));
        let narrow = drawn(Some(40));
        assert!(narrow.lines().all(|line| line.chars().count() <= 40), "{narrow}");
        words.split(' ').for_each(|word| assert!(narrow.contains(word), "{narrow}"));
    }

    #[test]
    fn text_of_objects_moves_no_cursor() {
        let text = anstream::adapter::strip_str(&styled(Style::Name, "a\u{1b}[2Jb\nc")).to_string();
        assert_eq!(text, r"a\u{1b}[2Jb\nc");
    }
}
