//! The fields of the IP header that go through the relay (RFC 8656, section 14).

use backwater_udp::{Ecn, Train, Transmit};

/// What a datagram leaves with. The default is the socket's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Fields {
    ecn: Option<Ecn>,
    hop_limit: Option<u8>,
}

impl Fields {
    /// Returns the fields of what is relayed of `train`: the hop limit is one less, so that no datagram circles for ever between
    /// relays. `None` if it is used up.
    #[inline]
    pub(crate) fn relayed(train: &Train<'_>) -> Option<Self> {
        let hop_limit = train.hop_limit.map(|hops| hops.saturating_sub(1));
        (hop_limit != Some(0)).then_some(Self { ecn: train.ecn, hop_limit })
    }

    /// Returns the fields of a transmit.
    pub(crate) fn of(t: &Transmit<'_>) -> Self {
        Self { ecn: t.ecn_field(), hop_limit: t.hop_limit_field() }
    }

    /// Returns `t` with these fields.
    #[inline]
    pub(crate) fn on(self, t: Transmit<'_>) -> Transmit<'_> {
        t.ecn(self.ecn).hop_limit(self.hop_limit)
    }
}
