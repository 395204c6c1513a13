//! The server and its own description: schemathesis asks what the document allows, and what it does not.

use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::process::wait_until;
use crate::support::site::Site;
use crate::support::table;

const KEY: &str = "key-of-the-description";
/// What it may take on a machine that does something else as well; alone it takes 20 s.
const PATIENCE: Duration = Duration::from_secs(150);

#[test]
fn the_server_is_as_it_describes_itself() {
    let mut site = Site::prepare();
    site.set("VECSYNC_API_KEYS", KEY);
    site.vecsync.start_ready();
    let rows: Vec<String> =
        (1..=30).map(|id| table::values(id, "Refunds", "Money back.", &table::category(id as usize % 3))).collect();
    site.sql.execute(&table::insert(&rows));
    wait_until("the rows to be searchable", PATIENCE, || match site.points() {
        Some(30) => Ok(()),
        points => Err(format!("{points:?}")),
    });
    let folder = tempfile::tempdir().unwrap();
    let said = folder.path().join("said");
    let libraries = std::env::var("VECSYNC_TEST_SCHEMATHESIS").expect("VECSYNC_TEST_SCHEMATHESIS is set: `make setup`");
    let mut asking = Command::new("python3")
        .args(["-m", "schemathesis.cli", "run", &format!("http://127.0.0.1:{}/openapi.json", site.port)])
        .args(["--header", &format!("Authorization: Bearer {KEY}")])
        .args(["--checks", "all", "--phases", "examples,coverage,fuzzing", "--max-examples", "15", "--seed", "1"])
        // The same as /health and /status, by the same code; and what does something.
        .args(["--exclude-path-regex", "^/pipelines/faq/(health|status)|/control/"])
        .args(["--continue-on-failure", "--no-color", "--request-timeout", "10"])
        .current_dir(folder.path())
        .env("PYTHONPATH", libraries)
        .stdin(Stdio::null())
        .stdout(std::fs::File::create(&said).unwrap())
        .stderr(Stdio::inherit())
        .spawn()
        .expect("start python3");
    let status = wait_until("schemathesis to end", PATIENCE, || {
        asking.try_wait().unwrap().ok_or_else(|| std::fs::read_to_string(&said).unwrap())
    });
    let said = std::fs::read_to_string(&said).unwrap();
    assert!(status.success(), "{said}");
    // It must have asked for something.
    assert!(said.contains("Tested: 14") && said.contains("No issues found"), "{said}");
    let panics = site.log().lines().filter(|line| line.contains("panic")).count();
    assert_eq!(panics, 0, "{}", site.log());
}
