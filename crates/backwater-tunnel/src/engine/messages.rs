//! Messages of the protocol that go before data.

use std::{collections::VecDeque, net::SocketAddr};

use arrayvec::ArrayVec;

use super::session_indices::SessionIndices;

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
    /// The UDP payload.
    pub bytes: ArrayVec<u8, MAX_MESSAGE>,
}

/// Messages that the driver has not sent yet, and the indices that messages of handshakes give to sessions.
#[derive(Debug, Default)]
pub(crate) struct Messages {
    waiting: VecDeque<Message>,
    pub(crate) indices: SessionIndices,
}

impl Messages {
    pub(crate) fn push(&mut self, destination: SocketAddr, bytes: &[u8]) {
        if let Ok(bytes) = ArrayVec::try_from(bytes)
            && self.waiting.len() < MAX_WAITING
        {
            self.waiting.push_back(Message { destination, bytes });
        }
    }

    #[inline]
    pub(crate) fn pop(&mut self) -> Option<Message> {
        self.waiting.pop_front()
    }
}
