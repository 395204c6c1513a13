//! A private Kafka Connect with Debezium's own PostgreSQL connector: one worker, as many connectors as a test names.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use super::kafka::Kafka;
use super::postgres::{DATABASE, OWNER, PASSWORD, Postgres};
use super::process::free_port;

pub struct Connect {
    folder: TempDir,
    /// Settings of the worker, then of each connector.
    files: Vec<PathBuf>,
    worker: Child,
}

/// A connector: the prefix of its topics, which names its slot and publication too, and whether records have schemas.
pub struct Connector<'a> {
    pub prefix: &'a str,
    pub schemas: bool,
}

impl Connect {
    /// Starts it; the connectors take their snapshots and follow. Topics get `partitions` partitions.
    pub fn start(kafka: &Kafka, postgres: &Postgres, partitions: u16, connectors: &[Connector]) -> Connect {
        let folder = tempfile::Builder::new().prefix("vecsync-connect-").tempdir().expect("make a folder");
        let write = |name: &str, lines: &[(&str, &str)]| {
            let text: String = lines.iter().map(|(key, value)| format!("{key}={value}\n")).collect();
            let path = folder.path().join(name);
            fs::write(&path, text).expect("write the settings");
            path
        };
        let json = "org.apache.kafka.connect.json.JsonConverter";
        let listener = format!("http://127.0.0.1:{}", free_port());
        let offsets = folder.path().join("offsets").display().to_string();
        let worker = write(
            "worker.properties",
            &[
                ("bootstrap.servers", &kafka.brokers()),
                ("key.converter", json),
                ("value.converter", json),
                ("offset.storage.file.filename", &offsets),
                ("offset.flush.interval.ms", "1000"),
                ("listeners", &listener),
                ("plugin.discovery", "service_load"),
            ],
        );
        let connectors = connectors.iter().map(|Connector { prefix, schemas }| {
            let schemas = schemas.to_string();
            write(
                &format!("{prefix}.properties"),
                &[
                    ("name", prefix),
                    ("connector.class", "io.debezium.connector.postgresql.PostgresConnector"),
                    ("plugin.name", "pgoutput"),
                    ("database.hostname", "127.0.0.1"),
                    ("database.port", &postgres.port.to_string()),
                    ("database.user", OWNER),
                    ("database.password", PASSWORD),
                    ("database.dbname", DATABASE),
                    ("topic.prefix", prefix),
                    ("slot.name", prefix),
                    ("publication.name", prefix),
                    ("publication.autocreate.mode", "filtered"),
                    ("table.include.list", "public.faq_faq"),
                    // By default it leaves truncates out.
                    ("skipped.operations", "none"),
                    ("key.converter", json),
                    ("key.converter.schemas.enable", &schemas),
                    ("value.converter", json),
                    ("value.converter.schemas.enable", &schemas),
                    ("topic.creation.default.partitions", &partitions.to_string()),
                    ("topic.creation.default.replication.factor", "1"),
                    // A truncate has no key, and a compacted topic refuses it: the connector would fail.
                    ("topic.creation.default.cleanup.policy", "delete"),
                    ("topic.creation.default.retention.ms", "-1"),
                ],
            )
        });
        let files: Vec<PathBuf> = std::iter::once(worker).chain(connectors).collect();
        let worker = spawn(&folder, &files);
        Connect { folder, files, worker }
    }

    /// Kills it; nothing is captured until it is started again.
    pub fn kill(&mut self) {
        self.worker.kill().expect("kill java");
        self.worker.wait().expect("reap java");
    }

    /// Starts it again after a kill: it goes on from the offsets that it had written.
    pub fn start_again(&mut self) {
        self.worker = spawn(&self.folder, &self.files);
    }
}

fn spawn(folder: &TempDir, files: &[PathBuf]) -> Child {
    let fetched = |name: &str| {
        let folder = std::env::var_os(name).unwrap_or_else(|| panic!("{name} is not set: use `make test`"));
        PathBuf::from(folder).join("*").display().to_string()
    };
    let log =
        fs::File::options().create(true).append(true).open(folder.path().join("connect.log")).expect("make a log");
    Command::new("java")
        .args(["-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp"])
        .arg(format!("{}:{}", fetched("VECSYNC_TEST_KAFKA"), fetched("VECSYNC_TEST_DEBEZIUM")))
        .arg("org.apache.kafka.connect.cli.ConnectStandalone")
        .args(files)
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("one more handle"))
        .stderr(log)
        .spawn()
        .expect("start java")
}

impl Drop for Connect {
    fn drop(&mut self) {
        let _ = self.worker.kill();
        let _ = self.worker.wait();
        if std::thread::panicking() {
            let log = fs::read_to_string(self.folder.path().join("connect.log")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("--- Connect\n{}", lines[lines.len().saturating_sub(40)..].join("\n"));
        }
    }
}
