//! What a generation in Qdrant holds of rows, for comparing it with the table: hashes as they are stored, keys
//! in pages, and points that are no row's.

use std::collections::HashMap;

use qdrant_client::qdrant::{Condition, Filter as QdrantFilter, PointId, Range, RetrievedPoint, ScrollPointsBuilder};
use serde_json::Value as Json;

use super::{Inner, QdrantError, QdrantStore, point};
use crate::event::RowKey;
use crate::index::drift::Held;

/// Conditions of one request.
const STRAYS_PER_REQUEST: usize = 100;

/// Some of what searches can find.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Listing {
    /// Keys of rows: those whose window 0 was met.
    pub keys: Vec<RowKey>,
    /// Points that are no window of a row.
    pub strays: Vec<Stray>,
    /// Where the rest begins; `None`: there is none.
    pub next: Option<PointId>,
}

/// A point that vecsync has not written: without a key, or elsewhere than where its row's window belongs.
#[derive(Clone, Debug, PartialEq)]
pub struct Stray {
    id: PointId,
    key: Option<RowKey>,
}

impl QdrantStore {
    /// What it holds of each of these rows, in their order. A row is held when all its windows are there, of one version.
    pub async fn held(&self, keys: &[RowKey]) -> Result<Vec<Held>, QdrantError> {
        let (inner, pipeline) = (&*self.0, &self.0.settings.pipeline);
        let ids: Vec<PointId> = keys.iter().map(|key| point::id(pipeline, key, 0)).collect();
        let firsts = inner.get(&ids, &[point::RESERVED]).await?;
        let rows: Vec<Option<point::Part>> = ids.iter().map(|id| part_of(&firsts, id)).collect();
        let mut others: Vec<PointId> = vec![];
        for (key, row) in keys.iter().zip(&rows) {
            let windows = row.as_ref().map_or(0, point::Part::windows);
            others.extend((1..windows).map(|window| point::id(pipeline, key, window)));
        }
        let others = if others.is_empty() { HashMap::new() } else { inner.get(&others, &[point::RESERVED]).await? };
        let held = |((key, id), row): ((&RowKey, &PointId), Option<point::Part>)| match row {
            None if firsts.contains_key(id) => Held::Torn,
            None | Some(point::Part::Gone) => Held::Nothing,
            Some(row @ point::Part::Of { hash, windows, .. }) => {
                let is_whole = (1..windows)
                    .all(|window| part_of(&others, &point::id(pipeline, key, window)).as_ref() == Some(&row));
                if is_whole { Held::Row(hash) } else { Held::Torn }
            }
        };
        Ok(keys.iter().zip(&ids).zip(rows).map(held).collect())
    }

    /// What searches can find: the keys of at most `max` points, from this one on.
    pub async fn list(&self, from: Option<PointId>, max: usize) -> Result<Listing, QdrantError> {
        let Inner { link, settings, .. } = &*self.0;
        let position = Range { gte: Some(0.0), ..Range::default() };
        let hidden = [Condition::matches(point::DELETED, true), Condition::range(point::POSITION, position)];
        let request = ScrollPointsBuilder::new(&settings.collection)
            .filter(QdrantFilter::must_not(hidden))
            .limit(u32::try_from(max).unwrap_or(u32::MAX))
            .with_payload(super::reserved(&[point::KEY, point::WINDOW]))
            .with_vectors(false);
        let request = match from {
            Some(from) => request.offset(from),
            None => request,
        };
        let page = link.call("list", link.points().scroll(request.build())).await?;
        let mut listing = Listing { next: page.next_page_offset, ..Listing::default() };
        for found in page.result {
            match (self.0.stray(&found), point::place(&found.payload)) {
                (Some(stray), _) => listing.strays.push(stray),
                (None, Some((key, 0))) => listing.keys.push(key),
                (None, _) => {}
            }
        }
        Ok(listing)
    }

    /// Those of these that are there still.
    pub async fn strays_left(&self, strays: &[Stray]) -> Result<Vec<Stray>, QdrantError> {
        let ids: Vec<PointId> = strays.iter().map(|stray| stray.id.clone()).collect();
        let points = self.0.get(&ids, &[point::KEY, point::WINDOW, point::DELETED]).await?;
        let left = strays.iter().filter(|stray| {
            let found = points.get(&stray.id).filter(|found| !point::is_deleted(&found.payload));
            found.and_then(|found| self.0.stray(found)).as_ref() == Some(stray)
        });
        Ok(left.cloned().collect())
    }

    /// Removes them for good: no writer knows them, so none brings them back. A row that has come to stand in the place of
    /// one meanwhile stays.
    pub async fn remove_strays(&self, strays: &[Stray]) -> Result<(), QdrantError> {
        for strays in strays.chunks(STRAYS_PER_REQUEST) {
            let doomed = strays.iter().map(|Stray { id, key }| {
                let as_it_was = match key {
                    Some(key) => super::filter::keyword(point::KEY, key.as_str()),
                    None => Condition::is_empty(point::KEY),
                };
                Condition::from(QdrantFilter::must([Condition::has_id([id.clone()]), as_it_was]))
            });
            self.0.delete("tidy", QdrantFilter::should(doomed)).await?;
        }
        Ok(())
    }

    /// Where a row with this key begins.
    pub fn place_of(&self, key: &RowKey) -> PointId {
        point::id(&self.0.settings.pipeline, key, 0)
    }
}

impl Inner {
    /// What of a point makes it none of ours, if it is none: it has no key, or does not stand where its row's does.
    fn stray(&self, found: &RetrievedPoint) -> Option<Stray> {
        let id = found.id.clone()?;
        match point::place(&found.payload) {
            Some((key, window)) if point::id(&self.settings.pipeline, &key, window) == id => None,
            place => Some(Stray { id, key: place.map(|(key, _)| key) }),
        }
    }
}

impl Stray {
    /// Where it is.
    pub fn id(&self) -> &PointId {
        &self.id
    }

    /// What it is known by: the id of the row that it seems to be of, else its own.
    pub fn shown(&self) -> Json {
        let own = || {
            let id = point::shown(Some(&self.id));
            id.parse::<u64>().map_or_else(|_| id.into(), Json::from)
        };
        self.key.as_ref().map_or_else(own, RowKey::id)
    }
}

fn part_of(points: &HashMap<PointId, RetrievedPoint>, id: &PointId) -> Option<point::Part> {
    point::part(&points.get(id)?.payload)
}
