//! What `wg` asks and sets (`uapi`), and what `ip` sets of the device.

use std::{
    io,
    task::{Context, Poll},
    time::Instant,
};

use rustix::io::Errno;
use tracing::{info, warn};

use super::event_loop::EventLoop;
use crate::uapi::{Request, Set};

impl EventLoop {
    /// Serves one request, and follows an MTU that another program gave the device. Returns whether there may be more.
    pub(super) fn follow_settings(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        if self.monitor.own_device_changed() && self.link.refresh_mtu() {
            self.engine.set_mtu(self.link.mtu());
            info!(mtu = self.link.mtu(), "the device has another MTU");
            self.set_fragmentation(now);
        }
        // Whoever asked may have gone.
        match self.requests.poll_recv(cx) {
            Poll::Ready(Some(Request::Get(asker))) => {
                let _ = asker.send(self.engine.configuration(self.sockets.port(), self.sockets.mark()));
            }
            Poll::Ready(Some(Request::Set(set, asker))) => {
                let result = self.configure(now, *set);
                match result {
                    Ok(()) => info!(peers = self.engine.peers().count(), "configured by UAPI"),
                    Err(error) => warn!(%error, "a UAPI request was refused"),
                }
                let _ = asker.send(result);
            }
            Poll::Ready(None) | Poll::Pending => return false,
        }
        true
    }

    /// Does all of a request, or nothing.
    ///
    /// # Errors
    /// `ENOSPC`: too many peers or prefixes; `EBUSY`: the program's own rules need another mark; or why there are no such sockets.
    fn configure(&mut self, now: Instant, set: Set) -> Result<(), Errno> {
        let (port, mark) = (set.listen_port, set.fwmark);
        let checked = self.engine.check(set)?;
        self.set_sockets(now, port, mark)?;
        // From here on nothing fails.
        let removed = self.engine.configure(now, checked);
        removed.into_iter().for_each(|peer| self.sockets.cancel(peer));
        // Without the routes of those that are gone.
        self.fit_mtu(now);
        Ok(())
    }

    /// Gives the sockets another port or mark. On an error they are what they were.
    fn set_sockets(&mut self, now: Instant, port: Option<u16>, mark: Option<u32>) -> Result<(), Errno> {
        let errno = |error: io::Error| Errno::from_io_error(&error).unwrap_or(Errno::ADDRINUSE);
        // Without the mark that the rules need, what the tunnel sends would go into the tunnel.
        let mark = match (mark, self.link.fwmark_of_rules()) {
            (Some(0), Some(_)) => None,
            (Some(mark), Some(needed)) if mark != needed => return Err(Errno::BUSY),
            (mark, _) => mark.filter(|&mark| mark != self.sockets.mark()),
        };
        match port {
            Some(port) if !self.sockets.has_port(port) => {
                let sockets = self.sockets.with_port(port, mark).map_err(errno)?;
                self.receive_the_last(now);
                self.sockets = sockets;
                self.engine.handle_closed_sockets();
                self.relay.iter_mut().for_each(|relay| relay.rebound(now));
                self.set_fragmentation(now);
                // Peers answer to where the last message came from.
                self.engine.handle_new_network(now, None);
            }
            Some(port) => {
                mark.map_or(Ok(()), |mark| self.sockets.set_mark(mark)).map_err(errno)?;
                self.sockets.keep_port(port);
            }
            None => mark.map_or(Ok(()), |mark| self.sockets.set_mark(mark)).map_err(errno)?,
        }
        if let Some(mark) = mark {
            self.link.set_fwmark(mark);
            self.look_up_routes(now);
        }
        Ok(())
    }
}
