//! Installs, upgrades, removes and purges the package, and looks at what is there after each.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use super::{PROGRAM, succeed};

const CONFIGURATION: &str = "etc/backwater/relay.toml";

/// What has to be there after an installation.
const FILES: [&str; 8] = [
    "usr/bin/backwater-relay",
    CONFIGURATION,
    "usr/lib/systemd/system/backwater-relay.service",
    "usr/lib/sysusers.d/backwater-relay.conf",
    "usr/share/man/man1/backwater-relay.1.gz",
    "usr/share/bash-completion/completions/backwater-relay",
    "usr/share/zsh/vendor-completions/_backwater-relay",
    "usr/share/fish/vendor_completions.d/backwater-relay.fish",
];

/// A root, and how packages get into it.
struct Root {
    path: PathBuf,
    /// Whether it is a system of its own: else a directory, whose maintainer scripts leave users and services alone.
    is_system: bool,
}

pub(super) fn run(package: &Path, directory: &Path) -> Result<()> {
    let root = Root::make(directory)?;
    let before = root.files()?;
    let users = root.users()?;
    root.dpkg(&["--install"], Some(package))?;
    for file in FILES {
        ensure!(root.path.join(file).is_file(), "{file} is not there after the installation");
    }
    let configuration = root.path.join(CONFIGURATION);
    let mode = fs::metadata(&configuration)?.permissions().mode() & 0o777;
    ensure!(mode == 0o600, "{CONFIGURATION} has the mode {mode:o}");
    if root.is_system {
        let owner = fs::metadata(&configuration)?.uid();
        ensure!(owner != 0 && root.users()?.contains(&format!("{PROGRAM}:x:{owner}:")), "the file is not its user's");
        let mut command = Command::new("chroot");
        command.arg(format!("--userspec={PROGRAM}:{PROGRAM}")).arg(&root.path).arg("/usr/bin/backwater-relay");
        println!("deb: {}", crate::output(command.args(["check-config", "/etc/backwater/relay.toml"]))?.trim());
    }
    // What an operator has written survives an upgrade, and a removal.
    fs::write(&configuration, fs::read_to_string(&configuration)? + "# the operator's\n")?;
    root.dpkg(&["--install", "--force-confold"], Some(package))?;
    root.dpkg(&["--remove"], None)?;
    ensure!(fs::read_to_string(&configuration)?.ends_with("# the operator's\n"), "the configuration is another one");
    ensure!(!root.path.join(FILES[0]).exists(), "{} is there after the removal", FILES[0]);
    root.dpkg(&["--purge"], None)?;
    let left: Vec<_> = root.files()?.difference(&before).cloned().collect();
    ensure!(left.is_empty(), "left behind by a purge: {left:?}");
    ensure!(root.users()? == users, "a user is left behind by a purge");
    fs::remove_dir_all(&root.path)?;
    println!("deb: installed, upgraded, removed and purged in {}; nothing is left", root.what());
    Ok(())
}

impl Root {
    /// Makes a Debian of this host's version, by debootstrap where that is possible.
    fn make(directory: &Path) -> Result<Self> {
        let path = directory.join("root");
        if path.exists() {
            fs::remove_dir_all(&path)?;
        }
        fs::create_dir_all(&path)?;
        let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
        let codename = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME=")).unwrap_or("stable");
        let mut debootstrap = Command::new("debootstrap");
        debootstrap.args(["--variant=minbase", codename]).arg(&path);
        let why = match debootstrap.output() {
            Ok(out) if out.status.success() => return Ok(Self { path, is_system: true }),
            Ok(out) => String::from_utf8_lossy(&out.stdout).lines().next_back().unwrap_or_default().to_owned(),
            Err(error) => error.to_string(),
        };
        println!("deb: NO CLEAN ROOT: debootstrap: {why}; a directory has to do, without users and services");
        fs::remove_dir_all(&path)?;
        for part in ["var/lib/dpkg/updates", "var/lib/dpkg/info"] {
            fs::create_dir_all(path.join(part))?;
        }
        for file in ["var/lib/dpkg/status", "var/lib/dpkg/available"] {
            fs::write(path.join(file), "")?;
        }
        Ok(Self { path, is_system: false })
    }

    fn what(&self) -> &'static str {
        if self.is_system { "a Debian root made by debootstrap" } else { "a directory by dpkg --root" }
    }

    fn dpkg(&self, arguments: &[&str], package: Option<&Path>) -> Result<()> {
        if !self.is_system {
            let mut dpkg = Command::new("dpkg");
            let root = format!("--root={}", self.path.display());
            dpkg.args([&root, "--force-not-root", "--force-depends", "--force-script-chrootless"]).args(arguments);
            return succeed(match package {
                Some(package) => dpkg.arg(package),
                None => dpkg.arg(PROGRAM),
            });
        }
        let mut dpkg = Command::new("chroot");
        dpkg.arg(&self.path).arg("dpkg").args(arguments);
        match package {
            Some(package) => {
                let inside = self.path.join("tmp/package.deb");
                fs::copy(package, &inside)?;
                succeed(dpkg.arg("/tmp/package.deb"))?;
                Ok(fs::remove_file(inside)?)
            }
            None => succeed(dpkg.arg(PROGRAM)),
        }
    }

    /// Every file and directory, but for what dpkg and useradd keep for themselves.
    fn files(&self) -> Result<BTreeSet<String>> {
        let mut command = Command::new("find");
        command.current_dir(&self.path).args([".", "-xdev"]);
        let all = crate::output(&mut command).context("find")?;
        let is_kept = |path: &str| {
            [
                "./var/lib/dpkg/",
                "./var/log/",
                "./etc/passwd",
                "./etc/group",
                "./etc/shadow",
                "./etc/gshadow",
                "./etc/sub",
                "./etc/.pwd.lock",
            ]
            .iter()
            .any(|kept| path.starts_with(kept))
        };
        Ok(all.lines().filter(|path| !is_kept(path)).map(str::to_owned).collect())
    }

    fn users(&self) -> Result<String> {
        if !self.is_system {
            return Ok(String::new());
        }
        let read = |file: &str| fs::read_to_string(self.path.join(file));
        Ok(read("etc/passwd")? + &read("etc/group")?)
    }
}
