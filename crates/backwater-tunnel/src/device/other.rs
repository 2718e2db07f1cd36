//! Windows and macOS, over what tun-rs offers for both: no offloads, and no rules. The routes that are added are those of
//! a tunnel that takes a part; one that takes everything would take what the tunnel itself sends, and is refused.

use std::{
    collections::BTreeSet,
    future::Future,
    io::{self, IoSlice},
    net::IpAddr,
    pin::Pin,
    sync::{Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::{Duration, Instant, SystemTime},
};

use ipnet::IpNet;
use route_manager::{Route, RouteManager};
use tokio::time::{Sleep, sleep};
use tun_rs::{AsyncDevice, DeviceBuilder};

use super::{Change, DEFAULT_MTU, Error, is_default, routes};
use crate::config::{Config, Table};

/// What a program without permission needs.
pub(super) const GRANT: &str = "run it as root, on Windows as an administrator";

/// How often the addresses are compared.
const INTERVAL: Duration = Duration::from_secs(2);

/// A longer sleep counts.
const SLEEP: Duration = Duration::from_secs(2);

/// The TUN device with its addresses and routes. They are gone when it is.
pub struct Link {
    device: AsyncDevice,
    name: String,
    mtu: u16,
    /// A packet that was read to know that there is one, and its length.
    waiting: Mutex<(Vec<u8>, Option<usize>)>,
}

impl Link {
    /// Makes the device and sets it up as the configuration says. macOS chooses the name, unless it is `utun` with a
    /// number; Windows wants `wintun.dll`.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn open(config: &Config, name: &str) -> Result<Self, Error> {
        let interface = &config.interface;
        let mtu = interface.mtu.unwrap_or(DEFAULT_MTU);
        if let Table::Number(_) = interface.table {
            let error = io::Error::new(io::ErrorKind::Unsupported, "a number as Table needs Linux");
            return Err(Error::Device(error));
        }
        let mut builder = DeviceBuilder::new().mtu(mtu);
        if !cfg!(target_os = "macos") || name.starts_with("utun") {
            builder = builder.name(name);
        }
        let device = builder.build_async().map_err(|error| refused(error, "make a TUN device", Error::Device))?;
        for &address in &interface.addresses {
            let added = match address {
                IpNet::V4(net) => device.add_address_v4(net.addr(), net.prefix_len()),
                IpNet::V6(net) => device.add_address_v6(net.addr(), net.prefix_len()),
            };
            added.map_err(|error| refused(error, "add an address", |source| Error::Address { address, source }))?;
        }
        if interface.table == Table::Auto {
            let allowed = config.peers.iter().flat_map(|peer| peer.allowed_ips.iter().copied());
            let index = device.if_index().map_err(Error::Device)?;
            for route in routes(&interface.addresses, allowed) {
                add_route(index, route)
                    .map_err(|error| refused(error, "add a route", |source| Error::Route { route, source }))?;
            }
        }
        let name = device.name().map_err(Error::Device)?;
        Ok(Self { device, name, mtu, waiting: Mutex::new((vec![0; 65535], None)) })
    }

    /// Removes the device with its addresses and routes. Dropping it does so too.
    pub fn close(self) -> Result<(), Error> {
        Ok(())
    }

    /// The device's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The device's MTU in bytes.
    pub fn mtu(&self) -> u16 {
        self.mtu
    }

    /// Sets the device's MTU in bytes.
    ///
    /// # Errors
    /// The system's.
    pub fn set_mtu(&mut self, mtu: u16) -> io::Result<()> {
        self.device.set_mtu(mtu)?;
        self.mtu = mtu;
        Ok(())
    }

    /// The MTU of the route to this address in bytes: it is not looked up here.
    ///
    /// # Errors
    /// `Unsupported`, always.
    pub fn route_mtu(&self, _: IpAddr) -> io::Result<u32> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// The mark that the tunnel's sockets must have: there are none.
    pub fn fwmark(&self) -> u32 {
        0
    }

    /// Whether each packet begins with a `virtio_net_hdr`: none does.
    pub fn has_offload(&self) -> bool {
        false
    }

    /// Whether a packet may be a train of UDP datagrams: none is.
    pub fn has_udp_offload(&self) -> bool {
        false
    }

    /// Ready when there is a packet to read. The task of the last call is woken.
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut waiting = self.waiting();
        let (buffer, length) = &mut *waiting;
        if length.is_none() {
            // Windows can tell that there is a packet only by reading it.
            *length = Some(ready!(self.device.poll_recv(cx, buffer))?);
        }
        Poll::Ready(Ok(()))
    }

    /// Reads one packet. What does not fit is lost: at most 65,535 bytes come. `WouldBlock`: there is none, and
    /// [`poll_readable`](Self::poll_readable) waits for one.
    pub fn try_read(&self, buf: &mut [u8]) -> io::Result<usize> {
        let mut waiting = self.waiting();
        let (buffer, length) = &mut *waiting;
        let Some(length) = length.take() else { return self.device.try_recv(buf) };
        let length = length.min(buf.len());
        buf[..length].copy_from_slice(&buffer[..length]);
        Ok(length)
    }

    /// Writes one packet. It is lost if the system refuses it.
    pub fn try_write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let packet: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
        self.device.try_send(&packet)
    }

    /// How many packets may wait to be read: not known here.
    pub fn queue_len(&self) -> io::Result<u32> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// How many packets the system has dropped since nobody read them: not known here.
    pub fn dropped(&self) -> io::Result<u64> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Watches the network, but for this device.
    pub fn monitor(&self) -> io::Result<Monitor> {
        let addresses = addresses(&self.name)?;
        Ok(Monitor { own: self.name.clone(), addresses, next: Box::pin(sleep(INTERVAL)) })
    }

    fn waiting(&self) -> MutexGuard<'_, (Vec<u8>, Option<usize>)> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Watches the network: compares the addresses of the machine every two seconds, but for the tunnel's own. A route that
/// changes alone is not noticed.
pub struct Monitor {
    own: String,
    addresses: BTreeSet<IpAddr>,
    next: Pin<Box<Sleep>>,
}

impl Monitor {
    /// Ready with what has changed since the last time. The task of the last call is woken.
    pub fn poll_change(&mut self, cx: &mut Context<'_>) -> Poll<Change> {
        loop {
            ready!(self.next.as_mut().poll(cx));
            self.next.as_mut().reset(tokio::time::Instant::now() + INTERVAL);
            // What cannot be read now is read the next time.
            let addresses = addresses(&self.own).unwrap_or_else(|_| self.addresses.clone());
            if addresses != self.addresses {
                self.addresses = addresses;
                return Poll::Ready(Change { address: true, ..Change::default() });
            }
        }
    }
}

/// Notices that the machine has slept: the wall clock has gone ahead of the one that stands still in sleep. On Windows,
/// where none does, and when the wall clock is set, it errs.
pub struct Suspended {
    awake: Instant,
    wall: SystemTime,
}

impl Suspended {
    /// Begins now.
    #[allow(clippy::new_without_default, reason = "it begins at a time")]
    pub fn new() -> Self {
        Self { awake: Instant::now(), wall: SystemTime::now() }
    }

    /// Returns how long it has slept since the last call, or since the start, if that was more than two seconds.
    pub fn check(&mut self) -> Option<Duration> {
        let before = std::mem::replace(self, Self::new());
        let passed = self.wall.duration_since(before.wall).unwrap_or_default();
        Some(passed.saturating_sub(self.awake.duration_since(before.awake))).filter(|slept| *slept > SLEEP)
    }
}

/// The addresses of the machine, but for those of the device `own`.
fn addresses(own: &str) -> io::Result<BTreeSet<IpAddr>> {
    let others = getifaddrs::getifaddrs()?.filter(|interface| interface.name != own);
    Ok(others.filter_map(|interface| interface.address.ip_addr()).collect())
}

fn add_route(index: u32, route: IpNet) -> io::Result<()> {
    if is_default(&route) {
        let why = "not supported on this system: the tunnel would take what it sends itself; use Table = off";
        return Err(io::Error::new(io::ErrorKind::Unsupported, why));
    }
    RouteManager::new()?.add(&Route::new(route.network(), route.prefix_len()).with_if_index(index))
}

fn refused(error: io::Error, what: &'static str, otherwise: impl FnOnce(io::Error) -> Error) -> Error {
    if error.kind() == io::ErrorKind::PermissionDenied { Error::Permission(what) } else { otherwise(error) }
}
