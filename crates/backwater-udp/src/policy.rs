use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    task::Waker,
    time::Duration,
};

use crate::{sys::OS, wait::decision::Os};

/// What to do with a datagram that the system has no room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Hold it until there is room, but no longer than `deadline` from when it was first offered.
    Wait {
        /// How long, in whole microseconds.
        deadline: Duration,
    },
    /// Drop it at once, and count it.
    Drop,
}

impl Default for Policy {
    /// Wait, at most 100 ms; 500 ms on Apple's systems, whose flow control holds a sender for 100 to 200 ms at a time.
    fn default() -> Self {
        Self::Wait { deadline: default_deadline(OS) }
    }
}

/// XNU 7195 holds a flow for 200 ms at twice its link's rate, and for 800 at five times (executed). To drop meanwhile shortens no hold.
fn default_deadline(os: Os) -> Duration {
    Duration::from_millis(if os == Os::Apple { 500 } else { 100 })
}

/// A shared handle to the [`Policy`] of a socket's senders, or of many sockets' senders; it may be switched at any time.
///
/// It is read when the system refuses a datagram and at each wake-up of a sender that waits; a switch wakes those who
/// wait now.
#[derive(Clone)]
pub struct Backpressure(Arc<Shared>);

struct Shared {
    /// A deadline in microseconds, or [`DROP`].
    policy: AtomicU64,
    waiting: Mutex<HashMap<u32, Waker>>,
}

const DROP: u64 = u64::MAX;

impl Backpressure {
    /// A handle of its own.
    pub fn new(policy: Policy) -> Self {
        Self(Arc::new(Shared { policy: AtomicU64::new(encode(policy)), waiting: Mutex::default() }))
    }

    /// The policy in force.
    pub fn get(&self) -> Policy {
        match self.0.policy.load(SeqCst) {
            DROP => Policy::Drop,
            micros => Policy::Wait { deadline: Duration::from_micros(micros) },
        }
    }

    /// Switches the policy of everyone who shares this handle, and wakes the senders that wait.
    pub fn set(&self, policy: Policy) {
        self.0.policy.store(encode(policy), SeqCst);
        // A waker may poll, and a poll takes the lock.
        let wakers: Vec<_> = self.waiting().values().cloned().collect();
        wakers.into_iter().for_each(Waker::wake);
    }

    /// To be woken by a switch. Read the policy after this, not before: a switch in between would be missed.
    pub(crate) fn wait(&self, id: u32, waker: &Waker) {
        let mut waiting = self.waiting();
        let is_known = waiting.get(&id).is_some_and(|known| known.will_wake(waker));
        let before = if is_known { None } else { waiting.insert(id, waker.clone()) };
        drop(waiting);
        // It may own a task, and that a sender, which takes the lock when it is dropped.
        drop(before);
    }

    pub(crate) fn leave(&self, id: u32) {
        let gone = self.waiting().remove(&id);
        drop(gone);
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<u32, Waker>> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Backpressure {
    fn default() -> Self {
        Self::new(Policy::default())
    }
}

impl fmt::Debug for Backpressure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Backpressure").field(&self.get()).finish()
    }
}

fn encode(policy: Policy) -> u64 {
    match policy {
        Policy::Wait { deadline } => u64::try_from(deadline.as_micros()).unwrap_or(DROP).min(DROP - 1),
        Policy::Drop => DROP,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_is_held_longer_where_the_system_holds_a_flow_longer() {
        let ms = [Os::Linux, Os::Other, Os::Apple].map(|os| default_deadline(os).as_millis());
        assert_eq!(ms, [100, 100, 500]);
        assert_eq!(Policy::default(), Policy::Wait { deadline: default_deadline(OS) });
    }

    #[test]
    fn is_shared_and_exact() {
        let a = Backpressure::default();
        let b = a.clone();
        assert_eq!(b.get(), Policy::default());
        b.set(Policy::Drop);
        assert_eq!(a.get(), Policy::Drop);
        a.set(Policy::Wait { deadline: Duration::MAX });
        assert_ne!(b.get(), Policy::Drop);
        a.set(Policy::Wait { deadline: Duration::ZERO });
        assert_eq!(b.get(), Policy::Wait { deadline: Duration::ZERO });
    }
}
