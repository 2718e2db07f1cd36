//! What the operator is told on stderr, beside the log.

use std::io::{self, Write};

/// Lines while the tunnel runs, at most: nobody may read them, and a pipe that is full would hold up the event loop.
const MAX_LINES: usize = 16;

/// Tells an operator who does not look into the log what keeps a peer from being reached.
#[derive(Debug)]
pub(crate) struct Notices {
    tunnel: String,
    left: usize,
}

impl Notices {
    /// Of this tunnel. With `is_seen` the log is before the operator's eyes: nothing is told then.
    pub(crate) fn new(tunnel: &str, is_seen: bool) -> Self {
        Self { tunnel: tunnel.to_owned(), left: if is_seen { 0 } else { MAX_LINES } }
    }

    /// Tells something, unless there were too many lines before.
    pub(crate) fn tell(&mut self, line: &str) {
        if self.left > 0 {
            self.left -= 1;
            say(&format!("{}: {line}", self.tunnel));
        }
    }
}

/// Writes a line to stderr, which may be closed.
pub(crate) fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}
