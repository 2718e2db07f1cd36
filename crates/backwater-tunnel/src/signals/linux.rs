//! Linux: every signal that would end the process is blocked, and a thread reads it (`signalfd(2)`).
//!
//! A fault of the process itself is not affected: the kernel ends a process whose fault raises a blocked signal
//! (`force_sig_info_to_task`). A SIGSEGV that another process sends is taken here like any other signal.

use std::{
    fs::{self, File},
    io, thread,
};

use nix::{
    errno::Errno,
    sys::{
        signal::{SigSet, Signal},
        signalfd::SignalFd,
    },
};
use tokio::sync::mpsc;

use super::{Ending, Order};

/// Those that by default do nothing, stop the process or continue it (`signal(7)`). Rust's runtime ignores SIGPIPE.
const LEFT_ALONE: [Signal; 9] = [
    Signal::SIGCHLD,
    Signal::SIGCONT,
    Signal::SIGPIPE,
    Signal::SIGSTOP,
    Signal::SIGTSTP,
    Signal::SIGTTIN,
    Signal::SIGTTOU,
    Signal::SIGURG,
    Signal::SIGWINCH,
];

/// Orders that wait to be followed, at most; the thread takes no other signal meanwhile.
const MAX_WAITING: usize = 4;

pub(crate) struct Signals {
    orders: mpsc::Receiver<Order>,
}

impl Signals {
    /// Begins to take the process's signals. It must be called before the process has other threads, since a thread that
    /// does not block a signal may be given it. SIGHUP stays ignored if it is (`nohup`).
    ///
    /// # Errors
    /// When the system does not let it.
    pub(crate) fn take() -> io::Result<Self> {
        let mut set = SigSet::all();
        LEFT_ALONE.into_iter().for_each(|signal| set.remove(signal));
        if fs::read_to_string("/proc/self/status").is_ok_and(|status| is_ignored(&status, Signal::SIGHUP)) {
            set.remove(Signal::SIGHUP);
        }
        set.thread_block()?;
        let (descriptor, had_terminal) = (SignalFd::new(&set)?, has_terminal());
        let (sender, orders) = mpsc::channel(MAX_WAITING);
        thread::Builder::new().name("signals".to_owned()).spawn(move || {
            loop {
                let number = match descriptor.read_signal() {
                    Ok(Some(info)) => info.ssi_signo,
                    Ok(None) | Err(Errno::EINTR) => continue,
                    Err(_) => return,
                };
                if sender.blocking_send(order(number, had_terminal && !has_terminal())).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { orders })
    }

    /// Waits for the next one.
    pub(crate) async fn next(&mut self) -> Order {
        let unreadable = || Order::End(Ending { signal: "signals that cannot be read".to_owned(), is_ordinary: false });
        self.orders.recv().await.unwrap_or_else(unreadable)
    }
}

fn order(number: u32, terminal_is_gone: bool) -> Order {
    let signal = i32::try_from(number).ok().and_then(|number| Signal::try_from(number).ok());
    if signal == Some(Signal::SIGHUP) && !terminal_is_gone {
        return Order::Reload;
    }
    let is_ordinary = matches!(signal, Some(Signal::SIGTERM | Signal::SIGINT | Signal::SIGHUP));
    let signal = signal.map_or_else(|| format!("signal {number}"), |signal| signal.to_string());
    Order::End(Ending { signal, is_ordinary })
}

/// Whether the process has a controlling terminal: without one this file cannot be opened (`tty(4)`).
fn has_terminal() -> bool {
    File::open("/dev/tty").is_ok()
}

/// Whether `/proc/PID/status` says that the signal is ignored: the mask's lowest bit is signal 1 (`proc_pid_status(5)`).
fn is_ignored(status: &str, signal: Signal) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask & (1 << (signal as i32 - 1)) != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hangup_ends_only_when_the_terminal_is_gone() {
        let end = |signal: &str, is_ordinary| Order::End(Ending { signal: signal.to_owned(), is_ordinary });
        assert_eq!(order(1, false), Order::Reload);
        assert_eq!(order(1, true), end("SIGHUP", true));
        assert_eq!(order(15, false), end("SIGTERM", true));
        assert_eq!(order(11, false), end("SIGSEGV", false));
        assert_eq!(order(35, false), end("signal 35", false));
    }

    #[test]
    fn ignored_signals_are_read_from_the_status_file() {
        let status = "Name:\tsh\nSigBlk:\t0000000000000002\nSigIgn:\t0000000000001001\nSigCgt:\t0000000000000002\n";
        assert!(is_ignored(status, Signal::SIGHUP) && is_ignored(status, Signal::SIGPIPE));
        assert!(!is_ignored(status, Signal::SIGINT) && !is_ignored("SigIgn:\tx\n", Signal::SIGHUP));
        assert!(!is_ignored("", Signal::SIGHUP));
    }
}
