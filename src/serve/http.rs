//! Accepts connections, speaks HTTP/1 on them, and drains them at the end. Knows nothing of paths.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::Request;
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_rustls::TlsAcceptor;

use super::api::Api;
use super::control::Peer;
use super::limits::{EVICTED_AT_ONCE, HEAD_BYTES_MAX, Limits};
use super::socket::{Activity, Socket};
use super::{ServeError, Services, Settings};
use crate::retry::Retry;
use crate::shutdown::Shutdown;

/// How soon the loop looks again for a connection that can give way, when none could.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Answers until `shutdown` is raised; then takes in nothing more, answers what has been asked, and returns when every
/// connection is closed, at the latest after `settings.limits.drain`.
///
/// # Errors
/// The socket's own address cannot be read, or it cannot be taken over for the end. A failing `accept` is tried again
/// and never ends the server.
pub async fn run(
    listener: TcpListener,
    services: Services,
    settings: Settings,
    shutdown: Shutdown,
) -> Result<(), ServeError> {
    let address = listener.local_addr().map_err(ServeError::Listen)?;
    let scheme = if settings.tls.is_some() { "https" } else { "http" };
    tracing::info!("answering on {scheme}://{address}");

    let mut connections = Connections::new(services, settings, &shutdown);
    let mut retry = Retry::new("accept");
    loop {
        let is_full = connections.is_full();
        if is_full {
            connections.evict(1);
        }
        tokio::select! {
            biased;
            () = shutdown.raised() => break,
            Some(ended) = connections.tasks.join_next_with_id() => connections.ended(ended),
            () = sleep(LOOK_AGAIN), if is_full => {}
            accepted = listener.accept(), if !is_full => match accepted {
                Ok((stream, peer)) => {
                    retry.reset();
                    connections.open(stream, peer);
                }
                Err(error) if is_of_the_peer(&error) => {}
                Err(error) => {
                    // Most likely no file descriptor is left: silent sockets give theirs back meanwhile.
                    connections.evict(EVICTED_AT_ONCE);
                    if !retry.wait(&format!("accept a connection: {error}"), &shutdown).await {
                        break;
                    }
                }
            },
        }
    }

    // Who has connected has been promised an answer. The system is asked itself: the runtime may not have heard yet.
    let backlog = listener.into_std().map_err(ServeError::Listen)?;
    for _ in 0..connections.limits.connections {
        let Ok((stream, peer)) = backlog.accept() else { break };
        let stream = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
        match stream {
            Ok(stream) => connections.open(stream, peer),
            Err(error) => tracing::debug!(%peer, "take over a connection: {error}"),
        }
    }
    drop(backlog);
    connections.drain().await;
    Ok(())
}

/// Every open connection and its task.
struct Connections {
    tasks: JoinSet<()>,
    activities: HashMap<Id, Arc<Activity>>,
    api: Arc<Api>,
    tls: Option<TlsAcceptor>,
    limits: Arc<Limits>,
    shutdown: Shutdown,
}

impl Connections {
    fn new(services: Services, settings: Settings, shutdown: &Shutdown) -> Self {
        let limits = Arc::new(settings.limits);
        Connections {
            tasks: JoinSet::new(),
            activities: HashMap::new(),
            api: Arc::new(Api::new(
                services,
                settings.keys,
                settings.search_deadline,
                limits.clone(),
                shutdown.clone(),
            )),
            tls: settings.tls.map(|tls| tls.acceptor()),
            limits,
            shutdown: shutdown.clone(),
        }
    }

    fn is_full(&self) -> bool {
        self.tasks.len() >= self.limits.connections
    }

    fn open(&mut self, stream: TcpStream, peer: SocketAddr) {
        let connection = Connection {
            api: self.api.clone(),
            activity: Arc::new(Activity::new()),
            limits: self.limits.clone(),
            shutdown: self.shutdown.clone(),
        };
        let activity = connection.activity.clone();
        let task = self.tasks.spawn(connection.serve(stream, peer, self.tls.clone()));
        self.activities.insert(task.id(), activity);
    }

    fn ended(&mut self, ended: Result<(Id, ()), JoinError>) {
        let id = match ended {
            Ok((id, ())) => id,
            Err(error) => {
                if error.is_panic() {
                    tracing::error!("a connection's task panicked");
                }
                error.id()
            }
        };
        self.activities.remove(&id);
    }

    /// Asks the `count` connections that have been silent longest to close.
    fn evict(&mut self, count: usize) {
        let mut silent: Vec<_> =
            self.activities.iter().filter_map(|(id, activity)| Some((activity.silent_since()?, *id))).collect();
        let count = count.min(silent.len());
        if count == 0 {
            return;
        }
        silent.select_nth_unstable(count - 1);
        tracing::debug!("{count} silent connections give way");
        for (_, id) in &silent[..count] {
            // Forgotten here, so that the next call takes others; the task is still owned.
            if let Some(activity) = self.activities.remove(id) {
                activity.evict();
            }
        }
    }

    async fn drain(mut self) {
        let deadline = Instant::now() + self.limits.drain;
        while let Ok(Some(ended)) = timeout_at(deadline, self.tasks.join_next_with_id()).await {
            self.ended(ended);
        }
        if !self.tasks.is_empty() {
            tracing::warn!("{} connections were still open at the end and are cut", self.tasks.len());
        }
        self.tasks.shutdown().await;
    }
}

/// One connection.
struct Connection {
    api: Arc<Api>,
    activity: Arc<Activity>,
    limits: Arc<Limits>,
    shutdown: Shutdown,
}

impl Connection {
    async fn serve(self, stream: TcpStream, peer: SocketAddr, tls: Option<TlsAcceptor>) {
        // Answers are small and complete: waiting to fill a segment only delays them.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%peer, "set no delay: {error}");
        }
        let Some(tls) = tls else { return Box::pin(self.exchange(stream, peer)).await };
        let handshake = timeout(self.limits.handshake, tls.accept(stream));
        tokio::select! {
            accepted = handshake => match accepted {
                Ok(Ok(stream)) => Box::pin(self.exchange(stream, peer)).await,
                Ok(Err(error)) => tracing::debug!(%peer, "TLS handshake: {error}"),
                Err(_) => tracing::debug!(%peer, "TLS handshake: not done in time"),
            },
            () = self.must_leave() => {}
        }
    }

    async fn exchange<IO>(&self, io: IO, peer: SocketAddr)
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send,
    {
        let socket = Socket::new(io, self.activity.clone(), self.limits.clone(), self.api.clone());
        let service = service_fn(|mut request: Request<Incoming>| async {
            self.activity.begin();
            request.extensions_mut().insert(Peer(peer.ip()));
            let has_body = !request.body().is_end_stream();
            // Boxed, so that a silent connection does not keep room for a request.
            let response = Box::pin(self.api.answer(request)).await;
            self.activity.end(has_body && !response.status().is_success());
            Ok::<_, Infallible>(response)
        });
        // Deadlines are the socket's: hyper has one for heads and silence together.
        let http = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(None)
            .max_header_size(HEAD_BYTES_MAX)
            .max_buf_size(HEAD_BYTES_MAX + 8192)
            .serve_connection(TokioIo::new(socket), service);
        let mut http = pin!(http);
        let ended = tokio::select! {
            biased;
            ended = http.as_mut() => ended,
            () = self.must_leave() => {
                if self.activity.owes_nothing() {
                    return;
                }
                http.as_mut().graceful_shutdown();
                http.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%peer, "connection: {error}");
        }
    }

    /// Waits until this connection gives way to another, or the server stops and has been patient.
    async fn must_leave(&self) {
        tokio::select! {
            () = self.activity.evicted() => {}
            () = async {
                self.shutdown.raised().await;
                sleep(self.limits.drain_idle).await;
            } => {}
        }
    }
}

/// Faults of one connection that `accept` reports, and that say nothing of the next.
fn is_of_the_peer(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}
