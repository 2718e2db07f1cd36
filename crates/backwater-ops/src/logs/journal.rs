//! systemd's journal, which takes a service's stderr.

use std::fmt;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::{
    fmt::{FmtContext, FormatEvent, FormatFields, format::Writer},
    registry::LookupSpan,
};

/// Whether stderr is connected to the journal: systemd then gives its device and inode in `JOURNAL_STREAM`
/// (systemd.exec(5)).
#[cfg(target_os = "linux")]
pub(super) fn is_stderr() -> bool {
    use std::os::unix::fs::MetadataExt;
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    std::fs::metadata("/proc/self/fd/2").is_ok_and(|stderr| stream == format!("{}:{}", stderr.dev(), stderr.ino()))
}

#[cfg(not(target_os = "linux"))]
pub(super) fn is_stderr() -> bool {
    false
}

/// A line with its priority in front (sd-daemon(3)). The journal keeps the time itself.
pub(super) struct Journal;

impl<S, N> FormatEvent<S, N> for Journal
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let priority = if *event.metadata().level() == Level::ERROR { 3 } else { 4 };
        write!(out, "<{priority}>")?;
        context.format_fields(out.by_ref(), event)?;
        writeln!(out)
    }
}
