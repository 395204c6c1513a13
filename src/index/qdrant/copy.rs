//! Points as they are, whatever they are: read in pages, written elsewhere, compared by a hash. Knows no rows.

use std::collections::HashMap;

use prost::Message;
use qdrant_client::qdrant::point_id::PointIdOptions;
use qdrant_client::qdrant::value::Kind;
use qdrant_client::qdrant::vectors::VectorsOptions;
use qdrant_client::qdrant::vectors_output::VectorsOptions as Output;
use qdrant_client::qdrant::{
    CountPointsBuilder, DeletePointsBuilder, GetPointsBuilder, NamedVectors, PointId, PointStruct, PointsIdsList,
    RetrievedPoint, ScrollPoints, ScrollPointsBuilder, UpsertPointsBuilder, Value, Vector, VectorOutput, Vectors,
    vector, vector_output,
};
use sha2::{Digest as _, Sha256};

use super::QdrantError;
use super::link::Link;

/// Points in one request. With a vector and a text each they are some hundred kilobytes.
pub(super) const PAGE: usize = 100;
/// Bytes in one write, beyond which it is closed: servers and proxies refuse large requests.
const WRITE_BYTES_MAX: usize = 2 << 20;

impl Link {
    /// Whole points in the order of their ids, from this one on, and where the next ones begin.
    pub(super) async fn page(
        &self,
        from: Option<PointId>,
    ) -> Result<(Vec<RetrievedPoint>, Option<PointId>), QdrantError> {
        let request = ScrollPointsBuilder::new(self.name()).limit(PAGE as u32).with_payload(true).with_vectors(true);
        let request = ScrollPoints { offset: from, ..request.build() };
        let page = self.call("list", self.points().scroll(request)).await?;
        Ok((page.result, page.next_page_offset))
    }

    /// Whole points by their ids, as far as they are there.
    pub(super) async fn whole(&self, ids: &[PointId]) -> Result<HashMap<PointId, RetrievedPoint>, QdrantError> {
        let mut found = HashMap::with_capacity(ids.len());
        for ids in ids.chunks(PAGE) {
            let request = GetPointsBuilder::new(self.name(), ids).with_payload(true).with_vectors(true);
            let points = self.call("read", self.points().get(request.build())).await?.result;
            found.extend(points.into_iter().filter_map(|point| Some((point.id.clone()?, point))));
        }
        Ok(found)
    }

    /// Writes points, whatever is there under their ids. They are durable when it returns.
    pub(super) async fn put(&self, points: Vec<PointStruct>) -> Result<(), QdrantError> {
        let (mut batch, mut bytes) = (vec![], 0);
        for point in points {
            let size = point.encoded_len();
            if !batch.is_empty() && (bytes + size > WRITE_BYTES_MAX || batch.len() == PAGE) {
                self.put_at_once(std::mem::take(&mut batch)).await?;
                bytes = 0;
            }
            bytes += size;
            batch.push(point);
        }
        if batch.is_empty() { Ok(()) } else { self.put_at_once(batch).await }
    }

    async fn put_at_once(&self, points: Vec<PointStruct>) -> Result<(), QdrantError> {
        let request = UpsertPointsBuilder::new(self.name(), points).wait(true);
        self.completed("upsert", self.points().upsert(request.build())).await
    }

    /// Removes points.
    pub(super) async fn remove(&self, ids: Vec<PointId>) -> Result<(), QdrantError> {
        let request = DeletePointsBuilder::new(self.name()).points(PointsIdsList { ids }).wait(true);
        self.completed("remove points of", self.points().delete(request.build())).await
    }

    /// How many points there are of every kind.
    pub(super) async fn count_all(&self) -> Result<u64, QdrantError> {
        let request = CountPointsBuilder::new(self.name()).exact(true);
        Ok(self.call("count", self.points().count(request.build())).await?.result.unwrap_or_default().count)
    }

    /// The hash of all points. `told` hears how many are passed.
    pub(super) async fn digest(&self, mut told: impl FnMut(u64) + Send) -> Result<Digest, QdrantError> {
        let (mut digest, mut after) = (Digest::default(), None);
        loop {
            let (page, more) = self.page(after).await?;
            page.iter().for_each(|point| digest.add(point));
            told(digest.points);
            match more {
                Some(next) => after = Some(next),
                None => return Ok(digest),
            }
        }
    }
}

/// Hash of a set of points, in whatever order they come: the sum of SHA-256 over each one's id, vectors and payload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Digest {
    /// How many.
    pub(super) points: u64,
    sum: u128,
}

impl Digest {
    pub(super) fn add(&mut self, point: &RetrievedPoint) {
        let mut hasher = Sha256::new();
        hash_id(&mut hasher, point.id.as_ref());
        match point.vectors.as_ref().and_then(|vectors| vectors.vectors_options.as_ref()) {
            None => hasher.update(b"n"),
            Some(Output::Vector(vector)) => hash_vector(&mut hasher, vector),
            Some(Output::Vectors(named)) => {
                let mut names: Vec<_> = named.vectors.iter().collect();
                names.sort_unstable_by_key(|(name, _)| *name);
                for (name, vector) in names {
                    hash_text(&mut hasher, b"v", name);
                    hash_vector(&mut hasher, vector);
                }
            }
        }
        hash_fields(&mut hasher, &point.payload);
        let hash: [u8; 32] = hasher.finalize().into();
        let mut half = [0; 16];
        half.copy_from_slice(&hash[..16]);
        self.sum = self.sum.wrapping_add(u128::from_le_bytes(half));
        self.points += 1;
    }

    /// As it is shown.
    pub(super) fn hash(&self) -> String {
        format!("{:032x}", self.sum)
    }
}

fn hash_id(hasher: &mut Sha256, id: Option<&PointId>) {
    match id.and_then(|id| id.point_id_options.as_ref()) {
        Some(PointIdOptions::Num(number)) => {
            hasher.update(b"#");
            hasher.update(number.to_le_bytes());
        }
        Some(PointIdOptions::Uuid(uuid)) => hash_text(hasher, b"u", uuid),
        None => hasher.update(b"-"),
    }
}

fn hash_vector(hasher: &mut Sha256, vector: &VectorOutput) {
    let floats = |hasher: &mut Sha256, numbers: &[f32]| {
        hasher.update((numbers.len() as u64).to_le_bytes());
        numbers.iter().for_each(|number| hasher.update(number.to_bits().to_le_bytes()));
    };
    match vector.clone().into_vector() {
        vector_output::Vector::Dense(dense) => {
            hasher.update(b"d");
            floats(hasher, &dense.data);
        }
        vector_output::Vector::Sparse(sparse) => {
            hasher.update(b"s");
            sparse.indices.iter().for_each(|index| hasher.update(index.to_le_bytes()));
            floats(hasher, &sparse.values);
        }
        vector_output::Vector::MultiDense(several) => {
            hasher.update(b"m");
            several.vectors.iter().for_each(|dense| floats(hasher, &dense.data));
        }
    }
}

fn hash_fields(hasher: &mut Sha256, fields: &HashMap<String, Value>) {
    let mut fields: Vec<_> = fields.iter().collect();
    fields.sort_unstable_by_key(|(name, _)| *name);
    hasher.update((fields.len() as u64).to_le_bytes());
    for (name, value) in fields {
        hash_text(hasher, b"k", name);
        hash_value(hasher, value);
    }
}

fn hash_value(hasher: &mut Sha256, value: &Value) {
    match &value.kind {
        None | Some(Kind::NullValue(_)) => hasher.update(b"0"),
        Some(Kind::BoolValue(value)) => hasher.update([b'b', u8::from(*value)]),
        Some(Kind::IntegerValue(number)) => {
            hasher.update(b"i");
            hasher.update(number.to_le_bytes());
        }
        Some(Kind::DoubleValue(number)) => {
            hasher.update(b"f");
            hasher.update(number.to_bits().to_le_bytes());
        }
        Some(Kind::StringValue(text)) => hash_text(hasher, b"t", text),
        Some(Kind::ListValue(list)) => {
            hasher.update(b"l");
            hasher.update((list.values.len() as u64).to_le_bytes());
            list.values.iter().for_each(|value| hash_value(hasher, value));
        }
        Some(Kind::StructValue(fields)) => {
            hasher.update(b"o");
            hash_fields(hasher, &fields.fields);
        }
    }
}

fn hash_text(hasher: &mut Sha256, kind: &[u8], text: &str) {
    hasher.update(kind);
    hasher.update((text.len() as u64).to_le_bytes());
    hasher.update(text);
}

/// A point that was read, as it is written.
pub(super) fn as_written(point: RetrievedPoint) -> PointStruct {
    let vectors = match point.vectors.and_then(|vectors| vectors.vectors_options) {
        Some(Output::Vector(vector)) => VectorsOptions::Vector(written(vector)),
        Some(Output::Vectors(named)) => {
            let vectors = named.vectors.into_iter().map(|(name, vector)| (name, written(vector))).collect();
            VectorsOptions::Vectors(NamedVectors { vectors })
        }
        // Vectors that are absent would be refused; named ones that are none are not.
        None => VectorsOptions::Vectors(NamedVectors::default()),
    };
    PointStruct { id: point.id, payload: point.payload, vectors: Some(Vectors { vectors_options: Some(vectors) }) }
}

fn written(vector: VectorOutput) -> Vector {
    let vector = match vector.into_vector() {
        vector_output::Vector::Dense(dense) => vector::Vector::Dense(dense),
        vector_output::Vector::Sparse(sparse) => vector::Vector::Sparse(sparse),
        vector_output::Vector::MultiDense(several) => vector::Vector::MultiDense(several),
    };
    Vector { vector: Some(vector), ..Vector::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use qdrant_client::qdrant::{DenseVector, VectorsOutput};
    use serde_json::json;

    fn point(id: u64, vector: &[f32], payload: serde_json::Value) -> RetrievedPoint {
        let dense = vector_output::Vector::Dense(DenseVector { data: vector.to_vec() });
        let vector = VectorOutput { vector: Some(dense), ..VectorOutput::default() };
        let payload = payload.as_object().expect("an object").clone();
        RetrievedPoint {
            id: Some(id.into()),
            payload: payload.into_iter().map(|(name, value)| (name, value.into())).collect(),
            vectors: Some(VectorsOutput { vectors_options: Some(Output::Vector(vector)) }),
            ..RetrievedPoint::default()
        }
    }

    fn digest(points: &[RetrievedPoint]) -> Digest {
        let mut digest = Digest::default();
        points.iter().for_each(|point| digest.add(point));
        digest
    }

    #[test]
    fn the_hash_is_of_all_that_is_stored_and_of_no_order() {
        let payload = json!({"a": {"x": 1, "y": [true, null, "z", 1.5]}, "b": 2});
        let (one, two) = (point(1, &[1.0, 0.0], payload.clone()), point(2, &[0.0, 1.0], json!({})));
        let wanted = digest(&[one.clone(), two.clone()]);
        let turned = json!({"b": 2, "a": {"y": [true, null, "z", 1.5], "x": 1}});
        assert_eq!(digest(&[two.clone(), point(1, &[1.0, 0.0], turned)]), wanted);
        let others = [
            point(3, &[1.0, 0.0], payload.clone()),
            point(1, &[1.0, f32::EPSILON], payload.clone()),
            point(1, &[1.0, 0.0], json!({"a": {"x": 1, "y": [true, null, "z", 1.5]}, "b": 2.0})),
            point(1, &[1.0, 0.0], json!({"a": {"x": 1, "y": [true, "z", null, 1.5]}, "b": 2})),
            point(1, &[1.0, 0.0], json!({"a": {"x": 1, "y": [true, null, "z", 1.5]}})),
        ];
        for other in others {
            assert_ne!(digest(&[other.clone(), two.clone()]), wanted, "{other:?}");
        }
        assert_ne!(digest(&[one.clone(), two, one]).hash(), wanted.hash());
    }
}
