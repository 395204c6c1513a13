//! The way to a Qdrant: its client, what its answers mean, how long they are waited for. Knows no points.

use std::time::Duration;

use futures_util::future::BoxFuture;
use qdrant_client::qdrant::{PointsOperationResponse, UpdateStatus};

use super::error::QdrantError;
use crate::config::Qdrant as Server;

/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(5);

/// What the client gives.
type Answer<T> = Result<T, qdrant_client::QdrantError>;

/// A client, and the collection or alias that it is used for. Clones have the same connections.
#[derive(Clone)]
pub(super) struct Link {
    pub(super) client: qdrant_client::Qdrant,
    /// Of the collection or alias.
    pub(super) name: String,
    url: String,
    timeout: Duration,
}

impl Link {
    /// Prepares connections; makes none.
    pub(super) fn new(server: &Server, name: String) -> Result<Link, QdrantError> {
        let url = server.url();
        let client = qdrant_client::Qdrant::from_url(&url)
            .api_key(server.api_key.as_ref().map(|key| key.expose().to_owned()))
            .timeout(server.timeout)
            .connect_timeout(CONNECT)
            .keep_alive_while_idle()
            // That check prints; ours is `check_version`.
            .skip_compatibility_check()
            .build();
        match client {
            Ok(client) => Ok(Link { client, name, url, timeout: server.timeout }),
            Err(source) => Err(QdrantError::Call { operation: "prepare", collection: name, source: Box::new(source) }),
        }
    }

    /// The same connections for another collection.
    pub(super) fn to(&self, name: String) -> Link {
        Link { name, ..self.clone() }
    }

    /// Whether the server knows conditional writes. An older one takes what it does not know for absent, and writes.
    pub(super) async fn check_version(&self) -> Result<(), QdrantError> {
        let found = self.call("reach", self.client.health_check()).await?.version;
        if knows_conditions(&found) { Ok(()) } else { Err(QdrantError::Version { url: self.url.clone(), found }) }
    }

    /// A write counts only when it is called Completed.
    pub(super) fn completed<'a>(
        &'a self,
        operation: &'static str,
        call: impl Future<Output = Answer<PointsOperationResponse>> + Send + 'a,
    ) -> BoxFuture<'a, Result<(), QdrantError>> {
        let called = self.call(operation, call);
        Box::pin(async move {
            match called.await?.result.unwrap_or_default().status() {
                UpdateStatus::Completed => Ok(()),
                status => Err(QdrantError::NotDurable { operation, collection: self.name.clone(), status }),
            }
        })
    }

    /// Waits for an answer. Boxed, for the client's calls are some 20 kB large.
    pub(super) fn call<'a, T: 'a>(
        &'a self,
        operation: &'static str,
        call: impl Future<Output = Answer<T>> + Send + 'a,
    ) -> BoxFuture<'a, Result<T, QdrantError>> {
        // The client tries once more over a new connection, each time with the time-out of its own.
        let after = 2 * self.timeout + CONNECT;
        let called = tokio::time::timeout(after, call);
        Box::pin(async move {
            match called.await {
                Ok(Ok(answer)) => Ok(answer),
                Ok(Err(source)) => Err(QdrantError::from_call(operation, self.name.clone(), source)),
                Err(_) => Err(QdrantError::Silent { operation, collection: self.name.clone(), after }),
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
