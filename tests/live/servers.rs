//! The private PostgreSQL that the other tests stand on does what they rely on.

use crate::support::postgres::{DATABASE, PASSWORD, Postgres, Sql, USER};

#[test]
fn what_was_committed_survives_a_crash_and_what_was_not_does_not() {
    let mut postgres = Postgres::start();
    let sql = postgres.client();
    sql.execute("INSERT INTO faq_faq (question, answer) VALUES ('Is it kept?', 'Yes.')");
    sql.execute("BEGIN; INSERT INTO faq_faq (question, answer) VALUES ('Is it kept?', 'No.')");
    postgres.crash();
    assert!(sql.try_execute("SELECT 1").is_err(), "the session outlived the server");
    postgres.launch();
    assert_eq!(postgres.client().value("SELECT string_agg(answer, ',') FROM faq_faq"), "Yes.");
    assert!(postgres.log().contains("automatic recovery in progress"), "{}", postgres.log());
}

#[test]
fn vecsync_s_role_may_stream_and_read_the_table_and_no_more() {
    let postgres = Postgres::start();
    let sql = Sql::connect(&postgres.url(USER, PASSWORD)).unwrap();
    let slot = "SELECT count(*) FROM pg_create_logical_replication_slot('vecsync_faq', 'pgoutput')";
    assert_eq!((sql.value(slot), sql.value("SELECT count(*) FROM faq_faq")), ("1".to_owned(), "0".to_owned()));
    postgres.execute("CREATE TABLE secrets (id int)");
    for refused in [
        "INSERT INTO faq_faq (question, answer) VALUES ('Q', 'A')",
        "SELECT FROM secrets",
        "CREATE TABLE own (id int)",
        "CREATE SCHEMA own",
        "CREATE PUBLICATION own",
        "ALTER PUBLICATION vecsync_faq DROP TABLE faq_faq",
        "ALTER TABLE faq_faq REPLICA IDENTITY FULL",
    ] {
        let error = sql.try_execute(refused).expect_err(refused);
        assert_eq!(error.code().map(|code| code.code()), Some("42501"), "{refused}: {error:?}");
    }
    assert!(Sql::connect(&postgres.url(USER, "wrong")).is_err());
    // Not even the other databases: pg_hba.conf names one.
    let elsewhere = postgres.url(USER, PASSWORD).replace(DATABASE, "postgres");
    let error = Sql::connect(&elsewhere).map(drop).expect_err("let in");
    assert_eq!(error.code().map(|code| code.code()), Some("28000"), "{error:?}");
}
