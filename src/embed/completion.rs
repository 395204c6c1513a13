//! Completes rows whose unchanged large columns Debezium did not send. Asks others for what it cannot know; reads nothing
//! itself.
//!
//! **Invariant:** a placeholder never passes: a row is completed, or gone, or put aside.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::intake::{Event, Item};
use crate::event::{Row, RowKey, is_unavailable};
use crate::topic::Partition;

/// A row that is asked for.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Its key.
    pub key: RowKey,
    /// The partition of its record.
    pub partition: Partition,
    /// The transaction that changed it.
    pub tx_id: Option<u64>,
}

/// What is known of it.
#[derive(Clone, Debug, PartialEq)]
pub enum Found {
    /// Columns of it, perhaps not all.
    Row(Row),
    /// It is gone.
    Gone,
    /// Nothing.
    Unknown,
}

/// Answers for each row, in their order; `None` when the process ends.
pub type Lookup = Arc<dyn Fn(Vec<Wanted>) -> BoxFuture<'static, Option<Vec<Found>>> + Send + Sync>;

/// Where unchanged columns come from that neither the record nor the one before it has.
#[derive(Clone)]
pub enum Completion {
    /// The rows as they are now, read from the source.
    Source(Lookup),
    /// The rows as this process holds them. True only when all before them is committed, so batches take turns.
    Held(Lookup),
    /// Nowhere.
    None,
}

impl fmt::Debug for Completion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Completion::Source(_) => "Source",
            Completion::Held(_) => "Held",
            Completion::None => "None",
        })
    }
}

impl Completion {
    /// Fills in what is missing, as far as it is known. `None` when the process ends.
    pub(super) async fn complete(&self, items: &mut [Item]) -> Option<()> {
        let lookup = match self {
            Completion::Source(lookup) | Completion::Held(lookup) => lookup,
            Completion::None => return Some(()),
        };
        let mut open: Vec<&mut Item> = items.iter_mut().filter(|item| !item.missing.is_empty()).collect();
        let wanted: Vec<Wanted> = open.iter().filter_map(|item| wanted(item)).collect();
        if wanted.is_empty() {
            return Some(());
        }
        for (item, found) in open.iter_mut().zip(lookup(wanted).await?) {
            match found {
                Found::Row(columns) => item.fill(&columns),
                Found::Gone => item.become_gone(),
                Found::Unknown => {}
            }
        }
        Some(())
    }
}

fn wanted(item: &Item) -> Option<Wanted> {
    let Event::Row(key, _) = &item.event else { return None };
    Some(Wanted { key: key.clone(), partition: item.partition, tx_id: item.tx_id })
}

impl Item {
    /// Takes over what is missing, where these columns have it.
    pub(super) fn fill(&mut self, from: &Row) {
        let Event::Row(_, row) = &mut self.event else { return };
        self.missing.retain(|name| match from.get(name).filter(|value| !is_unavailable(value)) {
            Some(value) => {
                row.insert(name.clone(), value.clone());
                false
            }
            None => true,
        });
    }

    fn become_gone(&mut self) {
        if let Event::Row(key, _) = &self.event {
            self.event = Event::Gone(key.clone());
            self.missing.clear();
        }
    }
}

/// The columns of a row that are used and only have their placeholder.
pub(super) fn missing(row: &Row, used: &BTreeSet<String>) -> Vec<String> {
    used.iter().filter(|name| row.get(*name).is_some_and(is_unavailable)).cloned().collect()
}

/// Why a row is put aside, and what to do.
pub(super) fn told(missing: &[String]) -> String {
    format!(
        "the record lacks {}, which did not change, and nobody here knows it: set DATABASE_URL for the process that embeds, \
         or have the records complete with ALTER TABLE … REPLICA IDENTITY FULL; then change the row",
        missing.join(", ")
    )
}
