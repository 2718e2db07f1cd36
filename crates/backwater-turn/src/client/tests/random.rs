//! Responses that no server would send, in form and out of form: nothing panics, nothing goes on without end, nothing grows.

use super::{super::transaction::MAX_TRANSACTIONS, *};

struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % n
    }
}

/// An attribute of any kind, for better or worse.
fn attribute(random: &mut Random, w: &mut Writer<'_>) {
    let number = random.below(300) as u32;
    let long = "x".repeat(random.below(600));
    let address =
        [addr(RELAYED), addr(MAPPED), addr(SERVER), addr("[2001:db8::1]:9"), addr("0.0.0.0:0")][random.below(5)];
    let _ = match random.below(18) {
        0 => w.attribute(&XorRelayedAddress(address)).map(drop),
        1 => w.attribute(&XorMappedAddress(address)).map(drop),
        2 => w.attribute(&AlternateServer(address)).map(drop),
        3 => w.attribute(&Lifetime([0, 1, 600, u32::MAX, number][random.below(5)])).map(drop),
        4 => w.attribute(&Realm([REALM, "", "other", &long][random.below(4)])).map(drop),
        5 => w.attribute(&Nonce([&b"nonce"[..], b"", b"obMatJos2AAAD", long.as_bytes()][random.below(4)])).map(drop),
        6 => w.attribute(&PasswordAlgorithms::SHA256_MD5).map(drop),
        7 => w.attribute(&PasswordAlgorithms::MD5).map(drop),
        8 => w.attribute(&MobilityTicket(long.as_bytes())).map(drop),
        9 => w.attribute(&ReservationToken([1; 8])).map(drop),
        10 => w.attribute(&XorPeerAddress(address)).map(drop),
        11 => w.attribute(&Data(long.as_bytes())).map(drop),
        12 => w.attribute(&Icmp { icmp_type: 3, code: 1, data: number }).map(drop),
        13 => w.attribute(&UnknownAttributes::new(&[AttributeType::DONT_FRAGMENT, AttributeType::EVEN_PORT])).map(drop),
        14 => w.attribute(&AlternateDomain(&long)).map(drop),
        15 => w.attribute(&UseCandidate).map(drop),
        16 => w.attribute(&ChannelNumber::MIN).map(drop),
        _ => w.attribute(&Software("x")).map(drop),
    };
}

/// A response to one of these requests.
fn response(random: &mut Random, b: &Bench, request: &[u8]) -> Vec<u8> {
    let request = Message::parse(request).unwrap();
    let mut buffer = [0; 8000];
    let class =
        [Class::SuccessResponse, Class::ErrorResponse, Class::ErrorResponse, Class::Indication][random.below(4)];
    let method = if random.below(20) == 0 { Method::DATA } else { request.method() };
    let mut w = Writer::new(&mut buffer, class, method, request.transaction_id()).unwrap();
    if class == Class::ErrorResponse && random.below(30) > 0 {
        let code = Code::REGISTERED[random.below(Code::REGISTERED.len())];
        w.attribute(&ErrorCode { code, reason: "" }).unwrap();
    }
    for _ in 0..random.below(7) {
        attribute(random, &mut w);
    }
    let mut bytes = match random.below(4) {
        0 => w.finish().to_vec(),
        1 => w.integrity_sha256(&b.key).unwrap().finish().to_vec(),
        _ => w.integrity_sha1(&b.key).unwrap().finish().to_vec(),
    };
    if random.below(10) == 0 {
        let at = random.below(bytes.len());
        bytes[at] ^= 1 << random.below(8);
    }
    bytes
}

#[test]
fn random_responses_leave_the_client_bounded_and_able_to_go_on() {
    for seed in 0..60 {
        let mut random = Random(seed);
        let mut b = Bench::with(|config| {
            config.mobility = seed % 2 == 0;
            config.dont_fragment = seed % 3 == 0;
            config.families = Families { v4: true, v6: seed % 5 == 0 };
        });
        let mut old = vec![];
        for _ in 0..400 {
            let mut sent = vec![];
            while let Some(transmit) = b.client.poll_transmit(b.now) {
                sent.push(transmit.bytes.to_vec());
                assert!(sent.len() <= 3 * MAX_TRANSACTIONS, "requests without end");
            }
            assert!(b.client.poll_timeout().is_none_or(|at| at > b.now), "a timer in the past");
            assert!(b.client.transactions.len() <= MAX_TRANSACTIONS && b.client.redirected.len() <= MAX_REDIRECTS);
            for request in &sent {
                if random.below(3) > 0 {
                    let bytes = response(&mut random, &b, request);
                    let from = if random.below(20) == 0 { addr(SERVER) } else { b.client.server() };
                    b.client.handle_input(b.now, from, &bytes);
                }
            }
            old.extend(sent);
            old.truncate(20);
            if !old.is_empty() && random.below(4) == 0 {
                let request = &old[random.below(old.len())].clone();
                let bytes = response(&mut random, &b, request);
                b.client.handle_input(b.now, b.client.server(), &bytes);
            }
            match random.below(14) {
                0 => drop(b.client.bind(b.now, addr(PEER))),
                1 => drop(b.client.permit(b.now, addr(PEER).ip())),
                2 => b.client.rebound(b.now),
                3 => b.client.set_credential(b.now, credential()),
                4 => b.client.refresh(b.now),
                5 => b.client.release(b.now, ChannelNumber::MIN),
                _ => {}
            }
            assert!(b.events().len() < 100);
            let later = b.client.poll_timeout().unwrap_or(b.now + secs(1));
            b.now = later.min(b.now + secs(random.below(400) as u64));
            b.client.handle_timeout(b.now);
        }
    }
}
