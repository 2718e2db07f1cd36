//! XNU's UDP output as schedules: a queue that a link empties at a packet a millisecond, and what happens to a flow that fills it. The
//! rows, and what each of them did to the loop on Apple's own code, are those of `docs/backpressure.md`.

use std::rc::Weak;

use super::*;
use crate::{send_queue::QueueBounds, wait::core::QueueCore};

/// How XNU holds a flow back, or fails to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    /// The flow is told, and refused until its own packets have left; then there is an edge.
    Advised,
    /// As before, but the feedback for two of three holds comes before the socket is marked: writable again, and no edge.
    Race,
    /// The class is told once, and never again: the flow stays refused although its packets have left.
    Sticky,
    /// Two of ten sends find another thread in the socket: `EWOULDBLOCK`, writable, no edge.
    Contention,
    /// The packet that fills the queue is queued, and refused.
    Queued,
    /// The oldest packets are dropped, with success.
    HeadDrop,
    /// As advised, and the link's state changes twice a second: the queue is thrown away, and the flow is told.
    Purge,
}

/// Packets that the queue takes before the flow is held back.
const LIMIT: usize = 100;

const LINK: Duration = Duration::from_millis(1);

struct Flow {
    how: How,
    /// When each of those that are queued leaves, and its number.
    queue: VecDeque<(Instant, u64)>,
    controlled: bool,
    /// Counts holds and sends.
    holds: u64,
    sends: u64,
    purged_at: Instant,
    left: Vec<u64>,
    lost_inside: u64,
    calls: u64,
    ready: bool,
    waker: Option<Waker>,
    naive: bool,
}

#[derive(Clone)]
struct Xnu {
    flow: Rc<RefCell<Flow>>,
    stats: Arc<Stats>,
    backpressure: Backpressure,
    contention: Rc<Contention>,
    connected: bool,
    /// Whether a busy destination gets a connected socket.
    promotes: bool,
}

impl Flow {
    /// What has happened by `now`.
    fn advance(&mut self, now: Instant) {
        while let Some(&(at, number)) = self.queue.front()
            && at <= now
        {
            self.queue.pop_front();
            self.left.push(number);
        }
        if self.how == How::Purge && now - self.purged_at >= Duration::from_millis(500) {
            self.purged_at = now;
            self.lost_inside += self.queue.len() as u64;
            self.queue.clear();
        }
        if self.controlled && self.queue.is_empty() && self.how != How::Sticky {
            self.controlled = false;
            self.edge();
        }
    }

    fn edge(&mut self) {
        self.ready = true;
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn push(&mut self, now: Instant, number: u64) {
        let last = self.queue.back().map_or(now, |&(at, _)| at.max(now));
        self.queue.push_back((last + LINK, number));
    }

    fn send(&mut self, now: Instant, number: u64, connected: bool) -> io::Result<()> {
        self.advance(now);
        self.calls += 1;
        self.sends += 1;
        // An unconnected socket is told nothing.
        let how = if connected { self.how } else { How::HeadDrop };
        let error = |errno| Err(io::Error::from_raw_os_error(errno));
        if how == How::Contention && self.sends % 10 >= 8 {
            return error(libc::EWOULDBLOCK);
        }
        if connected && self.controlled {
            return error(libc::ENOBUFS);
        }
        if self.queue.len() < LIMIT {
            self.push(now, number);
            return Ok(());
        }
        match how {
            How::HeadDrop => {
                self.queue.pop_front();
                self.lost_inside += 1;
                self.push(now, number);
                return Ok(());
            }
            How::Queued => self.push(now, number),
            How::Advised | How::Race | How::Sticky | How::Contention | How::Purge => {}
        }
        self.holds += 1;
        self.controlled = self.how != How::Race || self.holds.is_multiple_of(3);
        error(libc::ENOBUFS)
    }
}

impl Xnu {
    fn new(how: How, policy: Policy) -> Self {
        let flow = Flow {
            how,
            queue: VecDeque::new(),
            controlled: false,
            holds: 0,
            sends: 0,
            purged_at: Instant::now(),
            left: Vec::new(),
            lost_inside: 0,
            calls: 0,
            ready: true,
            waker: None,
            naive: false,
        };
        Self {
            flow: Rc::new(RefCell::new(flow)),
            stats: Arc::default(),
            backpressure: Backpressure::new(policy),
            contention: Rc::default(),
            connected: true,
            promotes: false,
        }
    }
}

/// Time passes in the kernel, too.
async fn time_passes(flow: Weak<RefCell<Flow>>) {
    while let Some(flow) = flow.upgrade() {
        flow.borrow_mut().advance(Instant::now());
        drop(flow);
        tokio::time::sleep(LINK).await;
    }
}

impl Io for Xnu {
    type Registration = ();

    fn os(&self) -> Os {
        Os::Apple
    }

    fn is_connected(&self) -> bool {
        self.connected
    }

    fn promotes(&self) -> bool {
        self.promotes
    }

    fn connected_beside(&self, _destination: SocketAddr, _source: Option<IpAddr>) -> io::Result<Self> {
        // Another socket is another flow.
        self.flow.borrow_mut().controlled = false;
        Ok(Self { connected: true, promotes: false, contention: Rc::default(), ..self.clone() })
    }

    fn limits(&self, _: &Transmit<'_>) -> (usize, usize) {
        (1, usize::MAX)
    }

    fn send(&self, out: &Outgoing<'_>) -> io::Result<()> {
        let number = u64::from_be_bytes(out.slices[0][..8].try_into().unwrap());
        self.flow.borrow_mut().send(Instant::now(), number, self.connected)
    }

    fn writable(&self) -> bool {
        let mut flow = self.flow.borrow_mut();
        flow.advance(Instant::now());
        !flow.controlled
    }

    fn icmp_errors(&self) -> u64 {
        0
    }

    fn drain_errors(&self, _destination: SocketAddr, _seen: u64) -> Drained {
        Drained::default()
    }

    fn segmentation_refused(&self, _: &SocketAddr, _: usize) {}

    fn register(&self) -> io::Result<()> {
        self.renew(&mut ())
    }

    fn renew(&self, _registration: &mut ()) -> io::Result<()> {
        let writable = self.writable();
        self.flow.borrow_mut().ready = writable;
        Ok(())
    }

    fn is_ready(&self, _registration: &()) -> bool {
        self.flow.borrow().ready
    }

    fn poll_write<R>(
        &self,
        _registration: &mut (),
        cx: &mut Context<'_>,
        attempt: impl FnOnce() -> io::Result<R>,
    ) -> Poll<io::Result<R>> {
        {
            let mut flow = self.flow.borrow_mut();
            if !flow.ready {
                flow.waker = Some(cx.waker().clone());
                return Poll::Pending;
            }
        }
        let result = attempt();
        if matches!(&result, Err(e) if e.kind() == io::ErrorKind::WouldBlock) {
            self.flow.borrow_mut().ready = false;
        }
        Poll::Ready(result)
    }

    fn stats(&self) -> &Arc<Stats> {
        &self.stats
    }

    fn backpressure(&self) -> &Backpressure {
        &self.backpressure
    }

    fn contention(&self) -> &Contention {
        &self.contention
    }

    fn decide(&self, refusal: &Refusal) -> Verdict {
        let is_naive = self.flow.borrow().naive && matches!(refusal.errno, Errno::NoBuffers | Errno::WouldBlock);
        if is_naive { Verdict::WhenReady } else { decide(refusal) }
    }

    fn schedule(&self, parked: &mut Parked, place: &mut Place) {
        if self.flow.borrow().naive {
            (parked.listening, place.yielding, place.at) = (true, false, parked.since + NEVER);
        }
    }
}

/// What a run came to.
#[derive(Debug)]
struct Run {
    offered: u64,
    sent: u64,
    dropped: u64,
    /// Of those that left: in order, and how often one left twice.
    in_order: bool,
    twice: u64,
    lost_inside: u64,
    calls: u64,
    longest: Duration,
    was_stuck: bool,
}

/// Offers two datagrams a millisecond, which is twice the link, each when the last has its end, for `seconds`.
fn overload(how: How, policy: Policy, seconds: u64) -> Run {
    runtime().block_on(async {
        let xnu = Xnu::new(how, policy);
        let mut core = SenderCore::new(xnu.clone());
        let (begin, mut longest, mut was_stuck) = (Instant::now(), Duration::ZERO, false);
        let sending = async {
            let mut number = 0u64;
            while begin.elapsed() < Duration::from_secs(seconds) {
                for _ in 0..2 {
                    let (bytes, since) = (number.to_be_bytes(), Instant::now());
                    let slices = [IoSlice::new(&bytes)];
                    let mut t = Transmit::new(TO, &slices);
                    poll_fn(|cx| core.poll_send_batch(cx, std::slice::from_mut(&mut t))).await.unwrap();
                    longest = longest.max(since.elapsed());
                    was_stuck |= core.core.is_stuck();
                    number += 1;
                }
                tokio::time::sleep(LINK).await;
            }
            number
        };
        let offered = tokio::select! {
            offered = sending => offered,
            () = time_passes(Rc::downgrade(&xnu.flow)) => 0,
        };
        let stats = xnu.stats.snapshot();
        assert_eq!((stats.accepted, stats.held), (offered, 0), "{how:?}");
        assert_eq!(stats.sent + stats.dropped_total(), offered, "{how:?}");
        let mut flow = xnu.flow.borrow_mut();
        flow.advance(Instant::now() + Duration::from_secs(60));
        let left = &flow.left;
        Run {
            offered,
            sent: stats.sent,
            dropped: stats.dropped_total(),
            in_order: left.is_sorted(),
            twice: left.windows(2).filter(|pair| pair[0] == pair[1]).count() as u64,
            lost_inside: flow.lost_inside,
            calls: flow.calls,
            longest,
            was_stuck,
        }
    })
}

fn wait(ms: u64) -> Policy {
    Policy::Wait { deadline: Duration::from_millis(ms) }
}

#[test]
fn a_flow_that_is_held_back_loses_nothing_whether_it_is_told_or_not() {
    for how in [How::Advised, How::Race, How::Contention] {
        let run = overload(how, wait(1000), 10);
        assert!(run.dropped == 0 && run.in_order && run.twice == 0 && !run.was_stuck, "{how:?}: {run:?}");
        // Told, it waits until its own packets have left; else it finds room soon.
        assert!(run.longest <= Duration::from_millis(110), "{how:?}: {run:?}");
        assert!(run.sent >= 9_000, "the link is kept busy: {how:?}: {run:?}");
        assert!(run.calls <= run.sent * 5 / 2, "{how:?}: {run:?}");
    }
}

#[test]
fn a_deadline_that_is_shorter_than_a_hold_costs_one_datagram_each_time() {
    let run = overload(How::Advised, wait(50), 10);
    assert!(run.in_order && run.dropped > 0 && run.dropped * 20 < run.offered, "{run:?}");
    let run = overload(How::Advised, Policy::Drop, 10);
    assert!(run.dropped * 4 > run.offered, "dropping loses what waiting does not: {run:?}");
}

#[test]
fn a_class_that_sticks_is_reported_whatever_the_policy() {
    for policy in [wait(100), wait(1000), Policy::Drop] {
        let run = overload(How::Sticky, policy, 40);
        assert!(run.was_stuck && run.sent < 200, "{run:?}");
    }
    assert!(!overload(How::Sticky, wait(100), 20).was_stuck, "a hold may last 20 s");
}

/// What a queue of an unconnected socket that offers twice the link for so many seconds comes to: datagrams offered, dropped and known,
/// and lost although the system has reported success.
fn queue_overload(how: How, promotes: bool, seconds: u64) -> [u64; 3] {
    runtime().block_on(async {
        let xnu = Xnu { connected: false, promotes, ..Xnu::new(how, wait(1000)) };
        let mut queue = QueueCore::new(xnu.clone(), QueueBounds::default());
        let (mut offered, began) = (0u64, Instant::now());
        let sending = async {
            while offered < seconds * 2_000 {
                for _ in 0..2 {
                    let bytes = offered.to_be_bytes();
                    queue.send(1u8, &mut Transmit::new(TO, &[IoSlice::new(&bytes)])).unwrap();
                    offered += 1;
                }
                let _ = tokio::time::timeout(LINK, poll_fn(|cx| queue.poll_flush(cx, &mut |_, _, _| {}))).await;
                tokio::time::sleep_until(began + LINK * (offered / 2) as u32).await;
            }
            poll_fn(|cx| queue.poll_flush(cx, &mut |_, _, _| {})).await.unwrap();
        };
        tokio::select! {
            () = sending => {}
            () = time_passes(Rc::downgrade(&xnu.flow)) => {}
        }
        let stats = xnu.stats.snapshot();
        assert_eq!((stats.accepted, stats.held, stats.sent + stats.dropped_total()), (offered, 0, offered), "{how:?}");
        let mut flow = xnu.flow.borrow_mut();
        flow.advance(Instant::now() + Duration::from_secs(60));
        assert!(flow.left.is_sorted(), "in order");
        assert_eq!(flow.left.len() as u64 + flow.lost_inside, stats.sent);
        [offered, stats.dropped_total(), flow.lost_inside]
    })
}

#[test]
fn a_busy_destination_of_a_queue_loses_nothing_unnoticed_once_it_has_a_connected_socket() {
    for how in [How::Advised, How::Race, How::Contention] {
        let [offered, dropped, lost] = queue_overload(how, false, 10);
        assert!(dropped == 0 && lost > offered / 3, "{how:?}: {lost} of {offered} are lost with success");
        let [offered, dropped, lost] = queue_overload(how, true, 10);
        assert_eq!(lost, 0, "{how:?}");
        assert!(
            dropped < offered * 11 / 20,
            "what the link cannot take is dropped and known: {how:?}, {dropped} of {offered}"
        );
    }
}

/// The queue gives such a flow up after 30 s, and the destination another one 10 s later: twice in 80 s.
#[test]
fn a_flow_of_a_queue_that_sticks_is_given_up_for_another() {
    let [offered, dropped, _] = queue_overload(How::Sticky, true, 80);
    let sent = offered - dropped;
    assert!((38_000..45_000).contains(&sent), "without a connected socket all is sent, 20 s long: {sent}");
}

/// What was refused may have been queued: it is sent again, and counted as that.
#[test]
fn what_is_queued_and_refused_leaves_twice_and_nothing_is_lost() {
    let run = overload(How::Queued, wait(1000), 10);
    assert!(run.twice > 0 && run.in_order && run.dropped == 0, "{run:?}");
}

/// Success is all that the kernel says: nobody can know.
#[test]
fn a_queue_that_drops_its_oldest_packets_is_not_seen() {
    let run = overload(How::HeadDrop, wait(1000), 5);
    assert!(run.dropped == 0 && run.lost_inside > run.offered / 4, "{run:?}");
}

#[test]
fn a_queue_that_is_thrown_away_releases_the_flow() {
    let run = overload(How::Purge, wait(1000), 10);
    assert!(run.dropped == 0 && run.lost_inside > 0 && run.longest <= Duration::from_millis(110), "{run:?}");
}

/// tokio's own pattern with `ENOBUFS` for `EWOULDBLOCK`: it works where there are edges, and hangs where there is none.
#[test]
fn the_naive_loop_hangs_where_no_edge_comes() {
    let hangs = |how| {
        runtime().block_on(async {
            let xnu = Xnu::new(how, Policy::Wait { deadline: NEVER });
            xnu.flow.borrow_mut().naive = true;
            let mut core = SenderCore::new(xnu.clone());
            let sending = async {
                for number in 0..2000u64 {
                    let bytes = number.to_be_bytes();
                    let slices = [IoSlice::new(&bytes)];
                    let mut t = Transmit::new(TO, &slices);
                    poll_fn(|cx| core.poll_send_batch(cx, std::slice::from_mut(&mut t))).await.unwrap();
                }
            };
            tokio::select! {
                ended = tokio::time::timeout(Duration::from_secs(60), sending) => ended.is_err(),
                () = time_passes(Rc::downgrade(&xnu.flow)) => false,
            }
        })
    };
    for how in [How::Advised, How::Purge, How::HeadDrop, How::Queued] {
        assert!(!hangs(how), "{how:?}");
    }
    for how in [How::Race, How::Sticky, How::Contention] {
        assert!(hangs(how), "{how:?}");
    }
}
