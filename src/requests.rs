//! One request over HTTP/1.1: takes an address apart, connects, speaks TLS where that is asked for, sends, and hands the answer
//! to who reads it. Knows no path and no document.

use std::error::Error;
use std::fmt::Write;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::{Body, Incoming};
use hyper::header::{HOST, HeaderValue};
use hyper::http::uri::Scheme;
use hyper::{Method, Request, Response, Uri};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore};

/// For how long a connection may take to open.
const CONNECT: Duration = Duration::from_secs(3);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// Not an address, or no path of it.
    #[error("wanted http://HOST:PORT or https://HOST:PORT")]
    Address,
    /// It cannot be reached.
    #[error("connect")]
    Unreachable(#[source] io::Error),
    /// The TLS client cannot be made.
    #[error("set up TLS")]
    Tls(#[source] rustls::Error),
    /// No connection in time.
    #[error("no connection within {} s", .0.as_secs())]
    Timeout(Duration),
    /// The connection broke.
    #[error("the connection broke")]
    Broken(#[source] Box<dyn Error + Send + Sync>),
}

/// What a connection is to HTTP.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// An address, taken apart.
pub struct Target {
    is_tls: bool,
    host: String,
    port: u16,
    authority: String,
    prefix: String,
}

impl Target {
    /// Reads `http://HOST:PORT` or `https://HOST:PORT`, with or without a path that stands before all others.
    pub fn parse(url: &str) -> Result<Self, RequestError> {
        let uri: Uri = url.parse().map_err(|_| RequestError::Address)?;
        let is_tls = match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTP => false,
            Some(scheme) if *scheme == Scheme::HTTPS => true,
            _ => return Err(RequestError::Address),
        };
        let authority = uri.authority().ok_or(RequestError::Address)?;
        // A key belongs into its setting, where it is masked.
        if authority.as_str().contains('@') || authority.host().is_empty() || uri.query().is_some() {
            return Err(RequestError::Address);
        }
        Ok(Target {
            is_tls,
            host: authority.host().trim_start_matches('[').trim_end_matches(']').to_owned(),
            port: authority.port_u16().unwrap_or(if is_tls { 443 } else { 80 }),
            authority: authority.as_str().to_owned(),
            prefix: uri.path().trim_end_matches('/').to_owned(),
        })
    }

    /// A request for a path there, which begins with a slash.
    pub fn request<B>(&self, method: Method, path: &str, body: B) -> Result<Request<B>, RequestError> {
        let mut request = Request::new(body);
        *request.method_mut() = method;
        *request.uri_mut() = format!("{}{path}", self.prefix).parse().map_err(|_| RequestError::Address)?;
        let host = HeaderValue::from_str(&self.authority).map_err(|_| RequestError::Address)?;
        request.headers_mut().insert(HOST, host);
        Ok(request)
    }

    /// Sends a request over a connection of its own and has the answer read by `take`. The limit is the caller's, but for
    /// the time that the connection takes.
    pub async fn send<B, T, E, F>(
        &self,
        request: Request<B>,
        take: impl FnOnce(Response<Incoming>) -> F,
    ) -> Result<T, E>
    where
        B: Body<Data: Send, Error: Into<Box<dyn Error + Send + Sync>>> + 'static,
        F: Future<Output = Result<T, E>>,
        E: From<RequestError>,
    {
        let stream = self.connect().await?;
        let broken = |source: hyper::Error| E::from(RequestError::Broken(source.into()));
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let talk = async { take(sender.send_request(request).await.map_err(broken)?).await };
        // The connection is driven here, beside the exchange it serves: no task outlives the call.
        tokio::pin!(talk, connection);
        tokio::select! {
            biased;
            talked = &mut talk => talked,
            ended = &mut connection => match ended {
                Ok(()) => talk.await,
                Err(source) => Err(broken(source)),
            },
        }
    }

    async fn connect(&self) -> Result<Box<dyn Stream>, RequestError> {
        let connecting = TcpStream::connect((self.host.as_str(), self.port));
        let connected = timeout(CONNECT, connecting).await.map_err(|_| RequestError::Timeout(CONNECT))?;
        let stream = connected.map_err(RequestError::Unreachable)?;
        match self.tls()? {
            None => Ok(Box::new(stream)),
            Some((connector, name)) => {
                let shaken = timeout(CONNECT, connector.connect(name, stream)).await;
                let stream = shaken.map_err(|_| RequestError::Timeout(CONNECT))?;
                Ok(Box::new(stream.map_err(RequestError::Unreachable)?))
            }
        }
    }

    /// TLS with the operating system's roots, or `None` for plain HTTP.
    fn tls(&self) -> Result<Option<(TlsConnector, ServerName<'static>)>, RequestError> {
        if !self.is_tls {
            return Ok(None);
        }
        let name = ServerName::try_from(self.host.clone()).map_err(|_| RequestError::Address)?;
        let mut roots = RootCertStore::empty();
        // What cannot be read is left out: a certificate that needs it is refused, and the reason said.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(RequestError::Tls)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Some((TlsConnector::from(Arc::new(config)), name)))
    }
}

/// Text as a part of a path or of a query string.
pub fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(escaped, "%{byte:02X}");
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_apart() {
        for (url, tls, host, port, prefix) in [
            ("http://127.0.0.1:8000", false, "127.0.0.1", 8000, ""),
            ("http://localhost/", false, "localhost", 80, ""),
            ("https://h.example/faq/", true, "h.example", 443, "/faq"),
            ("http://[::1]:9", false, "::1", 9, ""),
        ] {
            let target = Target::parse(url).expect(url);
            assert_eq!(
                (target.is_tls, target.host.as_str(), target.port, target.prefix.as_str()),
                (tls, host, port, prefix)
            );
        }
        for url in ["", "localhost:8000", "ftp://h", "http://", "http://key@h", "http://h/?q=1", "/search"] {
            assert!(matches!(Target::parse(url), Err(RequestError::Address)), "{url}");
        }
    }
}
