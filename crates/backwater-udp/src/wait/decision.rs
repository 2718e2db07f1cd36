//! What a failed send means: one table. `docs/backpressure.md` says where its rows come from.

use crate::stats::DropReason;

/// The kinds of system that differ in what they promise after `ENOBUFS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(dead_code, reason = "a build has one of them; the table is tested for all")]
pub(crate) enum Os {
    /// Linux and Android: the destructor of the dropped buffer signals room at once, whether there is some or not.
    Linux,
    /// macOS, iOS and their kin: a *connected* socket whose flow is under control is not writable until there is room, and
    /// then says so. All else says nothing.
    Apple,
    /// The BSDs and Windows: nothing follows.
    Other,
}

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
    /// `EINVAL`, `EAFNOSUPPORT`, `EDESTADDRREQ`, `EISCONN`; no ICMP message causes them
    Invalid,
    /// `EIO`: a route whose device cannot segment (Linux: `udp_send_skb`, without checksum offload or with IPsec)
    Io,
    /// `EPERM`: a local firewall's; no ICMP message causes it
    NotPermitted,
    /// `EACCES`: a route's, or an ICMPv6 message about an earlier datagram
    Prohibited,
    /// `ENETUNREACH`, `EHOSTUNREACH`, `ENETDOWN`, `EHOSTDOWN`, `EADDRNOTAVAIL`
    Unreachable,
    /// `ECONNREFUSED`, `ECONNRESET`, `ENETRESET`, `EPROTO`, `ENOPROTOOPT`, `EOPNOTSUPP`, `ENONET`: an ICMP message about an
    /// earlier datagram; no send causes one itself
    Refused,
    /// `EBADF`, `ENOTSOCK`, `EPIPE`, and what is not the system's but the reactor's: the socket is of no more use
    Socket,
    /// Anything else
    Other,
}

/// A call that failed, and what is known about it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Refusal {
    pub(crate) os: Os,
    pub(crate) errno: Errno,
    pub(crate) connected: bool,
    /// What `poll` says right after.
    pub(crate) writable: bool,
    /// Whether the error queue had entries about earlier datagrams.
    pub(crate) earlier_errors: bool,
    /// Whether the error may be about an earlier datagram all the same: nothing tells.
    pub(crate) maybe_earlier: bool,
    /// More than one datagram was offered.
    pub(crate) train: bool,
    /// The same datagrams have been refused for want of room before.
    pub(crate) again: bool,
}

/// What to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Call again at once.
    Again,
    /// There is no room; the system will say when there is.
    WhenReady,
    /// There is no room, and nobody will say when there is.
    OnTimer,
    /// As before; and offer less at a time, since a train that is larger than the queue never fits.
    OnTimerSmaller,
    /// These datagrams cannot be sent; those after them may.
    Drop(DropReason),
    /// The batch cannot be sent as one: its datagrams go one by one.
    Split,
    /// The socket has failed.
    Fatal,
}

pub(crate) fn decide(r: &Refusal) -> Verdict {
    match r.errno {
        Errno::Interrupted => Verdict::Again,
        // XNU says so too while another thread sends, or of what is larger than the send buffer: no event follows.
        Errno::WouldBlock if r.os == Os::Apple && r.writable => Verdict::OnTimer,
        Errno::WouldBlock => Verdict::WhenReady,
        Errno::NoBuffers if r.os == Os::Apple && r.connected && !r.writable => Verdict::WhenReady,
        Errno::NoBuffers if r.train && r.again => Verdict::OnTimerSmaller,
        Errno::NoBuffers => Verdict::OnTimer,
        Errno::Socket => Verdict::Fatal,
        Errno::Invalid if r.train => Verdict::Split,
        Errno::Invalid => Verdict::Drop(DropReason::Invalid),
        Errno::NotPermitted => Verdict::Drop(DropReason::NotPermitted),
        // An ICMP message about an earlier datagram fails whichever call comes next, with whatever number.
        Errno::Refused => Verdict::Again,
        _ if r.earlier_errors => Verdict::Again,
        Errno::Io if r.train => Verdict::Split,
        _ if r.maybe_earlier => Verdict::Again,
        Errno::MessageSize if r.train => Verdict::Split,
        Errno::MessageSize => Verdict::Drop(DropReason::TooLarge),
        Errno::Prohibited => Verdict::Drop(DropReason::NotPermitted),
        Errno::Unreachable => Verdict::Drop(DropReason::Unreachable),
        Errno::Io | Errno::Other => Verdict::Drop(DropReason::Other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: Refusal = Refusal {
        os: Os::Linux,
        errno: Errno::Other,
        connected: false,
        writable: true,
        earlier_errors: false,
        maybe_earlier: false,
        train: false,
        again: false,
    };

    #[test]
    fn errors_other_than_a_want_of_room() {
        use DropReason as D;
        use Verdict as V;
        for os in [Os::Linux, Os::Apple, Os::Other] {
            for (errno, single, train, earlier) in [
                (Errno::Interrupted, V::Again, V::Again, V::Again),
                (Errno::Refused, V::Again, V::Again, V::Again),
                (Errno::MessageSize, V::Drop(D::TooLarge), V::Split, V::Again),
                (Errno::Prohibited, V::Drop(D::NotPermitted), V::Drop(D::NotPermitted), V::Again),
                (Errno::Unreachable, V::Drop(D::Unreachable), V::Drop(D::Unreachable), V::Again),
                (Errno::Io, V::Drop(D::Other), V::Split, V::Again),
                (Errno::Other, V::Drop(D::Other), V::Drop(D::Other), V::Again),
                (Errno::Socket, V::Fatal, V::Fatal, V::Fatal),
            ] {
                let r = Refusal { os, errno, ..BASE };
                assert_eq!(decide(&r), single, "{r:?}");
                assert_eq!(decide(&Refusal { train: true, ..r }), train, "{r:?}");
                let known = Refusal { earlier_errors: true, ..r };
                assert_eq!(decide(&known), earlier, "{r:?}");
                assert_eq!(decide(&Refusal { train: true, ..known }), earlier, "{r:?}");
                assert_eq!(decide(&Refusal { maybe_earlier: true, ..r }), earlier, "{r:?}");
                // No ICMP message makes a batch fail with `EIO`.
                let maybe = Refusal { maybe_earlier: true, train: true, ..r };
                assert_eq!(decide(&maybe), if errno == Errno::Io { train } else { earlier }, "{r:?}");
            }
        }
    }

    #[test]
    fn a_full_send_buffer_is_advised_but_on_apple_only_if_poll_agrees() {
        for os in [Os::Linux, Os::Apple, Os::Other] {
            for connected in [false, true] {
                for writable in [false, true] {
                    let r = Refusal { os, errno: Errno::WouldBlock, connected, writable, ..BASE };
                    let silent = os == Os::Apple && writable;
                    assert_eq!(decide(&r), if silent { Verdict::OnTimer } else { Verdict::WhenReady }, "{r:?}");
                }
            }
        }
    }

    /// A firewall that rejects answers with an ICMP message each time, within the call.
    #[test]
    fn what_no_icmp_message_causes_is_about_the_present_datagram() {
        for earlier_errors in [false, true] {
            for train in [false, true] {
                let r = Refusal { earlier_errors, maybe_earlier: true, train, ..BASE };
                let decided = |errno| decide(&Refusal { errno, ..r });
                assert_eq!(decided(Errno::NotPermitted), Verdict::Drop(DropReason::NotPermitted));
                let invalid = if train { Verdict::Split } else { Verdict::Drop(DropReason::Invalid) };
                assert_eq!(decided(Errno::Invalid), invalid);
            }
        }
    }

    #[test]
    fn no_buffers_is_advised_on_a_connected_apple_socket_that_is_not_writable_and_nowhere_else() {
        for os in [Os::Linux, Os::Apple, Os::Other] {
            for connected in [false, true] {
                for writable in [false, true] {
                    for train in [false, true] {
                        for again in [false, true] {
                            let errno = Errno::NoBuffers;
                            let r = Refusal { os, errno, connected, writable, train, again, ..BASE };
                            let advised = os == Os::Apple && connected && !writable;
                            let want = match (advised, train && again) {
                                (true, _) => Verdict::WhenReady,
                                (false, true) => Verdict::OnTimerSmaller,
                                (false, false) => Verdict::OnTimer,
                            };
                            assert_eq!(decide(&r), want, "{r:?}");
                        }
                    }
                }
            }
        }
    }
}
