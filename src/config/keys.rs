//! Reads the keys of the query server from their setting and their file. Never shows one.

use std::io::{self, Read};

use super::environment::Environment;
use super::problems::{Problem, Problems};
use super::{ApiKeys, Secret};

/// Comma-separated keys.
pub(super) const API_KEYS: &str = "VECSYNC_API_KEYS";
/// A file of keys, one a line or comma-separated; lines that begin with `#` are comments.
pub(super) const API_KEYS_FILE: &str = "VECSYNC_API_KEYS_FILE";

/// In front of a key that may search, and not command.
const SEARCH_ONLY: &str = "search:";
/// A shorter key can be guessed.
const KEY_CHARS_MIN: usize = 16;
/// A larger file of keys is a mistake.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// All keys of both. A setting without a single key is refused: it would leave the server open.
pub(super) fn read(environment: &Environment) -> Result<ApiKeys, Problems> {
    let mut problems = Problems::new();
    let mut keys = ApiKeys::default();
    if let Some(text) = environment.get(API_KEYS) {
        add(text, &environment.place(API_KEYS), &mut keys, &mut problems);
    }
    if let Some(path) = environment.get(API_KEYS_FILE) {
        let place = environment.place(API_KEYS_FILE);
        match read_text(path) {
            Ok(text) => {
                let lines: Vec<&str> = text.lines().filter(|line| !line.trim_start().starts_with('#')).collect();
                add(&lines.join(","), &place, &mut keys, &mut problems);
            }
            // Not shown: somebody may have put a key where its file belongs.
            Err(error) => problems.push(Problem::new(place, format!("the file cannot be read: {error}"))),
        }
    }
    for key in &keys.searching {
        if keys.commanding.contains(key) {
            // Said of no place: the two may stand in different ones.
            let what = format!("a key is there with and without {SEARCH_ONLY} in front: whoever has it could command");
            problems.push(Problem::new(API_KEYS, what));
        }
    }
    problems.or(Some(keys))
}

fn add(text: &str, place: &str, keys: &mut ApiKeys, problems: &mut Problems) {
    let given = text.split(',').map(str::trim).filter(|key| !key.is_empty());
    let mut count = 0;
    for key in given {
        count += 1;
        let (key, kind) = match key.strip_prefix(SEARCH_ONLY) {
            Some(key) => (key, &mut keys.searching),
            None => (key, &mut keys.commanding),
        };
        if key.chars().count() < KEY_CHARS_MIN {
            let what = format!("key {count} is too short: wanted at least {KEY_CHARS_MIN} characters");
            problems.push(Problem::new(place, what));
        } else if !key.chars().all(|c| c.is_ascii_graphic()) {
            // It is sent in a header.
            let what = format!("key {count} has a character other than ASCII letters, digits and signs");
            problems.push(Problem::new(place, what));
        } else {
            kind.push(Secret::new(key.to_owned()));
        }
    }
    if count == 0 {
        problems.push(Problem::new(place, "holds no key: unset it to let everyone in"));
    }
}

fn read_text(path: &str) -> io::Result<String> {
    let mut text = String::new();
    std::fs::File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::other(format!("it has more than {FILE_BYTES_MAX} bytes")));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_setting_and_file_all_apply() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let file = folder.path().join("keys");
        std::fs::write(&file, "# ours\ncccccccccccccccc\n\nsearch:dddddddddddddddd, eeeeeeeeeeeeeeee\r\n")
            .expect("written");
        let path = file.to_str().expect("UTF-8");
        let given = [(API_KEYS, "aaaaaaaaaaaaaaaa, search:bbbbbbbbbbbbbbbb,"), (API_KEYS_FILE, path)];
        let keys = read(&Environment::of(given, "")).expect("good");
        let first = |keys: &[Secret]| keys.iter().map(|key| key.expose()[..1].to_owned()).collect::<String>();
        assert_eq!((first(&keys.commanding), first(&keys.searching)), ("ace".to_owned(), "bd".to_owned()));
        assert!(keys.commanding.iter().chain(&keys.searching).all(|key| key.expose().len() == 16));
        let to = |key: Option<&Secret>| key.expect("there is one").expose().to_owned();
        assert!(to(keys.to_search()).starts_with('b') && to(keys.to_command()).starts_with('a'));
        let searching = read(&Environment::of([(API_KEYS, "search:aaaaaaaaaaaaaaaa")], "")).expect("good");
        assert!(!searching.is_empty() && searching.to_command() == searching.to_search());
    }

    #[test]
    fn bad_keys_are_counted_and_never_shown() {
        for (text, wanted) in [
            ("aaaaaaaaaaaaaaaa,canary", "key 2 is too short"),
            ("canary canary canary", "key 1 has a character"),
            ("canarycanarycanarü", "key 1 has a character"),
            ("search:canary", "key 1 is too short"),
            ("canarycanarycanary,search:canarycanarycanary", "with and without search:"),
            (" , ,", "holds no key"),
        ] {
            let problems = read(&Environment::of([(API_KEYS, text)], "")).expect_err("bad").to_string();
            assert!(problems.contains(wanted) && !problems.contains("canar"), "{problems}");
        }
        let problems = read(&Environment::of([(API_KEYS_FILE, "/canary")], "")).expect_err("bad").to_string();
        assert!(problems.contains("cannot be read") && !problems.contains("canary"), "{problems}");
    }
}
