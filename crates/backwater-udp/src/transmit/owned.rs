//! Datagrams that own their bytes.

use std::{
    io::IoSlice,
    net::{IpAddr, SocketAddr},
};

use bytes::Bytes;

use super::{Cursor, Header, Transmit};
use crate::{Ecn, stats::SendReport};

/// A [`Transmit`] that owns its bytes and knows how much of it is done: for those who keep what there is no room for.
#[derive(Debug)]
pub struct OwnedTransmit {
    destination: SocketAddr,
    source: Option<IpAddr>,
    ecn: Option<Ecn>,
    pub(crate) header: Header,
    segment_size: usize,
    bytes: Bytes,
    cursor: Cursor,
}

impl OwnedTransmit {
    /// One datagram.
    pub fn new(destination: SocketAddr, bytes: Bytes) -> Self {
        let cursor = Transmit::new(destination, &[IoSlice::new(&bytes)]).cursor;
        let segment_size = bytes.len();
        Self { destination, source: None, ecn: None, header: Header::default(), segment_size, bytes, cursor }
    }

    /// As [`Transmit::source`].
    #[must_use]
    pub fn source(mut self, source: Option<IpAddr>) -> Self {
        self.source = source;
        self
    }

    /// As [`Transmit::ecn`].
    #[must_use]
    pub fn ecn(mut self, ecn: Option<Ecn>) -> Self {
        self.ecn = ecn;
        self
    }

    /// Where it goes.
    pub fn destination(&self) -> SocketAddr {
        self.destination
    }

    /// Sends it there instead, and from there, as far as it is not done.
    pub(crate) fn set_way(&mut self, destination: SocketAddr, source: Option<IpAddr>) {
        (self.destination, self.source) = (destination, source);
    }

    /// The length of every datagram but the last, in bytes.
    pub(crate) fn datagram_len(&self) -> usize {
        self.segment_size
    }

    /// What has become of the datagrams that are done.
    pub fn report(&self) -> &SendReport {
        &self.cursor.report
    }

    /// What has become of the datagrams that are done since this was called last.
    pub(crate) fn take_report(&mut self) -> SendReport {
        std::mem::take(&mut self.cursor.report)
    }

    /// Datagrams that are neither sent nor dropped yet.
    pub fn remaining(&self) -> usize {
        self.cursor.datagrams_left as usize
    }

    /// Bytes that it keeps in memory.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Whether it is what was left of a transmit of these bytes.
    #[cfg(any(feature = "quinn", feature = "noq"))]
    pub(crate) fn is_rest_of(&self, t: &Transmit<'_>, bytes: &[u8]) -> bool {
        self.destination == t.destination
            && self.source == t.source
            && self.ecn == t.ecn
            && self.segment_size == t.segment_size
            && bytes.ends_with(&self.bytes)
    }

    /// Lends it as a transmit, and keeps how far that gets.
    pub(crate) fn lend<R>(&mut self, send: impl FnOnce(&mut Transmit<'_>) -> R) -> R {
        let slices = [IoSlice::new(&self.bytes)];
        let mut transmit = Transmit {
            destination: self.destination,
            source: self.source,
            ecn: self.ecn,
            header: self.header,
            slices: &slices,
            segment_size: self.segment_size,
            cursor: self.cursor,
        };
        let sent = send(&mut transmit);
        self.cursor = transmit.cursor;
        sent
    }
}

/// Copies what is left of a transmit.
impl From<&Transmit<'_>> for OwnedTransmit {
    fn from(t: &Transmit<'_>) -> Self {
        let mut bytes = Vec::with_capacity(t.cursor.bytes_left);
        t.remaining_slices().for_each(|slice| bytes.extend_from_slice(slice));
        Self {
            destination: t.destination,
            source: t.source,
            ecn: t.ecn,
            header: t.header,
            segment_size: t.segment_size,
            bytes: bytes.into(),
            cursor: Cursor { begun: false, report: SendReport::default(), ..t.cursor },
        }
    }
}
