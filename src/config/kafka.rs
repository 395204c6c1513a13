//! Reads `KAFKA_*`, which are librdkafka's own properties. Checks what can be checked without a broker.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::environment::Environment;
use super::problems::{Problem, Problems};
use super::settings::given;
use super::{Kafka, Secret};

pub(super) const BROKERS: &str = "KAFKA_BROKERS";
pub(super) const SECURITY_PROTOCOL: &str = "KAFKA_SECURITY_PROTOCOL";
pub(super) const SASL_MECHANISM: &str = "KAFKA_SASL_MECHANISM";
/// librdkafka knows the property under both names.
pub(super) const SASL_MECHANISMS: &str = "KAFKA_SASL_MECHANISMS";
pub(super) const SASL_USERNAME: &str = "KAFKA_SASL_USERNAME";
pub(super) const SASL_PASSWORD: &str = "KAFKA_SASL_PASSWORD";
pub(super) const SSL_CA_LOCATION: &str = "KAFKA_SSL_CA_LOCATION";

const PROTOCOLS: [&str; 4] = ["plaintext", "ssl", "sasl_plaintext", "sasl_ssl"];
const MECHANISMS: [&str; 3] = ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"];

/// Of a file of certificates, more than a system's whole bundle.
const CA_BYTES_MAX: u64 = 16 << 20;

/// The brokers, if any are set.
pub(super) fn read(environment: &Environment) -> Result<Option<Kafka>, Problems> {
    let mut problems = Problems::new();
    let mut complain = |name: &str, what: String, shown: Option<&str>| {
        let problem = Problem::new(environment.place(name), what);
        problems.push(match shown {
            Some(value) => problem.showing(value),
            None => problem,
        });
    };
    let brokers = given(environment, BROKERS);
    if let Some(brokers) = brokers
        && !brokers.split(',').all(|broker| is_address(broker.trim()))
    {
        complain(BROKERS, "wanted host:port, several separated by commas".to_owned(), Some(brokers));
    }
    let mechanism = given(environment, SASL_MECHANISM).map(|value| (SASL_MECHANISM, value));
    let other = given(environment, SASL_MECHANISMS);
    if let (Some((_, one)), Some(other)) = (mechanism, other)
        && !one.eq_ignore_ascii_case(other)
    {
        complain(SASL_MECHANISMS, format!("{SASL_MECHANISM} says {one}: leave one of them out"), Some(other));
    }
    let mechanism = mechanism.or_else(|| other.map(|value| (SASL_MECHANISMS, value)));
    let protocol = given(environment, SECURITY_PROTOCOL);
    let mut security = vec![];
    if let Some(protocol) = protocol {
        if PROTOCOLS.iter().any(|known| known.eq_ignore_ascii_case(protocol)) {
            security.push(("security.protocol", Secret::new(protocol.to_ascii_lowercase())));
        } else {
            complain(SECURITY_PROTOCOL, format!("wanted {}", PROTOCOLS.join(", ")), Some(protocol));
        }
    }
    if let Some((name, mechanism)) = mechanism {
        if MECHANISMS.iter().any(|known| known.eq_ignore_ascii_case(mechanism)) {
            security.push(("sasl.mechanism", Secret::new(mechanism.to_ascii_uppercase())));
        } else {
            complain(name, format!("wanted {}", MECHANISMS.join(", ")), Some(mechanism));
        }
    }
    let by_sasl = protocol.is_some_and(|protocol| protocol.to_ascii_lowercase().starts_with("sasl_"));
    let by_tls = protocol.is_some_and(|protocol| protocol.to_ascii_lowercase().ends_with("ssl"));
    if let Some(location) = given(environment, SSL_CA_LOCATION) {
        if let Err(what) = check_ca(location) {
            complain(SSL_CA_LOCATION, what, Some(location));
        }
        if !by_tls {
            complain(SECURITY_PROTOCOL, format!("wanted ssl or sasl_ssl: {SSL_CA_LOCATION} is set"), protocol);
        }
    }
    let parts = [
        (SASL_USERNAME, "sasl.username", by_sasl),
        (SASL_PASSWORD, "sasl.password", by_sasl),
        (SSL_CA_LOCATION, "ssl.ca.location", false),
    ];
    for (name, property, is_needed) in parts {
        match given(environment, name) {
            Some(value) => security.push((property, Secret::new(value.to_owned()))),
            None if is_needed => complain(name, format!("is missing: {SECURITY_PROTOCOL} asks for SASL"), None),
            None => {}
        }
    }
    if by_sasl && mechanism.is_none() {
        complain(SASL_MECHANISM, format!("is missing: {SECURITY_PROTOCOL} asks for SASL"), None);
    }
    if mechanism.is_some() && !by_sasl {
        let what = "wanted sasl_plaintext or sasl_ssl: a SASL mechanism is set".to_owned();
        complain(SECURITY_PROTOCOL, what, protocol);
    }
    let kafka = brokers.map(|brokers| Kafka { brokers: brokers.to_owned(), security });
    problems.or(Some(kafka))
}

/// What librdkafka takes as certificates: a PEM file, a folder of them, or `probe` for the system's.
fn check_ca(location: &str) -> Result<(), String> {
    if location == "probe" || Path::new(location).is_dir() {
        return Ok(());
    }
    let mut text = Vec::new();
    let read = File::open(location).and_then(|file| file.take(CA_BYTES_MAX).read_to_end(&mut text));
    read.map_err(|error| format!("wanted a PEM file of certificates: {error}"))?;
    let begins = b"-----BEGIN ";
    if text.windows(begins.len()).any(|part| part == begins) {
        Ok(())
    } else {
        Err("wanted a PEM file of certificates, and there is none in it".to_owned())
    }
}

fn is_address(broker: &str) -> bool {
    broker.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty() && !host.contains(['/', ' ', '@']) && port.parse::<u16>().is_ok_and(|port| port > 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(values: &[(&str, &str)], wanted: &[&str]) {
        let problems = read(&Environment::of(values.iter().copied(), "")).map_err(|problems| problems.to_string());
        let told = problems.expect_err("refused");
        assert!(wanted.iter().all(|part| told.contains(part)) && !told.contains("canary"), "{told}");
    }

    #[test]
    fn nothing_set_is_the_embedded_log() {
        assert_eq!(read(&Environment::of([], "")).expect("valid"), None);
    }

    #[test]
    fn properties_are_librdkafkas() {
        let folder = tempfile::tempdir().expect("a folder");
        let ca = folder.path().join("ca.pem").display().to_string();
        std::fs::write(&ca, "-----BEGIN CERTIFICATE-----\n").expect("written");
        let values = [
            (BROKERS, "a:9092, b:9093"),
            (SECURITY_PROTOCOL, "SASL_SSL"),
            (SASL_MECHANISM, "scram-sha-256"),
            (SASL_USERNAME, "u"),
            (SASL_PASSWORD, "p"),
            (SSL_CA_LOCATION, &ca),
        ];
        let kafka = read(&Environment::of(values, "")).expect("valid").expect("brokers");
        let security: Vec<_> = kafka.security.iter().map(|(name, value)| (*name, value.expose())).collect();
        let wanted = [
            ("security.protocol", "sasl_ssl"),
            ("sasl.mechanism", "SCRAM-SHA-256"),
            ("sasl.username", "u"),
            ("sasl.password", "p"),
            ("ssl.ca.location", &ca),
        ];
        assert_eq!((&*kafka.brokers, &security[..]), ("a:9092, b:9093", &wanted[..]));
    }

    #[test]
    fn what_cannot_work_is_refused_by_name() {
        check(&[(BROKERS, "localhost")], &[BROKERS, "host:port"]);
        check(&[(BROKERS, "a:1,b:0")], &[BROKERS]);
        check(&[(SECURITY_PROTOCOL, "tls")], &["sasl_ssl"]);
        check(&[(SASL_MECHANISM, "GSSAPI"), (SECURITY_PROTOCOL, "sasl_ssl")], &["SCRAM-SHA-512", SASL_USERNAME]);
        check(&[(SECURITY_PROTOCOL, "sasl_ssl"), (SASL_PASSWORD, "canary")], &[SASL_MECHANISM, SASL_USERNAME]);
        let tls = (SECURITY_PROTOCOL, "ssl");
        check(&[(SSL_CA_LOCATION, "/nowhere/ca.pem"), tls], &[SSL_CA_LOCATION, "/nowhere/ca.pem", "No such file"]);
        check(&[(SSL_CA_LOCATION, "Cargo.toml"), tls], &[SSL_CA_LOCATION, "there is none in it"]);
        check(&[(SSL_CA_LOCATION, "src")], &[SECURITY_PROTOCOL, "wanted ssl or sasl_ssl"]);
        let two = [(SASL_MECHANISM, "PLAIN"), (SASL_MECHANISMS, "SCRAM-SHA-256")];
        check(&two, &["KAFKA_SASL_MECHANISM says PLAIN"]);
        check(&[(SASL_MECHANISM, "PLAIN")], &[SECURITY_PROTOCOL, "sasl_plaintext"]);
    }
}
