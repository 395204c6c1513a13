//! What a backup says of itself: written last, read first. Compares, and restores nothing.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::archive::{ArchiveError, FileInfo, Pace, files, sum};
use crate::topic::{Offsets, Partition};

/// The manifest's own file.
pub const MANIFEST: &str = "manifest.json";
/// The file of the mirror.
pub const MIRROR: &str = "mirror.vecsync";
/// The file of the embedded log.
pub const LOG: &str = "log.vecsync";
/// The file of Qdrant's snapshot.
pub const QDRANT: &str = "qdrant.snapshot";
/// The format that this program writes and reads.
pub const FORMAT: u32 = 1;

/// What a backup has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Of the backup as a whole.
    pub format: u32,
    /// The version of the vecsync that made it.
    pub vecsync: String,
    /// When it was begun, RFC 3339.
    pub created: String,
    /// The pipeline's name.
    pub pipeline: String,
    /// The model's name.
    pub model: String,
    /// Revision of the embedding, as the configuration gives it.
    pub revision: String,
    /// Partitions of each topic.
    pub partitions: Partition,
    /// The log that positions are of.
    pub log: LogPart,
    /// The mirror.
    pub mirror: MirrorPart,
    /// Qdrant, where one is configured.
    pub qdrant: Option<QdrantPart>,
    /// The files, by their names.
    pub files: BTreeMap<String, FileInfo>,
}

/// Where the log is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogKind {
    /// On this machine; it is in the backup.
    Embedded,
    /// On brokers; it is not.
    Kafka,
}

/// The log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogPart {
    /// Where it is.
    pub kind: LogKind,
    /// What tells it from every other; with Kafka the cluster's id.
    pub id: String,
    /// The revision by which its topic of vectors is called.
    pub vectors_revision: String,
    /// What the backup has of it.
    pub held: Option<LogHeld>,
}

/// What a backup has of an embedded log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogHeld {
    /// Records of `changes`; in all three those are counted that later ones in the file replace.
    pub changes: u64,
    /// Records of `vectors`.
    pub vectors: u64,
    /// Dead letters.
    pub dead_letters: u64,
    /// The end of each partition of `changes`.
    pub changes_ends: Offsets,
    /// The end of each partition of `vectors`.
    pub vectors_ends: Offsets,
}

/// The mirror.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MirrorPart {
    /// Rows that can be found.
    pub rows: u64,
    /// Their windows.
    pub points: u64,
    /// The next offset of `vectors` to take in each partition.
    pub positions: Offsets,
}

/// Qdrant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QdrantPart {
    /// The generation's name.
    pub collection: String,
    /// Rows that can be found; `None`: some were written while the snapshot was made.
    pub rows: Option<u64>,
    /// Their windows.
    pub points: Option<u64>,
    /// The positions before the snapshot was made: it has these or later ones.
    pub positions: Offsets,
}

impl Manifest {
    /// Writes it, durably.
    pub fn write(&self, dir: &Path) -> Result<(), ArchiveError> {
        let path = dir.join(MANIFEST);
        let mut text = serde_json::to_vec_pretty(self).expect("a manifest has string keys only");
        text.push(b'\n');
        let write = || -> std::io::Result<()> {
            let mut file = File::options().create_new(true).write(true).open(&path)?;
            file.write_all(&text)?;
            file.sync_all()
        };
        write().map_err(files("write", &path))
    }

    /// Reads that of a backup, and the bytes it is.
    pub fn read(dir: &Path) -> Result<(Manifest, Vec<u8>), String> {
        let path = dir.join(MANIFEST);
        let shown = path.display();
        let text = fs::read(&path).map_err(|error| format!("read {shown}: {error}; a backup has this file"))?;
        let json: serde_json::Value =
            serde_json::from_slice(&text).map_err(|error| format!("read {shown}: {error}"))?;
        if json["format"] != FORMAT {
            return Err(format!("{shown}: format = {}, wanted {FORMAT}", json["format"]));
        }
        let manifest = serde_json::from_value(json).map_err(|error| format!("read {shown}: {error}"))?;
        Ok((manifest, text))
    }

    /// Compares a file with what is said of it here. Blocks.
    pub fn check_file(&self, dir: &Path, name: &str, pace: &Pace) -> Result<FileInfo, String> {
        let path = dir.join(name);
        let shown = path.display();
        let Some(wanted) = self.files.get(name) else { return Err(format!("{shown}: the manifest does not have it")) };
        let found = fs::metadata(&path).map_err(|error| format!("{shown}: {error}"))?.len();
        if found != wanted.bytes {
            return Err(format!("{shown}: it has {found} bytes, wanted {}", wanted.bytes));
        }
        let found = sum(&path, pace).map_err(|error| crate::retry::Chain(&error).to_string())?;
        if found != *wanted {
            return Err(format!("{shown}: it has SHA-256 {}, wanted {}", found.sha256, wanted.sha256));
        }
        Ok(found)
    }
}
