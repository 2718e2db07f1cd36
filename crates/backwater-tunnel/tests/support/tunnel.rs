//! This program's tunnel and a stock peer, each in a network of its own.

use std::{
    env, fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde_json::Value;

use super::{Network, Process, keys};

/// The program.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_backwater-tunnel");

/// What these tests need.
pub const PROGRAMS: &[(&str, &str)] =
    &[("wireguard-go", "wireguard-go"), ("wg", "wireguard-tools"), ("ping", "iputils-ping")];

/// The tunnel's and its device's name.
pub const NAME: &str = "bw0";

/// Inside, of our end and of the stock peer's.
pub const HERE: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)), IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1))];
pub const THERE: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2)), IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2))];

/// Two networks, joined as `fe1`, and the keys of both.
pub struct Sides {
    pub here: Network,
    pub there: Network,
    pub directory: Directory,
    here_keys: (String, String),
    there_keys: (String, String),
}

impl Sides {
    pub fn new() -> Self {
        let sides = Self::apart();
        sides.here.join(&sides.there, 1);
        sides
    }

    /// The same, and the networks are not joined.
    pub fn apart() -> Self {
        Self {
            here: Network::new("here"),
            there: Network::new("there"),
            directory: Directory::new(),
            here_keys: keys(),
            there_keys: keys(),
        }
    }

    /// The public key of our end, and that of the stock peer.
    pub fn public_keys(&self) -> [&str; 2] {
        [&self.here_keys.1, &self.there_keys.1]
    }

    /// A configuration of our end; the lines are added to its sections.
    pub fn configuration(&self, interface: &str, peer: &str) -> String {
        format!(
            "[Interface]\nPrivateKey = {}\nAddress = 10.0.0.1/24, fd00::1/64\n{interface}\n[Peer]\nPublicKey = {}\n\
             AllowedIPs = 10.0.0.2/32, fd00::2/128\n{peer}\n",
            self.here_keys.0, self.there_keys.1
        )
    }

    /// Opens a tunnel of such a configuration, and waits until it is open.
    pub fn up(&self, interface: &str, peer: &str) -> Tunnel<'_> {
        self.up_with(&self.configuration(interface, peer), &[])
    }

    /// Opens a tunnel, and waits until it is open.
    pub fn up_with(&self, configuration: &str, arguments: &[&str]) -> Tunnel<'_> {
        self.up_by(&[], configuration, arguments)
    }

    /// The same by another program, which is given ours and its arguments.
    pub fn up_by(&self, other: &[&str], configuration: &str, arguments: &[&str]) -> Tunnel<'_> {
        let file = self.directory.file(&format!("{NAME}.conf"), configuration);
        let command = ["up", file.to_str().unwrap()].into_iter().chain(arguments.iter().copied());
        let process = Process::spawn("tunnel", self.program_by(other, command));
        process.wait_for(&format!("{NAME} is up"));
        Tunnel { process, sides: self }
    }

    /// What runs our program in our network. Its files are in this test's directory, its control socket in `/run`.
    pub fn program<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> std::process::Command {
        self.program_by(&[], arguments)
    }

    /// The same by another program, which is given ours and its arguments.
    pub fn program_by<'a>(
        &self,
        other: &[&'a str],
        arguments: impl IntoIterator<Item = &'a str>,
    ) -> std::process::Command {
        let mut command = self.here.command_of(other.iter().copied().chain([PROGRAM]).chain(arguments));
        self.environment(&mut command);
        command
    }

    /// Puts the program's files into this test's directory, and its control socket into `/run`.
    pub fn environment(&self, command: &mut std::process::Command) {
        command.env("XDG_CACHE_HOME", &self.directory.path).env("XDG_RUNTIME_DIR", "/run").env_remove("NOTIFY_SOCKET");
    }

    /// Where the program writes its logs.
    pub fn log_directory(&self) -> PathBuf {
        self.directory.path.join("dev.backwater.client/data/logs")
    }

    /// What it does, writes and says of errors.
    pub fn output<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> (i32, String, String) {
        let out = self.program(arguments).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (out.status.code().unwrap(), text(out.stdout), text(out.stderr))
    }

    /// Starts the stock peer as `wg0` with the port 51820. Our end is its only peer; the lines are added to that.
    pub fn stock(&self, peer: &str) -> Process {
        let configuration = format!(
            "[Interface]\nPrivateKey = {}\nListenPort = 51820\n[Peer]\nPublicKey = {}\n\
             AllowedIPs = 10.0.0.1/32, fd00::1/128\n{peer}\n",
            self.there_keys.0, self.here_keys.1
        );
        self.there.wireguard("wg0", &configuration, &["10.0.0.2/24", "fd00::2/64"])
    }

    /// A configuration of the other end, for this program.
    pub fn peer_configuration(&self) -> PathBuf {
        let configuration = format!(
            "[Interface]\nPrivateKey = {}\nListenPort = 51820\nAddress = 10.0.0.2/24, fd00::2/64\n[Peer]\nPublicKey = {}\n\
             AllowedIPs = 10.0.0.1/32, fd00::1/128\n",
            self.there_keys.0, self.here_keys.1
        );
        self.directory.file("peer.conf", &configuration)
    }

    /// Starts this program as the peer, where the stock one would be.
    pub fn own_peer(&self) -> Process {
        let file = self.peer_configuration();
        let mut command = self.there.command_of([PROGRAM, "up", file.to_str().unwrap()]);
        self.environment(&mut command);
        command.env("XDG_CACHE_HOME", self.directory.path.join("peer"));
        let process = Process::spawn("peer", command);
        process.wait_for("peer is up");
        process
    }
}

/// Our end of a tunnel. It is killed with the value.
pub struct Tunnel<'a> {
    pub process: Process,
    sides: &'a Sides,
}

impl Tunnel<'_> {
    /// What `status --json` says.
    pub fn status(&self) -> Value {
        let (code, out, err) = self.sides.output(["status", NAME, "--json"]);
        assert_eq!((code, &*err), (0, ""), "{out}");
        serde_json::from_str(&out).unwrap()
    }

    /// The device's counter of this name, or of a datagram that belongs to no peer.
    pub fn device(&self, name: &str) -> u64 {
        number(&self.status()["device"], name)
    }

    /// The only peer's counter of this name.
    pub fn peer(&self, name: &str) -> u64 {
        number(&self.status()["peers"][0]["counters"], name)
    }

    /// Its log, all files of it.
    pub fn log(&self) -> String {
        // The first line makes it.
        let Ok(entries) = fs::read_dir(self.sides.log_directory()) else { return String::new() };
        let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files.iter().map(|file| fs::read_to_string(file).unwrap()).collect()
    }

    /// Waits until its log has this text.
    pub fn wait_for_log(&self, text: &str, at_most: Duration) {
        let begin = Instant::now();
        while !self.log().contains(text) {
            assert!(begin.elapsed() < at_most, "its log does not have {text:?}:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// How often it has gone to sleep of its own accord.
    pub fn sleeps(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let count = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
        count.trim().parse().unwrap()
    }

    /// Seconds of processor time that it has taken, to a hundredth (`USER_HZ`).
    pub fn processor_seconds(&self) -> f64 {
        [11, 12].map(|at| self.stat(at) as f64).iter().sum::<f64>() / 100.0
    }

    /// Its niceness, -20 to 19.
    pub fn niceness(&self) -> i64 {
        self.stat(16)
    }

    /// A field of `/proc/PID/stat`, from its state on.
    fn stat(&self, at: usize) -> i64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.process.id())).unwrap();
        stat.rsplit_once(')').unwrap().1.split_whitespace().nth(at).unwrap().parse().unwrap()
    }

    /// How many descriptors it has open.
    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.process.id())).unwrap().count()
    }
}

/// If the test fails: what the tunnel and the kernel have counted.
impl Drop for Tunnel<'_> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let (_, status, _) = self.sides.output(["status", NAME, "--json"]);
        eprintln!("--- tunnel: status\n{status}\n--- tunnel: log\n{}", self.log());
        for network in [&self.sides.here, &self.sides.there] {
            let what = "cat /proc/net/udp /proc/net/udp6 /proc/net/snmp /proc/net/snmp6";
            for line in [what, "ip -s link", "ip neigh", "ip -6 neigh"] {
                eprintln!("--- {line}\n{}", network.try_run(line, "").1);
            }
        }
    }
}

pub fn number(fields: &Value, name: &str) -> u64 {
    fields[name].as_u64().unwrap_or_else(|| panic!("no {name} in {fields}"))
}

/// A directory that is gone with it.
pub struct Directory {
    pub path: PathBuf,
}

impl Directory {
    pub fn new() -> Self {
        let path = env::temp_dir().join(format!("backwater-tunnel-{}-{:x}", std::process::id(), fastrand::u64(..)));
        fs::DirBuilder::new().mode(0o700).create(&path).unwrap();
        Self { path }
    }

    /// A file that only its owner can read.
    pub fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path.join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        path
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

impl AsRef<Path> for Directory {
    fn as_ref(&self) -> &Path {
        &self.path
    }
}
