//! A server that is set up by the files of `sql/` exactly as they say, and with no other right: everything is followed.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::postgres::{DATABASE, OWNER, PASSWORD, Postgres, Sql, VERSION, programs, quote};
use crate::support::psql;
use crate::support::site::Site;
use crate::versions;

const SOON: Duration = Duration::from_secs(30);

#[test]
fn a_server_that_is_set_up_by_the_files_of_sql_and_nothing_else_is_followed() {
    let mut site = Site::prepare_with(&[("max_prepared_transactions", "5")]);
    site.sql.execute("DROP PUBLICATION vecsync_faq; DROP OWNED BY vecsync");
    site.sql.execute("REVOKE CONNECT ON DATABASE shop FROM PUBLIC, vecsync; REVOKE ALL ON SCHEMA public FROM PUBLIC");
    site.sql.execute("GRANT CONNECT ON DATABASE shop TO shop_owner; DROP ROLE vecsync");
    // Nobody else is let in but the two who set it up.
    let rules = psql::file("sql/pg_hba.conf") + &format!("host all postgres,{OWNER} 127.0.0.1/32 scram-sha-256\n");
    fs::write(site.postgres.data().join("pg_hba.conf"), rules).unwrap();
    site.sql.query("SELECT pg_reload_conf()");

    run_as_written(&site.postgres, "sql/role.sql", "postgres");
    run_as_written(&site.postgres, "sql/publication.sql", OWNER);
    versions::everything_is_followed(&mut site);
    run_as_written(&site.postgres, "sql/replica_identity.sql", OWNER);
    site.sql.execute("UPDATE faq_faq SET id = id + 1000 WHERE id < 45; DELETE FROM faq_faq WHERE id = 46");
    site.expect_equal(SOON);
    for command in [&["check", "--skip-operations"][..], &["verify"], &["sync"]] {
        let ended = site.vecsync.run(command);
        assert_eq!(ended.code, Some(0), "{command:?}: {ended:?}");
    }
    site.expect_equal(SOON);
    let log = site.postgres.log();
    assert!(!log.contains("permission denied"), "{log}");
}

/// Runs the commands that a file's own comment gives, where there is a psql; else the file alone.
fn run_as_written(postgres: &Postgres, path: &str, user: &str) {
    let text = psql::file(path);
    let commands: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("--   ")).collect();
    assert!(commands.iter().any(|command| command.contains(path)), "{path} does not say how it is run");
    if !programs(VERSION).join("psql").is_file() {
        return run_without_psql(postgres, path, user, &commands);
    }
    for command in commands {
        // What stands in brackets is a remark.
        let command = command.split("  (").next().unwrap().replace("DATABASE", DATABASE);
        // Without a terminal it asks for the password on its standard input.
        let mut shell = Command::new("setsid");
        shell.args(["--wait", "sh", "-ec", &command]).current_dir(env!("CARGO_MANIFEST_DIR"));
        let path = format!("{}:{}", programs(VERSION).display(), std::env::var("PATH").unwrap_or_default());
        shell.env("PATH", path).envs([("PGHOST", "127.0.0.1"), ("PGUSER", user), ("PGPASSWORD", PASSWORD)]);
        shell.env("PGPORT", postgres.port.to_string()).env("PGOPTIONS", "-c client_min_messages=warning");
        let mut child =
            shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start setsid");
        let typed = format!("{PASSWORD}\n{PASSWORD}\n");
        // It may have ended without reading.
        let _ = child.stdin.take().unwrap().write_all(typed.as_bytes());
        let ended = child.wait_with_output().unwrap();
        assert!(ended.status.success(), "{command}: {}", String::from_utf8_lossy(&ended.stderr));
    }
}

fn run_without_psql(postgres: &Postgres, path: &str, user: &str, commands: &[&str]) {
    let sql = Sql::connect(&postgres.url(user, PASSWORD)).unwrap();
    let variables = commands.iter().flat_map(|command| command.split(" -v ")).filter_map(|word| word.split_once('='));
    let variables: Vec<_> = variables.map(|(name, rest)| (name, rest.split(' ').next().unwrap())).collect();
    psql::run(&sql, path, &variables);
    if commands.iter().any(|command| command.contains("\\password vecsync")) {
        sql.execute(&format!("ALTER ROLE vecsync PASSWORD {}", quote(PASSWORD)));
    }
}
