//! One copy of the crate with all faults in it.

use std::{
    collections::BTreeSet,
    fs,
    ops::Range,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{Built, find::Source};
use crate::cargo::cargo;

/// What the copy has more: says which fault is on.
const SWITCH: &str = r#"
pub(crate) fn on(fault: u32) -> bool {
    static ON: std::sync::LazyLock<u32> =
        std::sync::LazyLock::new(|| std::env::var("BACKWATER_MUTANT").map_or(0, |text| text.parse().unwrap_or(0)));
    *ON == fault
}
"#;

/// Rounds of leaving out what does not compile. The compiler reports types first and borrows when these are right.
const ROUNDS: u32 = 12;

/// Copies the crate to the target directory, writes the faults into it, and builds its unit tests.
///
/// # Errors
/// When a file cannot be copied, or when the copy does not compile for a reason that is no fault's.
pub(super) fn build(root: &Path, target: &Path, of: &str, sources: &[Source]) -> Result<Built> {
    // Not the target directory of the rest: there the copy would be taken for the crate.
    let (copy, target) = (target.join("mutants/copy"), &target.join("mutants/target"));
    let directory = copy.join(of);
    let _ = fs::remove_dir_all(&copy);
    copy_directory(&root.join(of), &directory)?;
    fs::copy(root.join("Cargo.lock"), copy.join("Cargo.lock"))?;
    let manifest = fs::read_to_string(root.join("Cargo.toml"))?;
    fs::write(copy.join("Cargo.toml"), only_member(&manifest, of)?)?;
    fs::write(directory.join("src/mutant.rs"), SWITCH)?;
    let library = directory.join("src/lib.rs");
    let text = fs::read_to_string(&library)?;
    fs::write(&library, format!("{text}\nmod mutant;\n"))?;

    let mut left_out = BTreeSet::new();
    for _ in 0..ROUNDS {
        let mut written = Vec::new();
        let mut first = 1;
        for source in sources {
            let id = |index: usize| u32::try_from(index).ok().map(|index| first + index);
            let file = source.write(|index| id(index).filter(|id| !left_out.contains(id)));
            fs::write(directory.join(source.file()), &file.text)?;
            written.push(File {
                path: directory.join(source.file()),
                pieces: file.pieces.into_iter().filter_map(|(range, index)| Some((range, id(index)?))).collect(),
                whole: file.whole.into_iter().filter_map(|(index, range)| Some((range, id(index)?))).collect(),
            });
            first += u32::try_from(source.mutants.len())?;
        }
        match compile(&copy, target, &written)? {
            Compiled::Yes(program) => return Ok(Built { program, directory, left_out }),
            Compiled::Without(faults) => left_out.extend(faults),
        }
    }
    bail!("after {ROUNDS} rounds some faults still do not compile")
}

enum Compiled {
    Yes(PathBuf),
    /// These do not compile.
    Without(BTreeSet<u32>),
}

/// A file of the copy.
struct File {
    path: PathBuf,
    /// What was written into it, and for which fault.
    pieces: Vec<(Range<usize>, u32)>,
    /// All that a fault concerns.
    whole: Vec<(Range<usize>, u32)>,
}

fn compile(copy: &Path, target: &Path, written: &[File]) -> Result<Compiled> {
    let mut command = cargo(copy);
    command.args(["test", "--lib", "--no-run", "--offline", "--message-format=json", "--target-dir"]).arg(target);
    let out = command.output().context("starting cargo")?;
    let (mut program, mut faults, mut others) = (None, BTreeSet::new(), Vec::new());
    for line in String::from_utf8_lossy(&out.stdout).lines() {
        let Ok(message) = serde_json::from_str::<Value>(line) else { continue };
        if let Some(path) = message["executable"].as_str() {
            program = Some(PathBuf::from(path));
        }
        if message["message"]["level"] != "error" {
            continue;
        }
        let found = faults_of(&message["message"], written);
        if found.is_empty() {
            others.push(message["message"]["rendered"].as_str().unwrap_or_default().to_owned());
        }
        faults.extend(found);
    }
    if out.status.success() {
        return Ok(Compiled::Yes(program.context("cargo named no program")?));
    }
    ensure!(
        !faults.is_empty(),
        "the copy does not compile:\n{}{}",
        others.concat(),
        String::from_utf8_lossy(&out.stderr)
    );
    Ok(Compiled::Without(faults))
}

/// The faults that an error is about: those in whose text it is, or what it refers to; else the innermost around either.
fn faults_of(message: &Value, written: &[File]) -> BTreeSet<u32> {
    let holds = |outer: &Range<usize>, inner: &Range<usize>| outer.start <= inner.start && inner.end <= outer.end;
    let byte = |span: &Value, name: &str| span[name].as_u64().and_then(|byte| usize::try_from(byte).ok());
    let mut spans = Vec::new();
    for span in message["spans"].as_array().into_iter().flatten() {
        let name = span["file_name"].as_str().unwrap_or_default();
        let file = written.iter().find(|file| file.path.ends_with(name));
        if let (Some(file), Some(start), Some(end)) = (file, byte(span, "byte_start"), byte(span, "byte_end")) {
            spans.push((span["is_primary"] == true, file, start..end));
        }
    }
    for primary in [true, false] {
        let of_kind = spans.iter().filter(|(is_primary, ..)| *is_primary == primary);
        let faults: BTreeSet<_> = of_kind
            .flat_map(|(_, file, error)| file.pieces.iter().filter(|(piece, _)| holds(piece, error)))
            .map(|(_, id)| *id)
            .collect();
        if !faults.is_empty() {
            return faults;
        }
    }
    let around = spans.iter().flat_map(|(_, file, error)| file.whole.iter().filter(|(whole, _)| holds(whole, error)));
    around.min_by_key(|(whole, _)| whole.len()).map(|(_, id)| *id).into_iter().collect()
}

/// The manifest of the workspace, with one member.
fn only_member(manifest: &str, member: &str) -> Result<String> {
    let mut lines = Vec::new();
    let mut found = false;
    for line in manifest.lines() {
        if line.starts_with("members = ") {
            found = true;
            lines.push(format!("members = [\"{member}\"]"));
        } else {
            lines.push(line.to_owned());
        }
    }
    ensure!(found, "Cargo.toml has no line with the members");
    Ok(lines.join("\n") + "\n")
}

fn copy_directory(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| format!("reading {}", from.display()))? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_directory(&entry.path(), &to)?;
        } else {
            fs::copy(entry.path(), &to)?;
        }
    }
    Ok(())
}
