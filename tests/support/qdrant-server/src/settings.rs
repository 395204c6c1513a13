//! A collection's settings: from a client's request to the engine's, and back in a collection's description. No I/O.

use prost::Message;
use qdrant_client::qdrant::vectors_config::Config as Vectors;
use qdrant_client::qdrant::{
    self as grpc, CollectionConfig, CreateCollection, CreateFieldIndexCollection, HnswConfigDiff, OptimizersConfigDiff,
    PayloadSchemaInfo, UpdateCollection,
};
use qdrant_edge::{
    DEFAULT_VECTOR_NAME, Distance, EdgeConfig, EdgeOptimizersConfig, EdgeVectorParams, HnswIndexConfig, JsonPath,
    PayloadIndexInfo, PayloadSchemaType,
};
use tonic::Status;

use crate::convert::unimplemented;

/// Settings of the engine for a collection. What the engine would not do as asked is refused.
#[expect(deprecated, reason = "on_disk_payload is what clients send")]
pub fn engine(request: &CreateCollection) -> Result<EdgeConfig, Status> {
    if request.sparse_vectors_config.is_some() || request.quantization_config.is_some() {
        return Err(unimplemented("sparse vectors, quantization"));
    }
    if request.shard_number.is_some_and(|number| number != 1)
        || request.sharding_method.is_some_and(|method| method != i32::from(grpc::ShardingMethod::Auto))
        || request.strict_mode_config.as_ref().is_some_and(|strict| strict.enabled == Some(true))
    {
        return Err(unimplemented("more than one shard, custom sharding, strict mode"));
    }
    let mut config = EdgeConfig {
        on_disk_payload: request.on_disk_payload.unwrap_or(true),
        hnsw_config: hnsw(request.hnsw_config.unwrap_or_default()),
        optimizers: optimizers(request.optimizers_config.unwrap_or_default()),
        ..EdgeConfig::default()
    };
    match request.vectors_config.clone().and_then(|vectors| vectors.config) {
        Some(Vectors::Params(params)) => {
            config.vectors.insert(DEFAULT_VECTOR_NAME.to_owned(), vector(&params)?);
        }
        Some(Vectors::ParamsMap(map)) => {
            for (name, params) in map.map {
                config.vectors.insert(name, vector(&params)?);
            }
        }
        None => {}
    }
    Ok(config)
}

#[expect(deprecated, reason = "on_disk is what clients send")]
fn vector(params: &grpc::VectorParams) -> Result<EdgeVectorParams, Status> {
    let float32 = [grpc::Datatype::Default, grpc::Datatype::Float32].map(i32::from);
    if params.quantization_config.is_some()
        || params.multivector_config.is_some()
        || params.datatype.is_some_and(|datatype| !float32.contains(&datatype))
    {
        return Err(unimplemented("quantization, several vectors in one, small data types"));
    }
    if !(1..=65_536).contains(&params.size) {
        return Err(Status::invalid_argument("vectors_config.size: value must be from 1 to 65536"));
    }
    let distance = match params.distance() {
        grpc::Distance::Cosine => Distance::Cosine,
        grpc::Distance::Euclid => Distance::Euclid,
        grpc::Distance::Dot => Distance::Dot,
        grpc::Distance::Manhattan => Distance::Manhattan,
        grpc::Distance::UnknownDistance => return Err(Status::invalid_argument("Bad value of distance field!")),
    };
    Ok(EdgeVectorParams {
        size: params.size as usize,
        distance,
        on_disk: params.on_disk,
        multivector_config: None,
        datatype: None,
        quantization_config: None,
        hnsw_config: params.hnsw_config.map(hnsw),
    })
}

#[expect(deprecated, reason = "on_disk is what clients send")]
fn hnsw(diff: HnswConfigDiff) -> HnswIndexConfig {
    let base = HnswIndexConfig::default();
    let or = |given: Option<u64>, otherwise| given.map_or(otherwise, |given| given as usize);
    HnswIndexConfig {
        m: or(diff.m, base.m),
        ef_construct: or(diff.ef_construct, base.ef_construct),
        full_scan_threshold: or(diff.full_scan_threshold, base.full_scan_threshold),
        max_indexing_threads: or(diff.max_indexing_threads, base.max_indexing_threads),
        on_disk: diff.on_disk.or(base.on_disk),
        payload_m: diff.payload_m.map(|m| m as usize),
        inline_storage: diff.inline_storage,
    }
}

fn optimizers(diff: OptimizersConfigDiff) -> EdgeOptimizersConfig {
    let size = |given: Option<u64>| given.map(|given| given as usize);
    EdgeOptimizersConfig {
        deleted_threshold: diff.deleted_threshold,
        vacuum_min_vector_number: size(diff.vacuum_min_vector_number),
        default_segment_number: size(diff.default_segment_number),
        max_segment_size: size(diff.max_segment_size),
        indexing_threshold: size(diff.indexing_threshold),
        prevent_unoptimized: diff.prevent_unoptimized,
    }
}

/// The settings with a client's changes in them: what it names is replaced, the rest stays.
pub fn updated(settings: &CreateCollection, request: UpdateCollection) -> Result<CreateCollection, Status> {
    if request.params.is_some()
        || request.vectors_config.is_some()
        || request.quantization_config.is_some()
        || request.sparse_vectors_config.is_some()
        || request.strict_mode_config.is_some()
    {
        return Err(unimplemented("updates of other than optimizers, graph and metadata"));
    }
    let changes = CreateCollection {
        optimizers_config: request.optimizers_config,
        hnsw_config: request.hnsw_config,
        metadata: request.metadata,
        ..CreateCollection::default()
    };
    let mut updated = settings.clone();
    // Merging messages is what protobuf defines it to be: present fields replace, maps gain entries.
    updated.merge(changes.encode_to_vec().as_slice()).map_err(|error| Status::internal(error.to_string()))?;
    Ok(updated)
}

/// The settings as a client reads them, with Qdrant's defaults where none were given.
#[expect(deprecated, reason = "on_disk is what clients read")]
pub fn message(settings: &CreateCollection) -> CollectionConfig {
    let hnsw = hnsw(settings.hnsw_config.unwrap_or_default());
    let given = settings.optimizers_config.unwrap_or_default();
    CollectionConfig {
        params: Some(grpc::CollectionParams {
            shard_number: 1,
            on_disk_payload: settings.on_disk_payload.unwrap_or(true),
            vectors_config: settings.vectors_config.clone(),
            replication_factor: Some(settings.replication_factor.unwrap_or(1)),
            write_consistency_factor: Some(settings.write_consistency_factor.unwrap_or(1)),
            ..grpc::CollectionParams::default()
        }),
        hnsw_config: Some(HnswConfigDiff {
            m: Some(hnsw.m as u64),
            ef_construct: Some(hnsw.ef_construct as u64),
            full_scan_threshold: Some(hnsw.full_scan_threshold as u64),
            max_indexing_threads: Some(hnsw.max_indexing_threads as u64),
            on_disk: hnsw.on_disk,
            payload_m: hnsw.payload_m.map(|m| m as u64),
            inline_storage: hnsw.inline_storage,
            memory: None,
        }),
        optimizer_config: Some(OptimizersConfigDiff {
            deleted_threshold: given.deleted_threshold.or(Some(0.2)),
            vacuum_min_vector_number: given.vacuum_min_vector_number.or(Some(1_000)),
            default_segment_number: given.default_segment_number.or(Some(0)),
            flush_interval_sec: given.flush_interval_sec.or(Some(5)),
            ..given
        }),
        wal_config: Some(grpc::WalConfigDiff {
            wal_capacity_mb: Some(32),
            wal_segments_ahead: Some(0),
            wal_retain_closed: Some(1),
        }),
        quantization_config: None,
        strict_mode_config: None,
        metadata: settings.metadata.clone(),
    }
}

pub fn schema(path: &JsonPath, index: &PayloadIndexInfo) -> (String, PayloadSchemaInfo) {
    let data_type = match index.data_type {
        PayloadSchemaType::Keyword => grpc::PayloadSchemaType::Keyword,
        PayloadSchemaType::Integer => grpc::PayloadSchemaType::Integer,
        PayloadSchemaType::Float => grpc::PayloadSchemaType::Float,
        PayloadSchemaType::Geo => grpc::PayloadSchemaType::Geo,
        PayloadSchemaType::Text => grpc::PayloadSchemaType::Text,
        PayloadSchemaType::Bool => grpc::PayloadSchemaType::Bool,
        PayloadSchemaType::Datetime => grpc::PayloadSchemaType::Datetime,
        PayloadSchemaType::Uuid => grpc::PayloadSchemaType::Uuid,
    };
    let info = PayloadSchemaInfo { data_type: data_type.into(), params: None, points: Some(index.points as u64) };
    (path.to_string(), info)
}

/// The kind of a payload index that a client asks for.
pub fn field_type(request: &CreateFieldIndexCollection) -> Result<PayloadSchemaType, Status> {
    if request.field_index_params.is_some() {
        return Err(unimplemented("parameters of payload indexes"));
    }
    let kind = request.field_type.ok_or_else(|| Status::invalid_argument("field_type is missing"))?;
    Ok(match grpc::FieldType::try_from(kind) {
        Ok(grpc::FieldType::Keyword) => PayloadSchemaType::Keyword,
        Ok(grpc::FieldType::Integer) => PayloadSchemaType::Integer,
        Ok(grpc::FieldType::Float) => PayloadSchemaType::Float,
        Ok(grpc::FieldType::Bool) => PayloadSchemaType::Bool,
        Ok(grpc::FieldType::Datetime) => PayloadSchemaType::Datetime,
        Ok(grpc::FieldType::Uuid) => PayloadSchemaType::Uuid,
        Ok(grpc::FieldType::Geo | grpc::FieldType::Text) => return Err(unimplemented("indexes of places and texts")),
        Err(_) => return Err(Status::invalid_argument("Malformed field type")),
    })
}
