//! The mirror's generations: which folder is the current one, how another takes its place, and which one of an earlier
//! revision still answers. Reads no log.
//!
//! **Invariant:** at every moment one generation is named, in a file that is replaced in one step; one of another revision
//! that was whole stays named until the current one is whole.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::spawn_blocking;

use super::mirror::{Mirror, MirrorError, MirrorSettings};
use crate::retry::Chain;

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
    naming: Arc<Mutex<Naming>>,
}

/// What the file says, and what is open of it.
struct Naming {
    /// The one of this revision.
    ours: Named,
    /// The one of another revision that was whole and is named until ours is.
    before: Option<Named>,
    /// That one, where it can be asked.
    earlier: Option<Earlier>,
}

impl Naming {
    fn names(&self) -> Names {
        match &self.before {
            Some(before) => Names { named: before.clone(), next: Some(self.ours.clone()) },
            None => Names { named: self.ours.clone(), next: None },
        }
    }
}

/// The generation of another revision that was whole when the revision was changed.
#[derive(Clone, Debug)]
pub struct Earlier {
    /// Its revision.
    pub revision: String,
    /// Its number among that revision's generations.
    pub number: u32,
    /// The space of its vectors.
    pub space: String,
    /// The store.
    pub mirror: Mirror,
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

/// The file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Names {
    #[serde(flatten)]
    named: Named,
    /// The one that takes its place when it is whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    next: Option<Named>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Named {
    revision: String,
    generation: u32,
    /// What its vectors depend on besides the texts.
    #[serde(default)]
    space: String,
    /// Fields that searches may filter by.
    #[serde(default)]
    filters: Vec<String>,
    /// Whether it has held the whole table at some moment.
    #[serde(default)]
    whole: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lost: Option<String>,
    /// The log that it was filled from; empty: several, so nobody knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    log: Option<String>,
}

/// The current generation of a folder that is looked at and not opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its revision.
    pub revision: String,
    /// Its folder.
    pub dir: PathBuf,
    /// The log that it was filled from, where that is known and still the one.
    pub log: Option<String>,
}

/// Which generation is the current one in `<data_dir>/mirror`. Opens none.
pub fn seen(root: &Path) -> Option<Seen> {
    let Named { revision, generation, lost, log, .. } = read(root)?.named;
    let dir = root.join(format!("{revision}__{generation}"));
    Some(Seen { revision, dir, log: log.filter(|log| lost.is_none() && !log.is_empty()) })
}

impl Generations {
    /// Opens the current generation, the first one where there is none of this revision, and removes all others.
    /// `settings.dir` is the folder of all generations, `<data_dir>/mirror`; `space` is that of the vectors, see
    /// [`crate::embed::space`]. A generation of another revision that is named and was whole stays until the current one is
    /// whole; it is opened where `answers` says that queries of its space can be embedded. Blocking.
    pub fn open(
        mut settings: MirrorSettings,
        space: &str,
        answers: impl Fn(&str) -> bool,
    ) -> Result<Generations, MirrorError> {
        let root = std::mem::take(&mut settings.dir);
        let found = read(&root);
        let (ours, mut before) = match found.clone() {
            Some(Names { named, .. }) if named.revision == settings.revision => (Some(named), None),
            Some(Names { named, next }) => {
                (next.filter(|next| next.revision == settings.revision), Some(named).filter(|named| named.whole))
            }
            None => (None, None),
        };
        let mut ours = ours.unwrap_or_else(|| Named {
            revision: settings.revision.clone(),
            generation: 1,
            space: String::new(),
            filters: vec![],
            whole: false,
            lost: None,
            log: None,
        });
        (ours.space, ours.filters) = (space.to_owned(), settings.filters.clone());
        let mirror = Mirror::open(of(&root, &settings, ours.generation))?;
        if mirror.rows() == 0 && mirror.positions().iter().all(|position| *position == 0) {
            // It was put aside, or is new.
            ours.whole = false;
        }
        let earlier = match before.as_ref().filter(|before| answers(&before.space)) {
            Some(before) => open_earlier(&root, &settings, before)?,
            None => None,
        };
        if earlier.as_ref().is_some_and(|earlier| earlier.mirror.rows() == 0) {
            before = None;
        }
        let earlier = earlier.filter(|earlier| earlier.mirror.rows() > 0);
        let (number, lost) = (ours.generation, ours.lost.clone());
        let naming = Naming { ours, before, earlier };
        if found.as_ref() != Some(&naming.names()) {
            write(&root, &naming.names())?;
        }
        // What an interrupted replay has left, and revisions that nobody asks any more.
        let kept = |(_, revision, number): &(PathBuf, String, u32)| {
            let named = [Some(&naming.ours), naming.before.as_ref()];
            named.into_iter().flatten().any(|named| (&named.revision, named.generation) == (revision, *number))
        };
        for (path, ..) in folders(&root).filter(|folder| !kept(folder)) {
            remove(&path);
        }
        let (current, _) = watch::channel(Current { number, mirror, lost });
        Ok(Generations { root, settings, current, naming: Arc::new(Mutex::new(naming)) })
    }

    /// The one of an earlier revision, which answers until the current one is whole.
    pub fn earlier(&self) -> Option<Earlier> {
        self.naming().earlier.clone()
    }

    /// The revision of the one that is named until the current one is whole, whether it can be asked or not.
    pub fn earlier_revision(&self) -> Option<String> {
        self.naming().before.as_ref().map(|before| before.revision.clone())
    }

    /// Whether the current one has held the whole table at some moment, and was not emptied since.
    pub fn is_whole(&self) -> bool {
        self.naming().ours.whole
    }

    /// Notes durably that the current one has held the whole table: if the revision is changed, it answers until another is
    /// whole. Those of earlier revisions are closed and removed with that.
    pub async fn note_whole(&self) -> Result<(), MirrorError> {
        let is_noted = {
            let naming = self.naming();
            naming.ours.whole && naming.before.is_none()
        };
        if is_noted {
            return Ok(());
        }
        let generations = self.clone();
        let retiring = move || {
            let mut naming = generations.naming();
            let ours = Named { whole: true, ..naming.ours.clone() };
            write(&generations.root, &Names { named: ours.clone(), next: None })?;
            (naming.ours, naming.before) = (ours, None);
            Ok(naming.earlier.take())
        };
        if let Some(earlier) = blocking(self.root.clone(), retiring).await? {
            earlier.mirror.close().await;
        }
        let others = folders(&self.root).filter(|(_, revision, _)| *revision != self.settings.revision);
        remove_closed(others.map(|(path, ..)| path).collect()).await;
        Ok(())
    }

    /// Notes durably that the current one is filled from its beginning again.
    pub async fn note_emptied(&self) -> Result<(), MirrorError> {
        self.name(|ours| ours.whole = false).await
    }

    fn naming(&self) -> MutexGuard<'_, Naming> {
        self.naming.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what is said of the current one, durably.
    async fn name(&self, change: impl FnOnce(&mut Named) + Send + 'static) -> Result<(), MirrorError> {
        let generations = self.clone();
        let naming = move || {
            let mut naming = generations.naming();
            let before = naming.ours.clone();
            change(&mut naming.ours);
            let written = write(&generations.root, &naming.names());
            if written.is_err() {
                naming.ours = before;
            }
            written
        };
        blocking(self.root.clone(), naming).await
    }

    /// Opens the current generation as it is, for reading where no vecsync runs: nothing is made, removed or put aside. `None`:
    /// there is none. `fits` says of a revision whether it is wanted. Blocking.
    pub fn open_as_is(
        mut settings: MirrorSettings,
        fits: impl FnOnce(&str) -> bool,
    ) -> Result<Option<(Generations, String)>, MirrorError> {
        let root = std::mem::take(&mut settings.dir);
        let named = read(&root).map(|names| names.named);
        let Some(named) = named.filter(|named| fits(&named.revision)) else { return Ok(None) };
        settings.revision.clone_from(&named.revision);
        let settings_of = of(&root, &settings, named.generation);
        if !settings_of.dir.is_dir() {
            return Ok(None);
        }
        let mirror = Mirror::open_whole(settings_of)?;
        let (current, _) = watch::channel(Current { number: named.generation, mirror, lost: named.lost.clone() });
        let revision = named.revision.clone();
        let naming = Arc::new(Mutex::new(Naming { ours: named, before: None, earlier: None }));
        Ok(Some((Generations { root, settings, current, naming }, revision)))
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

    /// Notes durably which log the current generation is filled from. Where another one was noted before, nobody knows.
    pub async fn note_log(&self, log: &str) -> Result<(), MirrorError> {
        let noted = self.naming().ours.log.clone();
        let noting = match noted {
            Some(noted) if noted == log || noted.is_empty() => return Ok(()),
            Some(_) => String::new(),
            None => log.to_owned(),
        };
        self.name(|named| named.log = Some(noting)).await
    }

    /// Notes durably that the log is another one than the current generation was filled from.
    pub async fn note_lost(&self, reason: &str) -> Result<(), MirrorError> {
        let lost = Some(reason.to_owned());
        self.name(|named| named.lost = lost).await?;
        self.current.send_modify(|current| current.lost = Some(reason.to_owned()));
        Ok(())
    }

    /// Makes a generation the current one, durably, then closes and removes the one before.
    pub async fn switch(&self, to: Current) -> Result<(), MirrorError> {
        let number = to.number;
        self.name(move |named| (named.generation, named.lost, named.log) = (number, None, None)).await?;
        let old = self.current.send_replace(to);
        self.discard(old).await;
        Ok(())
    }

    /// Closes all that is open.
    pub async fn close(&self) {
        for mirror in [Some(self.current().mirror), self.earlier().map(|earlier| earlier.mirror)].into_iter().flatten()
        {
            mirror.close().await;
        }
    }

    /// Closes and removes a generation that is not the current one.
    pub async fn discard(&self, old: Current) {
        old.mirror.close().await;
        remove_closed(vec![of(&self.root, &self.settings, old.number).dir]).await;
    }
}

/// The earlier one, with the filters that it was made with. A fault that is not another process's costs its answers only: it
/// stays where it is.
fn open_earlier(root: &Path, settings: &MirrorSettings, named: &Named) -> Result<Option<Earlier>, MirrorError> {
    let (revision, filters) = (named.revision.clone(), named.filters.clone());
    let settings = MirrorSettings { revision: revision.clone(), filters, ..settings.clone() };
    match Mirror::open(of(root, &settings, named.generation)) {
        Ok(mirror) => Ok(Some(Earlier { revision, number: named.generation, space: named.space.clone(), mirror })),
        Err(error @ MirrorError::Locked { .. }) => Err(error),
        Err(error) => {
            tracing::warn!("{}: it does not answer until the one of this revision is whole", Chain(&error));
            Ok(None)
        }
    }
}

/// Folders of generations: path, revision and number of each.
fn folders(root: &Path) -> impl Iterator<Item = (PathBuf, String, u32)> + use<> {
    fs::read_dir(root).into_iter().flatten().flatten().filter_map(|entry| {
        let name = entry.file_name();
        let (revision, number) = name.to_str()?.rsplit_once("__")?;
        Some((entry.path(), revision.to_owned(), number.parse().ok()?))
    })
}

/// Removes folders of generations that are closed.
async fn remove_closed(dirs: Vec<PathBuf>) {
    let removing = move || {
        for dir in dirs {
            // sled's own threads may still be writing its last words.
            for _ in 0..REMOVE_TRIES {
                if remove(&dir) {
                    break;
                }
                std::thread::sleep(REMOVE_PAUSE);
            }
        }
    };
    if let Err(error) = spawn_blocking(removing).await {
        tracing::warn!("remove a generation of the mirror: {error}");
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
fn read(root: &Path) -> Option<Names> {
    serde_json::from_slice(&fs::read(root.join(CURRENT)).ok()?).ok()
}

/// Names a generation durably, in one step.
fn write(root: &Path, named: &Names) -> Result<(), MirrorError> {
    let text = serde_json::to_vec(named).expect("a name has string keys only");
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
        open_revision(root, "rev", true)
    }

    fn row(id: u64) -> VectorEvent {
        let key = RowKey::from_bytes(format!(r#"{{"id":{id}}}"#).as_bytes()).expect("a key");
        let windows = vec![Window::new(&[1.0; DIMENSION], String::new())];
        VectorEvent::Upsert {
            key,
            row: EmbeddedRow { version: id, payload: "{}".into(), windows, ..Default::default() },
        }
    }

    fn names(root: &Path) -> Vec<String> {
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
        assert_eq!(names(dir.path()), ["rev__2"]);
        generations.current().mirror.close().await;
        drop(generations);
        let generations = open(dir.path());
        assert_eq!((generations.current().number, generations.current().mirror.rows()), (2, 2));
        generations.current().mirror.close().await;
    }

    fn open_revision(root: &Path, revision: &str, answers: bool) -> Generations {
        let settings = MirrorSettings {
            dir: root.to_owned(),
            pipeline: "faq".into(),
            revision: revision.into(),
            partitions: 1,
            filters: vec![],
        };
        Generations::open(settings, "space", |_| answers).expect("it opens")
    }

    #[tokio::test]
    async fn one_of_an_earlier_revision_stays_until_the_new_one_is_whole() {
        let dir = tempfile::tempdir().expect("a folder");
        let first = open_revision(dir.path(), "rev", true);
        first.current().mirror.apply(vec![(0, 0, row(1))]).await.expect("applied");
        first.note_whole().await.expect("noted");
        first.close().await;
        drop(first);
        // Opened twice, as after a kill; what a third revision has left goes.
        for rows in 0..2 {
            fs::create_dir(dir.path().join("other__3")).expect("a folder");
            let second = open_revision(dir.path(), "new", true);
            let earlier = second.earlier().expect("the earlier one is there");
            assert_eq!((&*earlier.revision, earlier.number, earlier.mirror.rows()), ("rev", 1, 1));
            assert_eq!(second.current().mirror.rows(), rows, "what was filled stays");
            second.current().mirror.apply(vec![(0, rows, row(rows))]).await.expect("applied");
            assert_eq!(names(dir.path()), ["new__1", "rev__1"]);
            if rows == 1 {
                // A replay meanwhile takes its place; which one is named is not touched by it.
                let next = second.add().await.expect("another");
                second.switch(next).await.expect("switched");
                assert!(second.earlier().is_some());
                second.note_whole().await.expect("noted");
                assert!(second.earlier().is_none());
            }
            second.close().await;
        }
        assert_eq!(names(dir.path()), ["new__2"]);
        let third = open_revision(dir.path(), "rev", true);
        assert!(third.earlier().is_none(), "the one that is named is empty");
        third.close().await;
    }

    #[tokio::test]
    async fn one_that_nobody_can_ask_stays_and_one_that_was_never_whole_goes() {
        for (is_whole, answers, left) in [(true, false, &["new__1", "rev__1"][..]), (false, true, &["new__1"])] {
            let dir = tempfile::tempdir().expect("a folder");
            let first = open_revision(dir.path(), "rev", true);
            first.current().mirror.apply(vec![(0, 0, row(1))]).await.expect("applied");
            if is_whole {
                first.note_whole().await.expect("noted");
            }
            first.close().await;
            drop(first);
            let second = open_revision(dir.path(), "new", answers);
            assert!(second.earlier().is_none());
            assert_eq!(names(dir.path()), left);
            second.note_whole().await.expect("noted");
            assert_eq!(names(dir.path()), ["new__1"]);
            second.close().await;
        }
    }

    #[tokio::test]
    async fn who_goes_back_to_the_revision_before_has_what_it_had() {
        let dir = tempfile::tempdir().expect("a folder");
        let first = open_revision(dir.path(), "rev", true);
        first.current().mirror.apply(vec![(0, 0, row(1))]).await.expect("applied");
        first.note_whole().await.expect("noted");
        first.close().await;
        drop(first);
        let second = open_revision(dir.path(), "new", false);
        second.note_lost("its topic is gone").await.expect("noted");
        second.close().await;
        drop(second);
        let second = open_revision(dir.path(), "new", false);
        assert!(second.current().lost.is_some(), "what is said of the one that is filled outlives a kill");
        second.close().await;
        drop(second);
        let first = open_revision(dir.path(), "rev", true);
        assert_eq!((first.current().mirror.rows(), first.current().lost), (1, None));
        assert_eq!(names(dir.path()), ["rev__1"]);
        first.close().await;
    }

    #[tokio::test]
    async fn one_that_was_emptied_is_not_whole_any_more() {
        let dir = tempfile::tempdir().expect("a folder");
        for is_emptied in [false, true] {
            let first = open_revision(dir.path(), "rev", true);
            first.current().mirror.apply(vec![(0, 0, row(1))]).await.expect("applied");
            first.note_whole().await.expect("noted");
            if is_emptied {
                first.note_emptied().await.expect("noted");
            }
            first.close().await;
            drop(first);
            let second = open_revision(dir.path(), "new", true);
            assert_eq!(second.earlier().is_none(), is_emptied);
            second.close().await;
        }
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
        assert_eq!(names(dir.path()), ["rev__1"]);
        assert_eq!(generations.add().await.expect("empty again").mirror.rows(), 0);
    }
}
