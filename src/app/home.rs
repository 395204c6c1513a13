//! Where each pipeline has its data in VECSYNC_DATA_DIR. Moves nothing: a pipeline's data stays where it was begun, so that one
//! pipeline can become several and several one.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::AppError;
use crate::config::{Config, Configs};
use crate::index::{generations, mirror};

/// Pipelines have their folders in this one, but for that whose data lies beside it.
const FOLDER: &str = "pipelines";
/// The file that names the pipeline whose data lies in VECSYNC_DATA_DIR itself.
const OWNER: &str = "pipeline";

/// Finds each pipeline its place. Makes none.
pub fn settle(configs: &mut Configs) -> Result<(), AppError> {
    let is_only = configs.pipelines.len() == 1;
    for config in &mut configs.pipelines {
        config.data_dir = of(&config.root_dir, &config.pipeline.name, is_only)?;
    }
    Ok(())
}

/// The place of one pipeline. `is_only`: no other is configured.
pub fn of(root: &Path, name: &str, is_only: bool) -> Result<PathBuf, AppError> {
    let own = root.join(FOLDER).join(name);
    let is_in_root = is_in_root(owner(root, is_only)?.as_deref(), name, own.is_dir(), is_only);
    Ok(if is_in_root { root.to_owned() } else { own })
}

/// Pipelines that have data here and that nobody configures: each may have left a slot, which keeps WAL. A folder that cannot be
/// read names none.
pub(super) fn left_behind(configs: &Configs) -> Vec<String> {
    let names = configs.names();
    let Some(root) = configs.pipelines.first().map(|config| &config.root_dir) else { return vec![] };
    let folders = fs::read_dir(root.join(FOLDER)).into_iter().flatten().flatten();
    let folders = folders.filter_map(|folder| folder.file_name().into_string().ok());
    let mut left: Vec<String> =
        folders.chain(noted(root).ok().flatten()).filter(|name| !names.contains(name)).collect();
    left.sort();
    left
}

/// What sets a pipeline's texts apart in the embedding cache, which all share: nothing for the one whose data lies in
/// VECSYNC_DATA_DIR itself, as it was when that was the only one.
pub(super) fn scope(config: &Config) -> &str {
    if config.data_dir == config.root_dir { "" } else { &config.pipeline.name }
}

/// Whether a pipeline's data is in VECSYNC_DATA_DIR itself, or is to be. `owner` is the pipeline whose data is there.
fn is_in_root(owner: Option<&str>, name: &str, has_own: bool, is_only: bool) -> bool {
    match owner {
        Some(owner) => owner == name,
        None => is_only && !has_own,
    }
}

/// Notes whose data lies in VECSYNC_DATA_DIR itself, before anything is put there.
pub(super) fn claim(config: &Config) -> io::Result<()> {
    let (path, name) = (config.root_dir.join(OWNER), &config.pipeline.name);
    if config.data_dir != config.root_dir || noted(&config.root_dir)?.as_ref() == Some(name) {
        return Ok(());
    }
    // Processes with other roles may have the same folder, and begin at the same moment.
    let beside = config.root_dir.join(format!(".{OWNER}.{}.new", std::process::id()));
    let mut file = File::create(&beside)?;
    file.write_all(format!("{name}\n").as_bytes())?;
    file.sync_all()?;
    fs::rename(&beside, &path)?;
    File::open(&config.root_dir)?.sync_all()
}

/// The pipeline whose data lies in VECSYNC_DATA_DIR itself, where any does.
fn owner(root: &Path, is_only: bool) -> Result<Option<String>, AppError> {
    let failed = |source| AppError::DataDir { path: root.join(OWNER), source };
    if let Some(name) = noted(root).map_err(failed)? {
        return Ok(Some(name));
    }
    // What an earlier version has left is the only pipeline's, as it was. Beside others it has to be told whose it is.
    let Some(seen) = generations::seen(&root.join("mirror")).filter(|seen| !is_only && seen.dir.is_dir()) else {
        return Ok(None);
    };
    mirror::reading::pipeline_of(&seen.dir)
        .map_err(|source| AppError::Owner { path: root.join(OWNER), source: Box::new(source) })
}

fn noted(root: &Path) -> io::Result<Option<String>> {
    use io::ErrorKind::{NotADirectory, NotFound, PermissionDenied};
    match fs::read_to_string(root.join(OWNER)) {
        Ok(text) => Ok(Some(text.trim().to_owned()).filter(|name| !name.is_empty())),
        // A folder that cannot be used is told of by whoever needs to use it.
        Err(error) if matches!(error.kind(), NotFound | NotADirectory | PermissionDenied) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_stays_where_it_was_begun() {
        let check = |owner, name, has_own, is_only, wanted| {
            assert_eq!(is_in_root(owner, name, has_own, is_only), wanted, "{owner:?} {name} {has_own} {is_only}");
        };
        // One pipeline has the folder to itself, also one whose folder an earlier version began.
        check(None, "a", false, true, true);
        check(Some("a"), "a", false, true, true);
        // One becomes several: its data stays, the others get folders.
        check(Some("a"), "a", false, false, true);
        check(Some("a"), "b", false, false, false);
        // Several become one, whichever.
        check(Some("a"), "b", true, true, false);
        check(None, "b", true, true, false);
        // Several from the beginning.
        check(None, "a", false, false, false);
        // Another one takes nothing over.
        check(Some("a"), "c", false, true, false);
    }

    #[test]
    fn whose_it_is_is_noted_and_read() {
        let root = tempfile::tempdir().expect("a folder");
        let place = |name, is_only| of(root.path(), name, is_only).expect("found");
        assert_eq!(place("a", true), root.path());
        assert_eq!(place("a", false), root.path().join("pipelines/a"));
        fs::write(root.path().join(OWNER), "a\n").expect("written");
        assert_eq!((place("a", false), place("b", true)), (root.path().to_owned(), root.path().join("pipelines/b")));
        assert_eq!(of(&root.path().join("none"), "a", true).expect("found"), root.path().join("none"));
    }
}
