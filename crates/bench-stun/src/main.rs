//! backwater-stun against the codecs that others use, in one run. `cargo xtask bench stun` calls it.
//!
//! First every codec has to give the same answer as ours for each row that it can do; then rounds interleave all of
//! them, so that a slow moment of the machine hits all alike. A figure is the median over the rounds; a ratio is the
//! median of the per-round ratios with its 95 % interval. An optional argument is the number of rounds.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::input::Input;

mod floor;
mod input;
mod ours;
mod peers;

/// What an operation is about, in the order of the table.
const ROWS: [&str; 7] = [
    "a1  parse Binding success, read address",
    "a1f a1 with FINGERPRINT",
    "a2  a1f with MESSAGE-INTEGRITY",
    "b   encode Binding request with both",
    "c   parse ChannelData 1200 B",
    "d   parse Send indication 1200 B",
    "e   encode Data indication 1200 B",
];

/// What an operation has found or written: compared before anything is measured.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Answer<'a> {
    Address(SocketAddr),
    Payload(SocketAddr, &'a [u8]),
    Channel(u16, &'a [u8]),
    Written(&'a [u8]),
}

/// One codec: its name, and what it can do of each row. An operation runs as often as it is told, and returns what
/// the last run has found.
struct Codec {
    name: &'static str,
    rows: [Option<Operation>; 7],
}

type Operation = Box<dyn FnMut(&'static Input, u32) -> Answer<'static>>;

/// Runs an expression repeatedly without letting the compiler see that it is always the same.
#[macro_export]
macro_rules! operation {
    (|$input:ident| $body:expr) => {
        Some(Box::new(move |$input: &'static $crate::input::Input, times: u32| {
            for _ in 1..times {
                let $input = std::hint::black_box($input);
                std::hint::black_box($body);
            }
            let $input = std::hint::black_box($input);
            std::hint::black_box($body)
        }) as $crate::Operation)
    };
}

/// The names that are not a peer's.
const OURS: &str = "backwater-stun";
const FLOOR: &str = "floor";

thread_local!(static ALLOCATIONS: Cell<u64> = const { Cell::new(0) });

struct Counting;

// SAFETY: it hands every call on to the system's allocator, unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promises are those that `System` wants.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: as above.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn main() {
    let rounds = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(101_usize).max(9);
    let input: &'static Input = Box::leak(Box::new(Input::new()));
    let mut codecs = vec![ours::codec(), floor::codec()];
    codecs.extend(peers::codecs());

    for (row, title) in ROWS.iter().enumerate() {
        let expected = codecs[0].rows[row].as_mut().expect("ours has every row")(input, 1);
        for codec in &mut codecs {
            if let Some(operation) = &mut codec.rows[row] {
                agree(input, codec.name, title, operation(input, 1), expected);
            }
        }
    }
    println!(
        "All codecs give the same answers. {rounds} rounds; medians, and how many times as long as ours [95 %].\n"
    );

    for (row, title) in ROWS.iter().enumerate() {
        measure(input, title, rounds, codecs.iter_mut().filter_map(|c| c.rows[row].as_mut().map(|o| (c.name, o))));
    }
}

/// Order and padding of attributes are a codec's own affair: what is written is compared by reading it.
fn agree(input: &Input, name: &str, row: &str, got: Answer<'_>, expected: Answer<'_>) {
    match (got, expected) {
        (Answer::Written(got), Answer::Written(expected)) => {
            assert_eq!(input.explain(got), input.explain(expected), "{name}, {row}");
        }
        (got, expected) => assert_eq!(got, expected, "{name}, {row}"),
    }
}

fn measure<'o>(
    input: &'static Input,
    title: &str,
    rounds: usize,
    operations: impl Iterator<Item = (&'static str, &'o mut Operation)>,
) {
    /// Long against the clock's resolution, short against the machine's moods.
    const SLICE: Duration = Duration::from_micros(500);

    let mut operations: Vec<_> = operations
        .map(|(name, operation)| {
            let before = ALLOCATIONS.get();
            operation(input, 1);
            let allocations = ALLOCATIONS.get() - before;
            let mut times = 1_u32;
            while time(input, operation, times) < SLICE && times < 1 << 24 {
                times *= 2;
            }
            (name, operation, times, allocations, Vec::with_capacity(rounds))
        })
        .collect();
    for _ in 0..rounds {
        for (_, operation, times, _, figures) in &mut operations {
            figures.push(time(input, operation, *times).as_secs_f64() * 1e9 / f64::from(*times));
        }
    }

    println!("{title}");
    let ours = operations[0].4.clone();
    let (mut floor, mut best_peer) = (f64::NAN, f64::INFINITY);
    for (name, _, _, allocations, figures) in &operations {
        let ratios = figures.iter().zip(&ours).map(|(figure, ours)| figure / ours).collect();
        let (low, ratio, high) = interval(ratios);
        let (_, figure, _) = interval(figures.clone());
        println!("    {name:<24}{figure:>9.1} ns  {ratio:>6.2}x [{low:.2}, {high:.2}]  {allocations} allocations");
        match *name {
            OURS => assert_eq!(*allocations, 0, "ours allocates: {title}"),
            FLOOR => floor = 1.0 / ratio,
            _ => best_peer = best_peer.min(ratio),
        }
    }
    println!("    ours takes {floor:.2} times the floor; the best peer takes {best_peer:.2} times ours\n");
}

fn time(input: &'static Input, operation: &mut Operation, times: u32) -> Duration {
    let start = Instant::now();
    operation(input, times);
    start.elapsed()
}

/// The median, between the order statistics that bound it with 95 % confidence.
fn interval(mut figures: Vec<f64>) -> (f64, f64, f64) {
    figures.sort_by(f64::total_cmp);
    let n = figures.len() as f64;
    let half = 0.98 * n.sqrt();
    let at = |position: f64| figures[(position.max(0.0) as usize).min(figures.len() - 1)];
    (at(n / 2.0 - half), at(n / 2.0), at(n / 2.0 + half))
}
