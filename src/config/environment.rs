//! Reads the process environment and the `.env` file beside it into one set of names. Changes neither.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::io::{self, Read};

use super::problems::{Problem, Problems};

/// The file beside where the program starts.
const DOT_ENV: &str = ".env";
/// A larger `.env` is a mistake.
const DOT_ENV_BYTES_MAX: u64 = 1 << 20;

/// Where a setting's value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The process environment.
    Environment,
    /// The `.env` file, at this line.
    DotEnv(usize),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Environment => f.write_str("environment"),
            Origin::DotEnv(line) => write!(f, "{DOT_ENV} line {line}"),
        }
    }
}

/// All names and values that settings are read from. The process environment stands before the file.
#[derive(Clone, Default)]
pub struct Environment {
    values: BTreeMap<String, (String, Origin)>,
    problems: Problems,
}

impl Environment {
    /// Reads the process environment and `.env` in the current directory.
    pub fn of_process() -> Self {
        let mut environment = Environment::default();
        for (name, value) in std::env::vars_os() {
            environment.add_os(name, value);
        }
        match read_dot_env() {
            Ok(text) => environment.add_dot_env(&text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => environment.problems.push(Problem::new(DOT_ENV, format!("cannot be read: {error}"))),
        }
        environment
    }

    /// Names and values as if they came from the process environment, and the text of a `.env` file.
    pub fn of<'a>(values: impl IntoIterator<Item = (&'a str, &'a str)>, dot_env: &str) -> Self {
        let mut environment = Environment::default();
        for (name, value) in values {
            environment.add_os(name.into(), value.into());
        }
        environment.add_dot_env(dot_env.as_bytes());
        environment
    }

    /// The value of a name; an empty one counts as not set.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(|(value, _)| value.as_str())
    }

    /// Where the value of a name comes from.
    pub fn origin(&self, name: &str) -> Option<Origin> {
        self.values.get(name).map(|(_, origin)| *origin)
    }

    /// The name with the origin of its value, for a problem.
    pub fn place(&self, name: &str) -> String {
        match self.origin(name) {
            Some(origin) => format!("{name} ({origin})"),
            None => name.to_owned(),
        }
    }

    /// Every name that has a value, in alphabetical order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.values.keys().map(String::as_str)
    }

    /// Lines and values that could not be read at all.
    pub fn problems(&self) -> Problems {
        self.problems.clone()
    }

    fn add_os(&mut self, name: OsString, value: OsString) {
        let Ok(name) = name.into_string() else { return };
        match value.into_string() {
            Ok(value) if value.is_empty() => {}
            Ok(value) => {
                self.values.insert(name, (value, Origin::Environment));
            }
            // Other programs may have what values they like.
            Err(_) if super::settings::is_ours(&name) => {
                self.problems.push(Problem::new(format!("{name} (environment)"), "is not UTF-8 text"));
            }
            Err(_) => {}
        }
    }

    fn add_dot_env(&mut self, bytes: &[u8]) {
        let bytes = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(bytes);
        if let Err(error) = std::str::from_utf8(bytes) {
            let line = 1 + bytes[..error.valid_up_to()].iter().filter(|byte| **byte == b'\n').count();
            self.problems.push(Problem::new(format!("{DOT_ENV} line {line}"), "is not UTF-8 text"));
            return;
        }
        let read = Cell::new(0);
        let mut items = dotenvy::Iter::new(LineByLine { rest: bytes, read: &read });
        let mut first_lines: BTreeMap<String, usize> = BTreeMap::new();
        loop {
            let before = read.get();
            let Some(item) = items.next() else { break };
            let line = first_line(bytes, before);
            let place = format!("{DOT_ENV} line {line}");
            match item {
                Ok((name, value)) => {
                    if let Some(first) = first_lines.insert(name.clone(), line)
                        && super::settings::is_ours(&name)
                    {
                        let what = format!("{name} is given twice, first in line {first}; keep one");
                        self.problems.push(Problem::new(place, what));
                    }
                    if !value.is_empty() {
                        self.values.entry(name).or_insert((value, Origin::DotEnv(line)));
                    }
                }
                // The error's own text holds the line, which may hold a secret.
                Err(dotenvy::Error::LineParse(..)) => {
                    let what = "is not NAME=value; a value with spaces, quotes or $ stands in single quotes";
                    self.problems.push(Problem::new(place, what));
                }
                Err(_) => {
                    self.problems.push(Problem::new(place, "cannot be read"));
                    break;
                }
            }
        }
    }
}

/// Number of the line on which the item after the line `before` begins: comments and blank lines stand in front of it.
fn first_line(bytes: &[u8], before: usize) -> usize {
    let lines = bytes.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii_start);
    let skipped = lines.skip(before).take_while(|line| line.is_empty() || line.starts_with(b"#")).count();
    before + skipped + 1
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.names()).finish()
    }
}

fn read_dot_env() -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(DOT_ENV)?.take(DOT_ENV_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > DOT_ENV_BYTES_MAX {
        return Err(io::Error::other(format!("it has more than {DOT_ENV_BYTES_MAX} bytes")));
    }
    Ok(bytes)
}

/// Gives at most one line a read and counts them: dotenvy does not say which line an item is from.
struct LineByLine<'a> {
    rest: &'a [u8],
    read: &'a Cell<usize>,
}

impl Read for LineByLine<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let line = self.rest.iter().position(|byte| *byte == b'\n').map_or(self.rest.len(), |end| end + 1);
        let count = line.min(buffer.len());
        let (given, rest) = self.rest.split_at(count);
        buffer[..count].copy_from_slice(given);
        self.rest = rest;
        if given.ends_with(b"\n") || (count > 0 && rest.is_empty()) {
            self.read.set(self.read.get() + 1);
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn environment_wins_and_empty_is_not_set() {
        let environment =
            Environment::of([("A", "1"), ("B", ""), ("C", "")], "\u{feff}# first\nA=2\nB=3\n\nexport D='x # y'\n");
        assert_eq!((environment.get("A"), environment.origin("A")), (Some("1"), Some(Origin::Environment)));
        assert_eq!((environment.get("B"), environment.origin("B")), (Some("3"), Some(Origin::DotEnv(3))));
        assert_eq!(environment.get("C"), None);
        assert_eq!((environment.get("D"), environment.origin("D")), (Some("x # y"), Some(Origin::DotEnv(5))));
        assert_eq!(environment.place("B"), "B (.env line 3)");
        assert!(environment.problems().is_empty());
    }

    #[test]
    fn malformed_lines_are_named_and_never_shown() {
        fn check(text: &str, wanted: &[&str]) {
            let problems = Environment::of([], text).problems().to_string();
            assert!(!problems.contains("canary"), "{problems}");
            let places: Vec<&str> = problems.lines().filter_map(|line| line.split_once(": ")).map(|(p, _)| p).collect();
            assert_eq!(places, wanted, "{text:?}: {problems}");
        }
        check("A=1\ncanary\nB=2\n# c\n  canary canary\n", &[".env line 2", ".env line 5"]);
        check("A=1\n\nB=canary canary", &[".env line 3"]);
        check("A=1\nB='canary\nstill\nopen", &[".env line 2"]);
        check("VECSYNC_URL=canary\nX=1\nX=2\nVECSYNC_URL=canary2\n", &[".env line 4"]);
        check("", &[]);
    }

    #[test]
    fn bytes_that_are_no_text_are_named_by_line() {
        let mut environment = Environment::default();
        environment.add_dot_env(b"A=1\nB=\xff\n");
        assert_eq!(environment.problems().to_string(), ".env line 2: is not UTF-8 text");
    }

    #[test]
    fn a_value_of_several_lines_counts_from_its_first() {
        let environment = Environment::of([], "A=1\nB=\"one\ntwo\"\n#\nC=\"x\\ny\"\n");
        assert_eq!(environment.origin("B"), Some(Origin::DotEnv(2)));
        assert_eq!(environment.origin("C"), Some(Origin::DotEnv(5)));
    }
}
