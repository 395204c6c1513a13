//! `vecsync check` on seeded misconfigurations, one by one: each is named, with what mends it.

use std::fs;
use std::net::TcpListener;
use std::time::Duration;

use qdrant_client::qdrant::{CreateAliasBuilder, CreateCollectionBuilder, Distance, VectorParamsBuilder};

use crate::support::kafka::Kafka;
use crate::support::postgres::{PASSWORD, USER};
use crate::support::process::{free_port, wait_until};
use crate::support::qdrant::Qdrant;
use crate::support::site::{Place, Site};
use crate::support::vecsync::{PIPELINE, Vecsync, model_dir};

const SOON: Duration = Duration::from_secs(30);
const TOPICS: &str = "org.apache.kafka.tools.TopicCommand";

/// What `check` says with these flags; status 3 exactly where something failed.
#[track_caller]
fn check(vecsync: &Vecsync, flags: &[&str]) -> String {
    let ended = vecsync.run(&[&["check"], flags].concat());
    let failed = ended.stdout.lines().any(|line| line.starts_with("failed"));
    assert_eq!(ended.code, Some(if failed { 3 } else { 0 }), "{}{}", ended.stdout, ended.stderr);
    ended.stdout
}

/// One line of what `check` says of settings and servers: failed, and with all of these words.
#[track_caller]
fn expect(vecsync: &Vecsync, name: &str, words: &[&str]) {
    expect_in(&check(vecsync, &["--skip-health", "--skip-operations"]), name, words);
}

#[track_caller]
fn expect_in(said: &str, name: &str, words: &[&str]) {
    let line = said.lines().find(|line| line.strip_prefix("failed ").is_some_and(|rest| rest.trim().starts_with(name)));
    let line = line.unwrap_or_else(|| panic!("{name} has not failed:\n{said}"));
    for part in words {
        assert!(line.contains(part), "{part:?} is not in: {line}");
    }
    assert!(!said.contains("canary"), "{said}");
}

#[test]
fn what_is_wrong_with_the_source_is_named_with_the_sql_that_mends_it() {
    let site = Site::prepare_with(&[("max_replication_slots", "2")]);
    let table = "public.faq_faq";
    let columns = "id, question, category, is_active, created_at, updated_at";
    let cases: &[(&str, &str, &str, &[&str])] = &[
        (
            "ALTER ROLE vecsync NOREPLICATION",
            "ALTER ROLE vecsync REPLICATION",
            "replication",
            &["ALTER ROLE … REPLICATION"],
        ),
        (
            "REVOKE SELECT ON faq_faq FROM vecsync",
            "GRANT SELECT ON faq_faq TO vecsync",
            "table",
            &["role vecsync may not", "GRANT SELECT ON public.faq_faq TO vecsync;"],
        ),
        (
            &format!("REVOKE SELECT ON faq_faq FROM vecsync; GRANT SELECT ({columns}) ON faq_faq TO vecsync"),
            &format!("REVOKE SELECT ({columns}) ON faq_faq FROM vecsync; GRANT SELECT ON faq_faq TO vecsync"),
            "publication",
            &["may not read answer", "GRANT SELECT (answer) ON public.faq_faq TO vecsync;"],
        ),
        (
            "ALTER TABLE faq_faq DROP CONSTRAINT faq_faq_pkey",
            "ALTER TABLE faq_faq ADD PRIMARY KEY (id)",
            "table",
            &["no primary key", "ALTER TABLE public.faq_faq ADD PRIMARY KEY"],
        ),
        (
            "ALTER TABLE faq_faq REPLICA IDENTITY NOTHING",
            "ALTER TABLE faq_faq REPLICA IDENTITY DEFAULT",
            "table",
            &["is NOTHING", "ALTER TABLE public.faq_faq REPLICA IDENTITY DEFAULT;"],
        ),
        (
            "DROP PUBLICATION vecsync_faq",
            "CREATE PUBLICATION vecsync_faq FOR TABLE faq_faq",
            "publication",
            &["is not there", "CREATE PUBLICATION \"vecsync_faq\" FOR TABLE public.faq_faq;", "owner"],
        ),
        (
            "ALTER PUBLICATION vecsync_faq DROP TABLE faq_faq",
            "ALTER PUBLICATION vecsync_faq ADD TABLE faq_faq",
            "publication",
            &["does not have table", "ALTER PUBLICATION vecsync_faq ADD TABLE public.faq_faq;"],
        ),
        (
            "ALTER PUBLICATION vecsync_faq SET TABLE faq_faq (id, question, category, is_active, updated_at) WHERE (id > 0)",
            "ALTER PUBLICATION vecsync_faq SET TABLE faq_faq",
            "table",
            &[
                "leaves out answer",
                "ALTER PUBLICATION vecsync_faq DROP TABLE public.faq_faq; ALTER PUBLICATION vecsync_faq ADD TABLE \
                 public.faq_faq (id, question, category, is_active, updated_at, answer) WHERE",
            ],
        ),
        (
            "ALTER PUBLICATION vecsync_faq SET (publish = 'insert, update')",
            "ALTER PUBLICATION vecsync_faq SET (publish = 'insert, update, delete, truncate')",
            "publication",
            &["does not publish delete and truncate", "ALTER PUBLICATION vecsync_faq SET (publish ="],
        ),
        (
            "SELECT pg_create_physical_replication_slot('taken')",
            "SELECT pg_drop_replication_slot('taken')",
            "slot",
            &["1 of 2 slots are taken", "pg_drop_replication_slot", "max_replication_slots"],
        ),
        (
            "SELECT pg_create_physical_replication_slot('vecsync_faq')",
            "SELECT pg_drop_replication_slot('vecsync_faq')",
            "slot",
            &["physical replication", "source.slot"],
        ),
    ];
    for (seed, undo, name, words) in cases {
        eprintln!("{seed}");
        site.sql.execute(seed);
        expect(&site.vecsync, name, words);
        site.sql.execute(undo);
    }
    for (from, to, words) in [
        ("public.faq_faq", "public.faq_fqa", &["public.faq_fqa", "is it public.faq_faq?"][..]),
        ("{{ answer }}", "{{ anwser }}", &["no column `anwser`", "is `answer` meant?"]),
    ] {
        site.vecsync.write_pipeline(&PIPELINE.replace(from, to));
        expect(&site.vecsync, "table", words);
    }
    site.vecsync.write_pipeline(PIPELINE);
    let said = check(&site.vecsync, &["--skip-health", "--skip-operations"]);
    assert!(!said.contains("failed") && said.contains(table), "{said}");
}

/// What follows the remedies that the test above wants: the program takes them at their word.
#[test]
fn what_a_remedy_says_is_enough() {
    let mut site = Site::prepare();
    let columns = "id, question, category, is_active, updated_at";
    site.sql.execute("REVOKE SELECT ON faq_faq FROM vecsync");
    site.sql.execute(&format!("GRANT SELECT ({columns}) ON faq_faq TO vecsync"));
    site.sql.execute(&format!("ALTER PUBLICATION vecsync_faq SET TABLE faq_faq ({columns}) WHERE (is_active)"));
    for name in ["table", "publication"] {
        let said = check(&site.vecsync, &["--skip-health", "--skip-operations"]);
        let line = said.lines().find(|line| line.starts_with("failed") && line.contains(name)).expect("a fault");
        let (_, remedy) = line.split_once("; run ").expect("a remedy");
        eprintln!("{remedy}");
        site.sql.execute(remedy);
    }
    // A filter's columns have to be part of the replica identity, or updates are refused: as PostgreSQL says.
    site.sql.execute("ALTER TABLE faq_faq REPLICA IDENTITY FULL; ALTER PUBLICATION vecsync_faq SET TABLE faq_faq");
    site.sql.execute("GRANT SELECT ON faq_faq TO vecsync");
    site.start_ready();
    site.expect_equal(SOON);
    // Nor does a command that needs the publication send anybody to a vecsync that may not make it.
    site.sql.execute("DROP PUBLICATION vecsync_faq");
    let said = site.vecsync.run(&["sync", "--dry-run"]);
    assert_eq!(said.code, Some(1), "{said:?}");
    let wanted = "run CREATE PUBLICATION \"vecsync_faq\" FOR TABLE public.faq_faq; as the table's owner";
    assert!((said.stdout + &said.stderr).contains(wanted), "{}", said.stderr);
}

#[test]
fn a_server_that_is_not_set_up_or_lets_nobody_in_is_named() {
    let mut site = Site::prepare_with(&[("wal_level", "replica")]);
    expect(&site.vecsync, "publication", &["wal_level is replica", "ALTER SYSTEM SET wal_level = logical", "restart"]);
    let good = site.postgres.url(USER, PASSWORD);
    site.vecsync.set("DATABASE_URL", site.postgres.url(USER, "canary-of-a-password"));
    expect(
        &site.vecsync,
        "database",
        &["password authentication failed", "check the user and the password in DATABASE_URL"],
    );
    // TLS is asked for on one side alone, in both directions.
    site.vecsync.set("DATABASE_URL", good.replace("sslmode=disable", "sslmode=require"));
    expect(&site.vecsync, "database", &["the server does not offer TLS", "ssl = on", "sslmode=prefer"]);
    fs::write(site.postgres.data().join("pg_hba.conf"), "local all all trust\nhostssl all all all scram-sha-256\n")
        .unwrap();
    site.sql.query("SELECT pg_reload_conf()");
    site.vecsync.set("DATABASE_URL", &good);
    wait_until("the rules to count", SOON, || {
        let said = check(&site.vecsync, &["--skip-health", "--skip-operations"]);
        if said.contains("pg_hba.conf") { Ok(()) } else { Err(said) }
    });
    expect(&site.vecsync, "database", &["no encryption", "change sslmode if it asks for encryption"]);
    site.vecsync.set("DATABASE_URL", format!("postgresql://vecsync@127.0.0.1:{}/shop", free_port()));
    expect(&site.vecsync, "database", &["Connection refused", "check that PostgreSQL runs and listens there"]);
}

#[test]
fn what_is_wrong_with_this_machine_is_named() {
    let mut site = Site::prepare();
    // The data directory.
    let file = site.vecsync.path("file");
    fs::write(&file, "").unwrap();
    let good = site.vecsync.path("data");
    for folder in [format!("{file}/data"), "/proc/data".to_owned()] {
        site.set("VECSYNC_DATA_DIR", &folder);
        expect(&site.vecsync, "data", &[&folder, "cannot be written to", "set VECSYNC_DATA_DIR"]);
    }
    site.set("VECSYNC_DATA_DIR", good);
    // The model.
    let folder = site.vecsync.path("model");
    fs::create_dir(&folder).unwrap();
    let good = model_dir();
    site.set("VECSYNC_MODEL_DIR", &folder);
    expect(&site.vecsync, "model", &["int8 model", &folder, "No such file", "set VECSYNC_MODEL_DIR"]);
    for file in ["model_int8.onnx", "libonnxruntime.so"] {
        std::os::unix::fs::symlink(good.join(file), format!("{folder}/{file}")).unwrap();
    }
    let tokenizer = fs::read_to_string(good.join("tokenizer.json")).unwrap().replacen("[UNK]", "[UNC]", 1);
    fs::write(format!("{folder}/tokenizer.json"), tokenizer).unwrap();
    expect(&site.vecsync, "model", &["tokenizer", "another file", "sha256", "put the right one there"]);
    site.set("VECSYNC_MODEL_DIR", good.display());
    // The port, which a program has that hangs up.
    let taken = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let (address, hangs_up) = (taken.local_addr().unwrap(), taken.try_clone().unwrap());
    std::thread::spawn(move || while hangs_up.accept().is_ok_and(|(_, from)| from.port() != 0) {});
    let good = format!("127.0.0.1:{}", site.vecsync.port);
    site.set("VECSYNC_LISTEN", address);
    let said = check(&site.vecsync, &["--skip-operations"]);
    expect_in(&said, "server", &["VECSYNC_LISTEN", &address.to_string(), "another program has it", "set another port"]);
    // The data directory of another vecsync, which listens elsewhere.
    site.set("VECSYNC_LISTEN", good);
    site.start_ready();
    site.set("VECSYNC_LISTEN", format!("127.0.0.1:{}", free_port()));
    let said = check(&site.vecsync, &["--skip-operations"]);
    let folder = site.vecsync.path("data");
    expect_in(&said, "server", &["no vecsync answers", &folder, "listens elsewhere", "set VECSYNC_URL"]);
    let mut second = Vecsync::prepare(&site.postgres.url(USER, PASSWORD));
    second.set("VECSYNC_DATA_DIR", &folder);
    assert!(second.run(&["run"]).stderr.contains(&folder), "a second one is refused");
}

#[test]
fn what_is_wrong_with_the_brokers_is_named() {
    let _place = Place::take();
    let kafka = Kafka::shared();
    let mut vecsync = Vecsync::prepare(&format!("postgresql://vecsync@127.0.0.1:{}/shop", free_port()));
    let nobody = format!("127.0.0.1:{}", free_port());
    vecsync.set("KAFKA_BROKERS", &nobody);
    expect(&vecsync, "brokers", &[&nobody, "KAFKA_BROKERS"]);
    vecsync.set("KAFKA_BROKERS", kafka.brokers());
    let prefix = format!("t{}", free_port());
    vecsync.set("VECSYNC_TOPIC_PREFIX", &prefix);
    let topic = format!("{prefix}.faq.changes");
    kafka.tool(TOPICS, &["--create", "--topic", &topic, "--partitions", "8", "--config", "cleanup.policy=delete"]);
    expect(
        &vecsync,
        "brokers",
        &[&topic, "cleanup.policy", "kafka-configs --alter --add-config cleanup.policy=compact"],
    );
    vecsync.set("VECSYNC_TOPIC_PARTITIONS", 4);
    expect(&vecsync, "brokers", &[&topic, "it has 8 partitions", "set VECSYNC_TOPIC_PARTITIONS"]);
}

#[test]
fn what_is_wrong_with_qdrant_is_named() {
    let _place = Place::take();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut qdrant = Qdrant::own_with(Some("key-of-this-qdrant"), &[]);
    let mut vecsync = Vecsync::prepare(&format!("postgresql://vecsync@127.0.0.1:{}/shop", free_port()));
    let settings = qdrant.settings();
    vecsync.set("QDRANT_HOST", &settings.host);
    vecsync.set("QDRANT_PORT", settings.port);
    vecsync.set("QDRANT_GRPC_PORT", settings.grpc_port);
    vecsync.set("QDRANT_API_KEY", "canary-of-a-key");
    expect(&vecsync, "Qdrant", &["QDRANT_API_KEY"]);
    vecsync.set("QDRANT_API_KEY", "key-of-this-qdrant");
    // Nothing is wrong yet, and what makes the collection is said.
    let said = check(&vecsync, &["--skip-health", "--skip-operations"]);
    let line = said.lines().find(|line| line.contains("collection")).expect("a line");
    assert!(line.contains("there is no faq_embeddings yet; `vecsync init` or `vecsync run` makes it"), "{line}");
    // A width that is another model's.
    runtime.block_on(async {
        let client = qdrant.client();
        let vectors = VectorParamsBuilder::new(8, Distance::Cosine);
        client
            .create_collection(CreateCollectionBuilder::new("faq_embeddings__1").vectors_config(vectors))
            .await
            .unwrap();
        client.create_alias(CreateAliasBuilder::new("faq_embeddings__1", "faq_embeddings")).await.unwrap();
    });
    expect(&vecsync, "collection", &["8", "384", "`vecsync init --recreate`"]);
    vecsync.set("QDRANT_TLS", "true");
    expect(&vecsync, "Qdrant", &["speaks gRPC without TLS", "set QDRANT_TLS=false"]);
    vecsync.set("QDRANT_TLS", "false");
    // The ports the other way round, and one where nothing is.
    vecsync.set("QDRANT_PORT", settings.grpc_port);
    vecsync.set("QDRANT_GRPC_PORT", settings.port);
    expect(&vecsync, "Qdrant", &["as Qdrant's REST does", "set QDRANT_GRPC_PORT to its port for gRPC"]);
    vecsync.set("QDRANT_GRPC_PORT", free_port());
    expect(&vecsync, "Qdrant", &["nothing can be reached", "correct QDRANT_HOST and QDRANT_GRPC_PORT"]);
    vecsync.set("QDRANT_GRPC_PORT", settings.grpc_port);
    vecsync.set("QDRANT_PORT", free_port());
    expect(&vecsync, "REST", &["nothing can be reached", "set QDRANT_PORT"]);
    // It is there and stands still.
    qdrant.signal("STOP");
    expect(&vecsync, "Qdrant", &["takes connections and answers nothing", "start it again"]);
}
