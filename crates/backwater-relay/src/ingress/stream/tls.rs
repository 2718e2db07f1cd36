//! TLS 1.2 and 1.3.

use std::{
    io::{self, Read, Write},
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::SystemTime,
};

use rustls::{
    ServerConfig, ServerConnection,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::net::TcpStream;

/// The protocols that a client may name (RFC 7443).
const ALPN: [&[u8]; 2] = [b"stun.turn", b"stun.nat-discovery"];

/// Bytes of the longest certificate or key file.
const MAX_FILE: u64 = 1 << 20;

/// Payload bytes that are encrypted before they are sent.
const AHEAD: usize = 16 << 10;

/// Where the certificate chain and its key are, as PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CertificateFiles {
    pub(crate) chain: PathBuf,
    pub(crate) key: PathBuf,
}

/// The certificate of the relay. Handshakes use the one that was read last.
#[derive(Debug)]
pub(crate) struct Certificate {
    files: CertificateFiles,
    current: RwLock<Arc<CertifiedKey>>,
}

impl CertificateFiles {
    /// Reads the files.
    ///
    /// # Errors
    /// Which file cannot be used, and why.
    pub(crate) fn read(&self) -> Result<CertifiedKey, String> {
        let Self { chain, key } = self;
        let chain_of = |pem: Vec<u8>| CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
        let certificates =
            chain_of(read_file(chain)?).map_err(|error| format!("{}: no PEM: {error}", chain.display()))?;
        if certificates.is_empty() {
            return Err(format!("{}: expected a certificate as PEM, found none", chain.display()));
        }
        let private = PrivateKeyDer::from_pem_slice(&read_file(key)?)
            .map_err(|error| format!("{}: expected a private key as PEM: {error}", key.display()))?;
        CertifiedKey::from_der(certificates, private, &ring::default_provider())
            .map_err(|error| format!("{} and {} cannot be used together: {error}", chain.display(), key.display()))
    }

    /// Returns when the files were changed last, and their lengths. Changes with their contents.
    pub(crate) fn stamp(&self) -> [Option<(SystemTime, u64)>; 2] {
        [&self.chain, &self.key].map(|path| {
            let metadata = std::fs::metadata(path).ok()?;
            Some((metadata.modified().ok()?, metadata.len()))
        })
    }
}

fn read_file(path: &Path) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(MAX_FILE).read_to_end(&mut bytes));
    read.map(|_| bytes).map_err(|error| format!("{}: cannot be read: {error}", path.display()))
}

impl Certificate {
    pub(crate) fn load(files: CertificateFiles) -> Result<Arc<Self>, String> {
        let current = RwLock::new(Arc::new(files.read()?));
        Ok(Arc::new(Self { files, current }))
    }

    pub(crate) fn files(&self) -> &CertificateFiles {
        &self.files
    }

    /// Reads the files again. New handshakes use what is in them; connections go on.
    ///
    /// # Errors
    /// What is wrong with them. The certificate stays as it was.
    pub(crate) fn reload(&self) -> Result<(), String> {
        let new = Arc::new(self.files.read()?);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = new;
        Ok(())
    }

    /// Returns what the connections of all threads start from.
    pub(crate) fn server_config(self: &Arc<Self>) -> Result<Arc<ServerConfig>, rustls::Error> {
        let provider = Arc::new(ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS12, &rustls::version::TLS13])?
            .with_no_client_auth()
            .with_cert_resolver(self.clone());
        config.alpn_protocols = ALPN.map(<[u8]>::to_vec).into();
        // Of all threads: a client that returns may come to another one.
        config.ticketer = ring::Ticketer::new()?;
        config.send_tls13_tickets = 1;
        Ok(Arc::new(config))
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

/// The TLS of one connection.
pub(crate) struct Tls {
    connection: ServerConnection,
    /// Payload bytes that are encrypted and not sent yet.
    in_flight: usize,
}

/// What became of a write.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Written {
    /// Payload bytes that have been sent.
    pub(crate) payload: usize,
    /// Whether any byte has been sent.
    pub(crate) any: bool,
}

impl Tls {
    pub(crate) fn new(config: Arc<ServerConfig>) -> Result<Self, rustls::Error> {
        let mut connection = ServerConnection::new(config)?;
        // What waits is bounded here.
        connection.set_buffer_limit(None);
        Ok(Self { connection, in_flight: 0 })
    }

    /// Decrypts what was received and adds the payload to `payload`. Returns whether the client has closed its side.
    ///
    /// # Errors
    /// The connection is of no more use. An alert says so to the client with the next write.
    pub(crate) fn decrypt(&mut self, mut received: &[u8], payload: &mut Vec<u8>) -> Result<bool, rustls::Error> {
        while !received.is_empty() {
            let full = |error: io::Error| rustls::Error::General(error.to_string());
            let taken = self.connection.read_tls(&mut received).map_err(full)?;
            let state = self.connection.process_new_packets()?;
            let (start, len) = (payload.len(), state.plaintext_bytes_to_read());
            payload.resize(start + len, 0);
            self.connection.reader().read_exact(&mut payload[start..]).map_err(full)?;
            if state.peer_has_closed() || taken == 0 {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Encrypts and sends `payload`, which has frames of these lengths, and whatever else is to be sent. Its first
    /// [`in_flight`](Self::in_flight) bytes are those of the last call. A frame is a record: clients that take a record for a message are
    /// in use.
    pub(crate) fn write(
        &mut self,
        stream: &TcpStream,
        payload: &[u8],
        mut frames: impl Iterator<Item = usize>,
    ) -> io::Result<Written> {
        let (mut written, mut encrypted, mut end) = (Written::default(), self.in_flight, 0);
        loop {
            while self.connection.wants_write() {
                match self.connection.write_tls(&mut Socket(stream)) {
                    Ok(_) => written.any = true,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(written),
                    Err(error) => return Err(error),
                }
            }
            (written.payload, self.in_flight) = (encrypted, 0);
            if encrypted >= payload.len() || self.connection.is_handshaking() {
                return Ok(written);
            }
            while encrypted < payload.len() && self.in_flight < AHEAD {
                while end <= encrypted {
                    end += frames.next().unwrap_or(payload.len());
                }
                let frame = payload.get(encrypted..end).unwrap_or_default();
                self.connection.writer().write_all(frame)?;
                encrypted = end;
                self.in_flight += frame.len();
            }
        }
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Whether something is to be sent that is no payload, or payload that is encrypted.
    pub(crate) fn wants_write(&self) -> bool {
        self.connection.wants_write()
    }

    /// Says to the client that nothing more comes, with the next write.
    pub(crate) fn close(&mut self) {
        self.connection.send_close_notify();
    }
}

struct Socket<'a>(&'a TcpStream);

impl Write for Socket<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn write_vectored(&mut self, slices: &[io::IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(slices)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
