use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

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
    /// Wait, at most 100 ms.
    fn default() -> Self {
        Self::Wait { deadline: Duration::from_millis(100) }
    }
}

/// A shared handle to the [`Policy`] of a socket's senders, or of many sockets' senders; it may be switched at any
/// time. It is read when the system refuses a datagram and at each wake-up of a sender that waits.
#[derive(Clone, Debug)]
pub struct Backpressure(Arc<AtomicU64>);

/// `Drop`, in the word that otherwise holds a deadline in microseconds.
const DROP: u64 = u64::MAX;

impl Backpressure {
    /// A handle of its own.
    pub fn new(policy: Policy) -> Self {
        Self(Arc::new(AtomicU64::new(encode(policy))))
    }

    /// The policy in force.
    pub fn get(&self) -> Policy {
        match self.0.load(Relaxed) {
            DROP => Policy::Drop,
            micros => Policy::Wait { deadline: Duration::from_micros(micros) },
        }
    }

    /// Switches the policy of everyone who shares this handle.
    pub fn set(&self, policy: Policy) {
        self.0.store(encode(policy), Relaxed);
    }
}

impl Default for Backpressure {
    fn default() -> Self {
        Self::new(Policy::default())
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
    fn is_shared_and_exact() {
        let a = Backpressure::default();
        let b = a.clone();
        assert_eq!(b.get(), Policy::Wait { deadline: Duration::from_millis(100) });
        b.set(Policy::Drop);
        assert_eq!(a.get(), Policy::Drop);
        a.set(Policy::Wait { deadline: Duration::MAX });
        assert_ne!(b.get(), Policy::Drop);
        a.set(Policy::Wait { deadline: Duration::ZERO });
        assert_eq!(b.get(), Policy::Wait { deadline: Duration::ZERO });
    }
}
