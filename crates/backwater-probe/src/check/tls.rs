//! TLS on the way to the server (RFC 8656 §2.1), and whom it trusts.

use std::{
    io::{self, Read, Write},
    path::Path,
    sync::Arc,
};

use rustls::{
    ClientConfig, ClientConnection, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};

/// The name of the protocol that is asked for (RFC 7443).
const ALPN: &[u8] = b"stun.turn";

/// Whom the client trusts, and the name that the server's certificate must be for.
#[derive(Clone, Debug)]
pub struct Trust {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

/// The TLS of one connection.
pub(super) struct Tls(ClientConnection);

impl Trust {
    /// Trusts the certificates of this system, or those of a PEM file alone. `host` is the server's name or its IP address.
    ///
    /// # Errors
    /// The host is neither, or there are no certificates.
    pub fn new(host: &str, file: Option<&Path>) -> Result<Self, String> {
        let name = ServerName::try_from(host.to_owned()).map_err(|_| format!("{host} is no name of a host"))?;
        let mut roots = RootCertStore::empty();
        match file {
            Some(path) => {
                let problem = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
                for certificate in CertificateDer::pem_file_iter(path).map_err(|error| problem(&error))? {
                    let certificate = certificate.map_err(|error| problem(&error))?;
                    roots.add(certificate).map_err(|error| problem(&error))?;
                }
                if roots.is_empty() {
                    return Err(problem(&"there is no certificate in it"));
                }
            }
            None => drop(roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs)),
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions().map_err(|error| error.to_string())?;
        let mut config = builder.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok(Self { config: Arc::new(config), name })
    }
}

impl Tls {
    pub(super) fn new(trust: &Trust) -> io::Result<Self> {
        let connection = ClientConnection::new(trust.config.clone(), trust.name.clone());
        connection.map(Self).map_err(io::Error::other)
    }

    pub(super) fn is_handshaking(&self) -> bool {
        self.0.is_handshaking()
    }

    /// Returns the version of the protocol, such as `TLSv1_3`.
    pub(super) fn version(&self) -> String {
        self.0.protocol_version().map_or(String::new(), |version| format!("{version:?}"))
    }

    /// Encrypts `payload`, and appends what is to be sent, also of the handshake.
    pub(super) fn encrypt(&mut self, payload: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
        self.0.writer().write_all(payload)?;
        while self.0.wants_write() {
            self.0.write_tls(out)?;
        }
        Ok(())
    }

    /// Decrypts what has been received, and appends the payload.
    pub(super) fn decrypt(&mut self, mut received: &[u8], payload: &mut Vec<u8>) -> io::Result<()> {
        while !received.is_empty() {
            self.0.read_tls(&mut received)?;
            let state =
                self.0.process_new_packets().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            let len = state.plaintext_bytes_to_read();
            let start = payload.len();
            payload.resize(start + len, 0);
            self.0.reader().read_exact(payload.get_mut(start..).unwrap_or_default())?;
        }
        Ok(())
    }
}
