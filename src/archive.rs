//! The files of a backup: frames with their length in front, a SHA-256 over the whole file, the disk's free space. Knows nothing
//! of what is in a frame.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::sync::watch;

/// The largest frame that is read: a row of 16 MiB of text has vectors of ten times as much.
const FRAME_BYTES_MAX: u32 = 1 << 30;
/// Bytes between two looks at the disk and at whether the work is still wanted.
const STRIDE: u64 = 1 << 20;
/// Free space that is left alone, in bytes: a backup on the disk of the data directory must not stop the log, which wants
/// 64 MiB for itself.
const FREE_BYTES_MIN: u64 = 192 << 20;
const BUFFER: usize = 256 << 10;

/// A file of a backup cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The file system failed.
    #[error("{operation} {path}", path = path.display())]
    Files {
        /// What was being done.
        operation: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The disk is too full.
    #[error("write {path}: {free} bytes are free on its disk, {wanted} are wanted; make room", path = path.display())]
    Full {
        /// The file or folder.
        path: PathBuf,
        /// Bytes that are free.
        free: u64,
        /// Bytes that have to be.
        wanted: u64,
    },
    /// It is not what was written.
    #[error("read {path}: {what}", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// Who asked is gone.
    #[error("given up: nobody waits for it any more")]
    Unwanted,
}

/// Says which operation failed on which file.
pub fn files(operation: &'static str, path: &Path) -> impl Fn(io::Error) -> ArchiveError {
    move |source| ArchiveError::Files { operation, path: path.to_owned(), source }
}

/// A file's size and hash.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileInfo {
    /// Its size.
    pub bytes: u64,
    /// Its SHA-256, in hexadecimal digits.
    pub sha256: String,
}

/// How far the work is, in bytes, and whether anybody still waits for it. Clones are the same.
#[derive(Clone)]
pub struct Pace(watch::Sender<(u64, u64)>);

impl Pace {
    /// Tells `passed` how much of how much is done; the work is wanted as long as somebody listens there.
    pub fn new(passed: watch::Sender<(u64, u64)>) -> Self {
        Pace(passed)
    }

    /// There is so much more to do.
    pub fn expect(&self, bytes: u64) {
        self.0.send_modify(|(_, total)| *total += bytes);
    }

    /// So much more is done. An error where nobody waits for the rest.
    pub fn add(&self, bytes: u64) -> Result<(), ArchiveError> {
        self.0.send_modify(|(done, total)| {
            *done += bytes;
            *total = (*total).max(*done);
        });
        if self.0.is_closed() { Err(ArchiveError::Unwanted) } else { Ok(()) }
    }
}

/// A file that is being written.
pub struct Writer {
    file: BufWriter<File>,
    path: PathBuf,
    hash: Sha256,
    bytes: u64,
    told: u64,
    pace: Pace,
}

impl Writer {
    /// Makes the file, which is not there yet.
    pub fn create(path: &Path, pace: Pace) -> Result<Writer, ArchiveError> {
        ensure_room(path.parent().unwrap_or(path), 0)?;
        let file = File::options().create_new(true).write(true).open(path).map_err(files("make", path))?;
        let file = BufWriter::with_capacity(BUFFER, file);
        Ok(Writer { file, path: path.to_owned(), hash: Sha256::new(), bytes: 0, told: 0, pace })
    }

    /// Writes bytes as they are.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), ArchiveError> {
        self.file.write_all(bytes).map_err(files("write", &self.path))?;
        self.hash.update(bytes);
        self.bytes += bytes.len() as u64;
        if self.bytes - self.told >= STRIDE {
            ensure_room(&self.path, 0)?;
            self.pace.add(self.bytes - self.told)?;
            self.told = self.bytes;
        }
        Ok(())
    }

    /// Writes a frame: its length as u32, little-endian, and its bytes.
    pub fn frame(&mut self, bytes: &[u8]) -> Result<(), ArchiveError> {
        let too_large = |_| ArchiveError::Damaged { path: self.path.clone(), what: "a frame of 4 GiB".to_owned() };
        let length = u32::try_from(bytes.len()).map_err(too_large)?;
        self.write(&length.to_le_bytes())?;
        self.write(bytes)
    }

    /// Makes the file durable.
    pub fn finish(mut self) -> Result<FileInfo, ArchiveError> {
        self.file.flush().and_then(|()| self.file.get_ref().sync_all()).map_err(files("write", &self.path))?;
        self.pace.add(self.bytes - self.told)?;
        Ok(FileInfo { bytes: self.bytes, sha256: hex(self.hash) })
    }
}

/// A file of frames that is being read.
pub struct Reader {
    file: BufReader<File>,
    path: PathBuf,
    bytes: u64,
    pace: Pace,
}

impl Reader {
    /// Opens the file.
    pub fn open(path: &Path, pace: Pace) -> Result<Reader, ArchiveError> {
        let file = File::open(path).map_err(files("open", path))?;
        Ok(Reader { file: BufReader::with_capacity(BUFFER, file), path: path.to_owned(), bytes: 0, pace })
    }

    /// The next frame.
    pub fn frame(&mut self) -> Result<Vec<u8>, ArchiveError> {
        let failed = files("read", &self.path);
        let mut length = [0; 4];
        self.file.read_exact(&mut length).map_err(&failed)?;
        let length = u32::from_le_bytes(length);
        if length > FRAME_BYTES_MAX {
            return Err(self.damaged(format!("a frame of {length} bytes")));
        }
        let mut frame = vec![0; length as usize];
        self.file.read_exact(&mut frame).map_err(&failed)?;
        self.bytes += u64::from(length) + 4;
        if self.bytes >= STRIDE {
            self.pace.add(std::mem::take(&mut self.bytes))?;
        }
        Ok(frame)
    }

    /// Says what is wrong with it.
    pub fn damaged(&self, what: impl Into<String>) -> ArchiveError {
        ArchiveError::Damaged { path: self.path.clone(), what: what.into() }
    }
}

/// Reads a whole file for its size and hash.
pub fn sum(path: &Path, pace: &Pace) -> Result<FileInfo, ArchiveError> {
    let mut file = File::open(path).map_err(files("open", path))?;
    let (mut hash, mut bytes, mut buffer) = (Sha256::new(), 0, vec![0; BUFFER]);
    loop {
        let read = file.read(&mut buffer).map_err(files("read", path))?;
        if read == 0 {
            return Ok(FileInfo { bytes, sha256: hex(hash) });
        }
        hash.update(&buffer[..read]);
        bytes += read as u64;
        pace.add(read as u64)?;
    }
}

/// Refuses where less than this would be free on the disk, beyond what is left alone.
pub fn ensure_room(path: &Path, bytes: u64) -> Result<(), ArchiveError> {
    let disk = rustix::fs::statvfs(path).map_err(|error| files("find room for", path)(error.into()))?;
    let (free, wanted) = (disk.f_bavail.saturating_mul(disk.f_frsize), bytes.saturating_add(FREE_BYTES_MIN));
    if free < wanted { Err(ArchiveError::Full { path: path.to_owned(), free, wanted }) } else { Ok(()) }
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_read_as_they_were_written_and_a_file_that_is_cut_short_is_refused() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("file");
        let (passed, told) = watch::channel((0, 0));
        let pace = Pace::new(passed);
        let mut writer = Writer::create(&path, pace.clone()).expect("made");
        for frame in [&b"one"[..], b"", &[7; 3 << 20]] {
            writer.frame(frame).expect("written");
        }
        let info = writer.finish().expect("durable");
        assert_eq!(info.bytes, 3 * 4 + 3 + (3 << 20));
        assert_eq!(sum(&path, &pace).expect("read"), info);
        assert_eq!(told.borrow().0, 2 * info.bytes);
        let mut reader = Reader::open(&path, pace.clone()).expect("opened");
        assert_eq!(reader.frame().expect("a frame"), b"one");
        assert_eq!(reader.frame().expect("a frame"), b"");
        assert_eq!(reader.frame().expect("a frame").len(), 3 << 20);
        assert!(reader.frame().is_err(), "there is no fourth one");
        File::options().write(true).open(&path).and_then(|file| file.set_len(info.bytes - 1)).expect("cut");
        assert_ne!(sum(&path, &pace).expect("read"), info);
        let mut reader = Reader::open(&path, pace.clone()).expect("opened");
        assert!(reader.frame().is_ok() && reader.frame().is_ok() && reader.frame().is_err());
        assert!(matches!(ensure_room(dir.path(), u64::MAX), Err(ArchiveError::Full { .. })));
        drop(told);
        assert!(matches!(sum(&path, &pace), Err(ArchiveError::Unwanted)));
    }
}
