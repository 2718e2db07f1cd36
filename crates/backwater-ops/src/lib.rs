//! What the binaries share: logs, metrics and the end of the process.

#![forbid(unsafe_code)]

mod logs;
mod metrics;
mod shutdown;

pub use logs::{BadFilter, LogFiles, Logs};
pub use metrics::{Family, METRICS_CONTENT_TYPE, MetricKind, Metrics};
pub use shutdown::termination;
