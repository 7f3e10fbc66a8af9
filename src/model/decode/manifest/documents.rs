//! Splits a stream of text into documents at its `---` lines, as a reader that ends with each document, and
//! counts lines.

use std::cell::Cell;
use std::io::{self, BufRead, Read};
use std::rc::Rc;

/// How many blanks at the start of a line are read ahead before the line is left to the parser, in bytes.
const MAX_BLANKS: usize = 64 << 10;
/// The longest text of one object, in bytes: the most that an API server stores (1.5 MiB), written with one
/// line for each field and deep indentation.
pub const MAX_OBJECT_BYTES: usize = 16 << 20;

/// The documents of `input`, one after another; reading returns the current one.
pub struct Documents<R> {
    input: R,
    /// Bytes read ahead; those from `n_consumed` on were not returned yet.
    ahead: Vec<u8>,
    n_consumed: usize,
    /// Bytes returned of the current object, unless it is being skipped.
    from_object: Option<Rc<Cell<usize>>>,
    /// Number of the line of the next byte, from 1.
    line: usize,
    is_line_start: bool,
    position: DocumentPosition,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum DocumentPosition {
    /// Inside a document.
    Inside,
    /// After the `---` or `...` that ended a document.
    Between,
    /// The input ended or failed.
    End,
}

impl<R: BufRead> Documents<R> {
    /// Reads `input`, whose first line is line 1.
    pub fn new(input: R) -> Documents<R> {
        Documents {
            input,
            ahead: Vec::new(),
            n_consumed: 0,
            from_object: None,
            line: 1,
            is_line_start: true,
            position: DocumentPosition::Between,
        }
    }

    /// Starts counting the bytes of an object. Reading fails when they are too many; the caller sets the
    /// count to 0 at the end of an object.
    pub fn count_object(&mut self) -> Rc<Cell<usize>> {
        self.from_object.insert(Rc::default()).clone()
    }

    /// Moves to the next document that is not empty; returns the first byte of its first line that is
    /// neither blank nor a comment, `None` at the end. Errors are those of the input.
    pub fn next_document(&mut self) -> Option<io::Result<u8>> {
        loop {
            match self.position {
                DocumentPosition::End => return None,
                DocumentPosition::Between => self.position = DocumentPosition::Inside,
                DocumentPosition::Inside => {}
            }
            match self.skip_to_content() {
                Ok(Some(byte)) => return Some(Ok(byte)),
                Ok(None) => {}
                Err(error) => {
                    self.position = DocumentPosition::End;
                    return Some(Err(error));
                }
            }
        }
    }

    /// Number of the next line, from 1.
    pub fn line(&self) -> usize {
        self.line
    }

    /// Moves to the end of the current document.
    pub fn skip_rest(&mut self) {
        self.from_object = None;
        let mut buffer = [0; 8 << 10];
        while matches!(self.read(&mut buffer), Ok(1..)) {}
    }

    /// Skips blank lines and comments. `None` when the document ends there.
    fn skip_to_content(&mut self) -> io::Result<Option<u8>> {
        loop {
            if self.is_line_start && self.is_at_marker()? {
                return Ok(None);
            }
            // Leading blanks are kept: they are the indentation of the content.
            let mut n_blanks = 0;
            let first = loop {
                match self.peek(n_blanks)? {
                    Some(b' ' | b'\t' | b'\r') if n_blanks < MAX_BLANKS => n_blanks += 1,
                    // A byte order mark, which a YAML parser skips too.
                    Some(0xef) if self.line == 1 && n_blanks == 0 && self.peek_is(b"\xef\xbb\xbf")? => {
                        self.n_consumed += 3;
                    }
                    other => break other,
                }
            };
            match first {
                None => {
                    self.position = DocumentPosition::End;
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
            if self.read_line_part(&mut byte)? == 0 || byte[0] == b'\n' {
                return Ok(());
            }
        }
    }

    /// Whether a `---` or `...` is next; consumes it, and ends the document.
    fn is_at_marker(&mut self) -> io::Result<bool> {
        if !self.peek_is(b"---")? && !self.peek_is(b"...")? {
            return Ok(false);
        }
        if !matches!(self.peek(3)?, None | Some(b' ' | b'\t' | b'\r' | b'\n')) {
            return Ok(false);
        }
        self.n_consumed += 3;
        self.is_line_start = false;
        self.position = DocumentPosition::Between;
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
        if self.n_consumed == self.ahead.len() {
            self.ahead.clear();
            self.n_consumed = 0;
        }
        let offset = self.n_consumed + offset;
        while self.ahead.len() <= offset {
            let Some(&byte) = self.input.fill_buf()?.first() else { return Ok(None) };
            self.input.consume(1);
            self.ahead.push(byte);
        }
        Ok(Some(self.ahead[offset]))
    }

    /// Returns bytes up to the end of the line at most.
    fn read_line_part(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = if self.n_consumed == self.ahead.len() {
            let available = self.input.fill_buf()?;
            let n = copy_line_part(available, out);
            self.input.consume(n);
            n
        } else {
            let n = copy_line_part(&self.ahead[self.n_consumed..], out);
            self.n_consumed += n;
            n
        };
        if n > 0 {
            self.is_line_start = out[n - 1] == b'\n';
            self.line += usize::from(self.is_line_start);
        }
        Ok(n)
    }
}

/// Copies what fits from `from` to `to`, up to and including a newline; returns the number of bytes.
fn copy_line_part(from: &[u8], to: &mut [u8]) -> usize {
    let n = from.len().min(to.len());
    let n = from[..n].iter().position(|byte| *byte == b'\n').map_or(n, |at| at + 1);
    to[..n].copy_from_slice(&from[..n]);
    n
}

/// Reads the current document; returns 0 bytes from its end until [`Documents::next_document`].
impl<R: BufRead> Read for Documents<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let mut n = 0;
        while n < out.len() && self.position == DocumentPosition::Inside {
            if self.is_line_start && self.is_at_marker()? {
                break;
            }
            match self.read_line_part(&mut out[n..])? {
                0 => self.position = DocumentPosition::End,
                more => n += more,
            }
        }
        if let Some(count) = &self.from_object {
            count.set(count.get() + n);
            if count.get() > MAX_OBJECT_BYTES {
                return Err(io::ErrorKind::FileTooLarge.into());
            }
        }
        Ok(n)
    }
}

/// A reader that counts lines.
pub struct LineCounter<R> {
    input: R,
    line: Rc<Cell<usize>>,
}

impl<R> LineCounter<R> {
    /// Counts from `first`.
    pub fn new(input: R, first: usize) -> LineCounter<R> {
        LineCounter { input, line: Rc::new(Cell::new(first)) }
    }

    /// The current line, kept up to date.
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

/// A reader that keeps what was read, up to a limit, so that it can be read again.
pub struct ReplayReader<R> {
    input: R,
    limit: usize,
    /// `None` when the limit was exceeded.
    kept: Option<Vec<u8>>,
}

impl<R: Read> ReplayReader<R> {
    /// Keeps at most `limit` bytes of `input`.
    pub fn new(input: R, limit: usize) -> ReplayReader<R> {
        ReplayReader { input, limit, kept: Some(Vec::new()) }
    }

    /// The whole input from its beginning; `None` when the limit was exceeded.
    pub fn rewind(self) -> Option<impl Read> {
        Some(io::Cursor::new(self.kept?).chain(self.input))
    }
}

impl<R: Read> Read for ReplayReader<R> {
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
        // With a capacity of one byte, too: the result must not depend on buffer boundaries.
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
    fn content_may_follow_a_marker_on_its_line() {
        check("--- {a: 1}\n", &[(1, " {a: 1}\n")]);
    }

    #[test]
    fn empty_documents_are_skipped() {
        check("", &[]);
        check("\n\n# only a comment\n---\n---\n \n", &[]);
        check("# head\n\n  # more\na: 1\n", &[(4, "a: 1\n")]);
        check("---", &[]);
        check("\u{feff}a: 1", &[(1, "a: 1")]);
    }

    #[test]
    fn read_text_can_be_read_again_up_to_the_limit() {
        for (limit, expected) in [(4, Some("abcdef")), (3, None)] {
            let mut text = ReplayReader::new("abcdef".as_bytes(), limit);
            text.read_exact(&mut [0; 4]).unwrap();
            let again = text.rewind().map(|mut text| {
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
