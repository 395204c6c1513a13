//! A server for tests that answers Qdrant's own client through Qdrant's own engine: arguments, sockets, keys.
//!
//! It is not Qdrant: what it does not do it answers with UNIMPLEMENTED. What it acknowledges outlives a SIGKILL.

mod collection;
mod collections;
mod convert;
mod files;
mod http;
mod journal;
mod points;
mod settings;
mod store;

use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use qdrant_client::qdrant::UpdateStatus;
use qdrant_client::qdrant::collections_server::CollectionsServer;
use qdrant_client::qdrant::points_server::PointsServer;
use qdrant_client::qdrant::qdrant_server::QdrantServer;
use qdrant_client::qdrant::snapshots_server::SnapshotsServer;
use tonic::transport::server::{Server, TcpIncoming};
use tonic::{Request, Response, Status};

use crate::store::Store;

/// The version it behaves as.
pub const VERSION: &str = "1.18.3";
/// What `/` and the health check say, so that nobody takes it for the real one.
pub const TITLE: &str = "qdrant - vecsync's test server";

#[derive(Parser)]
struct Arguments {
    /// Folder of all data; made if it is not there.
    #[arg(long)]
    data: PathBuf,
    #[arg(long)]
    grpc_port: u16,
    #[arg(long)]
    http_port: u16,
    /// Asked of every request but those for /, /healthz, /livez and /readyz.
    #[arg(long)]
    api_key: Option<String>,
    /// A fault: answer writes with this status although they were waited for and done.
    #[arg(long, env = "QDRANT_TEST_STATUS")]
    status: Option<Fault>,
    /// A fault: do each write so much later.
    #[arg(long, env = "QDRANT_TEST_DELAY_MS", default_value_t = 0)]
    delay_ms: u64,
}

#[derive(Clone, Copy, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Fault {
    Acknowledged,
    WaitTimeout,
}

/// What every service answers from.
#[derive(Clone)]
pub struct Site {
    store: Arc<Store>,
    fault: Option<UpdateStatus>,
}

/// An answer to a call.
pub type Answer<T> = Result<Response<T>, Status>;

impl Site {
    /// Runs what blocks where it may, and says how many seconds it took.
    async fn run<T: Send + 'static>(
        &self,
        action: impl FnOnce(&Store) -> Result<T, Status> + Send + 'static,
    ) -> Result<(T, f64), Status> {
        let store = Arc::clone(&self.store);
        let from = Instant::now();
        let done = tokio::task::spawn_blocking(move || action(&store)).await;
        let value = done.map_err(|error| Status::internal(format!("Service internal error: {error}")))??;
        Ok((value, from.elapsed().as_secs_f64()))
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let delay = Duration::from_millis(arguments.delay_ms);
    let fault = arguments.status.map(|fault| match fault {
        Fault::Acknowledged => UpdateStatus::Acknowledged,
        Fault::WaitTimeout => UpdateStatus::WaitTimeout,
    });
    let site = Site { store: Arc::new(Store::open(&arguments.data, delay)?), fault };
    let key = arguments.api_key.map(Arc::<str>::from);

    let address = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let incoming = TcpIncoming::bind(address(arguments.grpc_port))?.with_nodelay(Some(true));
    let listener = tokio::net::TcpListener::bind(address(arguments.http_port)).await?;
    let http = tokio::spawn(http::serve(listener, site.clone(), key.clone()));

    let guard = move |request: Request<()>| match &key {
        Some(key) => allowed(key, |name| request.metadata().get(name)?.to_str().ok()).map(|()| request),
        None => Ok(request),
    };
    macro_rules! guarded {
        ($server:ident) => {
            tonic::service::interceptor::InterceptedService::new(
                $server::new(site.clone())
                    .max_decoding_message_size(usize::MAX)
                    .max_encoding_message_size(usize::MAX)
                    .accept_compressed(tonic::codec::CompressionEncoding::Gzip),
                guard.clone(),
            )
        };
    }
    let server = Server::builder()
        .add_service(guarded!(QdrantServer))
        .add_service(guarded!(CollectionsServer))
        .add_service(guarded!(PointsServer))
        .add_service(guarded!(SnapshotsServer));
    println!("ready: gRPC on {}, HTTP on {}", arguments.grpc_port, arguments.http_port);
    tokio::select! {
        ended = server.serve_with_incoming(incoming) => ended?,
        ended = http => ended??,
    }
    Ok(())
}

/// Whether a request with these headers may come in.
fn allowed<'a>(key: &str, header: impl Fn(&'static str) -> Option<&'a str>) -> Result<(), Status> {
    let bearer = || header("authorization")?.strip_prefix("Bearer ");
    match header("api-key").or_else(bearer) {
        Some(given) if given == key => Ok(()),
        Some(_) => Err(Status::unauthenticated("Invalid API key or JWT")),
        None => Err(Status::unauthenticated("Must provide an API key or an Authorization bearer token")),
    }
}
