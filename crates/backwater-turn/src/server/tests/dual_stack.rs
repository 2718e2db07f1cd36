//! Two relayed addresses in one allocation (RFC 8656, sections 7.2 and 8.2).

use super::*;

const RELAYED6: &str = "[2001:db8::5]:50001";
const PEER6: &str = "[2001:db8::7]:7000";

fn dual(w: &mut Writer<'_>) {
    udp(w);
    put(w, &AdditionalAddressFamily(AddressFamily::Ipv6));
}

impl Bench {
    fn ask(&mut self, fill: Fill<'_>) -> (Action, Vec<u8>) {
        self.request(CLIENT, Method::ALLOCATE, fill)
    }

    /// An allocation with both families, and its success.
    fn allocate_both(&mut self) -> (AllocationId, Vec<u8>) {
        let (action, _) = self.ask(&dual);
        let Action::Bind(bind) = action else { panic!("{action:?}") };
        assert_eq!((bind.families, bind.port), (BOTH, PortRequest::Any));
        let mut reply = [0; MAX_REPLY];
        let addrs = relayed(&format!("{RELAYED} {RELAYED6}"), None);
        let Action::Reply(len) = self.server.bound(self.now.instant, bind.id, addrs, &mut reply) else { panic!() };
        (bind.id, reply[..len].to_vec())
    }

    fn refresh(&mut self, family: Option<AddressFamily>, seconds: u32) -> (Action, Vec<u8>) {
        self.request(CLIENT, Method::REFRESH, &|w| {
            put(w, &Lifetime(seconds));
            if let Some(family) = family {
                put(w, &RequestedAddressFamily(family));
            }
        })
    }
}

fn relayed_addrs(reply: &[u8]) -> Vec<SocketAddr> {
    Message::parse(reply).unwrap().all::<XorRelayedAddress>().map(|a| a.unwrap().0).collect()
}

#[test]
fn dual_allocation_has_two_addresses_and_each_peer_uses_its_family() {
    let mut b = Bench::new();
    let (id, reply) = b.allocate_both();
    assert_eq!(code(&reply, true), 0);
    assert_eq!(relayed_addrs(&reply), [addr(RELAYED), addr(RELAYED6)]);
    assert!(!Message::parse(&reply).unwrap().contains(AttributeType::ADDRESS_ERROR_CODE));
    for (number, peer) in [(0x4000, PEER), (0x4001, PEER6)] {
        assert!(matches!(b.channel(CLIENT, number, peer).0, Action::Reply(_)));
        let data = [&ChannelData::header(ChannelNumber::new(number).unwrap(), 1)[..], b"x"].concat();
        let to = PeerAddr(addr(peer));
        assert_eq!(b.bytes(CLIENT, &data).0, Action::Forward { via: id, to, range: 4..5, dont_fragment: false });
        assert!(b.server.handle_peer(b.now.instant, id, to, 1).is_ok());
    }
    let both = b.request(CLIENT, Method::CREATE_PERMISSION, &|w| {
        w.attribute(&XorPeerAddress(addr("203.0.113.9:1"))).unwrap();
        w.attribute(&XorPeerAddress(addr("[2001:db8::9]:1"))).unwrap();
    });
    assert_eq!(code(&both.1, true), 0);
}

/// ADDITIONAL-ADDRESS-FAMILY by the number that coturn's client sends.
struct Draft;

impl Attribute<'_> for Draft {
    const TYPE: AttributeType = AttributeType(0x8032);
    const LENGTH: LengthRule = LengthRule { min: 4, max: 4, max_written: 4 };

    fn decode(_: &[u8], _: &TransactionId) -> Result<Self, AttributeErrorKind> {
        Ok(Self)
    }

    fn value_len(&self) -> usize {
        4
    }

    fn encode(&self, _: &TransactionId, out: &mut [u8]) -> Result<(), AttributeErrorKind> {
        out.copy_from_slice(&[2, 0, 0, 0]);
        Ok(())
    }
}

#[test]
fn draft_number_of_additional_address_family_is_accepted() {
    let mut b = Bench::new();
    let (action, _) = b.ask(&|w| {
        udp(w);
        put(w, &Draft);
    });
    assert!(matches!(action, Action::Bind(Bind { families: BOTH, .. })));
}

#[test]
fn attributes_that_exclude_each_other_are_400() {
    let mut b = Bench::new();
    let v6 = AddressFamily::Ipv6;
    let cases: [Fill<'_>; 6] = [
        &|w| put(w, &RequestedAddressFamily(AddressFamily::Ipv4)),
        &|w| put(w, &RequestedAddressFamily(AddressFamily::Ipv6)),
        &|w| put(w, &EvenPort { reserve_next: true }),
        &|w| put(w, &ReservationToken([1; 8])),
        &|w| {
            w.attribute(&RequestedAddressFamily(AddressFamily::Ipv6)).unwrap();
            w.attribute(&EvenPort { reserve_next: false }).unwrap();
        },
        &|w| {
            w.attribute(&ReservationToken([1; 8])).unwrap().attribute(&EvenPort { reserve_next: false }).unwrap();
        },
    ];
    for fill in cases {
        let (_, reply) = b.ask(&|w| {
            dual(w);
            fill(w);
        });
        assert_eq!(code(&reply, true), 400);
    }
    let only: Fill<'_> = &|w| {
        udp(w);
        put(w, &AdditionalAddressFamily(AddressFamily::Ipv4));
    };
    assert_eq!(code(&b.ask(only).1, true), 400, "what is additional is IPv6");
    let token: Fill<'_> = &|w| {
        udp(w);
        w.attribute(&ReservationToken([1; 8])).unwrap().attribute(&RequestedAddressFamily(v6)).unwrap();
    };
    assert_eq!(code(&b.ask(token).1, true), 400);
    assert_eq!(b.server.allocations(), 0);
    let even: Fill<'_> = &|w| {
        dual(w);
        put(w, &EvenPort { reserve_next: false });
    };
    let (action, _) = b.ask(even);
    assert!(matches!(action, Action::Bind(Bind { families: BOTH, port: PortRequest::Even { .. }, .. })));
}

#[test]
fn missing_family_of_a_dual_allocation_has_an_address_error_code() {
    for (unsupported, left, other) in [(V6, V4, RELAYED), (V4, V6, RELAYED6)] {
        let family = unsupported.iter().next().unwrap();
        for supported in [false, true] {
            let mut b = Bench::new();
            *b.server.config.families.get_mut(family) = supported;
            let (action, _) = b.ask(&dual);
            let Action::Bind(bind) = action else { panic!("{action:?}") };
            assert_eq!(bind.families, if supported { BOTH } else { left });
            let mut reply = [0; MAX_REPLY];
            let Action::Reply(len) = b.server.bound(b.now.instant, bind.id, relayed(other, None), &mut reply) else {
                panic!()
            };
            let message = Message::parse(&reply[..len]).unwrap();
            assert_eq!(relayed_addrs(&reply[..len]), [addr(other)]);
            let refused = message.get::<AddressErrorCode<'_>>().unwrap().unwrap();
            let want = if supported { Code::INSUFFICIENT_CAPACITY } else { Code::ADDRESS_FAMILY_NOT_SUPPORTED };
            assert_eq!((refused.family, refused.code), (family, want));
            let peer = if family == AddressFamily::Ipv4 { PEER } else { PEER6 };
            assert_eq!(code(&b.channel(CLIENT, 0x4000, peer).1, true), 443);
            assert_eq!(code(&b.refresh(Some(family), 600).1, true), 443);
        }
    }
    let mut b = Bench::new();
    b.server.config.families = Families::default();
    assert_eq!(code(&b.ask(&dual).1, true), 440);
    b.server.config.families = BOTH;
    let Action::Bind(bind) = b.ask(&dual).0 else { panic!() };
    let mut reply = [0; MAX_REPLY];
    let Action::Reply(len) = b.server.bound(b.now.instant, bind.id, Bound::default(), &mut reply) else { panic!() };
    assert_eq!((code(&reply[..len], true), b.server.allocations()), (508, 0));
}

#[test]
fn one_family_is_refreshed_or_deleted_alone() {
    let mut b = Bench::new();
    let (id, _) = b.allocate_both();
    b.channel(CLIENT, 0x4000, PEER);
    b.channel(CLIENT, 0x4001, PEER6);
    // A refresh of one leaves the other to expire, with its permissions and channels.
    b.pass(100);
    assert_eq!(code(&b.refresh(Some(AddressFamily::Ipv4), 1200).1, true), 0);
    b.pass(500);
    assert_eq!(b.server.expire(b.now.instant), Some((id, V6)));
    assert_eq!(b.server.expire(b.now.instant), None);
    b.channel(CLIENT, 0x4000, PEER);
    assert!(b.server.handle_peer(b.now.instant, id, PeerAddr(addr(PEER)), 1).is_ok());
    assert_eq!(code(&b.channel(CLIENT, 0x4001, PEER6).1, true), 443);
    assert_eq!(code(&b.refresh(Some(AddressFamily::Ipv6), 600).1, true), 443);
    assert!(b.server.poll_timeout().is_some());
    b.pass(700);
    assert_eq!(b.server.expire(b.now.instant), Some((id, V4)));
    assert_eq!((b.server.allocations(), b.server.poll_timeout()), (0, None));

    let (id, _) = b.allocate_both();
    b.channel(CLIENT, 0x4000, PEER);
    b.channel(CLIENT, 0x4001, PEER6);
    let delete = b.signed(CLIENT, "alice", Method::REFRESH, &|w| {
        w.attribute(&Lifetime(0)).unwrap().attribute(&RequestedAddressFamily(AddressFamily::Ipv4)).unwrap();
    });
    let (action, reply) = b.bytes(CLIENT, &delete);
    assert_eq!(action, Action::Unbind(id, V4, reply.len()));
    assert_eq!(b.bytes(CLIENT, &delete), (Action::Reply(reply.len()), reply), "a retransmission");
    assert_eq!(b.bytes(CLIENT, &[0x40, 0, 0, 0]).0, Action::Drop(DropReason::NoChannel));
    assert!(matches!(b.bytes(CLIENT, &[0x40, 1, 0, 0]).0, Action::Forward { .. }));
    let (action, reply) = b.refresh(None, 0);
    assert_eq!(action, Action::Unbind(id, V6, reply.len()));
    assert_eq!(b.server.allocations(), 0);
}

#[test]
fn reserved_port_has_its_own_family() {
    let mut b = Bench::new();
    let (action, _) = b.ask(&|w| {
        udp(w);
        put(w, &ReservationToken([7; 8]));
    });
    let Action::Bind(bind) = action else { panic!("{action:?}") };
    assert_eq!((bind.families, bind.port), (Families::default(), PortRequest::Reserved([7; 8])));
    let mut reply = [0; MAX_REPLY];
    let Action::Reply(len) = b.server.bound(b.now.instant, bind.id, relayed(RELAYED6, None), &mut reply) else {
        panic!()
    };
    assert_eq!(relayed_addrs(&reply[..len]), [addr(RELAYED6)]);
    assert!(!Message::parse(&reply[..len]).unwrap().contains(AttributeType::ADDRESS_ERROR_CODE));
    assert_eq!(code(&b.channel(CLIENT, 0x4000, PEER6).1, true), 0);
    assert_eq!(code(&b.channel(CLIENT, 0x4001, PEER).1, true), 443);
}
