//! The loop's share of the cores, where these are fewer than the programs that want them: the programs whose packets it carries,
//! and the other end if that is on this host.

use std::time::Instant;

#[cfg(target_os = "linux")]
mod awake;
mod lend;
#[cfg(target_os = "linux")]
mod load;
#[cfg(target_os = "linux")]
mod precede;
#[cfg(target_os = "linux")]
mod seek;

use lend::Lender;
#[cfg(target_os = "linux")]
use precede::Preceding;

/// Datagrams of a train, from which on others may run when it is delivered: the buffer of the socket that they are for may hold a few
/// such trains, and not more.
const LONG_TRAIN: usize = 20;

/// How the loop shares.
pub(crate) enum Cores {
    /// It is a program as any other, and lends between trains that it sends.
    Lends(Lender),
    /// It goes before others, pauses to let them run, lends between trains that it delivers, and then stays awake.
    #[cfg(target_os = "linux")]
    Precedes(Preceding),
}

/// What a turn has read from the device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Taken {
    pub(crate) packets: usize,
    pub(crate) left: Left,
}

/// Why it read no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    /// The device had no more.
    Nothing,
    /// The turn's budget is used up, or there was nothing and then was.
    More,
    /// No path can take more.
    NoRoom,
}

/// What comes after a turn that has read the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Until the device has a packet, or a path has room, nothing.
    Wait,
    /// Another turn.
    Again,
    /// A pause, if there is nothing else to do, and another turn.
    #[cfg_attr(not(target_os = "linux"), expect(dead_code, reason = "only Linux knows who may go first"))]
    Pause,
}

impl Cores {
    /// For the thread that calls this, which is to be the loop's. Its priority is raised if that is allowed.
    pub(crate) fn new(now: Instant) -> Self {
        #[cfg(target_os = "linux")]
        if precede::claim() {
            return Self::Precedes(Preceding::new(now));
        }
        Self::Lends(Lender::new(now))
    }

    /// What comes after a turn that began at `now`.
    pub(crate) fn after(&mut self, now: Instant, taken: Taken) -> Next {
        match self {
            Self::Lends(lender) => {
                if taken.left != Left::More {
                    return Next::Wait;
                }
                lender.lend();
                Next::Again
            }
            #[cfg(target_os = "linux")]
            Self::Precedes(preceding) => preceding.after(now, taken),
        }
    }

    /// In the turn that began at `now` so many datagrams arrived as one, and what they carried has gone to the device.
    pub(crate) fn delivered(&mut self, now: Instant, datagrams: usize) {
        match self {
            #[cfg(target_os = "linux")]
            Self::Precedes(preceding) if datagrams >= LONG_TRAIN => preceding.delivered(now),
            _ => {}
        }
    }

    /// There is nothing to do in the turn that began at `now`. Whether the loop looks again at once rather than waits.
    pub(crate) fn stay_awake(&mut self, now: Instant) -> bool {
        match self {
            Self::Lends(_) => false,
            #[cfg(target_os = "linux")]
            Self::Precedes(preceding) => preceding.stay_awake(now),
        }
    }

    /// Lets others run for a moment.
    pub(crate) fn pause(&mut self) {
        #[cfg(target_os = "linux")]
        if let Self::Precedes(_) = self {
            Preceding::pause();
        }
    }
}
