//! Listeners for connections, and what their sockets are like.

use std::{io, net::SocketAddr, rc::Rc, time::Duration};

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::{
    net::{TcpListener, TcpStream},
    task::spawn_local,
};
use tracing::warn;

use crate::{log_limit::LogLimit, ports, worker::Worker};

/// Connections that the system holds for a thread that is late.
const BACKLOG: i32 = 1024;

/// How long a listener waits after the system has no descriptor or memory for a connection.
const PAUSE: Duration = Duration::from_millis(100);

/// Whether a client is still there is asked after a minute of silence, and then every ten seconds, three times.
const KEEPALIVE: TcpKeepalive =
    TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(10));

/// Bytes that the system takes before it has sent them, so that what waits does so here, where it has a deadline.
#[cfg(target_os = "linux")]
const UNSENT: u32 = 128 << 10;

/// Binds a listener. With `shared`, others of this process share the port.
pub(crate) fn listen(addr: SocketAddr, shared: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    if addr.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // A port whose old connections linger is free.
    #[cfg(unix)]
    socket.set_reuse_address(true)?;
    #[cfg(all(unix, not(any(target_os = "solaris", target_os = "illumos", target_os = "cygwin"))))]
    socket.set_reuse_port(shared)?;
    #[cfg(not(unix))]
    let _ = shared;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Sets the options of a connection.
pub(super) fn configure(stream: &TcpStream) -> io::Result<()> {
    let socket = SockRef::from(stream);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&KEEPALIVE)?;
    #[cfg(target_os = "linux")]
    {
        socket.set_tcp_notsent_lowat(UNSENT)?;
        socket.set_tcp_user_timeout(Some(Duration::from_secs(30)))?;
    }
    Ok(())
}

/// Has the system forget what the client has not taken, when the connection is closed.
pub(super) fn reset(stream: &TcpStream) {
    // If it fails, the system forgets it later.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

impl Worker {
    /// Starts the task that accepts connections, in the current `LocalSet`.
    pub(crate) fn start_accepting(self: &Rc<Self>, listener: TcpListener) {
        let worker = self.clone();
        spawn_local(async move {
            let _guard = worker.health.guard();
            let limit = LogLimit::once_a_minute(std::time::Instant::now());
            loop {
                match listener.accept().await {
                    Ok((stream, client)) => worker.accept(stream, client),
                    // The client has ended it again.
                    Err(error) if is_clients(&error) => {}
                    Err(error) => {
                        if limit.allows(std::time::Instant::now()) {
                            let remedy = ports::remedy(&error);
                            warn!(%error, remedy, "connections wait: the system has no room for another one");
                        }
                        tokio::time::sleep(PAUSE).await;
                    }
                }
            }
        });
    }
}

fn is_clients(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    )
}
