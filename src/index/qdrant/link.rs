//! The way to a Qdrant: its connection, what its answers mean, how long they are waited for. Knows no points.
//!
//! The official client's stubs are used, not the client around them: that one copies each request before it sends it, and
//! repeats on its own what timed out.

use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use hyper_util::client::legacy::connect::HttpConnector;
use qdrant_client::qdrant::collections_client::CollectionsClient;
use qdrant_client::qdrant::points_client::PointsClient;
use qdrant_client::qdrant::qdrant_client::QdrantClient;
use qdrant_client::qdrant::{HealthCheckRequest, PointsOperationResponse, UpdateStatus};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, ClientTlsConfig, Endpoint, Uri};
use tonic::{Request, Response, Status};
use tower_service::Service;

use super::QdrantSettings;
use super::error::QdrantError;
use crate::index::primary::STORE;
use crate::metrics::PipelineMetrics;

/// How long a connection may take to come about; with TLS twice as long.
const CONNECT: Duration = Duration::from_secs(5);
/// A connection is asked whether it lives so often, and is given up after so long without an answer.
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(10);
const KEEP_ALIVE_PATIENCE: Duration = Duration::from_secs(10);
/// The largest answer: thousands of points with their payloads.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// What a stub gives.
type Answer<T> = Result<Response<T>, Status>;
type Keyed = InterceptedService<Channel, Key>;

/// A connection, and the collection or alias that it is used for. It comes about with the first call and again after a
/// fault, within the call that needs it. Clones have the same one.
#[derive(Clone)]
pub(super) struct Link {
    channel: Channel,
    key: Key,
    name: String,
    url: String,
    timeout: Duration,
}

/// Puts the API key into each request.
#[derive(Clone)]
pub(super) struct Key(Option<MetadataValue<Ascii>>);

impl Interceptor for Key {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(key) = &self.0 {
            request.metadata_mut().insert("api-key", key.clone());
        }
        Ok(request)
    }
}

/// Makes connections and counts them.
struct Connector {
    connect: HttpConnector,
    metrics: PipelineMetrics,
}

impl Connector {
    fn new(pipeline: &str) -> Self {
        let mut connect = HttpConnector::new();
        // The scheme is the channel's business, which puts TLS around what this gives.
        connect.enforce_http(false);
        connect.set_nodelay(true);
        connect.set_connect_timeout(Some(CONNECT));
        Connector { connect, metrics: PipelineMetrics::new(pipeline) }
    }
}

impl Service<Uri> for Connector {
    type Response = <HttpConnector as Service<Uri>>::Response;
    type Error = <HttpConnector as Service<Uri>>::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        <HttpConnector as Service<Uri>>::poll_ready(&mut self.connect, context)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let (connected, metrics) = (self.connect.call(uri), self.metrics.clone());
        Box::pin(async move {
            let connected = connected.await;
            metrics.store_connection(STORE, connected.is_ok());
            connected
        })
    }
}

impl Link {
    /// Prepares a connection for what the settings name; makes none. Called inside of a runtime.
    pub(super) fn new(settings: &QdrantSettings) -> Result<Link, QdrantError> {
        let (server, name) = (&settings.server, settings.collection.clone());
        let url = server.url();
        let endpoint = || -> Result<Endpoint, tonic::transport::Error> {
            let endpoint = Endpoint::from_shared(url.clone())?
                .connect_timeout(2 * CONNECT)
                .http2_keep_alive_interval(KEEP_ALIVE_EVERY)
                .keep_alive_timeout(KEEP_ALIVE_PATIENCE)
                .keep_alive_while_idle(true);
            if server.tls { endpoint.tls_config(ClientTlsConfig::new().with_native_roots()) } else { Ok(endpoint) }
        };
        let endpoint = endpoint().map_err(|source| QdrantError::Address { url: url.clone(), source })?;
        let channel = endpoint.connect_with_connector_lazy(Connector::new(&settings.pipeline));
        // The settings let only those keys through that a header can carry.
        let mut key: Option<MetadataValue<Ascii>> = server.api_key.as_ref().and_then(|key| key.expose().parse().ok());
        if let Some(key) = &mut key {
            key.set_sensitive(true);
        }
        Ok(Link { channel, key: Key(key), name, url, timeout: server.timeout })
    }

    /// What it is used for.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The same connection for another collection.
    pub(super) fn to(&self, name: String) -> Link {
        Link { name, ..self.clone() }
    }

    /// Calls about points.
    pub(super) fn points(&self) -> PointsClient<Keyed> {
        PointsClient::with_interceptor(self.channel.clone(), self.key.clone())
            .max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    /// Calls about collections and aliases.
    pub(super) fn collections(&self) -> CollectionsClient<Keyed> {
        CollectionsClient::with_interceptor(self.channel.clone(), self.key.clone())
            .max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    /// Whether the server knows conditional writes. An older one takes what it does not know for absent, and writes.
    /// Gives its version.
    pub(super) async fn check_version(&self) -> Result<String, QdrantError> {
        let mut server = QdrantClient::with_interceptor(self.channel.clone(), self.key.clone());
        let found = self.call("reach", server.health_check(HealthCheckRequest {})).await?.version;
        if knows_conditions(&found) { Ok(found) } else { Err(QdrantError::Version { url: self.url.clone(), found }) }
    }

    /// Waits for a write, which counts only when it is called Completed.
    pub(super) async fn completed(
        &self,
        operation: &'static str,
        call: impl Future<Output = Answer<PointsOperationResponse>> + Send,
    ) -> Result<(), QdrantError> {
        match self.call(operation, call).await?.result.unwrap_or_default().status() {
            UpdateStatus::Completed => Ok(()),
            status => Err(QdrantError::NotDurable { operation, collection: self.name.clone(), status }),
        }
    }

    /// Waits for an answer.
    pub(super) fn call<'a, T: 'a>(
        &'a self,
        operation: &'static str,
        call: impl Future<Output = Answer<T>> + Send + 'a,
    ) -> BoxFuture<'a, Result<T, QdrantError>> {
        let called = tokio::time::timeout(self.timeout, call);
        Box::pin(async move {
            match called.await {
                Ok(Ok(answer)) => Ok(answer.into_inner()),
                Ok(Err(status)) => {
                    Err(QdrantError::from_status(operation, self.name.clone(), self.url.clone(), status))
                }
                Err(_) => Err(QdrantError::Silent { operation, collection: self.name.clone(), after: self.timeout }),
            }
        })
    }
}

/// Conditional writes came with 1.16.
fn knows_conditions(version: &str) -> bool {
    let mut parts = version.trim_start_matches('v').split('.').map(|part| part.parse::<u32>().ok());
    matches!((parts.next().flatten(), parts.next().flatten()), (Some(1), Some(16..)) | (Some(2..), _))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_without_conditional_writes_are_told_by_their_version() {
        for (version, expected) in
            [("1.16.0", true), ("1.18.3", true), ("v2.0.0-dev", true), ("1.15.5", false), ("0.11", false), ("", false)]
        {
            assert_eq!(knows_conditions(version), expected, "{version:?}");
        }
    }
}
