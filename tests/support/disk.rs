//! A small disk of a test's own, in memory, to be filled. Only root can have one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

pub struct Disk {
    folder: TempDir,
}

impl Disk {
    /// None, with the reason on standard error, where this user may not mount one.
    pub fn mount(megabytes: u32) -> Option<Disk> {
        let folder = tempfile::Builder::new().prefix("vecsync-disk-").tempdir().expect("make a folder");
        let size = format!("size={megabytes}m");
        let mut mount = Command::new("mount");
        let tried = mount.args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(folder.path()).output();
        match tried {
            Ok(output) if output.status.success() => Some(Disk { folder }),
            tried => {
                eprintln!("SKIPPED: a disk that can be filled has to be mounted by root: {tried:?}");
                None
            }
        }
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Takes all but so many bytes.
    pub fn fill(&self, left: u64) {
        let stat = rustix::fs::statvfs(self.path()).expect("ask for free space");
        let free = stat.f_bavail * stat.f_frsize;
        let zeros = vec![0; usize::try_from(free.saturating_sub(left)).expect("a small disk")];
        fs::write(self.ballast(), zeros).expect("there is so much room");
    }

    /// Makes it as large as what is on it and so much more.
    pub fn resize(&self, left: u64) {
        let stat = rustix::fs::statvfs(self.path()).expect("ask for free space");
        let used = (stat.f_blocks - stat.f_bfree) * stat.f_frsize;
        let size = format!("remount,size={}", used + left);
        let resized = Command::new("mount").args(["-o", &size]).arg(self.path()).status();
        assert!(resized.expect("start mount").success(), "the disk was not resized");
    }

    /// Gives back what `fill` took.
    pub fn make_room(&self) {
        fs::remove_file(self.ballast()).expect("it was filled");
    }

    fn ballast(&self) -> PathBuf {
        self.path().join("ballast")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Whoever used it may not have ended yet.
        let _ = Command::new("umount").arg("--lazy").arg(self.path()).status();
    }
}
