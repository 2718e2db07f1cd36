//! Windows has no call that makes a handle name another socket.

use std::{io, net::SocketAddr};

use socket2::Socket;

pub(crate) fn replacement(_old: &Socket, _local: SocketAddr) -> io::Result<Socket> {
    Err(io::ErrorKind::Unsupported.into())
}
