//! Control messages of Linux (`struct cmsghdr`), as plain bytes: `cmsg_len` (`size_t`, header included), `cmsg_level`
//! and `cmsg_type` (`int`), then the data; the next one starts at a multiple of `size_t`.

const LEN: usize = size_of::<usize>();
const HEADER: usize = LEN + 2 * size_of::<i32>();

/// Room for control messages, aligned as the kernel wants it.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub(super) struct Control<const N: usize> {
    len: usize,
    bytes: [u8; N],
}

impl<const N: usize> Control<N> {
    pub(super) const fn new() -> Self {
        Self { len: 0, bytes: [0; N] }
    }

    pub(super) fn clear(&mut self) {
        self.len = 0;
    }

    /// Appends a message. `N` is chosen so that all that are ever pushed fit; one that does not is left out whole.
    pub(super) fn push(&mut self, level: i32, kind: i32, data: &[u8]) {
        let end = self.len + HEADER + data.len();
        let Some(room) = self.bytes.get_mut(self.len..end) else {
            debug_assert!(false, "control buffer too small");
            return;
        };
        room[..LEN].copy_from_slice(&(HEADER + data.len()).to_ne_bytes());
        room[LEN..LEN + 4].copy_from_slice(&level.to_ne_bytes());
        room[LEN + 4..HEADER].copy_from_slice(&kind.to_ne_bytes());
        room[HEADER..].copy_from_slice(data);
        self.len = end.next_multiple_of(LEN).min(N);
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn as_mut_ptr(&mut self) -> *mut u8 {
        self.bytes.as_mut_ptr()
    }

    /// The messages that the kernel wrote into the first `len` bytes.
    pub(super) fn received(&self, len: usize) -> Messages<'_> {
        Messages(self.bytes.get(..len).unwrap_or(&self.bytes))
    }
}

/// Iterates over `(level, type, data)`.
pub(super) struct Messages<'a>(&'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = (i32, i32, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (len, rest) = self.0.split_first_chunk::<LEN>()?;
        let (level, rest) = rest.split_first_chunk::<4>()?;
        let (kind, rest) = rest.split_first_chunk::<4>()?;
        let len = usize::from_ne_bytes(*len);
        let data = rest.get(..len.checked_sub(HEADER)?)?;
        self.0 = self.0.get(len.checked_next_multiple_of(LEN)?..).unwrap_or_default();
        Some((i32::from_ne_bytes(*level), i32::from_ne_bytes(*kind), data))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_pushed_is_read() {
        let mut c = Control::<128>::new();
        c.push(1, 2, &[7; 3]);
        c.push(3, 4, &[]);
        c.push(5, 6, &[9; 20]);
        let got: Vec<_> = c.received(c.len()).collect();
        assert_eq!(got, [(1, 2, &[7u8; 3][..]), (3, 4, &[]), (5, 6, &[9; 20])]);
    }

    #[test]
    fn agrees_with_the_macros_of_libc() {
        // SAFETY: CMSG_LEN and CMSG_SPACE only compute.
        let (len, space) = unsafe { (libc::CMSG_LEN(2) as usize, libc::CMSG_SPACE(2) as usize) };
        let mut c = Control::<64>::new();
        c.push(0, 0, &[0; 2]);
        assert_eq!((usize::from_ne_bytes(c.bytes[..LEN].try_into().unwrap()), c.len()), (len, space));
    }

    #[test]
    fn any_bytes_end() {
        let mut state = 1u32;
        for _ in 0..20_000 {
            let mut c = Control::<64>::new();
            for b in &mut c.bytes {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                *b = if state >> 30 == 0 { 255 } else { (state >> 24) as u8 % 20 };
            }
            assert!(c.received(64).count() <= 64 / HEADER);
        }
    }
}
