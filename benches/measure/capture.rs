//! Capture without a log behind it: the stream of a slot and the copy of a table, decoded, put into order and written as
//! records that nobody takes; and what large transactions and busy neighbours cost.

use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use vecsync::capture::connection::{Frame, ReplicationConnection};
use vecsync::capture::sequencer::{Pending, Sequencer};
use vecsync::capture::snapshot::{Piece, Plan};
use vecsync::capture::{catalog, pgoutput, publication, snapshot, sql};
use vecsync::clock::now_ms;
use vecsync::config::{Database, SslMode, SslRoot};
use vecsync::event::{Lsn, Position, Source};

use super::Figures;
use crate::support::postgres::{DATABASE, PASSWORD, Postgres, USER, VERSION, server_program};
use crate::support::process::wait_until;
use crate::support::site::Site;

/// Rows that are decoded and copied, each of 200 bytes.
const ROWS: u64 = 1_000_000;
const ROUNDS: usize = 3;
const PUBLICATION: &str = "vecsync_faq";
/// As capture's own: events and bytes of one append.
const EVENTS_PER_APPEND: usize = 2_000;
const BYTES_PER_APPEND: usize = 4 << 20;
/// Rows of the large transaction, and the bytes of each.
const LARGE_ROWS: u64 = 100_000;
const LARGE_ROW_BYTES: u64 = 10_000;
/// Rows of 1 kB that are written beside the pipeline's table: ten gigabytes, a million at a time.
const BESIDE_ROWS: u64 = 10_000_000;
const BESIDE_AT_ONCE: u64 = 1_000_000;
const LIMIT: Duration = Duration::from_secs(900);

fn insert(rows: u64) -> String {
    format!(
        "INSERT INTO faq_faq (id, question, answer, category)
         SELECT n, 'Question ' || n, repeat(md5(n::text), 5), 'c00' FROM generate_series(1, {rows}) n"
    )
}

/// The same transaction out of two slots, in turn: by PostgreSQL's own client, which throws it away, and by what capture does
/// with it up to the record.
pub fn decode() -> Figures {
    eprintln!("capture: {ROWS} rows out of a slot, {ROUNDS} times");
    let postgres = Postgres::start_with(&[("max_wal_size", "8GB")]);
    let sql = postgres.client();
    let slots = |kind: &str| (0..ROUNDS).map(|round| format!("{kind}_{round}")).collect::<Vec<_>>();
    for slot in slots("bare").iter().chain(&slots("ours")) {
        sql.execute(&format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')"));
    }
    sql.execute(&insert(ROWS));
    let end = sql.value("SELECT pg_current_wal_flush_lsn()");
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let (mut of_bare, mut ours, mut bare) = (vec![], vec![], vec![]);
    for (theirs, own) in slots("bare").iter().zip(&slots("ours")) {
        let bare_s = recvlogical(&postgres, theirs, &end);
        let our_s = runtime.block_on(stream(&database(&postgres), own));
        bare.push(ROWS as f64 / bare_s);
        ours.push(ROWS as f64 / our_s);
        of_bare.push(bare_s / our_s);
    }
    vec![("bare_rows_per_s", middle(bare)), ("rows_per_s", middle(ours)), ("of_bare", middle(of_bare))]
}

/// The table, as a snapshot reads it.
pub fn copy() -> Figures {
    eprintln!("capture: a table of {ROWS} rows, {ROUNDS} times");
    let postgres = Postgres::start_with(&[("max_wal_size", "8GB")]);
    let sql = postgres.client();
    sql.execute(&insert(ROWS));
    sql.execute("VACUUM ANALYZE faq_faq");
    sql.execute("CHECKPOINT");
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let rates = (0..ROUNDS).map(|_| ROWS as f64 / runtime.block_on(read(&database(&postgres)))).collect();
    vec![("rows_per_s", middle(rates))]
}

/// A transaction of a gigabyte, and how much memory it takes above what vecsync takes without it.
pub fn transaction() -> Figures {
    eprintln!("capture: a transaction of {} MB", LARGE_ROWS * LARGE_ROW_BYTES / 1_000_000);
    let mut site = Site::prepare_with(&[("max_wal_size", "8GB"), ("logical_decoding_work_mem", "64MB")]);
    site.vecsync.start_ready();
    let idle = site.memory_kb().0;
    let begun = Instant::now();
    // They are not active, so they are not embedded: the model would be what is measured.
    site.sql.execute(&format!(
        "INSERT INTO faq_faq (id, question, answer, is_active) SELECT n, 'Question ' || n,
         (SELECT string_agg(md5(n::text || m), '') FROM generate_series(1, {LARGE_ROW_BYTES} / 32) m), false
         FROM generate_series(1, {LARGE_ROWS}) n"
    ));
    let written = begun.elapsed();
    let begun = Instant::now();
    wait_until("all to be captured", LIMIT, || {
        std::thread::sleep(Duration::from_millis(50));
        match site.vecsync.metric("vecsync_events_total", r#"stage="capture""#) {
            Some(events) if events >= LARGE_ROWS as f64 => Ok(()),
            events => Err(format!("{events:?} of {LARGE_ROWS}")),
        }
    });
    let (now, peak) = site.memory_kb();
    vec![
        ("idle_mb", idle as f64 / 1024.0),
        ("peak_above_idle_mb", peak.saturating_sub(idle) as f64 / 1024.0),
        ("after_above_idle_mb", now.saturating_sub(idle) as f64 / 1024.0),
        ("written_s", written.as_secs_f64()),
        ("captured_after_s", begun.elapsed().as_secs_f64()),
    ]
}

/// WAL that the slot keeps while another table is written to and ours is not.
pub fn beside() -> Figures {
    eprintln!("capture: {BESIDE_ROWS} rows of 1 kB beside the table");
    let mut site = Site::prepare_with(&[("max_wal_size", "1GB")]);
    site.vecsync.start_ready();
    site.sql.execute("CREATE TABLE other (id bigint, body text)");
    let (mut written, mut most) = (0.0, 0_f64);
    let retained = "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn) / 1048576.0 FROM pg_replication_slots \
                    WHERE slot_name = 'vecsync_faq'";
    let number = |text: String| text.parse::<f64>().expect("a number");
    for _ in 0..BESIDE_ROWS / BESIDE_AT_ONCE {
        let from = site.sql.value("SELECT pg_current_wal_lsn()");
        site.sql.execute(&format!(
            "INSERT INTO other SELECT n, repeat(md5(n::text), 30) FROM generate_series(1, {BESIDE_AT_ONCE}) n"
        ));
        written +=
            number(site.sql.value(&format!("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '{from}') / 1048576.0")));
        site.sql.execute("TRUNCATE other");
        most = most.max(number(site.sql.value(retained)));
    }
    site.sql.execute("CHECKPOINT");
    let begun = Instant::now();
    let kept = wait_until("the slot to follow", LIMIT, || {
        std::thread::sleep(Duration::from_millis(200));
        let kept = number(site.sql.value(retained));
        if kept <= 64.0 || begun.elapsed() > Duration::from_secs(30) { Ok(kept) } else { Err(kept.to_string()) }
    });
    vec![
        ("written_mb", written),
        ("retained_at_most_mb", most),
        ("retained_mb", kept),
        ("retained_after_s", begun.elapsed().as_secs_f64()),
    ]
}

/// Seconds that `pg_recvlogical` needs to throw a slot's contents away.
fn recvlogical(postgres: &Postgres, slot: &str, end: &str) -> f64 {
    let port = postgres.port.to_string();
    let publications = format!("publication_names={PUBLICATION}");
    let begun = Instant::now();
    let status = server_program(VERSION, "pg_recvlogical")
        .args(["-h", "127.0.0.1", "-p", &port, "-U", USER, "-d", DATABASE, "--slot", slot, "--start", "--endpos", end])
        .args(["-o", "proto_version=1", "-o", &publications, "-f", "/dev/null"])
        .env("PGPASSWORD", PASSWORD)
        .stdin(Stdio::null())
        .status()
        .expect("start pg_recvlogical");
    assert!(status.success(), "pg_recvlogical: {status}");
    begun.elapsed().as_secs_f64()
}

/// Seconds that capture's way needs from the connection to the last row's record.
async fn stream(database: &Database, slot: &str) -> f64 {
    let begun = Instant::now();
    let client = sql::connect(database).await.expect("connect");
    let table = catalog::load(&client, "public", "faq_faq").await.expect("the table");
    let connection = ReplicationConnection::connect(database).await.expect("connect");
    let mut stream = connection.start_replication(slot, Lsn(0), PUBLICATION).await.expect("a stream");
    let mut sequencer = Sequencer::new(template(), table, Position::default(), Lsn(0));
    let (mut rows, mut status_at) = (0, Instant::now());
    while rows < ROWS {
        let mut frame = Some(stream.next().await.expect("a frame"));
        while let Some(next) = frame {
            match next {
                Frame::Data { start, payload, .. } => {
                    let message = pgoutput::decode(payload).expect("a message");
                    sequencer.offer(message, start, now_ms()).expect("in order");
                }
                Frame::Keepalive { end, .. } => sequencer.keepalive(end),
            }
            let (bytes, events) = sequencer.waiting();
            if bytes >= BYTES_PER_APPEND || events >= EVENTS_PER_APPEND {
                break;
            }
            frame = stream.try_next().expect("a frame");
        }
        rows += publish(sequencer.take().events);
        if status_at.elapsed() > Duration::from_secs(1) {
            stream.send_status(Lsn(0), false).await.expect("sent");
            status_at = Instant::now();
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    stream.finish().await;
    seconds
}

/// Seconds that a snapshot needs from its slot to the last row's record.
async fn read(database: &Database) -> f64 {
    let begun = Instant::now();
    let client = sql::connect(database).await.expect("connect");
    let table = catalog::load(&client, "public", "faq_faq").await.expect("the table");
    let publication = publication::preflight(&client, &table, PUBLICATION).await.expect("the publication");
    let plan =
        Plan { database: database.clone(), table: table.clone(), publication, slot: "bench".to_owned(), batch_rows: 0 };
    let (sender, mut pieces) = mpsc::channel(4);
    let reader = tokio::spawn(snapshot::run(plan, sender));
    let mut sequencer = Sequencer::new(template(), table, Position::default(), Lsn(0));
    sequencer.watch_for_snapshot();
    let (mut at, mut rows) = ((Lsn(0), 0), 0);
    while let Some(piece) = pieces.recv().await {
        match piece {
            Piece::Point { point, taken_ms } => at = (point, taken_ms),
            Piece::Rows(read) => {
                let now = now_ms();
                for row in read {
                    sequencer.offer_snapshot_row(row, at.0, at.1, now);
                }
                rows += publish(sequencer.take().events);
            }
            Piece::Expected(_) => {}
            Piece::Done => break,
        }
    }
    reader.await.expect("it does not panic").expect("all is read");
    assert_eq!(rows, ROWS);
    begun.elapsed().as_secs_f64()
}

/// Writes the records and throws them away; how many there were.
fn publish(events: Vec<Pending>) -> u64 {
    let now = now_ms();
    let records = events.into_iter().map(|event| match event {
        Pending::Ready(event) => event.to_record_within(usize::MAX, now).bytes(),
        Pending::Incomplete { .. } => panic!("no column is large"),
    });
    records.filter(|bytes| *bytes > 0).count() as u64
}

fn template() -> Source {
    Source {
        version: env!("CARGO_PKG_VERSION").into(),
        connector: "postgresql".into(),
        name: "faq".into(),
        db: DATABASE.into(),
        schema: "public".into(),
        table: "faq_faq".into(),
        lsn: None,
        tx_id: None,
        ts_ms: 0,
        snapshot: None,
        commit_lsn: None,
        ordinal: None,
    }
}

fn database(postgres: &Postgres) -> Database {
    let postgres = postgres.url(USER, PASSWORD).parse().expect("settings");
    Database { postgres, ssl_mode: SslMode::Disable, ssl_root: SslRoot::None }
}

fn middle(values: Vec<f64>) -> f64 {
    super::percentile(&super::sorted(values), 0.5)
}
