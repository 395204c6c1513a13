//! What the last verify found, kept in the data directory: a restart mends no drift, so it must not end what tells of it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::LOCAL;
use super::STORE;
use crate::index::Kind;
use crate::metrics::PipelineMetrics;

const FILE: &str = "verified.json";

/// What is told of the last verify.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Kept {
    /// When the table was last compared with every store, milliseconds since the Unix epoch.
    verified_ms: Option<i64>,
    /// Rows that differ, of each store that could be asked the last time.
    drift: BTreeMap<String, BTreeMap<String, u64>>,
}

impl Kept {
    /// What is kept in a data directory; nothing where there is none.
    pub fn read(data_dir: &Path) -> io::Result<Kept> {
        match fs::read(data_dir.join(FILE)) {
            Ok(text) => Ok(serde_json::from_slice(&text)?),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Kept::default()),
            Err(error) => Err(error),
        }
    }

    /// Notes what a store differs by.
    pub fn note(&mut self, store: &str, counts: impl Iterator<Item = (Kind, u64)>) {
        let counts = counts.map(|(kind, rows)| (kind.as_label().to_owned(), rows)).collect();
        self.drift.insert(store.to_owned(), counts);
    }

    /// Notes that the table was compared with every store.
    pub fn note_whole(&mut self, at_ms: i64) {
        self.verified_ms = Some(at_ms);
    }

    /// Keeps it, in one step.
    pub fn write(&self, data_dir: &Path) -> io::Result<()> {
        // Processes with other roles may have the same folder.
        let beside = data_dir.join(format!(".{FILE}.{}.new", std::process::id()));
        let mut file = File::create(&beside)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        file.sync_all()?;
        fs::rename(&beside, data_dir.join(FILE))?;
        File::open(data_dir)?.sync_all()
    }

    /// Tells it, of the stores that there are.
    pub fn tell(&self, metrics: &PipelineMetrics, has_qdrant: bool) {
        for store in [LOCAL, STORE].into_iter().filter(|store| has_qdrant || *store == LOCAL) {
            for kind in Kind::ALL {
                if let Some(rows) = self.drift.get(store).and_then(|counts| counts.get(kind.as_label())) {
                    metrics.drift(store, kind.as_label(), *rows);
                }
            }
        }
        if let Some(at_ms) = self.verified_ms {
            metrics.verified(at_ms);
        }
    }
}
