//! Requests to the kernel's routing side (rtnetlink), one at a time. The kernel has worked one off by the time that the
//! call which sends it returns, so that nothing here waits.

use std::{
    io,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// A socket in the network namespace of the thread that opened it.
pub(super) struct Netlink {
    socket: Socket,
    sequence: AtomicU32,
}

impl Netlink {
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // Lets the kernel list one table rather than all; before Linux 4.20 it lists all.
        let _ = socket.set_netlink_get_strict_chk(true);
        Ok(Self { socket, sequence: AtomicU32::new(1) })
    }

    /// Adds what must not be there yet.
    pub(super) fn add(&self, message: RouteNetlinkMessage) -> io::Result<()> {
        self.request(message, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL).map(drop)
    }

    /// Changes or removes.
    pub(super) fn change(&self, message: RouteNetlinkMessage) -> io::Result<()> {
        self.request(message, NLM_F_ACK).map(drop)
    }

    /// What the kernel answers about one thing.
    pub(super) fn ask(&self, message: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.request(message, NLM_F_ACK)
    }

    /// All that the kernel has of a kind.
    pub(super) fn list(&self, message: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.request(message, NLM_F_DUMP)
    }

    fn request(&self, message: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
        let sequence = self.sequence.fetch_add(1, Relaxed);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = sequence;
        let mut request = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        let mut answers = Vec::new();
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            for message in messages(&datagram) {
                let (header, payload) = message?.into_parts();
                // Of a request that failed half-way.
                if header.sequence_number != sequence {
                    continue;
                }
                match payload {
                    NetlinkPayload::InnerMessage(answer) => answers.push(answer),
                    NetlinkPayload::Done(done) => return errno(done.code).map(|()| answers),
                    NetlinkPayload::Error(error) => return errno(error.raw_code()).map(|()| answers),
                    // `non_exhaustive`.
                    NetlinkPayload::Noop | NetlinkPayload::Overrun(_) | _ => {
                        return Err(io::ErrorKind::InvalidData.into());
                    }
                }
            }
        }
    }
}

/// The messages of a datagram, up to the first that cannot be read.
pub(super) fn messages(
    datagram: &[u8],
) -> impl Iterator<Item = io::Result<NetlinkMessage<RouteNetlinkMessage>>> + use<'_> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest);
        // NLMSG_ALIGN: each begins at a multiple of four.
        let length =
            message.as_ref().map_or(rest.len(), |message| (message.header.length as usize).next_multiple_of(4));
        rest = rest.get(length..).unwrap_or_default();
        Some(message.map_err(io::Error::other))
    })
}

fn errno(code: i32) -> io::Result<()> {
    if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(code.saturating_neg())) }
}
