//! Error responses to an Allocate request (RFC 8656 §7.4).

use super::*;

fn asked() -> (Bench, Vec<u8>) {
    let mut b = Bench::new();
    b.challenge();
    let request = b.request(Method::ALLOCATE);
    (b, request)
}

#[test]
fn refusals_for_good_stop_the_client() {
    for code in [
        Code::BAD_REQUEST,
        Code::FORBIDDEN,
        Code::ADDRESS_FAMILY_NOT_SUPPORTED,
        Code::UNSUPPORTED_TRANSPORT_PROTOCOL,
        Code::UNKNOWN_ATTRIBUTE,
    ] {
        let (mut b, request) = asked();
        b.refuse(&request, code);
        let reason = code.reason().to_owned();
        assert_eq!(b.events(), [Event::Failed(Failure::Refused { code, reason })]);
        b.quiet();
        assert_eq!(b.client.poll_timeout(), None);
    }
}

#[test]
fn full_server_is_asked_again_after_a_minute() {
    for code in [Code::ALLOCATION_QUOTA_REACHED, Code::INSUFFICIENT_CAPACITY] {
        let (mut b, request) = asked();
        b.refuse(&request, code);
        let [Event::Refused { retry_in, .. }] = b.events()[..] else { panic!() };
        assert!((secs(60)..=secs(75)).contains(&retry_in), "{retry_in:?}");
        assert_eq!(b.wait(), retry_in);
        b.request(Method::ALLOCATE);
    }
}

#[test]
fn failing_server_is_asked_less_and_less_often() {
    let (mut b, mut request) = asked();
    for pause in [1, 2, 4, 8, 16, 32, 60, 60, 60] {
        b.refuse(&request, Code::SERVER_ERROR);
        let waited = b.wait();
        assert!((secs(pause)..=secs(pause) * 5 / 4).contains(&waited), "{waited:?}");
        request = b.request(Method::ALLOCATE);
    }
}

#[test]
fn attributes_that_the_server_does_not_know_are_left_out() {
    let mut b = Bench::with(|config| {
        config.dont_fragment = true;
        config.port = PortRequest::Even { reserve_next: false };
    });
    b.challenge();
    for unknown in [AttributeType::DONT_FRAGMENT, AttributeType::EVEN_PORT] {
        let request = b.request(Method::ALLOCATE);
        assert!(has(&request, unknown));
        b.respond(&request, Class::ErrorResponse, false, &|w| {
            put(w, &ErrorCode::from(Code::UNKNOWN_ATTRIBUTE));
            put(w, &UnknownAttributes::new(&[unknown]));
        });
    }
    let request = b.request(Method::ALLOCATE);
    assert!(!has(&request, AttributeType::DONT_FRAGMENT) && !has(&request, AttributeType::EVEN_PORT));
}

#[test]
fn allocation_in_the_way_is_deleted_if_it_is_the_clients_own() {
    let (mut b, request) = asked();
    b.refuse(&request, Code::ALLOCATION_MISMATCH);
    let request = b.request(Method::REFRESH);
    assert_eq!(get(&request), Some(Lifetime(0)));
    b.succeed(&request, &|_| ());
    b.allocate(&|_| ());
    assert!(b.client.is_allocated());
}

#[test]
fn address_of_someone_elses_allocation_is_given_up() {
    let (mut b, mut request) = asked();
    b.refuse(&request, Code::ALLOCATION_MISMATCH);
    let delete = b.request(Method::REFRESH);
    b.refuse(&delete, Code::WRONG_CREDENTIALS);
    assert_eq!(b.events(), [Event::AddressInUse]);
    for events in [vec![Event::AddressInUse], vec![Event::AddressInUse], vec![]] {
        b.quiet();
        b.client.rebound(b.now);
        request = b.request(Method::ALLOCATE);
        b.refuse(&request, Code::ALLOCATION_MISMATCH);
        assert_eq!(b.events(), events);
    }
    // Three addresses are enough: RFC 8656 §7.4.
    assert_eq!(b.wait(), secs(120));
    b.request(Method::ALLOCATE);
}

fn redirect(b: &mut Bench, request: &[u8], to: &str) {
    b.respond(request, Class::ErrorResponse, false, &|w| {
        put(w, &ErrorCode::from(Code::TRY_ALTERNATE));
        put(w, &AlternateServer(addr(to)));
        put(w, &AlternateDomain("other.example.org"));
    });
}

fn only(b: &mut Bench) -> (SocketAddr, Vec<u8>) {
    let Transmit { server, bytes } = b.client.poll_transmit(b.now).unwrap();
    (server, bytes.to_vec())
}

#[test]
fn five_redirections_are_followed() {
    let mut b = Bench::new();
    for n in 2..=6 {
        let (_, request) = only(&mut b);
        let to = format!("198.51.100.{n}:3478");
        redirect(&mut b, &request, &to);
        let domain = Some("other.example.org".to_owned());
        assert_eq!(b.events(), [Event::Redirected { server: addr(&to), domain }]);
        assert_eq!(b.client.server(), addr(&to));
    }
    let (server, request) = only(&mut b);
    assert_eq!(server, addr("198.51.100.6:3478"));
    redirect(&mut b, &request, "198.51.100.7:3478");
    assert_eq!(b.events(), [Event::Failed(Failure::Redirects)]);
    b.quiet();
}

#[test]
fn circles_and_unusable_addresses_are_refused() {
    for to in [SERVER, "[2001:db8::1]:3478", "198.51.100.2:0", "0.0.0.0:3478", "224.0.0.1:3478"] {
        let mut b = Bench::new();
        let (_, request) = only(&mut b);
        redirect(&mut b, &request, to);
        assert_eq!(b.events(), [Event::Failed(Failure::Redirects)], "{to}");
    }
}

#[test]
fn first_server_is_asked_again_when_the_other_does_not_answer() {
    let mut b = Bench::new();
    let (_, request) = only(&mut b);
    redirect(&mut b, &request, "198.51.100.2:3478");
    b.events();
    for _ in 0..60 {
        if b.client.server() == addr(SERVER) {
            b.wait();
            return b.challenge();
        }
        while b.client.poll_transmit(b.now).is_some() {}
        b.wait();
    }
    panic!("it stays with a server that does not answer");
}

#[test]
fn success_without_a_relayed_address_is_no_success() {
    let (mut b, request) = asked();
    b.succeed(&request, &|w| put(w, &Lifetime(600)));
    assert!(!b.client.is_allocated());
    assert!(b.wait() <= Duration::from_millis(1250));
    b.request(Method::ALLOCATE);
}
