//! Whether a user finds what they look for: questions in their words through `/search`, over the real FAQ in PostgreSQL.

use std::time::Duration;

use crate::support::faq::faq;
use crate::support::process::wait_until;
use crate::support::questions::{Places, hold, place, questions};
use crate::support::site::Site;
use crate::support::table;

const LOADED: Duration = Duration::from_secs(60);

#[test]
fn questions_find_their_answers_through_the_real_door() {
    let mut site = Site::open();
    let rows = table::faq();
    site.sql.execute(&table::insert(&rows));
    wait_until("all rows", LOADED, || {
        let health = site.get("/health/detailed/").json();
        let found = &health["components"]["local"]["details"]["rows"];
        if *found == rows.len() { Ok(()) } else { Err(format!("{found} of {}", rows.len())) }
    });
    let faq = faq();
    let mut places = Places::default();
    for question in questions(&faq) {
        let answer = site.search(&question.ask, "");
        let results = answer["results"].as_array().expect("results");
        let found: Vec<u64> = results.iter().map(|result| result["id"].as_u64().expect("a number")).collect();
        places.0.push(place(&found, &question));
        for result in results {
            let entry = &faq[result["id"].as_u64().expect("a number") as usize - 1];
            let passage = result["passage"].as_str().expect("a text");
            assert!(!passage.is_empty() && entry.answer.contains(passage), "{:?}: {passage}", question.ask);
        }
    }
    hold(&faq, &places);
}
