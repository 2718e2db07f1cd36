//! Where clients come from, and the way back to them.

use std::{io::IoSlice, time::Instant};

use backwater_stun::ChannelNumber;
use backwater_turn::{FiveTuple, Protocol};

use self::stream::StreamId;
use crate::{fields::Fields, worker::Worker};

pub(crate) mod stream;
pub(crate) mod udp;

/// How a client is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ClientLink {
    /// By datagrams from the listener of this number.
    Udp(usize),
    /// By a connection.
    Stream(StreamId),
}

impl ClientLink {
    /// Returns the protocol that the client uses.
    pub(crate) fn protocol(self) -> Protocol {
        match self {
            Self::Udp(_) => Protocol::Udp,
            Self::Stream(_) => Protocol::Tcp,
        }
    }
}

/// The way from peers to the client of an allocation, or to the clients of a listener.
pub(crate) struct Down<'a> {
    pub(crate) now: Instant,
    way: Way<'a>,
}

enum Way<'a> {
    Udp(udp::Down<'a>),
    Stream(stream::Down<'a>),
}

impl Worker {
    /// Returns the way to the clients of a link; `None` if it is gone.
    pub(crate) fn down(&self, link: ClientLink, now: Instant) -> Option<Down<'_>> {
        let way = match link {
            ClientLink::Udp(listener) => Way::Udp(self.down_udp(listener)?),
            ClientLink::Stream(id) => Way::Stream(self.down_stream(id, now)),
        };
        Some(Down { now, way })
    }

    /// Returns whether the client can be reached still.
    pub(crate) fn has_link(&self, link: ClientLink) -> bool {
        match link {
            ClientLink::Udp(listener) => self.listeners.get(listener).is_some(),
            ClientLink::Stream(id) => self.streams.get(id).is_some(),
        }
    }

    /// Answers a client.
    pub(crate) fn reply(&self, link: ClientLink, to: FiveTuple, reply: Option<&[u8]>) {
        let Some(reply) = reply else { return };
        self.counters.replies.add(1);
        match link {
            ClientLink::Udp(listener) => self.reply_udp(listener, to, reply),
            ClientLink::Stream(id) => self.reply_stream(id, reply),
        }
    }
}

impl Down<'_> {
    /// Adds payloads as ChannelData.
    #[inline]
    pub(crate) fn channel_data<'p>(
        &mut self,
        client: FiveTuple,
        fields: Fields,
        channel: ChannelNumber,
        payloads: impl Iterator<Item = &'p [u8]>,
    ) {
        match &mut self.way {
            Way::Udp(down) => down.channel_data(client, fields, channel, payloads),
            Way::Stream(down) => down.channel_data(channel, payloads),
        }
    }

    /// Adds a message that the relay has made: the slices are its parts.
    pub(crate) fn message(&mut self, client: FiveTuple, fields: Fields, parts: &[IoSlice<'_>]) {
        match &mut self.way {
            Way::Udp(down) => down.message(client, fields, parts),
            Way::Stream(down) => down.message(parts),
        }
    }

    /// Sends what was added.
    pub(crate) fn flush(&mut self) {
        match &mut self.way {
            Way::Udp(down) => down.flush(),
            Way::Stream(down) => down.flush(),
        }
    }
}
