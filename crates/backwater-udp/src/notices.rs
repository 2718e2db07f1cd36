//! What an operator reads in the log. Never a line per datagram or per wait: each kind is news only when it has not been the
//! case for a while, whatever number of senders and sockets count together.

use std::{
    io,
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;
use tracing::{info, warn};

#[derive(Debug, Default)]
pub(crate) struct Notices {
    waiting: News,
    stuck: News,
    unstuck: News,
    lost_edge: News,
    segmentation: News,
    icmp_errors_lost: News,
    unknown_error: News,
    receive_error: News,
    no_registration: News,
}

impl Notices {
    pub(crate) fn waiting(&self) {
        if self.waiting.is_news() {
            info!("the system has no room: senders wait");
        }
    }

    pub(crate) fn stuck(&self) {
        if self.stuck.is_news() {
            warn!("the system has taken nothing of a sender for seconds: a new socket may help");
        }
    }

    pub(crate) fn unstuck(&self) {
        if self.unstuck.is_news() {
            info!("the system takes datagrams again of a sender that was stuck");
        }
    }

    pub(crate) fn lost_edge(&self) {
        if self.lost_edge.is_news() {
            warn!("the system has not said that there is room, as it promised: a timer found out");
        }
    }

    pub(crate) fn segmentation_off(&self) {
        if self.segmentation.is_news() {
            info!(
                "the device of a route refuses GSO batches: datagrams to that destination are sent one by one for a minute"
            );
        }
    }

    pub(crate) fn icmp_error_lost(&self) {
        if self.icmp_errors_lost.is_news() {
            warn!("ICMP messages arrive faster than the owner fetches them: some are lost");
        }
    }

    pub(crate) fn unknown_error(&self, error: &io::Error) {
        if self.unknown_error.is_news() {
            warn!(%error, "the system refuses to send a datagram: it is dropped");
        }
    }

    pub(crate) fn no_registration(&self, error: &io::Error) {
        if self.no_registration.is_news() {
            warn!(%error, "a sender cannot wait for readiness: it waits by the timer");
        }
    }

    pub(crate) fn receive_error(&self, error: &io::Error) {
        if self.receive_error.is_news() {
            warn!(%error, "receiving fails: the receiver tries again");
        }
    }
}

/// When something was last the case: milliseconds since [`BEGINNING`], one more than that; 0 for never.
#[derive(Debug, Default)]
struct News(AtomicU64);

/// It is news again after as long without it.
const QUIET: Duration = Duration::from_secs(10);

static BEGINNING: LazyLock<std::time::Instant> = LazyLock::new(std::time::Instant::now);

impl News {
    /// Notes that it is the case now; returns whether it was not before.
    fn is_news(&self) -> bool {
        let now = Instant::now().into_std().saturating_duration_since(*BEGINNING).as_millis() as u64 + 1;
        let last = self.0.swap(now, Relaxed);
        last == 0 || now.saturating_sub(last) >= QUIET.as_millis() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_goes_on_is_no_news_and_what_comes_back_is() {
        let news = News::default();
        assert!(news.is_news());
        for _ in 0..100 {
            tokio::time::advance(QUIET - Duration::from_millis(1)).await;
            assert!(!news.is_news());
        }
        tokio::time::advance(QUIET).await;
        assert!(news.is_news());
        assert!(!news.is_news());
    }
}
