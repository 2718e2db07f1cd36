//! The fields of the IP header that go through the relay (RFC 8656, section 14).

use backwater_udp::{Ecn, Fragmentation, Train, UdpSocket};
use tracing::debug;

/// What a datagram leaves with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fields {
    pub(crate) ecn: Option<Ecn>,
    /// `None`: the system's default.
    hop_limit: Option<u8>,
    fragmentation: Fragmentation,
}

/// Where it is none, [`UdpSocket::set_fragmentation`] is `Unsupported`, and sockets are as the system makes them.
pub(crate) const IS_FRAGMENTATION_A_CHOICE: bool = !cfg!(any(windows, target_os = "openbsd", target_os = "netbsd"));

impl Fields {
    /// Those of an answer of the relay's own.
    pub(crate) const OWN: Self = Self { ecn: None, hop_limit: None, fragmentation: Fragmentation::Allowed };

    /// Returns the fields of what is relayed of `train`: the hop limit is one less, so that no datagram circles for ever between
    /// relays. `None` if it is used up.
    #[inline]
    pub(crate) fn relayed(train: &Train<'_>) -> Option<Self> {
        let hop_limit = train.hop_limit.map(|hops| hops.saturating_sub(1));
        (hop_limit != Some(0)).then_some(Self { ecn: train.ecn, hop_limit, ..Self::OWN })
    }

    /// Returns the same fields, but nothing is fragmented.
    pub(crate) fn dont_fragment(self) -> Self {
        Self { fragmentation: Fragmentation::Never, ..self }
    }

    /// Has the socket send what is next with these fields, but for ECN, which a transmit has itself. Costs a system call only where
    /// one changes.
    #[inline]
    pub(crate) fn prepare(self, socket: &UdpSocket) {
        if IS_FRAGMENTATION_A_CHOICE
            && socket.fragmentation() != self.fragmentation
            && let Err(error) = socket.set_fragmentation(self.fragmentation)
        {
            debug!(%error, "fragmentation stays as it is");
        }
        if let Err(error) = socket.set_hop_limit(self.hop_limit) {
            debug!(%error, "the hop limit stays as it is");
        }
    }
}
