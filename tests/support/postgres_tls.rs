//! Certificates for a PostgreSQL of a test's own, and somebody in the middle who ends TLS and begins it anew.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SignatureAlgorithm, date_time_ymd};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// What a client asks a PostgreSQL first that it wants TLS of: length, and a number in the place of a version.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// Somebody who signs certificates.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its own certificate, for who is to trust it.
    pub root: PathBuf,
}

/// A server's certificate and its key, as PEM.
#[derive(Clone)]
pub struct Identity {
    pub certificate: String,
    pub key: String,
}

impl Authority {
    /// Its certificate is written into the folder.
    pub fn new(folder: &Path, name: &str) -> Authority {
        Authority::by(&rcgen::PKCS_ECDSA_P256_SHA256, folder, name)
    }

    /// As `new`; it signs in a way that names no hash function to bind SCRAM by.
    pub fn unbindable(folder: &Path, name: &str) -> Authority {
        Authority::by(&rcgen::PKCS_ED25519, folder, name)
    }

    fn by(algorithm: &'static SignatureAlgorithm, folder: &Path, name: &str) -> Authority {
        let mut params = CertificateParams::new(vec![]).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let key = KeyPair::generate_for(algorithm).expect("a key");
        let root = folder.join(format!("{name}.pem"));
        std::fs::write(&root, params.self_signed(&key).expect("a certificate").pem()).expect("written");
        Authority { issuer: Issuer::new(params, key), root }
    }

    /// For a host of this name.
    pub fn identity(&self, host: &str) -> Identity {
        self.made(host, false)
    }

    /// As `identity`, and its time is over.
    pub fn expired(&self, host: &str) -> Identity {
        self.made(host, true)
    }

    fn made(&self, host: &str, expired: bool) -> Identity {
        let mut params = CertificateParams::new(vec![host.to_owned()]).expect("parameters");
        if expired {
            (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1));
        }
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        Identity { certificate: certificate.pem(), key: key.serialize_pem() }
    }
}

/// Somebody between client and server. Both sides have TLS, and in the middle everything can be read.
pub struct Interceptor {
    pub port: u16,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Interceptor {
    /// Before the server at this port of loopback, whose certificate is for `localhost` and was signed by `trusted`.
    /// `hides` is taken out of what the server says: replaced by as many other bytes.
    pub fn start(
        to: u16,
        trusted: &Authority,
        shows: &Identity,
        hides: Option<(&'static [u8], &'static [u8])>,
    ) -> Self {
        let provider = Arc::new(ring::default_provider());
        let chain = CertificateDer::pem_slice_iter(shows.certificate.as_bytes()).collect::<Result<_, _>>();
        let key = PrivateKeyDer::from_pem_slice(shows.key.as_bytes()).expect("a key");
        let ours = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(chain.expect("certificates"), key)
            .expect("a pair");
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(&trusted.root).expect("a certificate")).expect("a root");
        let theirs = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let (acceptor, connector) = (TlsAcceptor::from(Arc::new(ours)), TlsConnector::from(Arc::new(theirs)));
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        listener.set_nonblocking(true).expect("not blocking");
        let port = listener.local_addr().expect("an address").port();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let listener = TcpListener::from_std(listener).expect("a listener");
                let accept = async {
                    loop {
                        let Ok((client, _)) = listener.accept().await else { continue };
                        // Whoever hangs up ends it.
                        tokio::spawn(intercept(client, to, acceptor.clone(), connector.clone(), hides));
                    }
                };
                tokio::select! {
                    () = accept => {}
                    _ = stopped => {}
                }
            });
        });
        Interceptor { port, stop: Some(stop), thread: Some(thread) }
    }
}

async fn intercept(
    mut client: TcpStream,
    to: u16,
    acceptor: TlsAcceptor,
    connector: TlsConnector,
    hides: Option<(&'static [u8], &'static [u8])>,
) -> std::io::Result<()> {
    let mut asked = [0; SSL_REQUEST.len()];
    client.read_exact(&mut asked).await?;
    client.write_all(b"S").await?;
    let mut client = acceptor.accept(client).await?;
    let mut server = TcpStream::connect(("127.0.0.1", to)).await?;
    server.write_all(&asked).await?;
    server.read_u8().await?;
    let name = ServerName::try_from("localhost").expect("a name");
    let mut server = connector.connect(name, server).await?;
    if let Some((hidden, instead)) = hides {
        // The startup packet there, and what the server says first back.
        let mut bytes = vec![0; 4096];
        let read = client.read(&mut bytes).await?;
        server.write_all(&bytes[..read]).await?;
        let read = server.read(&mut bytes).await?;
        let at = bytes[..read].windows(hidden.len()).position(|part| part == hidden).expect("it is said first");
        bytes[at..at + hidden.len()].copy_from_slice(instead);
        client.write_all(&bytes[..read]).await?;
    }
    copy_bidirectional(&mut client, &mut server).await.map(|_| ())
}

impl Drop for Interceptor {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
