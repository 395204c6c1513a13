//! Asks a store what it holds of rows, and which rows it holds, page by page: for comparing it with the table. Judges
//! nothing, and writes no row.

use std::collections::HashSet;

use qdrant_client::qdrant::PointId;
use tokio::task::{JoinError, spawn_blocking};

use super::drift::Held;
use super::mirror::{Mirror, MirrorError};
use super::qdrant::{QdrantError, QdrantStore, Stray};
use crate::event::RowKey;

/// A store that can be compared with the table. Clones are the same.
#[derive(Clone, Debug)]
pub enum Holder {
    /// The mirror.
    Local(Mirror),
    /// A generation in Qdrant.
    Qdrant(QdrantStore),
}

/// A store could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum HeldError {
    /// The mirror.
    #[error(transparent)]
    Mirror(#[from] MirrorError),
    /// Qdrant.
    #[error(transparent)]
    Qdrant(#[from] QdrantError),
    /// Reading it ended abnormally.
    #[error("read the mirror")]
    Task(#[from] JoinError),
}

/// Where the next page of keys begins.
#[derive(Clone, Debug, Default)]
pub enum Cursor {
    /// At the beginning.
    #[default]
    Start,
    /// At this document of the mirror.
    Document(usize),
    /// At this point in Qdrant.
    Point(PointId),
    /// There is none.
    End,
}

impl Holder {
    /// What it holds of each of these rows, in their order.
    pub async fn held(&self, keys: &[RowKey]) -> Result<Vec<Held>, HeldError> {
        match self {
            Holder::Local(mirror) => {
                let (mirror, keys) = (mirror.clone(), keys.to_vec());
                Ok(spawn_blocking(move || mirror.held(&keys)).await??)
            }
            Holder::Qdrant(store) => Ok(store.held(keys).await?),
        }
    }

    /// Keys of rows that searches can find, and points that are no row's, at most `max`, from `cursor` on, which moves
    /// behind them. A key that is there from the first page to the last is on one of them.
    pub async fn list(&self, cursor: &mut Cursor, max: usize) -> Result<(Vec<RowKey>, Vec<Stray>), HeldError> {
        let at = std::mem::replace(cursor, Cursor::End);
        let (keys, strays, next) = match (self, at) {
            (_, Cursor::End) | (Holder::Local(_), Cursor::Point(_)) | (Holder::Qdrant(_), Cursor::Document(_)) => {
                return Ok((vec![], vec![]));
            }
            (Holder::Local(mirror), at) => {
                let from = if let Cursor::Document(from) = at { from } else { 0 };
                let (keys, next) = mirror.keys(from, max);
                (keys, vec![], next.map(Cursor::Document))
            }
            (Holder::Qdrant(store), at) => {
                let from = if let Cursor::Point(from) = at { Some(from) } else { None };
                let listing = store.list(from, max).await?;
                (listing.keys, listing.strays, listing.next.map(Cursor::Point))
            }
        };
        *cursor = next.unwrap_or(Cursor::End);
        Ok((keys, strays))
    }

    /// Those of these that are there still, but for those that stand in the place of a row of these keys: they are a
    /// damaged row, which is told and mended as such.
    pub async fn strays_left<'a>(
        &self,
        strays: &[Stray],
        but_for: impl Iterator<Item = &'a RowKey>,
    ) -> Result<Vec<Stray>, HeldError> {
        match self {
            Holder::Qdrant(store) if !strays.is_empty() => {
                let places: HashSet<PointId> = but_for.map(|key| store.place_of(key)).collect();
                let left = store.strays_left(strays).await?;
                Ok(left.into_iter().filter(|stray| !places.contains(stray.id())).collect())
            }
            _ => Ok(vec![]),
        }
    }

    /// Removes points that are no row's.
    pub async fn remove_strays(&self, strays: &[Stray]) -> Result<(), HeldError> {
        match self {
            Holder::Local(_) => Ok(()),
            Holder::Qdrant(store) => Ok(store.remove_strays(strays).await?),
        }
    }

    /// Rows that searches can find.
    pub async fn rows(&self) -> Result<u64, HeldError> {
        match self {
            Holder::Local(mirror) => Ok(mirror.rows()),
            Holder::Qdrant(store) => Ok(store.rows().await?),
        }
    }
}

impl Cursor {
    /// Whether there is no page left.
    pub fn is_at_end(&self) -> bool {
        matches!(self, Cursor::End)
    }
}
