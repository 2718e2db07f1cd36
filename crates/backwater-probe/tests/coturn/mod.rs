//! coturn as the server of a test.

use std::{
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// coturn, until the test is over.
pub struct Coturn(Child);

impl Coturn {
    pub fn start(more: &str) -> Self {
        Self::with(&format!("--no-tls --no-dtls {more}"), 3478)
    }

    /// Starts it, and waits until it listens on this port.
    pub fn with(more: &str, port: u16) -> Self {
        let args = "-n -L 127.0.0.1 -p 3478 --min-port 40000 --max-port 40999 -r example.org \
                    --lt-cred-mech -u alice:secret --no-cli --pidfile /dev/null --log-file /dev/null";
        let mut command = Command::new("turnserver");
        command.args(args.split_whitespace()).args(more.split_whitespace());
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let patience = Instant::now() + Duration::from_secs(60);
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < patience, "coturn does not listen");
            std::thread::sleep(Duration::from_millis(50));
        }
        Self(child)
    }
}

impl Drop for Coturn {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a test in a namespace of its own, if coturn is installed.
pub fn with_coturn(name: &str, test: impl FnOnce()) {
    if !crate::support::installed("turnserver") {
        return crate::support::skip("turnserver is not installed (package coturn)");
    }
    crate::support::in_namespace(name, test);
}
