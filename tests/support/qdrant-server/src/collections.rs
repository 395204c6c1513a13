//! The calls about collections, aliases and snapshots, and the health check.

use ::qdrant_client::qdrant::collections_server::Collections;
use ::qdrant_client::qdrant::qdrant_server::Qdrant;
use ::qdrant_client::qdrant::snapshots_server::Snapshots;
use ::qdrant_client::qdrant::*;
use tonic::{Code, Request, Response, Status};

use crate::convert::unimplemented;
use crate::{Answer, Site, TITLE, VERSION};

#[tonic::async_trait]
impl Qdrant for Site {
    async fn health_check(&self, _: Request<HealthCheckRequest>) -> Answer<HealthCheckReply> {
        Ok(Response::new(HealthCheckReply { title: TITLE.to_owned(), version: VERSION.to_owned(), commit: None }))
    }
}

#[tonic::async_trait]
impl Collections for Site {
    async fn get(&self, request: Request<GetCollectionInfoRequest>) -> Answer<GetCollectionInfoResponse> {
        let name = request.into_inner().collection_name;
        let (info, time) = self.run(move |store| Ok(store.collection(&name)?.info())).await?;
        Ok(Response::new(GetCollectionInfoResponse { result: Some(info), time }))
    }

    async fn list(&self, _: Request<ListCollectionsRequest>) -> Answer<ListCollectionsResponse> {
        let (names, time) = self.run(|store| Ok(store.names())).await?;
        let collections = names.into_iter().map(|name| CollectionDescription { name }).collect();
        Ok(Response::new(ListCollectionsResponse { collections, time }))
    }

    async fn create(&self, request: Request<CreateCollection>) -> Answer<CollectionOperationResponse> {
        let request = request.into_inner();
        let ((), time) = self.run(move |store| store.create(&request)).await?;
        Ok(Response::new(CollectionOperationResponse { result: true, time }))
    }

    async fn update(&self, request: Request<UpdateCollection>) -> Answer<CollectionOperationResponse> {
        let request = request.into_inner();
        let ((), time) = self.run(move |store| store.collection(&request.collection_name)?.update(request)).await?;
        Ok(Response::new(CollectionOperationResponse { result: true, time }))
    }

    async fn delete(&self, request: Request<DeleteCollection>) -> Answer<CollectionOperationResponse> {
        let name = request.into_inner().collection_name;
        let (result, time) = self.run(move |store| store.delete(&name)).await?;
        Ok(Response::new(CollectionOperationResponse { result, time }))
    }

    async fn update_aliases(&self, request: Request<ChangeAliases>) -> Answer<CollectionOperationResponse> {
        let actions =
            request.into_inner().actions.into_iter().map(|operation| {
                operation.action.ok_or_else(|| Status::invalid_argument("Malformed AliasOperation type"))
            });
        let actions = actions.collect::<Result<_, _>>()?;
        let ((), time) = self.run(move |store| store.change_aliases(actions)).await?;
        Ok(Response::new(CollectionOperationResponse { result: true, time }))
    }

    async fn list_collection_aliases(
        &self,
        request: Request<ListCollectionAliasesRequest>,
    ) -> Answer<ListAliasesResponse> {
        let name = request.into_inner().collection_name;
        let (aliases, time) = self.run(move |store| Ok(store.aliases(Some(&name)))).await?;
        Ok(Response::new(ListAliasesResponse { aliases, time }))
    }

    async fn list_aliases(&self, _: Request<ListAliasesRequest>) -> Answer<ListAliasesResponse> {
        let (aliases, time) = self.run(|store| Ok(store.aliases(None))).await?;
        Ok(Response::new(ListAliasesResponse { aliases, time }))
    }

    async fn collection_exists(&self, request: Request<CollectionExistsRequest>) -> Answer<CollectionExistsResponse> {
        let name = request.into_inner().collection_name;
        let (exists, time) = self
            .run(move |store| match store.collection(&name) {
                Err(status) if status.code() == Code::NotFound => Ok(false),
                found => found.map(|_| true),
            })
            .await?;
        Ok(Response::new(CollectionExistsResponse { result: Some(CollectionExists { exists }), time }))
    }

    async fn collection_cluster_info(
        &self,
        _: Request<CollectionClusterInfoRequest>,
    ) -> Answer<CollectionClusterInfoResponse> {
        Err(unimplemented("clusters"))
    }

    async fn update_collection_cluster_setup(
        &self,
        _: Request<UpdateCollectionClusterSetupRequest>,
    ) -> Answer<UpdateCollectionClusterSetupResponse> {
        Err(unimplemented("clusters"))
    }

    async fn create_shard_key(&self, _: Request<CreateShardKeyRequest>) -> Answer<CreateShardKeyResponse> {
        Err(unimplemented("shard keys"))
    }

    async fn delete_shard_key(&self, _: Request<DeleteShardKeyRequest>) -> Answer<DeleteShardKeyResponse> {
        Err(unimplemented("shard keys"))
    }

    async fn list_shard_keys(&self, _: Request<ListShardKeysRequest>) -> Answer<ListShardKeysResponse> {
        Err(unimplemented("shard keys"))
    }
}

#[tonic::async_trait]
impl Snapshots for Site {
    async fn create(&self, request: Request<CreateSnapshotRequest>) -> Answer<CreateSnapshotResponse> {
        let name = request.into_inner().collection_name;
        let (description, time) = self.run(move |store| store.create_snapshot(&name)).await?;
        Ok(Response::new(CreateSnapshotResponse { snapshot_description: Some(description), time }))
    }

    async fn list(&self, request: Request<ListSnapshotsRequest>) -> Answer<ListSnapshotsResponse> {
        let name = request.into_inner().collection_name;
        let (snapshot_descriptions, time) = self.run(move |store| store.list_snapshots(&name)).await?;
        Ok(Response::new(ListSnapshotsResponse { snapshot_descriptions, time }))
    }

    async fn delete(&self, request: Request<DeleteSnapshotRequest>) -> Answer<DeleteSnapshotResponse> {
        let request = request.into_inner();
        let ((), time) =
            self.run(move |store| store.delete_snapshot(&request.collection_name, &request.snapshot_name)).await?;
        Ok(Response::new(DeleteSnapshotResponse { time }))
    }

    async fn create_full(&self, _: Request<CreateFullSnapshotRequest>) -> Answer<CreateSnapshotResponse> {
        Err(unimplemented("snapshots of everything"))
    }

    async fn list_full(&self, _: Request<ListFullSnapshotsRequest>) -> Answer<ListSnapshotsResponse> {
        Err(unimplemented("snapshots of everything"))
    }

    async fn delete_full(&self, _: Request<DeleteFullSnapshotRequest>) -> Answer<DeleteSnapshotResponse> {
        Err(unimplemented("snapshots of everything"))
    }
}
