//! The files of the certificate, while the relay runs.

use std::{sync::Arc, time::SystemTime};

use tracing::{info, warn};

use crate::ingress::stream::tls::Certificate;

type Stamp = [Option<(SystemTime, u64)>; 2];

/// Notices that the files have changed.
pub(super) struct CertificateWatch {
    certificate: Arc<Certificate>,
    /// As they were when last read.
    seen: Stamp,
    /// A change that may still go on.
    changing: Option<Stamp>,
}

impl CertificateWatch {
    pub(super) fn new(certificate: Arc<Certificate>) -> Self {
        Self { seen: certificate.files().stamp(), certificate, changing: None }
    }

    /// Reads the files if they have changed, and not since the last look: somebody may be writing them.
    pub(super) fn look(&mut self) {
        let stamp = self.certificate.files().stamp();
        if stamp == self.seen {
            self.changing = None;
        } else if self.changing.replace(stamp) == Some(stamp) {
            self.read_now();
        }
    }

    /// Reads the files.
    pub(super) fn read_now(&mut self) {
        (self.changing, self.seen) = (None, self.certificate.files().stamp());
        let file = self.certificate.files().chain.display();
        match self.certificate.reload() {
            Ok(()) => info!(%file, "the certificate was read again: new connections use it"),
            Err(problem) => {
                warn!(problem, "the certificate cannot be used: the relay goes on with the one that it has");
            }
        }
    }
}
