//! Waiting for room without a datagram, for those who then try again.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::Instant;

use super::{
    Attempt, Left, Load, SenderCore,
    wait::{Retry, Wait},
};
use crate::{io::Io, stats::DropReason, transmit::Transmit, wait::backoff::Class};

/// A wait in which the owner tries, after it was told that there may be room.
struct Room;

impl<I: Io> SenderCore<I> {
    /// Ready when the next `try_send` may find room: at once, unless the last one was refused.
    pub(crate) fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.cancel_held();
        if !self.core.is_parked() {
            let Some((class, path)) = self.core.wait.as_mut().and_then(|wait| wait.refused.take()) else {
                return Poll::Ready(Ok(()));
            };
            self.core.name();
            self.core.park(false, class, path, false);
        }
        let Some(mut wait) = self.core.wait.take() else { return Poll::Ready(Ok(())) };
        let ended = self.core.poll_parked(cx, &mut wait, &mut Room);
        self.core.wait = Some(wait);
        // It stays parked until the owner has tried: the back-off goes on if that is refused.
        ended.map(|ended| match ended {
            Attempt::Fatal(e) => Err(e),
            Attempt::Done | Attempt::Refused(_) | Attempt::Crowded | Attempt::Paused => Ok(()),
        })
    }

    /// The owner has tried. `progress` says that a part was sent.
    pub(super) fn tried(&mut self, ended: &Attempt, t: &Transmit<'_>, progress: bool) {
        let refused = match ended {
            Attempt::Refused(class) => Some((*class, Some(t.path()))),
            Attempt::Crowded => Some((Class::Silent, None)),
            Attempt::Done | Attempt::Paused | Attempt::Fatal(_) => None,
        };
        let is_news = |wait: &Wait<I::Registration>| wait.parked.is_some() || wait.refused.is_some();
        if self.held > 0 || refused.is_none() && !self.core.wait.as_deref().is_some_and(is_news) {
            return;
        }
        let now = Instant::now();
        self.core.wait_mut(now);
        let Some(mut wait) = self.core.wait.take() else { return };
        let Some(parked) = &mut wait.parked else {
            wait.refused = refused;
            self.core.wait = Some(wait);
            return;
        };
        let (was, by) = (parked.class, wait.by);
        if refused.is_some() {
            parked.since = now;
        }
        if progress {
            self.core.recovered(&mut wait, was, by, now);
        }
        if let Some((class, path)) = refused {
            self.core.wait_on(&mut wait, Retry { class, by, path, longest: None }, now);
        }
        self.core.wait = Some(wait);
        if refused.is_none() {
            self.core.unpark();
        }
    }
}

impl Load for Room {
    /// Where room was promised, the system says whether there is some. Else only a datagram can find out.
    fn attempt<I: Io>(&mut self, io: &I, _id: u32) -> Attempt {
        if io.writable() { Attempt::Done } else { Attempt::Refused(Class::Advised) }
    }

    fn sent(&self) -> u64 {
        0
    }

    fn since(&mut self) -> Option<Instant> {
        None
    }

    /// The owner's datagram has waited for as long as the policy says: the owner decides.
    fn drop_old<I: Io>(&mut self, _io: &I, _since: Instant, _reason: DropReason) -> Left {
        Left::Nothing
    }

    fn path(&self) -> Option<(SocketAddr, Option<IpAddr>)> {
        None
    }

    fn longest_wait(&self) -> Option<Duration> {
        None
    }
}
