//! The live page, in a real browser.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use serde_json::Value;

use crate::{
    admin::{get, start_with_admin},
    support::{installed, skip},
};

/// Where npm has put playwright-core.
fn modules() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/node/node_modules");
    env::var_os("BACKWATER_NODE_MODULES").map_or(here, PathBuf::from)
}

/// Chromium by playwright-core: the keyboard, a phone, and the test of the relay by two peer connections. With `BACKWATER_SCREENSHOT`, the
/// page as it is then goes to that file.
#[test]
fn page_tests_the_relay_from_a_browser() {
    for (program, package) in [("chromium", "chromium"), ("node", "nodejs")] {
        if !installed(program) {
            return skip(&format!("{program} is not installed (package {package})"));
        }
    }
    if !modules().join("playwright-core").is_dir() {
        return skip("playwright-core is not installed (npm install --prefix target/node playwright-core)");
    }
    let token = "a-token-of-20-chars.";
    let (mut relay, admin) = start_with_admin(&["--secret", "a long shared secret"]);
    let (mut locked, locked_admin) = start_with_admin(&["--admin-token", token]);
    let mut browser = Command::new("node");
    browser
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/relay/page.cjs"))
        .args([format!("http://{admin}/"), format!("http://{locked_admin}/"), token.to_owned()])
        .args(env::var_os("BACKWATER_SCREENSHOT"))
        .env("NODE_PATH", modules());
    let out = browser.output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let status: Value = serde_json::from_str(&get(admin, "/status").1).unwrap();
    assert!(status["allocations_total"].as_u64().unwrap() >= 2, "{status}");
    assert!(status["bytes"]["to_clients"]["udp"].as_u64().unwrap() > 4 << 20, "{status}");
    relay.stop(Duration::ZERO);
    locked.stop(Duration::ZERO);
}
