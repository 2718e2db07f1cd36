//! A session: its keys, its counters, and which numbers have come (WireGuard, section 5.4.6).

use std::time::{Duration, Instant};

use ring::aead::{Aad, LessSafeKey};

use super::{
    DATA_HEADER, Error, kind,
    noise::{TAG, cipher, nonce},
};

/// Messages after which a session is renewed, and after which it is over (WireGuard, section 6.1).
const REKEY_AFTER_MESSAGES: u64 = 1 << 60;
const REJECT_AFTER_MESSAGES: u64 = u64::MAX - (1 << 13);

/// The age from which on a session is over (`REJECT_AFTER_TIME`).
pub(super) const REJECT_AFTER: Duration = Duration::from_secs(180);

/// The keys of both directions.
pub(super) struct Session {
    /// Which index the peer names it by, and by which we name it.
    pub(super) ours: u32,
    theirs: u32,
    pub(super) is_initiator: bool,
    pub(super) born: Instant,
    sender: LessSafeKey,
    receiver: LessSafeKey,
    /// The number of the next message.
    next: u64,
    received: Window,
    /// A handshake was initiated since it is about to be over, though nothing is sent.
    pub(super) is_renewed: bool,
}

impl Session {
    /// `keys`: for sending and for receiving. `None` only if the library refuses a key of 32 bytes, which it does not.
    pub(super) fn new(
        now: Instant,
        [ours, theirs]: [u32; 2],
        is_initiator: bool,
        keys: [&[u8; 32]; 2],
    ) -> Option<Box<Self>> {
        let [sender, receiver] = keys.map(cipher);
        Some(Box::new(Self {
            ours,
            theirs,
            is_initiator,
            born: now,
            sender: sender?,
            receiver: receiver?,
            next: 0,
            received: Window::default(),
            is_renewed: false,
        }))
    }

    /// Whether it may be used.
    #[inline]
    pub(super) fn is_valid(&self, now: Instant) -> bool {
        self.next < REJECT_AFTER_MESSAGES && now.saturating_duration_since(self.born) < REJECT_AFTER
    }

    /// Whether so many messages were sent that it is to be renewed.
    pub(super) fn has_sent_much(&self) -> bool {
        self.next > REKEY_AFTER_MESSAGES
    }

    /// Writes a data message with `plain`, and returns its length. `None`: `message` is too short, or the session is over.
    #[inline]
    pub(super) fn seal(&mut self, plain: &[u8], message: &mut [u8]) -> Option<usize> {
        let (header, rest) = message.split_first_chunk_mut::<DATA_HEADER>()?;
        let (sealed, rest) = rest.split_at_mut_checked(plain.len())?;
        let tag = rest.first_chunk_mut::<TAG>()?;
        if self.next >= REJECT_AFTER_MESSAGES {
            return None;
        }
        header[..4].copy_from_slice(&[kind::DATA, 0, 0, 0]);
        header[4..8].copy_from_slice(&self.theirs.to_le_bytes());
        header[8..].copy_from_slice(&self.next.to_le_bytes());
        sealed.copy_from_slice(plain);
        let computed = self.sender.seal_in_place_separate_tag(nonce(self.next), Aad::empty(), sealed).ok()?;
        tag.copy_from_slice(computed.as_ref());
        self.next += 1;
        Some(DATA_HEADER + plain.len() + TAG)
    }

    /// Decrypts what is behind the header of a data message with this counter into `plain`. Returns it, and by how many messages more, or
    /// fewer, are missing than before.
    ///
    /// # Errors
    /// [`Error::Replayed`] and [`Error::Invalid`]; also when `plain` is too short.
    #[inline]
    pub(super) fn open<'a>(
        &mut self,
        counter: u64,
        sealed: &[u8],
        plain: &'a mut [u8],
    ) -> Result<(&'a mut [u8], i64), Error> {
        if counter >= REJECT_AFTER_MESSAGES {
            return Err(Error::Invalid);
        }
        // Before it is decrypted, which costs more.
        if !self.received.is_new(counter) {
            return Err(Error::Replayed);
        }
        let plain = plain.get_mut(..sealed.len()).ok_or(Error::Invalid)?;
        plain.copy_from_slice(sealed);
        let plain = self.receiver.open_in_place(nonce(counter), Aad::empty(), plain).map_err(|_| Error::Invalid)?;
        Ok((plain, self.received.insert(counter)))
    }

    /// Sets the number of the next message.
    #[cfg(test)]
    pub(super) fn set_next(&mut self, next: u64) {
        self.next = next;
    }
}

/// Numbers behind the newest that may still come: as in the kernel's WireGuard and in wireguard-go.
pub(super) const WINDOW: u64 = 8192;

/// Which numbers have come: a bit for each of the last [`WINDOW`] (RFC 6479).
#[derive(Debug)]
pub(super) struct Window {
    /// The number behind the newest.
    next: u64,
    bits: [u64; (WINDOW / 64) as usize],
}

impl Default for Window {
    fn default() -> Self {
        Self { next: 0, bits: [0; (WINDOW / 64) as usize] }
    }
}

impl Window {
    /// Whether the number has not come, and is not too old to know.
    #[inline]
    pub(super) fn is_new(&self, counter: u64) -> bool {
        counter >= self.next || self.next - counter <= WINDOW && self.word(counter) & bit(counter) == 0
    }

    /// Remembers a number that [`is_new`](Self::is_new). Returns how many it has skipped; -1: one that was skipped before.
    #[inline]
    pub(super) fn insert(&mut self, counter: u64) -> i64 {
        let mut skipped = -1;
        if counter >= self.next {
            skipped = i64::try_from(counter - self.next).unwrap_or(i64::MAX);
            self.forget(counter);
            self.next = counter + 1;
        }
        self.bits[Self::at(counter)] |= bit(counter);
        skipped
    }

    /// Clears the bits of the numbers from `next` to this one, which those of a window before had.
    #[inline]
    fn forget(&mut self, counter: u64) {
        if counter - self.next >= WINDOW {
            self.bits.fill(0);
            return;
        }
        let mut number = self.next;
        while number <= counter {
            let end = counter.min(number | 63);
            let mask = (u64::MAX >> (63 - (end - number))) << (number % 64);
            self.bits[Self::at(number)] &= !mask;
            number = end + 1;
        }
    }

    fn word(&self, counter: u64) -> u64 {
        self.bits[Self::at(counter)]
    }

    fn at(counter: u64) -> usize {
        (counter / 64 % (WINDOW / 64)) as usize
    }
}

fn bit(counter: u64) -> u64 {
    1 << (counter % 64)
}

#[cfg(test)]
mod tests;
