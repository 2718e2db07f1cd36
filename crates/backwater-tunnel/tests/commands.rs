//! The program as people start it: `check` and `generate`.
#![allow(missing_docs, clippy::unwrap_used)]

use std::{
    env, fs,
    net::UdpSocket,
    path::{Path, PathBuf},
    process::Command,
    sync::mpsc,
    thread,
    time::Duration,
};

use backwater_tunnel::config::{Config, Key};
use boringtun::{
    noise::{Tunn, TunnResult},
    x25519,
};

const PRIVATE: &str = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=";
const PEER: &str = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";

/// A directory that is gone with it.
struct Place(PathBuf);

impl Place {
    fn new() -> Self {
        let path = env::temp_dir().join(format!("backwater-tunnel-{}-{:x}", std::process::id(), fastrand::u64(..)));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, text).unwrap();
        #[cfg(unix)]
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        path
    }

    /// A configuration with one peer at this endpoint.
    fn peer_at(&self, endpoint: &str) -> PathBuf {
        let text = format!("[Interface]\nPrivateKey={PRIVATE}\n[Peer]\nPublicKey={PEER}\nEndpoint={endpoint}\n");
        self.file("t.conf", &text)
    }

    fn generate(&self, endpoint: &str) -> [PathBuf; 2] {
        let (code, out, err) = run(&["generate", "--endpoint", endpoint, "--dir", self.0.to_str().unwrap()]);
        assert_eq!((code, &*err), (0, ""), "{out}");
        ["server.conf", "client.conf"].map(|name| self.0.join(name))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn output(command: &mut Command) -> (i32, String, String) {
    let out = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (out.status.code().unwrap(), text(out.stdout), text(out.stderr))
}

fn run(args: &[&str]) -> (i32, String, String) {
    output(Command::new(env!("CARGO_BIN_EXE_backwater-tunnel")).args(args))
}

fn check(path: &Path) -> (i32, String, String) {
    run(&["check", path.to_str().unwrap()])
}

/// Answers handshakes with the server's configuration, and tells the types of all messages that come.
fn server(config: &Config) -> (u16, mpsc::Receiver<u8>) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = socket.local_addr().unwrap().port();
    let private = x25519::StaticSecret::from(config.interface.private_key.0);
    let peer = &config.peers[0];
    let public = x25519::PublicKey::from(peer.public_key.0);
    let preshared = peer.preshared_key.as_ref().map(|Key(bytes)| *bytes);
    let mut tunn = Tunn::new(private, public, preshared, None, 1, None);
    let (sender, types) = mpsc::channel();
    thread::spawn(move || {
        let (mut message, mut answer) = ([0; 2048], [0; 2048]);
        while let Ok((len, from)) = socket.recv_from(&mut message) {
            if sender.send(message[0]).is_err() {
                break;
            }
            if let TunnResult::WriteToNetwork(bytes) = tunn.decapsulate(Some(from.ip()), &message[..len], &mut answer) {
                socket.send_to(bytes, from).unwrap();
            }
        }
    });
    (port, types)
}

#[test]
fn a_bad_configuration_is_a_line_for_each_error_and_exit_2() {
    let place = Place::new();
    let path = place.file("a name.conf", "[Interface]\nMTU=1\nTable=x\n[Peer]\nPublicKey=y\n");
    let (code, out, err) = check(&path);
    assert_eq!((code, &*out), (2, ""));
    let lines: Vec<_> = err.lines().collect();
    let name = path.to_str().unwrap();
    let starts = [
        format!("{name}: the file's name names the tunnel: found \"a name\""),
        format!("{name}:1: PrivateKey: found none"),
        format!("{name}:2: MTU: found \"1\""),
        format!("{name}:3: Table: found "),
        format!("{name}:5: PublicKey: found 1 character"),
    ];
    assert_eq!(lines.len(), starts.len(), "{err}");
    assert!(lines.iter().zip(&starts).all(|(line, start)| line.starts_with(start)), "{err}");
    assert_eq!(check(&place.0.join("none.conf")).0, 2);
}

#[test]
fn what_generate_writes_checks_and_its_peer_answers() {
    let place = Place::new();
    let [server_path, client_path] = place.generate("127.0.0.1:9");
    let (code, out, err) = check(&server_path);
    assert_eq!((code, &*err), (0, ""), "{out}");
    assert!(out.ends_with("no endpoint to try: it has to call\n"), "{out}");

    let (port, types) = server(&Config::read(&server_path).unwrap().0);
    for (endpoint, shown) in [("127.0.0.1", "127.0.0.1"), ("localhost", "localhost, 127.0.0.1")] {
        let text = fs::read_to_string(&client_path).unwrap();
        let path = place.file("c.conf", &text.replace("127.0.0.1:9", &format!("{endpoint}:{port}")));
        let (code, out, err) = check(&path);
        assert_eq!((code, &*err), (0, ""), "{out}");
        assert!(out.contains(&format!(" at {shown}:{port}: answered in ")), "{out}");
        assert!(out.ends_with("1 of 1 peers with an endpoint answered\n"), "{out}");
    }
    // Nothing confirms the handshakes: a peer would go on to use them.
    thread::sleep(Duration::from_millis(200));
    let types: Vec<_> = types.try_iter().collect();
    assert!(types.len() >= 2 && types.iter().all(|&kind| kind == 1), "{types:?}");
}

#[test]
fn whoever_has_another_key_stays_silent() {
    let (place, other) = (Place::new(), Place::new());
    let [server_path, _] = place.generate("127.0.0.1:9");
    let (port, types) = server(&Config::read(&server_path).unwrap().0);
    let [_, client_path] = other.generate(&format!("127.0.0.1:{port}"));
    let (code, out, _) = check(&client_path);
    assert_eq!(code, 1, "{out}");
    assert!(out.contains("nothing came back within 5 s: UDP is blocked on the way, a key is wrong, or "), "{out}");
    assert!(out.ends_with("0 of 1 peers with an endpoint answered\n"), "{out}");
    assert!(types.try_iter().count() > 1, "an initiation may be lost, so there are several");
}

#[test]
fn a_port_without_a_listener_is_refused() {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let addr = socket.local_addr().unwrap();
    drop(socket);
    let (code, out, _) = check(&Place::new().peer_at(&addr.to_string()));
    assert_eq!(code, 1);
    assert!(out.contains(&format!("peer {PEER} at {addr}: refused: the host is there")), "{out}");
}

#[test]
fn a_name_that_does_not_resolve_is_said_so() {
    // A label of more than 63 characters is not even asked for.
    let (code, out, _) = check(&Place::new().peer_at(&format!("{}.test:1", "a".repeat(64))));
    assert_eq!(code, 1);
    assert!(out.contains(".test:1: the name does not resolve: "), "{out}");
}

/// In a network without any route.
#[cfg(target_os = "linux")]
#[test]
fn a_network_that_is_not_reached_is_said_so() {
    let (place, program) = (Place::new(), env!("CARGO_BIN_EXE_backwater-tunnel"));
    let unshare = |program: &str| {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--net", program]);
        command
    };
    if !unshare("true").status().is_ok_and(|status| status.success()) {
        eprintln!("skipped: no network namespace can be made here");
        assert!(!env::var("CI").is_ok_and(|value| value == "true"), "CI=true, and no namespace can be made");
        return;
    }
    for addr in ["192.0.2.1:9", "[2001:db8::1]:9"] {
        let (code, out, _) = output(unshare(program).arg("check").arg(place.peer_at(addr)));
        assert_eq!(code, 1);
        assert!(out.contains(&format!(" at {addr}: no route: ")), "{out}");
    }
}

#[test]
fn nothing_is_overwritten_and_no_half_of_a_pair_left() {
    let place = Place::new();
    let directory = place.0.to_str().unwrap();
    for kept in ["server.conf", "client.conf"] {
        let path = place.file(kept, "mine");
        let (code, out, err) = run(&["generate", "--endpoint", "a:1", "--dir", directory]);
        assert_eq!((code, &*out), (1, ""));
        assert!(err.starts_with("backwater-tunnel: ") && err.contains(kept) && err.lines().count() == 1, "{err}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
        fs::remove_file(path).unwrap();
        assert_eq!(fs::read_dir(&place.0).unwrap().count(), 0);
    }
    let (code, _, err) = run(&["generate", "--endpoint", "a"]);
    assert_eq!(code, 2);
    assert!(err.contains("expected IPv4:port, [IPv6]:port or name:port"), "{err}");
}

/// What is written can be used; what cannot is a mistake on the command line.
#[test]
fn generate_refuses_networks_that_check_would_refuse() {
    let place = Place::new();
    let directory = place.0.to_str().unwrap();
    for (networks, problem) in [
        (&["10.9.0.0/31"][..], "room for two hosts"),
        (&["fd00::/127"], "room for two hosts"),
        (&["224.0.0.0/24"], "multicast"),
        (&["ff02::/64"], "multicast"),
        (&["0.0.0.0/0"], "unspecified"),
        (&["127.0.0.0/24"], "loopback"),
        (&["::1/64"], "loopback"),
        (&["255.255.255.0/24"], "broadcast"),
        (&["10.0.0.0/24", "10.0.1.0/24"], "one of each family"),
    ] {
        let mut arguments = vec!["generate", "--endpoint", "192.0.2.1:7", "--dir", directory];
        networks.iter().for_each(|network| arguments.extend(["--network", *network]));
        let (code, out, err) = run(&arguments);
        assert!(
            code == 2 && out.is_empty() && err.contains(problem) && err.contains("--network"),
            "{networks:?}: {code} {err}"
        );
        assert_eq!(fs::read_dir(&place.0).unwrap().count(), 0, "{networks:?}");
    }
    for network in ["10.9.0.0/30", "198.18.0.0/15", "fd00::/126", "100.64.0.0/10"] {
        let place = Place::new();
        let (code, _, err) =
            run(&["generate", "--endpoint", "192.0.2.1:7", "--dir", place.0.to_str().unwrap(), "--network", network]);
        assert_eq!((code, &*err), (0, ""), "{network}");
        let (code, _, err) = check(&place.0.join("server.conf"));
        assert_eq!((code, &*err), (0, ""), "{network}");
    }
}

#[cfg(unix)]
#[test]
fn nobody_else_can_read_what_is_generated() {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::new();
    for path in place.generate("[2001:db8::1]:51820") {
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o7777, 0o600);
    }
}

/// A core file, or a debugger of the same user, would have the keys. The files in `/proc` of such a process are root's.
#[cfg(target_os = "linux")]
#[test]
fn memory_of_the_program_is_hidden_from_its_user() {
    use std::os::unix::fs::{MetadataExt, chown};
    const USER: u32 = 4711;
    let place = Place::new();
    // Nothing answers there, so that it runs for seconds.
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let path = place.peer_at(&silent.local_addr().unwrap().to_string());
    if let Err(error) = chown(&path, Some(USER), None) {
        eprintln!("skipped: no process can be started as another user: {error}");
        return;
    }
    // Another user may have no way to where the program is.
    let program = fs::File::open(env!("CARGO_BIN_EXE_backwater-tunnel")).unwrap();
    let mut child = Command::new("setpriv")
        .args([&format!("--reuid={USER}"), "--clear-groups", "--inh-caps=-all", "/proc/self/fd/0", "check"])
        .arg(path)
        .stdin(program)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    // The first initiation: by then it has read its configuration.
    silent.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    // A signal of another test interrupts a call that has a time limit.
    while let Err(error) = silent.recv(&mut [0; 200]) {
        assert_eq!(error.kind(), std::io::ErrorKind::Interrupted, "{error}");
    }
    let owner = fs::metadata(format!("/proc/{}/environ", child.id())).unwrap().uid();
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(owner, 0);
}
