//! A named pipe. Its default security lets the user and administrators write to it, and others only read.

use std::{fs, io};

use tokio::net::windows::named_pipe::{ClientOptions, NamedPipeClient, NamedPipeServer, ServerOptions};

const PREFIX: &str = r"\\.\pipe\";

pub(super) struct Listener {
    path: String,
    next: NamedPipeServer,
}

impl Listener {
    pub(super) fn new(name: &str) -> io::Result<Self> {
        let path = path(name);
        let next = ServerOptions::new().first_pipe_instance(true).reject_remote_clients(true).create(&path)?;
        Ok(Self { path, next })
    }

    pub(super) async fn accept(&mut self) -> io::Result<NamedPipeServer> {
        self.next.connect().await?;
        let next = ServerOptions::new().reject_remote_clients(true).create(&self.path)?;
        Ok(std::mem::replace(&mut self.next, next))
    }
}

pub(super) async fn connect(name: &str) -> io::Result<NamedPipeClient> {
    ClientOptions::new().open(path(name))
}

pub(super) fn running() -> io::Result<Vec<String>> {
    let entries = fs::read_dir(PREFIX).into_iter().flatten().flatten();
    let mut names: Vec<_> =
        entries.filter_map(|entry| Some(entry.file_name().to_str()?.strip_prefix("backwater-")?.to_owned())).collect();
    names.sort();
    Ok(names)
}

fn path(name: &str) -> String {
    format!("{PREFIX}backwater-{name}")
}
