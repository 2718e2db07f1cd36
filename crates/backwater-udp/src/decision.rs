//! What a failed send means.

use crate::stats::DropReason;

/// The errors that a send tells apart, whatever their numbers on this system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Errno {
    /// `EWOULDBLOCK`, `EAGAIN`
    WouldBlock,
    /// `ENOBUFS`, `ENOMEM`
    NoBuffers,
    /// `EINTR`
    Interrupted,
    /// `EMSGSIZE`
    MessageSize,
    /// `EINVAL`, `EAFNOSUPPORT`, `EDESTADDRREQ`
    Invalid,
    /// `EIO`: a driver that cannot segment after all (`udp_send_skb` without checksum offload)
    Io,
    /// `EPERM`, `EACCES`
    NotPermitted,
    /// `ENETUNREACH`, `EHOSTUNREACH`, `ENETDOWN`, `EHOSTDOWN`, `EADDRNOTAVAIL`
    Unreachable,
    /// `ECONNREFUSED`, `ECONNRESET`: an answer to an earlier datagram
    Refused,
    /// Anything else
    Other,
}

/// What to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Call again at once.
    Again,
    /// There is no room now.
    Wait,
    /// These datagrams cannot be sent; those after them may.
    Drop(DropReason),
    /// The train cannot be sent as one: its datagrams go one by one.
    Split,
    /// No train can: segmentation is off for the socket.
    SplitAll,
    /// The socket has failed.
    Fatal,
}

/// Decides for a call that was refused with `errno` and offered a train of datagrams or a single one.
pub(crate) fn decide(errno: Errno, train: bool) -> Verdict {
    match errno {
        Errno::WouldBlock => Verdict::Wait,
        Errno::NoBuffers => Verdict::Drop(DropReason::NoBuffers),
        Errno::Interrupted | Errno::Refused => Verdict::Again,
        Errno::Io if train => Verdict::SplitAll,
        Errno::MessageSize | Errno::Invalid if train => Verdict::Split,
        Errno::MessageSize => Verdict::Drop(DropReason::TooLarge),
        Errno::Invalid => Verdict::Drop(DropReason::Invalid),
        Errno::NotPermitted => Verdict::Drop(DropReason::NotPermitted),
        Errno::Unreachable => Verdict::Drop(DropReason::Unreachable),
        Errno::Io | Errno::Other => Verdict::Fatal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table() {
        use DropReason as D;
        use Verdict as V;
        for (errno, single, train) in [
            (Errno::WouldBlock, V::Wait, V::Wait),
            (Errno::NoBuffers, V::Drop(D::NoBuffers), V::Drop(D::NoBuffers)),
            (Errno::Interrupted, V::Again, V::Again),
            (Errno::Refused, V::Again, V::Again),
            (Errno::MessageSize, V::Drop(D::TooLarge), V::Split),
            (Errno::Invalid, V::Drop(D::Invalid), V::Split),
            (Errno::Io, V::Fatal, V::SplitAll),
            (Errno::NotPermitted, V::Drop(D::NotPermitted), V::Drop(D::NotPermitted)),
            (Errno::Unreachable, V::Drop(D::Unreachable), V::Drop(D::Unreachable)),
            (Errno::Other, V::Fatal, V::Fatal),
        ] {
            assert_eq!((decide(errno, false), decide(errno, true)), (single, train), "{errno:?}");
        }
    }
}
