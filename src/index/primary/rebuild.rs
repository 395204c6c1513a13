//! A new generation in Qdrant on request: filled from the beginning of the log while the current one is followed and asked,
//! compared with it where both stand at the same place, and put in its place.

use std::time::Instant;

use serde::{Deserialize, Serialize};
use tokio::sync::{oneshot, watch};

use super::{Ended, Fault, Inner, Until};
use crate::index::mirror::Difference;
use crate::index::qdrant::{Accuracy, Content, QdrantGeneration, QdrantStore};
use crate::index::{Filter, Hit};
use crate::retry::{Chain, Retry};
use crate::shutdown::Shutdown;
use crate::topic::VectorsReader;

/// Searches that are made in both generations, for vectors that the old one has.
const SEARCHES: usize = 20;
/// Results of each that must be the same.
const RESULTS: usize = 10;
/// Scores of the same row may differ by so much.
const ROUNDING: f32 = 1e-5;
/// A new generation that has less than this share of the rows is not switched to: the log must have lost them.
const SHARE_MIN: f64 = 0.5;

/// A new generation is wanted.
pub struct RebuildRequest {
    /// Whether generations that nobody asks any more are removed afterwards.
    pub removes_others: bool,
    /// Told what came of it.
    pub done: oneshot::Sender<Result<Rebuilt, String>>,
    /// Told how many of how many offsets are passed.
    pub passed: watch::Sender<(u64, u64)>,
}

/// A generation that was filled anew.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rebuilt {
    /// Its collection, which the alias names now.
    pub collection: String,
    /// How it differs from the one before.
    pub difference: Difference,
    /// Searches that were made in both; none where their rows differ, and so would what they find.
    pub searches: SearchesCompared,
    /// Collections of generations before that were removed.
    pub removed: Vec<String>,
    /// How long it took, milliseconds.
    pub took_ms: u64,
}

/// Searches in two generations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SearchesCompared {
    /// How many were made.
    pub made: u64,
    /// How many gave the same rows with the same scores; of equal scores any order counts.
    pub same: u64,
}

/// What is written to, and where the log is read for it.
type Writing = (QdrantGeneration, VectorsReader);

impl Inner {
    /// Fills another generation and puts it in the current one's place; gives what is to be followed from now on. Where
    /// that comes to nothing, who asked is told, and the current one is followed on.
    pub(super) async fn rebuild(
        &self,
        (current, mut reader): Writing,
        request: RebuildRequest,
        retry: &mut Retry,
        shutdown: &Shutdown,
    ) -> Result<Writing, Fault> {
        let RebuildRequest { removes_others, done, passed } = request;
        tracing::info!(collection = self.settings.collection, "another generation is filled in Qdrant");
        let since = Instant::now();
        let generations = self.generations().await?;
        let filled = match self.fresh().await {
            Ok(next) => {
                let filled = self.fill((&current, &mut reader), &next, &passed, retry, shutdown).await;
                if filled.is_err()
                    && let Err(error) = generations.discard(next.number).await
                {
                    tracing::warn!("remove what was not filled: {}", Chain(&error));
                }
                filled.map(|filled| (next, filled))
            }
            Err(error) => Err(error),
        };
        match filled {
            Ok((next, Some((following, difference, searches)))) => {
                let collection = next.store.collection().to_owned();
                let removed = if removes_others { self.remove_others(next.number).await } else { vec![] };
                let took_ms = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
                tracing::info!(collection, rows = difference.rows, "filled in {took_ms} ms, and searches ask it");
                // Who asked may have gone meanwhile.
                let _ = done.send(Ok(Rebuilt { collection, difference, searches, removed, took_ms }));
                Ok((next, following))
            }
            // Shutdown; `write` finds it, too.
            Ok((_, None)) => Ok((current, reader)),
            Err(fault) => {
                let _ = done.send(Err(Chain(&fault).to_string()));
                // Where it was interrupted is not known: all is opened anew.
                Err(fault)
            }
        }
    }

    /// An empty generation; what an earlier rebuild that was killed has left is removed.
    async fn fresh(&self) -> Result<QdrantGeneration, Fault> {
        let generations = self.generations().await?;
        while let Some(begun) = generations.begun().await? {
            generations.discard(begun.number).await?;
        }
        Ok(generations.add().await?)
    }

    /// Fills, compares and switches. `None`: shutdown came first.
    async fn fill(
        &self,
        (current, reader): (&QdrantGeneration, &mut VectorsReader),
        next: &QdrantGeneration,
        passed: &watch::Sender<(u64, u64)>,
        retry: &mut Retry,
        shutdown: &Shutdown,
    ) -> Result<Option<(VectorsReader, Difference, SearchesCompared)>, Fault> {
        let mut filling = self.log.vectors(&self.settings.revision)?;
        filling.seek(&next.store.positions()).await?;
        let upto = current.store.positions();
        // The current one is followed until the other is nearly as far; nobody else may ask meanwhile.
        let (_nobody, mut silent) = tokio::sync::mpsc::channel(1);
        let mut aside = Retry::new(super::STORE);
        tokio::select! {
            ended = self.write(current, reader, Until::Asked(&mut silent), retry, shutdown) => match ended? {
                Ended::Shutdown => return Ok(None),
                Ended::Whole | Ended::Reached | Ended::Asked(_) => {}
            },
            filled = self.write(next, &mut filling, Until::Reached(&upto, passed), &mut aside, shutdown) => {
                if let Ended::Shutdown = filled? {
                    return Ok(None);
                }
            }
        }
        // A write of the current one may have been given up: it is as far as its own positions say, or a request further.
        current.store.open().await?;
        let upto = current.store.positions();
        if let Ended::Shutdown =
            self.write(next, &mut filling, Until::Reached(&upto, passed), &mut aside, shutdown).await?
        {
            return Ok(None);
        }
        let (difference, searches) = self.compare(&current.store, &next.store).await?;
        let before = difference.same + difference.different + difference.only_old;
        if (difference.rows as f64) < SHARE_MIN * before as f64 {
            return Err(Fault::TooFew { found: difference.rows, wanted: before });
        }
        self.name(next).await?;
        Ok(Some((filling, difference, searches)))
    }

    async fn compare(&self, old: &QdrantStore, new: &QdrantStore) -> Result<(Difference, SearchesCompared), Fault> {
        let mut difference =
            Difference { rows: new.rows().await?, points: new.points().await?, ..Difference::default() };
        let mut after = None;
        loop {
            let (page, more) = old.contents(after).await?;
            let found = new.contents_of(page.keys()).await?;
            for (id, content) in &page {
                let count = match found.get(id) {
                    Some(other) if is_same(other, content) => &mut difference.same,
                    Some(_) => &mut difference.different,
                    None => &mut difference.only_old,
                };
                *count += 1;
            }
            match more {
                Some(next) => after = Some(next),
                None => break,
            }
        }
        difference.only_new = difference.rows.saturating_sub(difference.same + difference.different);
        let mut searches = SearchesCompared::default();
        if difference.different + difference.only_old + difference.only_new > 0 {
            return Ok((difference, searches));
        }
        for vector in old.sample(SEARCHES).await? {
            let search = async |store: &QdrantStore| {
                store.search(&vector, RESULTS, -1.0, &Filter::new(vec![]), Accuracy::Exact).await
            };
            searches.made += 1;
            searches.same += u64::from(found_the_same(&search(old).await?, &search(new).await?));
        }
        Ok((difference, searches))
    }

    /// Removes the generations that the alias does not name.
    async fn remove_others(&self, kept: u32) -> Vec<String> {
        let mut removed = vec![];
        let Ok(generations) = self.generations().await else { return removed };
        let numbers = match generations.numbers().await {
            Ok(numbers) => numbers,
            Err(error) => {
                tracing::warn!("list the generations to be removed: {}", Chain(&error));
                return removed;
            }
        };
        for number in numbers.into_iter().filter(|number| *number != kept) {
            // What a person has loaded, or somebody else has made, is theirs.
            if !matches!(generations.is_generation(number).await, Ok(true)) {
                continue;
            }
            let collection = generations.generation(number).store.collection().to_owned();
            match generations.discard(number).await {
                Ok(()) => removed.push(collection),
                Err(error) => tracing::warn!("remove {collection}: {}", Chain(&error)),
            }
        }
        removed
    }
}

/// Whether two states of a row are the same to searches: by their hashes; the version is another when a row was published
/// again.
fn is_same(one: &Content, other: &Content) -> bool {
    match (&one.1, &other.1) {
        (Some(one), Some(other)) => one == other,
        _ => one == other,
    }
}

/// Whether two searches for the same have found the same. Of those that score the same as the last one any may be there.
fn found_the_same(one: &[Hit], other: &[Hit]) -> bool {
    let is_near = |one: f32, other: f32| (one - other).abs() <= ROUNDING;
    let Some(last) = one.last() else { return other.is_empty() };
    let is_cut = one.len() == RESULTS;
    let has = |hits: &[Hit], wanted: &Hit| {
        let found = hits.iter().find(|hit| hit.key == wanted.key);
        found.map_or(is_cut && is_near(wanted.score, last.score), |found| is_near(found.score, wanted.score))
    };
    one.len() == other.len() && one.iter().all(|hit| has(other, hit)) && other.iter().all(|hit| has(one, hit))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Row, RowKey, Version};

    fn hits(found: &[(u64, f32)]) -> Vec<Hit> {
        let hit = |(id, score): &(u64, f32)| Hit {
            key: RowKey::from_bytes(format!("{{\"id\":{id}}}").as_bytes()).expect("a key"),
            score: *score,
            passage: String::new(),
            payload: Row::new(),
            version: Version(*id),
        };
        found.iter().map(hit).collect()
    }

    #[track_caller]
    fn check(one: &[(u64, f32)], other: &[(u64, f32)], wanted: bool) {
        assert_eq!(found_the_same(&hits(one), &hits(other)), wanted, "{one:?} {other:?}");
        assert_eq!(found_the_same(&hits(other), &hits(one)), wanted, "{other:?} {one:?}");
    }

    #[test]
    fn searches_are_the_same_in_whatever_order_equal_scores_come() {
        check(&[], &[], true);
        check(&[(1, 0.9), (2, 0.5), (3, 0.5)], &[(1, 0.9), (3, 0.5), (2, 0.500_001)], true);
        check(&[(1, 0.9), (2, 0.5)], &[(1, 0.9), (3, 0.5)], false);
        check(&[(1, 0.9), (2, 0.5)], &[(1, 0.9), (2, 0.6)], false);
        check(&[(1, 0.9)], &[(1, 0.9), (2, 0.6)], false);
        // Of more that score the same than there is room for, any will do.
        let full = |last: u64| (0..9).map(|id| (id, 0.9)).chain([(last, 0.5)]).collect::<Vec<_>>();
        check(&full(9), &full(10), true);
        let mut other = full(9);
        other[0] = (11, 0.9);
        check(&full(9), &other, false);
    }
}
