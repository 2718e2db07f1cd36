use std::{
    fmt,
    io::{self, IsTerminal},
    time::SystemTime,
};

use json_subscriber::JsonLayer;
use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{
    EnvFilter, Registry,
    fmt::{format::Writer, time::FormatTime},
    layer::{Layered, SubscriberExt},
};

/// Writes the process's `tracing` events to stdout, until it is dropped: for people on a terminal, else one JSON object
/// a line, with `time` (RFC 3339, UTC), `severity`, `message` and the event's own fields.
///
/// A reader that does not keep up costs lines, never time: no thread ever waits for stdout.
#[must_use = "logs stop when it is dropped"]
pub struct Logs {
    _guard: WorkerGuard,
}

/// A filter that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadFilter(String);

/// Lines that wait for stdout at most.
const MAX_LINES: usize = 16_384;

impl Logs {
    /// Begins. The filter is a level (`warn`) or a list of them by module (`info,backwater_turn=debug`).
    ///
    /// # Errors
    /// [`BadFilter`].
    pub fn to_stdout(filter: &str) -> Result<Self, BadFilter> {
        let filter = EnvFilter::try_new(filter).map_err(|e| BadFilter(e.to_string()))?;
        let (writer, guard) = NonBlockingBuilder::default().buffered_lines_limit(MAX_LINES).finish(io::stdout());
        let registry = Registry::default().with(filter);
        let result = if io::stdout().is_terminal() {
            let layer = tracing_subscriber::fmt::layer().with_timer(Clock).with_target(false).with_writer(writer);
            tracing::subscriber::set_global_default(registry.with(layer))
        } else {
            tracing::subscriber::set_global_default(registry.with(json(writer)))
        };
        // Someone else's subscriber, set earlier, gets the events then.
        drop(result);
        Ok(Self { _guard: guard })
    }
}

fn json(writer: NonBlocking) -> JsonLayer<Layered<EnvFilter, Registry>, NonBlocking> {
    let mut layer = JsonLayer::new(writer);
    layer.with_timer("time", Clock).with_level("severity").with_flattened_event();
    layer
}

struct Clock;

impl FormatTime for Clock {
    fn format_time(&self, w: &mut Writer<'_>) -> fmt::Result {
        // Before 1970 it would panic.
        write!(w, "{}", humantime::format_rfc3339_nanos(SystemTime::now().max(SystemTime::UNIX_EPOCH)))
    }
}

impl fmt::Display for BadFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for BadFilter {}
