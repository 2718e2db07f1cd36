//! What may leave in one system call (GSO): datagrams to one destination, all of one length but the last, which may be shorter.

use crate::transmit::MAX_PAYLOAD_V4;

/// The most datagrams that one system call sends as a train (`UDP_MAX_SEGMENTS` of Linux before 6.9; later kernels
/// take 128, which measured no faster).
pub const MAX_SEGMENTS: usize = 64;

/// Bytes of a batch, at most: the largest payload of an IPv4 datagram. IPv6 would take 20 more.
pub const MAX_BYTES: usize = MAX_PAYLOAD_V4;

/// The lengths of a batch's datagrams, wherever their bytes lie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    segment_size: u32,
    bytes: u32,
    datagrams: u32,
    /// The last one was shorter than the others, or empty: nothing may follow.
    closed: bool,
}

impl Shape {
    /// Whether a datagram of `len` bytes may follow. The first one always may.
    #[inline]
    pub fn can_append(&self, len: usize) -> bool {
        self.is_empty()
            || (!self.closed
                && len > 0
                && len <= self.segment_size()
                && self.datagrams() < MAX_SEGMENTS
                && self.bytes() + len <= MAX_BYTES)
    }

    /// Adds a datagram of `len` bytes, which [can follow](Self::can_append).
    #[inline]
    pub fn append(&mut self, len: usize) {
        debug_assert!(self.can_append(len), "{len} bytes after {self:?}");
        if self.is_empty() {
            self.segment_size = len as u32;
        }
        self.closed = len == 0 || len < self.segment_size();
        self.bytes += len as u32;
        self.datagrams += 1;
    }

    /// The length of every datagram but the last, in bytes.
    #[inline]
    pub fn segment_size(&self) -> usize {
        self.segment_size as usize
    }

    /// Of all datagrams together.
    #[inline]
    pub fn bytes(&self) -> usize {
        self.bytes as usize
    }

    /// How many there are.
    #[inline]
    pub fn datagrams(&self) -> usize {
        self.datagrams as usize
    }

    /// Whether there is none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.datagrams == 0
    }
}

/// A batch that is put together in a buffer of its own. `M` is what its datagrams must have in common beside their length: whom
/// they go to, their ECN field.
///
/// ```
/// use backwater_udp::gso::Batch;
///
/// let mut batch = Batch::new(1500);
/// for payload in [&b"first"[..], b"other", b"end"] {
///     assert!(batch.can_append(&"peer", payload.len()));
///     batch.reserve()[..payload.len()].copy_from_slice(payload);
///     batch.commit("peer", payload.len());
/// }
/// assert!(!batch.can_append(&"peer", 3), "behind a shorter one");
/// assert_eq!((batch.bytes(), batch.shape().segment_size()), (&b"firstotherend"[..], 5));
/// ```
#[derive(Debug)]
pub struct Batch<M> {
    shape: Shape,
    common: Option<M>,
    room: Box<[u8]>,
}

impl<M: PartialEq> Batch<M> {
    /// An empty one, for datagrams of up to `longest` bytes. Its buffer is of that and [`MAX_BYTES`]; what is never written to is not
    /// resident.
    pub fn new(longest: usize) -> Self {
        Self { shape: Shape::default(), common: None, room: vec![0; MAX_BYTES + longest].into() }
    }

    /// Whether a datagram of `len` bytes may follow.
    #[inline]
    pub fn can_append(&self, common: &M, len: usize) -> bool {
        self.shape.is_empty() || self.common.as_ref() == Some(common) && self.shape.can_append(len)
    }

    /// Where the next datagram is to be written: room for the longest, at least.
    #[inline]
    pub fn reserve(&mut self) -> &mut [u8] {
        self.room.get_mut(self.shape.bytes()..).unwrap_or_default()
    }

    /// Adds the `len` bytes that were written to what [`reserve`](Self::reserve) returned, which [can follow](Self::can_append).
    #[inline]
    pub fn commit(&mut self, common: M, len: usize) {
        debug_assert!(self.can_append(&common, len));
        if self.shape.is_empty() {
            self.common = Some(common);
        }
        self.shape.append(len);
    }

    /// The datagrams, one behind the other.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        self.room.get(..self.shape.bytes()).unwrap_or_default()
    }

    /// Their lengths.
    #[inline]
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// What they have in common; `None` if there is none.
    #[inline]
    pub fn common(&self) -> Option<&M> {
        self.common.as_ref()
    }

    /// Whether there is none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.shape.is_empty()
    }

    /// Empties it.
    #[inline]
    pub fn clear(&mut self) {
        self.shape = Shape::default();
        self.common = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(lens: impl IntoIterator<Item = usize>) -> Shape {
        let mut shape = Shape::default();
        lens.into_iter().for_each(|len| shape.append(len));
        shape
    }

    #[test]
    fn what_may_follow() {
        for (before, len, may) in [
            (&[][..], 0, true),
            (&[], 65_527, true),
            (&[100], 100, true),
            (&[100], 1, true),
            (&[100], 0, false),
            (&[100], 101, false),
            (&[100, 100], 99, true),
            (&[100, 99], 99, false),
            (&[0], 0, false),
            (&[30_000], 30_000, true),
            (&[30_000, 30_000], 5_507, true),
            (&[30_000, 30_000], 5_508, false),
        ] {
            assert_eq!(shape(before.iter().copied()).can_append(len), may, "{len} after {before:?}");
        }
        let full = shape([10; MAX_SEGMENTS]);
        assert!(!full.can_append(10) && !full.can_append(1));
        assert_eq!((full.datagrams(), full.bytes(), full.segment_size()), (64, 640, 10));
    }

    #[test]
    fn others_and_what_is_too_long_need_another_batch() {
        let mut batch = Batch::new(2000);
        batch.commit(1, 1000);
        assert!(batch.can_append(&1, 1000) && !batch.can_append(&2, 1000));
        while batch.can_append(&1, 1000) {
            assert!(batch.reserve().len() >= 2000);
            batch.commit(1, 1000);
        }
        assert_eq!((batch.shape().datagrams(), batch.bytes().len()), (64, 64_000));
        batch.clear();
        assert!(batch.is_empty() && batch.can_append(&2, 2000));
    }
}
