//! The frames of a connection, in whatever pieces its bytes arrive.

use backwater_stun::{Split, split_frame};

/// Bytes of the longest frame of a client that has no allocation. Its requests have a few hundred.
pub(crate) const MAX_BEFORE_ALLOCATION: usize = 4096;

/// Why no later frame can be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FrameError {
    /// Neither STUN nor ChannelData begins here.
    NotTurn,
    /// A frame is longer than [`MAX_BEFORE_ALLOCATION`], of a client without an allocation.
    TooLong,
}

/// The frame that is not complete yet.
#[derive(Default)]
pub(crate) struct Frames {
    partial: Vec<u8>,
}

impl Frames {
    /// Takes what the incomplete frame lacks off `bytes`, and returns it once it is complete. `may_be_long` says whether the client
    /// may send more than [`MAX_BEFORE_ALLOCATION`] bytes in a frame.
    pub(crate) fn complete(
        &mut self,
        bytes: &mut &[u8],
        may_be_long: impl Fn() -> bool,
    ) -> Result<Option<Vec<u8>>, FrameError> {
        while !self.partial.is_empty() {
            match split_frame(&self.partial) {
                Ok(Split::Frame { .. }) => return Ok(Some(std::mem::take(&mut self.partial))),
                Ok(Split::Incomplete { needed }) => {
                    check(needed, &may_be_long)?;
                    let lacking = needed.saturating_sub(self.partial.len());
                    let (head, rest) = bytes.split_at(lacking.min(bytes.len()));
                    self.partial.extend_from_slice(head);
                    *bytes = rest;
                    if head.len() < lacking {
                        // A byte that shows that no frame begins here does so at once.
                        return split_frame(&self.partial).map(|_| None).map_err(|_| FrameError::NotTurn);
                    }
                }
                Err(_) => return Err(FrameError::NotTurn),
            }
        }
        Ok(None)
    }

    /// Keeps the beginning of a frame: what is left when [`next`] finds none.
    pub(crate) fn keep(&mut self, rest: &[u8]) {
        self.partial.extend_from_slice(rest);
    }
}

/// Returns the length of the frame that `bytes` begin with, padding included; `None` if it is not complete.
pub(crate) fn next(bytes: &[u8], may_be_long: impl Fn() -> bool) -> Result<Option<usize>, FrameError> {
    match split_frame(bytes) {
        Ok(Split::Frame { len, .. }) => check(len, may_be_long).map(|()| Some(len)),
        Ok(Split::Incomplete { needed }) => check(needed, may_be_long).map(|()| None),
        Err(_) => Err(FrameError::NotTurn),
    }
}

fn check(len: usize, may_be_long: impl Fn() -> bool) -> Result<(), FrameError> {
    if len > MAX_BEFORE_ALLOCATION && !may_be_long() { Err(FrameError::TooLong) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Found by the fuzz target `ingress`: the cookie was looked at when the frame was complete.
    #[test]
    fn wrong_byte_of_a_header_is_an_error_as_soon_as_it_arrives() {
        let mut frames = Frames::default();
        frames.keep(&[0, 1, 0, 100]);
        assert_eq!(frames.complete(&mut &[0x21][..], || false), Ok(None));
        assert_eq!(frames.complete(&mut &[0x13][..], || false), Err(FrameError::NotTurn));
        let mut frames = Frames::default();
        frames.keep(&[0x40, 0]);
        assert_eq!(frames.complete(&mut &[0x10][..], || false), Ok(None));
        assert_eq!(frames.complete(&mut &[0x01][..], || false), Err(FrameError::TooLong));
    }
}
