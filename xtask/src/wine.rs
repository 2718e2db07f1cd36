//! `cargo xtask wine`: runs for Windows what can run under Wine: the tunnel's `check` and `generate`, its configuration,
//! and the logs. There is no TUN device under Wine.
//!
//! The library is built from its source by the compiler that `cross` uses, and linked by Debian's mingw.

use std::{
    env, fs,
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, ensure};

use crate::{
    cargo::{Metadata, cargo},
    cross::{Compiler, cache},
};

const TARGET: &str = "x86_64-pc-windows-gnu";
const LINKER: &str = "x86_64-w64-mingw32-gcc";
/// Debian has it out of the way, for the sake of a script that chooses between this and the 32-bit one.
const WINE: &str = "/usr/lib/wine/wine64";

/// Cargo's arguments, and those of the tests.
const TESTS: [(&[&str], &[&str]); 3] = [
    (&["-p", "backwater-ops", "--lib", "--test", "log_files"], &[]),
    (&["-p", "backwater-tunnel", "--lib"], &["config::", "commands::"]),
    (&["-p", "backwater-tunnel", "--test", "commands"], &[]),
];

pub(crate) fn run(root: &Path) -> Result<()> {
    let began = Instant::now();
    let has_linker = Command::new(LINKER).arg("--version").stdout(Stdio::null()).status().is_ok();
    if !has_linker || !Path::new(WINE).is_file() {
        println!("NOT RUN: it wants {LINKER} and {WINE} (apt-get install gcc-mingw-w64-x86-64 wine64)");
        ensure!(!env::var("CI").is_ok_and(|value| value == "true"), "CI=true, and there is no Wine");
        return Ok(());
    }
    let compiler = Compiler::needed(root, TARGET)?;
    let prefix = cache()?.join("wine");
    if !prefix.join(RANDOM).is_file() {
        make_prefix(&prefix)?;
    }
    // What is built for this machine, such as macros, is there already.
    let directory = Metadata::read(root)?.target_directory.join("cross");
    for (packages, filters) in TESTS {
        let mut command = cargo(root);
        command.args(["test", "--quiet", "--locked", "--target", TARGET]).args(packages);
        command.arg("--target-dir").arg(&directory).env("RUSTFLAGS", "");
        if let Some(compiler) = &compiler {
            compiler.prepare(&mut command, "std,test")?;
        }
        command.arg("--").args(filters);
        let variable = TARGET.to_uppercase().replace('-', "_");
        command.env(format!("CARGO_TARGET_{variable}_LINKER"), LINKER);
        command.env(format!("CARGO_TARGET_{variable}_RUNNER"), WINE);
        let status = in_prefix(&mut command, &prefix).status().context("starting cargo")?;
        ensure!(status.success(), "{} under Wine: {status}", packages.join(" "));
    }
    println!("wine: ok, {:.0} s", began.elapsed().as_secs_f64());
    Ok(())
}

fn in_prefix<'a>(command: &'a mut Command, prefix: &Path) -> &'a mut Command {
    // Neither .NET nor a browser is wanted.
    command.env("WINEPREFIX", prefix).env("WINEDEBUG", "-all").env("WINEDLLOVERRIDES", "mscoree=;mshtml=")
}

/// What a Windows has on its disk; at last the library by which it is known to be complete.
fn make_prefix(prefix: &Path) -> Result<()> {
    fs::create_dir_all(prefix)?;
    let mut boot = Command::new(WINE);
    boot.args(["wineboot", "-i"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // Its status says nothing: it complains of the 32-bit half that is not there.
    in_prefix(&mut boot, prefix).status().context("starting Wine")?;
    let library = prefix.join(RANDOM);
    if library.is_file() {
        return Ok(());
    }
    let directory = library.parent().context("the library is in a directory")?;
    ensure!(directory.is_dir(), "Wine has made no {}", directory.display());
    let source = prefix.join("random.c");
    fs::write(&source, RANDOM_SOURCE)?;
    let mut compile = Command::new(LINKER);
    crate::output(compile.args(["-shared", "-O2", "-o"]).arg(&library).arg(&source).arg("-ladvapi32"))?;
    Ok(())
}

/// Rust's library takes its randomness from there, and Wine has it from 8.13 on.
const RANDOM: &str = "drive_c/windows/system32/bcryptprimitives.dll";
const RANDOM_SOURCE: &str = r#"
#include <windows.h>
BOOLEAN NTAPI SystemFunction036(PVOID buffer, ULONG length);
__declspec(dllexport) BOOL WINAPI ProcessPrng(PBYTE buffer, SIZE_T length) {
    for (SIZE_T done = 0; done < length;) {
        ULONG part = length - done > 65536 ? 65536 : (ULONG)(length - done);
        if (!SystemFunction036(buffer + done, part)) return FALSE;
        done += part;
    }
    return TRUE;
}
"#;
