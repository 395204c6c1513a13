//! The calls about points.

use std::future::{Future, ready};
use std::pin::Pin;
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use ::qdrant_client::qdrant::points_server::Points;
use ::qdrant_client::qdrant::query::Variant;
use ::qdrant_client::qdrant::vector_input::Variant as Input;
use ::qdrant_client::qdrant::*;
use qdrant_edge::external::ordered_float::OrderedFloat;
use qdrant_edge::{
    CountRequest, NamedQuery, QueryEnum, QueryRequest, ScoringQuery, ScrollRequest, SearchParams as EngineParams,
    VectorInternal,
};
use tonic::{Request, Response, Status};

use crate::convert::{self, refusal, unimplemented};
use crate::journal::Write;
use crate::{Answer, Site};

/// How long a write without a time-out of its own is waited for, as in Qdrant.
const WAIT: Duration = Duration::from_secs(60);

impl Site {
    /// `wait` is false unless set; then the answer is "acknowledged", before anything is done or durable.
    async fn write(
        &self,
        name: String,
        write: Write,
        wait: Option<bool>,
        timeout: Option<u64>,
    ) -> Answer<PointsOperationResponse> {
        check(&write)?;
        let ((operation_id, status), time) = self
            .run(move |store| {
                let answered = store.collection(&name)?.write(write)?;
                if wait != Some(true) {
                    return Ok((None, UpdateStatus::Acknowledged));
                }
                match answered.recv_timeout(timeout.map_or(WAIT, Duration::from_secs)) {
                    Ok(done) => Ok((Some(done?), UpdateStatus::Completed)),
                    Err(RecvTimeoutError::Timeout) if timeout.is_some() => Ok((None, UpdateStatus::WaitTimeout)),
                    Err(error) => Err(Status::deadline_exceeded(format!("Timeout: update operation: {error}"))),
                }
            })
            .await?;
        let status = self.fault.unwrap_or(status).into();
        Ok(Response::new(PointsOperationResponse {
            result: Some(UpdateResult { operation_id, status }),
            time,
            usage: None,
        }))
    }

    async fn nearest(&self, name: String, request: QueryRequest) -> Result<(Vec<ScoredPoint>, f64), Status> {
        self.run(move |store| {
            let points = store.collection(&name)?.shard().query(request).map_err(refusal)?;
            points.into_iter().map(convert::scored_message).collect()
        })
        .await
    }
}

/// What Qdrant refuses before it acknowledges.
fn check(write: &Write) -> Result<(), Status> {
    match write {
        Write::Upsert(request) => {
            if request.points.is_empty() {
                return Err(Status::invalid_argument("Bad request: Empty update request"));
            }
            no_shard_key(request.shard_key_selector.as_ref())?;
            request.points.iter().try_for_each(|point| convert::point(point.clone()).map(drop))?;
            request.update_filter.clone().map(convert::filter).transpose().map(drop)
        }
        Write::Delete(request) => {
            no_shard_key(request.shard_key_selector.as_ref())?;
            convert::selection(request.points.clone()).map(drop)
        }
        Write::SetPayload(request) => {
            no_shard_key(request.shard_key_selector.as_ref())?;
            convert::selection(request.points_selector.clone()).map(drop)
        }
        Write::CreateIndex(request) => {
            convert::path(&request.field_name)?;
            crate::settings::field_type(request).map(drop)
        }
        Write::DeleteIndex(request) => convert::path(&request.field_name).map(drop),
    }
}

fn no_shard_key(selector: Option<&ShardKeySelector>) -> Result<(), Status> {
    selector.map_or(Ok(()), |_| Err(unimplemented("shard keys")))
}

fn engine_params(params: SearchParams) -> EngineParams {
    EngineParams {
        hnsw_ef: params.hnsw_ef.map(|ef| ef as usize),
        exact: params.exact.unwrap_or(false),
        indexed_only: params.indexed_only.unwrap_or(false),
        ..EngineParams::default()
    }
}

fn near(vector: Vec<f32>, using: Option<String>) -> ScoringQuery {
    ScoringQuery::Vector(QueryEnum::Nearest(NamedQuery { query: VectorInternal::Dense(vector), using }))
}

/// Methods of the service that this server does not have.
macro_rules! unimplemented_calls {
    ($($name:ident($request:ty) -> $response:ty;)*) => {$(
        fn $name<'a, 'b>(
            &'a self,
            _: Request<$request>,
        ) -> Pin<Box<dyn Future<Output = Answer<$response>> + Send + 'b>>
        where
            'a: 'b,
            Self: 'b,
        {
            Box::pin(ready(Err(unimplemented(stringify!($name)))))
        }
    )*};
}

#[tonic::async_trait]
impl Points for Site {
    async fn upsert(&self, request: Request<UpsertPoints>) -> Answer<PointsOperationResponse> {
        let request = request.into_inner();
        let (wait, timeout) = (request.wait, request.timeout);
        self.write(request.collection_name.clone(), Write::Upsert(request), wait, timeout).await
    }

    async fn delete(&self, request: Request<DeletePoints>) -> Answer<PointsOperationResponse> {
        let request = request.into_inner();
        let (wait, timeout) = (request.wait, request.timeout);
        self.write(request.collection_name.clone(), Write::Delete(request), wait, timeout).await
    }

    async fn set_payload(&self, request: Request<SetPayloadPoints>) -> Answer<PointsOperationResponse> {
        let request = request.into_inner();
        let (wait, timeout) = (request.wait, request.timeout);
        self.write(request.collection_name.clone(), Write::SetPayload(request), wait, timeout).await
    }

    async fn create_field_index(
        &self,
        request: Request<CreateFieldIndexCollection>,
    ) -> Answer<PointsOperationResponse> {
        let request = request.into_inner();
        let (wait, timeout) = (request.wait, request.timeout);
        self.write(request.collection_name.clone(), Write::CreateIndex(request), wait, timeout).await
    }

    async fn delete_field_index(
        &self,
        request: Request<DeleteFieldIndexCollection>,
    ) -> Answer<PointsOperationResponse> {
        let request = request.into_inner();
        let (wait, timeout) = (request.wait, request.timeout);
        self.write(request.collection_name.clone(), Write::DeleteIndex(request), wait, timeout).await
    }

    async fn get(&self, request: Request<GetPoints>) -> Answer<GetResponse> {
        let request = request.into_inner();
        no_shard_key(request.shard_key_selector.as_ref())?;
        let ids = convert::point_ids(request.ids)?;
        let with_payload = convert::with_payload(request.with_payload, false)?;
        let with_vectors = convert::with_vectors(request.with_vectors);
        let (result, time) = self
            .run(move |store| {
                let collection = store.collection(&request.collection_name)?;
                let records =
                    collection.shard().retrieve(&ids, Some(with_payload), Some(with_vectors)).map_err(refusal)?;
                records.into_iter().map(convert::record_message).collect()
            })
            .await?;
        Ok(Response::new(GetResponse { result, time, usage: None }))
    }

    async fn scroll(&self, request: Request<ScrollPoints>) -> Answer<ScrollResponse> {
        let request = request.into_inner();
        no_shard_key(request.shard_key_selector.as_ref())?;
        if request.order_by.is_some() {
            return Err(unimplemented("order_by"));
        }
        if request.limit == Some(0) {
            return Err(Status::invalid_argument("Bad request: Limit cannot be 0"));
        }
        let wanted = ScrollRequest {
            offset: request.offset.map(|id| convert::point_id(Some(id))).transpose()?,
            limit: request.limit.map(|limit| limit as usize),
            filter: request.filter.map(convert::filter).transpose()?,
            with_payload: Some(convert::with_payload(request.with_payload, true)?),
            with_vector: convert::with_vectors(request.with_vectors),
            order_by: None,
        };
        let ((result, next), time) = self
            .run(move |store| {
                let collection = store.collection(&request.collection_name)?;
                let (records, next) = collection.shard().scroll(wanted).map_err(refusal)?;
                let points = records.into_iter().map(convert::record_message).collect::<Result<Vec<_>, _>>()?;
                Ok((points, next))
            })
            .await?;
        let next_page_offset = next.map(convert::id_message);
        Ok(Response::new(ScrollResponse { next_page_offset, result, time, usage: None }))
    }

    async fn count(&self, request: Request<CountPoints>) -> Answer<CountResponse> {
        let request = request.into_inner();
        no_shard_key(request.shard_key_selector.as_ref())?;
        let wanted = CountRequest {
            filter: request.filter.map(convert::filter).transpose()?,
            exact: request.exact.unwrap_or(true),
        };
        let (count, time) = self
            .run(move |store| store.collection(&request.collection_name)?.shard().count(wanted).map_err(refusal))
            .await?;
        Ok(Response::new(CountResponse { result: Some(CountResult { count: count as u64 }), time, usage: None }))
    }

    async fn query(&self, request: Request<QueryPoints>) -> Answer<QueryResponse> {
        let request = request.into_inner();
        no_shard_key(request.shard_key_selector.as_ref())?;
        if !request.prefetch.is_empty() || request.lookup_from.is_some() {
            return Err(unimplemented("prefetch and lookup_from"));
        }
        let vector = match request.query.and_then(|query| query.variant) {
            Some(Variant::Nearest(VectorInput { variant: Some(Input::Dense(vector)) })) => vector.data,
            _ => return Err(unimplemented("queries for other than the nearest to a dense vector")),
        };
        let wanted = QueryRequest {
            prefetches: vec![],
            query: Some(near(vector, request.using)),
            filter: request.filter.map(convert::filter).transpose()?,
            score_threshold: request.score_threshold.map(OrderedFloat),
            limit: request.limit.unwrap_or(10) as usize,
            offset: request.offset.unwrap_or(0) as usize,
            params: request.params.map(engine_params),
            with_vector: convert::with_vectors(request.with_vectors),
            with_payload: convert::with_payload(request.with_payload, false)?,
        };
        let (result, time) = self.nearest(request.collection_name, wanted).await?;
        Ok(Response::new(QueryResponse { result, time, usage: None }))
    }

    async fn search(&self, request: Request<SearchPoints>) -> Answer<SearchResponse> {
        let request = request.into_inner();
        no_shard_key(request.shard_key_selector.as_ref())?;
        if request.sparse_indices.is_some() {
            return Err(unimplemented("sparse vectors"));
        }
        let wanted = QueryRequest {
            prefetches: vec![],
            query: Some(near(request.vector, request.vector_name)),
            filter: request.filter.map(convert::filter).transpose()?,
            score_threshold: request.score_threshold.map(OrderedFloat),
            limit: request.limit as usize,
            offset: request.offset.unwrap_or(0) as usize,
            params: request.params.map(engine_params),
            with_vector: convert::with_vectors(request.with_vectors),
            with_payload: convert::with_payload(request.with_payload, false)?,
        };
        let (result, time) = self.nearest(request.collection_name, wanted).await?;
        Ok(Response::new(SearchResponse { result, time, usage: None }))
    }

    unimplemented_calls! {
        update_vectors(UpdatePointVectors) -> PointsOperationResponse;
        delete_vectors(DeletePointVectors) -> PointsOperationResponse;
        overwrite_payload(SetPayloadPoints) -> PointsOperationResponse;
        delete_payload(DeletePayloadPoints) -> PointsOperationResponse;
        clear_payload(ClearPayloadPoints) -> PointsOperationResponse;
        create_vector_name(CreateVectorNameRequest) -> PointsOperationResponse;
        delete_vector_name(DeleteVectorNameRequest) -> PointsOperationResponse;
        search_batch(SearchBatchPoints) -> SearchBatchResponse;
        search_groups(SearchPointGroups) -> SearchGroupsResponse;
        recommend(RecommendPoints) -> RecommendResponse;
        recommend_batch(RecommendBatchPoints) -> RecommendBatchResponse;
        recommend_groups(RecommendPointGroups) -> RecommendGroupsResponse;
        discover(DiscoverPoints) -> DiscoverResponse;
        discover_batch(DiscoverBatchPoints) -> DiscoverBatchResponse;
        update_batch(UpdateBatchPoints) -> UpdateBatchResponse;
        query_batch(QueryBatchPoints) -> QueryBatchResponse;
        query_groups(QueryPointGroups) -> QueryGroupsResponse;
        facet(FacetCounts) -> FacetResponse;
        search_matrix_pairs(SearchMatrixPoints) -> SearchMatrixPairsResponse;
        search_matrix_offsets(SearchMatrixPoints) -> SearchMatrixOffsetsResponse;
    }
}
