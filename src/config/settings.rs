//! Reads every setting but the database's from the environment. Knows all names; opens only the file of keys.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use hyper::Uri;
use tracing_subscriber::EnvFilter;

use super::environment::Environment;
use super::problems::{Problem, Problems, nearest};
use super::{Kafka, Log, LogFormat, Model, Precision, Qdrant, Server, Topics, kafka, keys, qdrant};

/// Settings that no command can do without, checked; files that only `run` needs are not opened.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `VECSYNC_PIPELINE`: a file or a folder.
    pub pipeline: PathBuf,
    /// `VECSYNC_DATA_DIR`.
    pub data_dir: PathBuf,
    /// `VECSYNC_TOPIC_*`.
    pub topics: Topics,
    /// `KAFKA_*`; none: the embedded log.
    pub kafka: Option<Kafka>,
    /// `QDRANT_*`; none: the local store alone.
    pub qdrant: Option<Qdrant>,
    /// `VECSYNC_MODEL*`, `ORT_DYLIB_PATH`.
    pub model: Model,
    /// `VECSYNC_LISTEN`, `VECSYNC_API_KEYS*`, `VECSYNC_TLS_*`, `VECSYNC_SEARCH_DEADLINE_MS`.
    pub server: Server,
    /// `VECSYNC_URL`: `http` or `https`, a host, no query. Where the commands reach a running vecsync.
    pub url: Uri,
    /// Whether `VECSYNC_URL` says so itself: then commands go there where none runs on this machine.
    pub url_is_set: bool,
    /// `VECSYNC_LOG*`.
    pub log: Log,
}

/// How a setting's value is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Show {
    /// As it is.
    Plain,
    /// Never.
    Secret,
    /// A path, shown when there is such a file: people paste the secret itself.
    SecretFile,
    /// A URL, shown when it is one without a password.
    Url,
    /// The database's connection string.
    ConnInfo,
}

/// A setting that vecsync knows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    pub(super) name: &'static str,
    /// As the listing shows it; empty when there is none.
    pub(super) default: &'static str,
    pub(super) show: Show,
}

const fn known(name: &'static str, default: &'static str, show: Show) -> Known {
    Known { name, default, show }
}

const PIPELINE: &str = "VECSYNC_PIPELINE";
const DATA_DIR: &str = "VECSYNC_DATA_DIR";
const LISTEN: &str = "VECSYNC_LISTEN";
const TLS_CERT: &str = "VECSYNC_TLS_CERT";
const TLS_KEY: &str = "VECSYNC_TLS_KEY";
/// Where the commands reach a running vecsync.
pub(super) const URL: &str = "VECSYNC_URL";
const TOPIC_PREFIX: &str = "VECSYNC_TOPIC_PREFIX";
const TOPIC_PARTITIONS: &str = "VECSYNC_TOPIC_PARTITIONS";
const TOPIC_REPLICATION: &str = "VECSYNC_TOPIC_REPLICATION";
const SEARCH_DEADLINE: &str = "VECSYNC_SEARCH_DEADLINE_MS";
const HEDGE_DELAY: &str = "VECSYNC_HEDGE_DELAY_MS";
const MODEL: &str = "VECSYNC_MODEL";
const MODEL_DIR: &str = "VECSYNC_MODEL_DIR";
const RUNTIME: &str = "ORT_DYLIB_PATH";
const LOG: &str = "VECSYNC_LOG";
const LOG_FORMAT: &str = "VECSYNC_LOG_FORMAT";

const SEARCH_DEADLINE_MS: u64 = 1000;
const HEDGE_DELAY_MS: u64 = 50;
const PARTITIONS: u16 = 8;
/// Each partition costs the embedded log a tree; more than this gains nothing on one machine.
const PARTITIONS_MAX: u64 = 1024;
/// Far more than any cluster has brokers for.
const REPLICATION_MAX: u64 = 100;
/// Kafka's limit on a topic's name is 249; prefix, pipeline and `.vectors.<revision>` share it.
const TOPIC_PREFIX_MAX: usize = 100;

/// Every setting, in the order the listing has them.
pub(super) const SETTINGS: &[Known] = {
    use Show::{ConnInfo, Plain, Secret, SecretFile, Url};
    &[
        known(super::database::DATABASE_URL, "", ConnInfo),
        known(PIPELINE, "pipelines/faq.toml", Plain),
        known(DATA_DIR, "data", Plain),
        known(LISTEN, "127.0.0.1:8000", Plain),
        known(keys::API_KEYS, "", Secret),
        known(keys::API_KEYS_FILE, "", SecretFile),
        known(TLS_CERT, "", SecretFile),
        known(TLS_KEY, "", SecretFile),
        known(URL, "", Url),
        known(kafka::BROKERS, "", Plain),
        known(kafka::SECURITY_PROTOCOL, "plaintext", Plain),
        known(kafka::SASL_MECHANISM, "", Plain),
        known(kafka::SASL_MECHANISMS, "", Plain),
        known(kafka::SASL_USERNAME, "", Secret),
        known(kafka::SASL_PASSWORD, "", Secret),
        known(kafka::SSL_CA_LOCATION, "", Plain),
        known(TOPIC_PREFIX, "vecsync", Plain),
        known(TOPIC_PARTITIONS, "8", Plain),
        known(TOPIC_REPLICATION, "1", Plain),
        known(qdrant::STORE_TYPE, "qdrant if QDRANT_HOST is set, else local", Plain),
        known(qdrant::HOST, "", Plain),
        known(qdrant::PORT, "6333", Plain),
        known(qdrant::GRPC_PORT, "6334", Plain),
        known(qdrant::API_KEY, "", Secret),
        known(qdrant::TLS, "false", Plain),
        known(qdrant::COLLECTION, "faq_embeddings", Plain),
        known(qdrant::TIMEOUT, "30", Plain),
        known(SEARCH_DEADLINE, "1000", Plain),
        known(HEDGE_DELAY, "50", Plain),
        known(MODEL, "the better one of those in VECSYNC_MODEL_DIR", Plain),
        known(MODEL_DIR, "models/all-MiniLM-L6-v2", Plain),
        known(RUNTIME, "the one beside the model", Plain),
        known(LOG, "info", Plain),
        known(LOG_FORMAT, "pretty", Plain),
    ]
};

/// Targets of ours, `vecsync::<module>`: the rooms of `src/lib.rs`, and the access log, which is none.
const MODULES: &[&str] = &[
    "access",
    "app",
    "archive",
    "capture",
    "client",
    "commands",
    "config",
    "control",
    "embed",
    "event",
    "freshness",
    "index",
    "logging",
    "metrics",
    "progress_bar",
    "requests",
    "retry",
    "serve",
    "shutdown",
    "topic",
];
/// Crates that log something, whole ones.
const CRATES: &[&str] = &[
    "h2",
    "hyper",
    "hyper_util",
    "ort",
    "rdkafka",
    "librdkafka",
    "rustls",
    "sled",
    "tokio",
    "tokio_postgres",
    "tokio_rustls",
    "tonic",
    "tower",
];

/// Names with our prefix that belong to the set-up and its tests.
const OF_THE_SETUP: &[&str] = &["VECSYNC_CACHE_DIR", "VECSYNC_TEST_"];

/// Whether a name is, or is meant to be, a setting of vecsync.
pub(super) fn is_ours(name: &str) -> bool {
    is_known(name) || name.starts_with("VECSYNC_") || name.starts_with("KAFKA_SASL_")
}

fn is_known(name: &str) -> bool {
    SETTINGS.iter().any(|known| known.name == name)
}

/// The value of a name: not what Kubernetes puts there for a service of that name (`QDRANT_PORT=tcp://…`).
pub(super) fn given<'a>(environment: &'a Environment, name: &str) -> Option<&'a str> {
    environment.get(name).filter(|value| !is_of_kubernetes(name, value))
}

/// `VECSYNC_PIPELINE` alone.
pub(super) fn pipeline_path(environment: &Environment) -> PathBuf {
    given(environment, PIPELINE).unwrap_or(default(PIPELINE)).into()
}

impl Settings {
    /// Reads and checks every setting; on failure says all that is wrong.
    pub fn read(environment: &Environment) -> Result<Self, Problems> {
        let mut reader = Reader { environment, problems: environment.problems() };
        reader.refuse_unknown();
        let settings = reader.settings();
        reader.problems.or(Some(settings))
    }

    /// The same for commands that reach one pipeline of a running vecsync: its paths stand below its name.
    pub fn of_pipeline(&self, name: &str) -> Result<Self, Problems> {
        let refused = || Problem::new("--pipeline", "wanted lower-case letters, digits and underscores").showing(name);
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_') {
            return Err(refused().into());
        }
        let url = format!("{}/pipelines/{name}", self.url.to_string().trim_end_matches('/'));
        let url = Uri::from_str(&url).map_err(|_| refused())?;
        Ok(Settings { url, ..self.clone() })
    }
}

struct Reader<'a> {
    environment: &'a Environment,
    problems: Problems,
}

impl<'a> Reader<'a> {
    fn refuse_unknown(&mut self) {
        for name in self.environment.names() {
            let ours = is_ours(name) && !OF_THE_SETUP.iter().any(|prefix| name.starts_with(prefix));
            let value = self.environment.get(name).unwrap_or_default();
            if ours && !is_known(name) && !is_of_kubernetes(name, value) {
                let what = match nearest(name, SETTINGS.iter().map(|known| known.name)) {
                    Some(near) => format!("unknown setting; did you mean {near}?"),
                    None => "unknown setting; `vecsync config` lists those that exist".to_owned(),
                };
                self.problems.push(Problem::new(self.environment.place(name), what));
            }
        }
    }

    fn settings(&mut self) -> Settings {
        let server = self.server();
        let prefix =
            self.checked(TOPIC_PREFIX, "wanted 1 to 100 letters, digits, dots, dashes and underscores", |text| {
                let fits = text.len() <= TOPIC_PREFIX_MAX
                    && text.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
                    && text.starts_with(|c: char| c.is_ascii_alphanumeric());
                fits.then(|| text.to_owned())
            });
        let partitions = self.whole(TOPIC_PARTITIONS, 1..=PARTITIONS_MAX);
        let replication = self.whole(TOPIC_REPLICATION, 1..=REPLICATION_MAX);
        let kafka = kafka::read(self.environment);
        let qdrant = qdrant::read(self.environment);
        let precision = self.checked(MODEL, "wanted fp32 or int8", |text| match text {
            "fp32" => Some(Precision::Fp32),
            "int8" => Some(Precision::Int8),
            _ => None,
        });
        Settings {
            pipeline: pipeline_path(self.environment),
            data_dir: self.path(DATA_DIR).unwrap_or_else(|| default(DATA_DIR).into()),
            topics: Topics {
                prefix: prefix.unwrap_or_else(|| default(TOPIC_PREFIX).to_owned()),
                partitions: partitions.and_then(|count| u16::try_from(count).ok()).unwrap_or(PARTITIONS),
                replication: replication.and_then(|count| u16::try_from(count).ok()).unwrap_or(1),
            },
            kafka: self.problems.take(kafka).flatten(),
            qdrant: self.problems.take(qdrant).flatten(),
            model: Model {
                precision,
                dir: self.path(MODEL_DIR).unwrap_or_else(|| default(MODEL_DIR).into()),
                runtime: self.path(RUNTIME),
            },
            url: self.url(&server),
            url_is_set: given(self.environment, URL).is_some(),
            log: self.log(),
            server,
        }
    }

    fn server(&mut self) -> Server {
        let listen =
            self.checked(LISTEN, "wanted an IP address (or localhost) and a port, like 127.0.0.1:8000", address);
        let tls = match (self.path(TLS_CERT), self.path(TLS_KEY)) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            (Some(_), None) => self.missing(TLS_KEY, TLS_CERT),
            (None, Some(_)) => self.missing(TLS_CERT, TLS_KEY),
        };
        let keys = keys::read(self.environment);
        let deadline = self.whole(SEARCH_DEADLINE, 1..=60_000);
        let hedge = self.whole(HEDGE_DELAY, 0..=60_000);
        let deadline = deadline.unwrap_or(SEARCH_DEADLINE_MS);
        if hedge.is_some_and(|hedge| hedge >= deadline) {
            let what = format!("wanted less than {SEARCH_DEADLINE}, which is {deadline}");
            self.problem(HEDGE_DELAY, &what);
        }
        Server {
            listen: listen.unwrap_or_else(default_address),
            api_keys: self.problems.take(keys).unwrap_or_default(),
            tls,
            search_deadline: Duration::from_millis(deadline),
            hedge_delay: Duration::from_millis(hedge.unwrap_or(HEDGE_DELAY_MS).min(deadline)),
        }
    }

    fn url(&mut self, server: &Server) -> Uri {
        if let Some(text) = given(self.environment, URL) {
            match url(text) {
                Ok(url) => return url,
                // It may hold a password: not shown.
                Err(what) => self.problems.push(Problem::new(self.environment.place(URL), what)),
            }
        }
        default_url(server)
    }

    fn log(&mut self) -> Log {
        let filter = given(self.environment, LOG).unwrap_or(default(LOG));
        if let Err(what) = log_filter(filter) {
            self.problem(LOG, &what);
        }
        let format = self.checked(LOG_FORMAT, "wanted pretty or json", |text| match text {
            "pretty" => Some(LogFormat::Pretty),
            "json" => Some(LogFormat::Json),
            _ => None,
        });
        Log { filter: filter.to_owned(), format: format.unwrap_or(LogFormat::Pretty) }
    }

    fn checked<T>(&mut self, name: &str, wanted: &str, parse: impl Fn(&str) -> Option<T>) -> Option<T> {
        let value = parse(given(self.environment, name)?);
        if value.is_none() {
            self.problem(name, wanted);
        }
        value
    }

    fn whole(&mut self, name: &str, range: RangeInclusive<u64>) -> Option<u64> {
        let wanted = format!("wanted a whole number from {} to {}", range.start(), range.end());
        self.checked(name, &wanted, |text| text.parse().ok().filter(|number| range.contains(number)))
    }

    fn path(&self, name: &str) -> Option<PathBuf> {
        given(self.environment, name).map(PathBuf::from)
    }

    fn missing<T>(&mut self, name: &str, because: &str) -> Option<T> {
        self.problems.push(Problem::new(name, format!("is missing: {because} is set, and TLS needs both")));
        None
    }

    fn problem(&mut self, name: &str, what: &str) {
        let value = self.environment.get(name).unwrap_or_default();
        self.problems.push(Problem::new(self.environment.place(name), what).showing(value));
    }
}

fn default(name: &str) -> &'static str {
    SETTINGS.iter().find(|known| known.name == name).map_or("", |known| known.default)
}

fn address(text: &str) -> Option<SocketAddr> {
    match text.strip_prefix("localhost:") {
        Some(port) => Some((Ipv4Addr::LOCALHOST, port.parse().ok()?).into()),
        None => SocketAddr::from_str(text).ok(),
    }
}

fn default_address() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 8000).into()
}

/// Where this machine reaches the server that these settings start.
pub(super) fn default_url(server: &Server) -> Uri {
    let scheme = if server.tls.is_some() { "https" } else { "http" };
    let mut address = server.listen;
    if address.ip().is_unspecified() {
        // Every address is a place to listen, not one to connect to.
        address.set_ip(if address.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() });
    }
    let uri = Uri::builder().scheme(scheme).authority(address.to_string()).path_and_query("/").build();
    uri.expect("a scheme, an address with its port and a path are a URI")
}

/// Reads `VECSYNC_URL`. Says what was wanted, and shows nothing of it.
pub(super) fn url(text: &str) -> Result<Uri, &'static str> {
    const WANTED: &str = "wanted http://host:port or https://host:port, without a query";
    let url = Uri::from_str(text).map_err(|_| WANTED)?;
    let authority = url.authority().ok_or(WANTED)?;
    if authority.as_str().contains('@') {
        return Err("has a user or a password, which is not used; keys are in VECSYNC_API_KEYS");
    }
    let port_fits = match authority.as_str().strip_prefix(authority.host()) {
        Some("") => true,
        Some(_) => authority.port_u16().is_some_and(|port| port > 0),
        None => false,
    };
    let fits = matches!(url.scheme_str(), Some("http" | "https")) && port_fits && url.query().is_none();
    if fits && !authority.host().is_empty() && !text.contains('#') { Ok(url) } else { Err(WANTED) }
}

/// A `tracing` filter takes any word for a target: a misspelt level would silence everything, and a misspelt target says nothing.
fn log_filter(text: &str) -> Result<(), String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    const WANTED: &str = "wanted off, error, warn, info, debug or trace, or target=level, separated by commas";
    let is_level = |word: &str| LEVELS.iter().any(|level| level.eq_ignore_ascii_case(word));
    for directive in text.split(',').map(str::trim) {
        // A span's name in brackets, with commas of its own, is for who knows how; the parser has the last word.
        if directive.contains(['[', ']', '{', '}', '"']) {
            continue;
        }
        let (target, level) = match directive.split_once('=') {
            Some((target, level)) => (Some(target.trim()), level.trim()),
            None if is_level(directive) => (None, directive),
            None => (Some(directive), "trace"),
        };
        if !is_level(level) || target.is_some_and(|target| !is_target(target)) {
            return Err(WANTED.to_owned());
        }
        let of_ours = target.and_then(|target| target.strip_prefix("vecsync::"));
        if let Some(module) = of_ours.and_then(|path| path.split("::").next())
            && !MODULES.contains(&module)
        {
            let near = nearest(module, MODULES.iter().copied());
            let meant = near.map(|near| format!("; did you mean vecsync::{near}?")).unwrap_or_default();
            return Err(format!("vecsync has no part {module}{meant}"));
        }
    }
    EnvFilter::builder().parse(text).map(|_| ()).map_err(|_| WANTED.to_owned())
}

/// `crate::module` as `tracing` writes it. A word that has no `::` is a crate, and one that is nearly ours is meant to be.
fn is_target(target: &str) -> bool {
    let is_name = |name: &str| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    target.split("::").all(is_name) && (target == "vecsync" || target.contains("::") || CRATES.contains(&target))
}

/// Kubernetes puts `NAME_SERVICE_HOST`, `NAME_PORT=tcp://…` and their like into every container, for each service
/// in the namespace (documented as "Environment variables" under "Service"): a service called `vecsync` is no mistake.
fn is_of_kubernetes(name: &str, value: &str) -> bool {
    if name.ends_with("_PORT") && ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme)) {
        return true;
    }
    if name.ends_with("_SERVICE_HOST") || name.ends_with("_SERVICE_PORT") || name.contains("_SERVICE_PORT_") {
        return true;
    }
    let Some((_, port)) = name.rsplit_once("_PORT_") else { return false };
    let mut parts = port.split('_');
    let number = parts.next().is_some_and(|number| number.parse::<u16>().is_ok());
    let protocol = parts.next().is_some_and(|protocol| matches!(protocol, "TCP" | "UDP" | "SCTP"));
    number && protocol && parts.next().is_none_or(|part| matches!(part, "PROTO" | "PORT" | "ADDR"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(values: &[(&str, &str)]) -> Result<Settings, String> {
        Settings::read(&Environment::of(values.iter().copied(), "")).map_err(|problems| problems.to_string())
    }

    fn check(values: &[(&str, &str)], wanted: &str) {
        let problems = read(values).expect_err("refused");
        assert!(problems.contains(wanted) && problems.lines().count() == 1, "{wanted:?}: {problems}");
    }

    #[test]
    fn nothing_set_gives_the_defaults() {
        let settings = read(&[]).expect("valid");
        assert_eq!(settings.pipeline, PathBuf::from("pipelines/faq.toml"));
        assert_eq!(settings.data_dir, PathBuf::from("data"));
        assert_eq!(settings.topics, Topics { prefix: "vecsync".into(), partitions: 8, replication: 1 });
        let model = Model { precision: None, dir: "models/all-MiniLM-L6-v2".into(), runtime: None };
        assert_eq!(settings.model, model);
        assert_eq!(settings.server.listen.to_string(), "127.0.0.1:8000");
        assert_eq!(settings.server.search_deadline, Duration::from_secs(1));
        assert!(settings.server.api_keys.is_empty() && settings.server.tls.is_none());
        assert_eq!((settings.url, settings.url_is_set), (Uri::from_static("http://127.0.0.1:8000/"), false));
        assert_eq!(settings.log, Log { filter: "info".into(), format: LogFormat::Pretty });
    }

    #[test]
    fn the_listing_shows_the_defaults_that_are_used() {
        let shown = [
            (LISTEN, default_address().to_string()),
            (TOPIC_PARTITIONS, PARTITIONS.to_string()),
            (SEARCH_DEADLINE, SEARCH_DEADLINE_MS.to_string()),
        ];
        for (name, used) in shown {
            assert_eq!(default(name), used, "{name}");
        }
    }

    #[test]
    fn the_url_follows_what_the_server_listens_on() {
        fn check(values: &[(&str, &str)], wanted: &str) {
            assert_eq!(read(values).expect("valid").url, wanted, "{values:?}");
        }
        check(&[(LISTEN, "localhost:9")], "http://127.0.0.1:9/");
        check(&[(LISTEN, "0.0.0.0:9")], "http://127.0.0.1:9/");
        check(&[(LISTEN, "[::]:9"), (TLS_CERT, "c"), (TLS_KEY, "k")], "https://[::1]:9/");
        check(&[(URL, "https://search.example:444/v")], "https://search.example:444/v");
    }

    #[test]
    fn bad_values_are_named_with_what_was_wanted() {
        check(&[(LISTEN, "8000")], "VECSYNC_LISTEN (environment) = \"8000\": wanted an IP address");
        check(&[(TOPIC_PREFIX, "a b")], "wanted 1 to 100 letters");
        check(&[(TOPIC_PREFIX, "..")], "wanted 1 to 100 letters");
        check(&[(TOPIC_PARTITIONS, "0")], "wanted a whole number from 1 to 1024");
        check(&[(SEARCH_DEADLINE, "1s")], "wanted a whole number from 1 to 60000");
        check(&[(HEDGE_DELAY, "1000")], "wanted less than VECSYNC_SEARCH_DEADLINE_MS, which is 1000");
        check(&[(MODEL, "fp16")], "wanted fp32 or int8");
        check(&[(LOG, "inof")], "wanted off, error");
        check(&[(LOG, "vecsync=loud")], "wanted off, error");
        for bad in [
            "info,",
            "info,,debug",
            "info debug",
            "vecsync:index=debug",
            "vecsnyc=debug",
            "=debug",
            "info=vecsync",
            "hyperr",
        ] {
            check(&[(LOG, bad)], "wanted off, error");
        }
        check(&[(LOG, "vecsync::idnex=debug")], "vecsync has no part idnex; did you mean vecsync::index?");
        check(&[(LOG_FORMAT, "xml")], "wanted pretty or json");
        check(&[(TLS_CERT, "c")], "VECSYNC_TLS_KEY: is missing");
        check(&[(TLS_KEY, "k")], "VECSYNC_TLS_CERT: is missing");
        check(
            &[("VECSYNC_LISTN", "canary")],
            "VECSYNC_LISTN (environment): unknown setting; did you mean VECSYNC_LISTEN?",
        );
        for text in ["8000", "ftp://h", "http://", "http://h:0", "http://h:70000", "http://h?q", "http://u:canary@h"] {
            check(&[(URL, text)], "VECSYNC_URL (environment): ");
            assert!(!read(&[(URL, text)]).expect_err("refused").contains("canary"));
        }
        for good in [
            "debug",
            "WARN",
            "vecsync::index=debug",
            "warn,vecsync=trace",
            "vecsync",
            "info,vecsync::access=debug",
            "warn,hyper=info",
            "vecsync::index::qdrant",
            "info,vecsync[query]=debug",
        ] {
            assert!(read(&[(LOG, good)]).is_ok(), "{good}");
        }
    }

    #[test]
    fn names_of_others_are_left_alone() {
        let others = [
            ("VECSYNC_TEST_FAQ", "x"),
            ("VECSYNC_CACHE_DIR", "x"),
            ("KAFKA_HOME", "/opt/kafka"),
            ("QDRANT_TEST_URL", "http://127.0.0.1:6333"),
            ("VECSYNC_SERVICE_HOST", "10.0.0.1"),
            ("VECSYNC_SERVICE_PORT_HTTP", "8000"),
            ("VECSYNC_PORT", "tcp://10.0.0.1:8000"),
            ("VECSYNC_PORT_8000_TCP", "tcp://10.0.0.1:8000"),
            ("VECSYNC_PORT_8000_TCP_PORT", "8000"),
            ("QDRANT_PORT", "tcp://10.0.0.2:6333"),
        ];
        assert!(read(&others).is_ok(), "{:?}", read(&others));
        check(&[("VECSYNC_PORT", "8000")], "unknown setting");
        check(&[("VECSYNC_PORT_X", "8000")], "unknown setting");
        check(&[("VECSYNC_PORT_8000_HTTP", "8000")], "unknown setting");
    }
}
