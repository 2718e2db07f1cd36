//! UDP sockets for data planes, on tokio.
//!
//! A datagram that is handed to a [`Sender`] is *sent* (the kernel took it), *dropped* for a counted
//! reason, or *held* until there is room; it is never lost without a trace. Trains of datagrams leave by
//! segmentation offload (GSO) and arrive by receive offload (GRO) where the system has them, without a
//! copy and without an allocation per datagram.
//!
//! ```
//! use backwater_udp::{RecvBatch, Transmit, UdpSocket};
//! use std::io::IoSlice;
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! let here = UdpSocket::bind("127.0.0.1:0".parse().unwrap())?;
//! let there = UdpSocket::bind("127.0.0.1:0".parse().unwrap())?;
//!
//! let payload = [IoSlice::new(b"one"), IoSlice::new(b"two")];
//! let mut train = Transmit::new(there.local_addr(), &payload).segment_size(3);
//! let report = here.sender().send(&mut train).await?;
//! assert_eq!(report.sent, 2);
//!
//! let (mut receiver, mut batch) = (there.receiver(), RecvBatch::new(8));
//! let mut seen = 0;
//! while seen < 2 {
//!     receiver.recv(&mut batch).await?;
//!     seen += batch.datagrams().inspect(|d| assert_eq!(d.source, here.local_addr())).count();
//! }
//! # std::io::Result::Ok(()) }).unwrap();
//! ```
//!
//! # What `Ok` means
//!
//! [`Sender::send`] returns `Ok` when every datagram of the transmit has an end, which may be that it was dropped: too old, too
//! large, without a route. `?` alone does not notice that. Look at the [`SendReport`], whose `sent` and `dropped` add up, or send single
//! datagrams with [`Sender::send_to`], for which a dropped datagram is an error:
//!
//! ```
//! use backwater_udp::{DatagramStream, DropReason, UdpSocket};
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! let here = UdpSocket::bind("127.0.0.1:0".parse().unwrap())?;
//! let there = UdpSocket::bind("127.0.0.1:0".parse().unwrap())?;
//! let mut sender = here.sender();
//! sender.send_to(b"hello", there.local_addr()).await?;
//! assert_eq!(&*DatagramStream::new(there.receiver()).recv().await?.payload, b"hello");
//!
//! let error = sender.send_to(&[0; 70_000], there.local_addr()).await.unwrap_err();
//! let reason = error.get_ref().and_then(|e| e.downcast_ref::<DropReason>());
//! assert_eq!(reason, Some(&DropReason::TooLarge));
//! # std::io::Result::Ok(()) }).unwrap();
//! ```
//!
//! An `Err` means that the socket has failed, and nothing else is to be expected of it.
//!
//! All types want to be used inside a tokio runtime with its I/O and time drivers enabled.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod adapters;
mod ecn;
mod events;
pub mod gso;
mod intake;
mod io;
mod lease;
mod notices;
mod policy;
mod receiver;
mod send_queue;
mod sender;
mod socket;
pub mod stats;
mod sys;
mod transmit;
mod wait;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

#[cfg(any(feature = "quinn", feature = "noq"))]
pub use adapters::QUIC_DEADLINE;
#[cfg(feature = "gotatun")]
pub use adapters::gotatun::{GotatunReceiver, GotatunSender, GotatunSockets};
#[cfg(feature = "noq")]
pub use adapters::noq::NoqSocket;
#[cfg(feature = "quinn")]
pub use adapters::quinn::QuinnSocket;
pub use adapters::{DatagramSink, DatagramStream, OwnedDatagram};
pub use ecn::Ecn;
pub use events::{IcmpError, IcmpKind, IcmpQuote};
pub use policy::{Backpressure, Policy};
pub use receiver::{GroBatch, Receiver, RecvBatch, RecvDatagram, RecvMeta};
pub use send_queue::{QueueBounds, SendQueue};
pub use sender::Sender;
pub use socket::{Fragmentation, UdpSocket, UdpSocketBuilder};
pub use stats::{DropCounts, DropReason, SendReport, Stats, StatsSnapshot};
pub use transmit::{OwnedTransmit, Transmit};
