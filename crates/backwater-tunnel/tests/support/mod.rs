//! Networks for tests that want several: namespaces joined by veth pairs, processes inside them, and stock WireGuard
//! peers. The calling test is inside a namespace of its own already (`in_namespace`), from which all of them are made.
//!
//! ```ignore
//! in_namespace("name_of_the_test", &[("iperf3", "iperf3")], || {
//!     let (a, b) = (Network::new("a"), Network::new("b"));
//!     a.join(&b, 1); // fe1 in both: 10.9.1.1, fd09:1::1 and 10.9.1.2, fd09:1::2
//!     let peer = b.wireguard("wg0", "[Interface]\n...", &["10.0.0.2/24"]);
//!     let server = b.start("iperf3 -s -1");
//!     server.wait_for("listening");
//!     a.run("iperf3 -c 10.9.1.2");
//! });
//! ```

#![allow(dead_code, reason = "no test wants all of it")]

#[path = "../../../backwater-udp/tests/support/mod.rs"]
mod base;
pub mod traffic;
pub mod tunnel;

use std::{
    ffi::OsStr,
    fs::File,
    io::{BufRead, BufReader, Read, Write},
    net::IpAddr,
    os::fd::AsFd,
    path::PathBuf,
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use base::{TAKE_LINKS_DOWN, installed};
#[allow(unused_imports, reason = "no test wants all of it")]
pub use base::{block_on, ip, path, skip};
use rustix::{
    process::{Pid, Signal, kill_process},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

/// How long anything may take that is done by the time that it returns.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs `inside` in a network namespace of its own, where a TUN device can be made and these programs are installed;
/// else the test is skipped with a line that says what is missing, which is a failure under `CI=true`.
pub fn in_namespace(name: &str, programs: &[(&str, &str)], inside: impl FnOnce()) {
    for (program, package) in programs.iter().chain(&[("nsenter", "util-linux"), ("timeout", "coreutils")]) {
        if !installed(program) {
            return skip(&format!("{program} is not installed (package {package})"));
        }
    }
    if let Err(error) = std::fs::File::options().read(true).write(true).open("/dev/net/tun") {
        return skip(&format!("/dev/net/tun: {error}"));
    }
    base::in_namespace(name, inside);
}

/// A network namespace, with a mount namespace whose `/run` is empty and whose `/sys` shows this network. It lasts as
/// long as the value, or as a process in it.
pub struct Network {
    name: String,
    holder: Child,
    /// It ends with its input.
    stdin: Option<ChildStdin>,
}

impl Network {
    pub fn new(name: &str) -> Self {
        // It ends with its input: with this process at the latest, however that ends.
        let script = format!(
            "mount -t tmpfs tmpfs /run && mount -t sysfs sysfs /sys && ip link set lo up && echo ready && cat
             {TAKE_LINKS_DOWN}"
        );
        let mut holder = command("unshare", ["-nm", "sh", "-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n", "network {name}: {}", holder.wait().unwrap());
        let stdin = holder.stdin.take();
        Self { name: name.to_owned(), holder, stdin }
    }

    /// Joins two networks by a veth pair. Its device is `fe{index}` in both, with 10.9.`index`.1/24 and
    /// fd09:`index`::1/64 here, 10.9.`index`.2 and fd09:`index`::2 there.
    pub fn join(&self, other: &Self, index: u8) {
        let device = format!("fe{index}");
        let (here, there) = (self.holder.id(), other.holder.id());
        ip(&format!("link add {device} netns {here} type veth peer name {device} netns {there}"));
        for (network, end) in [(self, 1), (other, 2)] {
            network.run(&format!("ip link set {device} addrgenmode none"));
            network.run(&format!("ip link set {device} up"));
            network.run(&format!("ip address add {}/24 dev {device}", v4(index, end)));
            network.run(&format!("ip address add {}/64 dev {device} nodad", v6(index, end)));
        }
        // The kernel takes a device into use some time after it was set up.
        for address in [v4(index, 2), v6(index, 2)] {
            self.run_until(&format!("ping -c 1 -W 1 {address}"));
        }
    }

    /// What runs a command here, as it is written: words and no quotes.
    pub fn command(&self, line: &str) -> Command {
        self.command_of(line.split_whitespace())
    }

    /// What runs a program here, with these arguments.
    pub fn command_of<S: AsRef<OsStr>>(&self, program: impl IntoIterator<Item = S>) -> Command {
        let mut command = command("nsenter", ["-n", "-m", "-t"]);
        command.arg(self.holder.id().to_string()).arg("--").args(program);
        command
    }

    /// Runs a command to its end, which must be a good one, and within a minute. What it wrote to its standard output.
    pub fn run(&self, line: &str) -> String {
        self.run_with(line, "")
    }

    /// The same, with this to read for it.
    pub fn run_with(&self, line: &str, input: &str) -> String {
        let (succeeded, output) = self.try_run(line, input);
        assert!(succeeded, "{}: {line}:\n{output}", self.name);
        output
    }

    /// Runs a command again and again until it succeeds, for a minute.
    pub fn run_until(&self, line: &str) -> String {
        let end = Instant::now() + PATIENCE;
        loop {
            let (succeeded, output) = self.try_run(line, "");
            if succeeded {
                return output;
            }
            assert!(Instant::now() < end, "{}: {line}:\n{output}", self.name);
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Whether it succeeds, and what it wrote: its errors too if it does not.
    pub fn try_run(&self, line: &str, input: &str) -> (bool, String) {
        let seconds = PATIENCE.as_secs().to_string();
        let words = ["timeout", "-k", "1", &seconds].into_iter().chain(line.split_whitespace());
        let mut child =
            self.command_of(words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // It may end without having read it.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        let out = child.wait_with_output().unwrap();
        let mut output = String::from_utf8_lossy(&out.stdout).into_owned();
        if !out.status.success() {
            output.push_str(&String::from_utf8_lossy(&out.stderr));
        }
        (out.status.success(), output)
    }

    /// Where a file of this network's is, for this process.
    pub fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.holder.id()))
    }

    /// Runs this here, in a thread of its own.
    pub fn spawn<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        let network = File::open(format!("/proc/{}/ns/net", self.holder.id())).unwrap();
        std::thread::spawn(move || {
            move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            work()
        })
    }

    /// Runs this here, and waits for it.
    pub fn within<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        self.spawn(work).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Starts a command, to be ended when the value is dropped.
    pub fn start(&self, line: &str) -> Process {
        Process::spawn(&format!("{}: {line}", self.name), self.command(line))
    }

    /// Starts wireguard-go as the device `name`, with these addresses and a configuration as `wg setconf` has it. Its
    /// routes are those of the addresses; `ip route add` adds more.
    pub fn wireguard(&self, name: &str, configuration: &str, addresses: &[&str]) -> Process {
        // One that was killed leaves it; wireguard-go and wg would both remove it, and wireguard-go fail if it is second.
        self.run(&format!("rm -f /run/wireguard/{name}.sock"));
        let mut command = self.command(&format!("wireguard-go -f {name}"));
        command.env("LOG_LEVEL", "verbose");
        let process = Process::spawn(&format!("{}: wireguard-go {name}", self.name), command);
        // wg removes a socket that is there and does not accept yet.
        process.wait_for("UAPI listener started");
        self.run_until(&format!("wg show {name}"));
        self.run_with(&format!("wg setconf {name} /dev/stdin"), configuration);
        self.run(&format!("ip link set {name} addrgenmode none"));
        for address in addresses {
            let nodad = if address.contains(':') { "nodad" } else { "" };
            self.run(&format!("ip address add {address} dev {name} {nodad}"));
        }
        self.run(&format!("ip link set {name} up"));
        process
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        drop(self.stdin.take());
        let _ = self.holder.wait();
    }
}

/// The IPv4 address of an end (1 or 2) of the pair with this index.
pub fn v4(index: u8, end: u8) -> IpAddr {
    [10, 9, index, end].into()
}

/// The IPv6 address of an end (1 or 2) of the pair with this index.
pub fn v6(index: u8, end: u8) -> IpAddr {
    [0xfd09, index.into(), 0, 0, 0, 0, 0, end.into()].into()
}

/// A fresh private key and its public key, in base64.
pub fn keys() -> (String, String) {
    let wg = |what: &str, input: &str| {
        let mut child = command("wg", [what]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let out = child.wait_with_output().unwrap();
        assert!(out.status.success(), "wg {what}");
        String::from_utf8(out.stdout).unwrap().trim().to_owned()
    };
    let private = wg("genkey", "");
    let public = wg("pubkey", &private);
    (private, public)
}

/// A process, ended with the value. What it writes is kept, and shown if the test fails.
pub struct Process {
    what: String,
    child: Child,
    output: Arc<Output>,
}

#[derive(Default)]
struct Output {
    text: Mutex<String>,
    more: Condvar,
}

impl Process {
    /// Starts it.
    pub fn spawn(what: &str, mut command: Command) -> Self {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let output = Arc::<Output>::default();
        keep(child.stdout.take().unwrap(), output.clone());
        keep(child.stderr.take().unwrap(), output.clone());
        Self { what: what.to_owned(), child, output }
    }

    /// Its id, that of the command itself.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has written until now, to its standard output and error.
    pub fn output(&self) -> String {
        self.output.text.lock().unwrap().clone()
    }

    /// Waits for a minute until it has written this.
    pub fn wait_for(&self, text: &str) {
        let output = self.output.text.lock().unwrap();
        let (output, _) =
            self.output.more.wait_timeout_while(output, PATIENCE, |output| !output.contains(text)).unwrap();
        assert!(output.contains(text), "{} did not say {text:?}", self.what);
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for a minute until it has ended.
    pub fn wait(&mut self) -> ExitStatus {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < end, "{} does not end", self.what);
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends it by `SIGTERM`, and waits until it has ended.
    pub fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait()
    }

    /// The memory that it has resident, in bytes.
    pub fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- {}\n{}", self.what, self.output());
        }
    }
}

fn keep(from: impl Read + Send + 'static, output: Arc<Output>) {
    std::thread::spawn(move || {
        for line in BufReader::new(from).split(b'\n').map_while(Result::ok) {
            let mut text = output.text.lock().unwrap();
            text.push_str(&String::from_utf8_lossy(&line));
            text.push('\n');
            output.more.notify_all();
        }
    });
}

fn command<S: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).env("PATH", path());
    command
}
