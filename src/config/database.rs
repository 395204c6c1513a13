//! Turns `DATABASE_URL` into what a connection needs, as libpq reads it. Reads password and root files; connects to nothing.
//!
//! Order, as in libpq: the connection string, then the `PG…` variables, then defaults. No problem shows a value.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio_postgres::config::{ChannelBinding, LoadBalanceHosts, TargetSessionAttrs};

use super::conninfo::ConnInfo;
use super::environment::Environment;
use super::passfile;
use super::problems::{Problem, Problems, nearest};
use super::{Database, SslMode, SslRoot};

/// The setting that holds the connection string.
pub(super) const DATABASE_URL: &str = "DATABASE_URL";
/// Where Debian's and most other libpq look for the server's socket.
const SOCKET_DIR: &str = "/var/run/postgresql";
/// libpq's own default for the same.
const SOCKET_DIR_UPSTREAM: &str = "/tmp";
const SSL_MODES: &str = "wanted disable, prefer, require, verify-ca or verify-full";

/// Parameters that have a meaning here, and the variable that gives their default.
const PARAMETERS: &[(&str, &str)] = &[
    ("host", "PGHOST"),
    ("hostaddr", "PGHOSTADDR"),
    ("port", "PGPORT"),
    ("dbname", "PGDATABASE"),
    ("user", "PGUSER"),
    ("password", "PGPASSWORD"),
    ("passfile", "PGPASSFILE"),
    ("options", "PGOPTIONS"),
    ("application_name", "PGAPPNAME"),
    ("fallback_application_name", ""),
    ("connect_timeout", "PGCONNECT_TIMEOUT"),
    ("tcp_user_timeout", ""),
    ("keepalives", ""),
    ("keepalives_idle", ""),
    ("keepalives_interval", ""),
    ("keepalives_count", ""),
    ("sslmode", "PGSSLMODE"),
    ("sslrootcert", "PGSSLROOTCERT"),
    ("target_session_attrs", "PGTARGETSESSIONATTRS"),
    ("channel_binding", "PGCHANNELBINDING"),
    ("load_balance_hosts", "PGLOADBALANCEHOSTS"),
];

/// Parameters of libpq that vecsync does not have, their variable, and the values with which they change nothing.
const UNSUPPORTED: &[(&str, &str, &[&str])] = &[
    ("service", "PGSERVICE", &[]),
    ("servicefile", "PGSERVICEFILE", &[]),
    ("sslcert", "PGSSLCERT", &[]),
    ("sslkey", "PGSSLKEY", &[]),
    ("sslpassword", "", &[]),
    ("sslcrl", "PGSSLCRL", &[]),
    ("sslcrldir", "PGSSLCRLDIR", &[]),
    ("sslcertmode", "PGSSLCERTMODE", &["disable", "allow"]),
    ("sslnegotiation", "PGSSLNEGOTIATION", &["postgres"]),
    ("sslcompression", "PGSSLCOMPRESSION", &["0"]),
    ("sslsni", "PGSSLSNI", &["1"]),
    ("sslkeylogfile", "", &[]),
    ("ssl_min_protocol_version", "PGSSLMINPROTOCOLVERSION", &["TLSv1", "TLSv1.1", "TLSv1.2"]),
    ("ssl_max_protocol_version", "PGSSLMAXPROTOCOLVERSION", &["TLSv1.3"]),
    ("gssencmode", "PGGSSENCMODE", &["disable", "prefer"]),
    ("gssdelegation", "PGGSSDELEGATION", &["0"]),
    ("krbsrvname", "PGKRBSRVNAME", &["postgres"]),
    ("gsslib", "PGGSSLIB", &[]),
    ("requirepeer", "PGREQUIREPEER", &[]),
    ("require_auth", "PGREQUIREAUTH", &[]),
    ("client_encoding", "PGCLIENTENCODING", &["UTF8", "utf8", "UTF-8", "utf-8", "auto"]),
    ("replication", "", &["false", "off", "no", "0"]),
    ("min_protocol_version", "PGMINPROTOCOLVERSION", &["3.0"]),
    ("max_protocol_version", "PGMAXPROTOCOLVERSION", &["3.0", "3.2", "latest"]),
    ("scram_client_key", "", &[]),
    ("scram_server_key", "", &[]),
];

/// Reads the setting. `None`: it is not set.
pub(super) fn read(environment: &Environment) -> Result<Option<Database>, Problems> {
    let Some(text) = environment.get(DATABASE_URL) else { return Ok(None) };
    let info = match ConnInfo::parse(text) {
        Ok(info) => info,
        Err(malformed) => {
            return Err(Problem::new(environment.place(DATABASE_URL), malformed.to_string()).into());
        }
    };
    let mut reader = Reader { given: Vec::new(), problems: Problems::new(), environment };
    reader.gather(info);
    let database = reader.database();
    reader.problems.or(Some(database)).map(Some)
}

/// The setting as it may be shown; `is_good` says whether [`read`] found nothing wrong with it.
pub(super) fn masked(text: &str, is_good: bool) -> String {
    ConnInfo::parse(text).map_or_else(|_| "***".to_owned(), |info| info.masked(is_good))
}

struct Given {
    name: &'static str,
    value: String,
    place: String,
}

struct Reader<'a> {
    given: Vec<Given>,
    problems: Problems,
    environment: &'a Environment,
}

impl Reader<'_> {
    /// Keeps the parameters that have a meaning, the string's in front of the variables'; names all others.
    fn gather(&mut self, info: ConnInfo) {
        let url = self.environment.place(DATABASE_URL);
        // Of a parameter that stands twice libpq takes the last.
        for (name, value) in info.parameters.into_iter().rev() {
            let place = format!("{url} {name}");
            if let Some((known, _)) = PARAMETERS.iter().find(|(known, _)| *known == name) {
                self.given.push(Given { name: known, value, place });
            } else if let Some((_, _, harmless)) = UNSUPPORTED.iter().find(|(known, ..)| *known == name) {
                self.refuse_unless(harmless, &value, place);
            } else {
                let near = nearest(&name, PARAMETERS.iter().map(|(known, _)| *known));
                let hint = near.map_or(String::new(), |near| format!("; did you mean {near}?"));
                self.problems.push(Problem::new(place, format!("is no connection parameter of PostgreSQL{hint}")));
            }
        }
        for (name, variable) in PARAMETERS {
            if let Some(value) = self.environment.get(variable) {
                let place = self.environment.place(variable);
                self.given.push(Given { name, value: value.to_owned(), place });
            }
        }
        for (_, variable, harmless) in UNSUPPORTED {
            if let Some(value) = self.environment.get(variable) {
                self.refuse_unless(harmless, value, self.environment.place(variable));
            }
        }
    }

    fn refuse_unless(&mut self, harmless: &[&str], value: &str, place: String) {
        if !value.is_empty() && !harmless.contains(&value) {
            let what = match harmless {
                [] => "is not supported: leave it out".to_owned(),
                some => format!("is not supported with this value: leave it out (or {})", some.join(", ")),
            };
            self.problems.push(Problem::new(place, what));
        }
    }

    fn database(&mut self) -> Database {
        let mut postgres = tokio_postgres::Config::new();
        let (hosts, ports) = self.servers(&mut postgres);
        let user = self.text("user").or_else(system_user).unwrap_or_else(|| {
            self.problem("user", "is missing, and the system has no name for the user that runs vecsync");
            String::new()
        });
        let database = self.text("dbname").unwrap_or_else(|| user.clone());
        if let Some(password) = self.text("password") {
            postgres.password(password);
        } else if let Some(password) = self.password_of_file(&hosts, &ports, &database, &user) {
            postgres.password(password);
        }
        postgres.user(user).dbname(database);
        let name = self.text("application_name").or_else(|| self.text("fallback_application_name"));
        postgres.application_name(name.as_deref().unwrap_or("vecsync"));
        if let Some(options) = self.text("options") {
            postgres.options(options);
        }
        self.times(&mut postgres);
        self.choices(&mut postgres);
        let (ssl_mode, ssl_root) = self.tls();
        postgres.ssl_mode(match ssl_mode {
            SslMode::Disable => tokio_postgres::config::SslMode::Disable,
            SslMode::Prefer => tokio_postgres::config::SslMode::Prefer,
            SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => tokio_postgres::config::SslMode::Require,
        });
        Database { postgres, ssl_mode, ssl_root }
    }

    /// Hosts, addresses and ports: as many of each as there are servers.
    fn servers(&mut self, postgres: &mut tokio_postgres::Config) -> (Vec<String>, Vec<u16>) {
        let list = |text: Option<String>| -> Vec<String> {
            text.map_or_else(Vec::new, |text| text.split(',').map(str::to_owned).collect())
        };
        let mut hosts = list(self.text("host"));
        let addresses = list(self.text("hostaddr"));
        if hosts.is_empty() && addresses.is_empty() {
            hosts.push(String::new());
        }
        for host in &mut hosts {
            if host.is_empty() {
                let dir = if Path::new(SOCKET_DIR).is_dir() { SOCKET_DIR } else { SOCKET_DIR_UPSTREAM };
                *host = dir.to_owned();
            }
            postgres.host(host.as_str());
        }
        for address in &addresses {
            match address.parse::<IpAddr>() {
                Ok(address) => {
                    postgres.hostaddr(address);
                }
                Err(_) => self.problem("hostaddr", "wanted IP addresses, separated by commas"),
            }
        }
        if !hosts.is_empty() && !addresses.is_empty() && hosts.len() != addresses.len() {
            self.problem("hostaddr", "wanted as many addresses as there are hosts");
        }
        let servers = hosts.len().max(addresses.len());
        let mut ports = Vec::new();
        for port in list(self.text("port")) {
            match if port.is_empty() { Ok(5432) } else { port.parse() } {
                Ok(0) | Err(_) => self.problem("port", "wanted a number from 1 to 65535"),
                Ok(port) => ports.push(port),
            }
        }
        if ports.len() > 1 && ports.len() != servers {
            self.problem("port", "wanted one port, or as many as there are hosts");
        }
        for port in &ports {
            postgres.port(*port);
        }
        let ports = (0..servers).map(|n| *ports.get(n).or(ports.first()).unwrap_or(&5432)).collect();
        (if hosts.is_empty() { addresses } else { hosts }, ports)
    }

    /// The password file's password; servers with different ones cannot be told apart by one connection's settings.
    fn password_of_file(&mut self, hosts: &[String], ports: &[u16], database: &str, user: &str) -> Option<String> {
        let named = self.text("passfile").map(PathBuf::from);
        let path = named.clone().or_else(|| Some(self.home()?.join(".pgpass")))?;
        let text = match passfile::read(&path) {
            Ok(text) => text?,
            Err(reason) => {
                let place = if named.is_some() { self.place("passfile") } else { "~/.pgpass".to_owned() };
                self.problems.push(Problem::new(place, reason));
                return None;
            }
        };
        let servers = hosts.iter().zip(ports);
        let mut passwords: Vec<Option<String>> = servers
            .map(|(host, port)| {
                // libpq looks the socket in its default folder up as localhost.
                let host = if host == SOCKET_DIR || host == SOCKET_DIR_UPSTREAM { "localhost" } else { host };
                passfile::find(&text, [host, &port.to_string(), database, user])
            })
            .collect();
        passwords.dedup();
        if passwords.len() > 1 {
            self.problem("host", "the password file has different passwords for these hosts: one password is needed");
        }
        passwords.into_iter().next().flatten()
    }

    fn times(&mut self, postgres: &mut tokio_postgres::Config) {
        // Zero and below mean the system's own default, in libpq and here.
        if let Some(seconds) = self.positive("connect_timeout") {
            postgres.connect_timeout(Duration::from_secs(seconds));
        }
        if let Some(milliseconds) = self.positive("tcp_user_timeout") {
            postgres.tcp_user_timeout(Duration::from_millis(milliseconds));
        }
        if let Some(on) = self.number("keepalives") {
            postgres.keepalives(on != 0);
        }
        if let Some(seconds) = self.positive("keepalives_idle") {
            postgres.keepalives_idle(Duration::from_secs(seconds));
        }
        if let Some(seconds) = self.positive("keepalives_interval") {
            postgres.keepalives_interval(Duration::from_secs(seconds));
        }
        if let Some(count) = self.positive("keepalives_count") {
            postgres.keepalives_retries(u32::try_from(count).unwrap_or(u32::MAX));
        }
    }

    fn choices(&mut self, postgres: &mut tokio_postgres::Config) {
        use {ChannelBinding as Binding, LoadBalanceHosts as Balance, TargetSessionAttrs as Session};
        let session = [("any", Session::Any), ("read-write", Session::ReadWrite), ("read-only", Session::ReadOnly)];
        if let Some(attributes) = self.one_of("target_session_attrs", session) {
            postgres.target_session_attrs(attributes);
        }
        let binding = [("disable", Binding::Disable), ("prefer", Binding::Prefer), ("require", Binding::Require)];
        if let Some(binding) = self.one_of("channel_binding", binding) {
            postgres.channel_binding(binding);
        }
        if let Some(balance) =
            self.one_of("load_balance_hosts", [("disable", Balance::Disable), ("random", Balance::Random)])
        {
            postgres.load_balance_hosts(balance);
        }
    }

    fn tls(&mut self) -> (SslMode, SslRoot) {
        let mode = match self.text("sslmode").as_deref() {
            None => None,
            Some("disable") => Some(SslMode::Disable),
            Some("prefer") => Some(SslMode::Prefer),
            Some("require") => Some(SslMode::Require),
            Some("verify-ca") => Some(SslMode::VerifyCa),
            Some("verify-full") => Some(SslMode::VerifyFull),
            Some("allow") => {
                self.problem("sslmode", &format!("allow is not supported: {SSL_MODES}"));
                None
            }
            Some(_) => {
                self.problem("sslmode", SSL_MODES);
                None
            }
        };
        let mut root = SslRoot::None;
        match self.text("sslrootcert").as_deref() {
            Some("system") => {
                // The system's roots sign anybody's certificate: without the host's name they prove nothing.
                if mode.is_some_and(|mode| mode != SslMode::VerifyFull) {
                    self.problem("sslrootcert", "system needs sslmode=verify-full");
                }
                return (SslMode::VerifyFull, SslRoot::System);
            }
            Some(file) if Path::new(file).is_file() => root = SslRoot::File(file.into()),
            Some(_) => self.problem("sslrootcert", "there is no such file; wanted a PEM file, or system"),
            None => {
                let default = self.home().map(|home| home.join(".postgresql/root.crt"));
                if let Some(file) = default.filter(|file| file.is_file()) {
                    root = SslRoot::File(file);
                }
                if matches!(mode, Some(SslMode::VerifyCa | SslMode::VerifyFull)) && root == SslRoot::None {
                    self.problem(
                        "sslmode",
                        "verify-ca and verify-full need sslrootcert=FILE, sslrootcert=system or ~/.postgresql/root.crt",
                    );
                }
            }
        }
        if mode == Some(SslMode::VerifyFull) && self.text("host").is_none() && self.text("hostaddr").is_some() {
            self.problem("sslmode", "verify-full needs host: the name that the certificate must have");
        }
        (mode.unwrap_or(SslMode::Prefer), root)
    }

    /// An empty value counts as not given, as in libpq.
    fn text(&self, name: &str) -> Option<String> {
        self.given.iter().find(|given| given.name == name && !given.value.is_empty()).map(|given| given.value.clone())
    }

    fn number(&mut self, name: &'static str) -> Option<i64> {
        let text = self.text(name)?;
        let number = text.trim().parse().ok();
        if number.is_none() {
            self.problem(name, "wanted a whole number");
        }
        number
    }

    fn positive(&mut self, name: &'static str) -> Option<u64> {
        self.number(name).and_then(|number| u64::try_from(number).ok()).filter(|number| *number > 0)
    }

    fn one_of<T, const N: usize>(&mut self, name: &'static str, choices: [(&str, T); N]) -> Option<T> {
        let text = self.text(name)?;
        let wanted = choices.iter().map(|(choice, _)| *choice).collect::<Vec<_>>().join(", ");
        let chosen = choices.into_iter().find(|(choice, _)| *choice == text);
        if chosen.is_none() {
            self.problem(name, &format!("wanted one of {wanted}"));
        }
        chosen.map(|(_, choice)| choice)
    }

    fn problem(&mut self, name: &str, what: &str) {
        self.problems.push(Problem::new(self.place(name), what));
    }

    /// Where the parameter's value stands, or would stand.
    fn place(&self, name: &str) -> String {
        match self.given.iter().find(|given| given.name == name && !given.value.is_empty()) {
            Some(given) => given.place.clone(),
            None => format!("{} {name}", self.environment.place(DATABASE_URL)),
        }
    }

    fn home(&self) -> Option<PathBuf> {
        self.environment.get("HOME").map(PathBuf::from)
    }
}

/// The name of the user that this process runs as: libpq's default for the database's user.
fn system_user() -> Option<String> {
    use std::os::unix::fs::MetadataExt;
    let uid = std::fs::metadata("/proc/self").ok()?.uid().to_string();
    let users = std::fs::read_to_string("/etc/passwd").ok()?;
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == uid).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use tokio_postgres::config::Host;

    use super::*;

    fn parse(url: &str, variables: &[(&str, &str)]) -> Result<Database, String> {
        let values = [(DATABASE_URL, url)].into_iter().chain(variables.iter().copied());
        match read(&Environment::of(values, "")) {
            Ok(database) => Ok(database.expect("the setting is set")),
            Err(problems) => Err(problems.to_string()),
        }
    }

    #[test]
    fn string_stands_before_variables_and_variables_before_defaults() {
        let database =
            parse("postgres://u:p@h:5433/d", &[("PGUSER", "other"), ("PGAPPNAME", "app"), ("PGSSLMODE", "require")])
                .expect("valid");
        let postgres = &database.postgres;
        assert_eq!((postgres.get_user(), postgres.get_dbname()), (Some("u"), Some("d")));
        assert_eq!(postgres.get_password(), Some(&b"p"[..]));
        assert_eq!((postgres.get_hosts(), postgres.get_ports()), (&[Host::Tcp("h".into())][..], &[5433][..]));
        assert_eq!(postgres.get_application_name(), Some("app"));
        assert_eq!((database.ssl_mode, database.ssl_root), (SslMode::Require, SslRoot::None));
    }

    #[test]
    fn of_a_parameter_that_stands_twice_the_last_counts() {
        let database = parse("host=h user=u dbname=first dbname=last", &[]).expect("valid");
        assert_eq!(database.postgres.get_dbname(), Some("last"));
    }

    #[test]
    fn what_is_not_given_has_libpqs_default() {
        let database = parse("user=me", &[]).expect("valid");
        let postgres = &database.postgres;
        assert_eq!((postgres.get_dbname(), postgres.get_application_name()), (Some("me"), Some("vecsync")));
        assert!(matches!(postgres.get_hosts(), [Host::Unix(_)]), "{postgres:?}");
        assert_eq!((database.ssl_mode, database.ssl_root), (SslMode::Prefer, SslRoot::None));
        assert!(parse("host=h", &[]).expect("valid").postgres.get_user().is_some());
    }

    #[test]
    fn times_have_libpqs_units() {
        let database = parse(
            "host=h user=u connect_timeout=3 tcp_user_timeout=1500 keepalives=0 keepalives_idle=7 keepalives_count=2 target_session_attrs=read-write",
            &[],
        )
        .expect("valid");
        let postgres = &database.postgres;
        assert_eq!(postgres.get_connect_timeout(), Some(&Duration::from_secs(3)));
        assert_eq!(postgres.get_tcp_user_timeout(), Some(&Duration::from_millis(1500)));
        assert!(!postgres.get_keepalives());
        assert_eq!(
            (postgres.get_keepalives_idle(), postgres.get_keepalives_retries()),
            (Duration::from_secs(7), Some(2))
        );
        assert_eq!(postgres.get_target_session_attrs(), TargetSessionAttrs::ReadWrite);
        assert_eq!(parse("host=h user=u connect_timeout=0", &[]).expect("valid").postgres.get_connect_timeout(), None);
    }

    #[test]
    fn roots_are_libpqs() {
        let home = tempfile::tempdir().expect("temporary folder");
        let (home_text, file) = (home.path().to_str().expect("UTF-8"), home.path().join("ca.pem"));
        std::fs::write(&file, "x").expect("written");
        let url = format!("host=h user=u sslmode=verify-ca sslrootcert={}", file.display());
        let database = parse(&url, &[]).expect("valid");
        assert_eq!((database.ssl_mode, database.ssl_root), (SslMode::VerifyCa, SslRoot::File(file)));

        let system = parse("host=h user=u sslrootcert=system", &[]).expect("valid");
        assert_eq!((system.ssl_mode, system.ssl_root), (SslMode::VerifyFull, SslRoot::System));

        let default = home.path().join(".postgresql/root.crt");
        std::fs::create_dir(home.path().join(".postgresql")).expect("made");
        std::fs::write(&default, "x").expect("written");
        let database = parse("host=h user=u sslmode=verify-full", &[("HOME", home_text)]).expect("valid");
        assert_eq!(database.ssl_root, SslRoot::File(default));
    }

    #[test]
    fn all_problems_are_listed_at_once_and_show_no_value() {
        let problems = parse(
            "postgres://u:canary@h1,h2:0,h3:70000/d?sslmode=canary&hostaddr=canary&connect_timeout=canary\
             &target_session_attrs=primary&sslrootcert=canary&sslcert=canary&sslmod=canary&schema=canary&gssencmode=prefer",
            &[("PGSERVICE", "canary"), ("PGCHANNELBINDING", "canary")],
        )
        .expect_err("refused");
        assert!(!problems.contains("canary"), "{problems}");
        for wanted in [
            "(environment) sslmode: wanted disable, prefer, require, verify-ca or verify-full",
            "hostaddr: wanted IP addresses",
            "hostaddr: wanted as many",
            "port: wanted a number from 1 to 65535",
            "connect_timeout: wanted a whole number",
            "target_session_attrs: wanted one of any, read-write, read-only",
            "sslrootcert: there is no such file",
            "sslcert: is not supported: leave it out",
            "sslmod: is no connection parameter of PostgreSQL; did you mean sslmode?",
            "schema: is no connection parameter of PostgreSQL",
            "PGSERVICE (environment): is not supported",
            "PGCHANNELBINDING (environment): wanted one of disable, prefer, require",
        ] {
            assert!(problems.contains(wanted), "{wanted:?} is not in:\n{problems}");
        }
        assert!(!problems.contains("gssencmode"), "{problems}");
    }

    #[test]
    fn weak_or_rootless_tls_is_refused() {
        for (url, wanted) in [
            ("host=h user=u sslmode=allow", "allow is not supported"),
            ("host=h user=u sslmode=verify-full", "need sslrootcert"),
            ("host=h user=u sslmode=require sslrootcert=system", "system needs sslmode=verify-full"),
        ] {
            let problems = parse(url, &[]).expect_err("refused");
            assert!(problems.contains(wanted), "{url}: {problems}");
        }
    }

    #[test]
    fn the_password_file_is_asked_last() {
        use std::os::unix::fs::PermissionsExt;
        let home = tempfile::tempdir().expect("temporary folder");
        let file = home.path().join(".pgpass");
        std::fs::write(&file, "other:*:*:*:no\nh:5432:d:u:from file\n").expect("written");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("set");
        let variables = [("HOME", home.path().to_str().expect("UTF-8"))];
        let password = |url: &str| {
            parse(url, &variables).map(|database| {
                database.postgres.get_password().map(|password| String::from_utf8_lossy(password).into_owned())
            })
        };
        assert_eq!(password("postgres://u@h/d"), Ok(Some("from file".into())));
        assert_eq!(password("postgres://u:mine@h/d"), Ok(Some("mine".into())));
        assert_eq!(password("postgres://v@h/d"), Ok(None));
        assert!(password("postgres://u@h,other/d").expect_err("refused").contains("different passwords"));

        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).expect("set");
        assert!(password("postgres://u@h/d").expect_err("refused").contains("chmod 600"));
    }
}
