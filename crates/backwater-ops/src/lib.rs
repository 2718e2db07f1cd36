//! What the binaries share: the back-pressure policy as text, the circuit breaker, logs, metrics, the end of the process, and
//! what keeps secrets to their owner.

#![forbid(unsafe_code)]

pub mod breaker;
mod logs;
mod metrics;
mod policy_text;
mod private;
mod shutdown;

pub use logs::{BadFilter, LogFiles, LogFilter, Logs};
pub use metrics::{Family, METRICS_CONTENT_TYPE, MetricKind, Metrics};
pub use policy_text::{PolicyError, PolicyText};
pub use private::{
    check_directory_is_own, check_directory_is_private, exposed_mode, hide_memory, make_private_directory,
    why_not_roots_alone,
};
pub use shutdown::{Signal, Signals, termination};
