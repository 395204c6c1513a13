//! The mirror under every order of events, kills, damage and two owners.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::json;

use super::*;
use crate::event::EmbeddedRow;
use crate::event::Window;
use crate::index::{Filter, FilterValue};

const PARTITIONS: Partition = 4;

fn settings(dir: &Path) -> MirrorSettings {
    MirrorSettings {
        dir: dir.join("rev"),
        pipeline: "faq".into(),
        revision: "rev".into(),
        partitions: PARTITIONS,
        filters: vec!["category".into()],
    }
}

fn open(dir: &Path) -> Mirror {
    Mirror::open(settings(dir)).expect("the mirror opens")
}

fn key(id: u64) -> RowKey {
    RowKey::from_bytes(json!({ "id": id }).to_string().as_bytes()).expect("a key")
}

/// Keys stay in their partition.
fn partition(id: u64) -> Partition {
    (id % u64::from(PARTITIONS)) as Partition
}

/// A unit vector that differs with its seed.
fn vector(seed: u64) -> Vec<f32> {
    let mut numbers = vec![0.0; DIMENSION];
    let angle = (seed % 628) as f32 / 100.0;
    numbers[(seed % 300) as usize] = angle.cos();
    numbers[300 + (seed % 80) as usize] = angle.sin();
    numbers
}

fn upsert(id: u64, version: u64) -> VectorEvent {
    let windows = (0..1 + version % 3).map(|n| {
        let passage = format!("row {id} version {version} window {n}");
        Window::new(&vector(id * 31 + version * 7 + n), passage)
    });
    let payload = json!({ "id": id, "version": version, "category": format!("c{}", id % 3) }).to_string();
    let row = EmbeddedRow { version, payload, windows: windows.collect(), ..EmbeddedRow::default() };
    VectorEvent::Upsert { key: key(id), row }
}

fn delete(id: u64, version: u64) -> VectorEvent {
    VectorEvent::Delete { key: key(id), version: Version(version), commit_ts_ms: None }
}

fn barrier(version: u64) -> VectorEvent {
    VectorEvent::Barrier { version: Version(version), commit_ts_ms: 0, of: None }
}

/// Each key's version, and whether it is live.
type Content = BTreeMap<RowKey, (u64, bool)>;

/// What a mirror holds, checked against itself: what a search gives must be what the matrix says.
fn content(mirror: &Mirror) -> Content {
    let content: Content = {
        let matrix = read(&mirror.0.matrix);
        let live =
            |document: &crate::index::matrix::Document| matches!(document.state, crate::index::matrix::State::Live(_));
        matrix.documents().map(|d| ((*d.key).clone(), (d.version.0, live(d)))).collect()
    };
    let hits = mirror.search(&vector(1), usize::MAX, -2.0, &Filter::none()).expect("a search");
    let found: Content = hits.iter().map(|hit| (hit.key.clone(), (hit.version.0, true))).collect();
    assert_eq!(found, content.iter().filter(|(_, (_, live))| *live).map(|(k, v)| (k.clone(), *v)).collect());
    assert_eq!(mirror.rows(), found.len() as u64);
    for hit in hits {
        assert_eq!(hit.payload["version"], json!(hit.version.0));
        assert!(hit.passage.contains(&format!("row {} version {} ", hit.key.id(), hit.version.0)), "{}", hit.passage);
    }
    content
}

/// The `number`th event of an endless made stream over few keys: its place, and itself. The version is the number.
fn stream(number: u64) -> (Partition, u64, VectorEvent) {
    let mix = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
    let (version, offset) = (number + 1, number / u64::from(PARTITIONS));
    let lane = partition(number);
    let id = (mix % 20) * u64::from(PARTITIONS) + u64::from(lane);
    let event = match mix / 32 % 64 {
        0 => barrier(version),
        1..=12 => delete(id, version),
        _ => upsert(id, version),
    };
    (lane, offset, event)
}

/// What a mirror must hold after the stream up to these positions.
fn expected(positions: &[u64]) -> Content {
    let mut content = Content::new();
    let mut number = 0;
    for offset in 0..positions.iter().copied().max().unwrap_or(0) {
        for lane in 0..PARTITIONS {
            if offset < positions[usize::from(lane)] {
                match stream(number).2 {
                    VectorEvent::Upsert { key, row } => drop(content.insert(key, (row.version, true))),
                    VectorEvent::Delete { key, version, .. } => drop(content.insert(key, (version.0, false))),
                    VectorEvent::Barrier { .. } => {
                        content.retain(|key, _| partition(key.id().as_u64().expect("a number")) != lane);
                    }
                    VectorEvent::Heartbeat { .. } | VectorEvent::Replayed { .. } => {}
                }
            }
            number += 1;
        }
    }
    content
}

#[tokio::test]
async fn the_newest_version_wins_in_every_order_and_in_every_cut() {
    let dir = tempfile::tempdir().expect("a folder");
    let mirror = open(dir.path());
    let mut number = 0_u64;
    let mut orders = vec![];
    permute(&mut vec![0, 1, 2, 3, 4], 0, &mut orders);
    for cut in [1, 2, 5] {
        for order in &orders {
            for wanted in [(4, false), (3, true)] {
                // A fresh key and fresh versions each time; the delete is left out the second time.
                let (id, base) = (4 * number, number * 10);
                let made = order.iter().filter(|at| !wanted.1 || **at != 2).map(|at| {
                    let event = match *at {
                        0 => upsert(id, base + 1),
                        1 => upsert(id, base + 3),
                        2 => delete(id, base + 4),
                        3 => upsert(id, base + 2),
                        _ => barrier(base + 2),
                    };
                    (0, number, event)
                });
                for batch in made.collect::<Vec<_>>().chunks(cut) {
                    mirror.apply(batch.to_vec()).await.expect("applied");
                }
                let matrix = read(&mirror.0.matrix);
                let document = matrix.get(&key(id)).expect("known");
                let live = matches!(document.state, crate::index::matrix::State::Live(_));
                assert_eq!((document.version.0 - base, live), wanted, "order {order:?}, cut {cut}");
                assert_eq!(matrix.records(), 1, "the barrier removed the key before");
                drop(matrix);
                number += 1;
            }
        }
    }
    mirror.close().await;
    assert_eq!(open(dir.path()).positions(), [number, 0, 0, 0]);
}

fn permute(order: &mut Vec<usize>, from: usize, found: &mut Vec<Vec<usize>>) {
    if from == order.len() {
        found.push(order.clone());
    }
    for at in from..order.len() {
        order.swap(from, at);
        permute(order, from + 1, found);
        order.swap(from, at);
    }
}

#[tokio::test]
async fn deletes_and_barriers_hold_against_late_upserts_also_after_a_restart() {
    let dir = tempfile::tempdir().expect("a folder");
    let mirror = open(dir.path());
    let first = vec![(0, 0, upsert(0, 5)), (0, 1, delete(0, 8)), (1, 0, upsert(1, 6)), (2, 0, upsert(2, 7))];
    let applied = mirror.apply(first).await.expect("applied");
    assert_eq!((applied.upserts, applied.deletes, mirror.rows()), (3, 1, 2));
    let applied = mirror.apply(vec![(1, 1, barrier(10))]).await.expect("applied");
    assert_eq!((applied.purged, mirror.rows(), mirror.points()), (1, 1, 2));
    mirror.close().await;

    let mirror = open(dir.path());
    assert_eq!(mirror.positions(), [2, 2, 1, 0]);
    let late = vec![
        (0, 2, upsert(0, 7)),
        (1, 2, upsert(1, 9)),
        (1, 3, upsert(5, 9)),
        (1, 4, delete(9, 9)),
        (2, 1, upsert(2, 6)),
    ];
    let applied = mirror.apply(late).await.expect("applied");
    assert_eq!(applied, Applied { stale: 5, ..Applied::default() });
    assert_eq!(content(&mirror), Content::from([(key(0), (8, false)), (key(2), (7, true))]));
    let newer = vec![(0, 3, upsert(0, 11)), (1, 5, upsert(1, 12))];
    assert_eq!(mirror.apply(newer).await.expect("applied").upserts, 2);
    assert_eq!(mirror.rows(), 3);
    assert_eq!(mirror.positions(), [4, 6, 2, 0]);
}

#[tokio::test]
async fn tombstones_are_pruned_when_they_are_old() {
    let dir = tempfile::tempdir().expect("a folder");
    let mirror = open(dir.path());
    mirror.apply(vec![(0, 0, upsert(0, 1)), (0, 1, delete(4, 2)), (0, 2, delete(8, 3))]).await.expect("applied");
    assert_eq!(mirror.prune(0).await.expect("pruned"), 0);
    assert_eq!(mirror.prune(i64::MAX).await.expect("pruned"), 2);
    mirror.close().await;
    assert_eq!(content(&open(dir.path())), Content::from([(key(0), (1, true))]));
}

#[tokio::test]
async fn rows_that_cannot_be_searched_are_refused_and_the_rest_goes_on() {
    let dir = tempfile::tempdir().expect("a folder");
    let mirror = open(dir.path());
    let broken = |change: &dyn Fn(&mut EmbeddedRow)| {
        let VectorEvent::Upsert { key, mut row } = upsert(0, 1) else { unreachable!("an upsert") };
        change(&mut row);
        VectorEvent::Upsert { key, row }
    };
    let bad = [
        broken(&|row| row.windows.clear()),
        broken(&|row| {
            let mut vector = row.windows[0].vector();
            vector[7] = f32::NAN;
            row.windows[0] = Window::new(&vector, String::new());
        }),
        broken(&|row| row.windows[0].vector_bytes.truncate(4 * (DIMENSION - 1))),
        broken(&|row| row.windows[0].vector_bytes.truncate(4 * DIMENSION - 1)),
        broken(&|row| row.payload = "[]".into()),
    ];
    let count = bad.len() as u64;
    let batch = bad.into_iter().chain([upsert(4, 1)]).enumerate().map(|(offset, event)| (0, offset as u64, event));
    let applied = mirror.apply(batch.collect()).await.expect("applied");
    assert_eq!((applied.refused, applied.upserts), (count, 1));
    assert_eq!(mirror.positions(), [count + 1, 0, 0, 0]);
    let outside = mirror.apply(vec![(PARTITIONS, 0, upsert(0, 1))]).await;
    assert!(matches!(outside, Err(MirrorError::Partition { .. })), "{outside:?}");
    assert!(mirror.search(&[0.0; 3], 1, 0.0, &Filter::none()).is_err());
    assert_eq!(mirror.rows(), 1);
}

#[tokio::test]
async fn hits_carry_passage_and_payload_of_the_best_window_and_obey_the_filter() {
    let dir = tempfile::tempdir().expect("a folder");
    let mirror = open(dir.path());
    let batch: Vec<_> = (0..40).map(|id| (partition(id), id / 4, upsert(id, 2))).collect();
    mirror.apply(batch).await.expect("applied");
    let query = vector(7 * 31 + 2 * 7 + 1);
    let hits = mirror.search(&query, 3, 0.5, &Filter::none()).expect("a search");
    assert_eq!(hits[0].key, key(7));
    assert_eq!(hits[0].passage, "row 7 version 2 window 1");
    assert_eq!(hits[0].payload["category"], json!("c1"));
    assert!((hits[0].score - 1.0).abs() < 1e-6);
    let filter = Filter::new(vec![("category".into(), FilterValue::from_text("c2"))]);
    let hits = mirror.search(&query, 100, -1.0, &filter).expect("a search");
    assert!(hits.len() == 13 && hits.iter().all(|hit| hit.payload["category"] == json!("c2")), "{}", hits.len());
    let filter = Filter::new(vec![("colour".into(), FilterValue::from_text("c2"))]);
    assert!(matches!(mirror.search(&query, 1, 0.0, &filter), Err(MirrorError::Field { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn searches_during_writes_see_whole_rows() {
    let dir = tempfile::tempdir().expect("a folder");
    let mirror = open(dir.path());
    mirror.apply((0..40).map(|id| (partition(id), id / 4, upsert(id, 1))).collect()).await.expect("applied");
    let done = Arc::new(AtomicBool::new(false));
    let searcher = {
        let (mirror, done) = (mirror.clone(), Arc::clone(&done));
        tokio::task::spawn_blocking(move || {
            let mut searches = 0_u64;
            while !done.load(Ordering::Acquire) || searches == 0 {
                // By turns at once, and as a server does it: from memory as far as it goes.
                let query = vector(searches);
                let begun = mirror.begin_search(&query, 100, -2.0, &Filter::none()).filter(|_| searches % 2 == 1);
                let hits = match begun {
                    Some(Begun::Done(hits)) => Ok(hits),
                    Some(Begun::Found(search)) => mirror.finish_search(search),
                    None => mirror.search(&query, 100, -2.0, &Filter::none()),
                };
                let hits = hits.expect("a search");
                assert_eq!(hits.len(), 40);
                for hit in hits {
                    let text = format!("row {} version {} ", hit.key.id(), hit.version.0);
                    assert!(hit.passage.starts_with(&text), "{} is not of {text}", hit.passage);
                    assert_eq!(hit.payload["version"], json!(hit.version.0));
                }
                searches += 1;
            }
            searches
        })
    };
    for version in 2..60 {
        let batch = (0..40).map(|id| (partition(id), version * 10 + id / 4, upsert(id, version)));
        mirror.apply(batch.collect()).await.expect("applied");
    }
    done.store(true, Ordering::Release);
    assert!(searcher.await.expect("the searcher ends") > 0);
}

#[tokio::test]
async fn what_was_read_is_kept_and_never_answers_for_what_has_taken_its_place() {
    let dir = tempfile::tempdir().expect("a folder");
    let mirror = open(dir.path());
    let (query, any) = (vector(1), Filter::none());
    let in_memory = || match mirror.begin_search(&query, 100, -2.0, &any).expect("nobody writes") {
        Begun::Done(hits) => Some(hits),
        Begun::Found(_) => None,
    };
    mirror.apply((0..8).map(|id| (partition(id), id / 4, upsert(id, 1))).collect()).await.expect("applied");
    assert_eq!(in_memory(), None, "nothing was read yet");
    let whole = mirror.search(&query, 100, -2.0, &any).expect("a search");
    assert_eq!(in_memory(), Some(whole));
    // The same version again, with other words: how a row is mended. Then everything anew, with the same places.
    let mended = |words: &str| {
        let VectorEvent::Upsert { key, row } = upsert(3, 1) else { unreachable!("it is one") };
        let payload = json!({ "id": 3, "category": "c0", "words": words }).to_string();
        VectorEvent::Upsert { key, row: EmbeddedRow { payload, ..row } }
    };
    for words in ["mended", "mended again"] {
        mirror.apply(vec![(partition(3), 10, mended(words))]).await.expect("applied");
        assert_eq!(in_memory(), None, "it is another row than was read");
        let hits = mirror.search(&query, 100, -2.0, &any).expect("a search");
        let row = hits.iter().find(|hit| hit.key == key(3)).expect("it is found");
        assert_eq!(row.payload["words"], json!(words));
        assert_eq!(in_memory(), Some(hits));
        mirror.reset("for the test").await.expect("reset");
        assert_eq!(in_memory(), Some(vec![]));
    }
}

#[tokio::test]
async fn a_second_owner_is_told_so_and_harms_nothing() {
    let dir = tempfile::tempdir().expect("a folder");
    let mirror = open(dir.path());
    mirror.apply(vec![(0, 0, upsert(0, 1))]).await.expect("applied");
    let second = Mirror::open(settings(dir.path()));
    assert!(matches!(second, Err(MirrorError::Locked { .. })), "{second:?}");
    mirror.apply(vec![(0, 1, upsert(4, 2))]).await.expect("applied");
    mirror.close().await;
    assert!(matches!(mirror.apply(vec![(0, 2, upsert(8, 3))]).await, Err(MirrorError::Closed { .. })));
    assert!(matches!(mirror.recover().await, Err(MirrorError::Closed { .. })));
    assert_eq!(open(dir.path()).rows(), 2);
    assert!(store::quarantined(&settings(dir.path()).dir).expect("a list").is_empty());
}

#[tokio::test]
async fn another_origin_is_put_aside_and_two_quarantines_are_kept() {
    let dir = tempfile::tempdir().expect("a folder");
    for revision in ["a", "b", "c", "d"] {
        let settings = MirrorSettings { revision: revision.into(), ..settings(dir.path()) };
        let mirror = Mirror::open(settings).expect("the mirror opens");
        assert_eq!((mirror.rows(), mirror.positions()), (0, vec![0; 4]));
        mirror.apply(vec![(0, 0, upsert(0, 1))]).await.expect("applied");
        mirror.close().await;
    }
    assert_eq!(store::quarantined(&settings(dir.path()).dir).expect("a list").len(), 2);
}

#[tokio::test]
async fn reset_begins_empty_and_recover_finds_what_was_durable() {
    let dir = tempfile::tempdir().expect("a folder");
    let mirror = open(dir.path());
    mirror.apply(vec![(0, 0, upsert(0, 1))]).await.expect("applied");
    mirror.0.mark_faulty();
    mirror.faulted().await;
    let refused = mirror.apply(vec![(0, 1, upsert(4, 2))]).await;
    assert!(matches!(refused, Err(MirrorError::Faulty { .. })), "{refused:?}");
    mirror.recover().await.expect("recovered");
    assert_eq!(mirror.positions(), [1, 0, 0, 0]);
    mirror.apply(vec![(0, 1, upsert(4, 2))]).await.expect("applied");
    assert_eq!(content(&mirror).len(), 2);
    mirror.reset("a test").await.expect("reset");
    assert_eq!((mirror.rows(), mirror.positions(), content(&mirror).len()), (0, vec![0; 4], 0));
    mirror.apply(vec![(0, 0, upsert(4, 2))]).await.expect("applied");
    assert_eq!(mirror.rows(), 1);
}

const CHILD_DIR: &str = "VECSYNC_TEST_MIRROR_DIR";

/// Not a test by itself: the process that `a_kill_leaves_rows_and_positions_that_agree` kills.
#[tokio::test]
#[ignore = "run by another test, in a process of its own"]
async fn child_applies_until_it_is_killed() {
    let Some(dir) = std::env::var_os(CHILD_DIR) else { return };
    let mirror = open(Path::new(&dir));
    let mut number = mirror.positions().iter().sum::<u64>();
    for batch in [1, 7, 40, 400].into_iter().cycle() {
        let next = number + batch * u64::from(PARTITIONS);
        mirror.apply((number..next).map(stream).collect()).await.expect("applied");
        number = next;
        println!("applied");
    }
}

#[test]
fn a_kill_leaves_rows_and_positions_that_agree() {
    let dir = tempfile::tempdir().expect("a folder");
    let child = "index::mirror::tests::child_applies_until_it_is_killed";
    for round in 0..12_u64 {
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", child, "--ignored", "--nocapture"])
            .env(CHILD_DIR, dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("a child");
        let lines = BufReader::new(child.stdout.take().expect("its output")).lines();
        let applied = lines.map_while(Result::ok).filter(|line| line.ends_with("applied"));
        assert_eq!(applied.take(1 + round as usize % 9).count(), 1 + round as usize % 9);
        child.kill().expect("killed");
        child.wait().expect("reaped");
        // One more batch may be anywhere between nothing and durable: a whole batch is there, or none of it.
        let mirror = open(dir.path());
        let positions = mirror.positions();
        assert!(positions.iter().all(|position| *position > 0), "round {round}: {positions:?}");
        assert_eq!(content(&mirror), expected(&positions), "round {round} at {positions:?}");
        drop(mirror);
        assert!(store::quarantined(&settings(dir.path()).dir).expect("a list").is_empty(), "round {round}");
        // The child takes the stream up at one number: let it begin at a row that all partitions have reached.
        let behind: Vec<_> = {
            let (from, to) = (positions.iter().min().copied(), positions.iter().max().copied());
            let numbers = from.unwrap_or(0) * u64::from(PARTITIONS)..to.unwrap_or(0) * u64::from(PARTITIONS);
            numbers.map(stream).filter(|(lane, offset, _)| *offset >= positions[usize::from(*lane)]).collect()
        };
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            let mirror = open(dir.path());
            mirror.apply(behind).await.expect("applied");
            mirror.close().await;
        });
    }
}

#[tokio::test]
async fn a_purge_that_was_killed_goes_on_when_the_mirror_opens() {
    let dir = tempfile::tempdir().expect("a folder");
    let mirror = open(dir.path());
    mirror.apply((0..40).map(|id| (partition(id), id / 4, upsert(id, 1 + id))).collect()).await.expect("applied");
    // The barrier's own transaction, and no purge after it.
    mirror
        .0
        .write(|inner, state| {
            state.barriers[1] = 20;
            inner.commit(state, Pending::default()).map(drop)
        })
        .expect("written");
    mirror.close().await;
    let mirror = open(dir.path());
    let gone = |id: u64| partition(id) == 1 && id + 1 < 20;
    assert_eq!(content(&mirror), (0..40).filter(|id| !gone(*id)).map(|id| (key(id), (id + 1, true))).collect());
    mirror.close().await;
    let mirror = open(dir.path());
    assert_eq!(content(&mirror).len() as u64, mirror.rows());
}

/// A mirror with a history, closed; and what it holds.
async fn aged(dir: &Path) -> Content {
    let mirror = open(dir);
    for batch in 0..60_u64 {
        mirror.apply((batch * 40..batch * 40 + 40).map(stream).collect()).await.expect("applied");
    }
    let content = content(&mirror);
    assert_eq!(content, expected(&mirror.positions()));
    mirror.close().await;
    content
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &to)
        } else {
            fs::copy(entry.path(), to).map(drop).expect("copied")
        }
    }
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = vec![];
    for entry in fs::read_dir(dir).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

/// Opens a copy after `damage`: it must hold what it held, or an earlier state of all of it, or nothing.
async fn survives(original: &Path, damage: impl Fn(&Path), what: &str) -> bool {
    let dir = tempfile::tempdir().expect("a folder");
    copy(original, dir.path());
    damage(dir.path());
    let mirror = open(dir.path());
    let before = mirror.positions();
    assert_eq!(content(&mirror), expected(&before), "{what}: at {before:?}");
    let quarantined = !store::quarantined(&settings(dir.path()).dir).expect("a list").is_empty();
    if quarantined {
        assert_eq!(before, [0; 4], "{what}");
    }
    mirror.apply(vec![(0, 1 << 40, upsert(0, 1 << 40))]).await.unwrap_or_else(|error| panic!("{what}: {error}"));
    mirror.close().await;
    // sled may be found more damaged than it looked: then it is an earlier state again, and its positions say so.
    let mirror = open(dir.path());
    let positions = mirror.positions();
    let wanted = if positions[0] > 1 << 40 {
        expected(&before).into_iter().chain([(key(0), (1 << 40, true))]).collect()
    } else {
        expected(&positions)
    };
    assert_eq!(content(&mirror), wanted, "{what}, opened again: at {positions:?}");
    quarantined
}

#[tokio::test]
async fn flipped_bytes_are_noticed_wherever_they_are() {
    let dir = tempfile::tempdir().expect("a folder");
    aged(dir.path()).await;
    let mut quarantined = 0;
    let rounds = std::env::var("VECSYNC_TEST_FLIPS").ok().and_then(|text| text.parse().ok()).unwrap_or(60_u64);
    for round in 0..rounds {
        let flip = |copy: &Path| {
            let files = files(&copy.join("rev"));
            let path = &files[(round % 3) as usize % files.len()];
            let mut bytes = fs::read(path).expect("a file");
            let used = bytes.iter().rposition(|byte| *byte != 0).unwrap_or(0).max(1);
            let at = (round.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 11) as usize % used;
            bytes[at] ^= 1 << (round % 8);
            fs::write(path, bytes).expect("written");
        };
        quarantined += u64::from(survives(dir.path(), flip, &format!("flip {round}")).await);
    }
    assert!(quarantined > 0, "no flip did any harm: is anything checked?");
}

#[tokio::test]
async fn truncated_and_missing_files_are_noticed() {
    let dir = tempfile::tempdir().expect("a folder");
    aged(dir.path()).await;
    let names: Vec<_> =
        files(&dir.path().join("rev")).iter().map(|p| p.strip_prefix(dir.path()).expect("inside").to_owned()).collect();
    for name in &names {
        for eighths in 0..8 {
            let cut = |copy: &Path| {
                let file = fs::File::options().write(true).open(copy.join(name)).expect("a file");
                let length = file.metadata().expect("a length").len();
                file.set_len(length * eighths / 8).expect("cut");
            };
            survives(dir.path(), cut, &format!("{} cut to {eighths}/8", name.display())).await;
        }
        survives(dir.path(), |copy| fs::remove_file(copy.join(name)).expect("removed"), "a file is gone").await;
    }
}

#[tokio::test]
async fn a_lost_row_is_noticed_though_every_checksum_is_right() {
    let dir = tempfile::tempdir().expect("a folder");
    let mirror = open(dir.path());
    mirror.apply((0..8).map(|id| (partition(id), id / 4, upsert(id, 1 + id))).collect()).await.expect("applied");
    let mut batch = sled::Batch::default();
    let place = read(&mirror.0.matrix).get(&key(3)).expect("a row").place;
    batch.remove(&record::place_key(place));
    mirror.0.with_store(|store| store.write(batch)).expect("written");
    mirror.close().await;
    let mirror = open(dir.path());
    assert_eq!((mirror.rows(), mirror.positions()), (0, vec![0; 4]));
    assert_eq!(store::quarantined(&settings(dir.path()).dir).expect("a list").len(), 1);
}

#[tokio::test]
async fn the_disk_stays_bounded_under_overwrites() {
    let dir = tempfile::tempdir().expect("a folder");
    let mirror = open(dir.path());
    let mut largest = 0;
    for batch in 0..300_u64 {
        let events = (0..100).map(|n| {
            let id = (batch * 37 + n * 11) % 200;
            (partition(id), batch, upsert(id, batch + 1))
        });
        mirror.apply(events.collect()).await.expect("applied");
        largest = largest.max(mirror.size_on_disk().expect("a size"));
    }
    // 1.2 MB of rows, written 150 times over.
    assert!(largest < 40 << 20, "{largest} bytes");
}

#[tokio::test]
#[ignore = "needs VECSYNC_TEST_SMALL_DISK, a folder on a file system of its own with 64 MB"]
async fn a_full_disk_is_told_searches_go_on_and_room_mends_it() {
    let Some(disk) = std::env::var_os("VECSYNC_TEST_SMALL_DISK") else { return };
    let disk = Path::new(&disk);
    let mirror = open(disk);
    mirror.apply((0..400).map(|id| (partition(id), id / 4, upsert(id, 1))).collect()).await.expect("applied");
    let before = mirror.positions();
    fs::write(disk.join("ballast"), vec![1; 64 << 20]).expect_err("the disk is full now");
    for id in 400..410 {
        let full = mirror.apply(vec![(partition(id), id / 4, upsert(id, 1))]).await;
        assert!(matches!(full, Err(MirrorError::Full { .. })), "{full:?}");
        mirror.recover().await.expect("nothing to mend");
        assert_eq!(mirror.search(&vector(5), 400, -1.0, &Filter::none()).expect("a search").len(), 400);
    }
    // As if the last of the room had gone between the look and the write.
    mirror.0.mark_faulty();
    assert!(matches!(mirror.recover().await, Err(MirrorError::Full { .. })));
    assert_eq!(mirror.search(&vector(5), 400, -1.0, &Filter::none()).expect("a search").len(), 400);
    assert_eq!(mirror.positions(), before);
    fs::remove_file(disk.join("ballast")).expect("removed");
    mirror.recover().await.expect("recovered");
    assert_eq!(mirror.positions(), before, "nothing durable was lost");
    assert!(store::quarantined(&settings(disk).dir).expect("a list").is_empty());
    let rows = mirror.rows();
    mirror.apply((0..400).map(|id| (partition(id), 2000 + id / 4, upsert(id, 2))).collect()).await.expect("applied");
    assert_eq!(content(&mirror).len() as u64, rows);
    mirror.close().await;
}

#[tokio::test]
async fn what_is_held_of_rows_is_their_hash_and_keys_come_in_pages() {
    use crate::index::drift::Held;
    let dir = tempfile::tempdir().expect("a folder");
    let mirror = open(dir.path());
    let hashed = |id: u64, hash: &[u8]| match upsert(id, id) {
        VectorEvent::Upsert { key, row } => {
            VectorEvent::Upsert { key, row: EmbeddedRow { row_hash: hash.to_vec(), ..row } }
        }
        other => other,
    };
    let rows = [hashed(1, &[7; 16]), hashed(2, b"short"), hashed(3, &[9; 16]), delete(4, 4), hashed(5, &[5; 16])];
    let batch = rows.into_iter().zip(1..).map(|(event, id)| (partition(id), id, event)).collect();
    mirror.apply(batch).await.expect("applied");
    let keys: Vec<RowKey> = [3, 1, 2, 4, 6].map(key).to_vec();
    let held = mirror.held(&keys).expect("readable");
    assert_eq!(held, [Held::Row([9; 16]), Held::Row([7; 16]), Held::Torn, Held::Nothing, Held::Nothing]);

    let (mut found, mut from) = (vec![], Some(0));
    while let Some(at) = from {
        let (keys, next) = mirror.keys(at, 3);
        assert!(keys.len() <= 3);
        found.extend(keys);
        from = next;
    }
    found.sort();
    assert_eq!(found, [1, 2, 3, 5].map(key));

    // Damage is no drift: the folder is opened anew, and the log fills it again.
    mirror.damage_row(&key(3));
    assert!(matches!(mirror.held(&keys), Err(MirrorError::Damaged { .. })));
    assert!(matches!(mirror.faulted().await, MirrorError::Faulty { .. }));
    mirror.recover().await.expect("opened anew");
    assert_eq!(mirror.held(&keys[..1]).expect("readable"), [Held::Nothing]);
}
