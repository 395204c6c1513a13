//! What stands behind an alias: all its collections, and what each is. Changes nothing.

use super::generations::ADOPTED;
use super::load::LINES;
use super::{QdrantError, QdrantGenerations, collection};

/// A collection behind an alias.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub collection: String,
    /// What is in it.
    pub contents: Contents,
    /// Points that can be found.
    pub points: u64,
    /// Whether the alias names it.
    pub is_named: bool,
}

/// What is in a collection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Contents {
    /// Rows of the table.
    Generation {
        /// Revision of the embedding.
        revision: String,
        /// Rows that can be found.
        rows: u64,
    },
    /// Points of a file that was loaded.
    Lines,
    /// The points of a collection that was taken over, or is being.
    Adopted,
    /// It was not made by vecsync for this pipeline.
    Foreign,
}

impl QdrantGenerations {
    /// All collections behind the alias: what was taken over first, then the generations by their numbers.
    pub async fn inventory(&self) -> Result<Vec<Listed>, QdrantError> {
        let named = self.named().await?;
        let adopted = self.collection(ADOPTED);
        let mut numbers = self.numbers().await?;
        if self.collections().await?.contains(&adopted) {
            numbers.insert(0, ADOPTED);
        }
        let mut listed = Vec::with_capacity(numbers.len());
        for number in numbers {
            let (info, store) = (self.info(number).await?, self.of(number).store);
            let stamp = collection::stamp(&self.settings, &info);
            let revision = stamp.and_then(collection::revision);
            let contents = match (revision, stamp) {
                (Some(revision), _) => {
                    Contents::Generation { revision: revision.to_owned(), rows: store.rows().await? }
                }
                (None, Some(stamp)) if stamp.starts_with(LINES) => Contents::Lines,
                (None, Some(_)) => Contents::Adopted,
                (None, None) => Contents::Foreign,
            };
            let points = match contents {
                Contents::Generation { .. } => store.points().await?,
                _ => self.link.to(self.collection(number)).count_all().await?,
            };
            let collection = self.collection(number);
            listed.push(Listed { collection, contents, points, is_named: named == Some(number) });
        }
        Ok(listed)
    }

    /// Whether a collection is a generation, of whatever revision: filled from a log, and fillable again.
    pub(crate) async fn is_generation(&self, number: u32) -> Result<bool, QdrantError> {
        let info = self.info(number).await?;
        Ok(collection::stamp(&self.settings, &info).and_then(collection::revision).is_some())
    }
}
