use std::{
    io::IoSlice,
    net::{IpAddr, SocketAddr},
};

use arrayvec::ArrayVec;

use crate::{
    Ecn,
    gso::MAX_SEGMENTS,
    socket::Fragmentation,
    stats::{DropReason, SendReport},
    sys::Outgoing,
};

mod owned;

pub use owned::OwnedTransmit;

/// The largest UDP payload: 65,535 less the UDP header, and less the IPv4 header, which counts into its length.
pub(crate) const MAX_PAYLOAD_V4: usize = 65_507;
const MAX_PAYLOAD_V6: usize = 65_527;

/// Slices that one chunk of a train may consist of, when it has to be assembled anew.
const MAX_SLICES: usize = 256;

/// Slices that the kernel takes in one call (`UIO_MAXIOV`).
const MAX_SLICES_IN_PLACE: usize = 1024;

/// One datagram, or a train of datagrams to one destination, and how much of it is done.
///
/// It is a cursor: a send that could not be finished leaves it at the first datagram that is neither sent nor
/// dropped, and offering it again goes on from there. Nothing is sent twice.
///
/// The bytes are a list of slices, so that headers can be skipped or inserted, that is cut into
/// datagrams every [`segment_size`](Self::segment_size) bytes; only the last one may be shorter. An empty list is
/// one datagram without payload.
#[derive(Debug)]
pub struct Transmit<'a> {
    pub(crate) destination: SocketAddr,
    pub(crate) source: Option<IpAddr>,
    pub(crate) ecn: Option<Ecn>,
    pub(crate) header: Header,
    slices: &'a [IoSlice<'a>],
    segment_size: usize,
    pub(crate) cursor: Cursor,
}

/// Fields of the IP header that an option of the socket sets. `None`: whatever it has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) hop_limit: Option<u8>,
    pub(crate) fragmentation: Option<Fragmentation>,
}

/// How much of a [`Transmit`] is done.
///
/// It is small: the transmits of a batch are gone through before and after the system call, which leaves nothing in the cache.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cursor {
    pub(crate) bytes_left: usize,
    datagrams_left: u32,
    /// The most datagrams to offer in one call: less than a train once the system refused one.
    pub(crate) at_most: u8,
    /// Whether any of it is done.
    begun: bool,
    pub(crate) next: Next,
    pub(crate) hold: Hold,
    pub(crate) report: SendReport,
}

/// Which sender has counted it as accepted, and in which of its calls. Zeroes: none has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Hold {
    pub(crate) sender: u32,
    pub(crate) generation: u32,
}

/// What has become of the datagrams that are next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    Fresh,
    /// They were refused for want of room.
    Refused,
    /// The same, but they may have been queued all the same.
    MaybeQueued,
}

impl<'a> Transmit<'a> {
    /// One datagram of all the `slices`.
    pub fn new(destination: SocketAddr, slices: &'a [IoSlice<'a>]) -> Self {
        let bytes = slices.iter().map(|s| s.len()).sum();
        Self {
            destination,
            source: None,
            ecn: None,
            header: Header::default(),
            slices,
            segment_size: bytes,
            cursor: Cursor {
                bytes_left: bytes,
                datagrams_left: 1,
                at_most: MAX_SEGMENTS as u8,
                begun: false,
                next: Next::Fresh,
                hold: Hold::default(),
                report: SendReport::default(),
            },
        }
    }

    /// Cuts the bytes into datagrams of `bytes` each, of which there can be `u32::MAX`. Zero, or more than there is, means one
    /// datagram.
    #[must_use]
    pub fn segment_size(mut self, bytes: usize) -> Self {
        if bytes != 0 && bytes < self.cursor.bytes_left {
            self.segment_size = bytes;
            self.cursor.datagrams_left = self.cursor.bytes_left.div_ceil(bytes) as u32;
        }
        self
    }

    /// The address to send from, for a socket that is bound to the wildcard address. The default is what the
    /// system's routing picks.
    #[must_use]
    pub fn source(mut self, source: Option<IpAddr>) -> Self {
        self.source = source;
        self
    }

    /// The ECN field of every datagram. The default is not-ECT.
    #[must_use]
    pub fn ecn(mut self, ecn: Option<Ecn>) -> Self {
        self.ecn = ecn;
        self
    }

    /// The time to live (IPv4) or hop limit (IPv6) of every datagram; 0 for the system's default. Without this call it is what the
    /// socket has ([`UdpSocket::set_hop_limit`](crate::UdpSocket::set_hop_limit)).
    ///
    /// It is an option of the socket, set before the datagrams are sent if the last ones had another: tasks on several threads
    /// that send with different ones on one socket get each other's. Ignored elsewhere than on Linux.
    #[must_use]
    pub fn hop_limit(mut self, hops: u8) -> Self {
        self.header.hop_limit = Some(hops);
        self
    }

    /// Whether these datagrams may be fragmented. Without this call it is what the socket has
    /// ([`UdpSocket::set_fragmentation`](crate::UdpSocket::set_fragmentation)). An option of the socket, as
    /// [`hop_limit`](Self::hop_limit); ignored on Windows, OpenBSD and NetBSD.
    #[must_use]
    pub fn fragmentation(mut self, fragmentation: Fragmentation) -> Self {
        self.header.fragmentation = Some(fragmentation);
        self
    }

    /// Where it goes.
    pub fn destination(&self) -> SocketAddr {
        self.destination
    }

    /// The address it is to be sent from, if that was said.
    pub fn source_ip(&self) -> Option<IpAddr> {
        self.source
    }

    /// Its ECN field.
    pub fn ecn_field(&self) -> Option<Ecn> {
        self.ecn
    }

    /// What has become of the datagrams that are done, so far.
    pub fn report(&self) -> &SendReport {
        &self.cursor.report
    }

    /// Datagrams that are neither sent nor dropped yet.
    pub fn remaining(&self) -> usize {
        self.cursor.datagrams_left as usize
    }

    /// The bytes that are not done, as the slices to copy them from; [`remaining`](Self::remaining) datagrams of
    /// them, cut as before.
    pub fn remaining_slices(&self) -> impl Iterator<Item = &'a [u8]> {
        let mut done = if self.cursor.begun { self.bytes() - self.cursor.bytes_left } else { 0 };
        self.slices.iter().filter_map(move |slice| {
            let slice: &'a [u8] = slice;
            let rest = slice.get(done..);
            done = done.saturating_sub(slice.len());
            rest.filter(|rest| !rest.is_empty())
        })
    }

    fn bytes(&self) -> usize {
        self.slices.iter().map(|slice| slice.len()).sum()
    }

    /// The length of every datagram but the last.
    pub fn datagram_len(&self) -> usize {
        self.segment_size
    }

    /// Whether a sender has counted what is left as accepted.
    pub(crate) fn is_accepted(&self) -> bool {
        self.cursor.hold.sender != 0
    }

    /// From where it goes to where.
    pub(crate) fn path(&self) -> (SocketAddr, Option<IpAddr>) {
        (self.destination, self.source)
    }

    pub(crate) fn is_done(&self) -> bool {
        self.cursor.datagrams_left == 0
    }

    /// The next datagrams to hand to the kernel in one call, at most `max_datagrams` and `max_bytes` of them, but
    /// always one. `scratch` serves where a list of slices has to be put together.
    pub(crate) fn chunk<'s>(
        &'s self,
        max_datagrams: usize,
        max_bytes: usize,
        scratch: &'s mut Scratch<'a>,
    ) -> Chunk<'s, 'a> {
        let wanted = self.fitting(max_datagrams, max_bytes);
        self.all_at_once(wanted).unwrap_or_else(|| self.assemble(wanted, scratch))
    }

    /// All of it, if that is what the next call may take and nothing of it was sent before. The limits do not matter to a single
    /// datagram.
    #[inline]
    pub(crate) fn whole(&self, limits: impl FnOnce() -> (usize, usize)) -> Option<Chunk<'a, 'a>> {
        let datagrams = if self.remaining() == 1 {
            1
        } else {
            let (max_datagrams, max_bytes) = limits();
            self.fitting(max_datagrams, max_bytes)
        };
        self.all_at_once(datagrams)
    }

    /// How many datagrams one call may take.
    #[inline]
    fn fitting(&self, max_datagrams: usize, max_bytes: usize) -> usize {
        let max_datagrams = max_datagrams.min(self.cursor.at_most.into()).min(self.remaining());
        let max_bytes = max_bytes.min(self.max_payload());
        if self.cursor.bytes_left <= max_bytes {
            // Spares the division.
            return max_datagrams.max(1);
        }
        max_datagrams.min(max_bytes / self.segment_size.max(1)).max(1)
    }

    /// The datagrams from the next on that have its length, and their bytes.
    pub(crate) fn as_long_as_next(&self) -> (usize, usize) {
        let left = self.cursor.bytes_left;
        match left.checked_div(self.segment_size) {
            None | Some(0) => (1, left),
            Some(datagrams) => (datagrams, datagrams * self.segment_size),
        }
    }

    /// The longest datagram that UDP can carry to its destination.
    #[inline]
    pub(crate) fn max_payload(&self) -> usize {
        match self.destination.ip() {
            IpAddr::V4(_) => MAX_PAYLOAD_V4,
            IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some() => MAX_PAYLOAD_V4,
            IpAddr::V6(_) => MAX_PAYLOAD_V6,
        }
    }

    #[inline]
    fn all_at_once(&self, datagrams: usize) -> Option<Chunk<'a, 'a>> {
        // A single datagram may be as long as its owner likes, but need not be copied for the kernel to refuse it.
        let whole = datagrams == self.remaining()
            && !self.cursor.begun
            && self.cursor.bytes_left <= MAX_PAYLOAD_V6
            && self.slices.len() <= MAX_SLICES_IN_PLACE;
        whole.then_some(Chunk {
            slices: self.slices,
            bytes: self.cursor.bytes_left,
            datagrams,
            segment_size: self.segment_size,
        })
    }

    /// What the kernel is told about a chunk.
    pub(crate) fn outgoing<'s>(&'s self, chunk: &Chunk<'s, 's>) -> Outgoing<'s> {
        let segment_size = if chunk.datagrams > 1 { u16::try_from(chunk.segment_size).ok() } else { None };
        Outgoing {
            destination: &self.destination,
            source: &self.source,
            ecn: self.ecn,
            header: self.header,
            slices: chunk.slices,
            bytes: chunk.bytes,
            segment_size,
        }
    }

    /// Moves past `chunk`, which was sent.
    pub(crate) fn sent(&mut self, datagrams: usize, bytes: usize) {
        self.cursor.report.sent += datagrams as u32;
        self.cursor.next = Next::Fresh;
        self.advance(datagrams, bytes);
    }

    /// Moves past `chunk`, which is dropped.
    pub(crate) fn dropped(&mut self, datagrams: usize, bytes: usize, reason: DropReason) {
        self.cursor.report.dropped.add(reason, datagrams as u32);
        self.advance(datagrams, bytes);
    }

    /// What is left of it is another's: nothing is left here.
    pub(crate) fn let_go(&mut self) {
        self.cursor.hold = Hold::default();
        self.advance(self.remaining(), self.cursor.bytes_left);
    }

    fn assemble<'s>(&'s self, wanted: usize, scratch: &'s mut Scratch<'a>) -> Chunk<'s, 'a> {
        scratch.clear();
        let target = (wanted * self.segment_size).min(self.cursor.bytes_left);
        let mut bytes = 0;
        for slice in self.remaining_slices() {
            if bytes == target || scratch.is_full() {
                break;
            }
            let take = slice.len().min(target - bytes);
            scratch.push(IoSlice::new(slice.get(..take).unwrap_or_default()));
            bytes += take;
        }
        if bytes < target {
            // The scratch is full: fewer datagrams then, or none at all.
            return match bytes / self.segment_size {
                0 => Chunk { slices: &[], bytes: 0, datagrams: 0, segment_size: self.segment_size },
                fewer => self.assemble(fewer, scratch),
            };
        }
        let datagrams = wanted;
        Chunk { slices: scratch.as_slice(), bytes, datagrams, segment_size: self.segment_size }
    }

    fn advance(&mut self, datagrams: usize, bytes: usize) {
        self.cursor.begun = true;
        self.cursor.datagrams_left -= datagrams as u32;
        self.cursor.bytes_left -= bytes;
    }
}

pub(crate) type Scratch<'a> = ArrayVec<IoSlice<'a>, MAX_SLICES>;

/// What goes to the kernel in one call.
pub(crate) struct Chunk<'s, 'a> {
    pub(crate) slices: &'s [IoSlice<'a>],
    pub(crate) bytes: usize,
    pub(crate) datagrams: usize,
    pub(crate) segment_size: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    const TO: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9);

    fn bytes(chunk: &Chunk<'_, '_>) -> Vec<u8> {
        chunk.slices.iter().flat_map(|s| s.to_vec()).collect()
    }

    /// Takes `t` apart in chunks of `max` and returns the datagrams.
    fn drain(mut t: Transmit<'_>, max: usize) -> Vec<Vec<u8>> {
        let mut out = Vec::new();
        while !t.is_done() {
            let mut scratch = Scratch::new();
            let chunk = t.chunk(max, usize::MAX, &mut scratch);
            let all = bytes(&chunk);
            assert_eq!(all.len(), chunk.bytes);
            if all.is_empty() {
                out.push(Vec::new());
            }
            out.extend(all.chunks(chunk.segment_size.max(1)).map(<[u8]>::to_vec));
            let (datagrams, bytes) = (chunk.datagrams, chunk.bytes);
            t.sent(datagrams, bytes);
        }
        out
    }

    #[test]
    fn every_way_to_cut_yields_the_same_datagrams() {
        let data: Vec<u8> = (0..=255).collect();
        for slice_len in [1, 3, 7, 64, 256] {
            let slices: Vec<_> = data.chunks(slice_len).map(IoSlice::new).collect();
            for segment in [1, 5, 7, 100, 255, 256, 0] {
                let want: Vec<_> = data.chunks(if segment == 0 { 256 } else { segment }).map(<[u8]>::to_vec).collect();
                for max in [1, 2, 3, 64] {
                    let t = Transmit::new(TO, &slices).segment_size(segment);
                    assert_eq!(t.remaining(), want.len());
                    assert_eq!(drain(t, max), want, "slices {slice_len} segment {segment} max {max}");
                }
            }
        }
    }

    #[test]
    fn more_slices_than_a_chunk_holds_are_cut_at_a_datagram() {
        let data: Vec<u8> = (0..3000u32).map(|i| i as u8).collect();
        let slices: Vec<_> = data.chunks(1).map(IoSlice::new).collect();
        let t = Transmit::new(TO, &slices).segment_size(50);
        assert_eq!(drain(t, 64), data.chunks(50).map(<[u8]>::to_vec).collect::<Vec<_>>());
        let t = Transmit::new(TO, &slices).segment_size(300);
        let mut scratch = Scratch::new();
        // It goes as it is while all of it may, but not in parts.
        assert_eq!(t.chunk(64, 300, &mut scratch).datagrams, 0);
    }

    #[test]
    fn what_is_done_takes_no_place_in_a_chunk() {
        let data: Vec<u8> = (0..512u32).map(|i| i as u8).collect();
        let slices: Vec<_> = data.chunks(1).map(IoSlice::new).collect();
        let t = Transmit::new(TO, &slices).segment_size(MAX_SLICES);
        assert_eq!(drain(t, 1), [&data[..256], &data[256..]]);
    }

    #[test]
    fn nothing_is_one_empty_datagram() {
        assert_eq!(drain(Transmit::new(TO, &[]), 64), vec![Vec::<u8>::new()]);
    }

    #[test]
    fn a_chunk_stays_within_the_largest_payload() {
        let data = vec![0; 70_000];
        let slices = [IoSlice::new(&data)];
        let t = Transmit::new(TO, &slices).segment_size(1200);
        let mut scratch = Scratch::new();
        let chunk = t.chunk(64, usize::MAX, &mut scratch);
        assert_eq!(chunk.datagrams, 54);
        assert_eq!(chunk.bytes, 54 * 1200);
    }

    #[test]
    fn what_is_left_can_be_copied_out() {
        let slices = [IoSlice::new(b"abc"), IoSlice::new(b"defg")];
        let mut t = Transmit::new(TO, &slices).segment_size(2);
        t.sent(1, 2);
        t.dropped(1, 2, DropReason::TooLarge);
        assert_eq!(t.remaining_slices().collect::<Vec<_>>().concat(), b"efg");
        assert_eq!((t.remaining(), t.report().sent, t.report().dropped.total()), (2, 1, 1));
    }
}
