//! What the mirror holds of rows, for comparing it with the table: hashes as they are stored, and keys in pages.

use super::record::{Record, Stored};
use super::{Mirror, MirrorError, read};
use crate::event::RowKey;
use crate::index::drift::Held;

impl Mirror {
    /// What it holds of each of these rows, in their order. Reads the disk: call it on a blocking thread. Damage that is
    /// found has the folder opened anew, as after a search.
    pub fn held(&self, keys: &[RowKey]) -> Result<Vec<Held>, MirrorError> {
        let inner = &*self.0;
        let held = |record: Option<Record>| match record.map(|record| record.body) {
            Some(Stored::Live(row)) => row.row_hash.try_into().map_or(Held::Torn, Held::Row),
            Some(Stored::Deleted(_)) | None => Held::Nothing,
        };
        let found = inner.with_store(|store| keys.iter().map(|key| inner.latest(store, key).map(held)).collect());
        found.inspect_err(|error: &MirrorError| {
            if error.is_fault() {
                inner.mark_faulty();
            }
        })
    }

    /// Keys of rows that searches can find, at most `max`, from the document of this number on, and the number behind
    /// them; `None`: there are no more. A row keeps its number as long as it is there.
    pub fn keys(&self, from: usize, max: usize) -> (Vec<RowKey>, Option<usize>) {
        read(&self.0.matrix).live_keys(from, max)
    }
}
