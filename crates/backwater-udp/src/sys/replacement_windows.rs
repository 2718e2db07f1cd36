//! Windows has no call that makes a handle name another socket, and two sockets share no port there.

use std::{io, net::SocketAddr};

use socket2::Socket;

pub(crate) fn replacement(_old: &Socket, _local: SocketAddr) -> io::Result<Socket> {
    Err(io::ErrorKind::Unsupported.into())
}

pub(crate) fn connected_beside(
    _main: &Socket,
    _local: SocketAddr,
    _peer: SocketAddr,
    _prepare: impl FnOnce(&Socket) -> io::Result<()>,
) -> io::Result<Socket> {
    Err(io::ErrorKind::Unsupported.into())
}

pub(crate) fn deafen(_connected: &Socket) {}
