//! Whether a part of the relay has failed or panicked, which would leave its clients without service.

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

    /// Says that a part of the relay is of no more use.
    pub(crate) fn fail(&self) {
        self.0.send_replace(true);
    }

    /// Whether a part has failed or panicked.
    pub(crate) fn has_failed(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits until a part has failed or panicked.
    pub(crate) async fn failed(&self) {
        // There is a sender for as long as this is.
        let _ = self.0.subscribe().wait_for(|failed| *failed).await;
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail();
        }
    }
}
