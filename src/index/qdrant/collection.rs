//! The collection of a generation: how it is made, and whether one that is there is as it should be. No I/O.

use std::collections::HashMap;

use qdrant_client::qdrant::vectors_config::Config as Vectors;
use qdrant_client::qdrant::{
    CollectionInfo, CreateCollection, CreateCollectionBuilder, Distance, FieldType, OptimizersConfigDiff,
    OptimizersConfigDiffBuilder, Value, VectorParamsBuilder, max_optimization_threads,
};

use super::QdrantSettings;
use super::point::{DELETED, PARTITION, VERSION};
use crate::index::scan::DIMENSION;

/// Where a collection's metadata says what it is made for.
const METADATA: &str = "vecsync";
/// What the stamp of a generation begins with.
const REVISION: &str = "revision ";

/// A new generation.
pub(super) fn create(settings: &QdrantSettings) -> CreateCollection {
    let optimizers = OptimizersConfigDiffBuilder::default()
        .default_segment_number(2)
        .max_segment_size(20_000)
        .memmap_threshold(20_000)
        .indexing_threshold(20_000)
        .flush_interval_sec(5)
        .max_optimization_threads(1);
    let request = CreateCollectionBuilder::new(&settings.collection)
        .vectors_config(VectorParamsBuilder::new(DIMENSION as u64, Distance::Cosine))
        .optimizers_config(optimizers)
        .build();
    let metadata = HashMap::from([(METADATA.to_owned(), Value::from(made_for(settings)))]);
    CreateCollection { metadata, ..request }
}

/// A collection of the same shape that is no generation; `stamp` says what it is.
pub(super) fn create_stamped(settings: &QdrantSettings, stamp: &str) -> CreateCollection {
    CreateCollection { metadata: stamped(settings, stamp), ..create(settings) }
}

/// The metadata of a collection of this pipeline that is no generation.
pub(super) fn stamped(settings: &QdrantSettings, stamp: &str) -> HashMap<String, Value> {
    HashMap::from([(METADATA.to_owned(), Value::from(format!("{}{stamp}", of_pipeline(settings))))])
}

/// What a collection's metadata says that it is made for, where it is one of this pipeline's: `revision …` for a
/// generation, else the stamp.
pub(super) fn stamp<'a>(settings: &QdrantSettings, info: &'a CollectionInfo) -> Option<&'a str> {
    let made_for = info.config.as_ref()?.metadata.get(METADATA)?.as_str()?;
    made_for.strip_prefix(&of_pipeline(settings))
}

/// The revision of a generation, by its stamp.
pub(super) fn revision(stamp: &str) -> Option<&str> {
    Some(stamp.strip_prefix(REVISION)?.split_once(", ")?.0)
}

/// The payload's fields that are indexed: those that writes and counts ask for, and those that searches may ask for.
pub(super) fn indexes(settings: &QdrantSettings) -> Vec<(String, FieldType)> {
    let own = [(VERSION, FieldType::Integer), (PARTITION, FieldType::Integer), (DELETED, FieldType::Bool)];
    let own = own.into_iter().map(|(field, kind)| (field.to_owned(), kind));
    own.chain(settings.filters.iter().map(|field| (super::filter::path(field), FieldType::Keyword))).collect()
}

/// Why a collection cannot be written to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It is none of this pipeline's generations.
    Foreign(String),
    /// It is one of another revision, or of a log with another number of partitions.
    Outdated(String),
}

/// Why the collection cannot be written to as a generation of these settings, if it cannot.
pub(super) fn refusal(settings: &QdrantSettings, info: &CollectionInfo) -> Option<Refusal> {
    let config = info.config.as_ref()?;
    if let Some(found) = config.metadata.get(METADATA).and_then(|metadata| metadata.as_str())
        && *found != made_for(settings)
        && found.starts_with(&of_pipeline(settings))
    {
        return Some(Refusal::Outdated(format!("it was made for {found}, wanted {}", made_for(settings))));
    }
    foreign(settings, info).map(Refusal::Foreign)
}

/// In what a collection that is there differs from one that would be made now.
pub(super) fn differences(settings: &QdrantSettings, info: &CollectionInfo) -> Vec<String> {
    let mut differences = vec![];
    match refusal(settings, info) {
        Some(Refusal::Foreign(what) | Refusal::Outdated(what)) => differences.push(what),
        None => {}
    }
    let wanted = create(settings).optimizers_config.unwrap_or_default();
    let found = info.config.as_ref().and_then(|config| config.optimizer_config).unwrap_or_default();
    let threads = |config: &OptimizersConfigDiff| match config.max_optimization_threads?.variant? {
        max_optimization_threads::Variant::Value(threads) => Some(threads),
        max_optimization_threads::Variant::Setting(_) => None,
    };
    for (name, found, wanted) in [
        ("default_segment_number", found.default_segment_number, wanted.default_segment_number),
        ("max_segment_size", found.max_segment_size, wanted.max_segment_size),
        ("memmap_threshold", found.memmap_threshold, wanted.memmap_threshold),
        ("indexing_threshold", found.indexing_threshold, wanted.indexing_threshold),
        ("flush_interval_sec", found.flush_interval_sec, wanted.flush_interval_sec),
        ("max_optimization_threads", threads(&found), threads(&wanted)),
    ] {
        if found != wanted {
            let shown = |value: Option<u64>| value.map_or("nothing".to_owned(), |value| value.to_string());
            differences.push(format!("{name} is {}, wanted {}", shown(found), shown(wanted)));
        }
    }
    for (field, kind) in indexes(settings) {
        let wanted = kind.as_str_name().trim_start_matches("FieldType");
        match info.payload_schema.get(&field).map(|schema| schema.data_type().as_str_name()) {
            None => differences.push(format!("there is no index on {field}, wanted one of kind {wanted}")),
            Some(found) if found != wanted => {
                differences.push(format!("the index on {field} is of kind {found}, wanted {wanted}"));
            }
            Some(_) => {}
        }
    }
    differences
}

/// Width and distance of a collection's vectors, for showing.
pub(super) fn shape(info: &CollectionInfo) -> Option<(u64, &'static str)> {
    let vectors = info.config.as_ref()?.params.as_ref()?.vectors_config.as_ref()?.config.as_ref()?;
    match vectors {
        Vectors::Params(params) => Some((params.size, params.distance().as_str_name())),
        Vectors::ParamsMap(_) => None,
    }
}

fn foreign(settings: &QdrantSettings, info: &CollectionInfo) -> Option<String> {
    let config = info.config.as_ref()?;
    let vectors = config.params.as_ref().and_then(|params| params.vectors_config.as_ref()?.config.as_ref());
    let has = match vectors {
        Some(Vectors::Params(params)) => (params.size, params.distance()),
        Some(Vectors::ParamsMap(_)) => {
            return Some("it has several vectors a point, wanted one without a name".to_owned());
        }
        None => return Some("it has no vectors".to_owned()),
    };
    if has != (DIMENSION as u64, Distance::Cosine) {
        return Some(format!("it has vectors of {} by {:?}, wanted {DIMENSION} by Cosine", has.0, has.1));
    }
    match config.metadata.get(METADATA).and_then(|metadata| metadata.as_str()) {
        None => Some("it was not made by vecsync; set QDRANT_COLLECTION_NAME to another name, or remove it".to_owned()),
        Some(found) if *found != made_for(settings) => {
            Some(format!("it was made for {found}, wanted {}", made_for(settings)))
        }
        Some(_) => None,
    }
}

fn made_for(settings: &QdrantSettings) -> String {
    let QdrantSettings { revision, partitions, .. } = settings;
    format!("{}{REVISION}{revision}, {partitions} partitions", of_pipeline(settings))
}

fn of_pipeline(settings: &QdrantSettings) -> String {
    format!("pipeline {}, ", settings.pipeline)
}
