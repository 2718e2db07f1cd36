//! The relay as a service: the unit file as systemd reads it, and what the service manager is told.

#![cfg(target_os = "linux")]
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

use std::{
    fs,
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    process::{Child, Command},
    time::Duration,
};

#[path = "../../backwater-udp/tests/support/mod.rs"]
#[allow(dead_code, reason = "it needs no network")]
mod support;

const UNIT: &str = "backwater-relay.service";

/// The exposure that `systemd-analyze security` may find, in tenths: what it calls OK ends at 49.
const EXPOSURE: &str = "--threshold=20";

/// A directory that is deleted at the end.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("backwater-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn the_unit_is_good_and_hardened() {
    if !support::installed("systemd-analyze") {
        return support::skip("systemd-analyze is not installed (package systemd)");
    }
    let unit = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging").join(UNIT)).unwrap();
    let directory = Directory::new("relay-unit");
    // Where this program is, and a manual page that is there.
    let (installed, here) = ("/usr/bin/backwater-relay", env!("CARGO_BIN_EXE_backwater-relay"));
    assert!(unit.contains(installed));
    let unit = unit.replace(installed, here).replace("Documentation=man:backwater-relay(1)\n", "");
    let file = directory.0.join(UNIT);
    fs::write(&file, unit).unwrap();
    for arguments in [&["verify"][..], &["security", "--offline=true", EXPOSURE]] {
        let out = Command::new("systemd-analyze").args(arguments).arg(&file).output().unwrap();
        let said = String::from_utf8_lossy(&out.stderr);
        let table = String::from_utf8_lossy(&out.stdout);
        assert!(out.status.success() && said.is_empty(), "{arguments:?}: {said}\n{table}");
    }
}

/// The relay, as a service manager starts it, and what it says.
struct Service {
    child: Child,
    socket: UnixDatagram,
}

impl Service {
    fn start(directory: &Directory, watchdog: Option<&str>) -> Self {
        let path = directory.0.join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        // What catches a hang: an idle machine needs a tenth of a second.
        socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        // The watchdog is for the process of this id.
        let script = r#"WATCHDOG_PID=$$ exec "$0" "$@""#;
        let mut command = Command::new("sh");
        command.args(["-c", script, env!("CARGO_BIN_EXE_backwater-relay")]);
        command.args(["--listen", "127.0.0.1:0", "--user", "a:b", "--threads", "2", "--drain", "7"]);
        command.args(["--log-level", "error"]).env("NOTIFY_SOCKET", path);
        command.envs(watchdog.map(|micros| ("WATCHDOG_USEC", micros)));
        Self { child: command.spawn().unwrap(), socket }
    }

    fn says(&self) -> String {
        let mut buffer = [0; 500];
        let len = self.socket.recv(&mut buffer).expect("the service manager is told nothing");
        String::from_utf8(buffer[..len].to_vec()).unwrap()
    }

    fn signal(&self, name: &str) {
        assert!(Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap().success());
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_service_manager_is_told_of_start_and_end() {
    let directory = Directory::new("relay-notify");
    let mut service = Service::start(&directory, None);
    assert_eq!(service.says(), "READY=1\n");
    service.signal("-TERM");
    assert_eq!(service.says(), "STOPPING=1\nEXTEND_TIMEOUT_USEC=17000000\n");
    assert_eq!(service.child.wait().unwrap().code(), Some(0));
}

#[test]
fn the_watchdog_is_told_that_the_threads_go_on() {
    let directory = Directory::new("relay-watchdog");
    let service = Service::start(&directory, Some("100000"));
    assert_eq!(service.says(), "READY=1\n");
    for _ in 0..5 {
        assert_eq!(service.says(), "WATCHDOG=1\n");
    }
}
