//! The commands beside running the relay, as an operator types them.

use std::{
    path::{Path, PathBuf},
    process::Output,
};

use crate::program::command;

/// Runs the program: exit code, stdout, stderr.
fn run(args: &[&str]) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = command(args).output().unwrap();
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

/// A file that is deleted at the end, and that its owner alone can read.
struct File(PathBuf);

impl File {
    fn new(text: &str) -> Self {
        let path = std::env::temp_dir().join(format!("backwater-{}-{}", std::process::id(), fastrand::u64(..)));
        std::fs::write(&path, text).unwrap();
        #[cfg(unix)]
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        Self(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn check_config_says_all_mistakes_with_their_lines_and_exits_with_2() {
    let file = File::new("listen = [\"nowhere\"]\n\nports = \"9-8\"\nrelm = \"example.org\"\nuser = [\"alice\"]\n");
    let (code, out, err) = run(&["check-config", file.path()]);
    assert_eq!((code, &*out), (Some(2), ""), "{err}");
    let lines: Vec<_> = err.lines().collect();
    let name = format!("backwater-relay: {}", file.path());
    for (line, parts) in [
        (1, ["listen: expected an address and a port", "found \"nowhere\""]),
        (3, ["ports: expected two ports", "found \"9-8\""]),
        (4, ["relm: unknown", "did you mean realm?"]),
        (5, ["user: expected NAME:PASSWORD", "found no colon"]),
    ] {
        let start = format!("{name}, line {line}: {}", parts[0]);
        assert!(lines.iter().any(|l| l.starts_with(&start) && l.contains(parts[1])), "{start}: {err}");
    }
    assert_eq!(lines.len(), 4, "{err}");
}

#[test]
fn check_config_of_a_good_file_says_what_it_serves() {
    let file = File::new("listen = [\"192.0.2.10:3478\"]\nrealm = \"example.org\"\nuser = [\"alice:correct horse\"]\n");
    for args in [&["check-config", file.path()][..], &["--config", file.path(), "check-config"]] {
        let (code, out, err) = run(args);
        assert_eq!((code, &*err, out.lines().count()), (Some(0), "", 1), "{out}");
        for part in ["192.0.2.10:3478", "49152-65535", "realm example.org", "users 1", "secrets 0"] {
            assert!(out.contains(part), "{part}: {out}");
        }
        assert!(!out.contains("horse"), "{out}");
    }
    let (code, _, err) = run(&["check-config", "/nonexistent.toml"]);
    assert!(code == Some(2) && err.contains("/nonexistent.toml: cannot be read"), "{err}");
    assert!(Path::new(file.path()).exists());
}
