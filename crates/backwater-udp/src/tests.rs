//! Parts of the send loop, each alone.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    task::Wake,
};

use crate::{Backpressure, Policy};

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
        let slices = [std::io::IoSlice::new(b"x")];
        // Loopback answers within the call, unless the kernel has no ICMP message left this second, or another process has the port.
        let mut tries = 0;
        let (closed, drained) = loop {
            let closed = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
            assert_eq!(socket.sender().try_send(&mut crate::Transmit::new(closed, &slices)).unwrap().sent, 1);
            let drained = socket.0.drain_errors(Some(closed), 0);
            tries += 1;
            if drained.icmp {
                break (closed, drained);
            }
            assert!(tries < 250, "no ICMP message in five seconds");
            std::thread::sleep(std::time::Duration::from_millis(20));
        };
        assert!(!drained.too_large);
        assert!(!socket.0.drain_errors(Some(closed), 1).icmp, "that one was seen");
        assert_eq!(socket.stats().snapshot().icmp_errors, 1);
        assert_eq!(socket.next_icmp_error().map(|error| error.destination), Some(closed));
    });
}
