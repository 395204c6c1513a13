//! Opens a mirror's folder: checks its origin and every record, loads the vectors, or puts it aside and begins empty.

use crate::event::RowKey;
use crate::index::matrix::{Becomes, Body, Edit, Matrix};
use crate::retry::Chain;

use super::pending::{Pending, TRANSACTION_RECORDS_MAX, content, searchable};
use super::record::{Damage, FORMAT, MirrorState, Record, STATE_KEY, Stored, parse_place};
use super::store::{self, Store, guarded, shown};
use super::{MirrorError, MirrorSettings, keys_below_barriers};

/// A folder that was opened and checked, and what was in it.
pub(super) struct Loaded {
    pub(super) store: Store,
    pub(super) state: MirrorState,
    pub(super) matrix: Matrix,
}

impl Loaded {
    /// Opens the folder; one that is damaged is rebuilt.
    pub(super) fn open_or_rebuild(settings: &MirrorSettings) -> Result<Self, MirrorError> {
        match guarded("open", &settings.dir, || Self::open(settings)) {
            Err(error) if error.is_damage() => Self::rebuild(settings, &Chain(&error).to_string()),
            result => result,
        }
    }

    /// Puts the folder into quarantine and makes an empty one.
    pub(super) fn rebuild(settings: &MirrorSettings, reason: &str) -> Result<Self, MirrorError> {
        let aside = store::quarantine(&settings.dir)?;
        tracing::warn!(
            "mirror {} is put aside as {}: {reason}; it is built anew from the log",
            shown(&settings.dir),
            shown(&aside)
        );
        Self::open(settings)
    }

    /// Opens the folder and checks all of it.
    pub(super) fn open(settings: &MirrorSettings) -> Result<Self, MirrorError> {
        let store = Store::open(&settings.dir)?;
        let damaged = |damage: Damage| MirrorError::Damaged { path: shown(&settings.dir), what: damage.0 };
        let state = match store.get(STATE_KEY)? {
            Some(bytes) => MirrorState::from_bytes(&bytes).map_err(damaged)?,
            None => MirrorState::empty(&settings.pipeline, &settings.revision, settings.partitions),
        };
        check_origin(&state, settings).map_err(damaged)?;
        let mut matrix = Matrix::new(&settings.filters);
        let mut digest = 0_u64;
        store.each(|key, value| {
            if key == STATE_KEY {
                return Ok(());
            }
            let (edit, fingerprint) = load(key, value, settings).map_err(damaged)?;
            digest = digest.wrapping_add(fingerprint);
            matrix.edit(edit);
            Ok(())
        })?;
        if (matrix.records(), digest) != (state.records, state.digest) {
            return Err(damaged(Damage(format!(
                "{} records where {} were stored, or older ones",
                matrix.records(),
                state.records
            ))));
        }
        let mut loaded = Loaded { store, state, matrix };
        loaded.finish_purge()?;
        Ok(loaded)
    }

    /// A kill may have come between a barrier and the end of its purge.
    fn finish_purge(&mut self) -> Result<(), MirrorError> {
        let doomed = keys_below_barriers(&self.matrix, &self.state.barriers);
        for keys in doomed.chunks(TRANSACTION_RECORDS_MAX) {
            let mut pending = Pending::default();
            for key in keys {
                pending.forget(RowKey::clone(key));
            }
            let (batch, edits, _) = pending.into_batch(&mut self.state, &self.matrix);
            self.store.write(batch)?;
            for edit in edits {
                self.matrix.edit(edit);
            }
        }
        if doomed.is_empty() { Ok(()) } else { self.store.sync() }
    }
}

fn check_origin(state: &MirrorState, settings: &MirrorSettings) -> Result<(), Damage> {
    let partitions = usize::from(settings.partitions);
    let checks = [
        ("format", state.format == FORMAT),
        ("pipeline", state.pipeline == settings.pipeline),
        ("revision", state.revision == settings.revision),
        ("number of partitions", state.positions.len() == partitions && state.barriers.len() == partitions),
    ];
    match checks.iter().find(|(_, same)| !same) {
        Some((what, _)) => Err(Damage(format!("it was made with another {what}"))),
        None => Ok(()),
    }
}

fn load(key: &[u8], value: &[u8], settings: &MirrorSettings) -> Result<(Edit, u64), Damage> {
    let place = parse_place(key).ok_or_else(|| Damage("a key that is no record's".to_owned()))?;
    let (record, fingerprint) = Record::decode(place, value)?;
    let content = content(&record.body);
    let body = match record.body {
        Stored::Live(row) => searchable(&row, &settings.filters).map_err(Damage)?,
        Stored::Deleted(at_ms) => Body::Deleted(at_ms),
    };
    let becomes = Becomes { version: record.version, partition: record.partition, place, fingerprint, content, body };
    Ok((Edit { key: record.key, becomes: Some(becomes) }, fingerprint))
}
