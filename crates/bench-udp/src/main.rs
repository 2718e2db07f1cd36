//! backwater-udp against a loop of raw system calls, quinn-udp and tokio's own socket. `cargo xtask bench udp` calls
//! it, in a network namespace of its own.
//!
//! First everyone has to deliver the same bytes. Then rounds go through all loads, and in each through everyone, so
//! that a slow moment of the machine hits all alike. A cost is what the measured thread has run, by its own clock, for
//! each datagram; a ratio is the median of the ratios within the rounds, with its interval. The argument is the number
//! of rounds.

use std::{
    net::SocketAddr,
    process::ExitCode,
    rc::Rc,
    time::{Duration, Instant},
};

use socket2::Socket;
use tokio::runtime::{Builder, Runtime};

use crate::{
    net::Filler,
    ours::Ours,
    plain::Plain,
    quinn::Quinn,
    raw::Raw,
    report::Report,
    subject::{Change, HEADER, Job, Look, Subject},
};

mod full;
mod heap;
mod memory;
mod net;
mod ours;
mod plain;
mod quinn;
mod raw;
mod report;
#[path = "../../../xtask/src/bench/statistics.rs"]
mod statistics;
mod subject;

#[global_allocator]
static COUNTING: heap::Counting = heap::Counting;

/// Who is measured, in the order of [`subjects`].
const NAMES: [&str; 4] = ["raw", "quinn-udp", "tokio", "Backwater"];

/// Everyone comes first as often as the others, and after each of the others as often: what one leaves behind in the
/// kernel (tokio's single datagrams above all) is felt by the next.
const ORDERS: [[usize; 4]; 4] = [[0, 1, 3, 2], [1, 2, 0, 3], [2, 3, 1, 0], [3, 0, 2, 1]];

/// Destinations, where there are several.
const MANY: usize = 64;

/// A load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cell {
    work: Work,
    size: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    One,
    Many,
    Receive,
    Forward(Change),
}

const WORKS: [Work; 5] =
    [Work::One, Work::Many, Work::Receive, Work::Forward(Change::Strip), Work::Forward(Change::Insert)];
const SIZES: [usize; 2] = [100, 1200];

/// What came out of one sample.
#[derive(Clone, Copy, Debug, Default)]
struct Sample {
    cpu: Duration,
    wall: Duration,
    datagrams: usize,
    allocations: u64,
}

/// CPU time of a sample, of which a tenth goes before it to warm up.
const SAMPLE: Duration = Duration::from_millis(8);

/// No further round is begun that would end later.
const LONGEST: Duration = Duration::from_secs(210);

/// What the other ends are.
struct World {
    filler: Filler,
    /// Kept open: what is sent to a closed port comes back.
    _sinks: Vec<Socket>,
    addresses: Vec<SocketAddr>,
}

fn main() -> ExitCode {
    let rounds = match std::env::args().nth(1).map(|text| text.parse::<usize>()) {
        Some(Ok(rounds)) if rounds > 0 => rounds,
        _ => {
            eprintln!("usage: bench-udp ROUNDS");
            return ExitCode::FAILURE;
        }
    };
    let began = Instant::now();
    let world = World::new();
    net::pin_measured();
    let runtime = Rc::new(Builder::new_current_thread().enable_all().build().unwrap());
    for mut subject in subjects(&runtime, 0) {
        SIZES.iter().for_each(|&size| check(subject.as_mut(), &world, size));
    }
    eprintln!("all deliver the same bytes");

    let mut report = Report::default();
    for round in 0..rounds {
        if began.elapsed() * (round as u32 + 1) / (round as u32).max(1) > LONGEST {
            eprintln!("no time for another round");
            break;
        }
        // Anew in each round: whose buffers lie better in memory is luck, and worth several percent.
        let mut subjects = subjects(&runtime, round);
        for (index, cell) in cells().enumerate() {
            for who in ORDERS[(index + round) % ORDERS.len()] {
                report.add(cell, who, measure(subjects[who].as_mut(), &world, cell));
            }
        }
        eprintln!("{:>4.0} s  round {}/{rounds}", began.elapsed().as_secs_f64(), round + 1);
    }
    report.memory = memory::measure(&runtime);
    report.full = full::measure(&runtime);
    print!("{report}");
    println!("\nIt took {:.0} s.", began.elapsed().as_secs_f64());
    ExitCode::SUCCESS
}

/// All of them, made in an order that turns with the rounds.
fn subjects(runtime: &Rc<Runtime>, round: usize) -> Vec<Box<dyn Subject>> {
    let make = |who| -> Box<dyn Subject> {
        match who {
            0 => Box::new(Raw::new()),
            1 => Box::new(Quinn::new(runtime)),
            2 => Box::new(Plain::new(runtime)),
            _ => Box::new(Ours::new(runtime)),
        }
    };
    let mut made: Vec<_> =
        (0..NAMES.len()).map(|turn| (turn + round) % NAMES.len()).map(|who| (who, make(who))).collect();
    made.sort_by_key(|(who, _)| *who);
    made.into_iter().map(|(_, subject)| subject).collect()
}

fn cells() -> impl Iterator<Item = Cell> {
    WORKS.into_iter().flat_map(|work| SIZES.map(|size| Cell { work, size }))
}

impl World {
    fn new() -> Self {
        let sinks: Vec<_> = (0..MANY).map(|_| net::sink()).collect();
        let addresses = sinks.iter().map(net::address_of).collect();
        Self { filler: Filler::start(), _sinks: sinks, addresses }
    }
}

impl Cell {
    /// Datagrams of a train: 64, as far as they fit into 64 KB; eight where there are many destinations.
    fn datagrams(self) -> usize {
        match self.work {
            Work::Many => 8,
            Work::One | Work::Receive | Work::Forward(_) => 64.min(65_507 / (self.size + HEADER.len())),
        }
    }

    fn train(self) -> Vec<u8> {
        (0..self.datagrams() * self.size).map(|i| (i * 31 + i / 251) as u8).collect()
    }
}

/// Sends, receives and forwards once, and compares.
fn check(subject: &mut dyn Subject, world: &World, size: usize) {
    let split = |train: &[u8]| train.chunks(size).map(<[u8]>::to_vec).collect::<Vec<_>>();
    let ends: Vec<_> = (0..MANY).map(|_| net::socket()).collect();
    let to: Vec<_> = ends.iter().map(net::address_of).collect();

    let train = Cell { work: Work::One, size }.train();
    subject.send(&Job { to: &to[..1], train: &train, size }, 2);
    assert!(net::drain(&ends[0]) == [split(&train), split(&train)].concat(), "one destination");

    let short = Cell { work: Work::Many, size }.train();
    subject.send(&Job { to: &to, train: &short, size }, 1);
    ends.iter().for_each(|end| assert!(net::drain(end) == split(&short), "several destinations"));

    let mut look = Look { kept: Some(Vec::new()), ..Look::default() };
    world.filler.fill(subject.address(), &train, size, 2);
    subject.receive(2 * train.len() / size, &mut look);
    assert!(look.kept.unwrap() == [split(&train), split(&train)].concat(), "receive");

    for change in [Change::Strip, Change::Insert] {
        world.filler.fill(subject.address(), &train, size, 2);
        subject.forward(change, to[0], 2 * train.len() / size);
        let changed = split(&train).into_iter().map(|datagram| match change {
            Change::Strip => datagram[HEADER.len()..].to_vec(),
            Change::Insert => [&HEADER, &datagram[..]].concat(),
        });
        let changed: Vec<_> = changed.collect();
        assert!(net::drain(&ends[0]) == [&changed[..], &changed].concat(), "{change:?}");
    }
}

fn measure(subject: &mut dyn Subject, world: &World, cell: Cell) -> Sample {
    let train = cell.train();
    let job = |to| Job { to, train: &train, size: cell.size };
    match cell.work {
        Work::One => sends(subject, &job(&world.addresses[..1])),
        Work::Many => sends(subject, &job(&world.addresses)),
        Work::Receive | Work::Forward(_) => {
            // About 20 MB of the kernel's memory: trains keep theirs together, single datagrams do not.
            let trains = if subject.has_gro() { 20_000_000 / (train.len() + 4096) } else { 20_000_000 / 1500 / 64 };
            arrivals(subject, world, cell, &train, trains)
        }
    }
}

fn sends(subject: &mut dyn Subject, job: &Job<'_>) -> Sample {
    let each = job.to.len() * job.train.len() / job.size;
    let mut times = 1;
    loop {
        let warm = timed(times * each, || subject.send(job, times));
        if warm.cpu >= SAMPLE / 10 {
            let wanted = SAMPLE.as_secs_f64() / warm.cpu.as_secs_f64();
            let times = (times as f64 * wanted).ceil() as usize;
            return timed(times * each, || subject.send(job, times));
        }
        times *= 2;
    }
}

/// Receives or forwards what the other core has made ready, over and over.
fn arrivals(subject: &mut dyn Subject, world: &World, cell: Cell, train: &[u8], trains: usize) -> Sample {
    let mut look = Look::default();
    let mut batch = || {
        world.filler.fill(subject.address(), train, cell.size, trains);
        let datagrams = trains * cell.datagrams();
        timed(datagrams, || match cell.work {
            Work::Forward(change) => subject.forward(change, world.addresses[0], datagrams),
            Work::One | Work::Many | Work::Receive => subject.receive(datagrams, &mut look),
        })
    };
    batch();
    let mut sum = Sample::default();
    while sum.cpu < SAMPLE {
        let sample = batch();
        sum.cpu += sample.cpu;
        sum.wall += sample.wall;
        sum.datagrams += sample.datagrams;
        sum.allocations += sample.allocations;
    }
    std::hint::black_box(look.sum);
    sum
}

fn timed(datagrams: usize, work: impl FnOnce()) -> Sample {
    let (cpu, wall, allocations) = (net::cpu_time(), Instant::now(), heap::allocations());
    work();
    let (cpu, wall) = (net::cpu_time() - cpu, wall.elapsed());
    Sample { cpu, wall, datagrams, allocations: heap::allocations() - allocations }
}
