//! The private PostgreSQL that the other tests stand on does what they rely on.

use crate::support::postgres::{PASSWORD, Postgres, Sql, USER};

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
fn vecsync_s_role_owns_the_table_may_stream_and_needs_its_password() {
    let postgres = Postgres::start();
    let sql = Sql::connect(&postgres.url(USER, PASSWORD)).unwrap();
    sql.execute("CREATE PUBLICATION vecsync_faq FOR TABLE faq_faq");
    let slot = "SELECT count(*) FROM pg_create_logical_replication_slot('vecsync_faq', 'pgoutput')";
    assert_eq!(sql.value(slot), "1");
    assert!(Sql::connect(&postgres.url(USER, "wrong")).is_err());
}
