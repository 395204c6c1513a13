//! TLS to PostgreSQL as libpq's sslmodes mean it: which certificates are accepted. Opens no connection.

use std::path::Path;
use std::sync::Arc;

use sha2::{Digest, Sha256, Sha384, Sha512};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use tokio_rustls::rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature,
    verify_tls13_signature_with_raw_key,
};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use tokio_rustls::rustls::server::ParsedCertificate;
use tokio_rustls::rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};

use super::fault::ConnectFault;
use crate::config::{Database, SslMode, SslRoot};

/// What a certificate must show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// Nothing: the connection is encrypted, to whomever.
    Nothing,
    /// A known root.
    Chain,
    /// A known root and the host's name.
    ChainAndName,
}

impl Check {
    /// What libpq checks: a root that is given turns `require` into `verify-ca`, and the system's roots, which sign for
    /// everybody, are of use only together with the name. `None` for no TLS at all.
    pub fn of(mode: SslMode, root: &SslRoot) -> Option<Self> {
        match (mode, root) {
            (SslMode::Disable, _) => None,
            (SslMode::Prefer, _) | (SslMode::Require, SslRoot::None) => Some(Check::Nothing),
            (SslMode::Require | SslMode::VerifyCa, SslRoot::System) | (SslMode::VerifyFull, _) => {
                Some(Check::ChainAndName)
            }
            (SslMode::Require, SslRoot::File(_)) | (SslMode::VerifyCa, _) => Some(Check::Chain),
        }
    }
}

/// Builds the connector. Reads the roots each time, so that a renewed file is used. `None`: `sslmode=disable`.
pub async fn connector(database: &Database) -> Result<Option<TlsConnector>, ConnectFault> {
    let Some(check) = Check::of(database.ssl_mode, &database.ssl_root) else { return Ok(None) };
    let roots = match check {
        Check::Nothing => Vec::new(),
        Check::Chain | Check::ChainAndName => roots(&database.ssl_root).await?,
    };
    let provider = Arc::new(ring::default_provider());
    let verifier = Verifier::new(check, roots, &provider);
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| ConnectFault::Handshake(std::io::Error::other(error)))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    Ok(Some(TlsConnector::from(Arc::new(config))))
}

async fn roots(root: &SslRoot) -> Result<Vec<CertificateDer<'static>>, ConnectFault> {
    let (place, read) = match root {
        SslRoot::None => {
            let reason = "there is no such file, and sslmode asks to check the certificate".to_owned();
            return Err(ConnectFault::Roots { place: "~/.postgresql/root.crt".to_owned(), reason });
        }
        SslRoot::File(path) => (path.display().to_string(), read_file(path).await),
        SslRoot::System => {
            let loaded = tokio::task::spawn_blocking(rustls_native_certs::load_native_certs).await;
            let loaded = loaded.map_err(|error| error.to_string()).map(|loaded| loaded.certs);
            ("of the system".to_owned(), loaded)
        }
    };
    match read {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err(ConnectFault::Roots { place, reason: "no certificate in it".to_owned() }),
        Err(reason) => Err(ConnectFault::Roots { place, reason }),
    }
}

async fn read_file(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let pem = tokio::fs::read(path).await.map_err(|error| error.to_string())?;
    CertificateDer::pem_slice_iter(&pem).collect::<Result<_, _>>().map_err(|error| error.to_string())
}

/// Decides about a server's certificate. The handshake's signature is checked in every mode: whoever answers holds
/// the key of the certificate that it shows.
#[derive(Debug)]
struct Verifier {
    check: Check,
    anchors: RootCertStore,
    /// The root file's certificates as they are, to find a server's own one among them.
    roots: Vec<CertificateDer<'static>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Verifier {
    fn new(check: Check, roots: Vec<CertificateDer<'static>>, provider: &CryptoProvider) -> Self {
        let mut anchors = RootCertStore::empty();
        // A store may hold certificates too old to be read; those that can be are used.
        anchors.add_parsable_certificates(roots.iter().cloned());
        Verifier { check, anchors, roots, algorithms: provider.signature_verification_algorithms }
    }

    fn check_chain(
        &self,
        end_entity: &CertificateDer<'_>,
        parsed: &ParsedCertificate<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        let algorithms = self.algorithms.all;
        match verify_server_cert_signed_by_trust_anchor(parsed, &self.anchors, intermediates, now, algorithms) {
            // A self-signed certificate that calls itself an authority, as `openssl req -x509` makes it, may not be
            // a server's for webpki, which says so only after it has checked the dates. libpq takes it when the root
            // file holds this very certificate, and so do we.
            Err(Error::InvalidCertificate(CertificateError::Other(_))) if self.roots.contains(end_entity) => Ok(()),
            result => result,
        }
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if self.check != Check::Nothing {
            let parsed = ParsedCertificate::try_from(end_entity)?;
            self.check_chain(end_entity, &parsed, intermediates, now)?;
            if self.check == Check::ChainAndName {
                verify_server_name(&parsed, server_name)?;
            }
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        match verify_tls13_signature(message, certificate, signed, &self.algorithms) {
            // webpki reads no certificate of X.509 version 1, which `openssl x509 -req` made by default up to 3.1. Where
            // nothing in it is to be checked, its key is all that is needed.
            Err(Error::InvalidCertificate(CertificateError::Other(_))) if self.check == Check::Nothing => {
                let key = public_key(certificate).ok_or(Error::InvalidCertificate(CertificateError::BadEncoding))?;
                let key = SubjectPublicKeyInfoDer::from(key);
                verify_tls13_signature_with_raw_key(message, &key, signed, &self.algorithms)
            }
            result => result,
        }
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// The `tls-server-end-point` channel binding of RFC 5929, section 4.1: the certificate's hash, by the hash function
/// of its own signature, where MD5 and SHA-1 count as SHA-256. `None` where the RFC names no function (Ed25519) and
/// where the signature's name does not tell it (RSA-PSS).
pub fn server_end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    Some(match signature_algorithm(certificate)? {
        // RSA (PKCS #1) with MD5, SHA-1, SHA-256; ECDSA with SHA-1, SHA-256.
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x04 | 0x05 | 0x0b]
        | [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x01]
        | [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02] => Sha256::digest(certificate).to_vec(),
        // SHA-384.
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0c] | [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x03] => {
            Sha384::digest(certificate).to_vec()
        }
        // SHA-512.
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0d] | [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x04] => {
            Sha512::digest(certificate).to_vec()
        }
        _ => return None,
    })
}

/// DER's tag of a sequence.
const SEQUENCE: u8 = 0x30;

/// The object identifier of a certificate's signature algorithm, encoded (RFC 5280, section 4.1.1).
fn signature_algorithm(certificate: &[u8]) -> Option<&[u8]> {
    const OBJECT_IDENTIFIER: u8 = 0x06;
    let (certificate, _) = der_element(certificate, SEQUENCE)?;
    let (_to_be_signed, rest) = der_element(certificate, SEQUENCE)?;
    let (algorithm, _signature) = der_element(rest, SEQUENCE)?;
    let (identifier, _parameters) = der_element(algorithm, OBJECT_IDENTIFIER)?;
    Some(identifier)
}

/// A version 1 certificate's SubjectPublicKeyInfo, with its header (RFC 5280, section 4.1): it stands behind the serial
/// number and four sequences, signature algorithm, issuer, validity and subject.
fn public_key(certificate: &[u8]) -> Option<&[u8]> {
    const INTEGER: u8 = 0x02;
    let (certificate, _) = der_element(certificate, SEQUENCE)?;
    let (to_be_signed, _) = der_element(certificate, SEQUENCE)?;
    let (_serial, mut rest) = der_element(to_be_signed, INTEGER)?;
    for _ in 0..4 {
        (_, rest) = der_element(rest, SEQUENCE)?;
    }
    let (_key, behind) = der_element(rest, SEQUENCE)?;
    rest.get(..rest.len() - behind.len())
}

/// The content of a DER element with this tag, and what follows it.
fn der_element(input: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&found, rest) = input.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x84 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (bytes.iter().fold(0, |length, &byte| length << 8 | usize::from(byte)), rest)
        }
        _ => return None,
    };
    (found == tag).then(|| rest.split_at_checked(length)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_check_what_libpq_checks() {
        let file = SslRoot::File("root.crt".into());
        for (mode, root, wanted) in [
            (SslMode::Disable, &file, None),
            (SslMode::Prefer, &file, Some(Check::Nothing)),
            (SslMode::Require, &SslRoot::None, Some(Check::Nothing)),
            (SslMode::Require, &file, Some(Check::Chain)),
            (SslMode::Require, &SslRoot::System, Some(Check::ChainAndName)),
            (SslMode::VerifyCa, &file, Some(Check::Chain)),
            (SslMode::VerifyCa, &SslRoot::None, Some(Check::Chain)),
            (SslMode::VerifyCa, &SslRoot::System, Some(Check::ChainAndName)),
            (SslMode::VerifyFull, &file, Some(Check::ChainAndName)),
        ] {
            assert_eq!(Check::of(mode, root), wanted, "{mode:?} {root:?}");
        }
    }

    /// The frame of a certificate: everything but the signature algorithm is empty.
    fn certificate(algorithm: &[u8]) -> Vec<u8> {
        let length = algorithm.len() as u8;
        let mut der = vec![0x30, 0x81, length + 6, 0x30, 0x00, 0x30, length + 2, 0x06, length];
        der.extend_from_slice(algorithm);
        der
    }

    #[test]
    fn channel_binding_hashes_by_the_certificates_own_function() {
        for (algorithm, bytes) in [
            (&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x05][..], Some(32)),
            (&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0b], Some(32)),
            (&[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x03], Some(48)),
            (&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0d], Some(64)),
            (&[0x2b, 0x65, 0x70], None),
        ] {
            let certificate = certificate(algorithm);
            assert_eq!(server_end_point(&certificate).map(|hash| hash.len()), bytes, "{algorithm:x?}");
            for length in 0..certificate.len() {
                assert_eq!(server_end_point(&certificate[..length]), None, "{length}");
            }
        }
    }

    #[test]
    fn a_version_1_certificates_key_is_found() {
        // Serial number, four sequences, the key, a signature that is never looked at.
        let key = [0x30, 0x03, 0x05, 0x01, 0x02];
        let mut inner = vec![0x02, 0x01, 0x07, 0x30, 0x00, 0x30, 0x01, 0x09, 0x30, 0x00, 0x30, 0x00];
        inner.extend_from_slice(&key);
        let mut certificate = vec![0x30, inner.len() as u8 + 2, 0x30, inner.len() as u8];
        certificate.extend_from_slice(&inner);
        assert_eq!(public_key(&certificate), Some(&key[..]));
        for length in 0..certificate.len() {
            assert_eq!(public_key(&certificate[..length]), None, "{length}");
        }
    }

    #[tokio::test]
    async fn roots_that_cannot_be_read_are_named() {
        let database =
            |ssl_root| Database { postgres: tokio_postgres::Config::new(), ssl_mode: SslMode::VerifyFull, ssl_root };
        for (root, wanted) in [
            (SslRoot::None, "~/.postgresql/root.crt"),
            (SslRoot::File("/nowhere/root.crt".into()), "/nowhere/root.crt"),
            (SslRoot::File("/dev/null".into()), "no certificate"),
        ] {
            let fault = connector(&database(root)).await.err().expect("no roots").to_string();
            assert!(fault.contains(wanted), "{fault}");
        }
    }
}
