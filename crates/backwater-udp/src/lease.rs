//! A sender's registration with the reactor, given back when it has not been used for a while.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    task::{Context, Poll},
    time::Duration,
};

use tokio::{runtime::Handle, time::Instant};

use crate::sys;

/// How long a registration may be idle.
const IDLE: Duration = Duration::from_secs(10);

/// The registration, which a task of the runtime takes back: its owner may never send again.
pub(crate) struct Lease(Arc<Mutex<Leased>>);

/// The registrations of a socket's senders.
#[derive(Default)]
pub(crate) struct Leases(Mutex<Vec<Weak<Mutex<Leased>>>>);

struct Leased {
    registration: Option<sys::Registration>,
    used: Instant,
}

impl Lease {
    pub(crate) fn new(io: &sys::Io, leases: &Leases) -> io::Result<Self> {
        let lease = Self(Arc::new(Mutex::new(Leased { registration: None, used: Instant::now() })));
        // Before it registers: what is registered with a socket that is replaced meanwhile is found there.
        let mut known = leases.lock();
        known.retain(|lease| lease.strong_count() > 0);
        known.push(Arc::downgrade(&lease.0));
        drop(known);
        lease.register(&mut lock(&lease.0), io)?;
        Ok(lease)
    }

    pub(crate) fn renew(&self, io: &sys::Io) -> io::Result<()> {
        let mut leased = lock(&self.0);
        match &mut leased.registration {
            Some(registration) => registration.renew(),
            None => self.register(&mut leased, io),
        }
    }

    pub(crate) fn is_ready(&self, io: &sys::Io) -> bool {
        lock(&self.0).registration.as_ref().is_some_and(|registration| registration.is_ready(io))
    }

    pub(crate) fn poll_write<R>(
        &self,
        io: &sys::Io,
        cx: &mut Context<'_>,
        attempt: impl FnOnce() -> io::Result<R>,
    ) -> Poll<io::Result<R>> {
        let mut leased = lock(&self.0);
        leased.used = Instant::now();
        if leased.registration.is_none() {
            self.register(&mut leased, io)?;
        }
        match &mut leased.registration {
            Some(registration) => registration.poll_write(io, cx, attempt),
            None => Poll::Pending,
        }
    }

    fn register(&self, leased: &mut Leased, io: &sys::Io) -> io::Result<()> {
        leased.registration = Some(sys::Registration::new(io)?);
        leased.used = Instant::now();
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(take_back(Arc::downgrade(&self.0)));
        }
        Ok(())
    }
}

impl Leases {
    /// Takes all registrations back: each sender that waits for readiness registers anew when it is polled.
    pub(crate) fn take_back(&self) {
        let leases = self.lock().clone();
        for leased in leases.iter().filter_map(Weak::upgrade) {
            lock(&leased).registration = None;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Weak<Mutex<Leased>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn take_back(leased: Weak<Mutex<Leased>>) {
    while let Some(until) = leased.upgrade().and_then(|leased| idle_until(&leased)) {
        tokio::time::sleep_until(until).await;
    }
}

/// When to look again; `None` when it is taken back.
fn idle_until(leased: &Mutex<Leased>) -> Option<Instant> {
    let mut leased = lock(leased);
    let until = leased.used + IDLE;
    if until <= Instant::now() {
        leased.registration = None;
        return None;
    }
    Some(until)
}

fn lock(leased: &Mutex<Leased>) -> MutexGuard<'_, Leased> {
    leased.lock().unwrap_or_else(PoisonError::into_inner)
}
