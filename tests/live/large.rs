//! Rows that are larger than the records a broker takes: put aside with the reason, never in the way of others.

use serde_json::json;

use crate::dead_letters::{expect_listed, retry};
use crate::kafka::{CAUGHT_UP, Cluster};
use crate::support::kafka::Kafka;
use crate::support::process::wait_until;

#[test]
fn a_row_that_is_larger_than_a_record_is_put_aside_with_the_reason_and_the_rest_goes_on() {
    let mut cluster = Cluster::prepare(Kafka::shared(), 20);
    cluster.site.vecsync.start_ready();
    cluster.site.expect_equal(CAUGHT_UP);
    let old = cluster.site.row(7).expect("it is indexed");
    // 20 MiB do not fit into `changes`. 9 MiB do; but in `vectors` they stand twice, as the payload and as a passage.
    cluster.site.sql.execute("UPDATE faq_faq SET answer = repeat(md5('7'), 655360) WHERE id = 7");
    cluster.site.sql.execute("UPDATE faq_faq SET answer = 'a' || repeat(' ', 9 << 20) || 'b' WHERE id = 8");
    cluster.site.sql.execute("UPDATE faq_faq SET answer = 'Behind them' WHERE id = 9");
    wait_until("the row behind them", CAUGHT_UP, || match cluster.site.row(9) {
        Some(row) if row["answer"] == "Behind them" => Ok(()),
        row => Err(format!("{row:?}")),
    });
    let keys = [json!({"id": 7}), json!({"id": 8})];
    let letters = expect_listed(&cluster.site.vecsync, &keys);
    for (letter, part) in letters.iter().zip(["too large for the log: 2097", "embedded row would have 188"]) {
        assert_eq!(letter["reason"], "too_large", "{letter}");
        assert!(letter["error"].as_str().unwrap().contains(part), "{letter}");
    }
    assert_eq!(cluster.site.vecsync.metric("vecsync_dead_letters_total", "too_large"), Some(2.0));
    assert_eq!(cluster.site.row(7).expect("as it was"), old);

    // A retry finds it as large as before, and says so again.
    assert_eq!(retry(&cluster.site.vecsync, &[letters[0]["id"].as_str().unwrap()]).code, Some(0));
    wait_until("a letter of the retry", CAUGHT_UP, || {
        let again = expect_listed(&cluster.site.vecsync, &keys);
        if again[0]["id"] == letters[0]["id"] { Err("the old one".to_owned()) } else { Ok(()) }
    });
    // The row before is not needed, and so it does not make a change too large; nor a delete.
    cluster.site.sql.execute("ALTER TABLE faq_faq REPLICA IDENTITY FULL");
    cluster.site.sql.execute("UPDATE faq_faq SET answer = 'Small again' WHERE id = 7");
    expect_listed(&cluster.site.vecsync, &keys[1..]);
    cluster.site.sql.execute("UPDATE faq_faq SET answer = repeat(md5('8'), 655360) WHERE id = 8");
    cluster.site.sql.execute("DELETE FROM faq_faq WHERE id = 8");
    expect_listed(&cluster.site.vecsync, &[]);
    cluster.site.expect_equal(CAUGHT_UP);
    cluster.expect_rebuilt();
}
