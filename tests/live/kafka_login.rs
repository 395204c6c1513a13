//! Brokers that ask who is there: TLS, SASL with PLAIN and SCRAM, wrong passwords, certificates of somebody else.

use std::fs;
use std::sync::Arc;

use crate::kafka::{CAUGHT_UP, Cluster};
use crate::support::kafka::{Kafka, Special};
use crate::support::process::{free_port, wait_until};
use crate::support::table::{insert, values};
use crate::support::vecsync::{COMMAND, Vecsync};

/// Nobody may ever read these.
const PLAIN_PASSWORD: &str = "canary-plain-5f0c";
const SCRAM_PASSWORD: &str = "canary-scram-91ad";
const WRONG_PASSWORD: &str = "canary-wrong-37be";

/// A broker with a listener of each kind, and the settings that it is reached with.
pub struct Guarded {
    pub kafka: Arc<Kafka>,
    tls: u16,
    plain: u16,
    both: u16,
    authority: String,
    other_authority: String,
    _folder: tempfile::TempDir,
}

impl Guarded {
    pub fn start() -> Guarded {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name).display().to_string();
        let certificate = |name: &str, also: &str| {
            let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).expect("a certificate");
            fs::write(path(name), made.cert.pem()).expect("written");
            fs::write(path(also), made.signing_key.serialize_pem() + &made.cert.pem()).expect("written");
        };
        certificate("authority.pem", "broker.pem");
        certificate("other.pem", "nobody.pem");
        let (tls, plain, both) = (free_port(), free_port(), free_port());
        let login = "sasl.jaas.config=org.apache.kafka.common.security";
        let scram = format!("{login}.scram.ScramLoginModule required;");
        let properties = format!(
            "ssl.keystore.type=PEM\n\
             ssl.keystore.location={}\n\
             listener.name.sasl_plaintext.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256\n\
             listener.name.sasl_plaintext.plain.{login}.plain.PlainLoginModule required user_vecsync=\"{PLAIN_PASSWORD}\";\n\
             listener.name.sasl_plaintext.scram-sha-256.{scram}\n\
             listener.name.sasl_ssl.sasl.enabled.mechanisms=SCRAM-SHA-512\n\
             listener.name.sasl_ssl.scram-sha-512.{scram}",
            path("broker.pem")
        );
        let user = |mechanism: &str| format!("{mechanism}=[name=vecsync,password={SCRAM_PASSWORD}]");
        let users = ["SCRAM-SHA-256", "SCRAM-SHA-512"].map(|mechanism| ["--add-scram".to_owned(), user(mechanism)]);
        let kafka = Kafka::start_with(Special {
            listeners: format!(",SSL://127.0.0.1:{tls},SASL_PLAINTEXT://127.0.0.1:{plain},SASL_SSL://127.0.0.1:{both}"),
            properties,
            format: users.concat(),
            ..Special::default()
        });
        let (authority, other_authority) = (path("authority.pem"), path("other.pem"));
        Guarded { kafka: Arc::new(kafka), tls, plain, both, authority, other_authority, _folder: folder }
    }

    /// Tells vecsync how to get in; `wrong` spoils the password, or where there is none the certificate.
    pub fn let_in(&self, vecsync: &mut Vecsync, how: &str, wrong: bool) {
        let (port, password) = match how {
            "ssl" => (self.tls, None),
            "PLAIN" => (self.plain, Some(PLAIN_PASSWORD)),
            "SCRAM-SHA-256" => (self.plain, Some(SCRAM_PASSWORD)),
            _ => (self.both, Some(SCRAM_PASSWORD)),
        };
        vecsync.set("KAFKA_BROKERS", format!("127.0.0.1:{port}"));
        let by_tls = port != self.plain;
        let protocol = [["plaintext", "ssl"], ["SASL_PLAINTEXT", "SASL_SSL"]][usize::from(password.is_some())];
        vecsync.set("KAFKA_SECURITY_PROTOCOL", protocol[usize::from(by_tls)]);
        if by_tls {
            let stranger = wrong && password.is_none();
            vecsync.set("KAFKA_SSL_CA_LOCATION", if stranger { &self.other_authority } else { &self.authority });
        }
        if let Some(password) = password {
            // Both names that librdkafka has for it.
            let name = if how == "PLAIN" { "KAFKA_SASL_MECHANISMS" } else { "KAFKA_SASL_MECHANISM" };
            vecsync.set(name, how);
            vecsync.set("KAFKA_SASL_USERNAME", "vecsync");
            vecsync.set("KAFKA_SASL_PASSWORD", if wrong { WRONG_PASSWORD } else { password });
        }
    }
}

const WAYS: [&str; 4] = ["ssl", "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"];

#[test]
fn brokers_are_reached_by_tls_and_by_sasl_and_a_wrong_password_is_told_and_not_shown() {
    let guarded = Guarded::start();
    let cluster = Cluster::prepare(Arc::clone(&guarded.kafka), 20);
    let mut last = None;
    for (way, id) in WAYS.into_iter().zip(1_000..) {
        let mut all = cluster.process("");
        guarded.let_in(&mut all, way, false);
        all.start_ready();
        cluster.site.sql.execute(&insert(&[values(id, "Who is there?", way, "c01")]));
        wait_until(&format!("a row by {way}"), CAUGHT_UP, || match all.row_if_answered(id) {
            Some(row) if row["answer"] == way => Ok(()),
            found => Err(format!("{found:?}")),
        });
        assert_eq!(all.terminate().code, Some(0), "{}", all.log());
        assert!(!all.log().contains("canary"), "{}", all.log());
        last = Some(all);
    }
    for (way, named) in WAYS.into_iter().zip(["KAFKA_SSL_CA_LOCATION"].into_iter().chain(["KAFKA_SASL_PASSWORD"; 3])) {
        let mut refused = cluster.process("");
        guarded.let_in(&mut refused, way, true);
        refused.start();
        let ended = refused.wait_for_exit(COMMAND);
        assert_eq!(ended.code, Some(1), "{way}: {}", ended.stderr);
        for part in ["log in to the brokers 127.0.0.1:", named] {
            assert!(ended.stderr.contains(part), "{way}: {part:?}: {}", ended.stderr);
        }
        assert!(!ended.stderr.contains("canary"), "{}", ended.stderr);
    }

    // Who has something to search goes on with it.
    let mut kept = last.expect("it ran");
    guarded.let_in(&mut kept, "SCRAM-SHA-512", true);
    kept.start();
    wait_until("health to name it", CAUGHT_UP, || {
        let health = kept.http.get("/health/detailed/").map_err(|error| error.to_string())?.json();
        let said = health["components"]["log"]["error"].as_str().unwrap_or_default().to_owned();
        if said.contains("KAFKA_SASL_PASSWORD") && health["status"] == "degraded" { Ok(()) } else { Err(said) }
    });
    assert!(!kept.search("anything", "")["results"].as_array().unwrap().is_empty());
    assert_eq!(kept.ended(), None);
    assert!(!kept.log().contains("canary"), "{}", kept.log());
}
