//! What a path is that somebody wants to load into Qdrant: a mirror, a file of JSON lines, or neither. Loads nothing.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::generations;
use super::mirror::reading;

/// As much of a file as is looked at.
const HEAD_BYTES_MAX: u64 = 64 << 10;
/// Entries of a folder that are named.
const ENTRIES_SHOWN: usize = 3;

/// A local store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LocalStore {
    /// One generation of a mirror.
    Mirror {
        /// Its folder.
        dir: PathBuf,
        /// The log that it was filled from, if that is known.
        log: Option<String>,
    },
    /// A file that may be JSON lines.
    Lines,
}

/// It is no local store.
#[derive(Debug, thiserror::Error)]
#[error(
    "load {path}: it is {what}; --local-store-path takes a mirror of vecsync's (its data directory, the folder mirror in that, or \
     one generation in that) or a file of JSON lines {{\"id\", \"vector\", \"payload\"}}; `vecsync sync` with `vecsync run` fills \
     Qdrant from the table"
)]
pub struct NotLocal {
    path: PathBuf,
    what: String,
}

/// Says what is at this path. Blocking.
pub fn recognise(path: &Path) -> Result<LocalStore, NotLocal> {
    let not = |what: String| NotLocal { path: path.to_owned(), what };
    let found = fs::metadata(path).map_err(|error| {
        not(match error.kind() {
            io::ErrorKind::NotFound => "not there".to_owned(),
            _ => format!("not to be looked at ({error})"),
        })
    })?;
    if found.is_dir() {
        return folder(path).map_err(not);
    }
    if !found.is_file() {
        return Err(not("neither a file nor a folder".to_owned()));
    }
    let mut head = vec![];
    let read = File::open(path).and_then(|file| file.take(HEAD_BYTES_MAX).read_to_end(&mut head));
    read.map_err(|error| not(format!("a file that cannot be read ({error})")))?;
    match other_file(&head) {
        Some(what) => Err(not(what.to_owned())),
        None => Ok(LocalStore::Lines),
    }
}

fn folder(path: &Path) -> Result<LocalStore, String> {
    for root in [path.join("mirror"), path.to_owned()] {
        if let Some(seen) = generations::seen(&root) {
            return match reading::is_mirror(&seen.dir) {
                true => Ok(LocalStore::Mirror { dir: seen.dir, log: seen.log }),
                false => Err(format!("a folder whose current mirror {} is not there", seen.dir.display())),
            };
        }
    }
    if reading::is_mirror(path) {
        let whole = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let seen = whole.parent().and_then(generations::seen).filter(|seen| seen.dir == whole);
        return Ok(LocalStore::Mirror { dir: path.to_owned(), log: seen.and_then(|seen| seen.log) });
    }
    if path.join("log").is_dir() || path.join("mirror").is_dir() {
        return Err("a data directory without a mirror".to_owned());
    }
    let entries = fs::read_dir(path).map_err(|error| format!("a folder that cannot be read ({error})"))?;
    let mut names: Vec<String> =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    Err(match names.len() {
        0 => "an empty folder".to_owned(),
        count if count > ENTRIES_SHOWN => {
            format!("a folder with {} and {} more", names[..ENTRIES_SHOWN].join(", "), count - ENTRIES_SHOWN)
        }
        _ => format!("a folder with {}", names.join(", ")),
    })
}

/// What a file is that begins like this and is no JSON lines.
fn other_file(head: &[u8]) -> Option<&'static str> {
    const MAGIC: [(&[u8], &str); 5] = [
        (b"SQLite format 3\0", "a SQLite database"),
        (b"\x1f\x8b", "compressed by gzip: unpack it first"),
        (b"\x28\xb5\x2f\xfd", "compressed by zstd: unpack it first"),
        (b"PK\x03\x04", "a zip archive"),
        (b"PAR1", "a Parquet file"),
    ];
    if let Some((_, what)) = MAGIC.iter().find(|(magic, _)| head.starts_with(magic)) {
        return Some(what);
    }
    let text = head.trim_ascii_start();
    if head.is_empty() {
        Some("an empty file")
    } else if text.is_empty() {
        Some("a file of blank lines")
    } else if head.contains(&0) {
        Some("a binary file")
    } else if text.starts_with(b"[") {
        Some("a file with one JSON array, wanted one object a line")
    } else if !head.split(|byte| *byte == b'\n').any(|line| line.trim_ascii_start().starts_with(b"{")) {
        Some("a file without a JSON object a line")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(head: &[u8], wanted: Option<&str>) {
        assert_eq!(other_file(head), wanted, "{:?}", String::from_utf8_lossy(head));
    }

    #[test]
    fn a_file_is_known_by_how_it_begins() {
        check(b"{\"id\":1}\n", None);
        check(b"\n junk\n{\"id\":1}\n", None);
        check(b"", Some("an empty file"));
        check(b"\n \n", Some("a file of blank lines"));
        check(b"SQLite format 3\0...", Some("a SQLite database"));
        check(b"[{\"id\":1}]", Some("a file with one JSON array, wanted one object a line"));
        check(b"id,vector\n1,2\n", Some("a file without a JSON object a line"));
        check(b"\x7fELF\0", Some("a binary file"));
    }

    #[test]
    fn a_folder_says_what_it_is() {
        let dir = tempfile::tempdir().expect("a folder");
        let told = |path: &Path| recognise(path).expect_err("no store").to_string();
        assert!(told(dir.path()).contains("it is an empty folder; --local-store-path takes"));
        for name in ["a", "b", "c", "d"] {
            fs::write(dir.path().join(name), "").expect("written");
        }
        assert!(told(dir.path()).contains("a folder with a, b, c and 1 more"));
        let missing = told(&dir.path().join("nowhere"));
        assert!(missing.contains("it is not there") && missing.contains("vecsync sync"), "{missing}");
        fs::create_dir(dir.path().join("mirror")).expect("made");
        assert!(told(dir.path()).contains("a data directory without a mirror"));
    }
}
