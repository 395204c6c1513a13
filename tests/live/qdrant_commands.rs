//! What a person does with Qdrant by hand: makes the collection, looks at it, has it filled anew.

use std::time::Duration;

use qdrant_client::qdrant::{OptimizersConfigDiffBuilder, UpdateCollectionBuilder};
use serde_json::{Value, json};
use tokio_rustls::rustls;

use crate::qdrant_run::{Pair, SOON};
use crate::support::process::{free_port, wait_until};
use crate::support::qdrant::Qdrant;
use crate::support::vecsync::PIPELINE;
use crate::writer::Writer;

const CAUGHT_UP: Duration = Duration::from_secs(120);

#[track_caller]
fn init(pair: &Pair, flags: &[&str], code: i32, words: &[&str]) {
    let ended = pair.site.vecsync.run(&[&["init"], flags].concat());
    let said = format!("{}{}", ended.stdout, ended.stderr);
    assert_eq!(ended.code, Some(code), "init {flags:?}: {said}");
    for word in words {
        assert!(said.contains(word), "init {flags:?}: {word:?} is not in {said}");
    }
}

#[test]
fn a_pipeline_file_names_its_own_collection() {
    let pair = Pair::prepare(Qdrant::own(), 0);
    let own = pair.qdrant.name("own");
    pair.site.vecsync.write_pipeline(&PIPELINE.replace("[index]", &format!("[index]\ncollection = \"{own}\"")));
    init(&pair, &[], 0, &["is made", &format!("{own}__1")]);
    assert_eq!(pair.collections(), [""; 0], "QDRANT_COLLECTION_NAME is for pipelines that name none");
}

#[test]
fn init_makes_the_collection_and_says_how_it_is() {
    let mut pair = Pair::prepare(Qdrant::own(), 40);
    let (alias, first) = (pair.alias.clone(), format!("{}__1", pair.alias));
    init(&pair, &["--health-check-only"], 0, &["Qdrant 1.", "answers in"]);
    init(&pair, &["--validate"], 3, &[&alias, "vecsync init"]);
    init(&pair, &["--stats"], 0, &[&alias]);
    init(&pair, &[], 0, &["is made", &first]);
    init(&pair, &[], 0, &["is there already", &first]);
    init(&pair, &["--validate"], 0, &["as it would be made now"]);
    pair.site.vecsync.start_ready();
    pair.expect_equal(CAUGHT_UP);
    init(&pair, &["--stats"], 0, &[&first, "40 rows, 40 points", "which searches ask"]);

    let threshold = OptimizersConfigDiffBuilder::default().indexing_threshold(7);
    let update = UpdateCollectionBuilder::new(&first).optimizers_config(threshold);
    pair.runtime.block_on(pair.qdrant.client().update_collection(update)).unwrap();
    init(&pair, &["--validate"], 3, &["indexing_threshold is 7, wanted 20000"]);
    pair.runtime.block_on(pair.qdrant.client().delete_field_index(delete_index(&first))).unwrap();
    init(&pair, &["--validate"], 3, &["there is no index on category, wanted one of kind Keyword"]);

    pair.qdrant.kill();
    init(&pair, &["--health-check-only"], 3, &["Qdrant"]);
    init(&pair, &[], 1, &["Qdrant"]);
    init(&pair, &["--recreate"], 1, &["Qdrant"]);
    pair.site.vecsync.set("RAG_VECTOR_STORE_TYPE", "local");
    init(&pair, &[], 2, &["QDRANT_HOST"]);
}

fn delete_index(collection: &str) -> qdrant_client::qdrant::DeleteFieldIndexCollectionBuilder {
    qdrant_client::qdrant::DeleteFieldIndexCollectionBuilder::new(collection, "category").wait(true)
}

#[test]
fn a_new_generation_is_filled_while_rows_are_written_and_searched() {
    let mut pair = Pair::prepare(Qdrant::start(), 300);
    pair.site.vecsync.start_ready();
    pair.expect_equal(CAUGHT_UP);
    pair.expect_served_by("qdrant", SOON);
    let named = |pair: &mut Pair| pair.site.vecsync.get("/health/qdrant/").json()["collection"]["generation"].clone();
    let writer = Writer::start(&pair.site.postgres, 5, Duration::from_millis(20));
    for (round, command) in [&["replay", "--topic", "vectors", "--into", "new", "--json"][..], &["init", "--recreate"]]
        .into_iter()
        .enumerate()
    {
        writer.wait_for_more(20);
        let mut running = pair.site.vecsync.spawn(command);
        // Every search is answered meanwhile.
        let status = wait_until("the command to end", CAUGHT_UP, || {
            let answer = pair.site.vecsync.search("anything", "");
            assert!(!answer["results"].as_array().unwrap().is_empty(), "{answer}");
            running.try_wait().unwrap().ok_or_else(|| "it runs".to_owned())
        });
        assert!(status.success(), "{command:?}: {status}: {}", pair.site.vecsync.log());
        wait_until("the alias to name it", SOON, || match named(&mut pair) {
            number if number == round + 2 => Ok(()),
            number => Err(number.to_string()),
        });
    }
    writer.finish();
    pair.expect_equal(CAUGHT_UP);
    pair.expect_searched(CAUGHT_UP);
    // Those before are gone, as `--recreate` says.
    assert_eq!(pair.collections(), [format!("{}__3", pair.alias)]);

    // With nobody writing, the new one is the same to the last row, and nothing is embedded for it.
    let embedded = pair.site.vecsync.metric("vecsync_embeddings_total", "");
    let ended = pair.site.vecsync.run(&["replay", "--topic", "vectors", "--into", "new", "--json"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let said: Value = serde_json::from_str(&ended.stdout).unwrap();
    let (difference, searches) = (&said["qdrant"]["difference"], &said["qdrant"]["searches"]);
    for kind in ["different", "only_old", "only_new"] {
        assert_eq!(difference[kind], 0, "{said}");
    }
    assert!(difference["same"].as_u64() > Some(100), "{said}");
    assert_eq!(searches["same"], searches["made"], "{said}");
    assert_eq!(said["qdrant"]["collection"], json!(format!("{}__4", pair.alias)));
    assert_eq!(pair.site.vecsync.metric("vecsync_embeddings_total", ""), embedded);
    // The one before is kept.
    assert_eq!(pair.collections(), [3, 4].map(|number| format!("{}__{number}", pair.alias)));
    pair.expect_equal(SOON);
}

#[test]
fn who_asked_for_a_generation_is_told_that_vecsync_ended() {
    let pair = &mut Pair::prepare(Qdrant::own_with(None, &[("QDRANT_TEST_DELAY_MS", "30")]), 400);
    pair.site.vecsync.start_ready();
    pair.expect_equal(CAUGHT_UP);
    let ended = std::thread::scope(|scope| {
        let vecsync = &pair.site.vecsync;
        let running = scope.spawn(|| vecsync.run_within(&["init", "--recreate"], CAUGHT_UP));
        vecsync.wait_for_log("another generation is filled in Qdrant", SOON);
        vecsync.signal("KILL");
        running.join().unwrap()
    });
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    for word in ["ended before it was done", "the generation that searches ask is as it was"] {
        assert!(ended.stderr.contains(word) && !ended.stderr.contains("EOF"), "{}", ended.stderr);
    }
    pair.expect_equal(SOON);
}

#[test]
fn a_port_that_speaks_something_else_is_named_with_the_remedy() {
    let mut pair = Pair::prepare(Qdrant::own(), 0);
    let settings = pair.qdrant.settings();
    let tls = tls_port();
    let (grpc, rest, free) = (settings.grpc_port, settings.port, free_port());
    for (grpc_port, port, by_tls, remedy) in [
        (rest, grpc, false, "speaks HTTP/1, as Qdrant's REST does: set QDRANT_GRPC_PORT"),
        (grpc, rest, true, "speaks gRPC without TLS: set QDRANT_TLS=false"),
        (tls, rest, false, "speaks TLS: set QDRANT_TLS=true"),
        (free, rest, false, "but REST answers at port"),
        (free, free_port(), false, "start Qdrant, or correct QDRANT_HOST and QDRANT_GRPC_PORT"),
    ] {
        for (name, value) in [("QDRANT_GRPC_PORT", grpc_port.to_string()), ("QDRANT_PORT", port.to_string())] {
            pair.site.vecsync.set(name, value);
        }
        pair.site.vecsync.set("QDRANT_TLS", by_tls);
        init(&pair, &[], 1, &[remedy]);
        init(&pair, &["--migrate"], 1, &[remedy]);
        init(&pair, &["--health-check-only"], 3, &[remedy]);
        let ended = pair.site.vecsync.run(&["check", "--skip-health", "--skip-operations"]);
        assert!(ended.code == Some(3) && ended.stdout.contains(remedy), "{remedy}: {}", ended.stdout);
    }
    pair.site.vecsync.set("QDRANT_GRPC_PORT", grpc);
    for (port, remedy) in [(free, "set QDRANT_PORT to Qdrant's port for REST"), (tls, "REST and gRPC need the same")] {
        pair.site.vecsync.set("QDRANT_PORT", port);
        init(&pair, &["--health-check-only"], 0, &["Its REST cannot be used", remedy]);
        let ended = pair.site.vecsync.run(&["check", "--skip-health", "--skip-operations"]);
        let is_told = ended.stdout.lines().any(|line| line.starts_with("failed  REST") && line.contains(remedy));
        assert!(ended.code == Some(3) && is_told, "{remedy}: {}", ended.stdout);
    }
}

/// A port where somebody waits for TLS.
fn tls_port() -> u16 {
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let config = std::sync::Arc::new(config);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut connection = rustls::ServerConnection::new(std::sync::Arc::clone(&config)).unwrap();
            let mut stream = stream;
            // What is no TLS is told by an alert.
            let _refused = connection.complete_io(&mut stream);
        }
    });
    port
}

#[test]
fn a_revision_that_was_taken_up_anew_is_compared_by_its_name() {
    let mut pair = Pair::prepare(Qdrant::own(), 10);
    pair.site.vecsync.start_ready();
    pair.expect_equal(CAUGHT_UP);
    init(&pair, &["--validate"], 0, &["as it would be made now"]);
    assert_eq!(pair.site.vecsync.terminate().code, Some(0));
    // As it is when one has gone back to a model of long ago.
    let current = std::path::PathBuf::from(pair.site.vecsync.path("data/mirror/current"));
    let mut named: Value = serde_json::from_slice(&std::fs::read(&current).unwrap()).unwrap();
    let revision = named["revision"].as_str().unwrap().to_owned();
    named["revision"] = json!(format!("{revision}-2"));
    std::fs::write(&current, named.to_string()).unwrap();
    let wanted = format!("revision {revision}-2, ");
    init(&pair, &["--validate"], 3, &["it was made for pipeline faq, revision ", &wanted]);
    let ended = pair.site.vecsync.run(&["check", "--skip-health", "--skip-operations"]);
    assert!(ended.code == Some(3) && ended.stdout.contains(&wanted), "{}", ended.stdout);
    init(&pair, &["--stats"], 0, &[&format!("10 rows, 10 points, revision {revision}, which searches ask")]);
}

#[test]
fn a_rebuild_that_is_killed_harms_nothing_and_can_be_made_again() {
    let mut pair = Pair::prepare(Qdrant::own(), 400);
    pair.site.vecsync.start_ready();
    pair.expect_equal(CAUGHT_UP);
    for harm in ["vecsync", "Qdrant"] {
        let mut running = pair.site.vecsync.spawn(&["init", "--recreate"]);
        pair.site.vecsync.wait_for_log("another generation is filled in Qdrant", SOON);
        match harm {
            "vecsync" => pair.site.vecsync.kill(),
            _ => pair.qdrant.kill(),
        }
        running.wait().unwrap();
        match harm {
            "vecsync" => pair.site.vecsync.start_ready(),
            _ => pair.qdrant.restart(),
        }
        pair.expect_equal(CAUGHT_UP);
        pair.expect_served_by("qdrant", CAUGHT_UP);
    }
    let ended = pair.site.vecsync.run(&["init", "--recreate"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stdout.contains("400 rows (400 points)"), "{}", ended.stdout);
    assert_eq!(pair.collections().len(), 1, "{:?}", pair.collections());
    pair.expect_equal(SOON);
}
