//! What has to wait, all at once, beside a stock peer: within a minute, or, with `BACKWATER_SOAK_SECONDS`, within the two that the renewal of
//! a session takes. `tests/simulation/minutes.rs` has the same between two engines, in virtual time.

use std::{
    env,
    thread::{scope, sleep},
    time::Duration,
};

use rustix::process::Signal;

use crate::support::{
    Network, in_namespace,
    traffic::{Echo, until_answered},
    tunnel::{HERE, PROGRAMS, Sides, THERE},
};

#[test]
fn sessions_and_outages() {
    in_namespace("across_minutes::sessions_and_outages", PROGRAMS, || {
        let within_a_minute: [fn(); _] = [a_pause_does_not_renew_the_session, the_peer_is_started_again];
        let within_minutes: [fn(); _] = [
            we_renew_the_session,
            the_peer_renews_the_session,
            the_link_is_down_for_a_minute,
            the_peer_is_away_for_longer_than_we_call,
        ];
        let is_long = env::var_os("BACKWATER_SOAK_SECONDS").is_some();
        scope(|scope| {
            for work in within_a_minute.into_iter().chain(within_minutes.into_iter().filter(|_| is_long)) {
                scope.spawn(work);
            }
        });
    });
}

/// Nothing has come for fifteen seconds, but nothing was sent either. The peer, which has sent last, hears from us after
/// ten (`KEEPALIVE_TIMEOUT`), and does not think us gone.
fn a_pause_does_not_renew_the_session() {
    let sides = Sides::new();
    let (_stock, _echo) = (sides.stock(""), Echo::new(&sides.there));
    let tunnel = sides.up("", "Endpoint = 10.9.1.2:51820");
    for _ in 0..2 {
        until_answered(&sides.here, THERE[0], Duration::from_secs(5));
        sleep(Duration::from_secs(20));
    }
    assert_eq!(tunnel.peer("handshakes"), 1);
}

fn we_renew_the_session() {
    let sides = Sides::new();
    let _stock = sides.stock("");
    let tunnel = sides.up("", "Endpoint = 10.9.1.2:51820");
    no_ping_is_lost_within_two_minutes(&sides.here, THERE[0]);
    assert_eq!(tunnel.peer("handshakes"), 2);
}

fn the_peer_renews_the_session() {
    let sides = Sides::new();
    let tunnel = sides.up("ListenPort = 51820", "");
    let _stock = sides.stock("Endpoint = [fd09:1::1]:51820");
    no_ping_is_lost_within_two_minutes(&sides.there, HERE[1]);
    assert_eq!(tunnel.peer("handshakes"), 2);
}

/// A session is renewed after two minutes (`REKEY_AFTER_TIME`).
fn no_ping_is_lost_within_two_minutes(network: &Network, to: std::net::IpAddr) {
    let mut ping = network.start(&format!("ping -c 260 -i 0.5 -W 5 {to}"));
    sleep(Duration::from_secs(126));
    assert!(ping.wait().success());
    ping.wait_for("260 packets transmitted, 260 received, 0% packet loss");
}

fn the_link_is_down_for_a_minute() {
    let sides = Sides::new();
    let (_stock, _echo) = (sides.stock(""), Echo::new(&sides.there));
    let tunnel = sides.up("", "Endpoint = 10.9.1.2:51820");
    until_answered(&sides.here, THERE[0], Duration::from_secs(5));
    let _traffic = sides.here.start(&format!("ping -i 0.2 {}", THERE[1]));
    sides.here.run("ip link set fe1 down");
    sleep(Duration::from_secs(60));
    sides.here.run("ip link set fe1 up");
    let time = until_answered(&sides.here, THERE[0], Duration::from_secs(2));
    eprintln!("the link was down for a minute: {time:.1?}");
    assert!(tunnel.peer("handshakes") >= 1);
}

/// It has forgotten the session. We call again when nothing has come for fifteen seconds though we have sent
/// (`KEEPALIVE_TIMEOUT + REKEY_TIMEOUT`).
fn the_peer_is_started_again() {
    let sides = Sides::new();
    let (mut stock, _echo) = (sides.stock(""), Echo::new(&sides.there));
    let _tunnel = sides.up("", "Endpoint = 10.9.1.2:51820");
    until_answered(&sides.here, THERE[0], Duration::from_secs(5));
    stock.signal(Signal::KILL);
    stock.wait();
    let _stock = sides.stock("");
    let time = until_answered(&sides.here, THERE[0], Duration::from_secs(20));
    eprintln!("the peer was killed: {time:.1?}");
}

/// We call for a minute and a half (`REKEY_ATTEMPT_TIME`), and then again, since somebody still wants to send.
fn the_peer_is_away_for_longer_than_we_call() {
    let sides = Sides::new();
    let (mut stock, _echo) = (sides.stock(""), Echo::new(&sides.there));
    let _tunnel = sides.up("", "Endpoint = 10.9.1.2:51820");
    until_answered(&sides.here, THERE[0], Duration::from_secs(5));
    stock.signal(Signal::KILL);
    stock.wait();
    let _traffic = sides.here.start(&format!("ping -i 0.2 {}", THERE[1]));
    sleep(Duration::from_secs(115));
    let _stock = sides.stock("");
    let time = until_answered(&sides.here, THERE[0], Duration::from_secs(8));
    eprintln!("the peer was away for 115 s: {time:.1?}");
}
