//! Tests of the embedded log. Those that kill a process or need a second one start this test binary again.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command as Process, Stdio};
use std::task::Poll;

use super::super::partition::partition_of;
use super::super::{SnapshotMarker, Stored};
use super::*;
use crate::event::{BARRIER_KEY, ChangeEvent, Lsn, Position, Record};

const DAY: i64 = 24 * 3600 * 1000;

fn settings(dir: &Path, partitions: u16) -> Settings {
    Settings {
        dir: dir.to_owned(),
        prefix: "vecsync".into(),
        pipeline: "faq".into(),
        partitions,
        tombstone_retention: Duration::from_secs(24 * 3600),
    }
}

fn open(dir: &Path, partitions: u16) -> Log {
    Log::open(settings(dir, partitions)).expect("opens")
}

fn record(key: &str, value: Option<&str>) -> Record {
    Record {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: value.map(|value| Bytes::copy_from_slice(value.as_bytes())),
        headers: vec![("h".into(), Bytes::from_static(b"1"))],
        timestamp_ms: 5,
    }
}

fn row(key: &str, value: &str) -> Outgoing {
    Outgoing::ByKey(record(key, Some(value)))
}

fn tombstone(key: &str) -> Outgoing {
    Outgoing::ByKey(record(key, None))
}

fn barrier() -> Outgoing {
    Outgoing::Everywhere(Record { key: Bytes::from_static(BARRIER_KEY), ..record("", Some("t")) })
}

fn state(ordinal: u64) -> CaptureState {
    CaptureState {
        system_id: 7,
        timeline: 1,
        position: Position { commit_lsn: Lsn(100), ordinal },
        confirm: Lsn(99),
        snapshot: SnapshotMarker::Complete,
        whole: false,
        captured: "faq".to_owned(),
        resync: Default::default(),
    }
}

/// All that a topic holds below its durable ends.
fn contents(log: &Log, topic: &Topic) -> Vec<Stored> {
    let shared = &log.inner.shared;
    let ends = (0..).zip(topic.ends());
    ends.flat_map(|(partition, end)| shared.records(topic.id, partition, 0, end))
        .map(|found| found.expect("readable").stored)
        .collect()
}

fn changes(log: &Log) -> Vec<(Partition, u64, String)> {
    let key = |stored: &Stored| String::from_utf8(stored.record.key.to_vec()).expect("text");
    contents(log, &log.inner.shared.changes).iter().map(|one| (one.partition, one.offset, key(one))).collect()
}

fn keys(stored: &[Stored]) -> Vec<&str> {
    stored.iter().map(|stored| std::str::from_utf8(&stored.record.key).expect("text")).collect()
}

fn dead_letters(log: &Log) -> Vec<String> {
    let mut keys = vec![];
    let visit = |record: &Record| keys.push(String::from_utf8_lossy(&record.key).into_owned());
    log.visit_dead_letters(visit).expect("readable");
    keys
}

fn ready<F: Future>(future: F) -> Option<F::Output> {
    let mut future = std::pin::pin!(future);
    match future.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop())) {
        Poll::Ready(output) => Some(output),
        Poll::Pending => None,
    }
}

/// Goes on with purges until the log has none left: each transaction lets the writer take a step.
async fn purged(log: &Log) {
    let shared = &log.inner.shared;
    for _ in 0..100 {
        if shared.db.scan_prefix([kind::BARRIER]).next().is_none() {
            return;
        }
        let state = log.capture_state().expect("readable").unwrap_or(state(0));
        log.append_changes(vec![], &state).await.expect("appended");
    }
    panic!("the purge does not go on");
}

#[tokio::test]
async fn events_and_capture_state_survive_together() {
    let dir = tempfile::tempdir().expect("a folder");
    let log = open(dir.path(), 2);
    assert_eq!(log.capture_state().expect("readable"), None);
    let long = "x".repeat(3 * layout::PIECE_MAX);
    log.append_changes(vec![row("a", "1"), row("b", &long)], &state(2)).await.expect("appended");
    let (held, ends) = (contents(&log, &log.inner.shared.changes), log.changes_ends());
    log.close().await.expect("closes");
    drop(log);

    let log = open(dir.path(), 2);
    assert_eq!(log.capture_state().expect("readable"), Some(state(2)));
    assert_eq!(log.changes_ends(), ends);
    assert_eq!(contents(&log, &log.inner.shared.changes), held);
    let mut wanted = [record("a", Some("1")), record("b", Some(&long))];
    wanted.sort_by_key(|record| partition_of(&record.key, 2));
    assert_eq!(held.into_iter().map(|stored| stored.record).collect::<Vec<_>>(), wanted);
    assert_eq!(ends.iter().sum::<u64>(), 2);
}

#[tokio::test]
async fn a_newer_record_takes_the_place_of_the_older() {
    let dir = tempfile::tempdir().expect("a folder");
    let log = open(dir.path(), 1);
    let long = "x".repeat(5 * layout::PIECE_MAX);
    log.append_changes(vec![row("a", "1"), row("b", &long), row("a", "2"), row("a", "3")], &state(1))
        .await
        .expect("appended");
    assert_eq!(changes(&log), [(0, 1, "b".into()), (0, 3, "a".into())]);
    log.append_changes(vec![row("b", "short"), tombstone("a")], &state(2)).await.expect("appended");
    assert_eq!(changes(&log), [(0, 4, "b".into()), (0, 5, "a".into())]);
    log.append_changes(vec![row("a", "again")], &state(3)).await.expect("appended");
    assert_eq!(changes(&log), [(0, 4, "b".into()), (0, 6, "a".into())]);
    // Nothing of the replaced ones is left: format, identity, 2 topics, state, end, and record and index entry of 2 keys.
    assert_eq!(log.inner.shared.db.len(), 10);
}

#[tokio::test]
async fn live_keys_are_paged_and_leave_out_what_is_gone() {
    let dir = tempfile::tempdir().expect("a folder");
    let log = open(dir.path(), 1);
    let long = "k".repeat(700);
    let rows = ["dead", "a", "b", &long, "late"].map(|key| row(key, "1"));
    log.append_changes(rows.into(), &state(1)).await.expect("appended");
    log.append_changes(vec![tombstone("dead"), row("late", "2")], &state(2)).await.expect("appended");
    let page = |after: Option<&[u8]>, limit| log.live_keys_below(0, 6, after, limit).expect("readable");
    let all = page(None, 10);
    assert_eq!(all, [(1, Bytes::from("a")), (2, Bytes::from("b")), (3, Bytes::from(long))]);
    let mut paged = vec![];
    while let [key] = &page(paged.last().map(|(_, key): &(u64, Bytes)| &key[..]), 1)[..] {
        paged.push(key.clone());
    }
    assert_eq!(paged, all);
    log.append_changes(vec![barrier(), row("new", "1")], &state(3)).await.expect("appended");
    assert_eq!(log.live_keys_below(0, 100, None, 10).expect("readable"), [(8, Bytes::from("new"))]);
    // Marks have keys, too, and are no rows.
    let marks = [ChangeEvent::Replay { id: 1 }, ChangeEvent::Heartbeat { as_of_ms: 1 }];
    log.append_marks(marks.map(|mark| Outgoing::Everywhere(mark.to_record(0))).into()).await.expect("appended");
    assert_eq!(log.live_keys_below(0, 100, None, 10).expect("readable"), [(8, Bytes::from("new"))]);
}

#[tokio::test]
async fn embed_reads_commits_and_rewinds() {
    let dir = tempfile::tempdir().expect("a folder");
    let log = open(dir.path(), 1);
    log.append_changes(vec![row("a", "1"), row("b", "1"), row("c", "1")], &state(1)).await.expect("appended");
    let mut embed = log.embedder("r1").expect("opens");
    assert_eq!(embed.lag(), 3);
    assert_eq!(keys(&embed.next(2, 1 << 20).await.expect("reads")), ["a", "b"]);
    assert_eq!((embed.lag(), embed.committed()), (1, vec![0]));
    let poison = Record { key: Bytes::new(), ..record("", Some("poison")) };
    let dead = vec![poison.clone(), poison, record("b", Some("bad"))];
    embed.commit(vec![row("a", "v")], dead, &vec![2]).await.expect("commits");
    assert_eq!(keys(&embed.next(9, 1 << 20).await.expect("reads")), ["c"]);
    assert!(ready(embed.next(9, 1 << 20)).is_none(), "nothing is left, so it waits");
    embed.rewind();
    assert_eq!(keys(&embed.next(9, 1 << 20).await.expect("reads")), ["c"]);
    for wrong in [vec![1], vec![4], vec![3, 3]] {
        let error = embed.commit(vec![row("c", "v")], vec![], &wrong).await.expect_err("does not fit");
        assert!(matches!(error, LogError::Refused { .. }), "{error}");
    }
    let outside = vec![Outgoing::To(1, record("c", None))];
    assert!(matches!(embed.commit(outside, vec![], &vec![3]).await, Err(LogError::Refused { .. })));
    drop((embed, log));

    let log = open(dir.path(), 1);
    let mut embed = log.embedder("r1").expect("opens");
    assert_eq!((embed.committed(), embed.lag()), (vec![2], 1));
    assert_eq!(dead_letters(&log), ["", "", "b"]);
    let mut vectors = log.vectors("r1").expect("opens");
    assert_eq!(keys(&vectors.next(9, 1 << 20).await.expect("reads")), ["a"]);
    let newer = log.embedder("r1").expect("opens");
    assert!(matches!(embed.commit(vec![], vec![], &vec![3]).await, Err(LogError::Fenced { .. })));
    assert_eq!(newer.committed(), [2]);
    assert_eq!(log.embedder("r2").expect("opens").committed(), [0], "another revision starts at the beginning");
}

#[tokio::test]
async fn a_store_seeks_and_is_woken() {
    let dir = tempfile::tempdir().expect("a folder");
    let log = open(dir.path(), 2);
    let mut reader = log.vectors("r").expect("opens");
    let mut embed = log.embedder("r").expect("opens");
    assert!(ready(reader.next(1, 1)).is_none(), "it waits for the first record");
    let (read, committed) = tokio::join!(reader.next(9, 1 << 20), async {
        let vectors = vec![Outgoing::To(0, record("a", Some("1"))), Outgoing::To(1, record("b", Some("1")))];
        embed.commit(vectors, vec![], &vec![0, 0]).await
    });
    committed.expect("commits");
    assert_eq!(keys(&read.expect("reads")), ["a", "b"]);
    assert_eq!((reader.positions(), reader.ends()), (vec![1, 1], vec![1, 1]));
    reader.seek(&vec![0, 1]).expect("within the topic");
    assert_eq!(reader.lag(), 1);
    // A future that is dropped while the record is being read has taken nothing.
    while ready(reader.next(9, 1 << 20)).is_some() {
        reader.seek(&vec![0, 1]).expect("within the topic");
    }
    assert_eq!(reader.positions(), [0, 1]);
    assert_eq!(keys(&reader.next(9, 1 << 20).await.expect("reads")), ["a"]);
    let error = reader.seek(&vec![1, 2]).expect_err("past the end");
    assert!(matches!(error, LogError::Ahead { partition: 1, position: 2, end: 1, .. }), "{error}");
    assert!(matches!(reader.seek(&vec![1]), Err(LogError::Refused { .. })));
    assert_eq!(reader.positions(), [1, 1]);
    let (read, closed) = tokio::join!(reader.next(1, 1), log.close());
    closed.expect("closes");
    assert!(matches!(read, Err(LogError::Closed { .. })), "{read:?}");
    assert!(matches!(log.append_changes(vec![], &state(1)).await, Err(LogError::Closed { .. })));
    log.close().await.expect("closing twice is closing once");
}

#[tokio::test]
async fn a_batch_is_bounded_and_every_partition_has_its_share() {
    let dir = tempfile::tempdir().expect("a folder");
    let log = open(dir.path(), 4);
    let to = |partition: Partition, count: usize| {
        (0..count).map(move |n| Outgoing::To(partition, record(&format!("{partition}-{n}"), Some(&"x".repeat(1000)))))
    };
    log.append_changes(to(0, 100).chain(to(2, 3)).chain(to(3, 100)).collect(), &state(1)).await.expect("appended");
    let counts = |batch: &[Stored]| {
        let count = |partition| batch.iter().filter(|stored| stored.partition == partition).count();
        [0, 1, 2, 3].map(count)
    };
    let mut embed = log.embedder("r").expect("opens");
    assert_eq!(counts(&embed.next(40, 1 << 20).await.expect("reads")), [19, 0, 3, 18]);
    assert_eq!(counts(&embed.next(usize::MAX, 10_500).await.expect("reads")), [5, 0, 0, 5]);
    assert_eq!(embed.next(usize::MAX, 1).await.expect("reads").len(), 1, "one record is given whatever its size");
    let mut offsets = HashMap::<Partition, Vec<u64>>::new();
    embed.rewind();
    while embed.lag() > 0 {
        for stored in embed.next(7, 5000).await.expect("reads") {
            offsets.entry(stored.partition).or_default().push(stored.offset);
        }
    }
    for (partition, count) in [(0, 100), (2, 3), (3, 100)] {
        assert_eq!(offsets[&partition], (0..count).collect::<Vec<u64>>(), "partition {partition}");
    }
}

#[tokio::test]
async fn a_barrier_removes_what_is_below_it_also_after_a_restart() {
    let dir = tempfile::tempdir().expect("a folder");
    let log = open(dir.path(), 1);
    let rows = |from: usize, to: usize| (from..to).map(|n| row(&format!("k{n}"), "1")).collect::<Vec<_>>();
    for from in [0, 1000, 2000] {
        log.append_changes(rows(from, from + 1000), &state(1)).await.expect("appended");
    }
    let mut embed = log.embedder("r").expect("opens");
    embed.commit(rows(0, 10), vec![], &vec![0]).await.expect("commits");
    embed.commit(vec![barrier(), row("after", "1")], vec![], &vec![0]).await.expect("commits");
    log.append_changes([vec![tombstone("k1"), barrier()], rows(2999, 3000)].concat(), &state(2))
        .await
        .expect("appended");
    // Closed while the purge is going on: a step removes far fewer than 3,000.
    log.close().await.expect("closes");
    assert!(changes(&log).len() > 2, "the purge was interrupted");
    drop((embed, log));

    let log = open(dir.path(), 1);
    purged(&log).await;
    assert_eq!(changes(&log), [(0, 3001, "{\"\":\"barrier\"}".into()), (0, 3002, "k2999".into())]);
    assert_eq!(log.live_keys_below(0, 9999, None, 10).expect("readable"), [(3002, Bytes::from("k2999"))]);
    let mut reader = log.vectors("r").expect("opens");
    assert_eq!(keys(&reader.next(99, 1 << 20).await.expect("reads")), ["{\"\":\"barrier\"}", "after"]);
    // Besides records and index: format, identity, 3 topics, state, 2 ends, 1 position, 1 end of replays, 2 barriers to expire.
    assert_eq!(log.inner.shared.db.len(), 4 + 4 + 12);
}

#[tokio::test]
async fn tombstones_are_pruned_when_all_have_passed_them() {
    let dir = tempfile::tempdir().expect("a folder");
    let log = open(dir.path(), 1);
    let rows = vec![row("a", "1"), tombstone("a"), tombstone("b"), row("c", "1"), tombstone("d")];
    log.append_changes(rows, &state(1)).await.expect("appended");
    let mut embed = log.embedder("r").expect("opens");
    let mut idle = log.embedder("old").expect("opens");
    idle.commit(vec![], vec![], &vec![2]).await.expect("commits");
    embed.commit(vec![row("x", "1"), tombstone("x"), tombstone("y")], vec![], &vec![4]).await.expect("commits");
    assert_eq!(log.prune(DAY, "r", &vec![3]).await.expect("prunes"), 0, "none is old enough");
    assert_eq!(log.prune(DAY + 6, "r", &vec![2]).await.expect("prunes"), 3);
    assert_eq!(changes(&log), [(0, 3, "c".into()), (0, 4, "d".into())]);
    assert_eq!(log.prune(DAY + 6, "r", &vec![2]).await.expect("prunes"), 0);
    let mut reader = log.vectors("r").expect("opens");
    assert_eq!(reader.next(9, 1 << 20).await.expect("reads")[0].offset, 2);
    assert!(matches!(reader.seek(&vec![1]), Err(LogError::Expired { position: 1, pruned: 2, .. })));
    reader.seek(&vec![0]).expect("a full replay misses nothing");
    reader.seek(&vec![2]).expect("it has passed them");
    assert!(matches!(log.embedder("old"), Err(LogError::Expired { position: 2, pruned: 3, .. })));
    log.embedder("new").expect("opens").commit(vec![], vec![], &vec![1]).await.expect("commits");
    log.embedder("new").expect("what was dropped before it began, it has not missed");
    log.append_changes(vec![tombstone("c")], &state(2)).await.expect("appended");
    assert_eq!(log.changes_ends(), [6], "offsets go on after the pruned ones");
    drop((embed, idle, reader, log));
    assert_eq!(open(dir.path(), 1).changes_ends(), [6]);
}

#[tokio::test]
async fn other_settings_and_damage_are_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    assert!(matches!(Log::open(settings(dir.path(), 0)), Err(LogError::Refused { .. })));
    let log = open(dir.path(), 2);
    log.append_changes((0..50).map(|n| row(&format!("k{n}"), "1")).collect(), &state(1)).await.expect("appended");
    let outside = vec![Outgoing::To(2, record("a", None))];
    assert!(matches!(log.append_changes(outside, &state(2)).await, Err(LogError::Refused { .. })));
    assert_eq!(log.capture_state().expect("readable"), Some(state(1)), "what is refused writes nothing");
    drop(log);
    let error = Log::open(settings(dir.path(), 3)).err().expect("another number of partitions");
    assert!(matches!(error, LogError::Partitions { found: 2, wanted: 3, .. }), "{error}");

    let log = open(dir.path(), 2);
    let db = &log.inner.shared.db;
    let place = layout::offset_key(kind::RECORD, 0, 0, 3);
    let mut value = db.get(&place).expect("readable").expect("a record").to_vec();
    value[20] ^= 4;
    db.insert(place, value).expect("written");
    let mut embed = log.embedder("r").expect("opens");
    let error = embed.next(99, 1 << 20).await.expect_err("one record is damaged");
    assert!(matches!(error, LogError::Damaged { .. }), "{error}");
    assert!(error.to_string().contains("record 3 in partition 0"), "{error}");
    let key = layout::format_key();
    db.insert(key.clone(), layout::number(&key, 9)).expect("written");
    drop((embed, log));
    let error = Log::open(settings(dir.path(), 2)).err().expect("another format");
    assert!(matches!(error, LogError::Damaged { .. }), "{error}");
}

#[test]
fn damaged_files_are_found_or_hold_only_what_was_written() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let dir = tempfile::tempdir().expect("a folder");
    let text = |n: u64| format!("{n}-").repeat(100);
    let log = open(dir.path(), 1);
    for n in 0..200 {
        let rows = vec![row(&format!("k{}", n % 40), &text(n))];
        runtime.block_on(log.append_changes(rows, &state(n))).expect("appended");
    }
    drop(log);
    let file = dir.path().join("db");
    let whole = std::fs::read(&file).expect("readable");
    let snapshots = |dir: &Path| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(dir).expect("readable").map(|entry| entry.expect("readable").path());
        entries.filter(|path| path.to_string_lossy().contains("snap.")).collect()
    };
    for snapshot in snapshots(dir.path()) {
        std::fs::remove_file(snapshot).expect("removed");
    }
    let mut found = 0;
    for step in 0..24 {
        let mut bytes = whole.clone();
        let at = 40 + step * (whole.len().min(300_000) - 40) / 24;
        for byte in &mut bytes[at..(at + 16).min(whole.len())] {
            *byte ^= 0x5a;
        }
        std::fs::write(&file, bytes).expect("written");
        match Log::open(settings(dir.path(), 1)) {
            Err(LogError::Damaged { .. } | LogError::Storage { .. }) => found += 1,
            Err(error) => panic!("byte {at}: {error}"),
            Ok(log) => {
                let shared = &log.inner.shared;
                let last = log.capture_state().expect("readable").map_or(0, |state| state.position.ordinal + 1);
                for stored in shared.records(shared.changes.id, 0, 0, last) {
                    let Ok(stored) = stored.map(|found| found.stored) else {
                        found += 1;
                        break;
                    };
                    assert_eq!(stored.record.value.expect("a value"), text(stored.offset), "byte {at}");
                }
                // The tail is cut: it is the log as it was after an earlier transaction.
                assert_eq!(log.changes_ends(), [last], "byte {at}");
                found += usize::from(last < 200);
            }
        }
        for snapshot in snapshots(dir.path()) {
            std::fs::remove_file(snapshot).expect("removed");
        }
    }
    assert!(found > 12, "{found} of 24 damages were seen");
}

/// Runs one test of this binary in a new process.
fn child(test: &str, dir: &Path) -> Process {
    let mut process = Process::new(std::env::current_exe().expect("this binary has a path"));
    let name = format!("{}::{test}", module_path!().split_once("::").expect("a crate").1);
    process.args(["--exact", &name, "--nocapture"]).env("VECSYNC_TEST_LOG", dir);
    process.stdout(Stdio::piped()).stderr(Stdio::null());
    process
}

fn child_dir() -> Option<PathBuf> {
    std::env::var_os("VECSYNC_TEST_LOG").map(PathBuf::from)
}

#[tokio::test]
async fn a_second_process_is_told_that_the_log_is_locked() {
    if let Some(dir) = child_dir() {
        let error = Log::open(settings(&dir, 1)).err().expect("another process has it");
        println!("\nerror: {error}");
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    let log = open(dir.path(), 1);
    let output = child("a_second_process_is_told_that_the_log_is_locked", dir.path()).output().expect("runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("another process has it open"), "{said}");
    drop(log);
    open(dir.path(), 1);
}

/// The latest record of each key, and its offset.
type Latests = BTreeMap<(Partition, Bytes), (u64, Record)>;

/// Partitions of the log that is killed.
const KILLED_PARTITIONS: u16 = 3;

/// The records of transaction `n`, the same in both processes.
fn transaction(n: u64) -> Vec<Outgoing> {
    let mut seed = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut random = move |below: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % below
    };
    let one = |random: &mut dyn FnMut(u64) -> u64| {
        let key = format!("k{}", random(60));
        match random(10) {
            0 => tombstone(&key),
            // Some of many pieces, so that transactions are torn in the middle too.
            1 => row(&key, &format!("{n}").repeat(random(30_000) as usize + 1)),
            _ => row(&key, &format!("{n}-").repeat(random(100) as usize + 1)),
        }
    };
    let mut records: Vec<_> = (0..=random(12)).map(|_| one(&mut random)).collect();
    if n.is_multiple_of(47) {
        records.push(barrier());
    }
    records
}

/// The child's work: appends and embeds without end, and says what was acknowledged.
async fn write_until_killed(dir: &Path) {
    let log = open(dir, KILLED_PARTITIONS);
    let mut embed = log.embedder("r").expect("opens");
    let from = log.capture_state().expect("readable").map_or(1, |state| state.position.ordinal + 1);
    for n in from.. {
        log.append_changes(transaction(n), &state(n)).await.expect("appended");
        say(&format!("appended {n}"));
        if n.is_multiple_of(3) {
            while embed.lag() > 0 {
                let batch = embed.next(50, 1 << 20).await.expect("reads");
                let mut upto = embed.committed();
                let mut vectors = vec![];
                for stored in batch {
                    upto[usize::from(stored.partition)] = stored.offset + 1;
                    let value = Some(Bytes::from(stored.offset.to_string()));
                    vectors.push(Outgoing::To(stored.partition, Record { value, ..stored.record }));
                }
                embed.commit(vectors, vec![], &upto).await.expect("commits");
                say(&format!("committed {}", upto.iter().sum::<u64>()));
            }
        }
    }
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    out.write_all(format!("{line}\n").as_bytes()).and_then(|()| out.flush()).expect("the parent reads");
}

/// The log as transactions 1 to `last` make it, below no barrier: the latest record of each key, and the ends.
fn model(last: u64) -> (Latests, Offsets) {
    let (mut latest, mut ends) = (BTreeMap::new(), vec![0; usize::from(KILLED_PARTITIONS)]);
    let mut put = |partition: Partition, record: Record| {
        let end = &mut ends[usize::from(partition)];
        if record.key == BARRIER_KEY {
            latest.retain(|(other, _), _| *other != partition);
        }
        latest.insert((partition, record.key.clone()), (*end, record));
        *end += 1;
    };
    for outgoing in (1..=last).flat_map(transaction) {
        match outgoing {
            Outgoing::ByKey(record) => put(partition_of(&record.key, KILLED_PARTITIONS), record),
            Outgoing::To(partition, record) => put(partition, record),
            Outgoing::Everywhere(record) => (0..KILLED_PARTITIONS).for_each(|p| put(p, record.clone())),
        }
    }
    (latest, ends)
}

/// Kills a writer with SIGKILL again and again. Each time the log holds exactly the transactions up to some one that
/// was not acknowledged before the last acknowledged one, with the state that belongs to it.
#[test]
fn what_was_acknowledged_survives_sigkill_and_nothing_is_invented() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().expect("a runtime");
    if let Some(dir) = child_dir() {
        return runtime.block_on(write_until_killed(&dir));
    }
    let dir = tempfile::tempdir().expect("a folder");
    let (mut appended, mut committed) = (0, 0);
    for round in 0..10u64 {
        let test = "what_was_acknowledged_survives_sigkill_and_nothing_is_invented";
        let mut child = child(test, dir.path()).spawn().expect("starts");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut note = |line: String| {
            let mut words = line.split(' ');
            match (words.next(), words.next().and_then(|word| word.parse().ok())) {
                (Some("appended"), Some(n)) => appended = n,
                (Some("committed"), Some(n)) => committed = n,
                _ => return false,
            }
            true
        };
        let mut left = 1 + round * 41 % 97;
        while left > 0 {
            left -= u64::from(note(lines.next().expect("it runs until killed").expect("text")));
        }
        child.kill().expect("killed");
        child.wait().expect("ended");
        // What it said before it was killed was acknowledged too.
        for line in lines.map_while(Result::ok) {
            note(line);
        }

        let log = open(dir.path(), KILLED_PARTITIONS);
        let last = log.capture_state().expect("readable").map_or(0, |state| state.position.ordinal);
        assert!((appended..=appended + 1).contains(&last), "acknowledged {appended}, recovered {last}");
        let (wanted, ends) = model(last);
        assert_eq!(log.changes_ends(), ends, "round {round}");
        let barriers: Vec<u64> = (0..KILLED_PARTITIONS)
            .map(|p| wanted.get(&(p, Bytes::from_static(BARRIER_KEY))).map_or(0, |(offset, _)| *offset))
            .collect();
        let held: Latests = contents(&log, &log.inner.shared.changes)
            .into_iter()
            .filter(|stored| stored.offset >= barriers[usize::from(stored.partition)])
            .map(|stored| ((stored.partition, stored.record.key.clone()), (stored.offset, stored.record)))
            .collect();
        assert_eq!(held.len(), wanted.len(), "round {round}");
        assert!(held == wanted, "round {round}: other records than were appended");
        check_vectors(&log, &wanted, committed);
        runtime.block_on(log.close()).expect("closes");
    }
    assert!(appended > 100, "{appended}");
}

/// The outputs are those of the changes below the committed positions, and of no other.
fn check_vectors(log: &Log, wanted: &Latests, acknowledged: u64) {
    let embed = log.embedder("r").expect("opens");
    let positions = embed.committed();
    assert!(positions.iter().sum::<u64>() >= acknowledged, "acknowledged {acknowledged}, recovered {positions:?}");
    let vectors: HashMap<_, _> = contents(log, &embed_topic(log))
        .into_iter()
        .map(|stored| {
            let value = stored.record.value.expect("the source's offset");
            let source: u64 = std::str::from_utf8(&value).expect("text").parse().expect("a number");
            assert!(source < positions[usize::from(stored.partition)], "an output without its position");
            ((stored.partition, stored.record.key), source)
        })
        .collect();
    for ((partition, key), (offset, _)) in wanted {
        if *offset < positions[usize::from(*partition)] {
            assert_eq!(vectors.get(&(*partition, key.clone())), Some(offset), "a position without its output");
        }
    }
}

fn embed_topic(log: &Log) -> Arc<Topic> {
    log.vectors_topic("r").expect("a topic")
}

#[tokio::test]
async fn a_dead_letter_is_open_until_its_tombstone_and_that_is_pruned() {
    let dir = tempfile::tempdir().expect("a folder");
    let log = open(dir.path(), 2);
    log.append_changes(vec![row("a", "1")], &state(1)).await.expect("appended");
    let mut embed = log.embedder("r1").expect("opens");
    let letter = |key: &str, value: Option<&str>, offset: u64| Record {
        headers: [("vecsync.partition", "0".to_owned()), ("vecsync.offset", offset.to_string())]
            .map(|(name, value)| (name.to_owned(), Bytes::from(value)))
            .into(),
        ..record(key, value)
    };
    let (one, two) = (r#"{"id":1}"#, r#"{"id":2}"#);
    let letters = vec![letter(one, Some("x"), 4), letter(two, Some("y"), 5), letter("no key", Some("z"), 6)];
    embed.commit(vec![], letters, &vec![0, 0]).await.expect("commits");
    assert_eq!(embed.open_letters(9).await.expect("readable").len(), 2);
    assert!(embed.open_letters(1).await.expect("readable").is_full());
    // Put aside and closed in one transaction, too.
    let records = vec![record(one, None), letter(two, Some("y"), 7), record(two, None)];
    embed.commit(vec![], records, &vec![0, 0]).await.expect("commits");
    assert!(embed.open_letters(9).await.expect("readable").is_empty());
    let listed = super::super::Log::Embedded(log.clone()).dead_letters(9).await.expect("readable");
    assert_eq!(listed.newest.iter().map(|letter| &letter.key[..]).collect::<Vec<_>>(), [b"no key"]);
    assert_eq!(dead_letters(&log).len(), 3);
    assert_eq!(log.prune(DAY, "r1", &vec![0, 0]).await.expect("prunes"), 0, "they are young");
    assert_eq!(log.prune(DAY + 6, "r1", &vec![0, 0]).await.expect("prunes"), 2);
    assert_eq!(dead_letters(&log), ["no key"]);
}
