//! Kafka as the log: roles in processes of their own, killed, joined, cut off; afterwards every mirror equals the table.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use vecsync::event::{Record, VectorEvent};

use crate::dead_letters::{dividing_pipeline, expect_listed, listed, retry};
use crate::support::dice::Dice;
use crate::support::kafka::{Entry, Kafka};
use crate::support::postgres::{PASSWORD, USER};
use crate::support::process::wait_until;
use crate::support::site::Site;
use crate::support::table::{category, expect_equal, insert, values};
use crate::support::vecsync::{COMMAND, Vecsync};
use crate::writer::{Writer, fill};

pub const CAUGHT_UP: Duration = Duration::from_secs(180);

/// Waits until an embed says that it has taken everything, with so many dead letters open, and gives its position.
#[track_caller]
fn expect_known(embed: &mut Vecsync, letters: f64) -> u64 {
    wait_until("embed to know how far it is", CAUGHT_UP, || {
        let status = embed.http.get("/status").map_err(|error| error.to_string())?.json();
        let stage = status["stages"].as_array().and_then(|stages| stages.first()).cloned().unwrap_or_default();
        let counted = ["vecsync_embed_lag_records", "vecsync_dead_letters_open"].map(|name| embed.metric(name, ""));
        match stage["position"].as_str().and_then(|position| position.parse().ok()) {
            Some(position) if counted == [Some(0.0), Some(letters)] && stage["lag_records"] == 0 => Ok(position),
            _ => Err(format!("{counted:?} {stage}")),
        }
    })
}

#[test]
fn how_far_embed_is_is_known_before_there_is_a_record() {
    let cluster = Cluster::prepare(Kafka::shared(), 0);
    // Nobody captures, so nothing comes.
    let mut embed = cluster.process("embed");
    embed.write_pipeline(&dividing_pipeline());
    embed.start();
    assert_eq!(expect_known(&mut embed, 0.0), 0);
    let mut capture = cluster.started("capture");
    let rows: Vec<String> = (1..=20).map(|id| values(id, if id == 7 { "" } else { "Who?" }, "They.", "c01")).collect();
    cluster.site.sql.execute(&insert(&rows));
    wait_until("the letter to be open", CAUGHT_UP, || match embed.metric("vecsync_dead_letters_open", "") {
        Some(1.0) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    assert_eq!(capture.terminate().code, Some(0));
    let position = expect_known(&mut embed, 1.0);
    assert!(position >= 20, "{position}");
    assert_eq!(embed.terminate().code, Some(0));
    embed.start();
    assert_eq!(expect_known(&mut embed, 1.0), position);
    assert_eq!(embed.metric("vecsync_events_total", "stage=\"embed\""), Some(0.0));
    // One that joins takes partitions over, and both know of theirs alone.
    let mut other = cluster.process("embed");
    other.write_pipeline(&dividing_pipeline());
    other.start();
    wait_until("two to share what one had", CAUGHT_UP, || {
        let both = [&mut embed, &mut other].map(|embed| {
            let status = embed.http.get("/status").ok()?.json();
            let position = status["stages"][0]["position"].as_str()?.parse::<u64>().ok()?;
            Some((position, embed.metric("vecsync_dead_letters_open", "")?))
        });
        let [Some((one, here)), Some((two, there))] = both else { return Err(format!("{both:?}")) };
        if one > 0 && two > 0 && one + two == position && here + there == 1.0 {
            Ok(())
        } else {
            Err(format!("{both:?}, were {position}"))
        }
    });
}

/// A site whose log is on a broker. `site.vecsync` has all roles, or those that a test starts it with.
pub struct Cluster {
    pub prefix: String,
    pub site: Site,
    pub kafka: Arc<Kafka>,
}

impl Cluster {
    pub fn prepare(kafka: Arc<Kafka>, rows: i64) -> Cluster {
        Cluster::prepare_with(kafka, rows, &[])
    }

    /// With settings of PostgreSQL.
    pub fn prepare_with(kafka: Arc<Kafka>, rows: i64, settings: &[(&str, &str)]) -> Cluster {
        Cluster::of(kafka, rows, Site::prepare_with(settings))
    }

    pub fn of(kafka: Arc<Kafka>, rows: i64, site: Site) -> Cluster {
        fill(&site.sql, rows);
        // A port is taken once at a time, so it makes a name that no other test has.
        let prefix = format!("t{}", site.postgres.port);
        let mut cluster = Cluster { prefix, site, kafka };
        let (brokers, prefix) = (cluster.kafka.brokers(), cluster.prefix.clone());
        cluster.site.vecsync.set("KAFKA_BROKERS", brokers);
        cluster.site.vecsync.set("VECSYNC_TOPIC_PREFIX", prefix);
        cluster
    }

    /// A process with some roles and a data directory of its own, not started.
    pub fn process(&self, roles: &str) -> Vecsync {
        Cluster::process_on(&self.site, &self.kafka, &self.prefix, roles)
    }

    /// The same beside any site.
    pub fn process_on(site: &Site, kafka: &Kafka, prefix: &str, roles: &str) -> Vecsync {
        let mut vecsync = Vecsync::prepare(&site.postgres.url(USER, PASSWORD));
        vecsync.set("KAFKA_BROKERS", kafka.brokers());
        vecsync.set("VECSYNC_TOPIC_PREFIX", prefix);
        vecsync.roles(roles);
        vecsync
    }

    pub fn started(&self, roles: &str) -> Vecsync {
        let mut vecsync = self.process(roles);
        vecsync.start();
        vecsync
    }

    /// Each event of the stream stands in `changes` once: a key that was moved is two records of one event.
    #[track_caller]
    pub fn expect_published_once(&self) {
        let all = self.expect_none_twice();
        assert!(all > 100, "only {all} events have a place in the source");
    }

    /// The same of however many there are. Says how many.
    #[track_caller]
    pub fn expect_none_twice(&self) -> usize {
        let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut all = 0;
        for entry in self.kafka.read(&self.topic("changes")) {
            let Some(value) = &entry.value else { continue };
            let event: Value = serde_json::from_slice(value).unwrap();
            let source = &event["source"];
            if let (Some(lsn), Some(ordinal)) = (source["commit_lsn"].as_u64(), source["ordinal"].as_u64()) {
                // A truncate stands in every partition.
                let key = String::from_utf8_lossy(&entry.key).into_owned();
                let place = format!("{lsn}/{ordinal} {key} in {}", entry.partition);
                let (op, time) = (&event["op"], &event["ts_ms"]);
                places.entry(place).or_default().push(format!("{} {op} {time}", entry.offset));
                all += 1;
            }
        }
        let twice: Vec<_> = places.iter().filter(|(_, stand)| stand.len() > 1).collect();
        assert!(
            twice.is_empty(),
            "{} of {all} events were published twice: {:?}",
            twice.len(),
            &twice[..twice.len().min(8)]
        );
        all
    }

    pub fn topic(&self, name: &str) -> String {
        format!("{}.faq.{name}", self.prefix)
    }

    /// A mirror that is filled from the topics alone equals the table.
    #[track_caller]
    pub fn expect_rebuilt(&self) {
        let mut fresh = self.process("serve");
        fresh.start_ready();
        expect_equal(&mut fresh, &self.site.sql, CAUGHT_UP);
    }

    /// Has the broker compact a topic until a new reader sees neither a row twice nor a tombstone; tombstones are kept for
    /// no time meanwhile, and then for a day again. Nobody may write rows; heartbeats must go on, since only a record that
    /// is appended closes a segment.
    #[track_caller]
    pub fn compact(&self, topic: &str) {
        self.configure(topic, "segment.ms=500,min.cleanable.dirty.ratio=0.001,delete.retention.ms=1");
        let was = superseded(&self.kafka.read(topic));
        wait_until(&format!("{topic} to be compacted"), CAUGHT_UP, || match superseded(&self.kafka.read(topic)) {
            (_, 0, 0) => Ok(()),
            left => Err(format!("records, of them older ones and tombstones: {left:?}, were {was:?}")),
        });
        eprintln!(
            "{topic}: of {was:?} records, older ones, tombstones {:?} are left",
            superseded(&self.kafka.read(topic))
        );
    }

    /// Sets settings of a topic.
    pub fn configure(&self, topic: &str, settings: &str) {
        let arguments = ["--alter", "--entity-type", "topics", "--entity-name", topic, "--add-config", settings];
        self.kafka.tool("kafka.admin.ConfigCommand", &arguments);
    }

    /// No record of `vectors` shows an older version of a row than one before it, nor one version twice.
    #[track_caller]
    pub fn expect_in_order(&self, revision: &str) {
        let mut last: BTreeMap<Vec<u8>, u64> = BTreeMap::new();
        let (mut records, topic) = (0, self.topic(&format!("vectors.{revision}")));
        for entry in self.kafka.read(&topic) {
            let version = match VectorEvent::from_record(&entry.record()).unwrap() {
                VectorEvent::Upsert { row, .. } => row.version,
                VectorEvent::Delete { version, .. } => version.0,
                _ => continue,
            };
            records += 1;
            let (key, place) = (String::from_utf8_lossy(&entry.key).into_owned(), (entry.partition, entry.offset));
            if let Some(before) = last.insert(entry.key, version) {
                assert!(before != version, "{key} has version {version} twice, again at {place:?}");
                assert!(before < version, "{key} has version {before} and then {version} at {place:?}");
            }
        }
        assert!(records > 100, "only {records} records in {topic}");
        eprintln!("{records} records of {} rows in {topic}", last.len());
    }
}

/// How many records there are, how many of them are older ones of a row, and how many are tombstones.
fn superseded(entries: &[Entry]) -> (usize, usize, usize) {
    let rows: Vec<&Entry> = entries.iter().filter(|entry| !Record::is_reserved(&entry.key)).collect();
    let keys: BTreeSet<&[u8]> = rows.iter().map(|entry| &entry.key[..]).collect();
    (entries.len(), rows.len() - keys.len(), rows.iter().filter(|entry| entry.value.is_none()).count())
}

/// The revision that this vecsync has said it embeds.
pub fn revision(vecsync: &Vecsync) -> String {
    let log = vecsync.log();
    let named = log.split("revision=\"").nth(1).and_then(|rest| rest.split('"').next());
    named.expect("it names its revision").to_owned()
}

#[test]
fn one_process_does_all_and_goes_on_after_kills() {
    let mut cluster = Cluster::prepare(Kafka::shared(), 300);
    cluster.site.vecsync.start_ready();
    cluster.site.expect_equal(CAUGHT_UP);
    let mut dice = Dice::new(11);
    let writer = Writer::start(&cluster.site.postgres, 11, Duration::from_millis(20));
    for _ in 0..4 {
        writer.wait_for_more(20 + dice.below(60) as u64);
        cluster.site.vecsync.kill();
        cluster.site.vecsync.start();
    }
    writer.finish();
    cluster.site.vecsync.wait_ready();
    cluster.site.expect_equal(CAUGHT_UP);
}

#[test]
fn roles_in_processes_of_their_own_are_killed_and_joined_at_any_time() {
    let cluster = Cluster::prepare(Kafka::shared(), 300);
    let mut capture = cluster.started("capture");
    let mut embedders = vec![cluster.started("embed"), cluster.started("embed")];
    let mut serve = cluster.started("serve");
    serve.wait_ready();
    let seed = 4711;
    let mut dice = Dice::new(seed);
    let writer = Writer::start(&cluster.site.postgres, seed, Duration::from_millis(20));
    for round in 0..8 {
        writer.wait_for_more(dice.below(100) as u64);
        match dice.below(4) {
            0 => {
                capture.kill();
                capture.start();
            }
            1 => embedders.push(cluster.started("embed")),
            2 if embedders.len() > 1 => {
                let last = embedders.len() - 1;
                embedders.swap_remove(dice.below(last + 1)).kill();
            }
            _ => {
                serve.kill();
                serve.start();
            }
        }
        for embedder in &mut embedders {
            assert_eq!(embedder.ended(), None, "round {round}: {}", embedder.log());
        }
    }
    writer.finish();
    serve.wait_ready();
    expect_equal(&mut serve, &cluster.site.sql, CAUGHT_UP);
    cluster.expect_rebuilt();
    cluster.expect_published_once();
}

#[test]
fn a_broker_that_goes_away_and_comes_back_costs_nothing() {
    let mut cluster = Cluster::prepare(Arc::new(Kafka::start()), 100);
    cluster.site.vecsync.start_ready();
    let writer = Writer::start(&cluster.site.postgres, 7, Duration::from_millis(50));
    for crash in [false, true] {
        let kafka = Arc::get_mut(&mut cluster.kafka).expect("it is nobody else's");
        if crash {
            kafka.crash()
        } else {
            kafka.stop()
        }
        writer.wait_for_more(100);
        // What is there is searched meanwhile.
        assert!(!cluster.site.search("anything", "")["results"].as_array().unwrap().is_empty());
        Arc::get_mut(&mut cluster.kafka).expect("it is nobody else's").launch();
    }
    writer.finish();
    cluster.site.expect_equal(CAUGHT_UP);
}

#[test]
fn rows_that_went_while_the_slot_was_gone_are_deleted_by_a_resync() {
    let mut cluster = Cluster::prepare(Kafka::shared(), 200);
    cluster.site.vecsync.start_ready();
    cluster.site.expect_equal(CAUGHT_UP);
    assert_eq!(cluster.site.vecsync.terminate().code, Some(0));
    cluster.site.sql.query("SELECT pg_drop_replication_slot('vecsync_faq')");
    cluster.site.sql.execute("DELETE FROM faq_faq WHERE id <= 50");
    cluster.site.sql.execute("UPDATE faq_faq SET answer = 'Nobody was listening' WHERE id = 60");
    cluster.site.vecsync.start();
    cluster.site.vecsync.wait_for_log("vecsync sync", CAUGHT_UP);
    let synced = cluster.site.vecsync.run(&["sync"]);
    assert_eq!(synced.code, Some(0), "{}", synced.stderr);
    cluster.site.expect_equal(CAUGHT_UP);
    assert_eq!(cluster.site.row(60).unwrap()["answer"], "Nobody was listening");
}

#[test]
fn topics_that_would_lose_rows_are_refused_with_the_remedy() {
    let mut cluster = Cluster::prepare(Kafka::shared(), 10);
    let name = cluster.topic("changes");
    let topics = "org.apache.kafka.tools.TopicCommand";
    cluster
        .kafka
        .tool(topics, &["--create", "--topic", &name, "--partitions", "3", "--config", "cleanup.policy=compact"]);
    cluster.site.vecsync.start();
    let ended = cluster.site.vecsync.wait_for_exit(COMMAND);
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    for part in [&name, "3 partitions", "VECSYNC_TOPIC_PARTITIONS asks for 8"] {
        assert!(ended.stderr.contains(part), "{part:?}: {}", ended.stderr);
    }
    cluster.site.vecsync.set("VECSYNC_TOPIC_PREFIX", format!("{}x", cluster.prefix));
    let name = format!("{}x.faq.changes", cluster.prefix);
    cluster
        .kafka
        .tool(topics, &["--create", "--topic", &name, "--partitions", "8", "--config", "cleanup.policy=delete"]);
    cluster.site.vecsync.start();
    let ended = cluster.site.vecsync.wait_for_exit(COMMAND);
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    for part in [&name, "cleanup.policy", "compact", "kafka-configs"] {
        assert!(ended.stderr.contains(part), "{part:?}: {}", ended.stderr);
    }
}

#[test]
fn who_was_stopped_and_wakes_writes_nothing_that_counts() {
    // So that the slot of the capture that stands still is free soon.
    let cluster = Cluster::prepare_with(Kafka::shared(), 200, &[("wal_sender_timeout", "2s")]);
    let captures = [cluster.started("capture"), cluster.started("capture")];
    let embedders = [cluster.started("embed"), cluster.started("embed")];
    let mut serve = cluster.started("serve");
    serve.wait_ready();
    for embedder in &embedders {
        embedder.wait_for_log("partitions taken on partitions=[", CAUGHT_UP);
    }
    let writer = Writer::start(&cluster.site.postgres, 5, Duration::from_millis(20));
    let says = |vecsync: &Vecsync, what: &str| vecsync.log().matches(what).count();
    for round in 0..2 {
        // Lines begin with their time: who began to stream last is the one that streams.
        let began = |capture: &&Vecsync| {
            capture.log().lines().rfind(|line| line.contains("streaming public")).map(str::to_owned)
        };
        let streaming = captures.iter().max_by_key(began).unwrap();
        let other = captures.iter().find(|capture| capture.port != streaming.port).unwrap();
        let (took, shared) = (says(other, "streaming public"), says(&embedders[1 - round], "partitions taken on"));
        streaming.signal("STOP");
        embedders[round].signal("STOP");
        wait_until("the others to take over", CAUGHT_UP, || {
            let now = (says(other, "streaming public"), says(&embedders[1 - round], "partitions taken on"));
            if now.0 > took && now.1 > shared { Ok(()) } else { Err(format!("{now:?}")) }
        });
        writer.wait_for_more(50);
        streaming.signal("CONT");
        embedders[round].signal("CONT");
        writer.wait_for_more(50);
    }
    writer.finish();
    expect_equal(&mut serve, &cluster.site.sql, CAUGHT_UP);
    cluster.expect_rebuilt();
    cluster.expect_published_once();
}

#[test]
fn what_is_no_change_is_put_aside_with_its_bytes_and_the_rest_goes_on() {
    let mut cluster = Cluster::prepare(Kafka::shared(), 50);
    cluster.site.vecsync.start_ready();
    let changes = cluster.topic("changes");
    let large = vec![b'x'; 10 << 20];
    let junk: [(&[u8], &[u8]); 5] = [
        (b"", br#"{"a":1}"#),
        (b"{}", b"{}"),
        (br#"{"id":1}"#, b"{"),
        (br#"{"id":1}"#, br#"{"specversion":"1.0"}"#),
        (br#"{"id":2}"#, &large),
    ];
    for (key, value) in junk {
        cluster.kafka.write(&changes, 0, key, value);
    }
    let put_aside = wait_until("the dead letters", CAUGHT_UP, || {
        match cluster.site.vecsync.metric("vecsync_dead_letters_total", "unreadable") {
            Some(5.0) => Ok(cluster.kafka.read(&cluster.topic("dead-letter"))),
            count => Err(format!("{count:?}")),
        }
    });
    let mut lengths: Vec<usize> =
        put_aside.iter().map(|letter| letter.value.as_deref().unwrap_or_default().len()).collect();
    lengths.sort();
    // Of two with one key the newer stays when the topic is compacted; both are there until then.
    assert_eq!(lengths, [1, 2, 7, 21, 10 << 20]);
    assert!(put_aside.iter().all(|letter| !letter.key.is_empty()));
    cluster.site.expect_equal(CAUGHT_UP);
}

#[test]
fn positions_that_are_gone_are_refused_and_more_partitions_are_noticed() {
    let cluster = Cluster::prepare(Kafka::shared(), 50);
    let mut all = cluster.process("capture,serve");
    let mut embed = cluster.started("embed");
    all.start_ready();
    assert_eq!(embed.terminate().code, Some(0), "{}", embed.log());
    let group = format!("{}.faq.embed.{}", cluster.prefix, revision(&embed));
    let groups = "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand";
    cluster.kafka.tool(groups, &["--delete", "--group", &group]);
    embed.start();
    let ended = embed.wait_for_exit(COMMAND);
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    for part in [&cluster.topic("changes"), "no valid position", "vecsync sync"] {
        assert!(ended.stderr.contains(part), "{part:?}: {}", ended.stderr);
    }
    let topics = "org.apache.kafka.tools.TopicCommand";
    cluster.kafka.tool(topics, &["--alter", "--topic", &cluster.topic("changes"), "--partitions", "12"]);
    wait_until("health to name it", CAUGHT_UP, || {
        let health = all.get("/health/detailed/").json();
        let said = health["components"]["log"]["error"].as_str().unwrap_or_default().to_owned();
        if said.contains("it has 12 partitions") && health["status"] == "degraded" { Ok(()) } else { Err(said) }
    });
    assert_eq!(all.get("/health/ready/").status, 200, "searches are answered");
}

#[test]
fn dead_letters_are_closed_by_whoever_has_their_partition() {
    let cluster = Cluster::prepare(Kafka::shared(), 20);
    let capture = cluster.started("capture");
    let mut first = cluster.started("embed");
    let mut serve = cluster.started("serve");
    serve.wait_ready();
    let changes = cluster.topic("changes");
    // Of every partition some.
    let poisoned: Vec<Value> = (1..=9).map(|id| json!({"id": id})).chain([json!({"id": 7777})]).collect();
    for key in &poisoned {
        cluster.kafka.write_keyed(&changes, &key.to_string(), "{");
    }
    cluster.kafka.write_keyed(&changes, "no key", "{");
    let keys = |ids: std::ops::Range<usize>| [&[json!("no key")], &poisoned[ids]].concat();
    let letters = expect_listed(&capture, &keys(0..10));
    let shown = capture.run(&["dead-letters", "show", letters[5]["id"].as_str().unwrap(), "--json"]);
    let shown: Value = serde_json::from_str(&shown.stdout).unwrap_or_else(|_| panic!("{shown:?}"));
    assert_eq!(
        (&shown["topic"], &shown["value"], &shown["reason"]),
        (&json!(changes), &json!("{"), &json!("unreadable"))
    );
    let place = (shown["partition"].as_i64(), shown["offset"].as_i64());
    let poison = cluster.kafka.read(&changes);
    let poison = poison.iter().rfind(|entry| entry.key == br#"{"id":5}"#).expect("it was written");
    assert_eq!(place, (Some(poison.partition.into()), Some(poison.offset)));
    // From a process that does not capture the topic itself is read.
    assert_eq!(listed(&serve).len(), 11);

    // Another takes the partitions on, with letters that it has not put aside.
    let mut second = cluster.started("embed");
    wait_until("the second to embed", CAUGHT_UP, || match second.metric("vecsync_events_total", "stage=\"embed\"") {
        Some(1.0..) => Ok(()),
        counted => Err(format!("{counted:?}")),
    });
    first.kill();
    cluster.site.sql.execute("UPDATE faq_faq SET answer = 'Superseded' WHERE id <= 6");
    expect_listed(&capture, &keys(6..10));
    assert_eq!(serve.row(5).expect("it is indexed")["answer"], "Superseded");
    let retried = retry(&capture, &["--all"]);
    assert_eq!(retried.code, Some(1), "{retried:?}");
    assert!(retried.stderr.contains("names no row") && retried.stdout.lines().count() == 4, "{retried:?}");
    expect_listed(&capture, &keys(0..0));
    assert_eq!(second.ended(), None);
    expect_equal(&mut serve, &cluster.site.sql, CAUGHT_UP);
    cluster.expect_rebuilt();
}

#[test]
fn rows_that_are_retried_under_load_do_not_go_back_in_time() {
    let mut cluster = Cluster::prepare(Kafka::shared(), 0);
    cluster.site.vecsync.write_pipeline(&dividing_pipeline());
    cluster.site.vecsync.start_ready();
    let rows: Vec<String> = (1..=250).map(|id| values(id, "", "0", &category(id as usize))).collect();
    cluster.site.sql.execute(&insert(&rows));
    let all: Vec<Value> = (1..=250).map(|id| json!({"id": id})).collect();
    wait_until("250 letters", CAUGHT_UP, || match listed(&cluster.site.vecsync).len() {
        250 => Ok(()),
        found => Err(format!("{found} of {}", all.len())),
    });
    // Some rows count up all the time, some now and then, and some not at all; and there is so much else to decode that
    // the stream is behind what a query sees.
    cluster.site.sql.execute("CREATE TABLE noise (number int)");
    let stop = Arc::new(AtomicBool::new(false));
    let commits = Arc::new(AtomicU32::new(0));
    let repeat = |pause_ms, mut work: Box<dyn FnMut() + Send>| {
        let stop = Arc::clone(&stop);
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                work();
                // Not a wait for anything: a pace at which the stream is behind again and again, and not for ever.
                std::thread::park_timeout(Duration::from_millis(pause_ms));
            }
        })
    };
    let (counting, noisy, counted) =
        (cluster.site.postgres.client(), cluster.site.postgres.client(), Arc::clone(&commits));
    let writers = [
        repeat(
            5,
            Box::new(move || {
                let number = counted.fetch_add(1, Ordering::Relaxed) + 1;
                let some = format!("id <= 5 OR id BETWEEN 21 AND 100 AND id % 20 = {}", number % 20);
                counting.execute(&format!("UPDATE faq_faq SET answer = '{number}' WHERE {some}"));
            }),
        ),
        repeat(500, Box::new(move || noisy.execute("INSERT INTO noise SELECT generate_series(1, 20000)"))),
    ];
    let rounds = 3;
    for _ in 0..rounds {
        let retried = retry(&cluster.site.vecsync, &["--all"]);
        assert_eq!(retried.code, Some(0), "{retried:?}");
    }
    stop.store(true, Ordering::Relaxed);
    writers.into_iter().for_each(|writer| writer.join().expect("no fault"));
    cluster.site.sql.execute("UPDATE faq_faq SET question = 'Mended?'");
    wait_until("no letters", CAUGHT_UP, || match listed(&cluster.site.vecsync).len() {
        0 => Ok(()),
        found => Err(found.to_string()),
    });
    cluster.site.expect_equal(CAUGHT_UP);
    let (mut last, mut read_again) = (BTreeMap::new(), 0);
    for entry in cluster.kafka.read(&cluster.topic("changes")) {
        let Some(value) = entry.value.filter(|_| !entry.key.starts_with(br#"{"":"#)) else { continue };
        let event: Value = serde_json::from_slice(&value).unwrap();
        let Some(answer) = event["after"]["answer"].as_str().and_then(|answer| answer.parse::<u32>().ok()) else {
            continue;
        };
        read_again += u32::from(event["op"] == "r");
        let before = last.insert(entry.key, answer).unwrap_or(0);
        assert!(before <= answer, "{before} and then {answer}: {event}");
    }
    assert!(last.len() == 250 && read_again >= 250, "{} rows, {read_again} read again", last.len());
    eprintln!("{} commits, {read_again} rows read again", commits.load(Ordering::Relaxed));
}
