//! Parts of the send loop, each alone.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    task::Wake,
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    Backpressure, Policy,
    contention::Contention,
    park::{By, Class, Parked, Renew},
};

#[derive(Default)]
struct Counts(AtomicU32);

impl Wake for Counts {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Relaxed);
    }
}

fn wakers<const N: usize>() -> [Arc<Counts>; N] {
    [(); N].map(|()| Arc::default())
}

#[test]
fn a_switch_wakes_the_latest_wakers_of_the_senders_that_wait() {
    let handle = Backpressure::default();
    let [first, latest, left] = wakers();
    handle.wait(1, &first.clone().into());
    handle.wait(1, &latest.clone().into());
    handle.wait(2, &left.clone().into());
    handle.leave(2);
    assert_eq!(Arc::strong_count(&left), 1, "nothing is kept of a sender that has left");
    handle.set(Policy::Drop);
    assert_eq!([first, latest, left].map(|waker| waker.0.load(Relaxed)), [0, 1, 0]);
}

#[test]
fn room_wakes_the_latest_waker_of_a_sender_that_waits() {
    let contention = Contention::default();
    let [first, latest, left] = wakers();
    contention.wait(2, &left.clone().into());
    contention.wait(1, &first.clone().into());
    contention.wait(1, &latest.clone().into());
    contention.leave(2);
    assert_eq!(Arc::strong_count(&left), 1, "nothing is kept of a sender that has left");
    contention.found_room(3);
    assert_eq!([first, latest, left].map(|waker| waker.0.load(Relaxed)), [0, 1, 0]);
}

const MS: Duration = Duration::from_millis(1);

/// A silent wait that has been refused so often, by its timer.
fn silent(now: Instant, refusals: u32) -> Parked {
    let mut parked = Parked::new(Class::Silent, now, None, 128);
    for _ in 0..refusals {
        parked.refused(Class::Silent, By::Timer, now, None, 128);
    }
    parked
}

#[test]
fn a_silent_wait_that_has_made_progress_waits_a_millisecond() {
    let now = Instant::now();
    let mut parked = silent(now, 6);
    assert_eq!(parked.at, now + 8 * MS);
    parked.made_progress(now + 5 * MS);
    assert_eq!(parked.blocked_since, now + 5 * MS);
    parked.refused(Class::Silent, By::Timer, now, None, 128);
    assert_eq!((parked.at, parked.yielding), (now + MS, false));
    let mut parked = silent(now, 0);
    parked.made_progress(now);
    parked.refused(Class::Silent, By::Timer, now, None, 128);
    assert!(parked.yielding, "its second time is still to come");
}

#[test]
fn an_advised_wait_that_has_made_progress_begins_anew() {
    let now = Instant::now();
    let mut parked = Parked::new(Class::Advised, now, None, 0);
    for _ in 0..3 {
        parked.refused(Class::Advised, By::Timer, now, None, 0);
    }
    parked.made_progress(now);
    parked.refused(Class::Advised, By::Timer, now, None, 0);
    assert_eq!(parked.at, now + 50 * MS);
}

#[test]
fn a_call_that_ends_in_a_refusal_does_not_change_when_the_timer_fires() {
    let now = Instant::now();
    let mut parked = silent(now, 2);
    assert_eq!(parked.at, now + MS);
    assert_eq!(parked.refused(Class::Silent, By::Call, now, None, 128), Renew::No);
    assert_eq!((parked.at, parked.yielding), (now + MS, false));
    parked.refused(Class::Silent, By::Timer, now, None, 128);
    assert_eq!(parked.at, now + 2 * MS);
    let mut parked = Parked::new(Class::Advised, now, None, 0);
    assert_eq!(parked.refused(Class::Advised, By::Call, now + MS, None, 0), Renew::No);
    assert_eq!((parked.at, parked.listening), (now + 25 * MS, true));
}

#[test]
fn readiness_is_worthless_until_an_interval_after_the_last_registration() {
    let now = Instant::now();
    let readiness = |parked: &mut Parked, ms| parked.refused(Class::Advised, By::Readiness, now + ms * MS, None, 0);
    let mut parked = Parked::new(Class::Advised, now, None, 0);
    assert_eq!(readiness(&mut parked, 1), Renew::No);
    assert_eq!(readiness(&mut parked, 25), Renew::Yes);
    assert_eq!(parked.at, now + 25 * MS, "the timer stays");
    assert_eq!(readiness(&mut parked, 26), Renew::No);

    let mut parked = Parked::new(Class::Advised, now, None, 0);
    assert_eq!(readiness(&mut parked, 1), Renew::No);
    assert_eq!(parked.refused(Class::Advised, By::Timer, now + 25 * MS, None, 0), Renew::Yes);
    assert_eq!(readiness(&mut parked, 60), Renew::No, "35 of 50 ms");

    let mut parked = silent(now, 0);
    assert_eq!(parked.refused(Class::Advised, By::Timer, now + 30 * MS, None, 0), Renew::Yes);
    assert_eq!(readiness(&mut parked, 31), Renew::No);
    assert_eq!(readiness(&mut parked, 32), Renew::No);
}

#[test]
fn another_class_begins_its_waits_anew() {
    let now = Instant::now();
    let mut parked = Parked::new(Class::Advised, now, None, 0);
    for _ in 0..3 {
        parked.refused(Class::Advised, By::Timer, now, None, 0);
    }
    for _ in 0..6 {
        parked.refused(Class::Silent, By::Timer, now, None, 128);
    }
    parked.refused(Class::Advised, By::Timer, now, None, 0);
    assert_eq!(parked.at, now + 25 * MS);
    parked.refused(Class::Silent, By::Timer, now, None, 128);
    assert!(parked.yielding);
}

#[test]
fn four_attempts_within_a_millisecond_are_enough() {
    let now = Instant::now();
    let mut parked = silent(now, 0);
    for _ in 0..3 {
        assert!(parked.may_attempt(now + 2 * MS));
        parked.refused(Class::Silent, By::Call, now + 2 * MS, None, 128);
    }
    assert!(parked.may_attempt(now + 2 * MS), "the first was earlier");
    parked.refused(Class::Silent, By::Call, now + 2 * MS, None, 128);
    assert!(!parked.may_attempt(now + 2 * MS));
    assert!(parked.may_attempt(now + 3 * MS));
}

/// Room, none, and an error without room.
#[cfg(unix)]
#[test]
fn a_socket_is_writable_only_if_poll_says_so() {
    use std::{io::Write as _, os::unix::net::UnixDatagram};

    let (near, _far) = UnixDatagram::pair().unwrap();
    near.set_nonblocking(true).unwrap();
    assert!(crate::sys::writable((&near).into()));
    while near.send(&[0; 1000]).is_ok() {}
    assert!(!crate::sys::writable((&near).into()));

    let (reader, mut writer) = std::io::pipe().unwrap();
    socket2::SockRef::from(&writer).set_nonblocking(true).unwrap();
    while writer.write(&[0; 1000]).is_ok() {}
    drop(reader);
    assert!(!crate::sys::writable((&writer).into()));
}

#[cfg(all(target_os = "linux", not(backwater_portable)))]
#[test]
fn an_icmp_message_is_counted_and_is_about_an_earlier_datagram() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let socket = crate::UdpSocket::bind(([127, 0, 0, 1], 0).into()).unwrap();
        let closed = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let slices = [std::io::IoSlice::new(b"x")];
        assert_eq!(socket.sender().try_send(&mut crate::Transmit::new(closed, &slices)).unwrap().sent, 1);
        // Loopback answers within the call.
        let drained = socket.0.drain_errors(Some(closed), 0);
        assert!(drained.icmp && !drained.too_large);
        assert!(!socket.0.drain_errors(Some(closed), 1).icmp, "that one was seen");
        assert_eq!(socket.stats().snapshot().icmp_errors, 1);
        assert_eq!(socket.next_icmp_error().map(|error| error.destination), Some(closed));
    });
}
