//! Whether a part of the relay has panicked, which would leave its clients without service.

use tokio::sync::watch;

/// Shared by all threads.
#[derive(Clone, Debug)]
pub(crate) struct Health(watch::Sender<bool>);

/// Held by a thread or a task. tokio catches the panic of a task, and the rest of its thread goes on.
pub(crate) struct Guard(Health);

impl Health {
    pub(crate) fn new() -> Self {
        Self(watch::Sender::new(false))
    }

    /// Notices a panic while it is held.
    pub(crate) fn guard(&self) -> Guard {
        Guard(self.clone())
    }

    /// Whether something has panicked.
    pub(crate) fn has_failed(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits until something has panicked.
    pub(crate) async fn failed(&self) {
        // There is a sender for as long as this is.
        let _ = self.0.subscribe().wait_for(|failed| *failed).await;
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.0.send_replace(true);
        }
    }
}
