//! The breaker before Qdrant, as searchers meet it: a Qdrant that stands still, flaps, or is left out by a drill.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::qdrant_run::{Pair, SOON};
use crate::support::process::wait_until;
use crate::support::qdrant::Qdrant;
use crate::support::site::Site;
use crate::support::vecsync::Vecsync;

/// A search that must have an answer; and how long it took.
#[track_caller]
fn search(vecsync: &mut Vecsync) -> (Value, Duration) {
    let since = Instant::now();
    let answer = vecsync.http.get("/search?q=question&limit=3").unwrap();
    assert_eq!(answer.status, 200, "{}", answer.body);
    let found = answer.json();
    assert_eq!(found["results"].as_array().map(Vec::len), Some(3), "{found}");
    (found, since.elapsed())
}

fn breaker(vecsync: &mut Vecsync) -> Option<&'static str> {
    ["closed", "open", "half_open"]
        .into_iter()
        .find(|state| vecsync.metric("vecsync_breaker_state", &format!("state=\"{state}\"")) == Some(1.0))
}

fn ready() -> Pair {
    let mut pair = Pair::prepare(Qdrant::own(), 40);
    pair.site.vecsync.start_ready();
    pair.expect_served_by("qdrant", SOON);
    pair
}

#[test]
fn a_qdrant_that_stands_still_is_left_out_before_a_look_could_say_so() {
    let mut pair = ready();
    assert_eq!(breaker(&mut pair.site.vecsync), Some("closed"));
    pair.qdrant.signal("STOP");
    let since = Instant::now();
    let mut answers = vec![];
    while breaker(&mut pair.site.vecsync) == Some("closed") {
        let (found, took) = search(&mut pair.site.vecsync);
        assert_eq!((&found["served_by"], &found["degraded"]), (&"local".into(), &true.into()), "{found}");
        answers.push(took);
    }
    // Each was waited for as long as a hedge is; a look is given up after seconds.
    assert!(answers.len() <= 6, "{answers:?}");
    assert!(since.elapsed() < Duration::from_secs(3), "{answers:?} in {:?}", since.elapsed());
    let health = pair.site.vecsync.http.get("/health/detailed/").unwrap().json();
    let qdrant = &health["components"]["qdrant"];
    assert_ne!(qdrant["details"]["breaker"]["state"], "closed", "{qdrant}");
    assert_ne!(health["status"], "unhealthy", "{health}");
    for _ in 0..20 {
        assert_eq!(search(&mut pair.site.vecsync).0["served_by"], "local");
    }
    assert!(pair.site.vecsync.metric("vecsync_fallbacks_total", "reason=\"breaker\"") >= Some(20.0));
    pair.qdrant.signal("CONT");
    pair.expect_served_by("qdrant", SOON);
    assert_eq!(breaker(&mut pair.site.vecsync), Some("closed"));
}

#[test]
fn a_qdrant_that_flaps_costs_no_answer_and_is_asked_more_seldom() {
    let mut pair = ready();
    for _ in 0..4 {
        pair.qdrant.kill();
        let down = Instant::now();
        while down.elapsed() < Duration::from_secs(1) {
            search(&mut pair.site.vecsync);
        }
        pair.qdrant.restart();
        let up = Instant::now();
        while up.elapsed() < Duration::from_secs(2) {
            search(&mut pair.site.vecsync);
        }
    }
    let log = pair.site.vecsync.log();
    let back = log.matches("searches ask Qdrant again").count();
    assert!(back <= 2, "asked again {back} times: {log}");
    pair.expect_served_by("qdrant", Duration::from_secs(60));
}

#[test]
fn a_drill_has_the_mirror_answer_and_qdrant_return() {
    let mut pair = ready();
    let said = pair.site.vecsync.run(&["check", "--drill", "3"]);
    assert_eq!(said.code, Some(0), "{} {}", said.stdout, said.stderr);
    let line = said.stdout.lines().find(|line| line.contains("drill")).unwrap_or_else(|| panic!("{}", said.stdout));
    assert!(line.starts_with("ok") && line.contains("for 3 s") && line.contains("was asked again"), "{line}");
    assert!(pair.site.vecsync.metric("vecsync_fallbacks_total", "reason=\"drill\"") >= Some(10.0));
    assert_eq!(search(&mut pair.site.vecsync).0["served_by"], "qdrant");

    // The one that asked for it may go: it ends all the same.
    let mut asking = pair.site.vecsync.spawn(&["check", "--drill", "4"]);
    wait_until("the drill to begin", SOON, || match search(&mut pair.site.vecsync).0 {
        found if found["served_by"] == "local" => Ok(()),
        found => Err(found.to_string()),
    });
    asking.kill().unwrap();
    asking.wait().unwrap();
    pair.expect_served_by("qdrant", SOON);

    pair.qdrant.kill();
    pair.expect_served_by("local", SOON);
    let said = pair.site.vecsync.run(&["check", "--drill", "1"]);
    assert_eq!(said.code, Some(3), "{}", said.stdout);
    assert!(said.stdout.contains("searches are answered by local already"), "{}", said.stdout);
}

#[test]
fn without_qdrant_there_is_nothing_to_drill() {
    let site = Site::open();
    let said = site.vecsync.run(&["check", "--drill", "1"]);
    assert_eq!(said.code, Some(3), "{}", said.stdout);
    assert!(said.stdout.contains("no Qdrant") || said.stdout.contains("answered by local already"), "{}", said.stdout);
    let said = site.vecsync.run(&["check", "--drill", "0"]);
    assert_eq!(said.code, Some(2), "{}", said.stderr);
}
