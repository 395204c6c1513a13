//! What is wrong with settings and pipeline files: collected first, shown all at once. Holds no secret.

use std::fmt;

/// Longest piece of a value that a problem shows, in characters.
const SHOWN_CHARS_MAX: usize = 60;

/// One thing that is wrong, where it stands, and what was wanted instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    place: String,
    value: Option<String>,
    what: String,
}

impl Problem {
    /// `place` is a setting or a file with the path inside it; `what` says what was wanted.
    pub fn new(place: impl Into<String>, what: impl Into<String>) -> Self {
        Problem { place: without_userinfo(&place.into()), value: None, what: what.into() }
    }

    /// Shows the value too, shortened and without the password of a URL. Never call it with a secret.
    pub fn showing(mut self, value: &str) -> Self {
        self.value = Some(shown(value));
        self
    }

    /// Shows a piece of a file as it stands there, shortened.
    pub fn showing_source(mut self, source: &str) -> Self {
        self.value = Some(shortened(&source.replace(char::is_control, " ")));
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.place)?;
        if let Some(value) = &self.value {
            write!(f, " = {value}")?;
        }
        write!(f, ": {}", self.what)
    }
}

/// Everything that is wrong, one line each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// Nothing wrong so far.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one.
    pub fn push(&mut self, problem: Problem) {
        self.0.push(problem);
    }

    /// Takes the value, or adds what stood in its way.
    pub fn take<T>(&mut self, result: Result<T, Problems>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(problems) => {
                self.0.extend(problems.0);
                None
            }
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether all is well.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// `Ok` when all is well. `value` is there exactly when nothing stood in its way.
    pub fn or<T>(self, value: Option<T>) -> Result<T, Problems> {
        match value {
            Some(value) if self.0.is_empty() => Ok(value),
            _ => Err(self),
        }
    }
}

impl From<Problem> for Problems {
    fn from(problem: Problem) -> Self {
        Problems(vec![problem])
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, problem) in self.0.iter().enumerate() {
            if number > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// The value in quotes, control characters escaped, cut to 60 characters, a URL's password masked.
pub fn shown(value: &str) -> String {
    format!("{:?}", shortened(&without_userinfo(value)))
}

fn shortened(text: &str) -> String {
    let mut short: String = text.chars().take(SHOWN_CHARS_MAX).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

/// People put a URL into the wrong setting: what stands between `://` and the last `@` is masked.
pub fn without_userinfo(value: &str) -> String {
    match value.split_once("://") {
        Some((scheme, rest)) => match rest.rsplit_once('@') {
            Some((_, host)) => format!("{scheme}://***@{host}"),
            None => value.to_owned(),
        },
        None => value.to_owned(),
    }
}

/// The one of `known` that was probably meant: two letters differ, or at most a third of a long name's.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let mut best: Option<(usize, &str)> = None;
    for candidate in known {
        let distance = strsim::levenshtein(name, candidate);
        let near = distance <= (candidate.len() / 3).max(2) && distance * 2 <= candidate.len();
        if near && best.is_none_or(|(least, _)| distance < least) {
            best = Some((distance, candidate));
        }
    }
    best.map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_shows_place_value_and_what_was_wanted() {
        let problem = Problem::new("faq.toml:3: name", "wanted a name").showing("Ä\n");
        assert_eq!(problem.to_string(), r#"faq.toml:3: name = "Ä\n": wanted a name"#);
        assert_eq!(Problem::new("X", "is missing").to_string(), "X: is missing");
        assert_eq!(Problem::new("postgres://u:p@h/d", "?").to_string(), "postgres://***@h/d: ?");
    }

    #[test]
    fn long_values_are_cut_and_passwords_of_urls_masked() {
        let long = shown(&"ü".repeat(100));
        assert_eq!(long.chars().count(), SHOWN_CHARS_MAX + 3, "{long}");
        assert_eq!(shown("postgres://u:p@ss@host/db"), r#""postgres://***@host/db""#);
    }

    #[test]
    fn the_nearest_name_is_found_only_when_it_is_near() {
        let known = ["VECSYNC_LISTEN", "VECSYNC_LOG"];
        assert_eq!(nearest("VECSYNC_LISTN", known), Some("VECSYNC_LISTEN"));
        assert_eq!(nearest("nmae", ["source", "name"]), Some("name"));
        assert_eq!(nearest("colour", known), None);
        assert_eq!(nearest("no", ["on"]), None);
    }
}
