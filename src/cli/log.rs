//! The log: to stderr, as text or JSON; and what is printed there without it.
//!
//! Text of objects may hold anything. What would end a line, move a terminal's cursor or turn the
//! direction of writing is escaped here, for every message and field. A line that cannot be written, or that
//! the reader of a pipe does not take in time, is lost: rules are worth more than their log.

use std::fmt::{self, Write as _};
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tracing::field::Field;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::{Writer, debug_fn};

use crate::config::{LogFormat, Logging};
use crate::model::is_hidden;

/// Lines that could not be written.
static N_LOST: AtomicU64 = AtomicU64::new(0);

/// How many lines of the log could not be written: the disk is full, or whoever read them is gone.
pub fn n_lost() -> u64 {
    N_LOST.load(Ordering::Relaxed)
}

/// Starts it. kube-proxy's verbosity: 2 says what each sync did, 4 and above what the steps do.
pub fn start(logging: &Logging) {
    let level = match logging.verbosity {
        0 | 1 => "info",
        2 | 3 => "debug",
        _ => "trace",
    };
    let others = if logging.verbosity >= 6 { "debug" } else { "error" };
    let filter = EnvFilter::new(format!("{others},chainsmith={level}"));
    // The subscriber would tell of errors on stderr, and panic when that fails as well.
    let builder = tracing_subscriber::fmt().with_env_filter(filter).log_internal_errors(false);
    // Somebody may have started one already (tests); theirs stays.
    let _ = match logging.format {
        LogFormat::Text => builder
            .fmt_fields(text_fields())
            .with_ansi(io::stderr().is_terminal())
            .with_writer(|| Lossy(Impatient))
            .try_init(),
        LogFormat::Json => {
            builder.json().flatten_event(true).with_writer(|| Lossy(JsonEscaped(Impatient))).try_init()
        }
    };
}

/// The message, and `name=value` for each field, escaped.
fn text_fields() -> impl for<'w> FormatFields<'w> + 'static {
    let write = |writer: &mut Writer<'_>, field: &Field, value: &dyn fmt::Debug| {
        let value = Escaped(format_args!("{value:?}"));
        match field.name() {
            "message" => write!(writer, "{value}"),
            // What the crate `log` adds to lines of dependencies is shown as their target.
            name if name.starts_with("log.") => Ok(()),
            name if writer.has_ansi_escapes() => {
                write!(writer, "\x1b[3m{name}\x1b[0m\x1b[2m=\x1b[0m{value}")
            }
            name => write!(writer, "{name}={value}"),
        }
    };
    debug_fn(write).delimited(" ")
}

/// Shows a value on one line: `\n` and `\u{1b}` where it has a line feed and an escape.
pub(super) struct Escaped<T>(pub(super) T);

impl<T: fmt::Display> fmt::Display for Escaped<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(Escaper(f), "{}", self.0)
    }
}

struct Escaper<'a, W>(&'a mut W);

impl<W: fmt::Write> fmt::Write for Escaper<'_, W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for part in text.split_inclusive(is_hidden) {
            let hidden = part.chars().next_back().filter(|c| is_hidden(*c));
            self.0.write_str(&part[..part.len() - hidden.map_or(0, char::len_utf8)])?;
            hidden.map_or(Ok(()), |c| write!(self.0, "{}", c.escape_default()))?;
        }
        Ok(())
    }
}

/// Takes lines of JSON, whose strings have only C0 escaped: escapes the rest as JSON does.
struct JsonEscaped<W>(W);

impl<W: Write> Write for JsonEscaped<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let is_escaped = |c: char| is_hidden(c) && c != '\n';
        match std::str::from_utf8(line) {
            Ok(text) if text.contains(is_escaped) => {
                let mut escaped = String::with_capacity(line.len() + 16);
                for c in text.chars() {
                    match is_escaped(c) {
                        // All of them are of 16 bits.
                        true => write!(escaped, "\\u{:04x}", u32::from(c)).map_err(io::Error::other)?,
                        false => escaped.push(c),
                    }
                }
                self.0.write_all(escaped.as_bytes())?;
            }
            _ => self.0.write_all(line)?,
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// How long a reader of stderr may keep a line waiting, in milliseconds; until it reads again, no other line
/// waits.
const PATIENCE: u16 = 200;
/// What a pipe that is ready takes without blocking. See pipe(7).
const PIPE_BUF: usize = 4096;

/// stderr, for writers that must not block for long.
struct Impatient;

impl Write for Impatient {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        static IS_STALLED: AtomicBool = AtomicBool::new(false);
        // Held for the whole line: another writer could fill what is ready here.
        let mut stderr = io::stderr().lock();
        for part in line.chunks(PIPE_BUF) {
            let patience = if IS_STALLED.load(Ordering::Relaxed) { 0 } else { PATIENCE };
            let is_ready = {
                let mut stderr = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
                poll(&mut stderr, PollTimeout::from(patience))? > 0
            };
            IS_STALLED.store(!is_ready, Ordering::Relaxed);
            if !is_ready {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            stderr.write_all(part)?;
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// Takes every line, and counts those that cannot be written.
struct Lossy<W>(W);

impl<W: Write> Write for Lossy<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.0.write_all(line).is_err() {
            N_LOST.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let _ = self.0.flush();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// Hostile text, and what is shown of it.
    const HOSTILE: &str = "a\nb\r\t\u{1b}[2J\u{7f}\u{9b}31m\u{85}\u{2028}\u{202e}\u{2066}\u{200f}ü";
    const SHOWN: &str = "a\\nb\\r\\t\\u{1b}[2J\\u{7f}\\u{9b}31m\\u{85}\\u{2028}\\u{202e}\\u{2066}\\u{200f}ü";

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Lines {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    fn log_hostile_text() {
        let text = HOSTILE;
        tracing::warn!(shown = %text, debug = ?"x\ny", plain = text, n = 3, "of {text}");
    }

    #[test]
    fn hostile_text_in_messages_and_fields_stays_on_one_line() {
        let lines = Lines::default();
        let writer = lines.clone();
        let builder = tracing_subscriber::fmt().with_ansi(false).without_time().fmt_fields(text_fields());
        let subscriber = builder.with_writer(move || writer.clone()).finish();
        tracing::subscriber::with_default(subscriber, log_hostile_text);
        let plain = format!("{HOSTILE:?}");
        let target = module_path!();
        assert_eq!(
            lines.text(),
            format!(" WARN {target}: of {SHOWN} shown={SHOWN} debug=\"x\\ny\" plain={plain} n=3\n")
        );
    }

    #[test]
    fn hostile_text_in_json_is_escaped_and_reads_back_as_it_was() {
        let lines = Lines::default();
        let writer = lines.clone();
        let builder = tracing_subscriber::fmt().json().flatten_event(true);
        let subscriber = builder.with_writer(move || JsonEscaped(writer.clone())).finish();
        tracing::subscriber::with_default(subscriber, log_hostile_text);
        let text = lines.text();
        let hidden: Vec<char> = text.chars().filter(|c| is_hidden(*c)).collect();
        assert_eq!(hidden, ['\n'], "{text:?}");
        let object: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&object["shown"], &object["plain"]), (&HOSTILE.into(), &HOSTILE.into()));
        assert_eq!(object["message"], format!("of {HOSTILE}"));
    }

    #[test]
    fn a_line_that_cannot_be_written_is_lost_and_counted() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Err(io::ErrorKind::StorageFull.into())
            }
        }
        let n_before = n_lost();
        assert_eq!((Lossy(Full).write(b"line\n").unwrap(), Lossy(Full).flush().is_ok()), (5, true));
        assert!(n_lost() > n_before);
    }
}
