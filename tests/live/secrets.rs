//! A word that is in every secret, and in nothing that vecsync says or leaves behind.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use crate::kafka::{CAUGHT_UP, Cluster};
use crate::kafka_login::Guarded;
use crate::support::postgres::{DATABASE, PASSWORD, USER};
use crate::support::process::{signal, wait_for_exit, wait_until};
use crate::support::qdrant::Qdrant;
use crate::support::table::{insert, values};
use crate::support::vecsync::{COMMAND, Vecsync};

/// The passwords of PostgreSQL and of the brokers have it, too.
const CANARY: &str = "canary";
const KEY: &str = "canary-key-of-the-server-1";
const FILE_KEY: &str = "canary-key-out-of-a-file-2";
const STRANGE_KEY: &str = "canary-key-that-is-nobody-s";
const QDRANT_KEY: &str = "canary-key-of-qdrant";

#[track_caller]
fn expect_clean(what: &str, said: &str) {
    if let Some(place) = said.to_ascii_lowercase().find(CANARY) {
        let from = said.floor_char_boundary(place.saturating_sub(400));
        panic!("{what} has a secret: …{}", &said[from..said.ceil_char_boundary(place + 40)]);
    }
}

/// Looks into every file below a folder.
fn expect_clean_files(folder: &Path) -> usize {
    let mut files = 0;
    for entry in fs::read_dir(folder).expect("a folder").flatten() {
        let path = entry.path();
        if entry.metadata().is_ok_and(|found| found.is_dir()) {
            files += expect_clean_files(&path);
        } else if let Ok(bytes) = fs::read(&path) {
            expect_clean(&path.display().to_string(), &String::from_utf8_lossy(&bytes));
            files += 1;
        }
    }
    files
}

/// With every secret that there is.
fn furnished(cluster: &Cluster, guarded: &Guarded, qdrant: &Qdrant) -> Vecsync {
    let mut vecsync = cluster.process("");
    guarded.let_in(&mut vecsync, "PLAIN", false);
    let settings = qdrant.settings();
    vecsync.set("QDRANT_HOST", settings.host);
    vecsync.set("QDRANT_PORT", settings.port);
    vecsync.set("QDRANT_GRPC_PORT", settings.grpc_port);
    vecsync.set("QDRANT_COLLECTION_NAME", qdrant.name("faq"));
    vecsync.set("QDRANT_API_KEY", QDRANT_KEY);
    vecsync.set("VECSYNC_API_KEYS", KEY);
    fs::write(vecsync.path("keys"), FILE_KEY).expect("written");
    vecsync.set("VECSYNC_API_KEYS_FILE", vecsync.path("keys"));
    // Both ways to a password: one that counts and one that is passed over.
    vecsync.set("DATABASE_URL", cluster.site.postgres.url(USER, PASSWORD));
    vecsync.set("PGPASSWORD", "canary-passed-over");
    // A level alone is that of vecsync's own parts.
    let others = [
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
    vecsync.set("VECSYNC_LOG", format!("trace,vecsync::access=debug,{}=trace", others.join("=trace,")));
    vecsync.http.with_key(KEY);
    vecsync
}

#[test]
fn no_secret_is_in_anything_that_it_says_or_leaves_behind() {
    let (guarded, qdrant) = (Guarded::start(), Qdrant::own_with(Some(QDRANT_KEY), &[]));
    let cluster = Cluster::prepare(Arc::clone(&guarded.kafka), 20);
    let mut vecsync = furnished(&cluster, &guarded, &qdrant);
    vecsync.set("VECSYNC_LOG_FORMAT", "json");
    vecsync.set("VECSYNC_TEST_PANIC", "capture");
    vecsync.start_ready();
    cluster.site.sql.execute(&insert(&[values(1_000, "Is it kept?", "It is.", "c01")]));
    wait_until("the row in both stores", CAUGHT_UP, || {
        let answer = vecsync.http.get("/search?q=kept").map_err(|error| error.to_string())?;
        if answer.body.contains("It is.") && answer.json()["served_by"] == "qdrant" { Ok(()) } else { Err(answer.body) }
    });
    let cmdline = fs::read_to_string(format!("/proc/{}/cmdline", vecsync.pid())).expect("readable");
    expect_clean("the command line", &cmdline);
    let paths = [
        "/",
        "/metrics",
        "/openapi.json",
        "/status",
        "/search?q=it",
        "/search",
        "/nothing",
        "/health/",
        "/health/detailed/",
        "/health/vector-store/",
        "/health/qdrant/",
        "/health/ready/",
        "/health/live/",
        "/health/started/",
    ];
    for key in [KEY, STRANGE_KEY, FILE_KEY] {
        vecsync.http.with_key(key);
        for path in paths {
            let answer = vecsync.get(path);
            expect_clean(path, &format!("{:?} {}", answer.headers, answer.body));
        }
    }
    let backup = vecsync.path("backup");
    let commands: [(&[&str], i32); 13] = [
        (&["config"], 0),
        (&["check", "--verbose"], 0),
        (&["status"], 0),
        (&["status", "--json"], 0),
        (&["search", "kept"], 0),
        (&["init"], 0),
        (&["init", "--stats"], 0),
        (&["verify"], 0),
        (&["sync", "--stats-only"], 0),
        (&["dead-letters", "list"], 0),
        (&["replay"], 0),
        (&["backup", &backup], 0),
        (&["run"], 1),
    ];
    for (command, code) in commands {
        let ended = vecsync.run_within(command, CAUGHT_UP);
        expect_clean(&format!("{command:?}"), &ended.stdout);
        expect_clean(&format!("{command:?}"), &ended.stderr);
        assert_eq!(ended.code, Some(code), "{command:?}: {:.2000}", ended.stderr);
    }
    // What PostgreSQL is told is in its own views.
    let told = cluster
        .site
        .sql
        .value("SELECT string_agg(application_name || query, ' ') FROM pg_stat_activity WHERE usename = 'vecsync'");
    expect_clean("pg_stat_activity", &told);

    vecsync.signal("USR2");
    let ended = vecsync.wait_for_exit(CAUGHT_UP);
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("panicked") && ended.stderr.contains("TRACE"), "it said all that it can");
    expect_clean("the log", &ended.stderr);
    assert!(expect_clean_files(Path::new(&vecsync.path("data"))) > 5);
    assert!(expect_clean_files(Path::new(&backup)) > 1);

    // Each secret is wrong: what is said then has none either. Where rows can be searched it goes on with them.
    let mut other = furnished(&cluster, &guarded, &qdrant);
    other.set("DATABASE_URL", cluster.site.postgres.url(USER, "canary-wrong"));
    other.set("QDRANT_API_KEY", "canary-wrong");
    other.start();
    wait_until("health to name both faults", CAUGHT_UP, || {
        let health = other.http.get("/health/detailed/").map_err(|error| error.to_string())?;
        expect_clean("health with faults", &health.body);
        let named = ["password", "QDRANT_API_KEY"].iter().all(|part| health.body.contains(part));
        if named { Ok(()) } else { Err(health.body) }
    });
    for command in [&["check"][..], &["config"], &["status"], &["init"]] {
        let ended = other.run_within(command, CAUGHT_UP);
        expect_clean(&format!("{command:?} with wrong secrets"), &(ended.stdout + &ended.stderr));
    }
    assert_eq!(other.terminate().code, Some(0));
    expect_clean("the log with wrong secrets", &other.log());
    other.set("KAFKA_SASL_PASSWORD", "canary-wrong");
    fs::remove_dir_all(other.path("data")).expect("it has one");
    let ended = other.run_within(&["run"], CAUGHT_UP);
    assert_eq!(ended.code, Some(1), "{:.2000}", ended.stderr);
    expect_clean("an end with wrong secrets", &ended.stderr);
    // None of them can be read at all.
    let mut other = furnished(&cluster, &guarded, &qdrant);
    for (name, value) in [
        ("DATABASE_URL", "postgresql://vecsync:canary@[host/db?sslmode=canary"),
        ("QDRANT_API_KEY", "canary\nnone"),
        ("KAFKA_SECURITY_PROTOCOL", "plaintext"),
        ("VECSYNC_API_KEYS", "canary"),
        ("VECSYNC_TLS_KEY", "-----BEGIN PRIVATE KEY-----canary"),
        ("VECSYNC_LISTEN", "postgres://canary:canary@host/db"),
    ] {
        other.set(name, value);
    }
    for command in [&["run"][..], &["config"], &["check"], &["status"]] {
        let ended = other.run(command);
        assert_eq!(ended.code, Some(2), "{command:?}: {}", ended.stderr);
        expect_clean(&format!("{command:?}"), &(ended.stdout + &ended.stderr));
    }
}

#[test]
fn what_it_has_in_memory_gets_into_no_core_file() {
    let mut vecsync = Vecsync::prepare(&format!("postgresql://{USER}:{PASSWORD}@127.0.0.1:1/{DATABASE}"));
    vecsync.under(&["/usr/bin/prlimit", "--core=unlimited"]);
    vecsync.start();
    wait_until("it to be at work", COMMAND, || {
        vecsync.http.get("/health/live/").map(drop).map_err(|error| error.to_string())
    });
    let folder = Path::new(&vecsync.path("data")).parent().expect("it has one").to_owned();
    let environment = fs::metadata(format!("/proc/{}/environ", vecsync.pid())).expect("it is there");
    assert_eq!(environment.uid(), 0, "other programs of its user can read what it has");
    vecsync.signal("ABRT");
    let status = wait_until("it to be gone", COMMAND, || vecsync.ended().ok_or_else(|| "it runs".to_owned()));
    assert_eq!((status.signal(), status.core_dumped()), (Some(6), false));
    let has_core = |folder: &Path| {
        fs::read_dir(folder)
            .expect("a folder")
            .flatten()
            .any(|file| file.file_name().to_string_lossy().starts_with("core"))
    };
    assert!(!has_core(&folder));

    // Elsewhere this machine may write one: then the above says something.
    let mut other = Command::new("/usr/bin/prlimit");
    other.args(["--core=unlimited", "/bin/sleep", "60"]).current_dir(&folder).stdin(Stdio::null());
    let mut other = other.spawn().expect("start prlimit");
    let name = format!("/proc/{}/comm", other.id());
    wait_until("it to be another program", COMMAND, || match fs::read_to_string(&name) {
        Ok(name) if name.trim() == "sleep" => Ok(()),
        name => Err(format!("{name:?}")),
    });
    signal(&other, "ABRT");
    let status = wait_for_exit(&mut other, COMMAND);
    eprintln!("another program's memory is written here: {}", status.core_dumped());
}
