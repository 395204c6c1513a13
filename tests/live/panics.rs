//! A task that panics, whichever it is: the process ends and names it, and the next start goes on where it was.

use std::time::Duration;

use crate::qdrant_run::{Pair, SOON};
use crate::support::qdrant::Qdrant;
use crate::support::table::{expect_equal_once, insert, values};

/// The tasks that live as long as the process, as they are called where it ends.
const TASKS: [&str; 12] = [
    "capture",
    "look at the source",
    "embed",
    "index",
    "Qdrant",
    "look at Qdrant",
    "failover",
    "freshness",
    "control",
    "pipeline",
    "serve",
    "upkeep",
];
/// What is under way is drained, but by who waited for the task that is gone.
const END: Duration = Duration::from_secs(25);

#[test]
fn a_task_that_panics_ends_the_process_by_its_name_and_a_restart_goes_on() {
    let mut pair = Pair::prepare(Qdrant::own(), 5);
    let vecsync = &mut pair.site.vecsync;
    for (task, id) in TASKS.into_iter().zip(1_000..) {
        vecsync.set("VECSYNC_TEST_PANIC", task);
        vecsync.start_ready();
        // On its way when it happens.
        pair.site.sql.execute(&insert(&[values(id, "Who is at work?", task, "c01")]));
        vecsync.signal("USR2");
        let ended = vecsync.wait_for_exit(END);
        let last = ended.stderr.lines().last().unwrap_or_default();
        assert_eq!(ended.code, Some(1), "{task}: {last}");
        let wanted = format!("vecsync: the task {task} ended abnormally: it panicked: a test asked for it");
        assert_eq!(last, wanted, "{}", ended.stderr);
        assert!(ended.stderr.contains("panic: a test asked for it (tasks.rs:"), "{task}: {}", ended.stderr);
    }
    vecsync.set("VECSYNC_TEST_PANIC", "nobody");
    vecsync.start_ready();
    pair.expect_served_by("qdrant", SOON);
    expect_equal_once(&mut pair.site.vecsync, &pair.site.sql, SOON);
    let verified = pair.site.vecsync.run(&["verify"]);
    assert_eq!(verified.code, Some(0), "{verified:?}");
}
