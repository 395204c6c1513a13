//! Between the messages of Qdrant's gRPC and the engine's types. No I/O.

use std::collections::HashMap;

use qdrant_client::qdrant::condition::ConditionOneOf;
use qdrant_client::qdrant::r#match::MatchValue as MatchMessage;
use qdrant_client::qdrant::point_id::PointIdOptions;
use qdrant_client::qdrant::vector::Vector as VectorMessage;
use qdrant_client::qdrant::vectors::VectorsOptions;
use qdrant_client::qdrant::{
    self as grpc, points_selector::PointsSelectorOneOf, vector_output, vectors_output, with_payload_selector,
    with_vectors_selector,
};
use qdrant_edge::external::ordered_float::OrderedFloat;
use qdrant_edge::external::uuid::Uuid;
use qdrant_edge::{
    AnyVariants, Condition, DateTimeWrapper, FieldCondition, Filter, HasVectorCondition, IsEmptyCondition,
    IsNullCondition, JsonPath, Match, MatchExcept, MinShould, Nested, NestedCondition, OperationError, Payload,
    PayloadSelector, PointId, PointStructPersisted, Range, RangeInterface, Record, ScoredPoint, ValueVariants,
    ValuesCount, VectorInternal, VectorPersisted, VectorStructInternal, VectorStructPersisted, WithPayloadInterface,
    WithVector,
};
use tonic::Status;

/// What this server does not do is said, never guessed.
pub fn unimplemented(what: &str) -> Status {
    Status::unimplemented(format!("the test server does not do this: {what}"))
}

/// The engine's error as Qdrant answers it.
pub fn refusal(error: OperationError) -> Status {
    match error {
        OperationError::ServiceError { description, .. } => {
            Status::internal(format!("Service internal error: {description}"))
        }
        OperationError::PointIdError { .. } => Status::not_found(format!("Not found: {error}")),
        OperationError::WrongVectorDimension { .. }
        | OperationError::VectorNameNotExists { .. }
        | OperationError::TypeError { .. }
        | OperationError::TypeInferenceError { .. }
        | OperationError::ValidationError { .. }
        | OperationError::WrongSparse
        | OperationError::WrongMulti => Status::invalid_argument(format!("Wrong input: {error}")),
        error => Status::internal(format!("Service internal error: {error}")),
    }
}

pub fn point_id(id: Option<grpc::PointId>) -> Result<PointId, Status> {
    match id.and_then(|id| id.point_id_options) {
        Some(PointIdOptions::Num(number)) => Ok(PointId::NumId(number)),
        Some(PointIdOptions::Uuid(text)) => Uuid::parse_str(&text)
            .map(PointId::Uuid)
            .map_err(|_| Status::invalid_argument(format!("Unable to parse UUID: {text}"))),
        None => Err(Status::invalid_argument("Empty ID is not allowed")),
    }
}

pub fn point_ids(ids: Vec<grpc::PointId>) -> Result<Vec<PointId>, Status> {
    ids.into_iter().map(|id| point_id(Some(id))).collect()
}

pub fn id_message(id: PointId) -> grpc::PointId {
    let options = match id {
        PointId::NumId(number) => PointIdOptions::Num(number),
        PointId::Uuid(uuid) => PointIdOptions::Uuid(uuid.to_string()),
    };
    grpc::PointId { point_id_options: Some(options) }
}

pub fn payload(fields: HashMap<String, grpc::Value>) -> Payload {
    Payload(fields.into_iter().map(|(name, value)| (name, value.into())).collect())
}

fn payload_message(payload: Option<Payload>) -> HashMap<String, grpc::Value> {
    payload.into_iter().flat_map(|payload| payload.0).map(|(name, value)| (name, value.into())).collect()
}

/// A point to be stored. Vectors that are absent are refused; named vectors that are none make a point without one.
pub fn point(point: grpc::PointStruct) -> Result<PointStructPersisted, Status> {
    let vector = match point.vectors.and_then(|vectors| vectors.vectors_options) {
        Some(VectorsOptions::Vector(vector)) => VectorStructPersisted::Single(dense(vector)?),
        Some(VectorsOptions::Vectors(named)) => {
            let named =
                named.vectors.into_iter().map(|(name, vector)| Ok((name, VectorPersisted::Dense(dense(vector)?))));
            VectorStructPersisted::Named(named.collect::<Result<_, Status>>()?)
        }
        None => return Err(Status::invalid_argument("Expected some vectors")),
    };
    Ok(PointStructPersisted { id: point_id(point.id)?, vector, payload: Some(payload(point.payload)) })
}

#[expect(deprecated, reason = "clients before 1.16 send the numbers there")]
fn dense(vector: grpc::Vector) -> Result<Vec<f32>, Status> {
    match vector.vector {
        Some(VectorMessage::Dense(vector)) => Ok(vector.data),
        None if vector.indices.is_none() && vector.vectors_count.is_none() => Ok(vector.data),
        _ => Err(unimplemented("vectors that are not dense")),
    }
}

fn vectors_message(vectors: VectorStructInternal) -> Result<grpc::VectorsOutput, Status> {
    let options = match vectors {
        VectorStructInternal::Single(vector) => vectors_output::VectorsOptions::Vector(dense_message(vector)),
        VectorStructInternal::Named(named) => {
            let named = named.into_iter().map(|(name, vector)| match vector {
                VectorInternal::Dense(vector) => Ok((name, dense_message(vector))),
                VectorInternal::Sparse(_) | VectorInternal::MultiDense(_) => Err(unimplemented("such vectors")),
            });
            vectors_output::VectorsOptions::Vectors(grpc::NamedVectorsOutput {
                vectors: named.collect::<Result<_, _>>()?,
            })
        }
        VectorStructInternal::MultiDense(_) => return Err(unimplemented("such vectors")),
    };
    Ok(grpc::VectorsOutput { vectors_options: Some(options) })
}

#[expect(deprecated, reason = "every field has to be named")]
fn dense_message(data: Vec<f32>) -> grpc::VectorOutput {
    let vector = Some(vector_output::Vector::Dense(grpc::DenseVector { data }));
    grpc::VectorOutput { data: vec![], indices: None, vectors_count: None, vector }
}

pub fn record_message(record: Record) -> Result<grpc::RetrievedPoint, Status> {
    Ok(grpc::RetrievedPoint {
        id: Some(id_message(record.id)),
        payload: payload_message(record.payload),
        vectors: record.vector.map(vectors_message).transpose()?,
        shard_key: None,
        order_value: None,
    })
}

pub fn scored_message(point: ScoredPoint) -> Result<grpc::ScoredPoint, Status> {
    Ok(grpc::ScoredPoint {
        id: Some(id_message(point.id)),
        payload: payload_message(point.payload),
        score: point.score,
        version: point.version,
        vectors: point.vector.map(vectors_message).transpose()?,
        shard_key: None,
        order_value: None,
    })
}

pub fn with_payload(
    selector: Option<grpc::WithPayloadSelector>,
    otherwise: bool,
) -> Result<WithPayloadInterface, Status> {
    let paths = |fields: Vec<String>| fields.iter().map(|field| path(field)).collect::<Result<Vec<_>, _>>();
    Ok(match selector.and_then(|selector| selector.selector_options) {
        None => WithPayloadInterface::Bool(otherwise),
        Some(with_payload_selector::SelectorOptions::Enable(enable)) => WithPayloadInterface::Bool(enable),
        Some(with_payload_selector::SelectorOptions::Include(include)) => {
            WithPayloadInterface::Selector(PayloadSelector::new_include(paths(include.fields)?))
        }
        Some(with_payload_selector::SelectorOptions::Exclude(exclude)) => {
            WithPayloadInterface::Selector(PayloadSelector::new_exclude(paths(exclude.fields)?))
        }
    })
}

pub fn with_vectors(selector: Option<grpc::WithVectorsSelector>) -> WithVector {
    match selector.and_then(|selector| selector.selector_options) {
        None => WithVector::Bool(false),
        Some(with_vectors_selector::SelectorOptions::Enable(enable)) => WithVector::Bool(enable),
        Some(with_vectors_selector::SelectorOptions::Include(include)) => WithVector::Selector(include.names),
    }
}

/// Which points a request is about.
pub enum Selection {
    Ids(Vec<PointId>),
    Matching(Filter),
}

pub fn selection(selector: Option<grpc::PointsSelector>) -> Result<Selection, Status> {
    match selector.and_then(|selector| selector.points_selector_one_of) {
        Some(PointsSelectorOneOf::Points(list)) => Ok(Selection::Ids(point_ids(list.ids)?)),
        Some(PointsSelectorOneOf::Filter(wanted)) => Ok(Selection::Matching(filter(wanted)?)),
        None => Err(Status::invalid_argument("PointSelector is missing")),
    }
}

pub fn path(text: &str) -> Result<JsonPath, Status> {
    text.parse().map_err(|()| Status::invalid_argument(format!("Invalid json path: '{text}'")))
}

pub fn filter(filter: grpc::Filter) -> Result<Filter, Status> {
    let some = |list: Vec<grpc::Condition>| (!list.is_empty()).then(|| conditions(list)).transpose();
    let min_should = filter.min_should.map(|min| {
        Ok::<_, Status>(MinShould { conditions: conditions(min.conditions)?, min_count: min.min_count as usize })
    });
    Ok(Filter {
        should: some(filter.should)?,
        min_should: min_should.transpose()?,
        must: some(filter.must)?,
        must_not: some(filter.must_not)?,
    })
}

fn conditions(list: Vec<grpc::Condition>) -> Result<Vec<Condition>, Status> {
    list.into_iter().map(condition).collect()
}

fn condition(condition: grpc::Condition) -> Result<Condition, Status> {
    Ok(match condition.condition_one_of {
        Some(ConditionOneOf::Field(wanted)) => Condition::Field(field(wanted)?),
        Some(ConditionOneOf::IsEmpty(empty)) => Condition::IsEmpty(IsEmptyCondition::from(path(&empty.key)?)),
        Some(ConditionOneOf::IsNull(null)) => Condition::IsNull(IsNullCondition::from(path(&null.key)?)),
        Some(ConditionOneOf::HasId(has)) => Condition::HasId(point_ids(has.has_id)?.into_iter().collect()),
        Some(ConditionOneOf::Filter(inner)) => Condition::Filter(filter(inner)?),
        Some(ConditionOneOf::HasVector(has)) => Condition::HasVector(HasVectorCondition::from(has.has_vector)),
        Some(ConditionOneOf::Nested(nested)) => {
            let inner = nested.filter.ok_or_else(|| Status::invalid_argument("Nested filter is missing"))?;
            Condition::Nested(NestedCondition::new(Nested { key: path(&nested.key)?, filter: filter(inner)? }))
        }
        Some(ConditionOneOf::Slice(_)) => return Err(unimplemented("slices")),
        None => return Err(Status::invalid_argument("Malformed Condition type")),
    })
}

fn field(wanted: grpc::FieldCondition) -> Result<FieldCondition, Status> {
    if wanted.geo_bounding_box.is_some() || wanted.geo_radius.is_some() || wanted.geo_polygon.is_some() {
        return Err(unimplemented("geographical conditions"));
    }
    let range = match (wanted.range, wanted.datetime_range) {
        (Some(range), _) => Some(RangeInterface::Float(Range {
            lt: range.lt.map(OrderedFloat),
            gt: range.gt.map(OrderedFloat),
            gte: range.gte.map(OrderedFloat),
            lte: range.lte.map(OrderedFloat),
        })),
        (None, Some(range)) => Some(RangeInterface::DateTime(Range {
            lt: range.lt.map(moment).transpose()?,
            gt: range.gt.map(moment).transpose()?,
            gte: range.gte.map(moment).transpose()?,
            lte: range.lte.map(moment).transpose()?,
        })),
        (None, None) => None,
    };
    let values_count = wanted.values_count.map(|count| ValuesCount {
        lt: count.lt.map(|count| count as usize),
        gt: count.gt.map(|count| count as usize),
        gte: count.gte.map(|count| count as usize),
        lte: count.lte.map(|count| count as usize),
    });
    Ok(FieldCondition {
        key: path(&wanted.key)?,
        r#match: wanted.r#match.and_then(|wanted| wanted.match_value).map(value_match).transpose()?,
        range,
        geo_bounding_box: None,
        geo_radius: None,
        geo_polygon: None,
        values_count,
        is_empty: wanted.is_empty,
        is_null: wanted.is_null,
    })
}

fn moment(time: prost_types::Timestamp) -> Result<DateTimeWrapper, Status> {
    let micros = time.seconds.checked_mul(1_000_000).map(|micros| micros + i64::from(time.nanos) / 1_000);
    micros
        .and_then(DateTimeWrapper::from_timestamp)
        .ok_or_else(|| Status::invalid_argument("Unable to parse timestamp"))
}

fn value_match(wanted: MatchMessage) -> Result<Match, Status> {
    Ok(match wanted {
        MatchMessage::Keyword(text) => Match::new_value(ValueVariants::String(text)),
        MatchMessage::Integer(number) => Match::new_value(ValueVariants::Integer(number)),
        MatchMessage::Boolean(truth) => Match::new_value(ValueVariants::Bool(truth)),
        MatchMessage::Keywords(list) => Match::new_any(AnyVariants::Strings(list.strings.into_iter().collect())),
        MatchMessage::Integers(list) => Match::new_any(AnyVariants::Integers(list.integers.into_iter().collect())),
        MatchMessage::ExceptKeywords(list) => Match::Except(MatchExcept::from(list.strings)),
        MatchMessage::ExceptIntegers(list) => Match::Except(MatchExcept::from(list.integers)),
        MatchMessage::Text(_)
        | MatchMessage::TextAny(_)
        | MatchMessage::Phrase(_)
        | MatchMessage::Prefix(_)
        | MatchMessage::Substring(_) => return Err(unimplemented("matches inside of texts")),
    })
}
