//! What keeps secrets to their owner: files, directories and the memory of the process.

use std::{fs::File, io, path::Path};

/// Keeps other processes of the same user from reading this one's memory, and the system from writing it to a core file
/// (`PR_SET_DUMPABLE`, `prctl(2)`). Only Linux has it; elsewhere nothing is done.
///
/// # Errors
/// When the system refuses.
pub fn hide_memory() -> io::Result<()> {
    #[cfg(target_os = "linux")]
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
    Ok(())
}

/// Returns the mode of a regular file that others than its owner may read or write, in part or in full; `None` if they may
/// not. (Windows' access lists are not looked at: a user's files are the user's there.)
pub fn exposed_mode(file: &File) -> Option<u32> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let metadata = file.metadata().ok().filter(std::fs::Metadata::is_file)?;
        let mode = metadata.permissions().mode() & 0o7777;
        (mode & 0o077 != 0).then_some(mode)
    }
    #[cfg(not(unix))]
    {
        let _ = file;
        None
    }
}

/// Why others than root may have written what is in a file: whom it belongs to, or its mode. `None` if nobody else can have. Windows'
/// files are never root's.
pub fn why_not_roots_alone(file: &File) -> Option<String> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let metadata = match file.metadata() {
            Ok(metadata) => metadata,
            Err(error) => return Some(error.to_string()),
        };
        if metadata.uid() != 0 {
            return Some(format!("it belongs to user {}, not to root", metadata.uid()));
        }
        let mode = metadata.mode() & 0o7777;
        (mode & 0o022 != 0).then(|| format!("others than root can write to it (mode {mode:04o})"))
    }
    #[cfg(not(unix))]
    {
        let _ = file;
        Some("who can write to it is not known on this system".to_owned())
    }
}

/// Checks that a directory belongs to this user, and that no other user can put another one in its place: each directory above
/// it and each symbolic link on the way belongs to root or to this user, and no other user can write to a directory above it,
/// unless that has the sticky bit. Links are followed and checked as the system follows them. Windows is not checked.
///
/// # Errors
/// What belongs to whom or has which mode, or that there is no such directory.
pub fn check_directory_is_own(path: &Path) -> io::Result<()> {
    #[cfg(unix)]
    unix::check_directory_is_own(path)?;
    #[cfg(not(unix))]
    let _ = path;
    Ok(())
}

/// Makes a directory with its parents, for this user alone (mode 0700). One that is there already must belong to this user
/// alone: [`check_directory_is_private`].
///
/// # Errors
/// When it cannot be made, or others may use it.
pub fn make_private_directory(path: &Path) -> io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.recursive(true).create(path)?;
    check_directory_is_private(path)
}

/// As [`check_directory_is_own`]; and nobody else may list or change it (mode 0700).
///
/// # Errors
/// As there, or the mode.
pub fn check_directory_is_private(path: &Path) -> io::Result<()> {
    check_directory_is_own(path)?;
    #[cfg(unix)]
    unix::check_mode(path)?;
    Ok(())
}

/// Whether a file belongs to this user. Windows: always.
pub(crate) fn is_own(metadata: &std::fs::Metadata) -> bool {
    #[cfg(unix)]
    {
        std::os::unix::fs::MetadataExt::uid(metadata) == unix::user()
    }
    #[cfg(not(unix))]
    {
        let _ = metadata;
        true
    }
}

#[cfg(unix)]
mod unix {
    use std::{
        ffi::OsString,
        fs::{self, Metadata},
        io::{self, ErrorKind::PermissionDenied},
        os::unix::fs::MetadataExt,
        path::{Component, Path, PathBuf},
    };

    const ROOT: u32 = 0;

    /// Linux follows no more symbolic links on the way to a file (`path_resolution(7)`).
    const MAX_LINKS: usize = 40;

    pub(super) fn user() -> u32 {
        rustix::process::geteuid().as_raw()
    }

    pub(super) fn check_directory_is_own(path: &Path) -> io::Result<()> {
        let path = std::path::absolute(path)?;
        check_way(&path)?;
        let directory = fs::metadata(&path).map_err(|error| named(&path, &error))?;
        if !directory.is_dir() {
            return refused(&path, "is no directory");
        }
        if directory.uid() != user() {
            return refused(&path, &format!("belongs to another user (uid {})", directory.uid()));
        }
        Ok(())
    }

    /// Checks each directory and each symbolic link that the system passes on the way to an absolute path.
    fn check_way(path: &Path) -> io::Result<()> {
        let mut at = PathBuf::from("/");
        // In a user namespace the system's root user has another number.
        let system = fs::symlink_metadata(&at)?;
        let mut rest = Vec::new();
        push_components(&mut rest, path);
        let mut links = 0;
        check_parent(&at, &system, &system)?;
        while let Some(part) = rest.pop() {
            if part == ".." {
                at.pop();
                continue;
            }
            at.push(part);
            let metadata = fs::symlink_metadata(&at).map_err(|error| named(&at, &error))?;
            check_owner(&at, &metadata, &system)?;
            if metadata.is_symlink() {
                links += 1;
                if links > MAX_LINKS {
                    return refused(path, "has too many symbolic links");
                }
                let target = fs::read_link(&at).map_err(|error| named(&at, &error))?;
                at.pop();
                if target.is_absolute() {
                    at = PathBuf::from("/");
                }
                push_components(&mut rest, &target);
            } else if !rest.is_empty() {
                check_parent(&at, &metadata, &system)?;
            }
        }
        Ok(())
    }

    /// Puts the components of a path before those that are left, whose first is the last of the array.
    fn push_components(rest: &mut Vec<OsString>, path: &Path) {
        let components = path.components().rev();
        let components = components.filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir));
        rest.extend(components.map(|part| part.as_os_str().to_owned()));
    }

    fn check_owner(path: &Path, metadata: &Metadata, system: &Metadata) -> io::Result<()> {
        let owner = metadata.uid();
        if [ROOT, system.uid(), user()].contains(&owner) {
            return Ok(());
        }
        refused(path, &format!("belongs to another user (uid {owner})"))
    }

    /// Checks that no other user can replace what is in this directory. In one with the sticky bit, only the owners can.
    fn check_parent(path: &Path, metadata: &Metadata, system: &Metadata) -> io::Result<()> {
        let (mode, group) = (metadata.mode() & 0o7777, metadata.gid());
        let own_group = rustix::process::getegid().as_raw();
        // A group of the user's own has the user's number, where a system makes such groups.
        let is_private = [ROOT, system.gid()].contains(&group) || group == own_group && group == user();
        let others = if is_private { 0o002 } else { 0o022 };
        if mode & 0o1000 != 0 || mode & others == 0 {
            return Ok(());
        }
        refused(path, &format!("has the mode {mode:04o}, so that other users can replace what is in it: chmod go-w it"))
    }

    pub(super) fn check_mode(path: &Path) -> io::Result<()> {
        let mode = fs::metadata(path)?.mode() & 0o7777;
        if mode & 0o077 == 0 { Ok(()) } else { refused(path, &format!("has the mode {mode:04o}: chmod 700 it")) }
    }

    fn refused(path: &Path, what: &str) -> io::Result<()> {
        Err(io::Error::new(PermissionDenied, format!("{} {what}", path.display())))
    }

    fn named(path: &Path, error: &io::Error) -> io::Error {
        io::Error::new(error.kind(), format!("{}: {error}", path.display()))
    }
}

#[cfg(test)]
mod tests;
