//! Takes a PostgreSQL connection string apart, in both of libpq's forms. Gives names and values no meaning. No I/O.
//!
//! The forms are those of PostgreSQL's documentation, "Connection Strings" (libpq). Stricter than libpq in one point:
//! an `@` that is not percent-encoded may stand only behind the user's name and password, so that a password with
//! `@` or `/` in it is refused instead of being taken for a host or a database, and shown as such.

/// The connection string is not of either form. Says why; never holds a piece of the string.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct Malformed(&'static str);

const FORMS: &str = "wanted postgresql://user:password@host:port/database, or host=… user=… dbname=…";
const ENCODE: &str =
    "has a character that must be percent-encoded (in user, password and database: @ is %40, / is %2F, : is %3A)";
const PERCENT: &str = "has a % that is not followed by two hexadecimal digits of UTF-8 text (% itself is %25)";

/// Parameters whose value may be shown: they say which server, which database, as whom.
const VISIBLE: &[&str] = &["host", "hostaddr", "port", "dbname", "user"];
/// And these, when the whole string has been found good: their values are words, numbers and paths then.
const VISIBLE_WHEN_GOOD: &[&str] = &[
    "sslmode",
    "sslrootcert",
    "connect_timeout",
    "application_name",
    "target_session_attrs",
    "channel_binding",
    "load_balance_hosts",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_count",
    "tcp_user_timeout",
];

/// A connection string's parameters in the order they stand.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct ConnInfo {
    pub(super) parameters: Vec<(String, String)>,
    is_uri: bool,
}

impl ConnInfo {
    /// Reads a URI, or keywords with values.
    pub(super) fn parse(text: &str) -> Result<Self, Malformed> {
        let rest = text.strip_prefix("postgresql://").or_else(|| text.strip_prefix("postgres://"));
        match rest {
            Some(rest) => Ok(ConnInfo { parameters: uri(rest)?, is_uri: true }),
            None => Ok(ConnInfo { parameters: keywords(text)?, is_uri: false }),
        }
    }

    /// The same string with secrets, and all that could be one, as `***`.
    pub(super) fn masked(&self, is_good: bool) -> String {
        let shown = |name: &str, value: &str| {
            let visible = VISIBLE.contains(&name) || (is_good && VISIBLE_WHEN_GOOD.contains(&name));
            if visible { value.to_owned() } else { "***".to_owned() }
        };
        if !self.is_uri {
            let pairs = self.parameters.iter().map(|(name, value)| format!("{name}={}", shown(name, value)));
            return pairs.collect::<Vec<_>>().join(" ");
        }
        let mut masked = "postgresql://".to_owned();
        let has = |wanted: &str| self.parameters.iter().find(|(name, _)| name == wanted).map(|(_, value)| value);
        if let Some(user) = has("user") {
            masked.push_str(user);
        }
        if has("password").is_some() {
            masked.push_str(":***");
        }
        if has("user").or(has("password")).is_some() {
            masked.push('@');
        }
        let hosts = has("host").into_iter().flat_map(|hosts| hosts.split(','));
        let mut ports = has("port").into_iter().flat_map(|ports| ports.split(','));
        for (number, host) in hosts.enumerate() {
            if number > 0 {
                masked.push(',');
            }
            masked.push_str(&if host.contains(':') { format!("[{host}]") } else { host.to_owned() });
            if let Some(port) = ports.next().filter(|port| !port.is_empty()) {
                masked.push_str(&format!(":{port}"));
            }
        }
        if let Some(database) = has("dbname") {
            masked.push_str(&format!("/{database}"));
        }
        let mut separator = '?';
        for (name, value) in &self.parameters {
            if !["user", "password", "host", "port", "dbname"].contains(&name.as_str()) {
                masked.push_str(&format!("{separator}{name}={}", shown(name, value)));
                separator = '&';
            }
        }
        masked
    }
}

/// What stands after `postgresql://`.
fn uri(rest: &str) -> Result<Vec<(String, String)>, Malformed> {
    let mut parameters = Vec::new();
    let mut add = |name: &str, value: String| parameters.push((name.to_owned(), value));
    let authority_end = rest.find('/').unwrap_or(rest.len());
    let mut rest = rest;
    if let Some(at) = rest[..authority_end].find('@') {
        let (user, password) = match rest[..at].split_once(':') {
            Some((user, password)) => (user, Some(password)),
            None => (&rest[..at], None),
        };
        if !user.is_empty() {
            add("user", decoded(user)?);
        }
        if let Some(password) = password.filter(|password| !password.is_empty()) {
            add("password", decoded(password)?);
        }
        rest = &rest[at + 1..];
    }
    if rest.contains('@') {
        return Err(Malformed(ENCODE));
    }
    let (before_query, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, database) = before_query.split_once('/').unwrap_or((before_query, ""));
    let (hosts, ports) = authority_hosts(authority)?;
    if hosts.iter().any(|host| !host.is_empty()) {
        add("host", hosts.join(","));
    }
    if ports.iter().any(|port| !port.is_empty()) {
        add("port", ports.join(","));
    }
    if database.contains('/') {
        return Err(Malformed(ENCODE));
    }
    if !database.is_empty() {
        add("dbname", decoded(database)?);
    }
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').ok_or(Malformed("has a parameter after ? without = and a value"))?;
        if value.contains('=') {
            return Err(Malformed("has a parameter after ? with a second =, which must be written %3D"));
        }
        match (parameter_name(&decoded(name)?)?, decoded(value)?) {
            // Both are how JDBC spells it; libpq takes the first as well.
            ("ssl", value) if value == "true" => add("sslmode", "require".to_owned()),
            (name, value) => add(name, value),
        }
    }
    Ok(parameters)
}

/// `host[:port][,host[:port]]…`, a host in brackets when it is an IPv6 address.
fn authority_hosts(authority: &str) -> Result<(Vec<String>, Vec<String>), Malformed> {
    let (mut hosts, mut ports) = (Vec::new(), Vec::new());
    for part in authority.split(',') {
        let (host, port) = match part.strip_prefix('[') {
            Some(inner) => {
                let (address, after) = inner.split_once(']').ok_or(Malformed("has a [ without its ]"))?;
                if address.is_empty() || !address.chars().all(|c| c.is_ascii_hexdigit() || ":.%".contains(c)) {
                    return Err(Malformed("has something other than an IPv6 address in [ ]"));
                }
                match after.strip_prefix(':') {
                    Some(port) => (address.to_owned(), port),
                    None if after.is_empty() => (address.to_owned(), ""),
                    None => return Err(Malformed("has something other than a port behind ]")),
                }
            }
            None => {
                let (host, port) = part.split_once(':').unwrap_or((part, ""));
                if !host.chars().all(|c| c.is_alphanumeric() || "-._%".contains(c)) {
                    return Err(Malformed(ENCODE));
                }
                (decoded(host)?, port)
            }
        };
        if !port.chars().all(|c| c.is_ascii_digit()) {
            return Err(Malformed("has a port that is no number; in a password, @ : and / must be percent-encoded"));
        }
        hosts.push(host);
        ports.push(port.to_owned());
    }
    Ok((hosts, ports))
}

/// `name = value` pairs; a value with spaces stands in single quotes, `\` takes the next character as it is.
fn keywords(text: &str) -> Result<Vec<(String, String)>, Malformed> {
    let mut parameters = Vec::new();
    let mut rest = text.trim_start();
    if rest.is_empty() {
        return Err(Malformed(FORMS));
    }
    while !rest.is_empty() {
        let (name, after) = rest.split_once('=').ok_or(Malformed(FORMS))?;
        // Another program's URL, mysql://…?x=y, has an = too.
        let name = parameter_name(name.trim_end())?.to_owned();
        let (value, after) = keyword_value(after.trim_start())?;
        parameters.push((name, value));
        rest = after.trim_start();
    }
    Ok(parameters)
}

/// One value and what stands behind it.
fn keyword_value(text: &str) -> Result<(String, &str), Malformed> {
    let (quoted, text) = match text.strip_prefix('\'') {
        Some(inner) => (true, inner),
        None => (false, text),
    };
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            '\'' if quoted => return Ok((value, &text[at + 1..])),
            c if c.is_whitespace() && !quoted => return Ok((value, &text[at..])),
            c => value.push(c),
        }
    }
    if quoted { Err(Malformed("has a quote that is not closed")) } else { Ok((value, "")) }
}

/// A parameter's name is shown in problems, so it must look like one.
fn parameter_name(name: &str) -> Result<&str, Malformed> {
    let fits = (1..=40).contains(&name.len()) && name.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c));
    if fits { Ok(name) } else { Err(Malformed(FORMS)) }
}

fn decoded(text: &str) -> Result<String, Malformed> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|byte| char::from(byte).to_digit(16));
        match (digit(), digit()) {
            (Some(high), Some(low)) if high + low > 0 => bytes.push((high * 16 + low) as u8),
            _ => return Err(Malformed(PERCENT)),
        }
    }
    String::from_utf8(bytes).map_err(|_| Malformed(PERCENT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read() {
        fn check(text: &str, wanted: &[(&str, &str)]) {
            let found = ConnInfo::parse(text).unwrap_or_else(|error| panic!("{text}: {error}")).parameters;
            let found: Vec<_> = found.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            assert_eq!(found, wanted, "{text}");
        }
        check("postgres://", &[]);
        check("postgresql://h", &[("host", "h")]);
        check("postgresql:///d", &[("dbname", "d")]);
        check(
            "postgresql://u%40x:p%2Fw%20:y@h:5433/d%20b?sslmode=require&application_name=a%3Db",
            &[
                ("user", "u@x"),
                ("password", "p/w :y"),
                ("host", "h"),
                ("port", "5433"),
                ("dbname", "d b"),
                ("sslmode", "require"),
                ("application_name", "a=b"),
            ],
        );
        check(
            "postgres://u@[::1]:1,h2,[fe80::1]:/?ssl=true",
            &[("user", "u"), ("host", "::1,h2,fe80::1"), ("port", "1,,"), ("sslmode", "require")],
        );
        check("postgres://%2Frun%2Fpg/d", &[("host", "/run/pg"), ("dbname", "d")]);
        check("postgres://:@h", &[("host", "h")]);
        check(
            r" host = h  password='a b\'c' user=x\ y dbname= 'd' options=''",
            &[("host", "h"), ("password", "a b'c"), ("user", "x y"), ("dbname", "d"), ("options", "")],
        );
    }

    #[test]
    fn malformed_strings_are_refused_without_a_piece_of_them() {
        for text in [
            "",
            "canary",
            "mysql://u:canary@h/db",
            "mysql://u:canary@h/db?charset=utf8",
            "postgres://u:can/ary@h/db",
            "postgres://u:12/canary@h/db",
            "postgres://u:12/canary?x=1@h/db",
            "postgres://u:can@ary@h/db",
            "postgres://u:canary@h:p/db",
            "postgres://u:canary@h/d/b",
            "postgres://u:canary%zz@h/db",
            "postgres://u:canary%00@h/db",
            "postgres://u:canary%ff@h/db",
            "postgres://u:canary@[::1/db",
            "postgres://u:canary@[h]/db",
            "postgres://u:canary@[::1]x/db",
            "postgres://u:canary@h/db?sslmode",
            "postgres://u:canary@h/db?a=b=c",
            "postgres://u:canary@h/db?=b",
            "password='canary",
            "password=canary word",
            "pass word=canary",
        ] {
            match ConnInfo::parse(text) {
                Ok(_) => panic!("accepted {text}"),
                Err(error) => assert!(!error.to_string().contains("canary"), "{error}"),
            }
        }
    }

    #[test]
    fn masked_shows_everything_but_what_could_be_secret() {
        fn check(text: &str, wanted: &str) {
            assert_eq!(ConnInfo::parse(text).expect("well-formed").masked(true), wanted);
        }
        check("postgres://u:p@h:1,[::1]/d?sslmode=require", "postgresql://u:***@h:1,[::1]/d?sslmode=require");
        check("postgres://h/d?password=p&options=-c%20a&x=y", "postgresql://:***@h/d?options=***&x=***");
        check("host=h password=p sslpassword=q", "host=h password=*** sslpassword=***");
        let bad = ConnInfo::parse("host=h sslmode=p").expect("well-formed");
        assert_eq!(bad.masked(false), "host=h sslmode=***");
    }
}
