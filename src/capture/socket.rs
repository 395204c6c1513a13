//! Opens a socket to PostgreSQL, TCP or Unix, with or without TLS. Sends nothing of the protocol but the question
//! whether the server speaks TLS.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use postgres_protocol::message::frontend;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_postgres::config::Host;
use tokio_postgres::tls::{ChannelBinding, TlsConnect};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls;
use tokio_rustls::rustls::pki_types::ServerName;

use super::fault::{ConnectError, ConnectFault};
use super::tls::{self, Check};
use crate::config::{Database, SslMode};

/// How long one address may take to let us in, where the settings do not say.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The system's default of two hours lets a dead peer stand for two hours; the library cannot say whether its value
/// was set, so its default means "not set".
const LIBRARY_KEEPALIVE_IDLE: Duration = Duration::from_secs(2 * 60 * 60);
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 3;
/// Keepalive is not at work while something that we sent is not acknowledged, and the system then waits a quarter of an
/// hour. So long, where the settings do not say.
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED: Duration = Duration::from_secs(60);

/// More addresses than this are not tried in one attempt.
const ADDRESSES_MAX: usize = 32;

/// Where Debian's libpq looks when no host is named.
const DEFAULT_SOCKET_DIR: &str = "/var/run/postgresql";

/// One address to try.
#[derive(Clone, Debug)]
pub struct Target {
    address: Address,
    /// The name that the certificate must have.
    host: String,
    /// `host:port/database`, for messages.
    place: String,
    /// TLS was tried there and got nowhere, and `sslmode` does not insist on it.
    plain: bool,
}

#[derive(Clone, Debug)]
enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// The addresses of the settings, in order, and what went wrong with those tried.
pub struct Route<'a> {
    database: &'a Database,
    user: String,
    targets: std::vec::IntoIter<Target>,
    /// The target that was handed out last.
    tried: Option<Target>,
    error: Option<ConnectError>,
}

impl<'a> Route<'a> {
    /// Finds the addresses of all hosts.
    pub async fn of(database: &'a Database) -> Result<Self, ConnectError> {
        let user = user(database);
        let mut route = Route { database, user, targets: Vec::new().into_iter(), tried: None, error: None };
        if route.user.is_empty() {
            return Err(route.settings("no user is named"));
        }
        let mut targets = Vec::new();
        for (host, port) in hosts(database).map_err(|fault| route.settings(fault))? {
            match resolve(&host, port, database).await {
                Ok(found) => targets.extend(found),
                // Another host's name may still be known.
                Err(error) => route.error = Some(error),
            }
        }
        targets.truncate(ADDRESSES_MAX);
        route.targets = targets.into_iter();
        Ok(route)
    }

    /// The user to log in as.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The database to log into; libpq's default is the user's name.
    pub fn database_name(&self) -> &str {
        self.database.postgres.get_dbname().unwrap_or(&self.user)
    }

    /// The next address to try.
    pub fn next_target(&mut self) -> Option<Target> {
        // Once more without TLS, if the last failure has left it to be tried so.
        let again = self.tried.take().filter(|target| target.plain);
        let target = again.or_else(|| self.targets.next())?;
        self.tried = Some(Target { plain: false, ..target.clone() }).filter(|_| !target.plain);
        Some(target)
    }

    /// Runs one attempt under the time limit of the settings and says where it failed.
    pub async fn attempt<T>(
        &self,
        target: &Target,
        login: impl Future<Output = Result<T, ConnectFault>>,
    ) -> Result<T, ConnectError> {
        let limit = self.database.postgres.get_connect_timeout().copied().filter(|limit| !limit.is_zero());
        let limit = limit.unwrap_or(CONNECT_TIMEOUT);
        let result = tokio::time::timeout(limit, login).await.unwrap_or(Err(ConnectFault::TimedOut(limit)));
        result.map_err(|fault| ConnectError::new(&target.place, &self.user, fault))
    }

    /// Notes a failed attempt. As with libpq, another address is tried only where this one may be down; a server that
    /// answered and refused is the answer.
    ///
    /// With `sslmode=prefer` a server that has TLS and lets nobody in with it, or cannot do it, is asked without.
    pub fn failed(&mut self, error: ConnectError) -> Result<(), ConnectError> {
        let by_tls = self.database.ssl_mode == SslMode::Prefer
            && (matches!(error.fault(), ConnectFault::Handshake(_)) || is_of_pg_hba(&error));
        let tried = self.tried.as_mut().filter(|target| by_tls && matches!(target.address, Address::Tcp(_)));
        if let Some(target) = tried {
            target.plain = true;
            self.error = Some(error);
            return Ok(());
        }
        if !error.is_transient() {
            // Where neither way is let in, the reason is that of the one which is preferred.
            let first = self.error.take_if(|first| is_of_pg_hba(first) && is_of_pg_hba(&error));
            return Err(first.unwrap_or(error));
        }
        self.error = Some(error);
        Ok(())
    }

    /// All addresses are tried: the last error.
    pub fn exhausted(self) -> ConnectError {
        match self.error {
            Some(error) => error,
            None => self.settings("no host is named"),
        }
    }

    fn settings(&self, fault: &'static str) -> ConnectError {
        ConnectError::new("the host of DATABASE_URL", &self.user, ConnectFault::Settings(fault))
    }
}

/// Whether the server's pg_hba.conf has no line for us, or none that goes with or without TLS.
fn is_of_pg_hba(error: &ConnectError) -> bool {
    matches!(error.fault(), ConnectFault::Server(said) if said.code() == "28000" && said.message.contains("pg_hba.conf"))
}

/// The user of the settings, else, as libpq has it, the one who runs this process.
fn user(database: &Database) -> String {
    match database.postgres.get_user() {
        Some(user) => user.to_owned(),
        None => whoami::username().unwrap_or_default(),
    }
}

/// A host of the settings: its name, or its address as well.
#[derive(Clone, Debug)]
enum Named {
    Name(String),
    Address(String, IpAddr),
    Dir(PathBuf),
}

/// Pairs hosts, addresses and ports as libpq does.
fn hosts(database: &Database) -> Result<Vec<(Named, u16)>, &'static str> {
    let config = &database.postgres;
    let (hosts, addresses, ports) = (config.get_hosts(), config.get_hostaddrs(), config.get_ports());
    if !addresses.is_empty() && !hosts.is_empty() && addresses.len() != hosts.len() {
        return Err("host and hostaddr name different numbers of hosts");
    }
    let count = hosts.len().max(addresses.len()).max(1);
    if ports.len() > 1 && ports.len() != count {
        return Err("host and port name different numbers of hosts");
    }
    let named = |index: usize| match (hosts.get(index), addresses.get(index)) {
        (Some(Host::Tcp(name)), Some(address)) => Named::Address(name.clone(), *address),
        (_, Some(address)) => Named::Address(address.to_string(), *address),
        (Some(Host::Tcp(name)), None) => Named::Name(name.clone()),
        (Some(Host::Unix(dir)), None) => Named::Dir(dir.clone()),
        (None, None) if Path::new(DEFAULT_SOCKET_DIR).is_dir() => Named::Dir(DEFAULT_SOCKET_DIR.into()),
        (None, None) => Named::Name("localhost".to_owned()),
    };
    let port = |index: usize| ports.get(index).or(ports.first()).copied().unwrap_or(5432);
    Ok((0..count).map(|index| (named(index), port(index))).collect())
}

async fn resolve(host: &Named, port: u16, database: &Database) -> Result<Vec<Target>, ConnectError> {
    let user = user(database);
    let name = database.postgres.get_dbname().unwrap_or(&user);
    Ok(match host {
        Named::Dir(dir) => {
            let path = dir.join(format!(".s.PGSQL.{port}"));
            let place = format!("{}/{name}", path.display());
            vec![Target { address: Address::Unix(path), host: String::new(), place, plain: false }]
        }
        Named::Address(host, address) => {
            let place = format!("{host}:{port}/{name}");
            vec![Target { address: Address::Tcp((*address, port).into()), host: host.clone(), place, plain: false }]
        }
        Named::Name(host) => {
            let place = format!("{host}:{port}/{name}");
            let failed = |fault| ConnectError::new(&place, &user, fault);
            let lookup = tokio::time::timeout(CONNECT_TIMEOUT, tokio::net::lookup_host((host.as_str(), port))).await;
            let found = lookup.map_err(|_| failed(ConnectFault::TimedOut(CONNECT_TIMEOUT)))?;
            let found = found.map_err(|error| failed(ConnectFault::Resolve(error)))?;
            found
                .map(|address| Target {
                    address: Address::Tcp(address),
                    host: host.clone(),
                    place: place.clone(),
                    plain: false,
                })
                .collect()
        }
    })
}

/// A connection to the server's port, as far as `sslmode` wants encrypted.
#[derive(Debug)]
pub enum Socket {
    /// Plain TCP.
    Tcp(TcpStream),
    /// A Unix socket; PostgreSQL never encrypts these.
    Unix(UnixStream),
    /// TCP with TLS.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Socket {
    /// Opens it. No time limit of its own: see `Route::attempt`.
    pub async fn open(target: &Target, database: &Database) -> Result<Self, ConnectFault> {
        let address = match &target.address {
            Address::Unix(path) => {
                let stream = UnixStream::connect(path).await.map_err(ConnectFault::Network)?;
                return Ok(Socket::Unix(stream));
            }
            Address::Tcp(address) => *address,
        };
        let connector = if target.plain { None } else { tls::connector(database).await? };
        let stream = TcpStream::connect(address).await.map_err(ConnectFault::Network)?;
        tune(&stream, database).map_err(ConnectFault::Network)?;
        match connector {
            None => Ok(Socket::Tcp(stream)),
            Some(connector) => encrypt(stream, connector, &target.host, address.ip(), database).await,
        }
    }

    /// The `tls-server-end-point` binding of this connection, where it has one.
    pub fn server_end_point(&self) -> Option<Vec<u8>> {
        match self {
            Socket::Tcp(_) | Socket::Unix(_) => None,
            Socket::Tls(stream) => {
                let (_, session) = stream.get_ref();
                tls::server_end_point(session.peer_certificates()?.first()?)
            }
        }
    }

    /// Whether what is sent can be read on the way.
    pub fn is_readable_on_the_way(&self) -> bool {
        match self {
            Socket::Tcp(stream) => !stream.peer_addr().is_ok_and(|address| address.ip().is_loopback()),
            Socket::Unix(_) | Socket::Tls(_) => false,
        }
    }
}

/// A status of a few bytes must leave at once, and a peer that is gone must be found out.
fn tune(stream: &TcpStream, database: &Database) -> io::Result<()> {
    let config = &database.postgres;
    stream.set_nodelay(true)?;
    let socket = socket2::SockRef::from(stream);
    if config.get_keepalives() {
        let idle = config.get_keepalives_idle();
        let idle = if idle == LIBRARY_KEEPALIVE_IDLE { KEEPALIVE_IDLE } else { idle };
        let keepalive = socket2::TcpKeepalive::new()
            .with_time(idle)
            .with_interval(config.get_keepalives_interval().unwrap_or(KEEPALIVE_INTERVAL))
            .with_retries(config.get_keepalives_retries().unwrap_or(KEEPALIVE_PROBES));
        socket.set_tcp_keepalive(&keepalive)?;
    }
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(config.get_tcp_user_timeout().copied().unwrap_or(UNACKNOWLEDGED)))?;
    Ok(())
}

/// Asks for TLS and, if the server has it, shakes hands. Exactly one byte is read before the handshake: whatever
/// somebody put behind it in the clear is given to TLS, which refuses it.
async fn encrypt(
    mut stream: TcpStream,
    connector: TlsConnector,
    host: &str,
    address: IpAddr,
    database: &Database,
) -> Result<Socket, ConnectFault> {
    let mut request = BytesMut::new();
    frontend::ssl_request(&mut request);
    stream.write_all(&request).await.map_err(ConnectFault::Network)?;
    match stream.read_u8().await {
        Ok(b'S') => {}
        Ok(b'N') if database.ssl_mode == SslMode::Prefer => return Ok(Socket::Tcp(stream)),
        Ok(b'N') => return Err(ConnectFault::TlsRefused),
        // The server could not even start a process for us. What it says is not to be trusted: anybody may have said it.
        Ok(b'E') => return Err(ConnectFault::Closed),
        Ok(other) => return Err(ConnectFault::Protocol(format!("{:?} in answer to SSLRequest", char::from(other)))),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(ConnectFault::Closed),
        Err(error) => return Err(ConnectFault::Network(error)),
    }
    let name = match ServerName::try_from(host.to_owned()) {
        Ok(name) => name,
        // A name that TLS cannot send matters only where it is checked.
        Err(_) if Check::of(database.ssl_mode, &database.ssl_root) == Some(Check::ChainAndName) => {
            return Err(ConnectFault::Settings("no certificate can have a host name like this; use another name"));
        }
        Err(_) => ServerName::IpAddress(address.into()),
    };
    match connector.connect(name, stream).await {
        Ok(stream) => Ok(Socket::Tls(Box::new(stream))),
        Err(error) => Err(handshake_fault(error)),
    }
}

fn handshake_fault(error: io::Error) -> ConnectFault {
    match error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(cause)) => {
            ConnectFault::Untrusted(rustls::Error::InvalidCertificate(cause.clone()))
        }
        Some(_) => ConnectFault::Handshake(error),
        None if error.kind() == io::ErrorKind::UnexpectedEof => ConnectFault::Closed,
        None => ConnectFault::Network(error),
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Socket::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
            Socket::Tls(stream) => Pin::new(stream.as_mut()).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Socket::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Socket::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
            Socket::Tls(stream) => Pin::new(stream.as_mut()).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Socket::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Socket::Tls(stream) => Pin::new(stream.as_mut()).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Socket::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Socket::Tls(stream) => Pin::new(stream.as_mut()).poll_shutdown(cx),
        }
    }
}

impl tokio_postgres::tls::TlsStream for Socket {
    fn channel_binding(&self) -> ChannelBinding {
        self.server_end_point().map_or_else(ChannelBinding::none, ChannelBinding::tls_server_end_point)
    }
}

/// Hands tokio-postgres a socket that has its TLS already, so that both connections are opened in one way.
pub struct AlreadyOpen;

impl TlsConnect<Socket> for AlreadyOpen {
    type Stream = Socket;
    type Error = Infallible;
    type Future = Ready<Result<Socket, Infallible>>;

    fn connect(self, stream: Socket) -> Self::Future {
        ready(Ok(stream))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SslRoot;

    fn database(url: &str) -> Database {
        Database { postgres: url.parse().expect("settings"), ssl_mode: SslMode::Disable, ssl_root: SslRoot::None }
    }

    async fn places(url: &str) -> Vec<String> {
        let database = database(url);
        let mut route = Route::of(&database).await.expect("a route");
        std::iter::from_fn(|| route.next_target()).map(|target| target.place).collect()
    }

    #[tokio::test]
    async fn hosts_and_ports_are_paired_as_libpq_does() {
        assert_eq!(places("host=127.0.0.1 user=u dbname=d").await, ["127.0.0.1:5432/d"]);
        assert_eq!(places("host=127.0.0.1,127.0.0.2 port=1,2 user=u").await, ["127.0.0.1:1/u", "127.0.0.2:2/u"]);
        assert_eq!(places("host=127.0.0.1,127.0.0.2 port=7 user=u").await, ["127.0.0.1:7/u", "127.0.0.2:7/u"]);
        assert_eq!(places("host=/run/pg port=7 user=u dbname=d").await, ["/run/pg/.s.PGSQL.7/d"]);
        assert_eq!(places("host=db hostaddr=127.0.0.3 user=u").await, ["db:5432/u"]);
        let database = database("host=127.0.0.1,127.0.0.2,127.0.0.3 port=1,2 user=u");
        let error = Route::of(&database).await.err().expect("settings that do not fit");
        assert!(!error.is_transient() && error.to_string().contains("port"), "{error}");
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_peer_that_acknowledges_nothing_is_found_out() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        for (more, wanted_ms) in [("", 60_000), (" tcp_user_timeout=5", 5_000)] {
            let stream = TcpStream::connect(listener.local_addr().expect("an address")).await.expect("connected");
            tune(&stream, &database(&format!("host=127.0.0.1 user=u{more}"))).expect("tuned");
            let socket = socket2::SockRef::from(&stream);
            assert_eq!(socket.tcp_user_timeout().expect("asked"), Some(Duration::from_millis(wanted_ms)));
            assert!(socket.keepalive().expect("asked"));
        }
    }

    #[tokio::test]
    async fn only_a_server_that_may_be_down_is_passed_over() {
        let database = database("host=127.0.0.1 user=u");
        let mut route = Route::of(&database).await.expect("a route");
        let error = |fault| ConnectError::new("p", "u", fault);
        assert!(route.failed(error(ConnectFault::Closed)).is_ok());
        assert!(route.failed(error(ConnectFault::NoPassword)).is_err());
        assert!(matches!(route.exhausted().fault(), ConnectFault::Closed));
    }

    #[tokio::test]
    async fn a_silent_server_is_given_up_in_time() {
        let mut database = database("host=127.0.0.1 user=u");
        database.postgres.connect_timeout(Duration::from_millis(20));
        let route = Route::of(&database).await.expect("a route");
        let target = route.targets.as_slice()[0].clone();
        let silence = std::future::pending::<Result<(), ConnectFault>>();
        let error = route.attempt(&target, silence).await.expect_err("no answer");
        assert!(error.is_transient() && error.to_string().contains("within 0.02 s"), "{error}");
    }
}
