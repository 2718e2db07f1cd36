//! The commands of `docs/operations.md`, as they are written, with the files that the page shows.

use std::{env, fs, path::Path, process::Command};

use crate::{
    support::{in_namespace, installed, skip},
    webrtc::snippets_of,
};

/// Programs that the commands need beside the relay: the program, and its package.
const NEEDED: [(&str, &str); 1] = [("jq", "jq")];

#[cfg(unix)]
#[test]
fn every_command_of_the_page_does_what_it_says() {
    for (program, package) in NEEDED {
        if !installed(program) {
            return skip(&format!("{program} is not installed (package {package})"));
        }
    }
    in_namespace("operations::every_command_of_the_page_does_what_it_says", || {
        let directory = env::temp_dir().join(format!("backwater-operations-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let relay = Path::new(env!("CARGO_BIN_EXE_backwater-relay")).parent().unwrap();
        let path = format!("{}:{}", relay.display(), env::var("PATH").unwrap_or_default());
        let mut commands = 0;
        for (language, text) in snippets_of("operations.md") {
            let first = text.lines().next().unwrap_or_default();
            // For root, a registry or a cluster.
            if language == "text" {
                continue;
            }
            if language != "sh" {
                let name =
                    first.strip_prefix("# ").unwrap_or_else(|| panic!("a {language} block without a name: {text}"));
                fs::write(directory.join(name), &text).unwrap();
                continue;
            }
            let code = first.strip_prefix("# exits with ").map_or(0, |code| code.parse().unwrap());
            let out =
                Command::new("sh").args(["-euc", &text]).current_dir(&directory).env("PATH", &path).output().unwrap();
            assert_eq!(out.status.code(), Some(code), "{text}\n{}", String::from_utf8_lossy(&out.stderr));
            commands += 1;
        }
        assert!(commands > 0);
        fs::remove_dir_all(directory).unwrap();
    });
}
