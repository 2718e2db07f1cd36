use std::{
    fmt,
    io::{self, IsTerminal, Write},
    time::SystemTime,
};

use tracing::level_filters::LevelFilter;
use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    fmt::{format::Writer, time::FormatTime},
    layer::SubscriberExt,
    reload,
};

mod files;
mod journal;
mod json;

pub use files::LogFiles;
use journal::Journal;
use json::Json;

/// Writes the process's `tracing` events, until it is dropped: one JSON object a line with `time` (RFC 3339, UTC,
/// nanoseconds), `severity`, `message` and the event's own fields, in this order; for people on a terminal, without JSON.
/// With files, warnings and errors go to systemd's journal too, where stderr is connected to it.
///
/// A reader or a disk that does not keep up costs lines, never time: no thread but their own ever waits for it.
#[must_use = "logs stop when it is dropped"]
pub struct Logs {
    filter: reload::Handle<EnvFilter, Registry>,
    is_in_journal: bool,
    is_seen: bool,
    file_error: Option<io::Error>,
    _guards: Vec<WorkerGuard>,
}

/// The filter of the process's log. Does nothing once the log has ended.
#[derive(Clone, Debug)]
pub struct LogFilter(reload::Handle<EnvFilter, Registry>);

/// A filter that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadFilter(String);

/// Lines that wait to be written at most.
const MAX_LINES: usize = 16_384;

impl Logs {
    /// Begins, on stdout. The filter is a level (`warn`) or a list of them by module (`info,backwater_turn=debug`).
    ///
    /// # Errors
    /// [`BadFilter`].
    pub fn to_stdout(filter: &str) -> Result<Self, BadFilter> {
        let filter = parsed(filter)?;
        let stdout = non_blocking(io::stdout());
        Ok(if io::stdout().is_terminal() {
            Self::begin(filter, Some(stdout), None, None)
        } else {
            Self::begin(filter, None, Some(stdout), None)
        })
    }

    /// Begins, in files; and on stdout as well where that is a terminal. The filter is as for
    /// [`to_stdout`](Self::to_stdout). A directory that cannot be written to is in [`file_error`](Self::file_error), and tried again
    /// with later lines; one that can no longer be written to, or a disk that is full, is said on stderr.
    ///
    /// # Errors
    /// [`BadFilter`].
    pub fn to_files(filter: &str, files: &LogFiles) -> Result<Self, BadFilter> {
        let filter = parsed(filter)?;
        let terminal = io::stdout().is_terminal().then(|| non_blocking(io::stdout()));
        let journal = journal::is_stderr().then(|| non_blocking(io::stderr()));
        let mut writer = files.writer(now());
        let file_error = writer.begin().err();
        let is_seen = terminal.is_some() || journal.is_some();
        Ok(Self { is_seen, file_error, ..Self::begin(filter, terminal, Some(non_blocking(writer)), journal) })
    }

    /// Why no file could be written to at the beginning.
    pub fn file_error(&self) -> Option<&io::Error> {
        self.file_error.as_ref()
    }

    /// Whether the lines go to stdout, or warnings and errors to systemd's journal: an operator sees them without opening a file.
    pub fn is_seen(&self) -> bool {
        self.is_seen
    }

    /// Whether warnings and errors go to systemd's journal by way of stderr.
    pub fn is_in_journal(&self) -> bool {
        self.is_in_journal
    }

    /// Checks a filter without beginning anything.
    ///
    /// # Errors
    /// [`BadFilter`].
    pub fn check_filter(filter: &str) -> Result<(), BadFilter> {
        parsed(filter).map(drop)
    }

    /// Writes what passes this filter from now on.
    ///
    /// # Errors
    /// [`BadFilter`]: the filter stays what it was.
    pub fn set_filter(&self, filter: &str) -> Result<(), BadFilter> {
        self.filter().set(filter)
    }

    /// Returns a handle to the filter, for another part of the program.
    pub fn filter(&self) -> LogFilter {
        LogFilter(self.filter.clone())
    }

    fn begin(
        filter: EnvFilter,
        terminal: Option<(NonBlocking, WorkerGuard)>,
        json: Option<(NonBlocking, WorkerGuard)>,
        journal: Option<(NonBlocking, WorkerGuard)>,
    ) -> Self {
        let (terminal, terminal_guard) = terminal.unzip();
        let (json, json_guard) = json.unzip();
        let (journal, journal_guard) = journal.unzip();
        let is_in_journal = journal.is_some();
        let (layer, filter) = reload::Layer::new(filter);
        let for_people =
            |writer| tracing_subscriber::fmt::layer().with_timer(Clock).with_target(false).with_writer(writer);
        let in_json = |writer| tracing_subscriber::fmt::layer().event_format(Json).with_writer(writer);
        let for_journal = |writer| {
            let layer = tracing_subscriber::fmt::layer().with_ansi(false).event_format(Journal).with_writer(writer);
            layer.with_filter(LevelFilter::WARN)
        };
        let registry = Registry::default()
            .with(layer)
            .with(terminal.map(for_people))
            .with(json.map(in_json))
            .with(journal.map(for_journal));
        // Someone else's subscriber, set earlier, gets the events then.
        drop(tracing::subscriber::set_global_default(registry));
        let guards = [terminal_guard, json_guard, journal_guard];
        let guards = guards.into_iter().flatten().collect();
        Self { filter, is_in_journal, is_seen: true, file_error: None, _guards: guards }
    }
}

impl LogFilter {
    /// Returns the filter in force, in the order in which it is applied. Empty once the log has ended.
    pub fn get(&self) -> String {
        self.0.with_current(EnvFilter::to_string).unwrap_or_default()
    }

    /// Writes what passes this filter from now on.
    ///
    /// # Errors
    /// [`BadFilter`]: the filter stays what it was.
    pub fn set(&self, filter: &str) -> Result<(), BadFilter> {
        self.0.reload(parsed(filter)?).map_err(|error| BadFilter(error.to_string()))
    }
}

fn non_blocking(to: impl Write + Send + 'static) -> (NonBlocking, WorkerGuard) {
    NonBlockingBuilder::default().buffered_lines_limit(MAX_LINES).finish(to)
}

fn parsed(filter: &str) -> Result<EnvFilter, BadFilter> {
    // `EnvFilter` takes a word alone for a module of which everything is wanted: `wran` would silence all the rest.
    let no_level =
        |part: &&str| !part.contains(['=', '[']) && (part.is_empty() || part.parse::<LevelFilter>().is_err());
    if let Some(word) = filter.split(',').map(str::trim).find(no_level) {
        return Err(BadFilter(format!("{word:?} is no level: off, error, warn, info, debug, trace or MODULE=LEVEL")));
    }
    EnvFilter::try_new(filter).map_err(|error| BadFilter(error.to_string()))
}

/// What the clock says, but for before 1970, which has no form in a log.
fn now() -> SystemTime {
    SystemTime::now().max(SystemTime::UNIX_EPOCH)
}

struct Clock;

impl FormatTime for Clock {
    fn format_time(&self, w: &mut Writer<'_>) -> fmt::Result {
        write!(w, "{}", humantime::format_rfc3339_nanos(now()))
    }
}

impl fmt::Display for BadFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for BadFilter {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_levels() {
        for filter in ["info", "WARN", "off", "info,backwater_udp=trace", "a::b=debug, warn", "3"] {
            assert!(parsed(filter).is_ok(), "{filter}");
        }
        for filter in ["", "wran", "info,", "info,backwater_udp", "a=b=c", "backwater=loud"] {
            let error = parsed(filter).unwrap_err().to_string();
            assert!(!error.is_empty() && !error.contains('\n'), "{filter}: {error}");
        }
    }
}
