//! What the tunnel asks of its host: the resolver of its names, and the commands of its file. The host's programs are stand-ins that write down how
//! they are called; they say what they are by their first line.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use crate::support::{
    Process, in_namespace,
    tunnel::{NAME, Sides},
};

const DNS: &str = "DNS = 10.0.0.2, fd00::2, corp.example";

/// A directory of stand-ins, and what they wrote down.
struct StandIns {
    directory: PathBuf,
    path: String,
}

impl StandIns {
    fn new(sides: &Sides) -> Self {
        let directory = sides.directory.path.join("bin");
        fs::create_dir(&directory).unwrap();
        let path = format!("{}:{}", directory.display(), std::env::var("PATH").unwrap());
        Self { directory, path }
    }

    /// A program that writes down its arguments and what it is given, and ends with this code.
    fn add(&self, name: &str, code: u8) {
        let calls = self.calls_file();
        let script = format!(
            "#!/bin/sh\n# A stand-in for {name}.\n{{ echo \"{name} $*\"; cat; }} >> {}\nexit {code}\n",
            calls.display()
        );
        let file = self.directory.join(name);
        fs::write(&file, script).unwrap();
        fs::set_permissions(&file, PermissionsExt::from_mode(0o755)).unwrap();
    }

    fn calls(&self) -> String {
        let calls = fs::read_to_string(self.calls_file()).unwrap_or_default();
        let _ = fs::remove_file(self.calls_file());
        calls
    }

    fn calls_file(&self) -> PathBuf {
        self.directory.join("calls")
    }

    fn command(&self, sides: &Sides, arguments: &[&str]) -> std::process::Command {
        sides.program_by(&["env", &format!("PATH={}", self.path)], arguments.iter().copied())
    }

    /// Opens a tunnel, and closes it by SIGTERM.
    fn up_and_down(&self, sides: &Sides, file: &Path, arguments: &[&str]) -> String {
        let arguments = [&["up", file.to_str().unwrap()], arguments].concat();
        let mut process = Process::spawn("tunnel", self.command(sides, &arguments));
        process.wait_for(&format!("{NAME} is up"));
        let while_up = self.calls();
        assert!(process.stop().success());
        while_up
    }

    /// The exit code, and what is on stderr.
    fn fails(&self, sides: &Sides, file: &Path, arguments: &[&str]) -> (i32, String) {
        let arguments = [&["up", file.to_str().unwrap()], arguments].concat();
        let out = self.command(sides, &arguments).output().unwrap();
        (out.status.code().unwrap(), String::from_utf8(out.stderr).unwrap())
    }
}

#[test]
fn resolvconf_is_given_the_servers_and_loses_them() {
    in_namespace("surroundings::resolvconf_is_given_the_servers_and_loses_them", &[], || {
        let sides = Sides::apart();
        let stand_ins = StandIns::new(&sides);
        let file = sides.directory.file(&format!("{NAME}.conf"), &sides.configuration(DNS, ""));
        stand_ins.add("resolvconf", 0);
        assert_eq!(
            stand_ins.up_and_down(&sides, &file, &[]),
            "resolvconf -a bw0 -m 0 -x\nnameserver 10.0.0.2\nnameserver fd00::2\nsearch corp.example\n"
        );
        assert_eq!(stand_ins.calls(), "resolvconf -d bw0 -f\n");
        assert_eq!(stand_ins.up_and_down(&sides, &file, &["--no-dns"]), "");
        // One that refuses is no reason to be without the tunnel.
        stand_ins.add("resolvconf", 1);
        assert!(stand_ins.up_and_down(&sides, &file, &[]).starts_with("resolvconf -a"));
        assert_eq!(stand_ins.calls(), "");
    });
}

#[test]
fn systemd_resolved_is_given_the_servers_and_loses_them() {
    in_namespace("surroundings::systemd_resolved_is_given_the_servers_and_loses_them", &[], || {
        let sides = Sides::apart();
        let stand_ins = StandIns::new(&sides);
        let file = sides.directory.file(&format!("{NAME}.conf"), &sides.configuration(DNS, ""));
        sides.here.run("mkdir -p /run/systemd/resolve");
        stand_ins.add("resolvectl", 0);
        stand_ins.add("resolvconf", 0);
        assert_eq!(
            stand_ins.up_and_down(&sides, &file, &[]),
            "resolvectl dns bw0 10.0.0.2 fd00::2\nresolvectl domain bw0 ~. corp.example\n"
        );
        assert_eq!(stand_ins.calls(), "resolvectl revert bw0\n");
        let search_alone =
            sides.directory.file(&format!("{NAME}.conf"), &sides.configuration("DNS = corp.example", ""));
        assert_eq!(
            stand_ins.up_and_down(&sides, &search_alone, &[]),
            "resolvectl dns bw0\nresolvectl domain bw0 corp.example\n"
        );
    });
}

#[test]
fn without_a_resolver_the_way_out_is_named() {
    in_namespace("surroundings::without_a_resolver_the_way_out_is_named", &[], || {
        let sides = Sides::apart();
        let mut stand_ins = StandIns::new(&sides);
        stand_ins.path = stand_ins.directory.display().to_string();
        let before = sides.here.run("ip -j link");
        let file = sides.directory.file(&format!("{NAME}.conf"), &sides.configuration(DNS, ""));
        let (code, said) = stand_ins.fails(&sides, &file, &[]);
        assert_eq!(code, 1, "{said}");
        assert!(said.contains("DNS = 10.0.0.2, fd00::2, corp.example: neither") && said.contains("--no-dns"), "{said}");
        assert_eq!(sides.here.run("ip -j link"), before);
        stand_ins.up_and_down(&sides, &file, &["--no-dns"]);
    });
}

#[test]
fn hooks_run_in_their_order_if_they_are_allowed() {
    in_namespace("surroundings::hooks_run_in_their_order_if_they_are_allowed", &[], || {
        let sides = Sides::apart();
        let stand_ins = StandIns::new(&sides);
        let note = |what: &str| {
            format!("echo {what} $(ip -br link show %i 2>&1 | cut -d\" \" -f1) >> {}", stand_ins.calls_file().display())
        };
        let hooks = format!(
            "PostDown = {}\nPostUp = {}\nPreUp = {}\nPostUp = {}\nPreDown = {}",
            note("gone"),
            note("first"),
            note("before"),
            note("second"),
            note("ending")
        );
        let file = sides.directory.file(&format!("{NAME}.conf"), &sides.configuration(&hooks, ""));
        stand_ins.up_and_down(&sides, &file, &[]);
        assert_eq!(stand_ins.calls(), "", "not without the flag");

        let arguments = ["up", file.to_str().unwrap(), "--allow-hooks"];
        let mut process = Process::spawn("tunnel", stand_ins.command(&sides, &arguments));
        process.wait_for(&format!("{NAME} is up"));
        while !fs::read_to_string(stand_ins.calls_file()).unwrap_or_default().contains("second") {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        assert!(process.stop().success());
        assert_eq!(stand_ins.calls(), "before Device\nfirst bw0\nsecond bw0\nending bw0\ngone Device\n");

        let before = sides.here.run("ip -j link");
        for (hook, after) in [("PreUp = exit 7", ""), ("PostUp = exit 7", "gone Device\n")] {
            let hooks = format!("{hook}\nPostDown = {}", note("gone"));
            let file = sides.directory.file(&format!("{NAME}.conf"), &sides.configuration(&hooks, ""));
            let (code, said) = stand_ins.fails(&sides, &file, &["--allow-hooks"]);
            assert_eq!((code, stand_ins.calls().as_str()), (1, after), "{said}");
            assert!(said.contains(&format!("{}: exit 7: exit code 7", &hook[..hook.len() - 9])), "{said}");
            assert_eq!(sides.here.run("ip -j link"), before);
        }

        fs::set_permissions(&file, PermissionsExt::from_mode(0o620)).unwrap();
        let (code, said) = stand_ins.fails(&sides, &file, &["--allow-hooks"]);
        assert_eq!(code, 2, "{said}");
        assert!(said.contains("others than root can write to it (mode 0620)"), "{said}");
    });
}
