//! The configuration file, while the relay runs.

use backwater_udp::Policy;

use crate::config::{Config, ConfigError, ConfigFile, Stamp};

/// Notices that the file has changed, and what that means.
pub(super) struct FileWatch {
    /// As the relay was started with it.
    started: ConfigFile,
    /// The last that was read without a mistake.
    latest: ConfigFile,
    /// The policy of that.
    policy: Policy,
    /// As it was when last read.
    seen: Option<Stamp>,
    /// A change that may still go on.
    changing: Option<Option<Stamp>>,
    /// What has been said already.
    invalid: Vec<ConfigError>,
    restart: Vec<&'static str>,
}

/// What a change of the file means.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// The policy is another one.
    Policy(Policy),
    /// It would be, but for this flag or variable.
    Overruled(String),
    /// These keys are read at the start only.
    Restart(Vec<&'static str>),
    /// It could not be started with: nothing of it is applied.
    Invalid(Vec<String>),
}

impl FileWatch {
    /// `None` when it is nothing that can be read again.
    pub(super) fn new(file: ConfigFile, policy: Policy) -> Option<Self> {
        let seen = Some(file.stamp()?);
        Some(Self {
            latest: file.clone(),
            started: file,
            policy,
            seen,
            changing: None,
            invalid: vec![],
            restart: vec![],
        })
    }

    /// Reads the file if it has changed since the last time. What has changed since the last look is looked at the next
    /// time: somebody may be writing it.
    pub(super) fn look(&mut self) -> Vec<Change> {
        let stamp = self.started.stamp_now();
        if stamp == self.seen {
            self.changing = None;
            return vec![];
        }
        if self.changing.replace(stamp) != Some(stamp) {
            return vec![];
        }
        self.read()
    }

    /// Reads the file, whether it has changed or not. What was said already about a mistake in it is said again.
    pub(super) fn read_now(&mut self) -> Vec<Change> {
        self.invalid.clear();
        self.restart.clear();
        self.read()
    }

    fn read(&mut self) -> Vec<Change> {
        (self.changing, self.seen) = (None, self.started.stamp_now());
        let read = self.started.read_again().and_then(|arguments| Config::new(&arguments));
        let config = match read {
            Ok(config) => config,
            Err(errors) => {
                let known = self.invalid.iter().map(ConfigError::without_line);
                let is_known = known.eq(errors.iter().map(ConfigError::without_line));
                let problems = errors.iter().map(ToString::to_string).collect();
                self.invalid = errors;
                return if is_known { vec![] } else { vec![Change::Invalid(problems)] };
            }
        };
        self.invalid.clear();
        let mut changes = Vec::new();
        let Some(file) = config.file else { return changes };
        if let Some(key) = file.differences(&self.latest).find(|key| key.is_live) {
            match file.instead(key) {
                Some(by) => changes.push(Change::Overruled(by.to_owned())),
                None if config.policy != self.policy => changes.push(Change::Policy(config.policy)),
                None => {}
            }
        }
        let restart = file.differences(&self.started).filter(|key| !key.is_live && file.instead(key).is_none());
        let restart: Vec<_> = restart.map(|key| key.name).collect();
        if restart != self.restart {
            self.restart.clone_from(&restart);
            if !restart.is_empty() {
                changes.push(Change::Restart(restart));
            }
        }
        (self.latest, self.policy) = (file, config.policy);
        changes
    }
}

#[cfg(test)]
mod tests {
    use std::{path::PathBuf, time::Duration};

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
            Self { watch: FileWatch::new(config.file.unwrap(), config.policy).unwrap(), path }
        }

        /// Writes the file, and looks until nothing more comes of it.
        fn write(&mut self, text: &str) -> Vec<Change> {
            // So that the time of the change is another one, however coarse the file system's clock is.
            std::thread::sleep(Duration::from_millis(20));
            std::fs::write(&self.path, text).unwrap();
            assert_eq!(self.watch.look(), [], "it may still be written");
            let changes = self.watch.look();
            assert_eq!(self.watch.look(), [], "said once");
            changes
        }
    }

    impl Drop for Bench {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.path);
        }
    }

    fn wait(ms: u64) -> Vec<Change> {
        vec![Change::Policy(Policy::Wait { deadline: Duration::from_millis(ms) })]
    }

    #[test]
    fn a_change_of_the_policy_is_applied() {
        let mut b = Bench::new("backpressure = \"wait\"\n", &[]);
        assert_eq!(b.watch.look(), []);
        assert_eq!(b.write("backpressure = \"drop\"\n"), [Change::Policy(Policy::Drop)]);
        assert_eq!(b.write("# a comment\nbackpressure = \"drop\"\n"), []);
        assert_eq!(b.write("backpressure = \"wait:50ms\"\n"), wait(50));
        assert_eq!(b.write(""), wait(100), "the default");
        assert_eq!(b.write("backpressure = \"wait:100ms\"\n"), [], "the same in other words");
    }

    #[test]
    fn an_invalid_file_is_named_once_and_changes_nothing() {
        let mut b = Bench::new("backpressure = \"drop\"\n", &[]);
        let problem = |changes: Vec<Change>| match &changes[..] {
            [Change::Invalid(problems)] if problems.len() == 1 => problems[0].clone(),
            _ => panic!("{changes:?}"),
        };
        let line = problem(b.write("backpressure = \"sometimes\"\n"));
        assert!(line.contains("backpressure: expected wait") && line.contains("\"sometimes\""), "{line}");
        assert_eq!(b.write("\nbackpressure = \"sometimes\"\n"), [], "the same mistake again");
        assert!(problem(b.write("backpressure = \n")).contains("line 1"));
        assert!(problem(b.write("backpressure = \"wait\"\nthreads = 0\n")).contains("threads"));
        assert_eq!(b.write("backpressure = \"drop\"\n"), [], "as it was");
        std::fs::remove_file(&b.path).unwrap();
        assert_eq!(b.watch.look(), []);
        assert!(problem(b.watch.look()).contains("cannot be read"));
        assert_eq!(b.write("backpressure = \"wait\"\n"), wait(100));
    }

    #[test]
    fn what_else_has_changed_needs_a_restart() {
        let mut b = Bench::new("realm = \"a\"\nuser = [\"a:b\"]\n", &["--threads", "1"]);
        assert_eq!(b.write("realm = \"b\"\nuser = [\"a:c\"]\nthreads = 1\n"), [Change::Restart(vec!["realm", "user"])]);
        assert_eq!(b.write("realm = \"b\"\nuser = [\"a:d\"]\n"), [], "said already");
        let both = [Change::Policy(Policy::Drop), Change::Restart(vec!["realm"])];
        assert_eq!(b.write("realm = \"c\"\nuser = [\"a:b\"]\nbackpressure = \"drop\"\n"), both);
        assert_eq!(b.write("realm = \"a\"\nuser = [\"a:b\"]\nbackpressure = \"drop\"\n"), [], "as it was started");
    }

    #[test]
    fn a_reload_reads_the_file_at_once_and_says_again_what_is_wrong() {
        let mut b = Bench::new("backpressure = \"wait\"\n", &[]);
        assert_eq!(b.watch.read_now(), []);
        std::fs::write(&b.path, "backpressure = \"drop\"\n").unwrap();
        assert_eq!(b.watch.read_now(), [Change::Policy(Policy::Drop)]);
        assert_eq!(b.watch.look(), [], "it has been read");
        std::fs::write(&b.path, "backpressure = \"sometimes\"\n").unwrap();
        for _ in 0..2 {
            assert!(matches!(&b.watch.read_now()[..], [Change::Invalid(_)]));
        }
        std::fs::write(&b.path, "realm = \"b\"\nbackpressure = \"drop\"\n").unwrap();
        for _ in 0..2 {
            assert_eq!(b.watch.read_now(), [Change::Restart(vec!["realm"])]);
        }
    }

    #[test]
    fn a_flag_counts_before_the_file() {
        let mut b = Bench::new("", &["--backpressure", "wait"]);
        assert_eq!(b.write("backpressure = \"drop\"\n"), [Change::Overruled("--backpressure".to_owned())]);
        assert_eq!(b.write("backpressure = \"drop\"\n\n"), []);
    }

    #[cfg(unix)]
    #[test]
    fn what_is_no_file_is_not_watched() {
        let mut b = Bench::new("", &[]);
        let device = ["relay", "--config", "/dev/null"];
        let matches = Arguments::command().try_get_matches_from(device).unwrap();
        let config = Config::new(&Arguments::read(&matches, []).unwrap()).unwrap();
        assert!(FileWatch::new(config.file.unwrap(), config.policy).is_none());
        std::fs::remove_file(&b.path).unwrap();
        std::fs::create_dir(&b.path).unwrap();
        b.watch.look();
        assert!(matches!(&b.watch.look()[..], [Change::Invalid(_)]));
        std::fs::remove_dir(&b.path).unwrap();
    }
}
