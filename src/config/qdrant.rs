//! Reads `RAG_VECTOR_STORE_TYPE` and `QDRANT_*`. Checks what can be checked without a server.

use std::net::Ipv6Addr;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::environment::Environment;
use super::problems::{Problem, Problems};
use super::settings::given;
use super::{Qdrant, Secret};

pub(super) const STORE_TYPE: &str = "RAG_VECTOR_STORE_TYPE";
pub(super) const HOST: &str = "QDRANT_HOST";
pub(super) const PORT: &str = "QDRANT_PORT";
pub(super) const GRPC_PORT: &str = "QDRANT_GRPC_PORT";
pub(super) const API_KEY: &str = "QDRANT_API_KEY";
pub(super) const TLS: &str = "QDRANT_TLS";
pub(super) const COLLECTION: &str = "QDRANT_COLLECTION_NAME";
pub(super) const TIMEOUT: &str = "QDRANT_TIMEOUT";

const PORT_REST: u16 = 6333;
const PORT_GRPC: u16 = 6334;
const COLLECTION_DEFAULT: &str = "faq_embeddings";
const TIMEOUT_S: u64 = 30;
/// A write that takes longer than an hour is no write.
const TIMEOUT_S_MAX: u64 = 3600;
/// Qdrant takes names of 255 bytes; the generations behind the alias add their number.
const COLLECTION_BYTES_MAX: usize = 200;
/// What Qdrant refuses in the name of a collection.
const COLLECTION_FORBIDDEN: &[char] = &['<', '>', ':', '"', '/', '\\', '|', '?', '*', '\0', '\u{1f}'];

/// What the name of a collection has to be.
pub(super) const COLLECTION_WANTED: &str = "wanted a name of at most 200 bytes that does not begin with a dot, ends with no \
                                            __number, and has none of <>:\"/\\|?*";

/// The Qdrant that is the primary store, if one is.
pub(super) fn read(environment: &Environment) -> Result<Option<Qdrant>, Problems> {
    let mut reader = Reader { environment, problems: Problems::new() };
    let wanted = reader.checked(STORE_TYPE, "wanted qdrant or local", |text| match text {
        "qdrant" => Some(true),
        "local" => Some(false),
        _ => None,
    });
    let host = reader.checked(HOST, "wanted a host's name or an IP address, without scheme and port", host);
    if wanted == Some(true) && given(environment, HOST).is_none() {
        reader.problems.push(Problem::new(HOST, format!("is missing: {STORE_TYPE} asks for Qdrant")));
    }
    let port = reader.port(PORT, PORT_REST);
    let grpc_port = reader.port(GRPC_PORT, PORT_GRPC);
    if port == grpc_port {
        let name = if given(environment, GRPC_PORT).is_some() { GRPC_PORT } else { PORT };
        let shown = given(environment, name).unwrap_or_default();
        let what = format!("{PORT} is for REST and {GRPC_PORT} for gRPC: wanted two ports");
        reader.problems.push(Problem::new(environment.place(name), what).showing(shown));
    }
    let tls = reader.checked(TLS, "wanted true or false", |text| text.parse::<bool>().ok());
    let timeout = reader.whole(TIMEOUT, 1..=TIMEOUT_S_MAX);
    let collection = reader.checked(COLLECTION, COLLECTION_WANTED, |text| is_collection(text).then(|| text.to_owned()));
    let api_key = given(environment, API_KEY);
    if api_key.is_some_and(|key| !key.bytes().all(|byte| (0x21..0x7f).contains(&byte))) {
        // A secret: not shown.
        let what = "wanted characters that a header can carry: letters, digits, signs, no space";
        reader.problems.push(Problem::new(environment.place(API_KEY), what));
    }
    let qdrant = host.filter(|_| wanted != Some(false)).map(|host| Qdrant {
        host,
        port,
        grpc_port,
        api_key: api_key.map(|key| Secret::new(key.to_owned())),
        tls: tls.unwrap_or(false),
        collection: collection.unwrap_or_else(|| COLLECTION_DEFAULT.to_owned()),
        timeout: Duration::from_secs(timeout.unwrap_or(TIMEOUT_S)),
    });
    reader.problems.or(Some(qdrant))
}

struct Reader<'a> {
    environment: &'a Environment,
    problems: Problems,
}

impl Reader<'_> {
    fn checked<T>(&mut self, name: &str, wanted: &str, parse: impl Fn(&str) -> Option<T>) -> Option<T> {
        let text = given(self.environment, name)?;
        let value = parse(text);
        if value.is_none() {
            self.problems.push(Problem::new(self.environment.place(name), wanted).showing(text));
        }
        value
    }

    fn whole(&mut self, name: &str, range: RangeInclusive<u64>) -> Option<u64> {
        let wanted = format!("wanted a whole number from {} to {}", range.start(), range.end());
        self.checked(name, &wanted, |text| text.parse().ok().filter(|number| range.contains(number)))
    }

    fn port(&mut self, name: &str, otherwise: u16) -> u16 {
        self.whole(name, 1..=u64::from(u16::MAX)).and_then(|port| u16::try_from(port).ok()).unwrap_or(otherwise)
    }
}

/// A host as it stands in a URL: an IPv6 address gets its brackets.
fn host(text: &str) -> Option<String> {
    if let Ok(address) = text.trim_start_matches('[').trim_end_matches(']').parse::<Ipv6Addr>() {
        return Some(format!("[{address}]"));
    }
    let fits = !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || ".-_".contains(c));
    fits.then(|| text.to_owned())
}

pub(super) fn is_collection(text: &str) -> bool {
    let is_generation = text.rsplit_once("__").is_some_and(|(_, number)| number.parse::<u32>().is_ok());
    !text.is_empty()
        && text.len() <= COLLECTION_BYTES_MAX
        && !text.starts_with('.')
        && !text.contains(COLLECTION_FORBIDDEN)
        && !is_generation
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_of(values: &[(&str, &str)]) -> Result<Option<Qdrant>, String> {
        read(&Environment::of(values.iter().copied(), "")).map_err(|problems| problems.to_string())
    }

    fn check(values: &[(&str, &str)], wanted: &[&str]) {
        let told = read_of(values).expect_err("refused");
        assert!(wanted.iter().all(|part| told.contains(part)) && !told.contains("canary"), "{told}");
    }

    #[test]
    fn a_host_makes_qdrant_the_store_unless_local_is_asked_for() {
        let host = (HOST, "qdrant.example");
        assert_eq!(read_of(&[]).expect("valid"), None);
        assert_eq!(read_of(&[host, (STORE_TYPE, "local")]).expect("valid"), None);
        let found = read_of(&[host]).expect("valid").expect("Qdrant");
        let wanted = Qdrant {
            host: "qdrant.example".into(),
            port: 6333,
            grpc_port: 6334,
            api_key: None,
            tls: false,
            collection: "faq_embeddings".into(),
            timeout: Duration::from_secs(30),
        };
        assert_eq!(found, wanted);
        assert_eq!(found.url(), "http://qdrant.example:6334");
    }

    #[test]
    fn everything_can_be_said() {
        let values = [
            (HOST, "::1"),
            (PORT, "1"),
            (GRPC_PORT, "2"),
            (API_KEY, "canary"),
            (TLS, "true"),
            (COLLECTION, "questions"),
            (TIMEOUT, "7"),
            (STORE_TYPE, "qdrant"),
        ];
        let found = read_of(&values).expect("valid").expect("Qdrant");
        assert_eq!((found.url().as_str(), found.port, &*found.collection), ("https://[::1]:2", 1, "questions"));
        assert_eq!(found.timeout, Duration::from_secs(7));
        assert!(!format!("{found:?}").contains("canary"));
        assert_eq!(found.api_key.map(|key| key.expose().to_owned()).as_deref(), Some("canary"));
    }

    #[test]
    fn all_that_cannot_work_is_refused_at_once() {
        check(&[(STORE_TYPE, "redis")], &[STORE_TYPE, "wanted qdrant or local"]);
        check(&[(STORE_TYPE, "qdrant")], &["QDRANT_HOST: is missing"]);
        for host in ["http://qdrant", "qdrant:6334", "a b", "user@host"] {
            check(&[(HOST, host)], &[HOST, "without scheme and port"]);
        }
        for name in [".hidden", "a/b", "faq__3", &"x".repeat(201)] {
            check(&[(COLLECTION, name)], &[COLLECTION]);
        }
        check(&[(GRPC_PORT, "6333")], &["wanted two ports"]);
        let values =
            [(PORT, "0"), (GRPC_PORT, "x"), (TLS, "yes"), (TIMEOUT, "0"), (API_KEY, "can ary canary"), (HOST, "a:b")];
        check(&values, &[PORT, GRPC_PORT, TLS, TIMEOUT, API_KEY, HOST]);
    }
}
