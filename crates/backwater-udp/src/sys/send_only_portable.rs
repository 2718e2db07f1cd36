//! Systems on which no second socket can send from the same port without receiving from it.

use std::{io, net::SocketAddr};

use socket2::{SockRef, Socket};

use super::State;
use crate::io::SendBuffer;

pub(crate) fn send_buffer(_socket: SockRef<'_>) -> Option<SendBuffer> {
    None
}

pub(crate) fn send_only(_main: &Socket, _local: SocketAddr) -> io::Result<(Socket, State)> {
    Err(io::ErrorKind::Unsupported.into())
}
