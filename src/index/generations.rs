//! The mirror's generations: which folder is the current one, and how another takes its place. Reads no log.
//!
//! **Invariant:** at every moment one generation is the current one, whole; the file that names it is replaced in one step.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::spawn_blocking;

use super::mirror::{Mirror, MirrorError, MirrorSettings};

/// The file that names the current generation.
const CURRENT: &str = "current";
/// Between two looks whether sled has let go of a folder that is to be removed, and how many there are.
const REMOVE_PAUSE: Duration = Duration::from_millis(20);
const REMOVE_TRIES: u32 = 100;

/// The generations of one data directory's mirror. Clones are the same ones.
#[derive(Clone)]
pub struct Generations {
    /// `<data_dir>/mirror`.
    root: PathBuf,
    /// For all of them, but for the folder.
    settings: MirrorSettings,
    current: watch::Sender<Current>,
}

/// A generation that is open.
#[derive(Clone, Debug)]
pub struct Current {
    /// Its number, from 1.
    pub number: u32,
    /// The store.
    pub mirror: Mirror,
    /// Why its positions mean nothing any more: the log is another one. It answers until another generation is filled.
    pub lost: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Named {
    revision: String,
    generation: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lost: Option<String>,
}

impl Generations {
    /// Opens the current generation, the first one where there is none of this revision, and removes what an interrupted
    /// replay has left of others. `settings.dir` is the folder of all generations, `<data_dir>/mirror`. Blocking.
    pub fn open(mut settings: MirrorSettings) -> Result<Generations, MirrorError> {
        let root = std::mem::take(&mut settings.dir);
        let named = read(&root).filter(|named| named.revision == settings.revision);
        let number = named.as_ref().map_or(1, |named| named.generation);
        let mirror = Mirror::open(of(&root, &settings, number))?;
        if named.is_none() {
            name(&root, &settings.revision, number, None)?;
        }
        let (current, _) = watch::channel(Current { number, mirror, lost: named.and_then(|named| named.lost) });
        let generations = Generations { root, settings, current };
        for left in generations.others(number) {
            remove(&left);
        }
        Ok(generations)
    }

    /// The current one.
    pub fn current(&self) -> Current {
        self.current.borrow().clone()
    }

    /// Opens an empty generation beside the current one.
    pub async fn add(&self) -> Result<Current, MirrorError> {
        let generations = self.clone();
        let open = move || {
            let number = generations.current().number + 1;
            let settings = of(&generations.root, &generations.settings, number);
            // What an earlier replay that failed has left.
            remove(&settings.dir);
            Mirror::open(settings).map(|mirror| Current { number, mirror, lost: None })
        };
        blocking(self.root.clone(), open).await
    }

    /// Notes durably that the log is another one than the current generation was filled from.
    pub async fn note_lost(&self, reason: &str) -> Result<(), MirrorError> {
        let (generations, lost) = (self.clone(), reason.to_owned());
        let naming =
            move || name(&generations.root, &generations.settings.revision, generations.current().number, Some(&lost));
        blocking(self.root.clone(), naming).await?;
        self.current.send_modify(|current| current.lost = Some(reason.to_owned()));
        Ok(())
    }

    /// Makes a generation the current one, durably, then closes and removes the one before.
    pub async fn switch(&self, to: Current) -> Result<(), MirrorError> {
        let (generations, number) = (self.clone(), to.number);
        let naming = move || name(&generations.root, &generations.settings.revision, number, None);
        blocking(self.root.clone(), naming).await?;
        let old = self.current.send_replace(to);
        self.discard(old).await;
        Ok(())
    }

    /// Closes and removes a generation that is not the current one.
    pub async fn discard(&self, old: Current) {
        old.mirror.close().await;
        let dir = of(&self.root, &self.settings, old.number).dir;
        let removing = move || {
            // sled's own threads may still be writing its last words.
            for _ in 0..REMOVE_TRIES {
                if remove(&dir) {
                    break;
                }
                std::thread::sleep(REMOVE_PAUSE);
            }
        };
        if let Err(error) = spawn_blocking(removing).await {
            tracing::warn!("remove a generation of the mirror: {error}");
        }
    }

    /// Folders of other generations of this revision.
    fn others(&self, number: u32) -> Vec<PathBuf> {
        let prefix = format!("{}__", self.settings.revision);
        let names = fs::read_dir(&self.root).into_iter().flatten().flatten().map(|entry| entry.file_name());
        let numbers = names.filter_map(|name| name.to_str()?.strip_prefix(&prefix)?.parse::<u32>().ok());
        numbers.filter(|other| *other != number).map(|other| of(&self.root, &self.settings, other).dir).collect()
    }
}

fn of(root: &Path, settings: &MirrorSettings, number: u32) -> MirrorSettings {
    MirrorSettings { dir: root.join(format!("{}__{number}", settings.revision)), ..settings.clone() }
}

async fn blocking<T: Send + 'static>(
    root: PathBuf,
    work: impl FnOnce() -> Result<T, MirrorError> + Send + 'static,
) -> Result<T, MirrorError> {
    spawn_blocking(work).await.unwrap_or_else(|_| Err(MirrorError::Closed { path: root.display().to_string() }))
}

/// Which generation is named; none where the file is missing or makes no sense, as it can be made anew.
fn read(root: &Path) -> Option<Named> {
    serde_json::from_slice(&fs::read(root.join(CURRENT)).ok()?).ok()
}

/// Names a generation durably, in one step.
fn name(root: &Path, revision: &str, generation: u32, lost: Option<&str>) -> Result<(), MirrorError> {
    let named = Named { revision: revision.to_owned(), generation, lost: lost.map(str::to_owned) };
    let text = serde_json::to_vec(&named).expect("a name has string keys only");
    let write = || -> io::Result<()> {
        let beside = root.join(format!("{CURRENT}.new"));
        let mut file = File::create(&beside)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&beside, root.join(CURRENT))?;
        File::open(root)?.sync_all()
    };
    let path = root.join(CURRENT).display().to_string();
    write().map_err(|source| MirrorError::Files { operation: "name the generation in", path, source })
}

/// Removes a generation's folder and what stands beside it. Says whether it is gone.
fn remove(dir: &Path) -> bool {
    let mut lock = dir.as_os_str().to_owned();
    lock.push(".lock");
    let gone = match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::debug!("remove {}: {error}", dir.display());
            false
        }
        _ => true,
    };
    if gone {
        let _ = fs::remove_file(PathBuf::from(lock));
    }
    gone
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{EmbeddedRow, RowKey, VectorEvent, Window};
    use crate::index::scan::DIMENSION;

    fn open(root: &Path) -> Generations {
        let settings = MirrorSettings {
            dir: root.to_owned(),
            pipeline: "faq".into(),
            revision: "rev".into(),
            partitions: 1,
            filters: vec![],
        };
        Generations::open(settings).expect("it opens")
    }

    fn row(id: u64) -> VectorEvent {
        let key = RowKey::from_bytes(format!(r#"{{"id":{id}}}"#).as_bytes()).expect("a key");
        let windows = vec![Window::new(&[1.0; DIMENSION], String::new())];
        VectorEvent::Upsert {
            key,
            row: EmbeddedRow { version: id, payload: "{}".into(), windows, ..Default::default() },
        }
    }

    fn folders(root: &Path) -> Vec<String> {
        let names = fs::read_dir(root).expect("a folder").flatten().filter(|entry| entry.path().is_dir());
        let mut names: Vec<_> = names.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[tokio::test]
    async fn a_switch_survives_and_leaves_nothing_behind() {
        let dir = tempfile::tempdir().expect("a folder");
        let generations = open(dir.path());
        generations.current().mirror.apply(vec![(0, 0, row(1))]).await.expect("applied");
        let next = generations.add().await.expect("a second one");
        next.mirror.apply(vec![(0, 0, row(1)), (0, 1, row(2))]).await.expect("applied");
        let difference = generations.current().mirror.compare(&next.mirror);
        assert_eq!((difference.same, difference.only_new, difference.only_old, difference.different), (1, 1, 0, 0));
        generations.switch(next).await.expect("switched");
        assert_eq!((generations.current().number, generations.current().mirror.rows()), (2, 2));
        assert_eq!(folders(dir.path()), ["rev__2"]);
        generations.current().mirror.close().await;
        drop(generations);
        let generations = open(dir.path());
        assert_eq!((generations.current().number, generations.current().mirror.rows()), (2, 2));
        generations.current().mirror.close().await;
    }

    #[tokio::test]
    async fn what_an_interrupted_replay_left_is_removed() {
        let dir = tempfile::tempdir().expect("a folder");
        let generations = open(dir.path());
        let next = generations.add().await.expect("a second one");
        next.mirror.apply(vec![(0, 0, row(7))]).await.expect("applied");
        for mirror in [next.mirror, generations.current().mirror] {
            mirror.close().await;
        }
        drop(generations);
        let generations = open(dir.path());
        assert_eq!((generations.current().number, generations.current().mirror.rows()), (1, 0));
        assert_eq!(folders(dir.path()), ["rev__1"]);
        assert_eq!(generations.add().await.expect("empty again").mirror.rows(), 0);
    }
}
