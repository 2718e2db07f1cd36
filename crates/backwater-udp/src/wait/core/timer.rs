//! A timer that goes where its owner goes: a runtime that ends takes its own timers with it.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    runtime::{Handle, Id},
    time::{Instant, Sleep, sleep_until},
};

/// Made when it is needed for the first time.
#[derive(Default)]
pub(super) struct Timer(Option<(Id, Pin<Box<Sleep>>)>);

impl Timer {
    /// Ready at `at` or later.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, at: Instant) -> Poll<()> {
        let here = Handle::current().id();
        let (made_on, sleep) = self.0.get_or_insert_with(|| (here, Box::pin(sleep_until(at))));
        if *made_on != here {
            *made_on = here;
            sleep.set(sleep_until(at));
        } else if sleep.deadline() != at {
            sleep.as_mut().reset(at);
        }
        sleep.as_mut().poll(cx)
    }
}
