//! `cargo xtask mutants`: puts faults into the send loop, one at a time, and lists those that no unit test notices.
//!
//! All faults are compiled into one copy of the crate, each behind a number, so that it is built once; a run of its unit tests with a
//! number in the environment has that fault. A fault that does not compile is left out. `mutants-allowed.txt` in the crate lists the
//! faults that may survive, each with the reason.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::cargo::Metadata;

mod build;
mod find;
mod run;

/// The crate, and what of it is mutated: the loop and what it decides by. A file, and the type in it if it is not all of it.
const CRATE: &str = "crates/backwater-udp";
const FILES: [(&str, &str); 12] = [
    ("src/wait/core.rs", ""),
    ("src/wait/core/sender.rs", ""),
    ("src/wait/core/wait.rs", ""),
    ("src/wait/core/attempt.rs", ""),
    ("src/wait/decision.rs", ""),
    ("src/wait/backoff.rs", ""),
    ("src/wait/fairness.rs", ""),
    ("src/policy.rs", ""),
    ("src/io.rs", "Inner"),
    ("src/sys/segmentation.rs", ""),
    ("src/sys/devices.rs", "Devices"),
    ("src/sys/errno_unix.rs", ""),
];

/// The faults that may survive: `NAME # REASON` on a line. A name that ends in `*` stands for all that begin so.
const ALLOWED: &str = "mutants-allowed.txt";

/// Few schedules and no slow test for each fault, all of it for one that survives that.
const STAGES: [run::Stage; 2] = [
    run::Stage {
        schedules: 50,
        cpu_seconds: 4,
        without: &[
            "ten_thousand_waits",
            "lost_edges_are_counted",
            "smaller_than_a_batch",
            "short_outages",
            "a_deep_queue_stops_no_other_destination",
            "without_sockets_of_their_own",
            "a_large_send_buffer_does_not_fill_up",
            "costs_no_memory",
            "the_naive_loop_hangs",
            "a_class_that_sticks",
            "the_books_balance",
            "a_flow_that_is_held_back",
            "a_busy_destination_of_a_queue",
            "a_flow_of_a_queue_that_sticks",
            "a_deadline_that_is_shorter",
            "many_groups_share",
            "four_times_a_millisecond",
            "ever_new_destinations_cost",
            "sys::reactor",
            "an_icmp_message",
        ],
    },
    // What waits for the real reactor, or the kernel's ICMP messages, depends on what else runs here.
    run::Stage { schedules: 500, cpu_seconds: 60, without: &["sys::reactor", "an_icmp_message"] },
];

#[derive(Args)]
pub(crate) struct Options {
    /// Only so many of the faults, drawn at random.
    #[arg(long, value_name = "N")]
    sample: Option<usize>,
    /// Draws the same sample again.
    #[arg(long, requires = "sample")]
    seed: Option<u64>,
    /// Only this file of the crate (`src/wait/core.rs`), be it in the list or not. May be repeated.
    #[arg(long, value_name = "FILE")]
    file: Vec<String>,
    /// Only the faults whose name has this in it.
    #[arg(long, value_name = "TEXT")]
    name: Option<String>,
    /// Names the faults, and runs nothing.
    #[arg(long)]
    list: bool,
}

pub(crate) fn run(root: &Path, options: &Options) -> Result<()> {
    let began = Instant::now();
    let crate_root = root.join(CRATE);
    let files: Vec<_> = match &*options.file {
        [] => FILES.to_vec(),
        given => given.iter().map(|file| (file.as_str(), "")).collect(),
    };
    let mut sources = Vec::new();
    for (file, only) in files {
        let text = fs::read_to_string(crate_root.join(file)).with_context(|| format!("reading {file}"))?;
        sources.push(find::Source::parse(file, only, text)?);
    }
    let allowed = Allowed::parse(&fs::read_to_string(crate_root.join(ALLOWED)).context(ALLOWED)?)?;

    let names: Vec<_> = sources.iter().flat_map(|source| source.mutants.iter().map(|m| m.name.clone())).collect();
    if options.list {
        names.iter().for_each(|name| println!("{name}"));
        return Ok(());
    }
    let stale = allowed.unknown(&names);
    ensure!(stale.is_empty(), "{ALLOWED} lists what is no fault (any more):\n{}", stale.join("\n"));
    let target = Metadata::read(root)?.target_directory;
    let built = build::build(root, &target, CRATE, &sources)?;
    let mut chosen: Vec<u32> = (1..).take(names.len()).filter(|id| !built.left_out.contains(id)).collect();
    let name_of = |id: u32| names.get(id as usize - 1).map_or("", String::as_str);
    if let Some(text) = &options.name {
        chosen.retain(|id| name_of(*id).contains(text));
    }
    println!("{} faults, {} of which do not compile and are left out", names.len(), built.left_out.len());
    if let Some(count) = options.sample {
        let seed = options.seed.unwrap_or_else(|| u64::from(std::process::id()) ^ nanoseconds());
        println!("a sample of {count}; the same again: --sample {count} --seed {seed}");
        chosen = sample(chosen, count, seed);
    }
    let results = run::run_all(&built, &chosen, &STAGES)?;
    let log = target.join("mutants/results.txt");
    let lines: Vec<_> = results.iter().map(|(id, result)| format!("{result:?} {}\n", name_of(*id))).collect();
    fs::write(&log, lines.concat()).with_context(|| format!("writing {}", log.display()))?;

    let (mut killed, mut hung, mut listed) = (0, 0, BTreeSet::new());
    let mut unlisted = Vec::new();
    for (id, result) in &results {
        match result {
            run::Outcome::Killed(_) => killed += 1,
            run::Outcome::Hung => hung += 1,
            run::Outcome::Survived if allowed.covers(name_of(*id)) => {
                listed.insert(*id);
            }
            run::Outcome::Survived => unlisted.push(name_of(*id)),
        }
    }
    println!(
        "{} faults in {:.0} s: {killed} made a test fail, {hung} made one hang, {} survived and are listed, {} survived and are not",
        results.len(),
        began.elapsed().as_secs_f64(),
        listed.len(),
        unlisted.len()
    );
    for (id, _) in
        results.iter().filter(|(id, result)| !listed.contains(id) && allowed.covers_exactly(name_of(*id), result))
    {
        println!("{ALLOWED} lists a fault that does not survive: {}", name_of(*id));
    }
    unlisted.sort_unstable();
    unlisted.iter().for_each(|name| println!("survives: {name}"));
    ensure!(
        unlisted.is_empty(),
        "{} faults are noticed by no test; write one, or give the reason in {ALLOWED}",
        unlisted.len()
    );
    Ok(())
}

fn nanoseconds() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |time| u64::from(time.subsec_nanos()))
}

/// `count` of them, in their order.
fn sample(mut of: Vec<u32>, count: usize, seed: u64) -> Vec<u32> {
    let mut state = seed;
    while of.len() > count {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let drawn = ((state >> 33) as usize) % of.len();
        of.remove(drawn);
    }
    of
}

/// The faults that may survive.
#[derive(Debug, Default)]
struct Allowed(BTreeMap<String, ()>);

impl Allowed {
    fn parse(text: &str) -> Result<Self> {
        let mut names = BTreeMap::new();
        for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            match line.rsplit_once(" # ") {
                Some((name, reason)) if !reason.trim().is_empty() => names.insert(name.trim().to_owned(), ()),
                _ => bail!("{ALLOWED}: no reason after ` # `: {line}"),
            };
        }
        Ok(Self(names))
    }

    fn covers(&self, name: &str) -> bool {
        self.0.contains_key(name) || self.0.keys().any(|known| matches(known, name))
    }

    /// Whether `name` itself is listed and its fault was noticed.
    fn covers_exactly(&self, name: &str, outcome: &run::Outcome) -> bool {
        self.0.contains_key(name) && !matches!(outcome, run::Outcome::Survived)
    }

    /// What is listed for the files of `names`, and is none of these.
    fn unknown(&self, names: &[String]) -> Vec<String> {
        let file = |name: &str| name.split(' ').next().map(str::to_owned);
        let files: BTreeSet<_> = names.iter().map(|name| file(name)).collect();
        let known = |listed: &&String| names.iter().any(|name| name == *listed || matches(listed, name));
        self.0.keys().filter(|listed| files.contains(&file(listed)) && !known(listed)).cloned().collect()
    }
}

fn matches(listed: &str, name: &str) -> bool {
    listed.strip_suffix('*').is_some_and(|start| name.starts_with(start))
}

/// What was built: the program with the tests, and the numbers of the faults that it does not contain.
struct Built {
    program: PathBuf,
    directory: PathBuf,
    left_out: BTreeSet<u32>,
}

#[cfg(test)]
mod tests;
