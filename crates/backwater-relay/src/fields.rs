//! The fields of the IP header that go through the relay (RFC 8656, section 14).

use backwater_udp::{Ecn, Fragmentation, GroBatch, Transmit};

/// What a datagram leaves with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fields {
    pub(crate) ecn: Option<Ecn>,
    /// `None`: the system's default.
    hop_limit: Option<u8>,
    fragmentation: Fragmentation,
}

/// Where it is none, sockets are as the system makes them.
pub(crate) const IS_FRAGMENTATION_A_CHOICE: bool = !cfg!(any(windows, target_os = "openbsd", target_os = "netbsd"));

impl Fields {
    /// Those of an answer of the relay's own.
    pub(crate) const OWN: Self = Self { ecn: None, hop_limit: None, fragmentation: Fragmentation::Allowed };

    /// Returns the fields of what is relayed of `train`: the hop limit is one less, so that no datagram circles for ever between
    /// relays. `None` if it is used up.
    #[inline]
    pub(crate) fn relayed(train: &GroBatch<'_>) -> Option<Self> {
        let hop_limit = train.hop_limit.map(|hops| hops.saturating_sub(1));
        (hop_limit != Some(0)).then_some(Self { ecn: train.ecn, hop_limit, ..Self::OWN })
    }

    /// Returns the same fields, but nothing is fragmented.
    pub(crate) fn dont_fragment(self) -> Self {
        Self { fragmentation: Fragmentation::Never, ..self }
    }

    /// Gives them to a transmit.
    #[inline]
    pub(crate) fn of(self, t: Transmit<'_>) -> Transmit<'_> {
        t.ecn(self.ecn).hop_limit(self.hop_limit.unwrap_or(0)).fragmentation(self.fragmentation)
    }
}
