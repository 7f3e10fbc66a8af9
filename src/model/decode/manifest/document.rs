//! A stream of text cut into documents at its `---` lines, as a reader that ends with each
//! document, and a count of lines.

use std::cell::Cell;
use std::io::{self, BufRead, Read};
use std::rc::Rc;

/// Blanks at the head of a line that are looked at before the line is left to the parser, in bytes.
const MOST_BLANKS: usize = 64 << 10;
/// The longest text of one object, in bytes: what an API server stores at most (1.5 MiB), written
/// with a line for each field and deep indentation.
pub const LONGEST_OBJECT: usize = 16 << 20;

/// The documents of `input`, one after another; reads as the current one.
pub struct Documents<R> {
    input: R,
    /// Bytes taken from the input to look at them; those from `n_handed` on were not handed out yet.
    ahead: Vec<u8>,
    n_handed: usize,
    /// Bytes handed out of the current object, unless that is being skipped.
    of_object: Option<Rc<Cell<usize>>>,
    /// Number of the line that the next byte handed out is on, from 1.
    line: usize,
    is_line_start: bool,
    place: Place,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Inside a document.
    Inside,
    /// Behind the `---` or `...` that ended one.
    Between,
    /// The input is used up, or failed.
    End,
}

impl<R: BufRead> Documents<R> {
    /// Of `input`, whose first line is line 1.
    pub fn new(input: R) -> Documents<R> {
        Documents {
            input,
            ahead: Vec::new(),
            n_handed: 0,
            of_object: None,
            line: 1,
            is_line_start: true,
            place: Place::Between,
        }
    }

    /// Begins to count the bytes of one object. Reading fails when they are too many; who finds the
    /// end of an object sets the count to 0.
    pub fn count_object(&mut self) -> Rc<Cell<usize>> {
        self.of_object.insert(Rc::default()).clone()
    }

    /// Goes to the next document that is not empty and says the first byte of its first line that
    /// is neither blank nor a comment; `None` at the end. Errors are those of the input.
    pub fn next_document(&mut self) -> Option<io::Result<u8>> {
        loop {
            match self.place {
                Place::End => return None,
                Place::Between => self.place = Place::Inside,
                Place::Inside => {}
            }
            match self.skip_to_content() {
                Ok(Some(byte)) => return Some(Ok(byte)),
                Ok(None) => {}
                Err(error) => {
                    self.place = Place::End;
                    return Some(Err(error));
                }
            }
        }
    }

    /// Number of the line that will be read next, from 1.
    pub fn line(&self) -> usize {
        self.line
    }

    /// Goes to the end of the current document.
    pub fn skip_rest(&mut self) {
        self.of_object = None;
        let mut buffer = [0; 8 << 10];
        while matches!(self.read(&mut buffer), Ok(1..)) {}
    }

    /// Passes over blank lines and comments. `None` when the document ends there.
    fn skip_to_content(&mut self) -> io::Result<Option<u8>> {
        loop {
            if self.is_line_start && self.is_at_marker()? {
                return Ok(None);
            }
            // Leading blanks are kept: they are indentation of what follows.
            let mut n_blanks = 0;
            let first = loop {
                match self.peek(n_blanks)? {
                    Some(b' ' | b'\t' | b'\r') if n_blanks < MOST_BLANKS => n_blanks += 1,
                    // A byte order mark, which the YAML parser would skip too.
                    Some(0xef) if self.line == 1 && n_blanks == 0 && self.peek_is(b"\xef\xbb\xbf")? => {
                        self.n_handed += 3;
                    }
                    other => break other,
                }
            };
            match first {
                None => {
                    self.place = Place::End;
                    return Ok(None);
                }
                Some(b'\n' | b'#') => self.skip_line()?,
                Some(byte) => return Ok(Some(byte)),
            }
        }
    }

    fn skip_line(&mut self) -> io::Result<()> {
        loop {
            let mut byte = [0];
            if self.take(&mut byte)? == 0 || byte[0] == b'\n' {
                return Ok(());
            }
        }
    }

    /// Whether a `---` or `...` stands here; it is consumed, and ends the document.
    fn is_at_marker(&mut self) -> io::Result<bool> {
        if !self.peek_is(b"---")? && !self.peek_is(b"...")? {
            return Ok(false);
        }
        if !matches!(self.peek(3)?, None | Some(b' ' | b'\t' | b'\r' | b'\n')) {
            return Ok(false);
        }
        self.n_handed += 3;
        self.is_line_start = false;
        self.place = Place::Between;
        Ok(true)
    }

    fn peek_is(&mut self, text: &[u8]) -> io::Result<bool> {
        for (i, byte) in text.iter().enumerate() {
            if self.peek(i)? != Some(*byte) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The byte `offset` bytes ahead.
    fn peek(&mut self, offset: usize) -> io::Result<Option<u8>> {
        if self.n_handed == self.ahead.len() {
            self.ahead.clear();
            self.n_handed = 0;
        }
        let offset = self.n_handed + offset;
        while self.ahead.len() <= offset {
            let Some(&byte) = self.input.fill_buf()?.first() else { return Ok(None) };
            self.input.consume(1);
            self.ahead.push(byte);
        }
        Ok(Some(self.ahead[offset]))
    }

    /// Hands out bytes up to the end of the line at most.
    fn take(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = if self.n_handed == self.ahead.len() {
            let available = self.input.fill_buf()?;
            let n = line_part(available, out);
            self.input.consume(n);
            n
        } else {
            let n = line_part(&self.ahead[self.n_handed..], out);
            self.n_handed += n;
            n
        };
        if n > 0 {
            self.is_line_start = out[n - 1] == b'\n';
            self.line += usize::from(self.is_line_start);
        }
        Ok(n)
    }
}

/// Copies from `from` to `to` what fits, up to and with a newline; the number of bytes.
fn line_part(from: &[u8], to: &mut [u8]) -> usize {
    let n = from.len().min(to.len());
    let n = from[..n].iter().position(|byte| *byte == b'\n').map_or(n, |at| at + 1);
    to[..n].copy_from_slice(&from[..n]);
    n
}

/// The current document; 0 bytes at its end, from then on until [`Documents::next_document`].
impl<R: BufRead> Read for Documents<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let mut n = 0;
        while n < out.len() && self.place == Place::Inside {
            if self.is_line_start && self.is_at_marker()? {
                break;
            }
            match self.take(&mut out[n..])? {
                0 => self.place = Place::End,
                more => n += more,
            }
        }
        if let Some(count) = &self.of_object {
            count.set(count.get() + n);
            if count.get() > LONGEST_OBJECT {
                return Err(io::ErrorKind::FileTooLarge.into());
            }
        }
        Ok(n)
    }
}

/// A reader that counts the lines that went through it.
pub struct LineCounter<R> {
    input: R,
    line: Rc<Cell<usize>>,
}

impl<R> LineCounter<R> {
    /// Counts from `first`.
    pub fn new(input: R, first: usize) -> LineCounter<R> {
        LineCounter { input, line: Rc::new(Cell::new(first)) }
    }

    /// The line that was reached, kept up to date.
    pub fn line(&self) -> Rc<Cell<usize>> {
        self.line.clone()
    }
}

impl<R: Read> Read for LineCounter<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.input.read(out)?;
        let n_lines = out[..n].iter().filter(|byte| **byte == b'\n').count();
        self.line.set(self.line.get() + n_lines);
        Ok(n)
    }
}

/// A reader that keeps what went through it, up to a limit, to be read once more.
pub struct Kept<R> {
    input: R,
    limit: usize,
    /// `None` when it was too much.
    kept: Option<Vec<u8>>,
}

impl<R: Read> Kept<R> {
    /// Keeps at most `limit` bytes of `input`.
    pub fn new(input: R, limit: usize) -> Kept<R> {
        Kept { input, limit, kept: Some(Vec::new()) }
    }

    /// The whole input from its beginning; `None` when more was read than is kept.
    pub fn rewound(self) -> Option<impl Read> {
        Some(io::Cursor::new(self.kept?).chain(self.input))
    }
}

impl<R: Read> Read for Kept<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.input.read(out)?;
        match &mut self.kept {
            Some(kept) if kept.len() + n <= self.limit => kept.extend_from_slice(&out[..n]),
            kept => *kept = None,
        }
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &[(usize, &str)]) {
        // A capacity of one byte: nothing may depend on what a buffer happens to hold.
        for capacity in [1, 3, 1024] {
            let mut documents = Documents::new(io::BufReader::with_capacity(capacity, text.as_bytes()));
            let mut found = Vec::new();
            while let Some(first) = documents.next_document() {
                first.unwrap();
                let (line, mut content) = (documents.line(), String::new());
                documents.read_to_string(&mut content).unwrap();
                found.push((line, content));
            }
            let found: Vec<(usize, &str)> = found.iter().map(|(line, text)| (*line, text.as_str())).collect();
            assert_eq!(found, expected, "{text:?}");
        }
    }

    #[test]
    fn documents_end_at_marker_lines() {
        check("a: 1\n---\nb: 2\n", &[(1, "a: 1\n"), (3, "b: 2\n")]);
        check("---\na: 1\n--- # two\nb: 2", &[(2, "a: 1\n"), (4, "b: 2")]);
        check("a: 1\n...\nb: 2\n", &[(1, "a: 1\n"), (3, "b: 2\n")]);
        check("a: 1\r\n---\r\nb: 2\r\n", &[(1, "a: 1\r\n"), (3, "b: 2\r\n")]);
    }

    #[test]
    fn only_a_whole_marker_at_the_start_of_a_line_ends_a_document() {
        let text = "a: |\n  ---\n  x\n----: 1\n---x: 2\n";
        check(text, &[(1, text)]);
    }

    #[test]
    fn content_may_stand_behind_a_marker() {
        check("--- {a: 1}\n", &[(1, " {a: 1}\n")]);
    }

    #[test]
    fn empty_documents_are_passed_over() {
        check("", &[]);
        check("\n\n# only a comment\n---\n---\n \n", &[]);
        check("# head\n\n  # more\na: 1\n", &[(4, "a: 1\n")]);
        check("---", &[]);
        check("\u{feff}a: 1", &[(1, "a: 1")]);
    }

    #[test]
    fn what_was_read_can_be_read_again_unless_it_was_too_much() {
        for (limit, expected) in [(4, Some("abcdef")), (3, None)] {
            let mut text = Kept::new("abcdef".as_bytes(), limit);
            text.read_exact(&mut [0; 4]).unwrap();
            let again = text.rewound().map(|mut text| {
                let mut all = String::new();
                text.read_to_string(&mut all).unwrap();
                all
            });
            assert_eq!(again.as_deref(), expected);
        }
    }

    #[test]
    fn the_rest_of_a_document_can_be_skipped() {
        let mut documents = Documents::new("a: 1\nb: 2\n---\nc: 3\n".as_bytes());
        documents.next_document().unwrap().unwrap();
        documents.skip_rest();
        assert_eq!(documents.next_document().unwrap().unwrap(), b'c');
        assert_eq!(documents.line(), 4);
    }
}
