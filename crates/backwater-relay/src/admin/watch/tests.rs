use std::{path::PathBuf, time::Duration};

use backwater_udp::Policy;

use super::*;
use crate::config::Arguments;

struct Bench {
    path: PathBuf,
    watch: FileWatch,
}

impl Bench {
    fn new(text: &str, args: &[&str]) -> Self {
        let path = std::env::temp_dir().join(format!("backwater-watch-{}.toml", fastrand::u64(..)));
        std::fs::write(&path, text).unwrap();
        let args = ["relay", "--config", path.to_str().unwrap()].into_iter().chain(args.iter().copied());
        let matches = Arguments::command().try_get_matches_from(args).unwrap();
        let config = Config::new(&Arguments::read(&matches, []).unwrap()).unwrap();
        Self { watch: FileWatch::new(config).unwrap(), path }
    }

    /// Writes the file, and looks until nothing more comes of it.
    fn write(&mut self, text: &str) -> Outcome {
        // So that the time of the change is another one, however coarse the file system's clock is.
        std::thread::sleep(Duration::from_millis(20));
        std::fs::write(&self.path, text).unwrap();
        assert_eq!(said(&self.watch.look()), NOTHING, "it may still be written");
        let outcome = self.watch.look();
        assert_eq!(said(&self.watch.look()), NOTHING, "said once");
        outcome
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// As the answer to a request for a reload has it.
fn said(outcome: &Outcome) -> String {
    serde_json::to_string(outcome).unwrap()
}

const NOTHING: &str = r#"{"applied":[],"restart":[],"overruled":{},"problems":[]}"#;

fn policy(outcome: &Outcome) -> Option<Policy> {
    outcome.config.as_ref().map(|config| config.policy)
}

fn wait(ms: u64) -> Option<Policy> {
    Some(Policy::Wait { deadline: Duration::from_millis(ms) })
}

#[test]
fn a_change_of_the_policy_is_applied() {
    let mut b = Bench::new("backpressure = \"wait\"\n", &[]);
    assert_eq!(said(&b.watch.look()), NOTHING);
    assert_eq!(policy(&b.write("backpressure = \"drop\"\n")), Some(Policy::Drop));
    assert_eq!(said(&b.write("# a comment\nbackpressure = \"drop\"\n")), NOTHING);
    assert_eq!(policy(&b.write("backpressure = \"wait:50ms\"\n")), wait(50));
    assert_eq!(policy(&b.write("")), wait(100), "the default");
}

#[test]
fn an_invalid_file_is_named_once_and_changes_nothing() {
    let mut b = Bench::new("backpressure = \"drop\"\n", &[]);
    let problem = |outcome: Outcome| {
        assert!(outcome.config.is_none() && outcome.problems.len() == 1, "{outcome:?}");
        outcome.problems[0].clone()
    };
    let line = problem(b.write("backpressure = \"sometimes\"\n"));
    assert!(line.contains("backpressure: expected wait") && line.contains("\"sometimes\""), "{line}");
    assert_eq!(said(&b.write("\nbackpressure = \"sometimes\"\n")), NOTHING, "the same mistake again");
    assert!(problem(b.write("backpressure = \n")).contains("line 1"));
    assert!(problem(b.write("backpressure = \"wait\"\nthreads = 0\n")).contains("threads"));
    assert_eq!(said(&b.write("backpressure = \"drop\"\n")), NOTHING, "as it was");
    std::fs::remove_file(&b.path).unwrap();
    assert_eq!(said(&b.watch.look()), NOTHING);
    assert!(problem(b.watch.look()).contains("cannot be read"));
    assert_eq!(policy(&b.write("backpressure = \"wait\"\n")), wait(100));
}

#[test]
fn what_needs_a_restart_is_named_and_the_rest_is_applied_without_it() {
    let mut b = Bench::new("realm = \"a\"\nuser = [\"a:b\"]\n", &["--threads", "1"]);
    let outcome = b.write("realm = \"b\"\nuser = [\"a:c\", \"b:c\"]\nthreads = 1\n");
    assert_eq!((&*outcome.applied, &*outcome.restart), (&["user"][..], &["realm"][..]));
    let config = outcome.config.unwrap();
    assert_eq!((config.credentials.realm(), config.credentials.users()), ("a", 2));
    let outcome = b.write("realm = \"b\"\nuser = [\"a:d\"]\n");
    assert_eq!((&*outcome.applied, &*outcome.restart), (&["user"][..], &[][..]), "said already");
    let outcome = b.write("realm = \"c\"\nports = \"50000-50010\"\nuser = [\"a:d\"]\n");
    assert_eq!((outcome.config.is_none(), &*outcome.restart), (true, &["ports", "realm"][..]));
    assert_eq!(said(&b.write("realm = \"a\"\nuser = [\"a:d\"]\n")), NOTHING, "as it was started");
}

#[test]
fn user_that_was_made_up_stays_and_none_is_made_up_later() {
    let mut b = Bench::new("", &[]);
    let made_up = b.watch.started.first_run.clone().unwrap();
    let config = b.write("drain = 7\n").config.unwrap();
    assert_eq!(config.first_run.unwrap().password, made_up.password);
    assert!(std::sync::Arc::ptr_eq(&config.credentials, &b.watch.started.credentials));
    assert_eq!(b.write("user = [\"a:b\"]\n").config.unwrap().credentials.users(), 1);
    let mut b = Bench::new("user = [\"a:b\"]\n", &[]);
    let outcome = b.write("drain = 7\n");
    assert!(outcome.config.is_none() && outcome.problems[0].starts_with("user: expected one"), "{outcome:?}");
}

#[test]
fn a_reload_reads_the_file_at_once_and_says_again_what_is_wrong() {
    let mut b = Bench::new("backpressure = \"wait\"\n", &[]);
    assert_eq!(said(&b.watch.read_now()), NOTHING);
    std::fs::write(&b.path, "backpressure = \"drop\"\n").unwrap();
    assert_eq!(policy(&b.watch.read_now()), Some(Policy::Drop));
    assert_eq!(said(&b.watch.look()), NOTHING, "it has been read");
    std::fs::write(&b.path, "backpressure = \"sometimes\"\n").unwrap();
    for _ in 0..2 {
        assert_eq!(b.watch.read_now().problems.len(), 1);
    }
    std::fs::write(&b.path, "realm = \"b\"\nbackpressure = \"drop\"\n").unwrap();
    for _ in 0..2 {
        assert_eq!(b.watch.read_now().restart, ["realm"]);
    }
}

#[test]
fn a_flag_counts_before_the_file() {
    let mut b = Bench::new("", &["--backpressure", "wait"]);
    let outcome = b.write("backpressure = \"drop\"\n");
    assert!(outcome.config.is_none());
    assert_eq!(said(&outcome), NOTHING.replace("{}", r#"{"backpressure":"--backpressure"}"#));
    assert_eq!(said(&b.write("backpressure = \"drop\"\n\n")), NOTHING);
}

#[cfg(unix)]
#[test]
fn what_is_no_file_is_not_watched() {
    let mut b = Bench::new("", &[]);
    let device = ["relay", "--config", "/dev/null"];
    let matches = Arguments::command().try_get_matches_from(device).unwrap();
    assert!(FileWatch::new(Config::new(&Arguments::read(&matches, []).unwrap()).unwrap()).is_none());
    std::fs::remove_file(&b.path).unwrap();
    std::fs::create_dir(&b.path).unwrap();
    b.watch.look();
    assert_eq!(b.watch.look().problems.len(), 1);
    std::fs::remove_dir(&b.path).unwrap();
}
