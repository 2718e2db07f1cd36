//! The protocol's socket: where it is, whose it is, and whether it is still there.

use std::{
    fs::{self, DirBuilder},
    io::{self, ErrorKind::AddrInUse},
    os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
    thread,
};

use backwater_ops::check_directory_is_own;
use rustix::{
    fs::{Mode, inotify},
    io::Errno,
    process::{geteuid, umask},
};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::oneshot,
};

/// Where `wg` looks for it.
const DIRECTORY: &str = "/var/run/wireguard";

/// A socket that listens. Its name is removed with it.
pub(super) struct Listener {
    listener: UnixListener,
    path: PathBuf,
    inode: u64,
}

/// The name of a socket.
pub(crate) struct Watch {
    path: PathBuf,
    inode: u64,
}

impl Listener {
    /// Listens for the tunnel of this name. A socket of this user's on which nobody listens is removed: a process that was killed left it.
    ///
    /// # Errors
    /// When somebody listens, the directory may be written to by others, or the system refuses.
    pub(super) fn new(name: &str) -> io::Result<Self> {
        let directory = Path::new(DIRECTORY);
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        check_directory_is_own(directory)?;
        let mode = fs::metadata(directory)?.mode() & 0o7777;
        if mode & 0o022 != 0 {
            return Err(io::Error::other(format!("{DIRECTORY} has the mode {mode:04o}: chmod 700 it")));
        }
        let path = directory.join(format!("{name}.sock"));
        let listener = bind(&path).or_else(|error| {
            if error.kind() != AddrInUse || !is_left_over(&path) {
                return Err(error);
            }
            fs::remove_file(&path)?;
            bind(&path)
        })?;
        let inode = fs::symlink_metadata(&path)?.ino();
        Ok(Self { listener, path, inode })
    }

    pub(super) async fn accept(&self) -> io::Result<UnixStream> {
        self.listener.accept().await.map(|(stream, _)| stream)
    }

    /// The socket's name, to watch it.
    pub(super) fn watch(&self) -> Watch {
        Watch { path: self.path.clone(), inode: self.inode }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if self.watch().is_there() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Watch {
    /// Returns when the socket's name is removed or another file has it. A thread waits for that.
    ///
    /// # Errors
    /// When the system does not let it watch the name.
    pub(crate) async fn gone(self) -> io::Result<()> {
        let inotify = inotify::init(inotify::CreateFlags::CLOEXEC)?;
        // The socket itself stays while it is open; that a name of it is removed changes its attributes.
        let events = inotify::WatchFlags::ATTRIB | inotify::WatchFlags::DELETE_SELF | inotify::WatchFlags::MOVE_SELF;
        if let Err(error) = inotify::add_watch(&inotify, &self.path, events) {
            return if self.is_there() { Err(error.into()) } else { Ok(()) };
        }
        let (sender, gone) = oneshot::channel();
        thread::Builder::new().name("uapi".to_owned()).spawn(move || {
            let mut result = Ok(());
            // What has happened is seen by looking.
            let mut events = [0; 4096];
            while self.is_there() && result.is_ok() {
                match rustix::io::read(&inotify, &mut events) {
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(error) => result = Err(error.into()),
                }
            }
            // The tunnel may have ended.
            let _ = sender.send(result);
        })?;
        gone.await.unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()))
    }

    fn is_there(&self) -> bool {
        fs::symlink_metadata(&self.path).is_ok_and(|file| file.ino() == self.inode)
    }
}

/// Only this user may connect.
fn bind(path: &Path) -> io::Result<UnixListener> {
    let before = umask(Mode::XUSR | Mode::RWXG | Mode::RWXO);
    let bound = UnixListener::bind(path);
    umask(before);
    bound
}

fn is_left_over(path: &Path) -> bool {
    let is_own = |file: fs::Metadata| file.file_type().is_socket() && file.uid() == geteuid().as_raw();
    fs::symlink_metadata(path).is_ok_and(is_own)
        && std::os::unix::net::UnixStream::connect(path)
            .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}
