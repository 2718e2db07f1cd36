//! Encrypted datagrams that leave in one system call.

use backwater_udp::{Ecn, MAX_SEGMENTS};

/// The largest payload of an IPv4 datagram, which is what the system takes as a train.
const MAX_BYTES: usize = 65_507;

/// The largest inner packet, and what encryption adds.
const MAX_DATAGRAM: usize = 65_535 + OVERHEAD;

/// Bytes that encryption adds to a packet: a header of 16 and a tag of 16 (WireGuard, section 5.4.6).
pub(crate) const OVERHEAD: usize = 32;

/// The longest packet that a datagram holds, in bytes, with its padding.
pub(crate) const LONGEST_PACKET: usize = (MAX_BYTES - OVERHEAD) & !15;

/// Datagrams to one peer: all of one length but the last, which may be shorter, and with one ECN field.
pub(crate) struct Train {
    bytes: Box<[u8]>,
    len: usize,
    datagrams: usize,
    segment_size: usize,
    ecn: Option<Ecn>,
    /// A shorter one has been the last.
    closed: bool,
}

impl Train {
    pub(crate) fn new() -> Self {
        let bytes = vec![0; MAX_BYTES + MAX_DATAGRAM].into();
        Self { bytes, len: 0, datagrams: 0, segment_size: 0, ecn: None, closed: false }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether a datagram of `len` bytes may follow in a train of at most `longest` bytes.
    pub(crate) fn takes(&self, len: usize, ecn: Option<Ecn>, longest: usize) -> bool {
        self.is_empty()
            || (!self.closed
                && len <= self.segment_size
                && self.ecn == ecn
                && self.datagrams < MAX_SEGMENTS
                && self.len + len <= longest.min(MAX_BYTES))
    }

    /// Where the next datagram is to be written: room for the longest.
    pub(crate) fn space(&mut self) -> &mut [u8] {
        self.bytes.get_mut(self.len..).unwrap_or_default()
    }

    /// Adds the `len` bytes that were written to [`space`](Self::space), which [`takes`](Self::takes) them.
    pub(crate) fn push(&mut self, len: usize, ecn: Option<Ecn>) {
        debug_assert!(self.takes(len, ecn, MAX_BYTES));
        if self.is_empty() {
            (self.segment_size, self.ecn) = (len, ecn);
        }
        self.closed = len < self.segment_size;
        self.len += len;
        self.datagrams += 1;
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }

    pub(crate) fn segment_size(&self) -> usize {
        self.segment_size
    }

    pub(crate) fn ecn(&self) -> Option<Ecn> {
        self.ecn
    }

    pub(crate) fn clear(&mut self) {
        (self.len, self.datagrams, self.closed) = (0, 0, false);
    }
}
