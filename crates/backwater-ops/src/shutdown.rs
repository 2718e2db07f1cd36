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

/// What a signal asks of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// To end in order: SIGTERM, SIGINT, SIGQUIT; Ctrl-C on Windows.
    Terminate,
    /// To read its configuration again: SIGHUP.
    Reload,
}

/// The signals that the process gets from now on. SIGUSR1 and SIGUSR2 do nothing, where they would end it by default.
#[cfg(unix)]
#[derive(Debug)]
pub struct Signals {
    terminate: [tokio::signal::unix::Signal; 3],
    reload: tokio::signal::unix::Signal,
    _ignored: [tokio::signal::unix::Signal; 2],
}

/// The signals that the process gets from now on.
#[cfg(not(unix))]
#[derive(Debug)]
pub struct Signals {
    ctrl_c: tokio::signal::windows::CtrlC,
}

#[cfg(unix)]
impl Signals {
    /// Begins to listen for signals.
    ///
    /// # Errors
    /// When signals cannot be listened to.
    ///
    /// # Panics
    /// Outside a tokio runtime with its I/O driver enabled.
    pub fn listen() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            terminate: [
                signal(SignalKind::terminate())?,
                signal(SignalKind::interrupt())?,
                signal(SignalKind::quit())?,
            ],
            reload: signal(SignalKind::hangup())?,
            _ignored: [signal(SignalKind::user_defined1())?, signal(SignalKind::user_defined2())?],
        })
    }

    /// Waits for the next signal. Cancel safe.
    pub async fn next(&mut self) -> Signal {
        let [terminate, interrupt, quit] = &mut self.terminate;
        tokio::select! {
            _ = terminate.recv() => Signal::Terminate,
            _ = interrupt.recv() => Signal::Terminate,
            _ = quit.recv() => Signal::Terminate,
            _ = self.reload.recv() => Signal::Reload,
        }
    }
}

#[cfg(not(unix))]
impl Signals {
    /// Begins to listen for signals.
    ///
    /// # Errors
    /// When signals cannot be listened to.
    ///
    /// # Panics
    /// Outside a tokio runtime with its I/O driver enabled.
    pub fn listen() -> io::Result<Self> {
        Ok(Self { ctrl_c: tokio::signal::windows::ctrl_c()? })
    }

    /// Waits for the next signal. Cancel safe.
    pub async fn next(&mut self) -> Signal {
        self.ctrl_c.recv().await;
        Signal::Terminate
    }
}
