//! Tests that need a network of their own run themselves again inside one. Also used by other crates' tests.

use std::{env, process::Command};

const INSIDE: &str = "BACKWATER_TEST_NETNS";

/// For a shell: takes the links of its network down, which empties their queues. What waits in a slow queue keeps its network
/// alive when nothing else does, for hours; and any ICMP messages in it keep the kernel's room for them, which all networks
/// share: after some forty such tests nothing on the machine was answered by ICMP any more.
pub const TAKE_LINKS_DOWN: &str =
    r"for link in $(sed -n 's/^ *\([^ ]*\):.*/\1/p' /proc/net/dev); do ip link set $link down; done";

/// Runs `inside` in a fresh user and network namespace: the calling test, `name`, is started again there. As an
/// ordinary user too; where the kernel does not allow it the test is skipped with a line that says so, which is a
/// failure under `CI=true`.
pub fn in_namespace(name: &str, inside: impl FnOnce()) {
    if env::var_os(INSIDE).is_some() {
        ip("link set lo up");
        return inside();
    }
    for (program, why) in [("unshare", "util-linux"), ("ip", "iproute2"), ("tc", "iproute2")] {
        if !installed(program) {
            return skip(&format!("{program} is not installed (package {why})"));
        }
    }
    // A user namespace makes root of an ordinary user; root itself may be forbidden to make one, and needs none.
    let is_root = Command::new("id").arg("-u").output().is_ok_and(|o| o.stdout == b"0\n");
    let flags = if is_root { "-n" } else { "-Urn" };
    if !Command::new("unshare").args([flags, "true"]).output().is_ok_and(|o| o.status.success()) {
        return skip(&format!("unshare {flags} is not allowed here"));
    }
    let status = Command::new("unshare")
        .args([flags, "sh", "-c", &format!("\"$@\"; status=$?; {TAKE_LINKS_DOWN}; exit $status"), "sh"])
        .arg(env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env("PATH", path())
        .env(INSIDE, "1")
        .status()
        .unwrap();
    assert!(status.success(), "{name} failed inside its namespace");
}

/// Runs it on a runtime of this thread's own.
#[allow(dead_code, reason = "not every crate's tests want one")]
pub fn block_on<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test)
}

/// Whether a program can be started.
pub fn installed(program: &str) -> bool {
    env::split_paths(&path()).any(|dir| dir.join(program).is_file())
}

/// Says why a test does not run. A failure under `CI=true`.
pub fn skip(why: &str) {
    assert!(env::var_os("CI").is_none_or(|ci| ci != "true"), "skipped under CI: {why}");
    eprintln!("skipped: {why}");
}

/// Datagrams that have found a receive buffer full in this thread's network: on a busy machine, a reader comes too late for some.
#[cfg(target_os = "linux")]
#[allow(dead_code, reason = "not every crate's tests want it")]
pub fn receive_buffer_errors() -> u64 {
    let [v4, v6] = ["/proc/thread-self/net/snmp", "/proc/thread-self/net/snmp6"]
        .map(|file| std::fs::read_to_string(file).unwrap_or_default());
    let mut udp = v4.lines().filter_map(|line| line.strip_prefix("Udp: "));
    let (names, values) = (udp.next().unwrap(), udp.next().unwrap());
    let v4 = names.split(' ').zip(values.split(' ')).find(|(name, _)| *name == "RcvbufErrors").unwrap().1;
    // A kernel without IPv6 has none.
    let v6 = v6.lines().find_map(|line| line.strip_prefix("Udp6RcvbufErrors")).unwrap_or("0");
    v4.parse::<u64>().unwrap() + v6.trim().parse::<u64>().unwrap()
}

/// `ip` with these arguments.
pub fn ip(arguments: &str) {
    run("ip", arguments);
}

/// `tc` with these arguments.
#[allow(dead_code, reason = "not every crate's tests shape a queue")]
pub fn tc(arguments: &str) {
    run("tc", arguments);
}

/// A program with these arguments; it has to succeed.
pub fn run(program: &str, arguments: &str) {
    let out = Command::new(program).args(arguments.split_whitespace()).env("PATH", path()).output().unwrap();
    assert!(out.status.success(), "{program} {arguments}: {}", String::from_utf8_lossy(&out.stderr));
}

/// Where programs are looked for: an ordinary user's path may lack those for administrators.
pub fn path() -> String {
    format!("{}:/usr/sbin:/sbin", env::var("PATH").unwrap_or_default())
}
