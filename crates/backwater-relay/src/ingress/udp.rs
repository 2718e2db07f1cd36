//! Clients that send datagrams.

use std::{
    cell::{OnceCell, RefMut},
    io::{self, IoSlice},
    net::SocketAddr,
    rc::Rc,
};

use backwater_stun::{CHANNEL_HEADER_LEN, ChannelData, ChannelNumber};
use backwater_turn::{
    ClientAddr, FiveTuple,
    server::{Action, DropReason, MAX_REPLY},
};
use backwater_udp::{GroBatch, RecvBatch, Transmit, UdpSocket, UdpSocketBuilder, gso::Batch};

use super::ClientLink;
use crate::{
    endpoint::Endpoint,
    fields::Fields,
    runs::{Place, Source},
    worker::{Worker, now},
};

/// What a listener holds for a thread that is late: enough for the bursts of many clients, and no more, since under
/// overload it is always full, and everyone waits for all of it.
const LISTENER_BUFFER: usize = 1 << 20;

/// Bytes of the longest ChannelData message.
pub(crate) const MAX_CHANNEL_DATA: usize = CHANNEL_HEADER_LEN + u16::MAX as usize;

/// ChannelData messages that leave in one call: their client, and their fields.
pub(crate) type DownBatch = Batch<(FiveTuple, Fields)>;

pub(crate) struct Listener {
    pub(crate) endpoint: Endpoint,
    /// A listener on the wildcard address has to answer from the address it was asked at.
    wildcard: bool,
}

/// Listeners that may be added while the relay runs.
pub(crate) const MAX_ADDED: usize = 64;

/// The listeners of a thread. Some may be added while it runs; none is taken away.
pub(crate) struct Listeners(Vec<OnceCell<Listener>>);

impl Listeners {
    pub(crate) fn new(sockets: Vec<UdpSocket>) -> Self {
        let places = sockets.into_iter().map(|socket| OnceCell::from(Listener::new(socket)));
        Self(places.chain(std::iter::repeat_with(OnceCell::new).take(MAX_ADDED)).collect())
    }

    #[inline]
    pub(crate) fn get(&self, index: usize) -> Option<&Listener> {
        self.0.get(index)?.get()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Listener> {
        self.0.iter().map_while(OnceCell::get)
    }

    /// Returns the number of the added listener; `None` if there is no place.
    pub(crate) fn add(&self, socket: UdpSocket) -> Option<usize> {
        let index = self.iter().count();
        self.0.get(index)?.set(Listener::new(socket)).ok()?;
        Some(index)
    }
}

/// Binds a listener.
pub(crate) fn listen(addr: SocketAddr, shared: bool, common: &UdpSocketBuilder) -> io::Result<UdpSocket> {
    common.clone().reuse_port(shared).receive_buffer(LISTENER_BUFFER).send_buffer(4 << 20).bind(addr)
}

impl Worker {
    /// The way up: what clients have sent to a listener.
    pub(crate) fn clients_sent(self: &Rc<Self>, index: usize, batch: &RecvBatch) {
        let Some(listener) = self.listeners.get(index) else { return };
        let now = now();
        let mut runs = self.runs.borrow_mut();
        runs.clear();
        let mut reply = [0; MAX_REPLY];
        for (slot, train) in batch.gro_batches().enumerate() {
            let from = listener.five_tuple(&train);
            let fields = Fields::relayed(&train);
            let (mut start, mut payloads) = (0, train.payloads());
            while let Some(payload) = payloads.next() {
                let action = self.server.borrow_mut().handle_client(now, from, payload, &mut reply);
                let mut alike = 0;
                match (action, fields) {
                    (Action::Forward { via, to, range, dont_fragment }, Some(fields)) => {
                        alike = self.server.borrow().passes_too(via, payload, payloads.clone());
                        let fields = if dont_fragment { fields.dont_fragment() } else { fields };
                        let place = Place::new(slot, start + range.start, range.len());
                        runs.push(via, to, fields, place, (1 + alike, payload.len()));
                    }
                    (Action::Forward { .. }, None) => self.counters.count_drop(DropReason::HopLimit, 1),
                    (Action::Drop(DropReason::Lookup), _) => {
                        self.handle_later(ClientLink::Udp(index), from, payload);
                    }
                    (action, _) => self.act(ClientLink::Udp(index), now.instant, from, action, &mut reply),
                }
                start += (1 + alike) * payload.len();
                payloads.by_ref().take(alike).for_each(drop);
            }
        }
        self.log_events();
        self.forward(now.instant, &runs, Source::Batch(batch));
    }

    pub(super) fn down_udp(&self, listener: usize) -> Option<Down<'_>> {
        Some(Down { listener: self.listeners.get(listener)?, batch: self.down.borrow_mut() })
    }

    pub(super) fn reply_udp(&self, listener: usize, to: FiveTuple, reply: &[u8]) {
        let Some(listener) = self.listeners.get(listener) else { return };
        let slices = [IoSlice::new(reply)];
        let t = listener.transmit(to, &slices, 0);
        // An answer to a client without an allocation is never held: its address may be forged, and unreachable. A real client sends
        // its request again.
        if self.server.borrow().has_allocation(to) {
            listener.endpoint.send(Fields::OWN, t);
        } else {
            listener.endpoint.send_or_drop(Fields::OWN, t);
        }
    }
}

impl Listener {
    pub(crate) fn new(socket: UdpSocket) -> Self {
        Self { wildcard: socket.local_addr().ip().is_unspecified(), endpoint: Endpoint::listener(socket) }
    }

    fn five_tuple(&self, train: &GroBatch<'_>) -> FiveTuple {
        let mut server = self.endpoint.socket.local_addr();
        if self.wildcard
            && let Some(ip) = train.local_ip
        {
            server.set_ip(ip);
        }
        FiveTuple::udp(ClientAddr(train.source), server)
    }

    fn send(&self, to: FiveTuple, slices: &[IoSlice<'_>], segment_size: usize, fields: Fields) {
        self.endpoint.send(fields, self.transmit(to, slices, segment_size));
    }

    fn transmit<'s>(&self, to: FiveTuple, slices: &'s [IoSlice<'s>], segment_size: usize) -> Transmit<'s> {
        let source = self.wildcard.then(|| to.server.ip());
        Transmit::new(to.client.0, slices).segment_size(segment_size).source(source)
    }
}

/// The way from peers to a listener's clients.
pub(crate) struct Down<'a> {
    listener: &'a Listener,
    batch: RefMut<'a, DownBatch>,
}

impl Down<'_> {
    pub(super) fn channel_data<'p>(
        &mut self,
        client: FiveTuple,
        fields: Fields,
        channel: ChannelNumber,
        payloads: impl Iterator<Item = &'p [u8]>,
    ) {
        if self.batch.common().is_some_and(|common| *common != (client, fields)) {
            self.flush();
        }
        for payload in payloads {
            let len = CHANNEL_HEADER_LEN + payload.len();
            if !self.batch.shape().can_append(len) {
                self.flush();
            }
            if let Some((header, rest)) = self.batch.reserve().split_first_chunk_mut()
                && let Some(place) = rest.get_mut(..payload.len())
            {
                // A UDP payload is shorter than 65,536 bytes.
                *header = ChannelData::header(channel, payload.len() as u16);
                place.copy_from_slice(payload);
                self.batch.commit((client, fields), len);
            }
        }
    }

    /// Sends a datagram behind what was added.
    pub(super) fn message(&mut self, client: FiveTuple, fields: Fields, parts: &[IoSlice<'_>]) {
        self.flush();
        self.listener.send(client, parts, 0, fields);
    }

    pub(super) fn flush(&mut self) {
        if let Some(&(client, fields)) = self.batch.common() {
            let slices = [IoSlice::new(self.batch.bytes())];
            self.listener.send(client, &slices, self.batch.shape().segment_size(), fields);
            self.batch.clear();
        }
    }
}
