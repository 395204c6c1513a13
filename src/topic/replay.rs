//! What a replay reads again and where it goes: the words that commands and rooms share; and how embed finds one.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Partition, Stored};
use crate::event::REPLAY_KEY;

/// What is read again from its beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// Rows as they were captured: each is rendered and embedded again, then what comes of them
    Changes,
    /// Rows as they were embedded
    Vectors,
}

/// Where a replay goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// A new generation; compared and switched to when it is full
    New,
    /// The one that answers; rows that the log does not have stay
    Current,
}

/// Takes out of a batch, partition by partition, the first replay record that is not done yet and all behind it. Gives the
/// offsets of those records.
pub(super) fn cut<E>(
    batch: &mut Vec<Stored>,
    mut is_done: impl FnMut(Partition, u64) -> Result<bool, E>,
) -> Result<BTreeMap<Partition, u64>, E> {
    let mut found: BTreeMap<Partition, u64> = BTreeMap::new();
    for stored in batch.iter().filter(|stored| stored.record.key == REPLAY_KEY) {
        if !found.contains_key(&stored.partition) && !is_done(stored.partition, stored.offset)? {
            found.insert(stored.partition, stored.offset);
        }
    }
    batch.retain(|stored| found.get(&stored.partition).is_none_or(|replay| stored.offset < *replay));
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{ChangeEvent, Record};

    #[test]
    fn a_batch_is_cut_before_the_replay_of_each_partition() {
        let row = |partition, offset| {
            let record = Record { key: "{}".into(), value: None, headers: vec![], timestamp_ms: 0 };
            Stored { partition, offset, record }
        };
        let replay =
            |partition, offset| Stored { partition, offset, record: ChangeEvent::Replay { id: 1 }.to_record(0) };
        let mut batch = vec![row(0, 1), replay(0, 2), row(0, 3), row(1, 7), replay(1, 8), row(1, 9), replay(0, 4)];
        let found = cut(&mut batch, |partition, _| Ok::<_, ()>(partition == 1)).expect("no error");
        assert_eq!(found, BTreeMap::from([(0, 2)]));
        let left: Vec<_> = batch.iter().map(|stored| (stored.partition, stored.offset)).collect();
        assert_eq!(left, [(0, 1), (1, 7), (1, 8), (1, 9)]);
        assert_eq!(cut(&mut vec![], |_, _| Err("never asked")), Ok(BTreeMap::new()));
    }
}
