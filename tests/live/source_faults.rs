//! What befalls the way to PostgreSQL, the slot, and the log behind capture: named in health, got over, nothing lost.

use std::sync::Arc;
use std::time::{Duration, Instant};

use vecsync::capture::connection::ReplicationConnection;
use vecsync::capture::sql;
use vecsync::config::{Database, SslMode, SslRoot};
use vecsync::event::Lsn;

use crate::kafka::Cluster;
use crate::support::fault_proxy::{FaultProxy, Fuse, Mode, Which};
use crate::support::kafka::Kafka;
use crate::support::postgres::{DATABASE, PASSWORD, Postgres, Sql, USER};
use crate::support::process::wait_until;
use crate::support::site::Site;
use crate::support::table::{insert, values};
use crate::support::vecsync::Vecsync;
use crate::writer::{Writer, fill};

const SOON: Duration = Duration::from_secs(30);
const CAUGHT_UP: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(20);

/// A site whose vecsync reaches PostgreSQL through a proxy that can do harm.
struct Faulty {
    proxy: FaultProxy,
    site: Site,
}

impl Faulty {
    /// With settings of PostgreSQL. vecsync is ready, the table has rows.
    fn open(settings: &[(&str, &str)]) -> Faulty {
        let mut site = Site::prepare_with(settings);
        fill(&site.sql, 100);
        let proxy = FaultProxy::start(site.postgres.port);
        let direct = site.postgres.url(USER, PASSWORD);
        let through = direct.replace(&format!(":{}/", site.postgres.port), &format!(":{}/", proxy.port));
        site.set("DATABASE_URL", through);
        site.vecsync.start_ready();
        Faulty { proxy, site }
    }

    /// Does harm while new connections are refused: the log must name what it was, and health that the source is away.
    /// Then it is let through again, and all is well.
    #[track_caller]
    fn expect_survived(&mut self, named: &str, harm: impl FnOnce(&FaultProxy) -> usize) {
        let lines =
            |log: &str| log.lines().filter(|line| line.contains("trying again in") && line.contains(named)).count();
        let (before, begun) = (lines(&self.site.log()), Instant::now());
        self.proxy.refuse(true);
        assert!(harm(&self.proxy) > 0, "{named}: no connection was harmed");
        wait_until(&format!("the fault to be named {named:?}"), SOON, || match lines(&self.site.log()) {
            now if now > before => Ok(()),
            _ => Err(self.site.log().lines().last().unwrap_or_default().to_owned()),
        });
        expect_source(&mut self.site.vecsync, "PostgreSQL");
        assert_eq!(self.site.get("/health/ready/").status, 200);
        self.proxy.refuse(false);
        let again = Instant::now();
        expect_healthy(&mut self.site.vecsync);
        wait_until("what is committed now to be searchable", SOON, || {
            let answer = self.site.http.get("/search?q=anything").map_err(|error| error.to_string())?;
            let stale = answer.json()["staleness_ms"].as_u64().map(Duration::from_millis);
            if stale.is_some_and(|stale| stale < again.elapsed()) { Ok(()) } else { Err(format!("{stale:?}")) }
        });
        eprintln!("{named}: got over in {:?}", begun.elapsed());
    }
}

/// Health says that there is something with the source, and what.
#[track_caller]
fn expect_source(vecsync: &mut Vecsync, named: &str) -> String {
    wait_until(&format!("health to name {named:?} of the source"), SOON, || {
        let answer = vecsync.http.get("/health/detailed/").map_err(|error| error.to_string())?;
        let health = answer.json();
        let told = health["components"]["source"]["error"].as_str().unwrap_or_default().to_owned();
        if health["status"] == "degraded" && told.contains(named) { Ok(told) } else { Err(answer.body) }
    })
}

#[track_caller]
fn expect_healthy(vecsync: &mut Vecsync) {
    wait_until("health to be healthy again", SOON, || {
        assert_eq!(vecsync.ended(), None, "{}", vecsync.log());
        let answer = vecsync.http.get("/health/").map_err(|error| error.to_string())?;
        if answer.json()["status"] == "healthy" { Ok(()) } else { Err(answer.body) }
    });
}

/// The server's process that streams from the slot.
fn walsender(sql: &Sql) -> String {
    sql.value("SELECT coalesce(min(active_pid), 0) FROM pg_replication_slots WHERE slot_name = 'vecsync_faq'")
}

fn framed(tag: u8, body: &[u8]) -> Vec<u8> {
    [&[tag][..], &(body.len() as u32 + 4).to_be_bytes(), body].concat()
}

/// The header of a frame alone.
fn said_to_be(tag: u8, length: i32) -> Vec<u8> {
    [&[tag][..], &length.to_be_bytes()].concat()
}

#[test]
fn resets_garbage_and_slices_cost_nothing_but_time() {
    let mut faulty = Faulty::open(&[]);
    let writer = Writer::start(&faulty.site.postgres, 16, PAUSE);
    let inject = |bytes: Vec<u8>| move |proxy: &FaultProxy| proxy.inject(Which::Replication, &bytes);
    // XLogData of a message that ends too soon.
    let message = framed(b'd', &[&b"w"[..], &[0; 24], b"I\0\0\x40\x01N\0\x09t"].concat());
    faulty.expect_survived("reset by peer", |proxy| proxy.reset(Which::All));
    faulty.expect_survived("reset by peer", |proxy| proxy.reset(Which::Replication));
    faulty.expect_survived("closed", |proxy| proxy.reset(Which::Sql));
    faulty.expect_survived("more than the", inject(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()));
    faulty.expect_survived("more than the", inject(said_to_be(b'd', i32::MAX)));
    faulty.expect_survived("its length cannot be", inject(said_to_be(b'd', -1)));
    faulty.expect_survived("unknown kind 'x'", inject(framed(b'd', b"x1234")));
    faulty.expect_survived("does not belong here", inject(framed(b'Z', b"I")));
    faulty.expect_survived("decode pgoutput message 'I'", inject(message));
    let unknown = framed(b'?', b"nothing that the protocol has");
    faulty.expect_survived("PostgreSQL", |proxy| proxy.inject(Which::Sql, &unknown));

    // All that is said, login and all, in single bytes, and then late.
    for mode in [Mode::Slice, Mode::Delay(Duration::from_millis(40))] {
        faulty.proxy.set(Which::All, mode);
        faulty.expect_survived("reset by peer", |proxy| proxy.reset(Which::All));
        writer.wait_for_more(20);
    }
    faulty.proxy.set(Which::All, Mode::Pass);
    writer.finish();
    faulty.site.expect_equal(CAUGHT_UP);
    assert!(!faulty.site.log().contains("panicked"), "{}", faulty.site.log());
}

#[test]
fn attempts_grow_apart_and_are_jittered() {
    let mut faulty = Faulty::open(&[]);
    let from = faulty.site.log().len();
    faulty.proxy.refuse(true);
    faulty.proxy.reset(Which::All);
    let waits = wait_until("six attempts", SOON, || {
        let log = faulty.site.log();
        let parts = log[from..].split("trying again in ").skip(1);
        let waits: Vec<u64> = parts.filter_map(|rest| rest.split(' ').next()?.parse().ok()).collect();
        if waits.len() >= 6 { Ok(waits) } else { Err(format!("{waits:?}")) }
    });
    faulty.proxy.refuse(false);
    expect_healthy(&mut faulty.site.vecsync);
    let nominal = [100, 200, 400, 800, 1_600, 3_200];
    for (wait, nominal) in waits.iter().zip(nominal) {
        assert!((nominal / 2..=nominal * 3 / 2).contains(wait), "{waits:?}");
    }
    assert!(waits.iter().zip(nominal).filter(|(wait, nominal)| *wait != nominal).count() >= 4, "no jitter: {waits:?}");
}

#[test]
fn a_peer_that_is_gone_without_a_word_is_found_out() {
    let mut faulty = Faulty::open(&[("wal_sender_timeout", "3s")]);
    let writer = Writer::start(&faulty.site.postgres, 61, Duration::from_millis(50));
    let (before_kb, _) = faulty.site.memory_kb();
    let silences = |site: &Site| site.log().matches("no answer for").count();
    // Both connections at once; then a frame that is said to be half a gigabyte, in which the stream goes under while
    // the other connection is well.
    let half = said_to_be(b'd', 500 << 20);
    let harms: [&dyn Fn(&FaultProxy) -> usize; 2] =
        [&|proxy| proxy.abandon(Which::All), &|proxy| proxy.inject(Which::Replication, &half)];
    for harm in harms {
        let (before, begun) = (silences(&faulty.site), Instant::now());
        assert!(harm(&faulty.proxy) > 0);
        wait_until("the silence to be noticed", SOON, || match silences(&faulty.site) {
            now if now > before => Ok(()),
            _ => Err(faulty.site.log().lines().last().unwrap_or_default().to_owned()),
        });
        eprintln!("noticed after {:?}", begun.elapsed());
        expect_source(&mut faulty.site.vecsync, "");
        expect_healthy(&mut faulty.site.vecsync);
        eprintln!("healthy after {:?}", begun.elapsed());
        writer.wait_for_more(20);
    }
    let (_, most_kb) = faulty.site.memory_kb();
    assert!(most_kb < before_kb + 200_000, "{before_kb} kB, and {most_kb} kB at most");
    writer.finish();
    faulty.site.expect_equal(CAUGHT_UP);
    assert!(!faulty.site.log().contains("panicked"), "{}", faulty.site.log());
}

#[test]
fn a_server_that_is_silent_from_the_first_word_is_given_up_and_tried_again() {
    let mut site = Site::prepare();
    fill(&site.sql, 20);
    let proxy = FaultProxy::start(site.postgres.port);
    let direct = site.postgres.url(USER, PASSWORD);
    let through = direct.replace(&format!(":{}/", site.postgres.port), &format!(":{}/", proxy.port));
    site.set("DATABASE_URL", through + "&connect_timeout=2");
    proxy.set(Which::All, Mode::Swallow);
    site.vecsync.start();
    site.vecsync.wait_for_log("no answer within 2 s", SOON);
    proxy.set(Which::All, Mode::Pass);
    site.vecsync.wait_ready();
    site.expect_equal(CAUGHT_UP);
}

#[test]
fn a_connection_that_breaks_at_any_byte_of_its_start_is_an_error() {
    // A prime, so that it meets all parts of the frames; the limit is beyond all that a server says until it streams.
    const STEP: usize = 17;
    const LIMIT: usize = 1_400;
    let postgres = Postgres::start();
    postgres.execute("CREATE PUBLICATION p FOR TABLE faq_faq");
    postgres.client().query("SELECT pg_create_logical_replication_slot('s', 'pgoutput')");
    let proxy = FaultProxy::start(postgres.port);
    let mut config = tokio_postgres::Config::new();
    config.host("127.0.0.1").port(proxy.port).user(USER).password(PASSWORD).dbname(DATABASE);
    config.connect_timeout(Duration::from_millis(300));
    let database = Database { postgres: config, ssl_mode: SslMode::Disable, ssl_root: SslRoot::None };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let stream = async || {
        let mut replication = ReplicationConnection::connect(&database).await.map_err(|error| error.to_string())?;
        replication.identify_system().await.map_err(|error| error.to_string())?;
        replication.query("SHOW wal_sender_timeout").await.map_err(|error| error.to_string())?;
        let stream = replication.start_replication("s", Lsn(0), "p").await.map_err(|error| error.to_string())?;
        stream.finish().await;
        Ok::<_, String>(())
    };
    let ordinary = async || {
        let sql = sql::connect(&database).await.map_err(|error| error.to_string())?;
        sql.query("SELECT 1", &[]).await.map(drop).map_err(|error| error.to_string())
    };
    let mut ends = [0; 3];
    for fuse in (0..LIMIT).step_by(STEP).flat_map(|bytes| [Fuse::Reset(bytes), Fuse::Garble(bytes)]) {
        proxy.fuse(Some(fuse));
        let patience = Duration::from_millis(300);
        let both = [
            runtime.block_on(async { tokio::time::timeout(patience, stream()).await }),
            runtime.block_on(async { tokio::time::timeout(patience, ordinary()).await }),
        ];
        for end in both {
            ends[match end {
                Ok(Ok(())) => 0,
                Ok(Err(error)) => {
                    assert!(!error.contains(PASSWORD) && !error.contains("panic"), "{fuse:?}: {error}");
                    1
                }
                // A length that is another: the rest of the frame is waited for, as long as who asked has patience.
                Err(_) => 2,
            }] += 1;
        }
    }
    eprintln!("came about, failed, were given up: {ends:?}");
    assert!(ends[1] > 50, "{ends:?}");
    proxy.fuse(None);
    wait_until("the slot to be free", SOON, || runtime.block_on(stream()));
    runtime.block_on(ordinary()).expect("without harm it goes");
}

#[test]
fn while_the_log_takes_nothing_feedback_goes_on() {
    // A third of the server's time-out, so that it would be over several times.
    let cluster = Cluster::prepare_with(Arc::new(Kafka::start()), 50, &[("wal_sender_timeout", "2s")]);
    cluster.site.sql.execute("CREATE TABLE other (n bigint)");
    let mut capture = cluster.started("capture");
    capture.wait_for_log("snapshot complete", CAUGHT_UP);
    for table in ["other", "faq_faq"] {
        expect_caught_up(&cluster.site.sql);
        let before = walsender(&cluster.site.sql);
        cluster.kafka.signal("STOP");
        // Other tables' changes move what is confirmed, ours have to be written: both wait for the log.
        stay_behind(&cluster.site.sql, table, Duration::from_secs(5));
        assert_eq!(walsender(&cluster.site.sql), before, "{table}: {}", cluster.site.postgres.log());
        cluster.kafka.signal("CONT");
        expect_caught_up(&cluster.site.sql);
    }
    assert_eq!(capture.ended(), None);
    expect_no_time_out(&cluster.site);
}

/// Writes to the table for as long, and shows that the slot is not confirmed meanwhile: the log takes nothing.
#[track_caller]
fn stay_behind(sql: &Sql, table: &str, time: Duration) {
    let (begun, mut written) = (Instant::now(), 0);
    let mut from = sql.value("SELECT pg_current_wal_insert_lsn()");
    while begun.elapsed() < time {
        written += 1;
        sql.execute(&match table {
            "faq_faq" => format!("UPDATE faq_faq SET category = 'c0{}' WHERE id <= 10", written % 10),
            other => format!("INSERT INTO {other} VALUES ({written})"),
        });
        if written == 5 {
            // What was under way when the log stopped may still be confirmed.
            from = sql.value("SELECT pg_current_wal_insert_lsn()");
        }
        // Not a wait for anything: this is the pace of the site's users.
        std::thread::sleep(Duration::from_millis(100));
    }
    let sql_text =
        format!("SELECT confirmed_flush_lsn < '{from}' FROM pg_replication_slots WHERE slot_name = 'vecsync_faq'");
    assert_eq!(sql.value(&sql_text), "t", "the log took what was written to {table}: this tests nothing");
}

#[track_caller]
fn expect_caught_up(sql: &Sql) {
    let end = sql.value("SELECT pg_current_wal_insert_lsn()");
    let asked =
        format!("SELECT confirmed_flush_lsn >= '{end}' FROM pg_replication_slots WHERE slot_name = 'vecsync_faq'");
    wait_until("the slot to be confirmed", CAUGHT_UP, || match sql.value(&asked).as_str() {
        "t" => Ok(()),
        _ => Err(sql.value("SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = 'vecsync_faq'")),
    });
}

#[track_caller]
fn expect_no_time_out(site: &Site) {
    let log = site.postgres.log();
    assert!(!log.contains("replication timeout"), "{log}");
}

#[test]
fn a_hot_standby_takes_over_within_5_s() {
    const LIMIT: Duration = Duration::from_secs(5);
    let cluster = Cluster::prepare(Kafka::shared(), 50);
    let mut first = cluster.started("capture");
    expect_healthy(&mut first);
    let mut second = cluster.started("capture");
    let writer = Writer::start(&cluster.site.postgres, 66, PAUSE);
    for round in 0..3 {
        expect_source(&mut second, "waiting to take over");
        writer.wait_for_more(30);
        first.kill();
        let begun = Instant::now();
        wait_until("the standby to stream", LIMIT, || {
            let health = second.http.get("/health/detailed/").map_err(|error| error.to_string())?.json();
            if health["components"]["source"]["status"] == "healthy" { Ok(()) } else { Err(health.to_string()) }
        });
        eprintln!("round {round}: taken over after {:?}", begun.elapsed());
        first.start();
        std::mem::swap(&mut first, &mut second);
    }
    writer.finish();
    // All that was written is in the log, once.
    expect_caught_up(&cluster.site.sql);
    cluster.expect_published_once();
}

#[test]
fn a_slot_that_is_lost_stops_capture_and_no_search() {
    let mut site =
        Site::prepare_with(&[("max_slot_wal_keep_size", "1MB"), ("min_wal_size", "32MB"), ("max_wal_size", "32MB")]);
    fill(&site.sql, 50);
    site.vecsync.start_ready();
    site.expect_equal(CAUGHT_UP);
    // A transaction that stays open holds the slot back, however soon everything is confirmed.
    let open = site.postgres.client();
    open.execute("BEGIN; INSERT INTO faq_faq (id, question, answer, category) VALUES (7000, 'Q', 'Never', 'c00')");
    for _ in 0..4 {
        site.sql.execute("SELECT pg_logical_emit_message(false, 'test', 'WAL'); SELECT pg_switch_wal()");
    }
    site.sql.execute("CHECKPOINT");
    let lost = "SELECT wal_status FROM pg_replication_slots WHERE slot_name = 'vecsync_faq'";
    wait_until("the slot to be lost", SOON, || match site.sql.value(lost).as_str() {
        "lost" => Ok(()),
        status => Err(status.to_owned()),
    });
    let begun = Instant::now();
    let told = expect_source(&mut site.vecsync, "vecsync sync");
    assert!(begun.elapsed() < Duration::from_secs(10), "it took {:?}", begun.elapsed());
    assert!(told.contains("vecsync_faq") && told.contains("max_slot_wal_keep_size"), "{told}");
    assert_eq!(site.get("/health/ready/").status, 200);
    assert!(!site.search("anything", "&min_score=-1")["results"].as_array().unwrap().is_empty());

    open.execute("ROLLBACK");
    site.sql.execute("DELETE FROM faq_faq WHERE id <= 10");
    site.sql.execute(&insert(&[values(500, "Q", "While the slot was lost", "c01")]));
    assert_eq!(site.sql.value(lost), "lost", "it was made again silently");
    let synced = site.vecsync.run(&["sync"]);
    assert_eq!(synced.code, Some(0), "{}", synced.stderr);
    site.expect_equal(CAUGHT_UP);
    expect_healthy(&mut site.vecsync);
}

#[test]
fn an_idle_table_beside_a_busy_one_holds_no_wal() {
    // 16 MB segments; checkpoints come by the size of the WAL.
    let mut site = Site::prepare_with(&[("max_wal_size", "64MB"), ("min_wal_size", "32MB"), ("fsync", "off")]);
    fill(&site.sql, 20);
    site.sql.execute("CREATE TABLE other (n bigint, text text)");
    site.vecsync.start_ready();
    site.expect_equal(CAUGHT_UP);
    let megabytes = std::env::var("VECSYNC_TEST_WAL_MB").map_or(300, |text| text.parse().expect("megabytes"));
    let begun = site.sql.value("SELECT pg_current_wal_insert_lsn()");
    let since = |sql: &Sql, from: &str| -> u64 {
        sql.value(&format!("SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '{from}')::bigint >> 20"))
            .parse()
            .unwrap()
    };
    while since(&site.sql, &begun) < megabytes {
        site.sql.execute("INSERT INTO other SELECT n, repeat(md5(n::text), 30) FROM generate_series(1, 5000) n");
        site.sql.execute("TRUNCATE other");
    }
    site.sql.execute("CHECKPOINT");
    let held = wait_until("the WAL to be let go", SOON, || {
        let restart = site.sql.value("SELECT restart_lsn FROM pg_replication_slots WHERE slot_name = 'vecsync_faq'");
        match since(&site.sql, &restart) {
            held @ 0..=64 => Ok(held),
            held => Err(format!("{held} MB are held")),
        }
    });
    eprintln!("{held} MB held after {} MB of others' writes", since(&site.sql, &begun));
    site.expect_equal(CAUGHT_UP);
}
