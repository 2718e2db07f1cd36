//! `cargo xtask tidy`: the repository's own rules, tested.
//!
//! Each check is a function from what it reads to the complaints it has, so that its test can show that it fails.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::{cargo::Metadata, stress::TEST_COMMAND};

/// Crates that must do no I/O, and what they must therefore not reach.
const SANS_IO: [&str; 2] = ["backwater-stun", "backwater-turn"];
const IO: [&str; 3] = ["tokio", "socket2", "libc"];

/// The hashes use it to ask which instructions the processor has; on ARM it asks libc, which is no I/O.
const PROCESSOR: &str = "cpufeatures";

/// Crates that others depend on, and that are to be published.
pub(crate) const LIBRARIES: [&str; 3] = ["backwater-stun", "backwater-turn", "backwater-udp"];

/// An optional dependency that needs a newer Rust than the library promises: its feature needs that Rust too.
const NEWER_RUST: &str = "gotatun";

/// The only crate with unsafe code.
const UNSAFE: &str = "backwater-udp";

/// Lines of a source file.
const MAX_LINES: usize = 900;

/// What is not left in a source file. Written in parts, so that this file does not hold them.
const FORBIDDEN: [&str; 5] = [
    concat!("todo", "!"),
    concat!("unimplemented", "!"),
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("#[ign", "ore"),
];

type Complaints = Vec<String>;

pub(crate) fn run(root: &Path) -> Result<()> {
    let metadata = Metadata::read(root)?;
    let mut complaints = dependencies(&metadata);
    complaints.extend(rust_versions(&metadata));
    for (name, manifest) in &metadata.members {
        let text = read(manifest)?;
        complaints.extend(inherits_lints(name, &text));
        for path in roots(manifest) {
            complaints.extend(forbids_unsafe(name, &show(root, &path), &read(&path)?));
        }
    }
    for name in ["README.md", "CONTRIBUTING.md"] {
        complaints.extend(test_command(name, &read(&root.join(name))?));
    }
    let files = files(root)?;
    for path in &files {
        let name = show(root, path);
        match path.extension().and_then(OsStr::to_str) {
            Some("rs") => {
                let text = read(path)?;
                complaints.extend(words(&name, &text).into_iter().chain(length(&name, &text)));
                complaints.extend(whitespace(&name, &text));
            }
            Some("md") => {
                let text = read(path)?;
                complaints.extend(whitespace(&name, &text));
                complaints.extend(links(&name, &text, |target| path.with_file_name(target).exists()));
            }
            Some("toml") => complaints.extend(whitespace(&name, &read(path)?)),
            _ => {}
        }
    }
    complaints.iter().for_each(|complaint| eprintln!("{complaint}"));
    ensure!(complaints.is_empty(), "tidy: {} complaints", complaints.len());
    println!("tidy: {} crates, {} files", metadata.members.len(), files.len());
    Ok(())
}

fn dependencies(metadata: &Metadata) -> Complaints {
    let mut complaints = Vec::new();
    for name in SANS_IO {
        let reached = metadata.reached_from(name, PROCESSOR);
        if reached.is_empty() {
            complaints.push(format!("{name}: there is no such crate; correct the list in tidy"));
        }
        let io = IO.iter().filter(|io| reached.contains(**io));
        complaints.extend(io.map(|io| format!("{name}: depends on {io}, but does no I/O")));
    }
    complaints
}

/// A library builds with the oldest Rust that it promises only if all that it depends on does.
fn rust_versions(metadata: &Metadata) -> Complaints {
    let mut complaints = Vec::new();
    for name in LIBRARIES {
        let Some(promised) = metadata.rust_version(name) else {
            complaints.push(format!("{name}: its manifest lacks `rust-version`"));
            continue;
        };
        let reached = metadata.reached_from(name, NEWER_RUST);
        let newer = reached
            .iter()
            .filter(|on| **on != NEWER_RUST && metadata.rust_version(on).is_some_and(|wanted| wanted > promised));
        complaints.extend(newer.map(|on| format!("{name}: {on} needs a newer Rust than its `rust-version`")));
    }
    complaints
}

fn inherits_lints(name: &str, manifest: &str) -> Option<String> {
    let lints = manifest.split_once("\n[lints]\n").map(|(_, rest)| rest.trim_start());
    let inherits = lints.is_some_and(|rest| rest.starts_with("workspace = true"));
    (!inherits).then(|| format!("{name}: its manifest lacks `[lints] workspace = true`"))
}

fn forbids_unsafe(name: &str, path: &str, source: &str) -> Option<String> {
    let forbids = source.lines().any(|line| line == "#![forbid(unsafe_code)]");
    (name != UNSAFE && !forbids).then(|| format!("{path}: lacks #![forbid(unsafe_code)]"))
}

/// What is written there is what CI runs.
fn test_command(path: &str, text: &str) -> Option<String> {
    let there = text.lines().any(|line| line == TEST_COMMAND);
    (!there).then(|| format!("{path}: lacks the test command that CI runs, `{TEST_COMMAND}`"))
}

fn words(path: &str, source: &str) -> Complaints {
    let mut complaints = Vec::new();
    for (number, line) in lines(source) {
        let found = FORBIDDEN.iter().filter(|word| line.contains(**word));
        complaints.extend(found.map(|word| format!("{path}:{number}: {word}")));
    }
    complaints
}

fn length(path: &str, source: &str) -> Option<String> {
    let count = source.lines().count();
    (count > MAX_LINES).then(|| format!("{path}: {count} lines; more than {MAX_LINES} are two files"))
}

fn whitespace(path: &str, text: &str) -> Complaints {
    let mut complaints = Vec::new();
    for (number, line) in lines(text) {
        if line.contains('\t') {
            complaints.push(format!("{path}:{number}: a tab"));
        }
        if line.ends_with([' ', '\r']) {
            complaints.push(format!("{path}:{number}: white space at the end"));
        }
    }
    if !text.is_empty() && !text.ends_with('\n') {
        complaints.push(format!("{path}: no newline at the end"));
    }
    complaints
}

/// Markdown's `](target)`, outside of code.
fn links(path: &str, text: &str, exists: impl Fn(&str) -> bool) -> Complaints {
    let (mut complaints, mut fenced) = (Vec::new(), false);
    for (number, line) in lines(text) {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        }
        if fenced {
            continue;
        }
        // What stands between backquotes is every second part.
        for part in line.split('`').step_by(2) {
            for rest in part.split("](").skip(1) {
                let target = rest.split([')', ' ']).next().unwrap_or_default();
                let file = target.split('#').next().unwrap_or_default();
                let elsewhere = target.contains("://") || target.starts_with("mailto:");
                if !elsewhere && !file.is_empty() && !exists(file) {
                    complaints.push(format!("{path}:{number}: {file} does not exist"));
                }
            }
        }
        // A link's text may be code: `[`x`](y)` leaves `](y)` in a part of its own, which the loop above has seen.
    }
    complaints
}

fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.split('\n').enumerate().map(|(i, line)| (i + 1, line))
}

/// The files that git knows or would add.
fn files(root: &Path) -> Result<Vec<PathBuf>> {
    let list = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"];
    let text = crate::output(Command::new("git").current_dir(root).args(list))?;
    let paths = text.split('\0').filter(|name| !name.is_empty()).map(|name| root.join(name));
    // A file that is deleted but not committed yet is still listed.
    Ok(paths.filter(|path| path.is_file()).collect())
}

/// The roots of a crate's library and programs; its build script has none of our lints either.
fn roots(manifest: &Path) -> Vec<PathBuf> {
    let source = manifest.with_file_name("src");
    let mut roots: Vec<_> = ["lib.rs", "main.rs"].iter().map(|name| source.join(name)).collect();
    if let Ok(programs) = fs::read_dir(source.join("bin")) {
        roots.extend(programs.flatten().map(|entry| entry.path()).filter(|p| p.extension() == Some(OsStr::new("rs"))));
    }
    roots.retain(|path| path.is_file());
    roots
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
}

fn show(root: &Path, path: &Path) -> String {
    path.strip_prefix(root).unwrap_or(path).display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A workspace of `backwater-stun` and `backwater-turn`, where `turn` depends on `middle`, which depends on `end`.
    fn workspace(middle: &str, end: &str, kind: &str) -> Metadata {
        let package = |name: &str| format!(r#"{{"id":"{name}","name":"{name}","manifest_path":"/{name}/Cargo.toml"}}"#);
        let node = |name: &str, on: &str, kind: &str| {
            let deps = if on.is_empty() {
                String::new()
            } else {
                format!(r#"{{"pkg":"{on}","dep_kinds":[{{"kind":{kind}}}]}}"#)
            };
            format!(r#"{{"id":"{name}","deps":[{deps}]}}"#)
        };
        let packages = ["backwater-stun", "backwater-turn", middle, end].map(package).join(",");
        let nodes = [
            node("backwater-stun", "", "null"),
            node("backwater-turn", middle, "null"),
            node(middle, end, kind),
            node(end, "", "null"),
        ];
        let nodes = nodes.join(",");
        let text = format!(
            r#"{{"target_directory":"/t","workspace_members":["backwater-stun","backwater-turn"],
                "packages":[{packages}],"resolve":{{"nodes":[{nodes}]}}}}"#
        );
        Metadata::parse(&text).unwrap()
    }

    #[test]
    fn io_is_found_behind_another_crate() {
        assert_eq!(dependencies(&workspace("middle", "slab", "null")), Complaints::new());
        assert_eq!(dependencies(&workspace("middle", "tokio", r#""dev""#)), Complaints::new());
        assert_eq!(dependencies(&workspace(PROCESSOR, "libc", "null")), Complaints::new());
        for io in IO {
            assert_eq!(
                dependencies(&workspace("middle", io, "null")),
                [format!("backwater-turn: depends on {io}, but does no I/O")]
            );
        }
    }

    #[test]
    fn dependency_that_needs_a_newer_rust_is_found() {
        let metadata = |wanted: &str| {
            let package = |name: &str, version: &str| {
                format!(r#"{{"id":"{name}","name":"{name}","manifest_path":"/","rust_version":"{version}"}}"#)
            };
            let packages = LIBRARIES.map(|name| package(name, "1.88")).join(",") + "," + &package("on", wanted);
            let node = r#"{"id":"backwater-udp","deps":[{"pkg":"on","dep_kinds":[{"kind":null}]}]}"#;
            let text = format!(
                r#"{{"target_directory":"/t","workspace_members":[],"packages":[{packages}],"resolve":{{"nodes":[{node}]}}}}"#
            );
            Metadata::parse(&text).unwrap()
        };
        for fine in ["1.88", "1.88.0", "1.9"] {
            assert_eq!(rust_versions(&metadata(fine)), Complaints::new());
        }
        for newer in ["1.88.1", "1.90", "2.0"] {
            let complaint = "backwater-udp: on needs a newer Rust than its `rust-version`";
            assert_eq!(rust_versions(&metadata(newer)), [complaint]);
        }
        assert_eq!(rust_versions(&Metadata::default()).len(), LIBRARIES.len());
    }

    #[test]
    fn a_crate_that_is_gone_is_not_overlooked() {
        assert_eq!(dependencies(&Metadata::default()).len(), SANS_IO.len());
    }

    #[test]
    fn lints_are_inherited() {
        assert!(inherits_lints("x", "[package]\n\n[lints]\nworkspace = true\n").is_none());
        assert!(inherits_lints("x", "[package]\n").is_some());
        assert!(inherits_lints("x", "[package]\n\n[lints]\n\n[other]\nworkspace = true\n").is_some());
    }

    #[test]
    fn unsafe_is_forbidden_but_in_one_crate() {
        assert!(forbids_unsafe("x", "x.rs", "//! X\n#![forbid(unsafe_code)]\n").is_none());
        assert!(forbids_unsafe("x", "x.rs", "// #![forbid(unsafe_code)]\n").is_some());
        assert!(forbids_unsafe(UNSAFE, "x.rs", "").is_none());
    }

    #[test]
    fn another_test_command_is_found() {
        assert!(test_command("x.md", &format!("```\n{TEST_COMMAND}\n```\n")).is_none());
        assert!(test_command("x.md", "cargo test --workspace\n").is_some());
    }

    #[test]
    fn leftovers_are_found() {
        for word in FORBIDDEN {
            assert_eq!(words("x.rs", &format!("fine\n  {word}\n")), [format!("x.rs:2: {word}")]);
        }
        assert!(words("x.rs", "to do\n").is_empty());
    }

    #[test]
    fn long_files_are_found() {
        assert!(length("x.rs", &"\n".repeat(MAX_LINES)).is_none());
        assert!(length("x.rs", &"\n".repeat(MAX_LINES + 1)).is_some());
    }

    #[test]
    fn white_space_is_found() {
        assert!(whitespace("x", "a\n  b\n").is_empty());
        assert!(whitespace("x", "").is_empty());
        for (text, complaint) in
            [("a \nb\n", "x:1: white space at the end"), ("a\n\tb\n", "x:2: a tab"), ("a", "x: no newline at the end")]
        {
            assert_eq!(whitespace("x", text), [complaint]);
        }
        assert_eq!(whitespace("x", "a\r\n").len(), 1);
    }

    #[test]
    fn dead_links_are_found() {
        let exists = |target: &str| target == "docs/there.md";
        let fine = "[a](docs/there.md) [b](docs/there.md#part) [c](https://example.org) [d](#here) `[e](gone.md)`\n\
                    [`f`](docs/there.md)\n```\n[g](gone.md)\n```\n";
        assert_eq!(links("x.md", fine, exists), Complaints::new());
        for dead in ["[a](gone.md)", "[a](docs/there.md) and [`b`](gone.md#part)", "```\n```\n![c](gone.md \"title\")"]
        {
            assert_eq!(links("x.md", dead, exists).len(), 1, "{dead}");
        }
    }
}
