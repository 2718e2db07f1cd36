//! What the binaries share: logs, metrics, the end of the process, and what keeps secrets to their owner.

#![forbid(unsafe_code)]

mod logs;
mod metrics;
mod private;
mod shutdown;

pub use logs::{BadFilter, LogFiles, Logs};
pub use metrics::{Family, METRICS_CONTENT_TYPE, MetricKind, Metrics};
pub use private::{
    check_directory_is_own, check_directory_is_private, exposed_mode, hide_memory, make_private_directory,
};
pub use shutdown::{Signal, Signals, termination};
