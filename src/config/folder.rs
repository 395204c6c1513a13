//! Several pipelines as one set: which files a folder has, which of them is the default, and what no two may share.
//! Reads no file's keys itself.

use std::path::{Path, PathBuf};

use super::Pipeline;
use super::pipeline::{CheckTemplates, read};
use super::problems::{Problem, Problems};

/// Where the path of a process's pipelines is from.
const SETTING: &str = "VECSYNC_PIPELINE ";

/// The pipelines of a process, in the order of their files.
#[derive(Clone, Debug, PartialEq)]
pub struct Set {
    /// Each with the file that it is from; at least one.
    pub pipelines: Vec<(PathBuf, Pipeline)>,
    /// The place of the one that is meant where none is named.
    pub default: usize,
}

/// Reads a pipeline file, or every one of a folder. What is wrong with any of them is said at once.
pub fn read_set(path: &Path, check_templates: CheckTemplates<'_>) -> Result<Set, Problems> {
    let mut problems = Problems::new();
    let mut pipelines = vec![];
    for (file, result) in read_all(&files(path, SETTING)?, check_templates) {
        pipelines.extend(problems.take(result).map(|pipeline| (file, pipeline)));
    }
    let default = pipelines.iter().position(|(_, pipeline)| pipeline.is_default).unwrap_or(0);
    problems.or(Some(Set { pipelines, default }))
}

/// Reads several files as one set. Each file's pipeline, or what is wrong with it.
pub fn read_all(files: &[PathBuf], check_templates: CheckTemplates<'_>) -> Vec<(PathBuf, Result<Pipeline, Problems>)> {
    let mut all: Vec<(PathBuf, Result<Pipeline, Problems>)> = vec![];
    for file in files {
        let pipeline = read(file, check_templates).and_then(|pipeline| {
            let mut problems = Problems::new();
            for (other_file, other) in all.iter().filter_map(|(file, other)| Some((file, other.as_ref().ok()?))) {
                shared((other_file, other), (file, &pipeline), &mut problems);
            }
            problems.or(Some(pipeline))
        });
        all.push((file.clone(), pipeline));
    }
    all
}

/// The file that a path is, or the pipeline files of the folder that it is, in the order of their names. `named` says where the path
/// is from, and comes before it in what is wrong with it.
pub fn files(path: &Path, named: &str) -> Result<Vec<PathBuf>, Problems> {
    let refused = |what: &str| Problems::from(Problem::new(format!("{named}{}", path.display()), what));
    if !path.exists() {
        return Err(refused("there is no such file or folder, or it cannot be reached"));
    }
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let unreadable =
        |error: std::io::Error| Problem::new(path.display().to_string(), format!("cannot be read: {error}"));
    let mut files = vec![];
    for entry in std::fs::read_dir(path).map_err(unreadable)? {
        let file = entry.map_err(unreadable)?.path();
        // Editors keep what they have not saved yet in hidden files.
        let is_hidden = file.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if !is_hidden && file.extension().is_some_and(|extension| extension == "toml") {
            files.push(file);
        }
    }
    files.sort();
    if files.is_empty() { Err(refused("the folder holds no pipeline file (*.toml)")) } else { Ok(files) }
}

/// What two pipelines of one process may not share.
fn shared((other_file, other): (&Path, &Pipeline), (file, pipeline): (&Path, &Pipeline), problems: &mut Problems) {
    let mut refuse = |key: &str, value: &str, what: &str| {
        let what = format!("{} {what}", other_file.display());
        problems.push(Problem::new(format!("{}: {key}", file.display()), what).showing(value));
    };
    let (ours, theirs) = (&pipeline.source, &other.source);
    if other.name == pipeline.name {
        refuse("name", &pipeline.name, "has the same name");
    }
    match (&ours.topic, &theirs.topic) {
        (None, None) if ours.slot == theirs.slot => refuse("source.slot", &ours.slot, "uses the same slot"),
        (Some(topic), Some(other)) if topic == other => refuse("source.topic", topic, "reads the same topic"),
        _ => {}
    }
    if let (Some(collection), true) = (&pipeline.collection, pipeline.collection == other.collection) {
        refuse("index.collection", collection, "uses the same collection");
    }
    if pipeline.is_default && other.is_default {
        refuse("default", "true", "is marked as the default, too");
    }
}

/// What two pipelines may not share where there is a Qdrant: a collection, also the one that both have by default.
pub(super) fn same_collection(set: &Set, by_default: &str) -> Problems {
    let mut problems = Problems::new();
    let name = |pipeline: &Pipeline| pipeline.collection.clone().unwrap_or_else(|| by_default.to_owned());
    for (place, (file, pipeline)) in set.pipelines.iter().enumerate() {
        for (other_file, other) in &set.pipelines[..place] {
            let (ours, theirs) = (name(pipeline), name(other));
            // Those that both name were found with the files.
            let is_known = pipeline.collection.is_some() && other.collection.is_some();
            let is_same = ours == theirs && !is_known;
            // `init --migrate` keeps the collection that it takes over under such a name.
            if is_same || ours == format!("{theirs}__adopted") || theirs == format!("{ours}__adopted") {
                let what = format!(
                    "{} has the collection {theirs}{}, and each pipeline needs one of its own: set index.collection",
                    other_file.display(),
                    if other.collection.is_none() { " (QDRANT_COLLECTION_NAME)" } else { "" }
                );
                let place = format!("{}: index.collection", file.display());
                problems.push(Problem::new(place, what).showing(&ours));
            }
        }
    }
    problems
}

/// The names of the pipelines at this path as far as they can be read, whatever else is wrong there: who reaches a running
/// vecsync need not have its files in order.
pub fn names(path: &Path) -> Vec<String> {
    let name = |file: &PathBuf| {
        let text = std::fs::read_to_string(file).ok()?;
        Some(text.parse::<toml::Table>().ok()?.get("name")?.as_str()?.to_owned())
    };
    files(path, SETTING).unwrap_or_default().iter().filter_map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, more: &str) -> String {
        format!("name = \"{name}\"\n{more}\n[source]\ntable = \"{name}\"\n[document]\ntext = \"x\"\npayload = []\n")
    }

    #[test]
    fn a_folder_is_all_of_its_files_in_their_order() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).expect("written");
        let read = || read_set(folder.path(), &|_| vec![]).map_err(|problems| problems.to_string());
        let found = || {
            let set = read().expect("good");
            let names: Vec<String> = set.pipelines.iter().map(|(_, pipeline)| pipeline.name.clone()).collect();
            (names.join(" "), set.default)
        };
        assert!(read().expect_err("empty").contains("holds no pipeline file"));
        write("b.toml", &file("one", ""));
        write("notes.txt", "x");
        write(".#a.toml", "x");
        assert_eq!(found(), ("one".to_owned(), 0));
        write("a.toml", &file("two", ""));
        assert_eq!(found(), ("two one".to_owned(), 0));
        write("b.toml", &file("one", "default = true"));
        assert_eq!(found(), ("two one".to_owned(), 1));
        assert_eq!(names(folder.path()), ["two", "one"]);

        write("a.toml", &file("one", "default = true"));
        write("c.toml", "nmae = 1");
        let told = read().expect_err("bad");
        for wanted in
            ["same name", "same slot", "marked as the default, too", "c.toml:1: nmae: unknown key", "c.toml: name: is"]
        {
            assert!(told.contains(wanted), "{wanted} is not in {told}");
        }
        assert_eq!(names(folder.path()), ["one", "one"]);
        assert_eq!(names(&folder.path().join("nowhere")), Vec::<String>::new());
    }

    #[test]
    fn topics_and_collections_are_each_pipelines_own() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let write = |name: &str, more: &str, index: &str| {
            let text = file(name, "").replace(&format!("table = \"{name}\""), more) + index;
            std::fs::write(folder.path().join(name).with_extension("toml"), text).expect("written");
        };
        let read = || read_set(folder.path(), &|_| vec![]);
        let topic = "topic = \"a.b.c\"";
        write("a", topic, "[index]\ncollection = \"x\"");
        write("b", topic, "[index]\ncollection = \"x\"");
        let told = read().expect_err("the same").to_string();
        assert!(told.contains("reads the same topic") && told.contains("uses the same collection"), "{told}");

        write("b", "table = \"b\"", "[index]\ncollection = \"x__adopted\"");
        write("c", "table = \"c\"", "");
        write("d", "table = \"d\"", "");
        let set = read().expect("nothing is the same in the files");
        let told = same_collection(&set, "y").to_string();
        assert_eq!(told.lines().count(), 2, "{told}");
        assert!(told.contains("b.toml: index.collection = \"x__adopted\"") && told.contains("x, and each"), "{told}");
        assert!(
            told.contains("d.toml: index.collection = \"y\"") && told.contains("(QDRANT_COLLECTION_NAME)"),
            "{told}"
        );
    }
}
