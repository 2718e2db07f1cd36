//! What the codecs are given: the same bytes to all, and the values that are to be written.

use std::net::SocketAddr;

use backwater_stun::*;

/// Sixteen bytes, because one of the peers takes no other key.
pub(crate) const PASSWORD: &str = "0123456789abcdef";
pub(crate) const USERNAME: &str = "evtj:h6vY";
pub(crate) const PRIORITY: u32 = 0x6E00_01FF;
pub(crate) const TIE_BREAKER: u64 = 0x932F_F9B1_5126_3B36;
pub(crate) const ID: TransactionId =
    TransactionId([0xB7, 0xE7, 0xA7, 0x01, 0xBC, 0x34, 0xD6, 0x86, 0xFA, 0x87, 0xDF, 0xAE]);

pub(crate) struct Input {
    /// SOFTWARE, XOR-MAPPED-ADDRESS, MESSAGE-INTEGRITY, FINGERPRINT.
    pub(crate) success: Vec<u8>,
    pub(crate) channel_data: Vec<u8>,
    pub(crate) send: Vec<u8>,
    pub(crate) address: SocketAddr,
    pub(crate) payload: Vec<u8>,
}

impl Input {
    pub(crate) fn new() -> Self {
        let address = SocketAddr::from(([192, 0, 2, 1], 32853));
        let payload: Vec<u8> = (0..1200_u32).map(|i| (i * 7) as u8).collect();
        let mut buffer = [0; 1400];

        let mut writer = Writer::new(&mut buffer, Class::SuccessResponse, Method::BINDING, ID).unwrap();
        writer.attribute(&Software("test vector")).unwrap().attribute(&XorMappedAddress(address)).unwrap();
        let key = HmacKey::new(PASSWORD.as_bytes());
        let success = writer.integrity_sha1(&key).unwrap().fingerprint().unwrap().finish().to_vec();

        let prefix = DataPrefix::send(ID, address, payload.len()).unwrap();
        let send = [prefix.as_bytes(), &payload, prefix.padding()].concat();
        let channel_data = [&ChannelData::header(ChannelNumber::MIN, 1200)[..], &payload].concat();
        Self { success, channel_data, send, address, payload }
    }

    /// What a message says, whatever its attributes' order.
    pub(crate) fn explain(&self, bytes: &[u8]) -> String {
        let message = Message::parse(bytes).unwrap();
        let id = message.transaction_id();
        let verified = message.verify(&HmacKey::new(PASSWORD.as_bytes())).map(|verified| verified.integrity());
        let ordinary = message.attributes().filter(|raw| !matches!(raw.attribute_type.0, 0x8 | 0x1C | 0x8028));
        let mut attributes: Vec<_> = ordinary.map(|raw| format!("{:?}", AnyAttribute::decode(raw, &id))).collect();
        attributes.sort();
        let (class, method) = (message.class(), message.method());
        format!("{method} {class} {id} {verified:?} {:?} {attributes:?}", message.check_fingerprint())
    }
}
