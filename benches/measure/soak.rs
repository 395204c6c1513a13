//! Soak: rows of mixed lengths, without end, and whether the memory of who embeds them stays what it is.

use std::time::{Duration, Instant};

use super::{Figures, percentile, sorted, texts};
use crate::support::dice::Dice;
use crate::support::http::escape;
use crate::support::postgres::quote;
use crate::support::process::wait_until;
use crate::support::site::Site;

/// Rows that are written to, again and again: the stores hold no more of them at the end.
const ROWS: usize = 400;
/// Rows of a commit, and how many texts may wait before the next one: the model is never without work.
const COMMIT: usize = 40;
const AHEAD: f64 = 200.0;
/// Between two looks at the memory.
const SAMPLE: Duration = Duration::from_secs(2);
/// A machine that does something else as well embeds slowly.
const LIMIT: Duration = Duration::from_secs(1_800);
/// Of the run, what passes before memory is held to be what it is: caches fill, and the allocator meets every length.
const WARM_UP: f64 = 0.5;
/// What the last quarter may have more than the one before it, of the latter: what samples differ by where nothing grows.
const GROWTH: f64 = 0.03;

/// Writes for so long. An error says by how much memory has grown.
pub fn run(model: &str, lasts: Duration) -> Result<Figures, String> {
    eprintln!("soak, {model}: {} s of rows of mixed lengths", lasts.as_secs());
    let answers: Vec<Vec<String>> =
        texts::faq().iter().map(|entry| entry.answer.split_whitespace().map(str::to_owned).collect()).collect();
    let mut dice = Dice::new(11);
    let mut site = Site::prepare();
    site.vecsync.set("VECSYNC_MODEL", model);
    site.vecsync.start_ready();
    let begun = Instant::now();
    let (mut samples, mut said, mut written, mut late) = (vec![], begun, 0_u64, 0_u64);
    while begun.elapsed() < lasts {
        let rows: Vec<String> = (0..COMMIT)
            .map(|_| {
                written += 1;
                let id = written as usize % ROWS + 1;
                format!(
                    "({id}, {}, {}, 'soak')",
                    quote(&mixed(&mut dice, &answers, 12)),
                    quote(&answer(&mut dice, &answers))
                )
            })
            .collect();
        site.sql.execute(&format!(
            "INSERT INTO faq_faq (id, question, answer, category) VALUES {} \
             ON CONFLICT (id) DO UPDATE SET question = excluded.question, answer = excluded.answer",
            rows.join(",")
        ));
        wait_until("the model to come near", LIMIT, || {
            if said.elapsed() >= SAMPLE {
                said = Instant::now();
                samples.push((begun.elapsed().as_secs_f64(), site.memory_kb().0 as f64 / 1024.0));
                if samples.len() % 15 == 0 {
                    let (at, mb) = samples[samples.len() - 1];
                    eprintln!("{at:.0} s: {mb:.0} MB, {written} rows");
                }
                // Queries of mixed length, too. On a busy machine one may be refused because it came too late.
                let query = escape(&mixed(&mut dice, &answers, 60));
                let answer = site.vecsync.get(&format!("/search?min_score=-1&q={query}"));
                assert!(matches!(answer.status, 200 | 503), "{}: {}", answer.status, answer.body);
                late += u64::from(answer.status == 503);
            }
            // Rows that were overtaken by their next version are not embedded, so what was read counts, not what was embedded.
            let read = site.metric("vecsync_events_total", r#"stage="embed""#).unwrap_or_default();
            if written as f64 - read < AHEAD { Ok(()) } else { Err(format!("{read} of {written} rows")) }
        });
    }
    let span = |from: f64, to: f64| {
        let of = |share: f64| lasts.as_secs_f64() * share;
        let chosen = samples.iter().filter(|(at, _)| (of(from)..of(to)).contains(at)).map(|(_, mb)| *mb);
        percentile(&sorted(chosen.collect()), 0.5)
    };
    let (first, before, last) = (samples[0].1, span(WARM_UP, 0.75), span(0.75, 1.1));
    let texts = site.metric("vecsync_embeddings_total", r#"result="computed""#).unwrap_or_default();
    if last > before * (1.0 + GROWTH) {
        return Err(format!("memory grows: {before:.0} MB in the third quarter, {last:.0} MB in the last"));
    }
    Ok(vec![
        ("texts", texts),
        ("searches_late", late as f64),
        ("rss_first_mb", first),
        ("rss_third_quarter_mb", before),
        ("rss_last_quarter_mb", last),
        ("rss_peak_mb", site.memory_kb().1 as f64 / 1024.0),
    ])
}

/// Mostly some sentences, one in ten a few words, one in twenty as long as the longest answers.
fn answer(dice: &mut Dice, answers: &[Vec<String>]) -> String {
    match dice.below(20) {
        0 => (0..4).map(|_| mixed(dice, answers, 1_000)).collect::<Vec<_>>().join("\n\n"),
        1 | 2 => mixed(dice, answers, 6),
        _ => mixed(dice, answers, 120),
    }
}

/// A run of 1 to `words` words of a real answer.
fn mixed(dice: &mut Dice, answers: &[Vec<String>], words: usize) -> String {
    let answer = dice.pick(answers);
    let length = 1 + dice.below(words.min(answer.len().max(1)));
    let start = dice.below(answer.len().saturating_sub(length) + 1);
    answer[start..(start + length).min(answer.len())].join(" ")
}
