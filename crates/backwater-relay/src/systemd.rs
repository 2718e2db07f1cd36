//! What the service manager is told: that the relay is ready, that its threads go on, and that it is stopping (sd_notify(3)).

use std::time::Duration;

use backwater_relay::Relay;
use sd_notify::NotifyState;
use tracing::warn;

/// What the end takes beside waiting for clients, at the most.
const BESIDE_DRAIN: Duration = Duration::from_secs(10);

/// Says that clients are served.
pub(crate) fn ready() {
    notify(&[NotifyState::Ready]);
}

/// Says that the relay waits for its clients to leave, for no longer than `drain`.
pub(crate) fn stopping(drain: Duration) {
    let micros = (drain + BESIDE_DRAIN).as_micros().try_into().unwrap_or(u32::MAX);
    notify(&[NotifyState::Stopping, NotifyState::ExtendTimeoutUsec(micros)]);
}

/// Says twice in the time of the watchdog that all threads go on, for as long as they do. Never ready.
pub(crate) async fn watchdog(relay: &Relay) {
    let mut micros = 0;
    if !sd_notify::watchdog_enabled(false, &mut micros) || micros == 0 {
        return std::future::pending().await;
    }
    loop {
        relay.beat().await;
        notify(&[NotifyState::Watchdog]);
        tokio::time::sleep(Duration::from_micros(micros / 2)).await;
    }
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(false, states) {
        warn!(%error, "the service manager could not be told what the relay does");
    }
}
