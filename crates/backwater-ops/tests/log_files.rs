//! Log files of whole processes: a test starts itself again as the process that logs.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::{
    env, fs,
    io::Read,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use backwater_ops::{LogFiles, Logs};

const APPLICATION: &str = "dev.backwater.test";

/// Where the user's directory for caches is, for a test.
struct Caches(PathBuf);

impl Caches {
    fn new(test: &str) -> Self {
        Self(env::temp_dir().join(format!("backwater-{test}-{}", std::process::id())))
    }

    /// The same test in another process, which takes `child`'s way.
    fn start(&self, test: &str) -> Child {
        self.command(test).spawn().unwrap()
    }

    fn command(&self, test: &str) -> Command {
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(["--exact", test, "--nocapture"]).env(CHILD, "1").env("CACHES", &self.0);
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        for variable in ["XDG_CACHE_HOME", "LOCALAPPDATA", "HOME"] {
            command.env(variable, &self.0);
        }
        command
    }
}

fn files(caches: &Path) -> Vec<PathBuf> {
    let caches = if cfg!(target_vendor = "apple") { caches.join("Library/Caches") } else { caches.to_owned() };
    // None before the first line.
    let entries = fs::read_dir(caches.join(APPLICATION).join("data").join("logs"));
    let mut files: Vec<_> = entries.into_iter().flatten().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

impl Drop for Caches {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

const CHILD: &str = "BACKWATER_LOG_CHILD";

fn is_child() -> bool {
    env::var_os(CHILD).is_some()
}

fn logs(filter: &str, max_bytes: u64) -> Logs {
    Logs::to_files(filter, &LogFiles { max_bytes, ..LogFiles::of(APPLICATION).unwrap() }).unwrap()
}

fn lines(path: &Path) -> Vec<String> {
    fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn a_filter_is_switched_while_running_and_refused_when_invalid() {
    if is_child() {
        let logs = logs("info", 100 << 20);
        tracing::info!(n = 1, "first");
        tracing::debug!("not this");
        logs.set_filter("debug").unwrap();
        tracing::debug!("second");
        assert!(logs.set_filter("loud").is_err() && logs.set_filter("a=b=c").is_err());
        tracing::debug!("third");
        logs.set_filter("error").unwrap();
        tracing::warn!("nor this");
        tracing::error!(time = 5, "fourth\nand last");
        return;
    }
    let caches = Caches::new("filter");
    let status = caches.start("a_filter_is_switched_while_running_and_refused_when_invalid").wait().unwrap();
    assert!(status.success());
    let [file] = &files(&caches.0)[..] else { panic!("{:?}", files(&caches.0)) };
    let lines = lines(file);
    let tails = [
        r#""severity":"INFO","message":"first","n":1}"#,
        r#""severity":"DEBUG","message":"second"}"#,
        r#""severity":"DEBUG","message":"third"}"#,
        r#""severity":"ERROR","message":"fourth\nand last","time_":5}"#,
    ];
    assert_eq!(lines.len(), tails.len(), "{lines:?}");
    for (line, tail) in lines.iter().zip(tails) {
        assert!(line.starts_with("{\"time\":\"20") && line.ends_with(tail), "{line}");
    }
    #[cfg(unix)]
    what_the_manuals_say_works(file);
}

/// The line with `jq` of both manuals, without what is before the pipe.
#[cfg(unix)]
fn what_the_manuals_say_works(file: &Path) {
    for manual in [include_str!("../../../docs/tunnel.md"), include_str!("../../../docs/relay.md")] {
        let line = manual.lines().find_map(|line| line.split_once(" | jq ")).unwrap().1;
        let mut command = Command::new("sh");
        command.args(["-c", &format!("jq {line}")]).stdin(fs::File::open(file).unwrap());
        let out = command.output().unwrap();
        if out.status.code() == Some(127) {
            eprintln!("skipped: jq is not there");
            assert!(!env::var("CI").is_ok_and(|value| value == "true"), "CI=true, and jq is not there");
            return;
        }
        let text = String::from_utf8(out.stdout).unwrap();
        let lines: Vec<_> = text.lines().map(|line| line.split_once("Z ").unwrap_or(("", line)).1).collect();
        let expected = ["INFO first n=1", "DEBUG second", "DEBUG third", "ERROR fourth", "and last time_=5"];
        assert_eq!(lines, expected, "{}", String::from_utf8_lossy(&out.stderr));
    }
}

/// systemd names the stream that it gives a service, by device and inode (systemd.exec(5)).
#[cfg(target_os = "linux")]
#[test]
fn warnings_go_to_the_journal_too() {
    use std::os::unix::fs::MetadataExt;
    const TEST: &str = "warnings_go_to_the_journal_too";
    if is_child() {
        let _logs = logs("debug", 100_000);
        tracing::info!("not this");
        tracing::warn!(peer = "a", "a warning");
        tracing::error!(n = 1, "an error");
        return;
    }
    let stderr = env::temp_dir().join(format!("backwater-stderr-{}", std::process::id()));
    for is_journal in [true, false] {
        let caches = Caches::new("journal");
        let file = fs::File::create(&stderr).unwrap();
        let metadata = file.metadata().unwrap();
        let inode = if is_journal { metadata.ino() } else { metadata.ino() + 1 };
        let mut command = caches.command(TEST);
        command.env("JOURNAL_STREAM", format!("{}:{inode}", metadata.dev())).stderr(file);
        assert!(command.status().unwrap().success());
        let text = fs::read_to_string(&stderr).unwrap();
        let written: Vec<_> = text.lines().filter(|line| line.starts_with('<')).collect();
        let expected = ["<4>a warning peer=\"a\"", "<3>an error n=1"];
        assert_eq!(written, if is_journal { &expected[..] } else { &[] }, "{text}");
        let [log] = &files(&caches.0)[..] else { panic!("{:?}", files(&caches.0)) };
        assert_eq!(lines(log).len(), 3, "the file has all of them");
    }
    fs::remove_file(stderr).unwrap();
}

/// Each writes 200 kB where 100 kB are kept.
#[test]
fn two_processes_at_once_share_what_is_kept() {
    const LINES: usize = 2000;
    if is_child() {
        let _logs = logs("info", 100_000);
        for n in 0..LINES {
            tracing::info!(n, process = std::process::id(), "a line of about a hundred bytes");
            if n % 100 == 0 {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        // Its file is open until both have written all: else the other one might think it old.
        let (caches, process) = (PathBuf::from(env::var_os("CACHES").unwrap()), std::process::id());
        let last = format!("\"n\":{},\"process\":{process}}}\n", LINES - 1);
        while !files(&caches).iter().any(|path| fs::read_to_string(path).is_ok_and(|text| text.ends_with(&last))) {
            std::thread::sleep(Duration::from_millis(5));
        }
        fs::write(caches.join(process.to_string()), "").unwrap();
        let _ = std::io::stdin().read(&mut [0]);
        return;
    }
    let caches = Caches::new("two");
    let mut children = [(); 2].map(|()| caches.start("two_processes_at_once_share_what_is_kept"));
    let deadline = Instant::now() + Duration::from_secs(60);
    let done = |child: &Child| caches.0.join(child.id().to_string()).exists();
    while !children.iter().all(done) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    for child in &mut children {
        // That closes its stdin.
        assert!(child.wait().unwrap().success());
    }
    let files = files(&caches.0);
    let total: u64 = files.iter().map(|path| fs::metadata(path).unwrap().len()).sum();
    assert!((50_000..=100_000).contains(&total), "{total} bytes in {files:?}");
    for child in &children {
        let of_child = format!("\"process\":{}}}", child.id());
        let own: Vec<_> =
            files.iter().filter(|path| path.to_string_lossy().contains(&format!("-{}-", child.id()))).collect();
        let lines: Vec<_> = own.iter().flat_map(|path| lines(path)).collect();
        assert!(
            lines.iter().all(|line| line.starts_with('{') && line.ends_with(&of_child)),
            "lines are whole, and its own"
        );
        assert!(lines.last().unwrap().contains(&format!("\"n\":{},", LINES - 1)), "the last one is there");
    }
}

#[test]
fn a_directory_that_cannot_be_made_ends_no_process() {
    if is_child() {
        let logs = logs("info", 100_000);
        tracing::info!("lost");
        drop(logs);
        return;
    }
    let caches = Caches::new("none");
    fs::write(&caches.0, "a file").unwrap();
    let status = caches.start("a_directory_that_cannot_be_made_ends_no_process").wait().unwrap();
    fs::remove_file(&caches.0).unwrap();
    assert!(status.success());
}
