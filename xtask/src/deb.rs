//! `cargo xtask deb`: the relay as a Debian package, and a check that it installs, upgrades and leaves nothing behind.
//!
//! What is in the package is `package.metadata.deb` of the relay's manifest, which cargo-deb reads. Where cargo-deb is not installed,
//! the same metadata are packed by dpkg-deb.

use std::{
    fs,
    io::Write,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use clap::Args;
use toml::Table;

use crate::cargo::{Metadata, cargo};

mod check;

const PROGRAM: &str = "backwater-relay";

#[derive(Args)]
pub(crate) struct Options {
    /// Pack a program without optimisations, which is built in less time: for a check of the package only.
    #[arg(long)]
    debug: bool,
    /// Install, upgrade, remove and purge the package in a root made by debootstrap, or in a directory where that cannot be had.
    #[arg(long)]
    check: bool,
}

pub(crate) fn run(root: &Path, options: &Options) -> Result<()> {
    let target = Metadata::read(root)?.target_directory;
    let mut build = cargo(root);
    build.args(["build", "--quiet", "--locked", "-p", PROGRAM]);
    let profile = if options.debug { "debug" } else { "release" };
    succeed(build.args((!options.debug).then_some("--release")))?;
    let program = target.join(profile).join(PROGRAM);
    let directory = target.join("deb");
    fs::create_dir_all(&directory)?;
    for (arguments, file) in [
        (&["man"][..], "backwater-relay.1"),
        (&["completions", "bash"], "backwater-relay.bash"),
        (&["completions", "zsh"], "backwater-relay.zsh"),
        (&["completions", "fish"], "backwater-relay.fish"),
    ] {
        fs::write(directory.join(file), crate::output(Command::new(&program).args(arguments))?)?;
    }
    let has_cargo_deb = cargo(root).args(["deb", "--version"]).output().is_ok_and(|out| out.status.success());
    let package = if has_cargo_deb && !options.debug {
        let mut command = cargo(root);
        crate::output(command.args(["deb", "-p", PROGRAM, "--no-build", "--output"]).arg(&directory))?;
        newest(&directory)?
    } else {
        pack(root, &program, &directory)?
    };
    let by = if has_cargo_deb && !options.debug { "cargo-deb" } else { "dpkg-deb" };
    println!("deb: {} by {by}", package.display());
    if options.check { check::run(&package, &directory) } else { Ok(()) }
}

/// Packs the program by what the manifest says, and returns the package.
fn pack(root: &Path, program: &Path, directory: &Path) -> Result<PathBuf> {
    let here = root.join("crates").join(PROGRAM);
    let workspace: Table = fs::read_to_string(root.join("Cargo.toml"))?.parse()?;
    let manifest: Table = fs::read_to_string(here.join("Cargo.toml"))?.parse()?;
    let deb = manifest["package"]["metadata"]["deb"].as_table().context("package.metadata.deb")?;
    let text = |key: &str| deb.get(key).and_then(toml::Value::as_str).with_context(|| format!("deb.{key}"));
    let version = workspace["workspace"]["package"]["version"].as_str().context("version")?;
    let architecture = crate::output(Command::new("dpkg").arg("--print-architecture"))?.trim().to_owned();

    let tree = directory.join("tree");
    if tree.exists() {
        fs::remove_dir_all(&tree)?;
    }
    for asset in deb["assets"].as_array().context("deb.assets")? {
        let part = |at: usize| asset.get(at).and_then(toml::Value::as_str).context("an asset has three texts");
        let (source, to, mode) = (part(0)?, part(1)?, u32::from_str_radix(part(2)?, 8)?);
        let source = if source.starts_with("target/release/") {
            program.to_owned()
        } else {
            // The manual page and the completions are there also where the target directory is another one.
            let made = directory.join(source.rsplit('/').next().unwrap_or_default());
            if source.starts_with("../../target/deb/") { made } else { here.join(source) }
        };
        let name = source.file_name().context("an asset is a file")?;
        let to = if to.ends_with('/') { tree.join(to).join(name) } else { tree.join(to) };
        fs::create_dir_all(to.parent().context("an asset has a directory")?)?;
        fs::copy(&source, &to).with_context(|| source.display().to_string())?;
        fs::set_permissions(&to, fs::Permissions::from_mode(mode))?;
        if to.starts_with(tree.join("usr/share/man")) {
            succeed(Command::new("gzip").args(["-9n"]).arg(&to))?;
        }
    }
    let control = tree.join("DEBIAN");
    fs::create_dir_all(&control)?;
    let copyright = "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\nFiles: *\n\
                     Copyright: The Backwater developers\nLicense: MIT or Apache-2.0\n";
    fs::write(tree.join("usr/share/doc").join(PROGRAM).join("copyright"), copyright)?;
    let depends = text("depends")?.replace("$auto", &libraries(program)?);
    let paragraph = |text: &str| text.trim().lines().map(|line| format!(" {line}\n")).collect::<String>();
    let fields = format!(
        "Package: {PROGRAM}\nVersion: {version}-1\nArchitecture: {architecture}\nMaintainer: {}\nSection: {}\nPriority: {}\n\
         Depends: {depends}\nDescription: {}\n{}",
        text("maintainer")?,
        text("section")?,
        text("priority")?,
        manifest["package"]["description"].as_str().context("description")?,
        paragraph(text("extended-description")?),
    );
    fs::write(control.join("control"), fields)?;
    let files = deb["conf-files"].as_array().context("deb.conf-files")?.iter().filter_map(toml::Value::as_str);
    fs::write(control.join("conffiles"), files.map(|file| format!("{file}\n")).collect::<String>())?;
    for script in ["postinst", "prerm", "postrm"] {
        let to = control.join(script);
        fs::copy(here.join(text("maintainer-scripts")?).join(script), &to)?;
        fs::set_permissions(&to, fs::Permissions::from_mode(0o755))?;
    }
    let package = directory.join(format!("{PROGRAM}_{version}-1_{architecture}.deb"));
    let mut build = Command::new("dpkg-deb");
    build.args(["--root-owner-group", "--build", "-Zgzip"]).arg(&tree).arg(&package).stdout(Stdio::null());
    succeed(&mut build)?;
    Ok(package)
}

/// The packages of the libraries that the program needs, with the version of the C library whose symbols it uses.
fn libraries(program: &Path) -> Result<String> {
    let bytes = fs::read(program)?;
    let mut newest = (2, 0);
    for at in memchr_all(&bytes, b"GLIBC_2.") {
        let digits: String = bytes[at..].iter().take_while(|b| b.is_ascii_digit()).map(|&b| char::from(b)).collect();
        newest = newest.max((2, digits.parse().unwrap_or(0)));
    }
    Ok(format!("libc6 (>= {}.{}), libgcc-s1", newest.0, newest.1))
}

/// Where `part` ends in `bytes`, each time.
fn memchr_all<'a>(bytes: &'a [u8], part: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
    bytes.windows(part.len()).enumerate().filter(move |(_, w)| *w == part).map(move |(at, _)| at + part.len())
}

fn newest(directory: &Path) -> Result<PathBuf> {
    let packages = fs::read_dir(directory)?.flatten().map(|entry| entry.path());
    let packages = packages.filter(|path| path.extension().is_some_and(|extension| extension == "deb"));
    let modified = |path: &PathBuf| fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    packages.max_by_key(modified).context("cargo-deb has made no package")
}

fn succeed(command: &mut Command) -> Result<()> {
    std::io::stdout().flush()?;
    let status = command.status().with_context(|| format!("starting {:?}", command.get_program()))?;
    ensure!(status.success(), "{command:?} failed");
    Ok(())
}
