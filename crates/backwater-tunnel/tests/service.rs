//! The unit file, as systemd reads it.

#![cfg(target_os = "linux")]
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

use std::{fs, path::Path, process::Command};

#[path = "../../backwater-udp/tests/support/mod.rs"]
#[allow(dead_code, reason = "it needs no network")]
mod support;

const UNIT: &str = "backwater-tunnel@.service";

/// The exposure that `systemd-analyze security` may find, in tenths: what it calls OK ends at 49.
const EXPOSURE: &str = "--threshold=25";

#[test]
fn the_unit_is_good_and_hardened() {
    if !support::installed("systemd-analyze") {
        return support::skip("systemd-analyze is not installed (package systemd)");
    }
    let unit = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging").join(UNIT)).unwrap();
    // Where this program is.
    let (installed, here) = ("/usr/bin/backwater-tunnel", env!("CARGO_BIN_EXE_backwater-tunnel"));
    assert!(unit.contains(installed));
    let directory = std::env::temp_dir().join(format!("backwater-unit-{}", std::process::id()));
    fs::create_dir_all(&directory).unwrap();
    let file = directory.join(UNIT);
    fs::write(&file, unit.replace(installed, here)).unwrap();
    for arguments in [&["verify"][..], &["security", "--offline=true", EXPOSURE]] {
        let out = Command::new("systemd-analyze").args(arguments).arg(&file).output().unwrap();
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(
            out.status.success() && said.is_empty(),
            "{arguments:?}: {said}\n{}",
            String::from_utf8_lossy(&out.stdout)
        );
    }
    fs::remove_dir_all(directory).unwrap();
}
