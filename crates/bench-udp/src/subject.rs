//! What is asked of everyone who is measured, and what shows that they did it.

use std::net::SocketAddr;

/// Trains that one call receives, at most. quinn-udp takes up to 32; with eight, half a megabyte, what is received is still in
/// the cache when it is sent on.
pub(crate) const SLOTS: usize = 8;

/// Bytes of a slot: the largest train.
pub(crate) const SLOT_BYTES: usize = 65_536;

/// What stands in front of a datagram, and is stripped or inserted.
pub(crate) const HEADER: [u8; 4] = [0x40, 0x00, 0x01, 0x02];

/// One socket and its ways to use it. All of them run on the thread that is measured.
pub(crate) trait Subject {
    fn address(&self) -> SocketAddr;

    /// Whether trains arrive as trains.
    fn has_gro(&self) -> bool {
        true
    }

    /// Sends the train to each destination, so many times.
    fn send(&mut self, job: &Job<'_>, times: usize);

    /// Receives so many datagrams and looks at each.
    fn receive(&mut self, datagrams: usize, look: &mut Look);

    /// Receives so many datagrams and sends them on, changed.
    fn forward(&mut self, change: Change, to: SocketAddr, datagrams: usize);
}

/// What is to be sent.
pub(crate) struct Job<'a> {
    pub(crate) to: &'a [SocketAddr],
    /// The datagrams, one after the other.
    pub(crate) train: &'a [u8],
    /// Bytes of each of them.
    pub(crate) size: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// The first four bytes of each datagram are left out.
    Strip,
    /// [`HEADER`] comes in front of each datagram.
    Insert,
}

/// The least that a receiver does with a datagram: find it and read a byte.
#[derive(Default)]
pub(crate) struct Look {
    pub(crate) datagrams: usize,
    pub(crate) sum: u64,
    /// All of them, where they are to be compared.
    pub(crate) kept: Option<Vec<Vec<u8>>>,
}

impl Look {
    #[inline]
    pub(crate) fn at(&mut self, datagram: &[u8]) {
        self.datagrams += 1;
        self.sum += u64::from(datagram[0]);
        if let Some(kept) = &mut self.kept {
            kept.push(datagram.to_vec());
        }
    }
}
