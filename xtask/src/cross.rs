//! `cargo xtask cross`: type-checks the code for systems that this machine is not.
//!
//! The library of a target is taken from the toolchain, where rustup has installed it; else it is built from its
//! source, which is rustup's `rust-src`, or comes with Debian's newer compiler. That one is unpacked beside the system
//! rather than installed, so that it disturbs no other. Nothing is linked, so that no target wants a C compiler or an
//! SDK, as a dependency with C code would; but Windows' library is not built without `dlltool`, which is unpacked as
//! well.

use std::{
    env, iter,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::cargo::{Metadata, cargo};

#[derive(Args)]
pub(crate) struct Options {
    /// Only the targets whose names contain one of these.
    #[arg(long, value_delimiter = ',', value_name = "PART")]
    only: Vec<String>,
}

/// A system, and what of ours is to build for it.
struct Target {
    triple: &'static str,
    /// What of the library has to be built: `std` has all the rest with it.
    library: &'static str,
    packages: &'static [&'static str],
}

const ALL: &[&str] = &["--workspace", "--lib", "--bins"];
/// The tunnel is for Linux, macOS and Windows: elsewhere there is no TUN device that a program makes for itself.
const NO_TUNNEL: &[&str] = &["--workspace", "--exclude", "backwater-tunnel", "--lib", "--bins"];
/// An app has libraries, and no programs beside it.
const LIBRARIES: &[&str] = &["-p", "backwater-stun", "-p", "backwater-turn", "-p", "backwater-udp"];
const SANS_IO: &[&str] = &["-p", "backwater-stun", "-p", "backwater-turn"];
const NO_STD: &[&str] = &["-p", "backwater-stun", "--no-default-features"];

/// The programs that are built as one static binary each: by the workflow, and in packaging/Dockerfile.
const STATIC: &[&str] = &["-p", "backwater-probe", "-p", "backwater-relay"];

const TARGETS: [Target; 10] = [
    Target { triple: "aarch64-apple-darwin", library: "std", packages: ALL },
    Target { triple: "x86_64-apple-darwin", library: "std", packages: ALL },
    Target { triple: "aarch64-apple-ios", library: "std", packages: LIBRARIES },
    Target { triple: "x86_64-pc-windows-gnu", library: "std", packages: ALL },
    Target { triple: "x86_64-pc-windows-msvc", library: "std", packages: ALL },
    Target { triple: "x86_64-unknown-freebsd", library: "std", packages: NO_TUNNEL },
    Target { triple: "aarch64-linux-android", library: "std", packages: NO_TUNNEL },
    Target { triple: "x86_64-unknown-linux-musl", library: "std", packages: STATIC },
    Target { triple: "wasm32-unknown-unknown", library: "std", packages: SANS_IO },
    Target { triple: "thumbv7em-none-eabi", library: "core", packages: NO_STD },
];

/// A compiler that has the source of its library.
pub(crate) struct Compiler {
    /// Where Debian's was unpacked; the one of the toolchain if none.
    place: Option<PathBuf>,
}

pub(crate) fn run(root: &Path, options: &Options) -> Result<()> {
    let began = Instant::now();
    let wanted = |target: &&Target| {
        options.only.is_empty() || options.only.iter().any(|part| target.triple.contains(part.as_str()))
    };
    let targets: Vec<_> = TARGETS.iter().filter(wanted).collect();
    ensure!(!targets.is_empty(), "there is no such target");
    let directory = Metadata::read(root)?.target_directory.join("cross");
    let sysroot = sysroot(root)?;
    // It is looked for, and unpacked, when the first target wants it.
    let mut source = None;
    let (mut ok, mut failed, mut unavailable) = (0, 0, 0);
    for target in targets {
        let from = Instant::now();
        let installed = is_installed(&sysroot, target.triple);
        let compiler =
            if installed { Ok(None) } else { source.get_or_insert_with(|| compiler(&sysroot)).as_ref().map(Some) };
        let line = match compiler {
            Err(why) => {
                unavailable += 1;
                format!("unavailable: {why:#}")
            }
            Ok(compiler) => match check(root, &directory, target, compiler)? {
                None => {
                    ok += 1;
                    "ok".to_owned()
                }
                Some(errors) => {
                    failed += 1;
                    eprintln!("{errors}");
                    "failed".to_owned()
                }
            },
        };
        println!("{:<26} {line} ({:.0} s; {})", target.triple, from.elapsed().as_secs_f64(), target.packages.join(" "));
    }
    println!("cross: {ok} ok, {failed} failed, {unavailable} unavailable, {:.0} s", began.elapsed().as_secs_f64());
    ensure!(failed == 0, "the code does not build everywhere");
    let must_all = env::var("CI").is_ok_and(|value| value == "true");
    ensure!(unavailable == 0 || !must_all, "CI=true, and not every target could be checked");
    Ok(())
}

/// What the compiler complains of, if it does.
fn check(root: &Path, directory: &Path, target: &Target, compiler: Option<&Compiler>) -> Result<Option<String>> {
    let mut command = cargo(root);
    command.args(["check", "--quiet", "--locked", "--target", target.triple]).args(target.packages);
    command.arg("--target-dir").arg(directory).env("RUSTFLAGS", "");
    // What no linker sees need not be compiled: a C compiler for the system, and its headers, are not wanted.
    let suffix = target.triple.replace('-', "_");
    command.env(format!("CC_{suffix}"), "true").env(format!("AR_{suffix}"), "true");
    if let Some(compiler) = compiler {
        compiler.prepare(&mut command, target.library)?;
    }
    let out = command.stdin(Stdio::null()).output().context("starting cargo")?;
    Ok((!out.status.success()).then(|| String::from_utf8_lossy(&out.stderr).into_owned()))
}

impl Compiler {
    /// The one that cargo needs for this target; `None` where the toolchain has the library.
    pub(crate) fn needed(root: &Path, triple: &str) -> Result<Option<Self>> {
        let sysroot = sysroot(root)?;
        if is_installed(&sysroot, triple) { Ok(None) } else { compiler(&sysroot).map(Some) }
    }

    /// Makes cargo build the library, and with this compiler.
    pub(crate) fn prepare(&self, command: &mut Command, library: &str) -> Result<()> {
        // The source's own compiler knows how to build it, stable or not.
        command.arg(format!("-Zbuild-std={library}")).env("RUSTC_BOOTSTRAP", "1");
        if let Some(place) = &self.place {
            // For `dlltool`.
            let path = env::var_os("PATH").unwrap_or_default();
            command.env("PATH", env::join_paths(iter::once(place.join("bin")).chain(env::split_paths(&path)))?);
            // Not by a script that sets it: a shell need not pass variables on whose names are none to it, such as
            // `CARGO_BIN_EXE_backwater-tunnel`.
            let libraries = place.join("usr/lib").join(format!("{}-linux-gnu", env::consts::ARCH));
            command.env("RUSTC", place.join("usr/bin/rustc")).env("LD_LIBRARY_PATH", libraries);
            command.env_remove("RUSTC_WRAPPER").env_remove("RUSTC_WORKSPACE_WRAPPER");
        }
        Ok(())
    }
}

fn sysroot(root: &Path) -> Result<PathBuf> {
    let path = crate::output(Command::new(rustc()).current_dir(root).args(["--print", "sysroot"]))?;
    Ok(path.trim().into())
}

fn is_installed(sysroot: &Path, triple: &str) -> bool {
    sysroot.join("lib/rustlib").join(triple).join("lib").is_dir()
}

fn rustc() -> std::ffi::OsString {
    env::var_os("RUSTC").unwrap_or_else(|| "rustc".into())
}

/// The one of the toolchain, if its source is there; else Debian's.
fn compiler(sysroot: &Path) -> Result<Compiler> {
    if sysroot.join("lib/rustlib/src/rust/library/Cargo.lock").is_file() {
        return Ok(Compiler { place: None });
    }
    let place = cache()?.join("rust");
    if !place.join("usr/bin/rustc").is_file() {
        unpack(&place).context("neither `rustup target add` nor `rustup component add rust-src` was done, and")?;
    }
    Ok(Compiler { place: Some(place) })
}

pub(crate) fn cache() -> Result<PathBuf> {
    let cache = env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    Ok(cache.or_else(home).context("there is no HOME to keep a compiler in")?.join("backwater"))
}

/// Unpacks Debian's compiler with the source of its library, 0.9 GB.
fn unpack(place: &Path) -> Result<()> {
    let is_debian = Path::new("/etc/debian_version").is_file();
    let is_root = cfg!(unix) && crate::output(Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0");
    if !is_debian || !is_root {
        bail!("Debian's compiler is unpacked only by root on Debian");
    }
    eprintln!("unpacking Debian's compiler and the source of its library into {}", place.display());
    let out = Command::new("sh").args(["-euc", UNPACK, "sh"]).arg(place).output()?;
    ensure!(out.status.success(), "Debian's packages: {}", String::from_utf8_lossy(&out.stderr).trim());
    Ok(())
}

/// `rustc-web` is the compiler that Debian keeps for browsers, newer than `rustc`. Of the source, only the library is
/// unpacked. The directory gets its name when it is complete.
const UNPACK: &str = r#"
place=$1; part=$1.part
rm -rf "$part" "$place"; mkdir -p "$part/deb" "$part/bin"; cd "$part/deb"
apt-get update -qq || true
runtime=$(apt-cache depends libstd-rust-web-dev | awk '/Depends: libstd-rust-web-[0-9]/ { print $2; exit }')
if [ -z "$runtime" ]; then echo "there is no libstd-rust-web-dev" >&2; exit 1; fi
apt-get download -qq rustc-web rust-web-src libstd-rust-web-dev "$runtime" binutils-mingw-w64-x86-64
apt-get download -qq "$(dpkg-deb -f "$runtime"_*.deb Depends | grep -o 'libllvm[0-9]*' | head -n 1)"
for deb in *.deb; do
  case $deb in
    rust-web-src_*) dpkg-deb --fsys-tarfile "$deb" |
      tar -x -C "$part" --wildcards './usr/src/*/library/*' './usr/lib/rustlib/src/*' ;;
    *) dpkg-deb -x "$deb" "$part" ;;
  esac
done
for tool in dlltool as; do ln -s "../usr/bin/x86_64-w64-mingw32-$tool" "$part/bin"; done
cd /; rm -rf "$part/deb"; mv "$part" "$place"
"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_has_a_name_of_its_own() {
        let mut names: Vec<_> = TARGETS.iter().map(|target| target.triple).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), TARGETS.len());
    }

    #[cfg(unix)]
    #[test]
    fn the_script_is_one() {
        let status = Command::new("sh").args(["-n", "-c", UNPACK]).status().unwrap();
        assert!(status.success());
    }
}
