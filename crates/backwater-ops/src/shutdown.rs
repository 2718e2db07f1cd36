use std::io;

/// Begins to listen for the operator or the system to end the process: SIGTERM or SIGINT; Ctrl-C on Windows. The
/// future is ready when that has happened.
///
/// # Errors
/// When signals cannot be listened to.
///
/// # Panics
/// Outside a tokio runtime with its I/O driver enabled.
#[cfg(unix)]
pub fn termination() -> io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Begins to listen for the operator or the system to end the process: SIGTERM or SIGINT; Ctrl-C on Windows. The
/// future is ready when that has happened.
///
/// # Errors
/// When signals cannot be listened to.
///
/// # Panics
/// Outside a tokio runtime with its I/O driver enabled.
#[cfg(not(unix))]
pub fn termination() -> io::Result<impl Future<Output = ()>> {
    let mut ctrl_c = tokio::signal::windows::ctrl_c()?;
    Ok(async move {
        ctrl_c.recv().await;
    })
}
