//! Forwarding between a client and its peers.

use std::time::Instant;

use backwater_stun::{
    AttributeType, CHANNEL_HEADER_LEN, ChannelData, Class, DataPrefix, FingerprintCheck, Icmp, Message, Method, Writer,
    XorPeerAddress,
};

use super::{Action, AllocationId, DropReason, Framing, Server, UNDERSTOOD, allocation::Allocation};
use crate::{FiveTuple, PeerAddr};

impl Server {
    /// Handles a peer's datagram, or a GRO batch of `bytes` together, and returns the client and the framing.
    ///
    /// # Errors
    /// Why the caller must drop it.
    #[inline]
    pub fn handle_peer(
        &self,
        now: Instant,
        via: AllocationId,
        peer: PeerAddr,
        bytes: usize,
    ) -> Result<(FiveTuple, Framing), DropReason> {
        let allocation = self.allocation(via).ok_or(DropReason::NoAllocation)?;
        allocation.check_peer(peer, now, &self.config.peers)?;
        self.meter(allocation, now, bytes)?;
        allocation.traffic.to_client(bytes);
        let framing = allocation.peer_channel(peer, now).map_or(Framing::Indication, Framing::Channel);
        Ok((allocation.five_tuple, framing))
    }

    /// Returns the header and the padding of a Data indication around a payload.
    ///
    /// # Errors
    /// [`DropReason::TooLong`].
    pub fn data_indication(&mut self, peer: PeerAddr, payload_len: usize) -> Result<DataPrefix, DropReason> {
        DataPrefix::data(self.transaction_ids.next_id(), peer.0, payload_len).map_err(|_| DropReason::TooLong)
    }

    /// Writes the Data indication about an ICMP error that a datagram of the allocation caused (RFC 8656 §11.5). Returns the client
    /// and the length in `reply`, which has [`MAX_REPLY`](super::MAX_REPLY) bytes.
    ///
    /// # Errors
    /// [`DropReason::Icmp`] for a type that clients are not told about; else why the address is not a peer's.
    pub fn icmp_indication(
        &mut self,
        now: Instant,
        via: AllocationId,
        peer: PeerAddr,
        icmp: Icmp,
        reply: &mut [u8],
    ) -> Result<(FiveTuple, usize), DropReason> {
        let allocation = self.allocation(via).ok_or(DropReason::NoAllocation)?;
        let client = allocation.five_tuple;
        // Destination unreachable and time exceeded; for IPv6, packet too big as well.
        let told: &[u8] = if peer.0.is_ipv4() { &[3, 11] } else { &[1, 2, 3] };
        if !told.contains(&icmp.icmp_type) {
            return Err(DropReason::Icmp);
        }
        allocation.check_peer(peer, now, &self.config.peers)?;
        let written =
            Writer::new(reply, Class::Indication, Method::DATA, self.transaction_ids.next_id()).and_then(|mut w| {
                w.attribute(&XorPeerAddress(peer.0))?.attribute(&icmp)?;
                Ok(w.finish().len())
            });
        written.map(|len| (client, len)).map_err(|_| DropReason::TooLong)
    }

    /// Returns how many of the datagrams after `first` in its GRO batch are forwarded like `first`: those in a row with its ChannelData
    /// header and length. Counts them as forwarded. `first` is the one that [`handle_client`](Self::handle_client) has forwarded. Returns
    /// zero where bytes per second are limited, since each datagram may then exceed the limit.
    #[inline]
    pub fn passes_too<'d>(&self, via: AllocationId, first: &[u8], others: impl Iterator<Item = &'d [u8]>) -> usize {
        let header = first.first_chunk::<CHANNEL_HEADER_LEN>();
        let Some([0x40..=0x7F, ..]) = header else { return 0 };
        let Some(allocation) = self.allocation(via).filter(|_| !self.metered) else { return 0 };
        let is_alike = |other: &&[u8]| other.len() == first.len() && other.first_chunk() == header;
        let count = others.take_while(is_alike).count();
        let [.., high, low] = header.copied().unwrap_or_default();
        allocation.traffic.to_peers(count * usize::from(u16::from_be_bytes([high, low])));
        count
    }

    // These two functions return the action itself instead of a result: a copy of a result stalls on the stores before it.

    #[inline]
    pub(super) fn channel_data(&mut self, now: Instant, from: &FiveTuple, datagram: &[u8]) -> Action {
        let reason = 'drop: {
            let Ok(message) = ChannelData::parse(datagram) else { break 'drop DropReason::ChannelData };
            let via = match &self.recent {
                Some((tuple, id)) if tuple == from => *id,
                _ => {
                    let Some(&id) = self.clients.get(from) else { break 'drop DropReason::NoAllocation };
                    self.recent = Some((*from, id));
                    id
                }
            };
            let Some(allocation) = self.allocation(via) else { break 'drop DropReason::NoAllocation };
            let Some(&to) = allocation.channel_peer(message.channel(), now) else { break 'drop DropReason::NoChannel };
            if let Err(reason) = self.meter(allocation, now, message.data().len()) {
                break 'drop reason;
            }
            allocation.traffic.to_peers(message.data().len());
            let start = datagram.len().min(CHANNEL_HEADER_LEN);
            return Action::Forward { via, to, range: start..start + message.data().len(), dont_fragment: false };
        };
        Action::Drop(reason)
    }

    pub(super) fn send_indication(&self, now: Instant, from: &FiveTuple, message: &Message<'_>) -> Action {
        let reason = 'drop: {
            let Some(&via) = self.clients.get(from) else { break 'drop DropReason::NoAllocation };
            let Some(allocation) = self.allocation(via) else { break 'drop DropReason::NoAllocation };
            if message.check_fingerprint() == FingerprintCheck::Invalid {
                break 'drop DropReason::Fingerprint;
            }
            if message.unknown_required(UNDERSTOOD).next().is_some() {
                break 'drop DropReason::Indication;
            }
            let Ok(Some(XorPeerAddress(peer))) = message.get() else { break 'drop DropReason::Indication };
            let Some(range) = message.value_range(AttributeType::DATA) else { break 'drop DropReason::Indication };
            if peer.port() == 0 {
                break 'drop DropReason::Indication;
            }
            let to = PeerAddr(peer);
            if let Err(reason) = allocation.check_peer(to, now, &self.config.peers) {
                break 'drop reason;
            }
            if let Err(reason) = self.meter(allocation, now, range.len()) {
                break 'drop reason;
            }
            allocation.traffic.to_peers(range.len());
            let dont_fragment = message.contains(AttributeType::DONT_FRAGMENT);
            return Action::Forward { via, to, range, dont_fragment };
        };
        Action::Drop(reason)
    }

    #[inline]
    fn meter(&self, allocation: &Allocation, now: Instant, bytes: usize) -> Result<(), DropReason> {
        if self.metered { allocation.spend(now, bytes) } else { Ok(()) }
    }
}
