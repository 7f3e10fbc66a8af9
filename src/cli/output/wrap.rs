//! Widths of a table's columns, and cells wrapped to them between words. Cells may have styles (ANSI escape sequences) and
//! several lines; a style that is open at the end of a line is closed there and opened again on the next.

use anstream::adapter::strip_str;

/// Blanks between two columns.
pub(super) const GAP: usize = 2;
/// A column whose cells are longer is not made narrower: a sentence in it would take many lines.
const MIN_COLUMN: usize = 13;
const RESET: &str = "\u{1b}[0m";

/// Whether a table of `rows` fits into `width` without a broken word.
pub(super) fn fits_words(rows: &[Vec<String>], width: usize) -> bool {
    sum(&column_widths(rows, least_width)) <= width
}

/// Wraps cells so that a table of `rows` fits into `width`.
pub(super) fn wrap_rows(rows: &mut [Vec<String>], width: usize) {
    let natural = column_widths(rows, natural_width);
    if sum(&natural) <= width {
        return;
    }
    let mut widths = column_widths(rows, least_width);
    while sum(&widths) > width {
        // Some words have to be broken: those of the widest column.
        match widths.iter_mut().max_by_key(|width| **width) {
            Some(widest) if *widest > 1 => *widest -= 1,
            _ => break,
        }
    }
    while sum(&widths) < width {
        let lacks = |at: &usize| natural[*at].saturating_sub(widths[*at]);
        match (0..widths.len()).filter(|at| lacks(at) > 0).max_by_key(|at| (lacks(at), usize::MAX - at)) {
            Some(at) => widths[at] += 1,
            None => break,
        }
    }
    for row in rows {
        for (cell, width) in row.iter_mut().zip(&widths) {
            if natural_width(cell) > *width {
                *cell = wrapped(cell, *width);
            }
        }
    }
}

/// `line` without blanks at its end, also those before escape sequences.
pub(super) fn trim_end(line: &str) -> String {
    let mut kept = line.trim_end();
    let mut escapes = String::new();
    while kept.ends_with('m')
        && let Some(start) = kept.rfind('\u{1b}')
        && is_escape(&kept[start..])
    {
        escapes.insert_str(0, &kept[start..]);
        kept = kept[..start].trim_end();
    }
    format!("{kept}{escapes}")
}

fn is_escape(text: &str) -> bool {
    let inner = text.strip_prefix("\u{1b}[").and_then(|rest| rest.strip_suffix('m'));
    inner.is_some_and(|inner| inner.chars().all(|c| c.is_ascii_digit() || c == ';'))
}

fn sum(widths: &[usize]) -> usize {
    widths.iter().sum::<usize>() + GAP * widths.len().saturating_sub(1)
}

fn column_widths(rows: &[Vec<String>], width: fn(&str) -> usize) -> Vec<usize> {
    let mut widths: Vec<usize> = Vec::new();
    for row in rows {
        widths.resize(widths.len().max(row.len()), 0);
        for (known, cell) in widths.iter_mut().zip(row) {
            *known = width(cell).max(*known);
        }
    }
    widths
}

fn natural_width(cell: &str) -> usize {
    strip_str(cell).to_string().lines().map(|line| line.chars().count()).max().unwrap_or(0)
}

fn least_width(cell: &str) -> usize {
    let text = strip_str(cell).to_string();
    let word = text.split_whitespace().map(|word| word.chars().count()).max().unwrap_or(0);
    word.max(natural_width(cell).min(MIN_COLUMN))
}

/// `cell` in lines of at most `width`.
fn wrapped(cell: &str, width: usize) -> String {
    let mut lines = LineBuilder { width, ..LineBuilder::default() };
    for (n, line) in cell.split('\n').enumerate() {
        if n > 0 {
            lines.break_line();
        }
        for (m, word) in line.split(' ').enumerate() {
            lines.add_word(word, m > 0);
        }
    }
    lines.finish()
}

/// Lines under construction.
#[derive(Default)]
struct LineBuilder {
    width: usize,
    done: String,
    /// Characters in the last line.
    n_chars: usize,
    /// The escape sequence that is in effect; empty for none.
    style: String,
}

impl LineBuilder {
    fn add_word(&mut self, word: &str, has_blank: bool) {
        let length = strip_str(word).to_string().chars().count();
        let blank = usize::from(has_blank && self.n_chars > 0);
        if self.n_chars > 0 && self.n_chars + blank + length > self.width {
            self.break_line();
        } else if blank == 1 {
            self.done.push(' ');
            self.n_chars += 1;
        }
        let mut rest = word;
        while let Some(c) = rest.chars().next() {
            if let Some(end) = rest.find('m').filter(|end| is_escape(&rest[..=*end])) {
                let escape = &rest[..=end];
                self.style = if escape == RESET { String::new() } else { format!("{}{escape}", self.style) };
                self.done.push_str(escape);
                rest = &rest[end + 1..];
                continue;
            }
            if self.n_chars == self.width {
                self.break_line();
            }
            self.done.push(c);
            self.n_chars += 1;
            rest = &rest[c.len_utf8()..];
        }
    }

    fn break_line(&mut self) {
        if !self.style.is_empty() {
            self.done.push_str(RESET);
        }
        self.done.push('\n');
        self.done.push_str(&self.style);
        self.n_chars = 0;
    }

    fn finish(self) -> String {
        self.done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(cell: &str, width: usize, expected: &str) {
        assert_eq!(wrapped(cell, width), expected, "{cell:?}");
    }

    #[test]
    fn cells_are_wrapped_between_words() {
        check("one two three", 7, "one two\nthree");
        check("one two three", 5, "one\ntwo\nthree");
        check("abcdefgh ij", 4, "abcd\nefgh\nij");
        check("a\nb c", 3, "a\nb c");
    }

    #[test]
    fn a_style_ends_with_the_line_and_begins_again() {
        check("\u{1b}[31mone two\u{1b}[0m", 3, "\u{1b}[31mone\u{1b}[0m\n\u{1b}[31mtwo\u{1b}[0m");
        check("\u{1b}[31mone\u{1b}[0m two", 3, "\u{1b}[31mone\u{1b}[0m\ntwo");
    }

    #[test]
    fn words_are_broken_only_without_room() {
        let mut rows = vec![
            vec!["FROM".to_owned(), "cluster IP\n203.0.113.13:80".to_owned()],
            vec!["pod elsewhere".to_owned(), "handled by its own node".to_owned()],
        ];
        assert!(fits_words(&rows, 30) && !fits_words(&rows, 29));
        wrap_rows(&mut rows, 30);
        assert_eq!(rows[0][1], "cluster IP\n203.0.113.13:80");
        assert_eq!(rows[1], ["pod elsewhere", "handled by its\nown node"]);
        wrap_rows(&mut rows, 12);
        assert!(rows.iter().flatten().all(|cell| natural_width(cell) <= 7), "{rows:?}");
    }

    #[test]
    fn blanks_at_the_end_of_a_line_are_cut_behind_styles_too() {
        assert_eq!(trim_end("a  \u{1b}[2m\u{1b}[0m  "), "a\u{1b}[2m\u{1b}[0m");
        assert_eq!(trim_end("\u{1b}[2ma\u{1b}[0m"), "\u{1b}[2ma\u{1b}[0m");
    }
}
