//! Datagrams through the relay to a peer and back, each with its round-trip time.

use std::{
    fmt, io,
    time::{Duration, Instant},
};

use backwater_stun::{CHANNEL_HEADER_LEN, ChannelNumber};
use serde::Serialize;
use tokio::net::UdpSocket;

use super::session::{Happening, Session};

/// Datagrams, bytes of payload in each, and the time between two of them.
const COUNT: usize = 100;
const SIZE: usize = 1000;
const GAP: Duration = Duration::from_millis(10);

/// The wait for the last datagrams.
const LAST: Duration = Duration::from_secs(2);

/// The datagrams of a check, each of which a peer has returned.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Exchanged {
    /// Datagrams that were sent.
    pub sent: usize,
    /// Datagrams that came back.
    pub received: usize,
    /// Bytes of payload in each.
    pub size: usize,
    /// The median of the round-trip times, in milliseconds.
    pub median_ms: Option<f64>,
    /// The longest round-trip time, in milliseconds.
    pub longest_ms: Option<f64>,
}

/// Who returns the datagrams.
pub(super) enum Peer<'a> {
    /// A socket of this process.
    Socket(&'a UdpSocket),
    /// Another allocation, which has this channel to the first.
    Allocation(&'a mut Session, ChannelNumber),
}

/// Sends datagrams through a channel to a peer that returns them.
pub(super) async fn exchange(
    session: &mut Session,
    channel: ChannelNumber,
    mut peer: Peer<'_>,
) -> io::Result<Exchanged> {
    let start = Instant::now();
    let mut sent: Vec<Instant> = Vec::with_capacity(COUNT);
    let mut times = vec![None; COUNT];
    let mut buffer = vec![0; SIZE + CHANNEL_HEADER_LEN];
    while times.iter().any(Option::is_none) {
        let now = Instant::now();
        let deadline = match sent.last() {
            Some(last) if sent.len() == COUNT => *last + LAST,
            Some(_) | None => start + GAP * sent.len() as u32,
        };
        if now >= deadline {
            if sent.len() == COUNT {
                break;
            }
            let mut datagram = vec![0; CHANNEL_HEADER_LEN];
            datagram.extend((sent.len() as u64).to_be_bytes());
            datagram.resize(CHANNEL_HEADER_LEN + SIZE, 0);
            session.send(channel, &mut datagram).await?;
            sent.push(now);
            continue;
        }
        tokio::select! {
            happening = session.next(deadline) => {
                if let Happening::Data { payload, .. } = happening?
                    && let Some(number) = payload.first_chunk().map(|bytes| u64::from_be_bytes(*bytes) as usize)
                    && let (Some(at), Some(time)) = (sent.get(number), times.get_mut(number))
                {
                    time.get_or_insert(at.elapsed());
                }
            }
            returned = peer.receive(deadline, &mut buffer) => {
                if let Some(returned) = returned? {
                    peer.send(returned, &buffer).await?;
                }
            }
        }
    }
    let mut times: Vec<Duration> = times.into_iter().flatten().collect();
    times.sort_unstable();
    let ms = |time: &Duration| time.as_secs_f64() * 1000.0;
    Ok(Exchanged {
        sent: sent.len(),
        received: times.len(),
        size: SIZE,
        median_ms: times.get(times.len() / 2).map(ms),
        longest_ms: times.last().map(ms),
    })
}

/// A datagram of a peer: its length, and where it came from if that is an address.
struct Returned {
    len: usize,
    to: Option<std::net::SocketAddr>,
}

impl Peer<'_> {
    /// Receives a datagram into `buffer`, behind the bytes for a header. `None`: something else happened. Cancel safe.
    async fn receive(&mut self, deadline: Instant, buffer: &mut [u8]) -> io::Result<Option<Returned>> {
        let payload = buffer.get_mut(CHANNEL_HEADER_LEN..).unwrap_or_default();
        match self {
            Self::Socket(socket) => {
                let (len, from) = socket.recv_from(payload).await?;
                Ok(Some(Returned { len, to: Some(from) }))
            }
            Self::Allocation(session, _) => match session.next(deadline + LAST).await? {
                Happening::Data { payload: data, .. } if data.len() <= payload.len() => {
                    payload.iter_mut().zip(&data).for_each(|(to, from)| *to = *from);
                    Ok(Some(Returned { len: data.len(), to: None }))
                }
                Happening::Data { .. } | Happening::Event(_) | Happening::Deadline => Ok(None),
            },
        }
    }

    async fn send(&mut self, returned: Returned, buffer: &[u8]) -> io::Result<()> {
        let datagram = buffer.get(..CHANNEL_HEADER_LEN + returned.len).unwrap_or_default();
        match (self, returned.to) {
            (Self::Socket(socket), Some(to)) => {
                let payload = datagram.get(CHANNEL_HEADER_LEN..).unwrap_or_default();
                socket.send_to(payload, to).await.map(drop)
            }
            (Self::Allocation(session, channel), _) => session.send(*channel, &mut datagram.to_vec()).await,
            (Self::Socket(_), None) => Ok(()),
        }
    }
}

impl fmt::Display for Exchanged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sent, received, size, .. } = self;
        write!(f, "{received} of {sent} datagrams of {size} bytes came back")?;
        if let (Some(median), Some(longest)) = (self.median_ms, self.longest_ms) {
            write!(f, ", after {median:.1} ms (the slowest after {longest:.1} ms)")?;
        }
        Ok(())
    }
}
