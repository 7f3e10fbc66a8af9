//! The input of one restore: what is kept of it while it is sent, and after it.

use std::collections::VecDeque;

/// How much of an input is kept while it is sent, to quote a rejected line: more than one batch of the nft back-end.
const MAX_RECENT_BYTES: usize = 4 << 20;
/// How much of the beginning of a long input is kept after it, and as much of its end.
const EDGE_BYTES: usize = 16 << 10;
/// How much is kept around a rejected line.
const AROUND_BYTES: usize = 16 << 10;

/// The input of a restore that is being sent: its beginning, and its last few megabytes.
#[derive(Debug, Default)]
pub struct RestoreInput {
    /// Whole lines, at most [`EDGE_BYTES`] of them.
    head: String,
    is_head_full: bool,
    recent: VecDeque<String>,
    n_recent_bytes: usize,
    n_dropped_lines: usize,
    n_lines: usize,
    n_bytes: usize,
}

/// What is kept of an input: all of a short one; of a long one its beginning, its end, and the lines around the
/// rejected line. At most 48 KiB.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InputExcerpt {
    /// In the order of lines, without overlaps.
    pub pieces: Vec<ExcerptPiece>,
    /// Lines of the whole input.
    pub n_lines: usize,
    /// Bytes of the whole input.
    pub n_bytes: usize,
}

/// Lines that follow each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExcerptPiece {
    /// Number of the first line, from 1.
    pub first_line: usize,
    /// The lines, each with its line feed. Never empty.
    pub text: String,
}

impl RestoreInput {
    /// Adds whole lines.
    pub fn push(&mut self, text: &str) {
        for line in text.split_inclusive('\n') {
            self.is_head_full |= self.head.len() + line.len() > EDGE_BYTES;
            if self.is_head_full {
                break;
            }
            self.head.push_str(line);
        }
        self.n_bytes += text.len();
        self.n_lines += text.lines().count();
        self.n_recent_bytes += text.len();
        self.recent.push_back(text.to_owned());
        while self.n_recent_bytes > MAX_RECENT_BYTES && self.recent.len() > 1 {
            if let Some(old) = self.recent.pop_front() {
                self.n_recent_bytes -= old.len();
                self.n_dropped_lines += old.lines().count();
            }
        }
    }

    /// The text of `line` (from 1), if it is still kept.
    pub fn line(&self, line: usize) -> Option<String> {
        let n = line.checked_sub(1 + self.n_dropped_lines)?;
        self.recent.iter().flat_map(|text| text.lines()).nth(n).map(str::to_owned)
    }

    /// What is kept of the input; `rejected` is the number of the rejected line, if one was.
    pub fn excerpt(&self, rejected: Option<usize>) -> InputExcerpt {
        let (n_lines, n_bytes) = (self.n_lines, self.n_bytes);
        let mut pieces = Vec::new();
        let mut add = |first_line: usize, text: String| {
            if !text.is_empty() {
                pieces.push(ExcerptPiece { first_line, text });
            }
        };
        if n_bytes <= 2 * EDGE_BYTES {
            add(1, self.recent.iter().map(String::as_str).collect());
            return InputExcerpt { pieces, n_lines, n_bytes };
        }
        let n_head = self.head.lines().count();
        let backwards = self.recent.iter().rev().flat_map(|text| text.split_inclusive('\n').rev());
        let mut tail = lines_within(backwards, EDGE_BYTES);
        tail.reverse();
        // A long line may leave no room for it in the beginning, and the end is never before the beginning.
        let tail_from = (n_lines - tail.len()).max(n_head);
        let tail = &tail[tail.len() - (n_lines - tail_from)..];
        add(1, self.head.clone());
        let (first, around) = rejected.map(|line| self.around(line, n_head, tail_from)).unwrap_or_default();
        add(first, around);
        add(tail_from + 1, tail.concat());
        InputExcerpt { pieces, n_lines, n_bytes }
    }

    /// The lines around `line` that are among those after line `after`, up to line `to`; and the number of the first.
    fn around(&self, line: usize, after: usize, to: usize) -> (usize, String) {
        let after = after.max(self.n_dropped_lines);
        if line <= after || line > to {
            return (0, String::new());
        }
        let lines = self.recent.iter().flat_map(|text| text.split_inclusive('\n'));
        let between: Vec<&str> = lines.skip(after - self.n_dropped_lines).take(to - after).collect();
        let (before, rest) = between.split_at(line - after - 1);
        let mut text = lines_within(before.iter().rev().copied(), AROUND_BYTES / 2);
        text.reverse();
        let first = line - text.len();
        // The rejected line itself is kept, however long it is, up to the limit of a line of iptables-restore.
        text.extend(rest.first());
        text.extend(lines_within(rest.iter().skip(1).copied(), AROUND_BYTES / 2));
        (first, text.concat())
    }
}

/// The first of `lines` that come to no more than `n_bytes`.
fn lines_within<'a>(lines: impl Iterator<Item = &'a str>, mut n_bytes: usize) -> Vec<&'a str> {
    lines
        .map_while(|line| {
            n_bytes = n_bytes.checked_sub(line.len())?;
            Some(line)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An input of numbered lines of 40 bytes, sent in pieces of ten lines.
    fn input(n_lines: usize) -> RestoreInput {
        let mut input = RestoreInput::default();
        for from in (1..=n_lines).step_by(10) {
            let lines = (from..(from + 10).min(n_lines + 1)).map(|line| format!("{line:<39}\n"));
            input.push(&lines.collect::<String>());
        }
        input
    }

    /// First and last line of each piece; each line is checked to have its number.
    fn ranges(excerpt: &InputExcerpt) -> Vec<(usize, usize)> {
        let range = |piece: &ExcerptPiece| {
            let numbers: Vec<usize> =
                piece.text.lines().map(|line| line.trim_end().parse().unwrap()).collect();
            let expected: Vec<usize> = (piece.first_line..).take(numbers.len()).collect();
            assert_eq!(numbers, expected);
            (piece.first_line, *numbers.last().unwrap())
        };
        excerpt.pieces.iter().map(range).collect()
    }

    #[test]
    fn a_short_input_is_kept_whole_and_of_a_long_one_both_ends_and_the_rejected_line() {
        assert_eq!(ranges(&input(0).excerpt(None)), []);
        assert_eq!(ranges(&input(819).excerpt(Some(400))), [(1, 819)]);
        let edge = EDGE_BYTES / 40;
        assert_eq!(ranges(&input(1_000).excerpt(None)), [(1, edge), (1_001 - edge, 1_000)]);
        let long = input(10_000);
        assert_eq!(ranges(&long.excerpt(None)), [(1, edge), (10_001 - edge, 10_000)]);
        let around = AROUND_BYTES / 2 / 40;
        let rejected = long.excerpt(Some(5_000));
        assert_eq!(ranges(&rejected), [(1, edge), (5_000 - around, 5_000 + around), (10_001 - edge, 10_000)]);
        assert_eq!((rejected.n_lines, rejected.n_bytes), (10_000, 400_000));
        assert_eq!(
            ranges(&long.excerpt(Some(edge + 3))),
            [(1, edge), (edge + 1, edge + 3 + around), (10_001 - edge, 10_000)]
        );
        assert_eq!(ranges(&long.excerpt(Some(10_000))), [(1, edge), (10_001 - edge, 10_000)]);
        assert_eq!(ranges(&long.excerpt(Some(10_001))), [(1, edge), (10_001 - edge, 10_000)]);
    }

    #[test]
    fn what_is_kept_is_bounded_however_long_the_input() {
        let huge = input(300_000);
        assert!(huge.n_recent_bytes <= MAX_RECENT_BYTES && huge.head.len() <= EDGE_BYTES);
        assert_eq!(huge.line(299_999).unwrap().trim_end(), "299999");
        assert_eq!(huge.line(1), None);
        for rejected in [None, Some(1), Some(150_000), Some(299_000)] {
            let excerpt = huge.excerpt(rejected);
            ranges(&excerpt);
            let n_bytes: usize = excerpt.pieces.iter().map(|piece| piece.text.len()).sum();
            assert!(n_bytes <= 2 * EDGE_BYTES + AROUND_BYTES + 40, "{n_bytes}");
        }
        let mut one_line = RestoreInput::default();
        one_line.push(&format!("{}\n", "x".repeat(100_000)));
        assert_eq!(one_line.excerpt(Some(1)).pieces.len(), 1, "the rejected line alone");
    }
}
