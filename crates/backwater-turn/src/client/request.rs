//! Writes requests.

use std::time::Instant;

use backwater_stun::{
    AdditionalAddressFamily, AddressFamily, Attribute, AttributeErrorKind, AttributeSet, AttributeType, Class,
    DontFragment, EvenPort, LengthRule, Lifetime, MobilityTicket, RequestedAddressFamily, RequestedTransport,
    ReservationToken, TransactionId, WriteError, Writer, XorPeerAddress,
};

use super::{
    Client, Failure, Phase,
    transaction::{Purpose, Signature, Transaction},
};
use crate::{address::DRAFT_ADDITIONAL_ADDRESS_FAMILY, server::PortRequest};

/// Room for a request: user name, realm and nonce may have 509, 763 and 763 bytes, and a ticket [`MAX_TICKET`].
const MAX_REQUEST: usize = 3072;

/// Bytes of a ticket that is kept. A longer one is not used.
pub(super) const MAX_TICKET: usize = 512;

/// The comprehension-required attributes that a client understands in responses and indications. A message with another one is not
/// understood (RFC 8489 §6.3.3, §6.3.4).
pub(super) const UNDERSTOOD: AttributeSet = AttributeSet::of(&[
    AttributeType::MAPPED_ADDRESS,
    AttributeType::USERNAME,
    AttributeType::USERHASH,
    AttributeType::ERROR_CODE,
    AttributeType::UNKNOWN_ATTRIBUTES,
    AttributeType::CHANNEL_NUMBER,
    AttributeType::LIFETIME,
    AttributeType::XOR_PEER_ADDRESS,
    AttributeType::DATA,
    AttributeType::REALM,
    AttributeType::NONCE,
    AttributeType::XOR_RELAYED_ADDRESS,
    AttributeType::REQUESTED_ADDRESS_FAMILY,
    AttributeType::EVEN_PORT,
    AttributeType::REQUESTED_TRANSPORT,
    AttributeType::DONT_FRAGMENT,
    AttributeType::PASSWORD_ALGORITHM,
    AttributeType::XOR_MAPPED_ADDRESS,
    AttributeType::RESERVATION_TOKEN,
]);

/// The attribute under its number in the draft.
struct Draft(AdditionalAddressFamily);

impl Attribute<'_> for Draft {
    const TYPE: AttributeType = DRAFT_ADDITIONAL_ADDRESS_FAMILY;
    const LENGTH: LengthRule = AdditionalAddressFamily::LENGTH;

    fn decode(value: &[u8], id: &TransactionId) -> Result<Self, AttributeErrorKind> {
        AdditionalAddressFamily::decode(value, id).map(Self)
    }

    fn value_len(&self) -> usize {
        self.0.value_len()
    }

    fn encode(&self, id: &TransactionId, out: &mut [u8]) -> Result<(), AttributeErrorKind> {
        self.0.encode(id, out)
    }
}

impl Client {
    /// Begins a request.
    pub(super) fn begin(&mut self, now: Instant, purpose: Purpose) {
        let id = self.transaction_ids.next_id();
        let Ok((bytes, signature)) = self.write(purpose, id) else {
            return self.failed(Failure::TooLong);
        };
        if let Purpose::Channel(number) = purpose
            && let Some(channel) = self.peers.channel_mut(number)
        {
            channel.grant.asked = true;
        }
        if let Purpose::Permission(ip) = purpose
            && let Some(permission) = self.peers.permission_mut(ip)
        {
            permission.grant.asked = true;
        }
        let rto = self.rto.current(now);
        self.transactions.push(Transaction::new(id, purpose, bytes, signature, rto, self.config.protocol));
    }

    fn write(&self, purpose: Purpose, id: TransactionId) -> Result<(Vec<u8>, Option<Signature>), WriteError> {
        let mut buffer = [0; MAX_REQUEST];
        let mut writer = Writer::new(&mut buffer, Class::Request, purpose.method(), id)?;
        match purpose {
            Purpose::Allocate => self.write_allocate(&mut writer)?,
            Purpose::Refresh => self.write_lifetime(&mut writer)?,
            Purpose::Move => {
                self.write_lifetime(&mut writer)?;
                if let Phase::Allocated(allocation) = &self.phase
                    && let Some(ticket) = &allocation.ticket
                {
                    writer.attribute(&MobilityTicket(ticket))?;
                }
            }
            Purpose::Delete | Purpose::Abandon => {
                writer.attribute(&Lifetime(0))?;
                if let Phase::Closing(Some(ticket)) = &self.phase {
                    writer.attribute(&MobilityTicket(ticket))?;
                }
            }
            Purpose::Permission(ip) => writer.attribute(&XorPeerAddress((ip, 0).into())).map(drop)?,
            Purpose::Channel(number) => {
                writer.attribute(&number)?;
                if let Some(channel) = self.peers.channel(number) {
                    writer.attribute(&XorPeerAddress(channel.peer))?;
                }
            }
            Purpose::Binding => return Ok((writer.finish().to_vec(), None)),
        }
        self.authentication.finish(writer, &id)
    }

    fn write_allocate(&self, writer: &mut Writer<'_>) -> Result<(), WriteError> {
        writer.attribute(&RequestedTransport::UDP)?;
        self.write_lifetime(writer)?;
        let families = self.config.families;
        match self.config.port {
            PortRequest::Any => {}
            PortRequest::Even { reserve_next } => writer.attribute(&EvenPort { reserve_next }).map(drop)?,
            PortRequest::Reserved(token) => writer.attribute(&ReservationToken(token)).map(drop)?,
        }
        // A reserved port has its family already (RFC 8656 §7.1).
        if !matches!(self.config.port, PortRequest::Reserved(_)) {
            match (families.v4, families.v6) {
                (true, true) => {
                    let family = AdditionalAddressFamily(AddressFamily::Ipv6);
                    // Under both numbers: a server ignores the one that it does not know.
                    writer.attribute(&family)?.attribute(&Draft(family)).map(drop)?;
                }
                (false, true) => writer.attribute(&RequestedAddressFamily(AddressFamily::Ipv6)).map(drop)?,
                // IPv4 is the default without the attribute, which an old server does not know.
                (_, false) => {}
            }
        }
        if self.config.dont_fragment {
            writer.attribute(&DontFragment)?;
        }
        if self.config.mobility {
            writer.attribute(&MobilityTicket(&[]))?;
        }
        Ok(())
    }

    fn write_lifetime(&self, writer: &mut Writer<'_>) -> Result<(), WriteError> {
        if let Some(lifetime) = self.config.lifetime {
            // Zero would delete the allocation.
            let seconds = u32::try_from(lifetime.as_secs()).unwrap_or(u32::MAX).max(1);
            writer.attribute(&Lifetime(seconds))?;
        }
        Ok(())
    }
}
