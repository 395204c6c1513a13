//! Pieces of docker-compose.yml that can be tried without containers: what sets PostgreSQL up, and what asks for health.

use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::support::postgres::{PASSWORD, Postgres, Sql, USER, VERSION, programs};
use crate::support::process::wait_until;
use crate::support::qdrant::Qdrant;
use crate::support::site::Place;
use crate::support::vecsync::Vecsync;

const SOON: Duration = Duration::from_secs(30);

/// A service of docker-compose.yml.
fn service(name: &str) -> Value {
    let libraries = std::env::var("VECSYNC_TEST_SCHEMATHESIS").expect("VECSYNC_TEST_SCHEMATHESIS is set: `make setup`");
    let program = "import json, sys, yaml; json.dump(yaml.safe_load(open('docker-compose.yml')), sys.stdout)";
    let read = Command::new("python3").args(["-c", program]).env("PYTHONPATH", libraries).output().unwrap();
    serde_json::from_slice::<Value>(&read.stdout).unwrap()["services"][name].clone()
}

#[test]
fn an_empty_server_becomes_one_that_vecsync_follows() {
    if !programs(VERSION).join("psql").is_file() {
        eprintln!("there is no psql here, which the image has");
        return;
    }
    let _place = Place::take();
    // All statements are logged, as somebody may have set: the password must not be among them.
    let postgres = Postgres::start_with(&[("log_statement", "all")]);
    let sql = Sql::connect(&postgres.url("postgres", PASSWORD).replace("/shop", "/postgres")).unwrap();
    sql.execute("DROP DATABASE shop WITH (FORCE)");
    sql.execute("DROP ROLE vecsync");
    sql.execute("CREATE DATABASE shop");
    let canary = "canary'of\"a$password";
    let set_up = Command::new("bash")
        .arg("deploy/postgres/init.sh")
        .env("PATH", format!("{}:{}", programs(VERSION).display(), std::env::var("PATH").unwrap_or_default()))
        .envs([("PGHOST", "127.0.0.1"), ("PGUSER", "postgres"), ("PGPASSWORD", PASSWORD), ("POSTGRES_DB", "shop")])
        .env("PGPORT", postgres.port.to_string())
        .envs([("SQL", "sql"), ("REPLICATION_PASSWORD", canary), ("APP_PASSWORD", canary)])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(set_up.status.success(), "{}", String::from_utf8_lossy(&set_up.stderr));
    assert!(!postgres.log().contains("canary"), "{}", postgres.log());

    let url = service("vecsync")["environment"]["DATABASE_URL"].as_str().unwrap().to_owned();
    let mut vecsync = Vecsync::prepare(&url.replace("@postgres:5432", &format!("@127.0.0.1:{}", postgres.port)));
    vecsync.set("PGPASSWORD", canary);
    let check = vecsync.run(&["check", "--skip-health", "--skip-operations"]);
    assert_eq!(check.code, Some(0), "{}", check.stdout);
    let health = |vecsync: &Vecsync| vecsync.run(&["healthcheck"]);
    assert_eq!(health(&vecsync).code, Some(1), "nobody is there");
    vecsync.start_ready();
    let said = health(&vecsync);
    assert_eq!((said.code, said.stdout.as_str()), (Some(0), "ready\n"), "{}", said.stderr);
    // The site writes as a role of its own, which owns the table and nothing of vecsync's.
    let shop = Sql::connect(&postgres.url("app", "canary%27of%22a%24password")).unwrap();
    shop.execute("CREATE TABLE of_the_site (id int)");
    shop.execute("ALTER TABLE faq_faq ADD COLUMN of_the_site int");
    shop.execute("INSERT INTO faq_faq (question, answer, category) VALUES ('Where?', 'Here.', 'x')");
    wait_until("the row to be found", SOON, || match vecsync.search("where", "")["results"][0]["id"].as_i64() {
        Some(1) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    assert_eq!(shop.value(&format!("SELECT count(*) FROM pg_stat_replication WHERE usename = '{USER}'")), "1");
}

#[test]
fn a_vecsync_that_cannot_answer_is_not_ready_and_says_what_it_waits_for() {
    let _place = Place::take();
    let postgres = Postgres::prepare(&[]);
    let mut vecsync = Vecsync::prepare(&postgres.url(USER, PASSWORD));
    vecsync.start();
    wait_until("the health check to say that it waits", SOON, || match vecsync.run(&["healthcheck"]) {
        ended if ended.code == Some(3) && ended.stderr.contains("is not ready: it waits for ") => Ok(()),
        ended => Err(format!("{ended:?}")),
    });
}

#[test]
fn the_health_check_of_qdrant_tells_a_good_one_from_one_that_is_away_or_hangs() {
    let mut qdrant = Qdrant::own();
    let test = service("qdrant")["healthcheck"]["test"].clone();
    let words: Vec<&str> = test.as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect();
    assert_eq!(words[..3], ["CMD", "bash", "-c"]);
    let port = qdrant.settings().port;
    // Compose makes one dollar of two.
    let command = words[3].replace("$$", "$").replace("127.0.0.1/6333", &format!("127.0.0.1/{port}"));
    assert!(command.contains(&port.to_string()), "{command}");
    let is_healthy = |command: &str| {
        let limited = Command::new("timeout").args(["5", "bash", "-c", command]).stderr(Stdio::null()).status();
        limited.unwrap().success()
    };
    // A signal is sent, not done, when the call is over.
    let expect = |healthy: bool, what: &str| {
        wait_until(what, SOON, || if is_healthy(&command) == healthy { Ok(()) } else { Err((!healthy).to_string()) });
    };
    expect(true, "it to be healthy");
    assert!(!is_healthy(&command.replace("/readyz", "/health")), "Qdrant has no /health");
    qdrant.signal("STOP");
    expect(false, "it to be unhealthy while it hangs");
    qdrant.signal("CONT");
    expect(true, "it to be healthy again");
    qdrant.kill();
    expect(false, "it to be unhealthy while it is away");
}
