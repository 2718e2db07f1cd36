//! `cargo xtask package`: what a stranger gets who depends on a library.
//!
//! Each library is packed as for a registry and built from the package, and checked with each combination of its features. With
//! `--minimal-versions`, the packages are also checked with the lowest versions of their dependencies that their manifests allow;
//! this needs a registry.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::{
    cargo::{Metadata, cargo},
    tidy::LIBRARIES,
};

#[derive(Args)]
pub(crate) struct Options {
    /// Check the lowest versions of the dependencies too.
    #[arg(long)]
    minimal_versions: bool,
}

pub(crate) fn run(root: &Path, options: &Options) -> Result<()> {
    let metadata = Metadata::read(root)?;
    let mut command = cargo(root);
    command.args(["package", "--quiet", "--locked", "--allow-dirty"]).args(LIBRARIES.map(|name| format!("-p{name}")));
    succeed(&mut command)?;
    println!("package: {} libraries build from their packages", LIBRARIES.len());

    let mut checked = 0;
    for name in LIBRARIES {
        for features in combinations(&metadata.features(name)) {
            let mut command = cargo(root);
            command.args(["check", "--quiet", "--locked", "--lib", "--no-default-features", "-p", name]);
            succeed(command.arg("--features").arg(features.join(",")))?;
            checked += 1;
        }
    }
    println!("package: {checked} combinations of features");

    if options.minimal_versions {
        minimal_versions(&metadata.target_directory)?;
        println!("package: the lowest versions of the dependencies");
    }
    Ok(())
}

/// Every subset of some features.
fn combinations<'a>(features: &[&'a str]) -> Vec<Vec<&'a str>> {
    let subset =
        |bits: u32| features.iter().enumerate().filter(move |(i, _)| bits >> i & 1 == 1).map(|(_, name)| *name);
    (0..1 << features.len()).map(|bits| subset(bits).collect()).collect()
}

/// Checks each package, in a workspace of its own whose `Cargo.lock` has the lowest versions of direct dependencies.
fn minimal_versions(target: &Path) -> Result<()> {
    let place = target.join("minimal-versions");
    fs::create_dir_all(&place)?;
    let mut patch = "\n[workspace]\n\n[patch.crates-io]\n".to_owned();
    for name in LIBRARIES {
        let package = unpack(target, &place, name)?;
        // The versions of the package's own lock are not the ones to check.
        let _ = fs::remove_file(package.join("Cargo.lock"));
        let manifest = package.join("Cargo.toml");
        fs::write(&manifest, fs::read_to_string(&manifest)? + &patch)?;
        let mut lock = cargo(&package);
        // The option is unstable, and the compiler in use knows it.
        lock.args(["generate-lockfile", "--quiet", "-Zdirect-minimal-versions"]).env("RUSTC_BOOTSTRAP", "1");
        succeed(&mut lock)?;
        let mut check = cargo(&package);
        check.args(["check", "--quiet", "--locked", "--lib", "--all-features", "--target-dir"]);
        succeed(check.arg(place.join("target")))?;
        // A library may depend on those before it.
        patch += &format!("{name} = {{ path = {:?} }}\n", package.display().to_string());
    }
    Ok(())
}

/// Unpacks the package of a library anew, and returns its directory.
fn unpack(target: &Path, place: &Path, name: &str) -> Result<PathBuf> {
    let packages = fs::read_dir(target.join("package"))?.flatten().map(|entry| entry.path());
    let is_package = |path: &PathBuf| {
        let file = path.file_name().and_then(|file| file.to_str()).unwrap_or_default();
        file.strip_prefix(name).is_some_and(|rest| rest.starts_with('-') && rest.ends_with(".crate"))
    };
    let package = packages.filter(is_package).max().with_context(|| format!("{name} has not been packed"))?;
    let directory = place.join(package.file_stem().context("a package without a name")?);
    if directory.exists() {
        fs::remove_dir_all(&directory)?;
    }
    succeed(Command::new("tar").arg("-xf").arg(&package).arg("-C").arg(place))?;
    Ok(directory)
}

fn succeed(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("starting {:?}", command.get_program()))?;
    ensure!(status.success(), "{command:?} failed");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn combinations_are_all_subsets() {
        assert_eq!(combinations(&[]), [Vec::<&str>::new()]);
        assert_eq!(combinations(&["a", "b"]), [vec![], vec!["a"], vec!["b"], vec!["a", "b"]]);
    }
}
