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

/// Checks that a directory belongs to this user, and that no other user can put another one in its place: everything above
/// it, and every symbolic link on the way, belongs to root or to this user. Windows is not checked.
///
/// # Errors
/// What belongs to whom, or that there is no such directory.
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
        fs,
        io::{self, ErrorKind::PermissionDenied},
        os::unix::fs::MetadataExt,
        path::Path,
    };

    const ROOT: u32 = 0;

    pub(super) fn user() -> u32 {
        rustix::process::geteuid().as_raw()
    }

    pub(super) fn check_directory_is_own(path: &Path) -> io::Result<()> {
        let path = std::path::absolute(path)?;
        // In a user namespace the system's root user has another number.
        let system = fs::symlink_metadata("/")?.uid();
        let trusted = [ROOT, system, user()];
        for part in path.ancestors() {
            let owner = fs::symlink_metadata(part).map_err(|error| named(part, &error))?.uid();
            if !trusted.contains(&owner) {
                return refused(part, &format!("belongs to another user (uid {owner})"));
            }
        }
        let directory = fs::metadata(&path).map_err(|error| named(&path, &error))?;
        if !directory.is_dir() {
            return refused(&path, "is no directory");
        }
        if directory.uid() != user() {
            return refused(&path, &format!("belongs to another user (uid {})", directory.uid()));
        }
        Ok(())
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
