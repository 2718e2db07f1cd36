//! What others can work out from what they are sent.

use std::collections::HashSet;

use super::*;

/// RFC 8489, section 5. A counter would tell each client how many datagrams the others are sent.
#[test]
fn transaction_ids_of_indications_are_unpredictable() {
    let mut all = HashSet::new();
    let mut servers = [0, 1].map(|thread| Bench::on_thread(thread).server);
    servers[1].transaction_ids = TransactionIds::new(&[2; 64], 0);
    servers.iter_mut().chain([&mut Bench::on_thread(1).server]).for_each(|server| {
        let ids: Vec<[u8; 12]> = (0..1000)
            .map(|_| {
                let prefix = server.data_indication(PeerAddr(addr(PEER)), 4).unwrap();
                let whole = [prefix.as_bytes(), b"data"].concat();
                Message::parse(&whole).unwrap().transaction_id().0
            })
            .collect();
        for at in 0..12 {
            let values: HashSet<_> = ids.iter().map(|id| id[at]).collect();
            assert!(values.len() > 200, "byte {at} has {} values in 1000 ids", values.len());
            let steps: HashSet<_> = ids.windows(2).map(|w| w[1][at].wrapping_sub(w[0][at])).collect();
            assert!(steps.len() > 200, "byte {at} goes on by one of {} steps", steps.len());
        }
        all.extend(ids);
    });
    assert_eq!(all.len(), 3000, "all differ, on all threads and with every key");
}

/// CVE-2020-4067: what stood in the buffer before, which is another client's, is in no answer, padding included.
#[test]
fn response_leaks_nothing_of_its_buffer() {
    let all = [0x00, 0xAA].map(|fill| {
        let mut b = Bench::new();
        let mut answers: Vec<Vec<u8>> = Vec::new();
        let mut ask = |b: &mut Bench, request: &[u8]| {
            let mut reply = [fill; MAX_REPLY];
            let action = b.server.handle_client(b.now, from(CLIENT), request, &mut reply);
            let len = match &action {
                Action::Bind(bind) => {
                    let bound = relayed("198.51.100.1:50000 [2001:db8:f::1]:50000", Some([7; 8]));
                    let Action::Reply(len) = b.server.bound(b.now.instant, bind.id, bound, &mut reply) else {
                        panic!()
                    };
                    len
                }
                Action::Reply(len)
                | Action::Unbind(_, _, len)
                | Action::Forbid(len, ..)
                | Action::OverQuota(len, _) => *len,
                Action::Unauthenticated(failure) => failure.reply.unwrap(),
                Action::Forward { .. } | Action::Handover(_) | Action::Drop(_) => panic!("{action:?}"),
            };
            answers.push(reply[..len].to_vec());
        };
        let requests: [(Method, bool, Fill<'_>); 7] = [
            (Method::BINDING, false, &|_| ()),
            (Method::ALLOCATE, false, &udp),
            (Method::ALLOCATE, true, &|w| put(w, &Priority(1))),
            (Method::ALLOCATE, true, &|w| {
                udp(w);
                w.attribute(&AdditionalAddressFamily(AddressFamily::Ipv6))
                    .unwrap()
                    .attribute(&MobilityTicket(&[]))
                    .unwrap();
            }),
            (Method::CREATE_PERMISSION, true, &|w| put(w, &XorPeerAddress(addr("127.0.0.1:1")))),
            (Method::CHANNEL_BIND, true, &|_| ()),
            (Method::REFRESH, true, &|w| put(w, &Lifetime(0))),
        ];
        for (method, signed, fill) in requests {
            let good = b.signed(CLIENT, "alice", method, fill);
            ask(&mut b, &if signed { good.clone() } else { plain(Class::Request, method, fill) });
            if signed {
                let mut wrong = good;
                wrong[19] ^= 1;
                ask(&mut b, &wrong);
            }
        }
        let prefix = b.server.data_indication(PeerAddr(addr(PEER)), 5).unwrap();
        answers.push([prefix.as_bytes(), b"12345", prefix.padding()].concat());
        answers
    });
    assert_eq!(all[0], all[1]);
    assert_eq!(all[0].len(), 13);
}

/// CVE-2026-68552: a length that is not the datagram's, or that would run over it, also after it has been padded.
#[test]
fn length_beyond_the_datagram_is_dropped() {
    let mut b = Bench::new();
    b.allocate(CLIENT);
    b.channel(CLIENT, 0x4000, PEER);
    let send = plain(Class::Indication, Method::SEND, &|w| {
        w.attribute(&XorPeerAddress(addr(PEER))).unwrap().attribute(&Data(&[7; 40])).unwrap();
    });
    let length = |bytes: &[u8]| u16::from_be_bytes([bytes[2], bytes[3]]);
    for wrong in (0..=u16::MAX).filter(|&wrong| wrong != length(&send)) {
        let mut bytes = send.clone();
        bytes[2..4].copy_from_slice(&wrong.to_be_bytes());
        assert!(matches!(b.bytes(CLIENT, &bytes).0, Action::Drop(_)), "a message of {wrong} bytes");
    }
    // DATA is behind XOR-PEER-ADDRESS, at 32.
    for wrong in 41..=u16::MAX {
        let mut bytes = send.clone();
        bytes[34..36].copy_from_slice(&wrong.to_be_bytes());
        assert!(matches!(b.bytes(CLIENT, &bytes).0, Action::Drop(_)), "an attribute of {wrong} bytes");
    }
    for len in 0..=u16::MAX {
        let bytes = [&[0x40, 0, (len >> 8) as u8, len as u8][..], &[7; 40]].concat();
        let action = b.bytes(CLIENT, &bytes).0;
        if let Action::Forward { range, .. } = action {
            assert!(range.len() == usize::from(len) && len <= 40);
        } else {
            assert!(matches!(action, Action::Drop(_)) && len != 40, "{action:?}");
        }
    }
    // What would not fit into a length of 16 bits is not sent, instead of with a shorter one.
    for len in [65_520, 65_535, 65_536, 1 << 20, usize::MAX] {
        assert_eq!(b.server.data_indication(PeerAddr(addr(PEER)), len).err(), Some(DropReason::TooLong), "{len}");
    }
}
