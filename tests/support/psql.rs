//! Runs a file of `sql/` without psql, which not every machine has: variables, statements and `\gexec`, and no more.

use super::postgres::{Sql, quote};

/// The text of a file of the repository, such as `sql/role.sql`.
pub fn file(path: &str) -> String {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()))
}

/// Runs a file as `psql -v ON_ERROR_STOP=1 -v name=value … -f path` does.
#[track_caller]
pub fn run(sql: &Sql, path: &str, variables: &[(&str, &str)]) {
    let mut statement = String::new();
    let text = file(path);
    for line in text.lines().filter(|line| !line.starts_with("--") && !line.is_empty()) {
        statement.push_str(line);
        statement.push('\n');
        if let Some(query) = statement.trim_end().strip_suffix("\\gexec") {
            for row in sql.query(&filled(query, variables)) {
                (0..row.len()).filter_map(|column| row.get(column)).for_each(|made| sql.execute(made));
            }
            statement.clear();
        } else if line.ends_with(';') {
            sql.execute(&filled(&statement, variables));
            statement.clear();
        }
    }
    assert_eq!(statement, "", "{path} ends within a statement");
}

/// `:'name'` as a literal, `:"name"` as a name.
fn filled(text: &str, variables: &[(&str, &str)]) -> String {
    let replaced = variables.iter().fold(text.to_owned(), |text, (name, value)| {
        let identifier = format!("\"{}\"", value.replace('"', "\"\""));
        text.replace(&format!(":'{name}'"), &quote(value)).replace(&format!(":\"{name}\""), &identifier)
    });
    assert!(!replaced.contains(":'") && !replaced.contains(":\""), "a variable has no value: {replaced}");
    replaced
}
