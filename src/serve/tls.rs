//! Certificate and key of the query server, read and checked before it listens. No sockets.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::ServeError;

/// TLS as the query server speaks it: 1.2 and 1.3, HTTP/1.1, no client certificates.
#[derive(Clone)]
pub struct Tls(Arc<ServerConfig>);

impl Tls {
    /// Reads a certificate chain (leaf first) and its private key from PEM files.
    ///
    /// # Errors
    /// A file that cannot be read, holds no certificate or no key, or a key of another certificate.
    pub fn load(cert: &Path, key: &Path) -> Result<Self, ServeError> {
        let chain = certificates(cert)?;
        let private = private_key(key)?;
        let broken = |source| ServeError::Tls { cert: cert.to_owned(), key: key.to_owned(), source };
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(broken)?
            .with_no_client_auth()
            .with_single_cert(chain, private)
            .map_err(broken)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Tls(Arc::new(config)))
    }

    pub(super) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.0.clone())
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls")
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, ServeError> {
    const SETTING: &str = "VECSYNC_TLS_CERT";
    let read = |source| ServeError::Pem { setting: SETTING, path: path.to_owned(), source };
    let chain = CertificateDer::pem_file_iter(path).map_err(read)?.collect::<Result<Vec<_>, _>>().map_err(read)?;
    if chain.is_empty() {
        return Err(ServeError::PemEmpty { setting: SETTING, path: path.to_owned(), wanted: "a certificate" });
    }
    Ok(chain)
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, ServeError> {
    const SETTING: &str = "VECSYNC_TLS_KEY";
    PrivateKeyDer::from_pem_file(path).map_err(|source| match source {
        pem::Error::NoItemsFound => {
            ServeError::PemEmpty { setting: SETTING, path: path.to_owned(), wanted: "an unencrypted private key" }
        }
        source => ServeError::Pem { setting: SETTING, path: path.to_owned(), source },
    })
}
