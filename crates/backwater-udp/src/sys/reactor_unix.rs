//! Readiness through tokio's reactor, by descriptor.

use std::{
    io,
    net::UdpSocket,
    os::fd::{AsFd, AsRawFd, OwnedFd, RawFd},
    task::{Context, Poll, ready},
};

use socket2::{SockRef, Socket};
use tokio::io::{Interest, unix::AsyncFd};

/// A socket. Its number stays the same although another socket takes its place.
pub(crate) struct Io(UdpSocket);

impl Io {
    pub(crate) fn new(socket: UdpSocket) -> io::Result<Self> {
        Ok(Self(socket))
    }

    pub(crate) fn sock_ref(&self) -> SockRef<'_> {
        SockRef::from(&self.0)
    }

    /// Makes its number name what `socket` does, in one step: a thread that sends meanwhile uses the one or the other.
    fn rename(&self, socket: &Socket) -> io::Result<()> {
        let (from, to) = (socket.as_raw_fd(), self.0.as_raw_fd());
        // SAFETY: both numbers are open, and `to` is this value's own.
        let result = unsafe {
            #[cfg(target_os = "linux")]
            {
                libc::dup3(from, to, libc::O_CLOEXEC)
            }
            #[cfg(not(target_os = "linux"))]
            {
                libc::dup2(from, to)
            }
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        #[cfg(not(target_os = "linux"))]
        self.sock_ref().set_cloexec(true)?;
        Ok(())
    }
}

/// A socket's registration to receive. Not to send: each freed buffer would wake the reactor, and one error would latch
/// "write closed" for as long as the socket lives.
///
/// There is one for an [`Io`], and it is dropped before that. It does without a descriptor of its own.
pub(crate) struct Reader(Option<AsyncFd<Number>>);

/// A socket's number.
struct Number(RawFd);

impl AsRawFd for Number {
    fn as_raw_fd(&self) -> RawFd {
        self.0
    }
}

impl Reader {
    /// It registers when it is polled.
    pub(crate) const UNREGISTERED: Self = Self(None);

    pub(crate) fn new(io: &Io) -> io::Result<Self> {
        Ok(Self(Some(Self::register(io)?)))
    }

    /// Calls `receive` when there may be something, until it is not `WouldBlock`.
    pub(crate) fn poll_receive<R>(
        &mut self,
        io: &Io,
        cx: &mut Context<'_>,
        mut receive: impl FnMut() -> io::Result<R>,
    ) -> Poll<io::Result<R>> {
        let fd = match &mut self.0 {
            Some(fd) => fd,
            none => none.insert(Self::register(io)?),
        };
        loop {
            let mut guard = ready!(fd.poll_read_ready(cx))?;
            if let Ok(result) = guard.try_io(|_| receive()) {
                return Poll::Ready(result);
            }
        }
    }

    /// Puts `new` in the place of the socket, under its number, and returns what the number has named.
    ///
    /// # Errors
    /// Those of the system. The number then names what it did.
    pub(crate) fn replace(&mut self, io: &Io, new: Socket) -> io::Result<Socket> {
        let old = io.sock_ref().try_clone()?;
        // The reactor knows a socket by its number: it has to forget the old one while the number names it.
        self.0 = None;
        match io.rename(&new).and_then(|()| Self::register(io)) {
            Ok(fd) => {
                self.0 = Some(fd);
                Ok(old)
            }
            Err(error) => {
                io.rename(&old)?;
                // If it cannot be registered, the next poll tries again.
                self.0 = Self::register(io).ok();
                Err(error)
            }
        }
    }

    fn register(io: &Io) -> io::Result<AsyncFd<Number>> {
        let number = Number(io.0.as_raw_fd());
        // SAFETY: the number is open until the `Io` is dropped, which the reader is before. It names one description until
        // `replace` drops the registration.
        Ok(unsafe { AsyncFd::register_with_interest(number, super::imp::RECEIVE_INTEREST) }?)
    }
}

/// A sender's own registration: a duplicate of the descriptor.
pub(crate) struct Registration(Option<AsyncFd<OwnedFd>>);

impl Registration {
    pub(crate) fn new(io: &Io) -> io::Result<Self> {
        Self::register(io.0.as_fd().try_clone_to_owned()?)
    }

    /// Registers anew. The reactor looks at the socket again, and forgets closed bits, which it never clears otherwise.
    pub(crate) fn renew(&mut self) -> io::Result<()> {
        if let Some(fd) = self.0.take() {
            *self = Self::register(fd.into_inner())?;
        }
        Ok(())
    }

    /// Whether an edge has come that no attempt has cleared. Unlike a poll, this does not depend on tokio's budget.
    pub(crate) fn is_ready(&self, _io: &Io) -> bool {
        self.0.as_ref().is_some_and(|fd| fd.try_io(Interest::WRITABLE, |_| Ok(())).is_ok())
    }

    /// Calls `attempt`, once, when the reactor says writable. Its `WouldBlock` clears that.
    pub(crate) fn poll_write<R>(
        &mut self,
        _io: &Io,
        cx: &mut Context<'_>,
        attempt: impl FnOnce() -> io::Result<R>,
    ) -> Poll<io::Result<R>> {
        let fd = self.0.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        let mut guard = ready!(fd.poll_write_ready(cx))?;
        let result = guard.try_io(|_| attempt());
        Poll::Ready(result.unwrap_or_else(|_would_block| Err(io::ErrorKind::WouldBlock.into())))
    }

    fn register(fd: OwnedFd) -> io::Result<Self> {
        // SAFETY: an `OwnedFd` is open and names one description until it is dropped, which the `AsyncFd` does.
        let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::WRITABLE) }?;
        Ok(Self(Some(fd)))
    }
}

#[cfg(all(test, target_os = "linux"))]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::{future::poll_fn, time::Duration};

    use tokio::time::timeout;

    use super::*;

    fn pair() -> (Io, Registration) {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        let io = Io::new(socket).unwrap();
        let registration = Registration::new(&io).unwrap();
        (io, registration)
    }

    async fn ready(io: &Io, registration: &mut Registration, within: u64) -> bool {
        let poll = poll_fn(|cx| registration.poll_write(io, cx, || Ok(())));
        timeout(Duration::from_millis(within), poll).await.is_ok()
    }

    /// A false `WouldBlock` is how an edge gets lost: readiness is cleared, and nothing happens that would set it again.
    #[tokio::test]
    async fn a_lost_edge_hangs_until_the_socket_is_registered_anew() {
        let (io, mut registration) = pair();
        assert!(ready(&io, &mut registration, 1000).await);
        let lie = poll_fn(|cx| registration.poll_write(&io, cx, || Err::<(), _>(io::ErrorKind::WouldBlock.into())));
        assert_eq!(lie.await.unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert!(!ready(&io, &mut registration, 300).await, "waiting alone hangs");
        assert!(!registration.is_ready(&io));
        registration.renew().unwrap();
        assert!(ready(&io, &mut registration, 1000).await);
        assert!(registration.is_ready(&io));
    }

    /// How often the reactor says writable, up to a thousand times, although the system says each time that it is not.
    async fn wakes(io: &Io, registration: &mut Registration) -> u32 {
        let mut wakes = 0;
        while wakes < 1000 {
            let blocked = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
            let poll = poll_fn(|cx| registration.poll_write(io, cx, blocked));
            if timeout(Duration::from_millis(100), poll).await.is_err() {
                break;
            }
            wakes += 1;
        }
        wakes
    }

    /// One ICMP error, drained, and the reactor says writable for ever, whatever the system says.
    #[tokio::test]
    async fn a_latched_write_closed_is_forgotten_by_registering_anew() {
        let (io, mut registration) = pair();
        // `IP_RECVERR`, so that the error is queued.
        let state = crate::sys::State::new(&io.sock_ref().try_clone().unwrap(), false).unwrap();
        let mut drained = 0;
        // The kernel may have no ICMP message left this second, or another process the port.
        for _ in 0..100 {
            let closed = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
            io.sock_ref().send_to(b"x", &closed.into()).unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
            let is_reported = io.sock_ref().take_error().unwrap().is_some();
            state.drain_errors(io.sock_ref(), |_| drained += 1);
            if is_reported || cfg!(backwater_portable) {
                break;
            }
        }
        if cfg!(not(backwater_portable)) {
            assert_eq!(drained, 1);
            assert_eq!(wakes(&io, &mut registration).await, 1000, "the bit is latched");
        }
        registration.renew().unwrap();
        assert_eq!(wakes(&io, &mut registration).await, 1, "registered anew: one edge, then nothing");
    }
}
