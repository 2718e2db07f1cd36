//! What a forwarded datagram costs in allocations. Alone in its process, since it counts those of all relays in it.
#![allow(missing_docs, unreachable_pub, dead_code, clippy::unwrap_used)]

#[path = "relay/client.rs"]
mod client;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use client::{channel_data, peer, start};

static COUNT: AtomicBool = AtomicBool::new(false);

/// Counts the allocations of all threads whose name begins with `relay-`.
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

std::thread_local! {
    static IS_RELAY: Cell<Option<bool>> = const { Cell::new(None) };
}

/// Asked at the first allocation of a thread that happens after its name is set.
fn is_relay() -> bool {
    IS_RELAY.with(|known| {
        known.get().unwrap_or_else(|| {
            known.set(Some(false));
            let relay = std::thread::current().name().is_some_and(|name| name.starts_with("relay-"));
            known.set(Some(relay));
            relay
        })
    })
}

// SAFETY: passes everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if COUNT.load(Relaxed) && is_relay() {
            ALLOCATIONS.fetch_add(1, Relaxed);
        }
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn channel_data_is_forwarded_without_an_allocation() {
    let mut relay = start(&["--threads", "1"]);
    let mut client = client::client(&relay);
    let relayed = client.allocate();
    let (peer, peer_addr) = peer();
    client.bind_channel(0x4000, peer_addr).unwrap();

    let message = channel_data(0x4000, &[7; 1000]);
    let mut buffer = [0; 2000];
    let mut round = |count| {
        for _ in 0..count {
            client.socket.send(&message).unwrap();
            assert_eq!(peer.recv_from(&mut buffer).unwrap(), (1000, relayed));
            assert_eq!(buffer[..1000], [7; 1000]);
            peer.send_to(&buffer[..1000], relayed).unwrap();
            assert_eq!(client.socket.recv(&mut buffer).unwrap(), 1004);
            assert_eq!(buffer[..1004], message);
        }
    };
    round(100);
    COUNT.store(true, Relaxed);
    round(5000);
    COUNT.store(false, Relaxed);
    assert_eq!(ALLOCATIONS.load(Relaxed), 0, "for 10,000 datagrams");

    // The meter works: an allocation on the relay's thread is seen.
    COUNT.store(true, Relaxed);
    client::client(&relay).allocate();
    COUNT.store(false, Relaxed);
    assert!(ALLOCATIONS.load(Relaxed) > 0);
    relay.stop(Duration::ZERO);
}
