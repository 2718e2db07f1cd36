//! What a connection could not take yet.

use std::{collections::VecDeque, time::Instant};

/// Bytes that a connection holds at most, with what it takes to know where frames begin.
pub(crate) const MAX_HELD: usize = 256 << 10;

/// Bytes that an entry takes beside its frame.
const OVERHEAD: usize = size_of::<Entry>();

/// Capacity that an empty queue keeps, in bytes.
const KEPT: usize = 4096;

/// Frames that wait until their connection takes more, in their order.
#[derive(Default)]
pub(crate) struct Output {
    /// From `start` on, the bytes of the frames.
    bytes: Vec<u8>,
    start: usize,
    frames: VecDeque<Entry>,
    /// Bytes of the first frame that have been sent.
    begun: usize,
}

struct Entry {
    len: u32,
    kind: Kind,
    since: Instant,
}

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// An answer to a request. It is never dropped: on a connection, no client asks twice.
    Reply,
    /// A peer's datagram.
    Data,
    /// The rest of a peer's datagram of which a part has been sent.
    Begun,
}

impl Output {
    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Bytes that are held.
    pub(crate) fn held(&self) -> usize {
        self.bytes.len() - self.start + self.frames.len() * OVERHEAD
    }

    /// Whether there is room for a frame of this length.
    pub(crate) fn has_room(&self, len: usize) -> bool {
        self.held() + len + OVERHEAD <= MAX_HELD
    }

    /// Adds a frame at the end.
    pub(crate) fn push(&mut self, frame: &[u8], kind: Kind, now: Instant) {
        self.bytes.extend_from_slice(frame);
        self.frames.push_back(Entry { len: frame.len() as u32, kind, since: now });
    }

    /// What is to be sent next.
    pub(crate) fn unsent(&self) -> &[u8] {
        self.bytes.get(self.start..).unwrap_or_default()
    }

    /// The lengths of the frames of which [`unsent`](Self::unsent) consists.
    pub(crate) fn lengths(&self) -> impl Iterator<Item = usize> {
        let begun = std::iter::once(self.begun).chain(std::iter::repeat(0));
        self.frames.iter().zip(begun).map(|(entry, begun)| entry.len as usize - begun)
    }

    /// Notes that so many bytes have been sent. Returns how many datagrams were sent with them to their end.
    pub(crate) fn advance(&mut self, bytes: usize) -> usize {
        self.start += bytes;
        self.begun += bytes;
        let mut datagrams = 0;
        while let Some(first) = self.frames.front().filter(|first| self.begun >= first.len as usize) {
            self.begun -= first.len as usize;
            datagrams += usize::from(first.kind != Kind::Reply);
            self.frames.pop_front();
        }
        if self.frames.is_empty() {
            self.start = 0;
            if self.bytes.capacity() > KEPT { self.bytes = Vec::new() } else { self.bytes.clear() }
        } else if self.start > self.bytes.len() / 2 {
            self.bytes.drain(..std::mem::take(&mut self.start));
        }
        datagrams
    }

    /// Drops the datagrams that have waited since before `since` and of which no byte is among the first `committed` ones. Returns how
    /// many.
    pub(crate) fn drop_older(&mut self, since: Instant, committed: usize) -> usize {
        let is_old = |entry: &Entry, at: usize| entry.kind == Kind::Data && entry.since < since && at >= committed;
        let mut at = 0;
        // The first one may have begun.
        let mut any = false;
        for (place, entry) in self.frames.iter().enumerate() {
            let begins = at;
            at += entry.len as usize - if place == 0 { self.begun } else { 0 };
            any = is_old(entry, begins) && (place > 0 || self.begun == 0);
            if any || entry.since >= since {
                break;
            }
        }
        if !any {
            return 0;
        }
        let (mut from, mut to, mut at, mut begun) = (self.start, self.start, 0, self.begun);
        let before = self.frames.len();
        let bytes = &mut self.bytes;
        self.frames.retain(|entry| {
            let left = entry.len as usize - begun;
            let stays = begun > 0 || !is_old(entry, at);
            if stays {
                bytes.copy_within(from..from + left, to);
                to += left;
            }
            (from, at, begun) = (from + left, at + left, 0);
            stays
        });
        bytes.truncate(to);
        if self.frames.is_empty() {
            self.advance(0);
        }
        before - self.frames.len()
    }

    /// How many datagrams wait.
    pub(crate) fn datagrams(&self) -> usize {
        self.frames.iter().filter(|entry| entry.kind != Kind::Reply).count()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn frames_leave_in_order_whatever_the_pieces() {
        let now = Instant::now();
        for piece in 1..40 {
            let (mut output, mut sent, mut datagrams) = (Output::default(), Vec::new(), 0);
            for n in 0..30u8 {
                output.push(&[n; 7], if n % 3 == 0 { Kind::Reply } else { Kind::Data }, now);
            }
            while !output.is_empty() {
                let part = output.unsent()[..piece.min(output.unsent().len())].to_vec();
                datagrams += output.advance(part.len());
                sent.extend(part);
            }
            assert_eq!((sent, datagrams), ((0..30).flat_map(|n| [n; 7]).collect(), 20), "{piece}");
            assert_eq!(output.held(), 0);
        }
    }

    #[test]
    fn old_datagrams_are_dropped_and_answers_and_what_has_begun_are_not() {
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        let mut output = Output::default();
        for (n, kind) in [(0, Kind::Data), (1, Kind::Data), (2, Kind::Reply), (3, Kind::Data), (4, Kind::Begun)] {
            output.push(&[n; 4], kind, now);
        }
        output.push(&[5; 4], Kind::Data, later);
        assert_eq!(output.advance(1), 0);
        assert_eq!(output.drop_older(now, 0), 0);
        // The encrypted form of the second one is half sent.
        assert_eq!(output.drop_older(later, 5), 1);
        assert_eq!(output.unsent(), [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 4, 4, 4, 4, 5, 5, 5, 5]);
        assert_eq!(output.drop_older(later, 0), 1);
        assert_eq!((output.unsent(), output.datagrams()), (&[0, 0, 0, 2, 2, 2, 2, 4, 4, 4, 4, 5, 5, 5, 5][..], 3));
        assert_eq!(output.advance(15), 3);
        output.push(&[6; 4], Kind::Data, now);
        assert_eq!((output.drop_older(later, 0), output.held()), (1, 0));
    }

    #[test]
    fn room_is_bounded_also_for_the_smallest_frames() {
        let (mut output, mut count) = (Output::default(), 0);
        while output.has_room(4) {
            output.push(&[0; 4], Kind::Data, Instant::now());
            count += 1;
        }
        assert!(count < 16_384 && output.held() <= MAX_HELD, "{count}");
    }
}
