//! A Unix domain socket, in a directory of the user's.

use std::{
    fs::{self, Permissions},
    io,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
};

use backwater_ops::{check_directory_is_private, make_private_directory};
use tokio::net::{UnixListener, UnixStream};

pub(super) struct Listener {
    listener: UnixListener,
    path: PathBuf,
}

impl Listener {
    pub(super) fn new(name: &str) -> io::Result<Self> {
        let directory = directory();
        make_private_directory(&directory).map_err(|error| {
            io::Error::new(error.kind(), format!("{error}; XDG_RUNTIME_DIR names a directory of the user's own"))
        })?;
        let path = directory.join(format!("{name}.sock"));
        let listener = UnixListener::bind(&path).or_else(|error| {
            // One of a process that was killed answers no more.
            let is_left_over =
                error.kind() == io::ErrorKind::AddrInUse && std::os::unix::net::UnixStream::connect(&path).is_err();
            if !is_left_over {
                return Err(error);
            }
            fs::remove_file(&path)?;
            UnixListener::bind(&path)
        })?;
        let listener = Self { listener, path };
        fs::set_permissions(&listener.path, Permissions::from_mode(0o600))?;
        Ok(listener)
    }

    pub(super) async fn accept(&mut self) -> io::Result<UnixStream> {
        self.listener.accept().await.map(|(stream, _)| stream)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

pub(super) async fn connect(name: &str) -> io::Result<UnixStream> {
    let directory = directory();
    check_directory_is_private(&directory)?;
    UnixStream::connect(directory.join(format!("{name}.sock"))).await
}

pub(super) fn running() -> io::Result<Vec<String>> {
    let directory = directory();
    match check_directory_is_private(&directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        checked => checked?,
    }
    let mut names = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let file = entry.file_name();
        let Some(name) = file.to_str().and_then(|name| name.strip_suffix(".sock")) else { continue };
        // A process that was killed leaves its socket.
        if std::os::unix::net::UnixStream::connect(entry.path()).is_ok() {
            names.push(name.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

fn directory() -> PathBuf {
    below(std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from))
}

/// A relative path is ignored, as the XDG Base Directory Specification demands: it would be another one for each command.
fn below(runtime: Option<PathBuf>) -> PathBuf {
    runtime.filter(|path| path.is_absolute()).unwrap_or_else(|| PathBuf::from("/run")).join("backwater")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runtime_directory_that_is_not_absolute_is_ignored() {
        for (given, used) in [(Some("/x"), "/x/backwater"), (Some("x"), "/run/backwater"), (Some(""), "/run/backwater")]
        {
            assert_eq!(below(given.map(PathBuf::from)), PathBuf::from(used), "{given:?}");
        }
        assert_eq!(below(None), PathBuf::from("/run/backwater"));
    }
}
