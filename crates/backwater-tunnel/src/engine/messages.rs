//! Messages of the protocol that go before data.

use std::{collections::VecDeque, net::SocketAddr};

use arrayvec::ArrayVec;
use backwater_stun::CHANNEL_HEADER_LEN;

use super::{route::Route, session_indices::SessionIndices};

/// The longest message that is not data: a handshake initiation.
pub(crate) const MAX_MESSAGE: usize = 148;

/// Messages that wait for the driver, at most: what one turn of the event loop receives. The protocol's retransmission makes good for
/// one that is dropped.
const MAX_WAITING: usize = 4096;

/// A handshake message, a cookie, or a keepalive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Where it goes.
    pub destination: SocketAddr,
    /// The UDP payload: on the way by a relay with the header of ChannelData.
    pub bytes: ArrayVec<u8, { MAX_MESSAGE + CHANNEL_HEADER_LEN }>,
}

/// Messages that the driver has not sent yet, and the indices that messages of handshakes give to sessions.
#[derive(Debug, Default)]
pub(crate) struct Messages {
    waiting: VecDeque<Message>,
    pub(crate) indices: SessionIndices,
}

impl Messages {
    pub(crate) fn push(&mut self, route: Route, message: &[u8]) {
        let mut bytes = ArrayVec::new();
        let header = route.header(message.len());
        if header.is_none_or(|header| bytes.try_extend_from_slice(&header).is_ok())
            && bytes.try_extend_from_slice(message).is_ok()
            && self.waiting.len() < MAX_WAITING
        {
            self.waiting.push_back(Message { destination: route.destination(), bytes });
        }
    }

    #[inline]
    pub(crate) fn pop(&mut self) -> Option<Message> {
        self.waiting.pop_front()
    }
}
