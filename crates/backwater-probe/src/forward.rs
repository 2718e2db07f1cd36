//! The raw forwarder: the limit that a relay is measured against.
//!
//! It does what any relay must do, and nothing else. On the way up it receives GRO batches, strips the channel header of four bytes from
//! each datagram, and sends them from a socket of the client's own. On the way down it receives there, adds four bytes, and sends to the
//! client. Between two clients it forwards datagrams unchanged, since both have the same channel. It has no authentication, permissions
//! or expiry, and one peer. Clients form pairs in the order in which they appear.

use std::{
    collections::HashMap,
    future::poll_fn,
    io::{self, IoSlice},
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
};

use backwater_stun::{CHANNEL_HEADER_LEN, ChannelData};
use backwater_udp::{
    GroBatch, Receiver, RecvBatch, Sender, Transmit, UdpSocket,
    gso::{MAX_SEGMENTS, Shape},
};
use tokio::task::JoinSet;

use crate::load::{CHANNEL, Direction};

/// Forwards what arrives at a socket. See [`Forwarder::run`].
#[derive(Debug)]
pub struct Forwarder {
    socket: UdpSocket,
    direction: Direction,
    peer: SocketAddr,
}

/// The clients so far.
struct Clients {
    numbers: HashMap<SocketAddr, usize>,
    last: Option<(SocketAddr, usize)>,
    addrs: Vec<SocketAddr>,
    /// A socket for each client, where the direction needs one.
    egress: Vec<Sender>,
}

/// Datagrams that are sent together.
struct Run<'a> {
    slices: Vec<IoSlice<'a>>,
    shape: Shape,
}

/// GRO batches received in one system call. Twice as many, or half, was slower.
const SLOTS: usize = 32;

/// The receive buffer in bytes, as a relay has it.
const RECEIVE_BUFFER: usize = 4 << 20;

impl Forwarder {
    /// Makes a forwarder of this direction. Clients send to `listen`; up and down there is one `peer`.
    ///
    /// # Errors
    /// The system's error.
    pub fn bind(listen: SocketAddr, direction: Direction, peer: SocketAddr) -> io::Result<Self> {
        Ok(Self { socket: UdpSocket::builder().receive_buffer(RECEIVE_BUFFER).bind(listen)?, direction, peer })
    }

    /// Returns the address that clients send to.
    pub fn local_addr(&self) -> SocketAddr {
        self.socket.local_addr()
    }

    /// Forwards until a socket fails, or the future is dropped.
    ///
    /// # Errors
    /// The system's error.
    pub async fn run(self) -> io::Result<()> {
        let mut receiver = self.socket.receiver();
        let mut sender = self.socket.sender();
        let mut batch = RecvBatch::new(SLOTS);
        let down_batch = Arc::new(Mutex::new(RecvBatch::new(SLOTS)));
        let mut downs = JoinSet::new();
        let mut clients = Clients { numbers: HashMap::new(), last: None, addrs: Vec::new(), egress: Vec::new() };
        let mut order: Vec<(usize, usize)> = Vec::with_capacity(SLOTS);
        loop {
            poll_fn(|cx| {
                if let Poll::Ready(Some(ended)) = downs.poll_join_next(cx) {
                    return Poll::Ready(ended.map_err(io::Error::other)?);
                }
                receiver.poll_recv(cx, &mut batch)
            })
            .await?;
            order.clear();
            for (slot, train) in batch.gro_batches().enumerate() {
                let (number, new) = clients.number(train.source);
                order.push((number, slot));
                if !new || self.direction == Direction::Across {
                    continue;
                }
                let egress = self.egress()?;
                clients.egress.push(egress.sender());
                if self.direction == Direction::Down {
                    let down = Down { from: egress.receiver(), by: self.socket.sender(), to: train.source };
                    downs.spawn(down.run(down_batch.clone()));
                }
            }
            // All datagrams of a client leave together: with ten clients a fifth to a quarter faster than only those
            // that came in a row. A client's own order stays, since slots are in the order of arrival.
            order.sort_unstable();
            match self.direction {
                Direction::Up | Direction::Down => self.up(&batch, &order, &mut clients).await?,
                Direction::Across => across(&batch, &order, &clients, &mut sender).await?,
            }
        }
    }

    fn egress(&self) -> io::Result<UdpSocket> {
        let any = if self.peer.is_ipv4() { SocketAddr::from(([0; 4], 0)) } else { SocketAddr::from(([0; 16], 0)) };
        let local = if self.peer.ip().is_loopback() { SocketAddr::new(self.peer.ip(), 0) } else { any };
        UdpSocket::builder().receive_buffer(RECEIVE_BUFFER).bind(local)
    }

    async fn up(&self, batch: &RecvBatch, order: &[(usize, usize)], clients: &mut Clients) -> io::Result<()> {
        let (mut run, mut client) = (Run::new(), 0);
        for &(number, slot) in order {
            let Some(train) = batch.gro_batch(slot) else { continue };
            for datagram in train.payloads() {
                let Some(data) = datagram.get(CHANNEL_HEADER_LEN..) else { continue };
                if number != client || !run.shape.can_append(data.len()) {
                    run.flush(&mut clients.egress[client], self.peer).await?;
                    client = number;
                }
                run.shape.append(data.len());
                run.slices.push(IoSlice::new(data));
            }
        }
        match clients.egress.get_mut(client) {
            Some(egress) => run.flush(egress, self.peer).await,
            None => Ok(()),
        }
    }
}

async fn across(batch: &RecvBatch, order: &[(usize, usize)], clients: &Clients, by: &mut Sender) -> io::Result<()> {
    let (mut run, mut to) = (Run::new(), None);
    for &(number, slot) in order {
        let (Some(train), partner) = (batch.gro_batch(slot), clients.addrs.get(number ^ 1).copied()) else { continue };
        let Some(partner) = partner else { continue };
        if to != Some(partner) || !run.append(&train) {
            if let Some(to) = to.replace(partner) {
                run.flush(by, to).await?;
            }
            if !run.append(&train) {
                // A GRO batch of IPv6 may have 20 bytes more than a batch of either family.
                let slices = [IoSlice::new(train.payload)];
                by.send(&mut Transmit::new(partner, &slices).segment_size(train.segment_size)).await?;
            }
        }
    }
    match to {
        Some(to) => run.flush(by, to).await,
        None => Ok(()),
    }
}

/// The way down of one client.
struct Down {
    from: Receiver,
    by: Sender,
    to: SocketAddr,
}

impl Down {
    /// All tasks receive into one batch, since none keeps it.
    async fn run(mut self, batch: Arc<Mutex<RecvBatch>>) -> io::Result<()> {
        poll_fn(|cx| {
            let mut batch = batch.lock().unwrap_or_else(PoisonError::into_inner);
            loop {
                ready!(self.from.poll_recv(cx, &mut batch))?;
                self.forward(cx, &batch)?;
            }
        })
        .await
    }

    fn forward(&mut self, cx: &mut Context<'_>, batch: &RecvBatch) -> io::Result<()> {
        let mut data = batch.gro_batches().flat_map(|train| train.payloads()).peekable();
        let mut slices = Vec::with_capacity(2 * MAX_SEGMENTS);
        while let Some(first) = data.next() {
            let Ok(len) = u16::try_from(first.len()) else { continue };
            let (header, size) = (ChannelData::header(CHANNEL, len), CHANNEL_HEADER_LEN + first.len());
            let mut shape = Shape::default();
            shape.append(size);
            slices.extend([IoSlice::new(&header), IoSlice::new(first)]);
            // All datagrams have the same header.
            while let Some(next) = data.next_if(|next| next.len() == first.len() && shape.can_append(size)) {
                shape.append(size);
                slices.extend([IoSlice::new(&header), IoSlice::new(next)]);
            }
            // A datagram without room is dropped with the transmit: this forwarder has no queue.
            if let Poll::Ready(result) = self.by.poll_send(cx, &mut Transmit::new(self.to, &slices).segment_size(size))
            {
                result?;
            }
            slices = Vec::with_capacity(2 * MAX_SEGMENTS);
        }
        Ok(())
    }
}

impl<'a> Run<'a> {
    fn new() -> Self {
        Self { slices: Vec::with_capacity(MAX_SEGMENTS), shape: Shape::default() }
    }

    /// Adds a received batch if all of its datagrams may follow. Returns whether they may.
    #[inline]
    fn append(&mut self, train: &GroBatch<'a>) -> bool {
        let mut shape = self.shape;
        for len in train.payloads().map(<[u8]>::len) {
            if !shape.can_append(len) {
                return false;
            }
            shape.append(len);
        }
        self.shape = shape;
        self.slices.push(IoSlice::new(train.payload));
        true
    }

    async fn flush(&mut self, by: &mut Sender, to: SocketAddr) -> io::Result<()> {
        if !self.shape.is_empty() {
            by.send(&mut Transmit::new(to, &self.slices).segment_size(self.shape.segment_size())).await?;
            self.slices.clear();
            self.shape = Shape::default();
        }
        Ok(())
    }
}

impl Clients {
    /// Returns the number of a client, and whether the client is new.
    #[inline]
    fn number(&mut self, client: SocketAddr) -> (usize, bool) {
        if let Some((last, number)) = self.last
            && last == client
        {
            return (number, false);
        }
        let new = self.addrs.len();
        let number = *self.numbers.entry(client).or_insert(new);
        if number == new {
            self.addrs.push(client);
        }
        self.last = Some((client, number));
        (number, number == new)
    }
}
