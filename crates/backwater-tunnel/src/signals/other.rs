//! macOS and Windows: what ends a program there.

use std::io;

use super::{Ending, Order};

pub(crate) struct Signals {
    terminated: std::pin::Pin<Box<dyn Future<Output = ()>>>,
}

impl Signals {
    /// Begins to take the process's signals.
    ///
    /// # Errors
    /// When the system does not let it.
    pub(crate) fn take() -> io::Result<Self> {
        Ok(Self { terminated: Box::pin(backwater_ops::termination()?) })
    }

    /// Waits for the next one.
    pub(crate) async fn next(&mut self) -> Order {
        self.terminated.as_mut().await;
        Order::End(Ending { signal: "a termination signal".to_owned(), is_ordinary: true })
    }
}
