//! One event of `tracing` as one line of klog, text or JSON.
//!
//! Source: klog v2 (`formatHeader`, `InfoS`), k8s.io/component-base `logs/json`, v1.36.

use std::fmt::{self, Write};
use std::path::Path;

use jiff::Zoned;
use jiff::tz::TimeZone;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_log::NormalizeEvent;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::filter::verbosity_of;
use super::quote::{Escaper, Escapes};

/// Formats lines; the time zone is that of the start, as in Go.
pub(super) struct KlogLine {
    pub(super) is_json: bool,
    pub(super) pid: u32,
    pub(super) now: Box<dyn Fn() -> Zoned + Send + Sync>,
}

impl KlogLine {
    pub(super) fn new(is_json: bool) -> KlogLine {
        let zone = TimeZone::system();
        let now = move || jiff::Timestamp::now().to_zoned(zone.clone());
        KlogLine { is_json, pid: std::process::id(), now: Box::new(now) }
    }

    fn text(&self, out: &mut dyn Write, event: &Event<'_>, metadata: &Metadata<'_>) -> fmt::Result {
        let severity = match *metadata.level() {
            Level::ERROR => 'E',
            Level::WARN => 'W',
            _ => 'I',
        };
        let time = (self.now)().strftime("%m%d %H:%M:%S%.6f");
        let file = metadata.file().and_then(|file| file.rsplit('/').next()).unwrap_or("???");
        let line = metadata.line().unwrap_or(1);
        write!(out, "{severity}{time} {:>7} {file}:{line}] ", self.pid)?;
        let has_fields = event.metadata().fields().iter().filter(|field| !is_of_log(field)).count() > 1;
        write_fields(event, out, Form::Text { has_fields })?;
        out.write_char('\n')
    }

    fn json(&self, out: &mut dyn Write, event: &Event<'_>, metadata: &Metadata<'_>) -> fmt::Result {
        let milliseconds = (self.now)().timestamp().as_nanosecond() as f64 / 1e6;
        write!(out, "{{\"ts\":{milliseconds},\"caller\":\"")?;
        let file = Path::new(metadata.file().unwrap_or("???"));
        if let Some(folder) = file.parent().and_then(Path::file_name) {
            write!(out, "{}/", folder.display())?;
        }
        let name = file.file_name().unwrap_or_default().display();
        write!(out, "{name}:{}\"", metadata.line().unwrap_or(1))?;
        // klog's errors have no verbosity; which lines are warnings klog's JSON does not say.
        let (verbosity, level) = match *metadata.level() {
            Level::ERROR => (None, "error"),
            Level::WARN => (Some(0), "warn"),
            _ => (Some(verbosity_of(metadata)), "info"),
        };
        write_fields(event, out, Form::Json { verbosity, level })?;
        out.write_str("}\n")
    }
}

impl<S, N> FormatEvent<S, N> for KlogLine
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        // For a line of the crate `log`, where it was written, not where it was passed on.
        let normalized = event.normalized_metadata();
        let metadata = normalized.as_ref().unwrap_or_else(|| event.metadata());
        if self.is_json { self.json(&mut out, event, metadata) } else { self.text(&mut out, event, metadata) }
    }
}

/// Whether a field only says where a line of the crate `log` was written.
fn is_of_log(field: &Field) -> bool {
    field.name().starts_with("log.")
}

/// How message and fields are written.
#[derive(Clone, Copy)]
enum Form {
    /// `"message" name="value"`; a message without fields stands bare, as klog's `Infof` has it.
    Text { has_fields: bool },
    /// `,"msg":"message","v":0,"level":"info","name":"value"`.
    Json { verbosity: Option<i32>, level: &'static str },
}

fn write_fields(event: &Event<'_>, out: &mut dyn Write, form: Form) -> fmt::Result {
    let mut visitor = FieldWriter { out, form, has_message: false, result: Ok(()) };
    event.record(&mut visitor);
    if !visitor.has_message {
        visitor.attempt(|writer| writer.message(format_args!("")));
    }
    visitor.result
}

/// Writes the message, which `tracing` hands over first, and the fields behind it.
struct FieldWriter<'a> {
    out: &'a mut dyn Write,
    form: Form,
    has_message: bool,
    result: fmt::Result,
}

impl FieldWriter<'_> {
    fn attempt(&mut self, write: impl FnOnce(&mut Self) -> fmt::Result) {
        if self.result.is_ok() {
            self.result = write(self);
        }
    }

    fn string(&mut self, value: fmt::Arguments<'_>, is_quoted: bool) -> fmt::Result {
        let escapes = if matches!(self.form, Form::Text { .. }) { Escapes::Go } else { Escapes::Json };
        let mark = if is_quoted { "\"" } else { "" };
        self.out.write_str(mark)?;
        Escaper { out: &mut self.out, escapes, is_quoted }.write_fmt(value)?;
        self.out.write_str(mark)
    }

    fn message(&mut self, message: fmt::Arguments<'_>) -> fmt::Result {
        self.has_message = true;
        match self.form {
            Form::Text { has_fields } => self.string(message, has_fields),
            Form::Json { verbosity, level } => {
                self.out.write_str(",\"msg\":")?;
                self.string(message, true)?;
                if let Some(verbosity) = verbosity {
                    write!(self.out, ",\"v\":{verbosity}")?;
                }
                write!(self.out, ",\"level\":\"{level}\"")
            }
        }
    }

    /// Writes the name of a field; `false` for a field that is not shown.
    fn name(&mut self, field: &Field) -> Result<bool, fmt::Error> {
        if is_of_log(field) {
            return Ok(false);
        }
        if !self.has_message {
            self.message(format_args!(""))?;
        }
        let name = match field.name() {
            "error" => "err",
            name => name.strip_prefix("r#").unwrap_or(name),
        };
        match self.form {
            Form::Text { .. } => write!(self.out, " {name}=")?,
            Form::Json { .. } => write!(self.out, ",\"{name}\":")?,
        }
        Ok(true)
    }

    fn bare(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        self.attempt(|writer| if writer.name(field)? { writer.out.write_fmt(value) } else { Ok(()) });
    }

    fn quoted(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        self.attempt(|writer| {
            if field.name() == "message" && !writer.has_message {
                writer.message(value)
            } else if writer.name(field)? {
                writer.string(value, true)
            } else {
                Ok(())
            }
        });
    }
}

impl Visit for FieldWriter<'_> {
    fn record_f64(&mut self, field: &Field, value: f64) {
        // JSON has no number for the others.
        if value.is_finite() {
            self.bare(field, format_args!("{value}"));
        } else {
            self.quoted(field, format_args!("{value}"));
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.bare(field, format_args!("{value}"));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.bare(field, format_args!("{value}"));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.bare(field, format_args!("{value}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.quoted(field, format_args!("{value}"));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.quoted(field, format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.quoted(field, format_args!("{value:?}"));
    }
}
