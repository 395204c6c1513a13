//! Topics that Debezium's own PostgreSQL connector wrote, with schemas and without: every index equals the table.

use std::time::Duration;

use serde_json::Value;

use crate::support::connect::{Connect, Connector};
use crate::support::dice::Dice;
use crate::support::kafka::Kafka;
use crate::support::process::wait_until;
use crate::support::site::Site;
use crate::support::table::{category, expect_equal, insert, values};
use crate::support::vecsync::{COMMAND, PIPELINE, Vecsync};
use crate::writer::fill;

const CAUGHT_UP: Duration = Duration::from_secs(90);
const PARTITIONS: u16 = 3;
/// What Debezium puts for a large column that did not change.
const PLACEHOLDER: &str = "__debezium_unavailable_value";

/// The start of the answer is embedded, so that a very long one is still one window; all of it is in the payload.
fn pipeline(topic: &str) -> String {
    let source = format!("table = \"public.faq_faq\"\ntopic = \"{topic}\"");
    PIPELINE.replace("table = \"public.faq_faq\"", &source).replace("{{ answer }}", "{{ answer[:200] }}")
}

/// A vecsync on a topic of Debezium's, started. Without a database it has nothing but the topic.
fn reading(kafka: &Kafka, prefix: &str, database: Option<&str>, roles: &str) -> Vecsync {
    let mut vecsync = Vecsync::prepare(database.unwrap_or_default());
    vecsync.write_pipeline(&pipeline(&format!("{prefix}.public.faq_faq")));
    vecsync.set("KAFKA_BROKERS", kafka.brokers());
    vecsync.set("VECSYNC_TOPIC_PREFIX", format!("v{prefix}"));
    vecsync.set("VECSYNC_TOPIC_PARTITIONS", PARTITIONS);
    vecsync.roles(roles);
    vecsync.start();
    vecsync
}

#[test]
fn what_debezium_wrote_is_indexed_as_the_table_has_it() {
    let site = Site::prepare();
    let kafka = Kafka::shared();
    let sql = &site.sql;
    fill(sql, 100);
    let (with, without) = (format!("ds{}", site.postgres.port), format!("dn{}", site.postgres.port));
    let connectors = [Connector { prefix: &with, schemas: true }, Connector { prefix: &without, schemas: false }];
    let url = site.postgres.url(crate::support::postgres::USER, crate::support::postgres::PASSWORD);
    // They are there before the topics are.
    let mut readers = [reading(&kafka, &with, Some(&url), ""), reading(&kafka, &without, None, "")];
    for reader in &readers {
        reader.wait_for_log("there is no such topic", COMMAND);
    }
    let refused = readers[0].run(&["sync"]);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.stderr.contains("execute-snapshot"), "{refused:?}");
    let refused = readers[0].run(&["dead-letters", "retry", "--all"]);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.stderr.contains("source.topic names a topic that Debezium writes"), "{refused:?}");
    let mut connect = Connect::start(&kafka, &site.postgres, PARTITIONS, &connectors);

    // The snapshot.
    for reader in &mut readers {
        wait_until("the snapshot to be indexed", CAUGHT_UP, || match reader.points() {
            Some(100) => Ok(()),
            points => Err(format!("{points:?}")),
        });
        reader.wait_ready();
    }

    // An answer of 100 kB that stays when only the question changes, also twice in a row, and when it is made and
    // changed in one transaction.
    let mut dice = Dice::new(3);
    let long: Vec<String> = (0..3).map(|_| dice.words(16_000)).collect();
    sql.execute(&insert(&[values(701, "Long?", &long[0], &category(1)), values(702, "Long?", &long[1], &category(2))]));
    for reader in &mut readers {
        wait_until("the long row", CAUGHT_UP, || reader.row(701).map(drop).ok_or_else(|| "not there".to_owned()));
    }
    sql.execute("UPDATE faq_faq SET question = 'Longer?' WHERE id = 701");
    sql.execute("UPDATE faq_faq SET question = 'Longest?' WHERE id = 701");
    let both = insert(&[values(703, "Made?", &long[2], &category(3))]);
    sql.execute(&format!("BEGIN; {both}; UPDATE faq_faq SET question = 'Changed?' WHERE id = 703; COMMIT"));
    sql.execute("UPDATE faq_faq SET is_active = false WHERE id = 702");
    // The ordinary: a delete with its tombstone, a key that moves, an update, a logical message.
    sql.execute("DELETE FROM faq_faq WHERE id <= 10");
    sql.execute("UPDATE faq_faq SET id = 711 WHERE id = 11");
    sql.execute("UPDATE faq_faq SET answer = 'Rewritten' WHERE id BETWEEN 20 AND 40");
    sql.query("SELECT pg_logical_emit_message(true, 'test', 'nothing to see')");
    for reader in &mut readers {
        expect_equal(reader, sql, CAUGHT_UP);
        let row = reader.row(701).expect("it is indexed");
        assert_eq!((&row["question"], &row["answer"]), (&Value::from("Longest?"), &Value::from(long[0].as_str())));
        assert_eq!(reader.metric("vecsync_dead_letters_total", ""), Some(0.0));
    }
    // The table can be compared where it can be read, and nothing is published.
    for (reader, arguments, code, said) in [
        (&readers[0], &["verify"][..], 0, " the same, 0 missing, 0 stale, 0 extra"),
        (&readers[0], &["verify", "--repair"], 1, "vecsync publishes no rows itself"),
        (&readers[1], &["verify"], 1, "set DATABASE_URL"),
    ] {
        let ended = reader.run(arguments);
        assert_eq!(ended.code, Some(code), "{ended:?}");
        assert!(format!("{}{}", ended.stdout, ended.stderr).contains(said), "{said}: {ended:?}");
    }
    for prefix in [&with, &without] {
        let written = kafka.read(&format!("{prefix}.public.faq_faq"));
        let holds = |value: &[u8]| value.windows(PLACEHOLDER.len()).any(|part| part == PLACEHOLDER.as_bytes());
        let count = written.iter().filter(|entry| entry.value.as_deref().is_some_and(holds)).count();
        assert!(count >= 3, "only {count} records of {prefix} have the placeholder");
        let op_t = written.iter().filter(|entry| entry.key.is_empty()).count();
        assert_eq!(op_t, 0);
    }

    // A second embedder shares the partitions; the connector is killed with records whose offsets it has not kept, which
    // it sends again, and rows change while it is away.
    let mut second = reading(&kafka, &with, Some(&url), "embed");
    second.wait_for_log("partitions taken on", CAUGHT_UP);
    for round in 0..3 {
        sql.execute(&format!("UPDATE faq_faq SET answer = 'Before the kill {round}' WHERE id BETWEEN 40 AND 60"));
        sql.execute(&format!("DELETE FROM faq_faq WHERE id = {}", 41 + round));
        connect.kill();
        sql.execute(&format!("UPDATE faq_faq SET question = 'Longest {round}?' WHERE id = 701"));
        sql.execute(&format!("UPDATE faq_faq SET answer = 'While it is away {round}' WHERE id BETWEEN 50 AND 70"));
        connect.start_again();
        for reader in &mut readers {
            expect_equal(reader, sql, CAUGHT_UP);
        }
    }
    assert!(second.metric("vecsync_events_total", r#"stage="embed""#) > Some(0.0), "{}", second.log());

    let published = "SELECT count(*) FROM pg_publication WHERE pubtruncate AND pubname <> 'vecsync_faq'";
    assert_eq!(sql.value(published), "2");
    // One record in one partition empties all, and what comes after it stays.
    sql.execute("TRUNCATE faq_faq");
    let rows: Vec<String> = (1..=60)
        .map(|id| values(id, "After?", &format!("It was emptied before {id}"), &category(id as usize)))
        .collect();
    sql.execute(&insert(&rows));
    sql.execute(
        "BEGIN; INSERT INTO faq_faq (id, question, answer) VALUES (900, 'In between?', 'x'); TRUNCATE faq_faq; COMMIT",
    );
    sql.execute(&format!("BEGIN; TRUNCATE faq_faq; {}; COMMIT", insert(&rows[..40])));
    for prefix in [&with, &without] {
        let topic = format!("{prefix}.public.faq_faq");
        wait_until("the truncates to be written", COMMAND, || {
            let keyless: Vec<_> = kafka.read(&topic).into_iter().filter(|entry| entry.key.is_empty()).collect();
            if keyless.len() == 3 { Ok(()) } else { Err(format!("{} of 3", keyless.len())) }
        });
    }
    for reader in &mut readers {
        expect_equal(reader, sql, CAUGHT_UP);
    }
    // A mirror that is filled from the topics alone has it, too.
    let database = [Some(url.as_str()), None];
    for ((reader, prefix), database) in readers.into_iter().zip([&with, &without]).zip(database) {
        drop(reader);
        let mut fresh = reading(&kafka, prefix, database, "");
        fresh.wait_ready();
        expect_equal(&mut fresh, sql, CAUGHT_UP);
    }
}
