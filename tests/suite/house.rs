//! Holds the house together: which room may know which, and what every file owes its reader. Reads src/ as text.

use std::fs;
use std::path::{Path, PathBuf};

/// A file is read in one sitting.
const LINES_MAX: usize = 700;

/// What everybody may use.
const COMMON: &[&str] = &["event", "retry", "metrics", "shutdown", "clock", "config", "topic", "archive", "requests"];

/// Every room and whom it may know besides itself. `None`: everybody, because it puts the rooms together.
const ROOMS: &[(&str, Option<&[&str]>)] = &[
    ("event", Some(&[])),
    ("clock", Some(&[])),
    ("metrics", Some(&[])),
    ("shutdown", Some(&[])),
    ("retry", Some(&["metrics", "shutdown"])),
    ("config", Some(&["event"])),
    ("archive", Some(&[])),
    ("requests", Some(&[])),
    ("remedy", Some(&[])),
    ("topic", Some(&["event", "config", "metrics", "shutdown", "clock", "archive"])),
    ("logging", Some(&["config", "progress_bar", "remedy"])),
    ("progress_bar", Some(&[])),
    ("control", Some(COMMON)),
    ("freshness", Some(COMMON)),
    ("client", Some(COMMON)),
    ("capture", Some(COMMON)),
    ("embed", Some(COMMON)),
    ("index", Some(COMMON)),
    ("serve", Some(&["event", "retry", "metrics", "shutdown", "clock", "config", "topic", "embed", "index"])),
    ("app", None),
    ("lib", None),
    ("main", None),
    ("cli", None),
    ("commands", None),
];

/// Crates that one file alone may use, and why.
const RESERVED: &[(&str, &str, &str)] = &[("backoff", "src/retry.rs", "it is unmaintained: one retry path, one place")];

#[test]
fn the_house_keeps_its_rules() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = sources(&root.join("src"));
    let texts: Vec<(String, String)> = files
        .iter()
        .map(|file| {
            let path = file.strip_prefix(root).unwrap().display().to_string();
            (path, fs::read_to_string(file).unwrap())
        })
        .collect();
    let tests = test_files(&texts);
    let found: Vec<String> =
        texts.iter().flat_map(|(path, text)| check_file(path, text, tests.contains(path))).collect();
    assert!(texts.len() > 10, "only {} files were found", texts.len());
    assert!(found.is_empty(), "\n{}\n", found.join("\n"));
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut files = vec![];
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.append(&mut sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// Files that are compiled for tests only: their `mod` line says so.
fn test_files(texts: &[(String, String)]) -> Vec<String> {
    let mut files = vec![];
    for (path, text) in texts {
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        for pair in lines.windows(2) {
            let module = pair[1].strip_prefix("mod ").and_then(|rest| rest.strip_suffix(';'));
            if let (true, Some(module)) = (pair[0] == "#[cfg(test)]", module) {
                let folder = path.strip_suffix("mod.rs").map_or(path.replace(".rs", "/"), str::to_owned);
                files.push(format!("{folder}{module}.rs"));
            }
        }
    }
    files
}

/// Every broken rule as `file:line: what`.
fn check_file(path: &str, text: &str, is_test: bool) -> Vec<String> {
    let mut found = vec![];
    if !text.starts_with("//! ") {
        found.push(format!("{path}:1: opens without a `//!` line that says what it does and what it does not"));
    }
    let lines = text.lines().count();
    if lines > LINES_MAX {
        found.push(format!("{path}:{lines}: more than {LINES_MAX} lines"));
    }
    let code = without_comments_and_texts(text);
    let tests_begin = if is_test { 0 } else { code.find("#[cfg(test)]\nmod ").unwrap_or(code.len()) };
    let line = |place: usize| code[..place].matches('\n').count() + 1;
    for (place, _) in code[..tests_begin].match_indices(".unwrap()") {
        found.push(format!("{path}:{}: unwrap outside of a test; an `expect` says why it holds", line(place)));
    }
    for (name, home, why) in RESERVED {
        if path != *home
            && let Some(place) = find_name(&code, name)
        {
            found.push(format!("{path}:{}: uses {name}, which only {home} may: {why}", line(place)));
        }
    }
    let modules = module_path(path);
    let room = modules.first().map_or("lib", String::as_str);
    let Some((_, allowed)) = ROOMS.iter().find(|(name, _)| *name == room) else {
        found.push(format!(
            "{path}:1: {room} is a room that tests/suite/house.rs does not know; say there whom it may know"
        ));
        return found;
    };
    let Some(allowed) = allowed else { return found };
    for (place, used) in used_rooms(&code, modules.len(), tests_begin) {
        let is_room = ROOMS.iter().any(|(name, _)| *name == used);
        if used != room && is_room && !allowed.contains(&used.as_str()) {
            found.push(format!("{path}:{}: {room} knows {used}; it may know {}", line(place), allowed.join(", ")));
        }
    }
    found
}

/// `src/capture/wire.rs` is `capture::wire`; the crate's own files are modules by their names.
fn module_path(path: &str) -> Vec<String> {
    let parts = path.trim_start_matches("src/").trim_end_matches(".rs").split('/');
    parts.filter(|part| *part != "mod").map(str::to_owned).collect()
}

/// The modules of the crate's root that are named, with the place: after `crate::`, after as many `super::` as lead
/// there, and inside of braces after either. `depth` is the file's own.
fn used_rooms(code: &str, depth: usize, tests_begin: usize) -> Vec<(usize, String)> {
    let mut used = vec![];
    for (place, _) in code.match_indices("crate::") {
        used.extend(names_after(code, place + "crate::".len()));
    }
    let mut place = 0;
    while let Some(start) = code[place..].find("super::").map(|found| place + found) {
        let mut end = start;
        while code[end..].starts_with("super::") {
            end += "super::".len();
        }
        let levels = (end - start) / "super::".len();
        // A module of tests in the file is one level deeper.
        let here = depth + usize::from(start > tests_begin && tests_begin > 0);
        if levels >= here {
            used.extend(names_after(code, end));
        }
        place = end;
    }
    used
}

/// The name that begins here, or those that begin the parts of a group.
fn names_after(code: &str, place: usize) -> Vec<(usize, String)> {
    let name = |at: usize| {
        let rest = &code[at..];
        let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        (at, rest[..end].to_owned())
    };
    if !code[place..].starts_with('{') {
        return vec![name(place)];
    }
    let (mut names, mut level, mut begins) = (vec![], 0, false);
    for (offset, character) in code[place..].char_indices() {
        match character {
            '{' => {
                level += 1;
                begins = level == 1;
            }
            '}' if level == 1 => break,
            '}' => level -= 1,
            ',' => begins = level == 1,
            c if c.is_whitespace() => {}
            _ if begins => {
                names.push(name(place + offset));
                begins = false;
            }
            _ => {}
        }
    }
    names
}

/// The place of a name that stands alone: a crate in a path or in a `use`.
fn find_name(code: &str, name: &str) -> Option<usize> {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(name).map(|(place, _)| place).find(|place| {
        let before = code[..*place].chars().next_back();
        let is_path = code[place + name.len()..].starts_with("::");
        is_path && !before.is_some_and(|c| is_part(c) || c == ':')
    })
}

/// Puts spaces where comments and the insides of strings are, so that every place and line stays.
fn without_comments_and_texts(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let (length, is_code) = if rest.starts_with("//") {
            (rest.find('\n').unwrap_or(rest.len()), false)
        } else if let Some(length) =
            raw_string(rest).filter(|_| !code.ends_with(|c: char| c.is_alphanumeric() || c == '_'))
        {
            (length, false)
        } else if first == '"' {
            (string(rest), false)
        } else if rest.starts_with("'\"'") {
            (3, false)
        } else if rest.starts_with("'\\\"'") {
            (4, false)
        } else {
            (first.len_utf8(), true)
        };
        let (part, after) = rest.split_at(length);
        if is_code {
            code.push_str(part);
        } else {
            part.bytes().for_each(|byte| code.push(if byte == b'\n' { '\n' } else { ' ' }));
        }
        rest = after;
    }
    code
}

/// The length of a string that begins here, its quotes included.
fn string(text: &str) -> usize {
    let mut escaped = false;
    for (place, character) in text.char_indices().skip(1) {
        match character {
            '"' if !escaped => return place + 1,
            '\\' => escaped = !escaped,
            _ => escaped = false,
        }
    }
    text.len()
}

/// The length of a raw string that begins here, if one does: `r"…"`, `br#"…"#`.
fn raw_string(text: &str) -> Option<usize> {
    let start = text.strip_prefix("br").or_else(|| text.strip_prefix('r'))?;
    let hashes = start.len() - start.trim_start_matches('#').len();
    let inside = start[hashes..].strip_prefix('"')?;
    let close = format!("\"{}", "#".repeat(hashes));
    let end = inside.find(&close).map_or(inside.len(), |end| end + close.len());
    Some(text.len() - inside.len() + end)
}

#[track_caller]
fn check(path: &str, body: &str, wanted: &[&str]) {
    let found = check_file(path, &format!("//! A file.\n{body}\n"), false);
    assert_eq!(found.len(), wanted.len(), "{found:#?}");
    for (found, wanted) in found.iter().zip(wanted) {
        assert!(found.contains(wanted), "wanted {wanted} in {found}");
    }
}

#[test]
fn a_room_that_knows_another_is_found_however_it_says_so() {
    check("src/capture/session.rs", "use crate::{event::Lsn, topic::{Offsets, Stored}, capture::wire};", &[]);
    check("src/capture/session.rs", "use crate::embed::Worker;", &["src/capture/session.rs:2: capture knows embed"]);
    check(
        "src/embed/worker.rs",
        "use crate::{\n    event::Lsn,\n    topic::{index::X},\n    index::{Mirror, Hit},\n};",
        &[":5: embed knows index"],
    );
    check("src/index/mod.rs", "fn f() -> super::serve::Answer {}", &["index knows serve"]);
    check("src/index/sink.rs", "use super::serve;\nuse super::super::serve::Answer;", &[":3: index knows serve"]);
    check(
        "src/index/mod.rs",
        "#[cfg(test)]\nmod tests {\n    use super::serve;\n    use super::super::serve;\n}",
        &[":5: index knows serve"],
    );
    check("src/serve/search.rs", "use crate::{embed::Embedder, index::Mirror};", &[]);
    check("src/serve/search.rs", "use crate::capture::Status;", &["serve knows capture"]);
    check("src/retry.rs", "use crate::{metrics, shutdown::Shutdown};", &[]);
    check("src/metrics.rs", "use crate::event::Lsn;", &["metrics knows event"]);
    check("src/capture/session.rs", "pub(crate) fn f(x: crate::app::AppError) {}", &["capture knows app"]);
    check("src/app.rs", "use crate::{capture, embed, index, serve};", &[]);
    check("src/cellar/mod.rs", "", &["cellar is a room"]);
    check(
        "src/capture/session.rs",
        "// crate::embed\nconst A: &str = \"crate::index \\\" \"; const B: &str = r#\"crate::serve\"#; const C: char = '\"';",
        &[],
    );
}

#[test]
fn other_broken_rules_are_found_with_their_lines() {
    check("src/event.rs", "fn f() {\n    x.unwrap();\n}", &["src/event.rs:3: unwrap"]);
    check("src/event.rs", "fn f() { x.unwrap_or(1); } // x.unwrap()", &[]);
    check("src/event.rs", "#[cfg(test)]\nmod tests { fn f() { x.unwrap(); } }", &[]);
    check("src/event.rs", "use backoff::ExponentialBackoff;", &["src/event.rs:2: uses backoff"]);
    check("src/retry.rs", "use backoff::ExponentialBackoff;", &[]);
    check("src/event.rs", &"\n".repeat(LINES_MAX), &["more than 700 lines"]);
    assert_eq!(check_file("src/event.rs", "use std::fmt;", false).len(), 1);
    let texts = [("src/topic/mod.rs".to_owned(), "#[cfg(test)]\nmod trials;".to_owned())];
    assert_eq!(test_files(&texts), ["src/topic/trials.rs"]);
    assert_eq!(check_file("src/topic/trials.rs", "//! T.\nfn f() { x.unwrap(); }", true), Vec::<String>::new());
}
