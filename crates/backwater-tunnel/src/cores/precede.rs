//! A loop that goes before other programs.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use rustix::process::{getpriority_process, setpriority_process};
use tracing::{debug, info};

use super::{Left, Lender, Next, Taken, awake::Awake, load, seek::Seeker};

/// What the kernel's own workers for the network have is −20 (`WQ_HIGHPRI`); these shall go first.
const NICE: i32 = -15;

/// Up to which niceness, if somebody has chosen one, it is before others.
const BEFORE_OTHERS: i32 = -5;

/// From so many packets in so long on, the loop pauses when the device is empty.
const MANY: u128 = 64;
const WINDOW: Duration = Duration::from_millis(1);

/// The kernel adds its slack of 50 µs (`timer_slack_ns`). In both together whoever sends without limit, on the same core, makes
/// some 150 packets. They arrive as trains; who delivers lends the core after each, or the buffer of the socket that they are for
/// (`rmem_default`: 92 full datagrams) would not hold them.
const PAUSE: Duration = Duration::from_micros(90);

/// Whether this thread goes before others: by its niceness, which is lowered if nobody has chosen one and the system permits it.
/// Threads that it starts have it too.
pub(super) fn claim() -> bool {
    // There others would hardly run.
    if load::cores() == Some(1) {
        return false;
    }
    match getpriority_process(None) {
        Ok(0) => {}
        chosen => return chosen.is_ok_and(|nice| nice <= BEFORE_OTHERS),
    }
    if let Err(error) = setpriority_process(None, NICE) {
        info!(%error, "no permission to go before other programs (CAP_SYS_NICE, or Nice= in its unit)");
        return false;
    }
    // The kernel may weigh sessions against each other first (`sched_autogroup_enabled`). This one is its own if it leads it.
    if fs::read_to_string("/proc/self/stat").is_ok_and(|stat| leads_its_session(&stat))
        && let Err(error) = fs::write("/proc/self/autogroup", NICE.to_string())
    {
        debug!(%error, "the session's priority stays");
    }
    true
}

/// What `/proc/PID/stat` says of it. `getsid` is 0 in a container whose session is outside, which rustix has no type for.
fn leads_its_session(stat: &str) -> bool {
    let id = stat.split_whitespace().next();
    // Behind the name, in which there may be anything: state, parent, group, session.
    let session = stat.rsplit_once(')').and_then(|(_, fields)| fields.split_whitespace().nth(3));
    id.is_some() && id == session
}

/// Takes packets in trains although it could take each as it comes.
///
/// Who goes first would, on the same core as the sender, be woken by every packet and send trains of one. So it pauses when it has
/// emptied the device, as an interrupt is moderated.
///
/// On a core of its own it would, when cores are scarce, leave the sender one that makes packets only to be dropped, and crowd the
/// other end and the receiver on the rest. On the sender's core the sender waits whenever the loop runs: it is held back, and what
/// it sends arrives. Between a train and the pause the loop looks whether packets came meanwhile: from a program there none can have.
pub(crate) struct Preceding {
    window: Window,
    /// The last turn left the device empty.
    emptied: bool,
    /// The last turn did not.
    had_more: bool,
    seeker: Seeker,
    lender: Lender,
    awake: Awake,
}

/// Whether there are many packets.
struct Window {
    since: Instant,
    packets: usize,
    many: bool,
}

impl Preceding {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            window: Window { since: now, packets: 0, many: false },
            emptied: false,
            had_more: false,
            seeker: Seeker::new(),
            lender: Lender::new(now),
            awake: Awake::new(now),
        }
    }

    pub(super) fn after(&mut self, now: Instant, Taken { packets, left }: Taken) -> Next {
        let many = self.window.add(now, packets);
        let (emptied, had_more) = (self.emptied, self.had_more);
        self.emptied = many && left == Left::Nothing && packets > 0;
        self.had_more = many && left == Left::More && packets > 0;
        if emptied && (packets > 0 || left == Left::Nothing) {
            self.seeker.looked(now, packets > 0);
        } else if had_more && self.had_more {
            self.seeker.flooded(now);
        }
        match left {
            Left::More => Next::Again,
            Left::Nothing if self.emptied => Next::Again,
            Left::Nothing if emptied => Next::Pause,
            Left::Nothing | Left::NoRoom => Next::Wait,
        }
    }

    /// A long train was delivered in the turn that began then. The program that it is for may be waiting for the core.
    pub(super) fn delivered(&mut self, began: Instant) {
        self.lender.lend();
        self.awake.train(began, Instant::now());
    }

    /// There is nothing to do. Whether the loop looks again at once; others could run meanwhile.
    pub(super) fn stay_awake(&mut self, now: Instant) -> bool {
        self.awake.stay(now)
    }

    pub(super) fn pause() {
        thread::sleep(PAUSE);
    }
}

impl Window {
    fn add(&mut self, now: Instant, packets: usize) -> bool {
        self.packets += packets;
        let passed = now.saturating_duration_since(self.since);
        if passed >= WINDOW {
            self.many = self.packets as u128 * WINDOW.as_nanos() >= MANY * passed.as_nanos();
            (self.since, self.packets) = (now, 0);
        }
        self.many
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Turns every 100 µs, all as given; what comes next after some time.
    fn settled(turns: &[(usize, Left)]) -> Vec<Next> {
        let mut now = Instant::now();
        let mut preceding = Preceding { seeker: Seeker::that_stays(), ..Preceding::new(now) };
        let mut next = Vec::new();
        for _ in 0..40 {
            next.clear();
            for &(packets, left) in turns {
                now += Duration::from_micros(100);
                next.push(preceding.after(now, Taken { packets, left }));
            }
        }
        next
    }

    #[test]
    fn it_pauses_when_many_packets_came_and_the_device_stays_empty() {
        use {Left::*, Next::*};
        assert_eq!(settled(&[(45, More), (20, Nothing), (0, Nothing)]), [Again, Again, Pause]);
        // After the pause there may be nothing: then it waits.
        assert_eq!(settled(&[(60, Nothing), (0, Nothing), (0, Nothing)]), [Again, Pause, Wait]);
        // Packets that come meanwhile are taken first.
        assert_eq!(settled(&[(20, Nothing), (5, Nothing), (0, Nothing)]), [Again, Again, Pause]);
    }

    #[test]
    fn few_packets_and_a_path_that_is_taken_do_not_make_it_pause() {
        use {Left::*, Next::*};
        assert_eq!(settled(&[(1, Nothing), (0, Nothing)]), [Wait, Wait]);
        assert_eq!(settled(&[(5, More), (5, Nothing), (0, Nothing)]), [Again, Wait, Wait]);
        assert_eq!(settled(&[(45, NoRoom), (0, NoRoom)]), [Wait, Wait]);
        // Few are few also after an hour without any.
        let begin = Instant::now();
        let mut window = Window { since: begin, packets: 0, many: false };
        assert!(!window.add(begin + Duration::from_secs(3600), 64));
        assert!(window.add(begin + Duration::from_secs(3600) + WINDOW, 64));
    }

    #[test]
    fn after_a_long_train_it_stays_awake() {
        let now = Instant::now();
        let mut preceding = Preceding { awake: Awake::that_sees_too_much(now), ..Preceding::new(now) };
        assert!(!preceding.stay_awake(now));
        preceding.delivered(now);
        assert!(preceding.stay_awake(now));
        assert!(!preceding.stay_awake(now + Duration::from_secs(1)));
    }

    #[test]
    fn who_leads_a_session() {
        assert!(leads_its_session("4711 (a) b) S 1 4711 4711 34816 4711 4194304 120 0"));
        assert!(!leads_its_session("4712 (4712) S 4711 4712 4711 34816 4711 4194304 120 0"));
        assert!(!leads_its_session("2 (up) S 1 0 0 0 -1 4194304 120 0"));
        assert!(!leads_its_session(""));
    }

    #[test]
    fn a_chosen_priority_is_left_alone() {
        // Niceness is each thread's own.
        let claimed = |nice| {
            let claim = move || {
                setpriority_process(None, nice).ok()?;
                Some((claim(), getpriority_process(None).unwrap()))
            };
            thread::spawn(claim).join().unwrap()
        };
        let one_core = load::cores() == Some(1);
        assert_eq!(claimed(19), Some((false, 19)));
        // Who may not choose them is not asked.
        for nice in [-1, -10] {
            assert!(claimed(nice).is_none_or(|claimed| claimed == (nice < BEFORE_OTHERS && !one_core, nice)), "{nice}");
        }
        let permitted = thread::spawn(|| setpriority_process(None, NICE).is_ok()).join().unwrap() && !one_core;
        let expected = if permitted { (true, NICE) } else { (false, 0) };
        // The program that runs the tests may have been given a niceness that cannot be left.
        assert!(claimed(0).is_none_or(|claimed| claimed == expected));
    }
}
