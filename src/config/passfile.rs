//! Reads libpq's password file (PostgreSQL's documentation, "The Password File"). Never shows a line of it.

use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// A larger password file is a mistake.
const PASSFILE_BYTES_MAX: u64 = 1 << 20;

/// The file's text, `None` when there is no such file, or why it is not read.
pub(super) fn read(path: &Path) -> Result<Option<String>, String> {
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("cannot be read: {error}")),
    };
    let metadata = file.metadata().map_err(|error| format!("cannot be read: {error}"))?;
    if !metadata.is_file() {
        return Ok(None);
    }
    if metadata.mode() & 0o077 != 0 {
        return Err("the password file is open to other users: chmod 600 it".to_owned());
    }
    let mut text = String::new();
    file.take(PASSFILE_BYTES_MAX).read_to_string(&mut text).map_err(|error| format!("cannot be read: {error}"))?;
    Ok(Some(text))
}

/// The password of the first line whose host, port, database and user are these, or `*`.
pub(super) fn find(text: &str, wanted: [&str; 4]) -> Option<String> {
    text.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
        let mut rest = line;
        for want in wanted {
            let (field, after) = field(rest);
            if rest[..rest.len() - after.len()] != *"*:" && field != want {
                return None;
            }
            rest = after;
        }
        let (password, _) = field(rest);
        (!password.is_empty()).then_some(password)
    })
}

/// Up to the next `:`, with `\:` and `\\` as the characters themselves.
fn field(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            ':' => return (value, &text[at + 1..]),
            c => value.push(c),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::find;

    #[test]
    fn the_first_line_that_fits_gives_the_password() {
        fn check(text: &str, wanted: Option<&str>) {
            assert_eq!(find(text, ["h:1", "5432", "d", "u"]).as_deref(), wanted, "{text:?}");
        }
        check("", None);
        check("*:*:*:*:p", Some("p"));
        check("#*:*:*:*:no\n*:*:*:v:no\nh\\:1:5432:d:u:p\\:\\\\q\n*:*:*:*:later", Some("p:\\q"));
        check("h:1:5432:d:u:p", None);
        check("\\*:*:*:*:p", None);
        check("*:*:*", None);
        check("*:*:*:*:", None);
    }
}
