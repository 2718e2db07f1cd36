//! One thread of the relay: its share of the clients, their sockets, and the way of a datagram between them.

use std::{
    cell::RefCell,
    collections::HashMap,
    future::poll_fn,
    io::{self, IoSlice},
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use arrayvec::ArrayVec;
use backwater_stun::{AddressFamily, Icmp};
use backwater_turn::{
    Families, FiveTuple, Now, PeerAddr, PerFamily, RelayedAddr,
    server::{self, Action, AllocationId, Bind, DropReason, Framing, HandoverRequest, MAX_REPLY, Server},
};
use backwater_udp::{
    IcmpError, IcmpKind, RecvBatch, Transmit, UdpSocket, UdpSocketBuilder,
    gso::{Batch, MAX_SEGMENTS},
};
use tokio::task::{AbortHandle, spawn_local};
use tracing::{error, warn};

use crate::{
    counters::Counters,
    endpoint::Endpoint,
    fields::Fields,
    health::Health,
    ingress::{
        ClientLink, Down,
        stream::Streams,
        udp::{DownBatch, Listeners, MAX_CHANNEL_DATA},
    },
    ports::{self, Bound, Lease, Ports, Sockets},
    runs::{Run, Runs, Source},
};

pub(crate) mod lines;
mod lookup;
pub(crate) mod mobility;
pub(crate) mod sessions;

use lines::Lines;
use mobility::Mailbox;

/// Trains that one system call receives.
const BATCH: usize = 32;

/// Batches that a task receives before it lets the others run.
const BUDGET: usize = 8;

/// The longest the thread sleeps before it looks for what has expired.
const TICK: Duration = Duration::from_secs(10);

/// The state of a thread. Of it, only the ports, the counters, the quotas and the limit of replies are shared with others.
pub(crate) struct Worker {
    pub(crate) server: RefCell<Server>,
    pub(crate) listeners: Listeners,
    /// By the index of the allocation.
    relayed: RefCell<Vec<Option<Relayed>>>,
    /// The ports of the allocations, which other clients of this thread reach without a socket in between.
    by_port: RefCell<PerFamily<HashMap<u16, AllocationId>>>,
    batch: RefCell<RecvBatch>,
    pub(crate) runs: RefCell<Runs>,
    /// Where trains to clients are put together.
    pub(crate) down: RefCell<DownBatch>,
    /// How relayed sockets are made.
    builder: UdpSocketBuilder,
    ports: Arc<Ports>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) number: usize,
    /// Of all threads, by their number.
    mailboxes: Vec<Mailbox>,
    pub(crate) health: Health,
    pub(crate) lines: Lines,
    pub(crate) waiting: lookup::Waiting,
    pub(crate) streams: Streams,
}

/// The sockets of an allocation.
struct Relayed {
    id: AllocationId,
    /// Where its client is reached.
    link: ClientLink,
    sockets: PerFamily<Option<Socket>>,
}

struct Socket {
    relayed: RelayedAddr,
    endpoint: Rc<Endpoint>,
    task: AbortHandle,
}

impl Worker {
    pub(crate) fn new(
        server: Server,
        (listeners, streams): (Vec<UdpSocket>, Streams),
        builder: UdpSocketBuilder,
        ports: Arc<Ports>,
        (counters, lines): (Arc<Counters>, Lines),
        (number, mailboxes): (usize, Vec<Mailbox>),
        health: Health,
    ) -> Self {
        Self {
            server: RefCell::new(server),
            listeners: Listeners::new(listeners),
            relayed: RefCell::default(),
            by_port: RefCell::default(),
            batch: RefCell::new(RecvBatch::new(BATCH)),
            runs: RefCell::default(),
            down: RefCell::new(Batch::new(MAX_CHANNEL_DATA)),
            builder,
            ports,
            counters,
            number,
            mailboxes,
            health,
            lines,
            waiting: lookup::Waiting::default(),
            streams,
        }
    }

    /// Starts the tasks of the listeners and the timer, in the current `LocalSet`.
    pub(crate) fn start(self: &Rc<Self>) {
        (0..self.listeners.iter().count()).for_each(|index| self.start_listener(index));
        let worker = self.clone();
        spawn_local(async move {
            let _guard = worker.health.guard();
            loop {
                let limit = Instant::now() + TICK;
                let at = worker.server.borrow().poll_timeout().map_or(limit, |at| at.min(limit));
                tokio::time::sleep_until(at.into()).await;
                worker.expire(Instant::now());
            }
        });
    }

    fn start_listener(self: &Rc<Self>, index: usize) {
        let worker = self.clone();
        spawn_local(async move {
            let _guard = worker.health.guard();
            let Some(listener) = worker.listeners.get(index) else { return };
            let handle = |batch: &RecvBatch| worker.clients_sent(index, batch);
            poll_fn(|cx| worker.poll_socket(cx, &listener.endpoint, handle)).await;
            // Clients of a deaf listener would wait for ever.
            worker.health.fail();
        });
    }

    /// Serves clients of one more listener, in the current `LocalSet`.
    pub(crate) fn add_listener(self: &Rc<Self>, socket: UdpSocket) {
        if let Some(index) = self.listeners.add(socket) {
            self.start_listener(index);
        }
    }

    /// New clients are turned away from here on.
    pub(crate) fn refuse_new(&self) {
        self.server.borrow_mut().refuse_new();
    }

    /// How many allocations there are.
    pub(crate) fn allocations(&self) -> usize {
        self.server.borrow().allocations()
    }

    /// Whether nothing is held back by any socket.
    pub(crate) fn is_flushed(&self) -> bool {
        self.listeners.iter().all(|l| l.endpoint.is_idle())
            && self.streams.are_idle()
            && self.relayed.borrow().iter().flatten().flat_map(Relayed::sockets).all(|s| s.endpoint.is_idle())
    }

    /// Sends what the socket holds back and handles what has arrived at it, within a budget. Ready when the socket has failed;
    /// other sockets are closed by ending their task.
    fn poll_socket(&self, cx: &mut Context<'_>, endpoint: &Endpoint, handle: impl Fn(&RecvBatch)) -> Poll<()> {
        if let Poll::Ready(Err(error)) = endpoint.poll_flush(cx) {
            warn!(%error, socket = %endpoint.socket.local_addr(), "a send failed");
        }
        let (mut batch, mut receiver) = (self.batch.borrow_mut(), endpoint.receiver.borrow_mut());
        for _ in 0..BUDGET {
            match receiver.poll_recv(cx, &mut batch) {
                Poll::Ready(Ok(())) => handle(&batch),
                Poll::Ready(Err(error)) => {
                    // Nothing that a network sends gets here.
                    self.counters.receive_errors.add(1);
                    error!(%error, socket = %endpoint.socket.local_addr(), "a socket has failed and receives nothing more");
                    return Poll::Ready(());
                }
                Poll::Pending => return Poll::Pending,
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Sends the runs of what a client has sent to their peers.
    pub(crate) fn forward(&self, now: Instant, runs: &Runs, source: Source<'_>) {
        let relayed = self.relayed.borrow();
        for run in runs.iter() {
            let family = AddressFamily::of(&run.to.0);
            let via = relayed.get(run.via.index()).and_then(Option::as_ref);
            let Some((via, socket)) = via.and_then(|via| Some((via, via.socket(run.via, family)?))) else {
                self.counters.count_drop(DropReason::NoAllocation, run.shape.datagrams());
                continue;
            };
            self.counters.to_peers.add(run.shape.datagrams() as u64);
            self.counters.add_bytes_to_peers(via.link.protocol(), run.shape.bytes());
            match self.inside(run.to) {
                Some(id) => {
                    self.counters.inside.add(run.shape.datagrams() as u64);
                    let link = relayed.get(id.index()).and_then(|r| Some(r.as_ref()?.link));
                    let Some(mut down) = link.and_then(|link| self.down(link, now)) else {
                        continue;
                    };
                    let peer = PeerAddr(socket.relayed.0);
                    let payloads = runs.payloads(run, source);
                    self.deliver(&mut down, id, peer, run.fields, run.shape.datagrams(), run.shape.bytes(), payloads);
                    down.flush();
                }
                // An allocation of another thread is reached on this host: a NAT outside need not send anything back.
                None => {
                    let to = self.ports.local(run.to).unwrap_or(run.to.0);
                    // A send that fails reads the socket's errors; nothing wakes the socket's task for them then.
                    if !send_run(&socket.endpoint, to, source, runs, run) {
                        self.network_said(via.link, run.via, &socket.endpoint.socket);
                    }
                }
            }
        }
    }

    /// The allocation of this thread that a peer's address belongs to.
    #[inline]
    fn inside(&self, peer: PeerAddr) -> Option<AllocationId> {
        let port = self.ports.own_port(peer)?;
        self.by_port.borrow().get(AddressFamily::of(&peer.0)).get(&port).copied()
    }

    /// Everything but forwarding.
    pub(crate) fn act(
        self: &Rc<Self>,
        link: ClientLink,
        now: Instant,
        from: FiveTuple,
        action: Action,
        reply: &mut [u8],
    ) {
        match action {
            Action::Reply(len) => self.reply(link, from, reply.get(..len)),
            Action::Drop(reason) => {
                self.counters.count_drop(reason, 1);
                self.log_limited(now, from.client, reason);
            }
            Action::Bind(bind) => {
                let action = self.bind(link, now, bind, reply);
                self.act(link, now, from, action, reply);
            }
            Action::Unbind(id, families, len) => {
                self.close(id, families);
                self.reply(link, from, reply.get(..len));
            }
            Action::Forbid(len, peer, why) => {
                self.counters.forbidden.add(1);
                self.log_refusal(now, from.client, peer, &why);
                self.reply(link, from, reply.get(..len));
            }
            Action::OverQuota(len, refusal) => {
                self.counters.count_over_quota(refusal.reason);
                self.log_over_quota(now, from.client, &refusal);
                self.reply(link, from, reply.get(..len));
            }
            Action::Unauthenticated(failure) => {
                self.counters.count_auth_failure(failure.reason);
                self.log_failure(now, from.client, &failure);
                self.reply(link, from, failure.reply.and_then(|len| reply.get(..len)));
            }
            Action::Handover(request) => self.ask(link, request),
            // `bind` answers with a reply or a drop, and forwarding is done by the caller.
            Action::Forward { .. } => {}
        }
    }

    fn bind(self: &Rc<Self>, link: ClientLink, now: Instant, bind: Bind, reply: &mut [u8]) -> Action {
        let mut server = self.server.borrow_mut();
        match self.ports.bind(&self.builder, bind.families, bind.port, now) {
            Ok(Sockets { sockets, token }) => {
                let addr = |bound: &Option<Bound>| bound.as_ref().map(|bound| bound.relayed);
                let relayed = PerFamily { v4: addr(&sockets.v4), v6: addr(&sockets.v6) };
                let action = server.bound(now, bind.id, server::Bound { relayed, token }, reply);
                if let Action::Reply(_) = action {
                    self.counters.allocations.add(1);
                    for Bound { socket, lease, .. } in sockets.v4.into_iter().chain(sockets.v6) {
                        self.open(link, bind.id, socket, lease);
                    }
                }
                action
            }
            Err(error) => {
                self.counters.bind_failed.add(1);
                if let Some(remedy) = ports::remedy(&error)
                    && self.lines.no_port.allows(now)
                {
                    warn!(%error, remedy, "no relayed port: an Allocate request is answered with 508");
                }
                server.bound(now, bind.id, server::Bound::default(), reply)
            }
        }
    }

    fn open(self: &Rc<Self>, link: ClientLink, id: AllocationId, socket: UdpSocket, lease: Lease) {
        let Some(addr) = self.ports.relayed(&lease) else { return };
        let family = AddressFamily::of(&addr.0);
        self.by_port.borrow_mut().get_mut(family).insert(addr.0.port(), id);
        let endpoint = Rc::new(Endpoint::relayed(socket, lease));
        let worker = self.clone();
        // The table alone keeps the socket, so that it is closed at the moment the allocation is gone.
        let task = spawn_local(async move {
            // Not around the task, which would have its size twice: there is one for each relayed socket.
            let _guard = worker.health.guard();
            let handle = |batch: &RecvBatch| worker.peers_sent(link, id, batch);
            poll_fn(|cx| match worker.endpoint(id, family) {
                Some(endpoint) => {
                    let poll = worker.poll_socket(cx, &endpoint, handle);
                    worker.network_said(link, id, &endpoint.socket);
                    if endpoint.is_idle() {
                        worker.link_has_room(link);
                    }
                    poll
                }
                None => Poll::Ready(()),
            })
            .await;
        });
        let task = task.abort_handle();
        let mut relayed = self.relayed.borrow_mut();
        if relayed.len() <= id.index() {
            relayed.resize_with(id.index() + 1, || None);
        }
        if let Some(place) = relayed.get_mut(id.index()) {
            let relayed = place.take().filter(|relayed| relayed.id == id);
            let mut relayed = relayed.unwrap_or_else(|| Relayed { id, link, sockets: PerFamily::default() });
            *relayed.sockets.get_mut(family) = Some(Socket { relayed: addr, endpoint, task });
            *place = Some(relayed);
            self.link_allocated(link, id);
        }
    }

    fn endpoint(&self, id: AllocationId, family: AddressFamily) -> Option<Rc<Endpoint>> {
        let relayed = self.relayed.borrow();
        relayed.get(id.index())?.as_ref()?.socket(id, family).map(|socket| socket.endpoint.clone())
    }

    /// Whether the sockets of an allocation hold nothing.
    pub(crate) fn is_allocation_idle(&self, id: AllocationId) -> bool {
        let relayed = self.relayed.borrow();
        let relayed = relayed.get(id.index()).and_then(Option::as_ref).filter(|relayed| relayed.id == id);
        relayed.is_none_or(|relayed| relayed.sockets().all(|socket| socket.endpoint.is_idle()))
    }

    pub(crate) fn close(&self, id: AllocationId, families: Families) {
        let mut relayed = self.relayed.borrow_mut();
        let Some(place) = relayed.get_mut(id.index()) else { return };
        let Some(relayed) = place.as_mut().filter(|relayed| relayed.id == id) else { return };
        for family in families.iter() {
            if let Some(socket) = relayed.sockets.get_mut(family).take() {
                self.by_port.borrow_mut().get_mut(family).remove(&socket.relayed.0.port());
                socket.task.abort();
            }
        }
        if relayed.sockets().next().is_none() {
            let link = relayed.link;
            *place = None;
            self.counters.closed.add(1);
            self.link_released(link, id);
        }
    }

    fn expire(&self, now: Instant) {
        loop {
            let Some((id, families)) = self.server.borrow_mut().expire(now) else { break };
            self.close(id, families);
        }
        self.log_events();
        self.ports.expire(now);
    }

    /// The way down: what peers have sent to an allocation's socket.
    fn peers_sent(&self, link: ClientLink, id: AllocationId, batch: &RecvBatch) {
        let Some(mut down) = self.down(link, Instant::now()) else { return };
        for train in batch.gro_batches() {
            let (datagrams, bytes) = (train.datagram_count(), train.payload.len());
            let Some(fields) = Fields::relayed(&train) else {
                self.counters.count_drop(DropReason::HopLimit, datagrams);
                continue;
            };
            let peer = self.ports.advertised(train.source);
            self.deliver(&mut down, id, peer, fields, datagrams, bytes, train.payloads());
        }
        down.flush();
    }

    /// Datagrams of a peer's, which share all but their payloads, to the client of an allocation.
    #[allow(clippy::too_many_arguments, reason = "a train in its parts")]
    fn deliver<'p>(
        &self,
        down: &mut Down<'_>,
        id: AllocationId,
        peer: PeerAddr,
        fields: Fields,
        datagrams: usize,
        bytes: usize,
        payloads: impl Iterator<Item = &'p [u8]>,
    ) {
        let mut server = self.server.borrow_mut();
        let (client, framing) = match server.handle_peer(down.now, id, peer, bytes) {
            Ok(way) => way,
            Err(reason) => return self.counters.count_drop(reason, datagrams),
        };
        self.counters.to_clients.add(datagrams as u64);
        self.counters.add_bytes_to_clients(client.protocol, bytes);
        match framing {
            Framing::Channel(channel) => down.channel_data(client, fields, channel, payloads),
            Framing::Indication => {
                for payload in payloads {
                    match server.data_indication(peer, payload.len()) {
                        Ok(prefix) => {
                            let parts = [prefix.as_bytes(), payload, prefix.padding()].map(IoSlice::new);
                            down.message(client, fields, &parts);
                        }
                        Err(reason) => self.counters.count_drop(reason, 1),
                    }
                }
            }
        }
    }

    /// What the network has said about datagrams to peers. As many as the socket keeps, at the most.
    fn network_said(&self, link: ClientLink, id: AllocationId, socket: &UdpSocket) {
        while let Some(error) = socket.next_icmp_error() {
            let now = Instant::now();
            let Some(mut down) = self.down(link, now) else { return };
            let Some(icmp) = icmp(&error) else { continue };
            let (mut reply, peer) = ([0; MAX_REPLY], self.ports.advertised(error.destination));
            let told = self.server.borrow_mut().icmp_indication(now, id, peer, icmp, &mut reply);
            match told {
                Ok((client, len)) => {
                    self.counters.icmp.add(1);
                    down.message(client, Fields::OWN, &[IoSlice::new(&reply[..len])]);
                    down.flush();
                }
                Err(reason) => self.counters.count_drop(reason, 1),
            }
        }
    }
}

impl Relayed {
    fn socket(&self, id: AllocationId, family: AddressFamily) -> Option<&Socket> {
        if self.id == id { self.sockets.get(family).as_ref() } else { None }
    }

    fn sockets(&self) -> impl Iterator<Item = &Socket> {
        self.sockets.v4.iter().chain(&self.sockets.v6)
    }
}

fn icmp(error: &IcmpError) -> Option<Icmp> {
    match (error.kind, error.destination.is_ipv4()) {
        (IcmpKind::Unreachable { icmp_type, code }, _) => Some(Icmp { icmp_type, code: code.into(), data: 0 }),
        // This host's own EMSGSIZE is the first hop's "too big".
        (IcmpKind::PacketTooBig { mtu } | IcmpKind::LocalMtu { mtu }, true) => {
            Some(Icmp { icmp_type: 3, code: 4, data: mtu })
        }
        (IcmpKind::PacketTooBig { mtu } | IcmpKind::LocalMtu { mtu }, false) => {
            Some(Icmp { icmp_type: 2, code: 0, data: mtu })
        }
        _ => None,
    }
}

/// Returns whether the system found nothing wrong with the run.
fn send_run(endpoint: &Endpoint, to: SocketAddr, source: Source<'_>, runs: &Runs, run: &Run) -> bool {
    let slices: ArrayVec<_, MAX_SEGMENTS> = runs.payloads(run, source).take(MAX_SEGMENTS).map(IoSlice::new).collect();
    endpoint.send(run.fields, Transmit::new(to, &slices).segment_size(run.shape.segment_size()))
}

pub(crate) fn now() -> Now {
    // A clock before 1970 counts as 1970.
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Now { instant: Instant::now(), unix }
}
