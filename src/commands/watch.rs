//! `vecsync status`: the state of a running vecsync, once, or with `--watch` once a second, redrawn in place on a terminal, a line
//! each elsewhere.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::time::{MissedTickBehavior, interval};

use super::key;
use crate::client::{self, ClientError, plain};
use crate::config::settings::Settings;
use crate::retry::Chain;
use crate::shutdown;

/// How often it is asked.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// Another screen without a cursor, on which long lines are cut by the terminal; and back.
const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[?7l";
const LEAVE: &str = "\x1b[?7h\x1b[?25h\x1b[?1049l";
/// How wide a line of a fault gets on a terminal, in characters: as wide as the table above, so that none of it is cut off.
const FAULT_WIDTH: usize = 78;
/// To the upper left; what is left of a line; what is left of the screen.
const HOME: &str = "\x1b[H";
const CLEAR_LINE: &str = "\x1b[K";
const CLEAR_REST: &str = "\x1b[J";

/// Nothing more can be shown.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The first question had no answer. Later ones are asked again.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Nothing can be written.
    #[error("write to standard output")]
    Output(#[source] io::Error),
    /// Ctrl-C could not be noticed.
    #[error("listen for signals")]
    Signals(#[source] io::Error),
}

/// `vecsync status`: the state as it is now, for people. Of several pipelines each is shown, unless the address is one's: `is_named`.
pub async fn once(settings: &Settings, is_named: bool) -> Result<String, ClientError> {
    let url = settings.url.to_string();
    let state = client::document(&url, key(settings), "/status").await?;
    let pipelines: Vec<String> = array(&state["pipelines"]).map(|pipeline| text(&pipeline["name"])).collect();
    if is_named || pipelines.len() < 2 {
        return Ok(Seen { url: &url, state, rates: None }.frame());
    }
    let whole = client::document(&url, key(settings), "/health/").await?;
    let mut frames = format!("vecsync at {url} is {}, with {} pipelines.\n", text(&whole["status"]), pipelines.len());
    for name in &pipelines {
        let of_one = format!("{}/pipelines/{name}", url.trim_end_matches('/'));
        let state = client::document(&of_one, key(settings), "/status").await?;
        frames += &format!("\n{}", Seen { url: &of_one, state, rates: None }.frame());
    }
    Ok(frames)
}

/// Shows it until SIGINT or SIGTERM, or until nobody reads any more.
pub async fn watch(settings: &Settings) -> Result<(), WatchError> {
    let url = settings.url.to_string();
    let mut signal = std::pin::pin!(shutdown::signal());
    let mut ticks = interval(ASK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut rates = Rates::default();
    let mut screen: Option<Screen> = None;
    loop {
        let asked = async {
            ticks.tick().await;
            client::document(&url, key(settings), "/status").await
        };
        let answered = tokio::select! {
            biased;
            signal = &mut signal => {
                signal.map_err(WatchError::Signals)?;
                return Ok(());
            }
            answered = asked => answered,
        };
        let seen = match answered {
            Ok(state) => {
                let rates = Some(rates.of(&state, Instant::now()));
                Ok(Seen { url: &url, state, rates })
            }
            // Nobody may ever have been there, which is better said once.
            Err(error) if screen.is_none() => return Err(error.into()),
            Err(error) => Err(Chain(&error).to_string()),
        };
        match screen.get_or_insert_with(Screen::open).show(&seen) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            shown => shown.map_err(WatchError::Output)?,
        }
    }
}

/// Where it is shown. Dropped, it leaves a terminal as it was, with what was shown last.
struct Screen {
    is_terminal: bool,
    last: String,
}

impl Screen {
    fn open() -> Screen {
        let is_terminal = io::stdout().is_terminal();
        if is_terminal {
            // What comes next says whether anything can be written.
            let _ = io::stdout().write_all(ENTER.as_bytes());
        }
        Screen { is_terminal, last: String::new() }
    }

    fn show(&mut self, seen: &Result<Seen<'_>, String>) -> io::Result<()> {
        let text = match (self.is_terminal, seen) {
            (true, Ok(seen)) => {
                self.last = seen.frame();
                drawn(&self.last)
            }
            // What was seen before stays, below what is wrong now.
            (true, Err(fault)) => drawn(&format!("{fault}\n\n{}", self.last)),
            (false, Ok(seen)) => seen.line(),
            (false, Err(fault)) => format!("{fault}\n"),
        };
        let mut output = io::stdout().lock();
        output.write_all(text.as_bytes())?;
        output.flush()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        if self.is_terminal {
            let mut output = io::stdout().lock();
            let _ = output.write_all(format!("{LEAVE}{}", self.last).as_bytes()).and_then(|()| output.flush());
        }
    }
}

/// A frame over the one before.
fn drawn(frame: &str) -> String {
    let lines: String = frame.lines().map(|line| format!("{line}{CLEAR_LINE}\n")).collect();
    format!("{HOME}{lines}{CLEAR_REST}")
}

/// How many events a second came through each stage since it was asked before.
#[derive(Default)]
struct Rates {
    before: Option<(Instant, BTreeMap<String, u64>)>,
}

impl Rates {
    fn of(&mut self, state: &Value, now: Instant) -> BTreeMap<String, f64> {
        let stages = state["stages"].as_array().into_iter().flatten();
        let events: BTreeMap<String, u64> =
            stages.filter_map(|stage| Some((stage["name"].as_str()?.to_owned(), stage["events"].as_u64()?))).collect();
        let mut rates = BTreeMap::new();
        if let Some((then, before)) = &self.before {
            let seconds = now.duration_since(*then).as_secs_f64();
            for (name, count) in &events {
                // One that counts from the beginning again was started anew.
                let came = before.get(name).and_then(|before| count.checked_sub(*before));
                rates.extend(came.filter(|_| seconds > 0.0).map(|came| (name.clone(), came as f64 / seconds)));
            }
        }
        self.before = Some((now, events));
        rates
    }
}

/// What was answered, and what comes of the answer before; `None`: it is asked once.
struct Seen<'a> {
    url: &'a str,
    state: Value,
    rates: Option<BTreeMap<String, f64>>,
}

impl Seen<'_> {
    /// For a terminal.
    fn frame(&self) -> String {
        let state = &self.state;
        let mut lines = vec![format!(
            "vecsync at {} is {}, pipeline {}, {} UTC.{}",
            self.url,
            text(&state["status"]),
            text(&state["pipeline"]),
            text(&state["timestamp"]).get(11..19).unwrap_or_default(),
            if self.rates.is_some() { " Ctrl-C ends." } else { "" }
        )];
        if let (Some(rows), Some(expected)) = (state["load"]["rows"].as_u64(), state["load"]["expected"].as_u64()) {
            lines.push(format!("The table is read for the first time: {rows} of {expected} rows are searchable."));
        }
        let events = if self.rates.is_some() { "events/s" } else { "events" };
        lines.push(format!("\n{:<10}{:<12}{events:>10}  {:<20}{}", "stage", "state", "lag", "position"));
        for stage in array(&state["stages"]) {
            lines.push(format!(
                "{:<10}{:<12}{:>10}  {:<20}{}",
                text(&stage["name"]),
                text(&stage["state"]),
                self.rate(stage),
                lag(stage),
                text(&stage["position"])
            ));
        }
        if state["slot"].is_object() {
            let left = state["slot"]["safe_bytes"].as_u64().map(|safe| format!(", lost after {} more", bytes(safe)));
            let kept = state["slot"]["retained_bytes"].as_u64().map_or("?".to_owned(), bytes);
            lines.push(format!("\nslot      {kept} of WAL kept on the source{}", left.unwrap_or_default()));
        }
        lines.push(format!("\n{:<10}{:<12}{:>10}  {:<20}{}", "store", "status", "points", "lag", "age"));
        for store in array(&state["stores"]) {
            lines.push(format!(
                "{:<10}{:<12}{:>10}  {:<20}{}",
                text(&store["name"]),
                text(&store["status"]),
                text(&store["points"]),
                lag(store),
                age(store)
            ));
        }
        lines.push(format!(
            "\nsearches are answered by {}; breaker {}; dead letters open: {}",
            if state["searches"] == false { "other processes".to_owned() } else { or_none(&state["served_by"]) },
            or_none(&state["breaker"]),
            or_unknown(&state["dead_letters_open"])
        ));
        for fault in self.faults() {
            // Asked once, it is the terminal that goes on in another line.
            let width = if self.rates.is_some() { FAULT_WIDTH } else { usize::MAX };
            lines.extend(wrapped(&format!("! {fault}"), width));
        }
        lines.join("\n") + "\n"
    }

    /// For who writes it down.
    fn line(&self) -> String {
        let state = &self.state;
        let mut line = format!("{}Z {}", text(&state["timestamp"]), text(&state["status"]));
        for stage in array(&state["stages"]) {
            let said = [text(&stage["state"]), format!("{}/s", self.rate(stage)), lag(stage), text(&stage["position"])];
            let said: Vec<String> = said.into_iter().filter(|part| !part.is_empty()).collect();
            line += &format!(" {}=[{}]", text(&stage["name"]), said.join(", "));
        }
        if let Some(kept) = state["slot"]["retained_bytes"].as_u64() {
            line += &format!(" slot=[{}]", bytes(kept));
        }
        for store in array(&state["stores"]) {
            let points = or_unknown(&store["points"]);
            let said =
                format!("{}, {points} points, {} behind, {} old", text(&store["status"]), lag(store), age(store));
            line += &format!(" {}=[{said}]", text(&store["name"]));
        }
        line += &format!(
            " served_by={} breaker={} dead_letters={}",
            or_none(&state["served_by"]),
            or_none(&state["breaker"]),
            or_unknown(&state["dead_letters_open"])
        );
        let faults: Vec<String> = self.faults().collect();
        if !faults.is_empty() {
            line += &format!(" faults=[{}]", faults.join("; "));
        }
        line + "\n"
    }

    /// Events a second, or where it is asked once, all since its start.
    fn rate(&self, stage: &Value) -> String {
        let Some(rates) = &self.rates else { return text(&stage["events"]) };
        let rate = stage["name"].as_str().and_then(|name| rates.get(name));
        rate.map_or("-".to_owned(), |rate| format!("{rate:.1}"))
    }

    fn faults(&self) -> impl Iterator<Item = String> {
        array(&self.state["faults"]).map(|fault| format!("{}: {}", text(&fault["component"]), text(&fault["error"])))
    }
}

/// The lines of a text of words, the later ones moved to the right. A word that is longer has a line of its own.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = vec![];
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => *line += &format!(" {word}"),
            Some(_) => lines.push(format!("  {word}")),
            None => lines.push(word.to_owned()),
        }
    }
    lines
}

fn array(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// A value without what could drive a terminal; nothing where there is none.
fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => plain(text),
        other => other.to_string(),
    }
}

fn or_none(value: &Value) -> String {
    Some(text(value)).filter(|text| !text.is_empty()).unwrap_or_else(|| "none".to_owned())
}

fn or_unknown(value: &Value) -> String {
    Some(text(value)).filter(|text| !text.is_empty()).unwrap_or_else(|| "?".to_owned())
}

fn lag(part: &Value) -> String {
    match (part["lag_bytes"].as_u64(), part["lag_records"].as_u64()) {
        (Some(lag), _) => bytes(lag),
        (_, Some(lag)) => format!("{lag} records"),
        _ => "?".to_owned(),
    }
}

fn age(store: &Value) -> String {
    store["staleness_ms"].as_u64().map_or("?".to_owned(), |ms| format!("{:.1} s", ms as f64 / 1000.0))
}

/// `0 B`, `1.5 KiB`, `3.0 GiB`.
fn bytes(count: u64) -> String {
    if count < 1024 {
        return format!("{count} B");
    }
    let mut size = count as f64 / 1024.0;
    let mut unit = "KiB";
    for larger in ["MiB", "GiB", "TiB"] {
        if size >= 1024.0 {
            (size, unit) = (size / 1024.0, larger);
        }
    }
    format!("{size:.1} {unit}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn state(events: u64) -> Value {
        json!({
            "status": "degraded", "timestamp": "2026-01-02T13:45:45.078727", "pipeline": "faq", "load": null,
            "served_by": "local", "breaker": "open", "dead_letters_open": 2,
            "faults": [{"component": "qdrant", "status": "unhealthy", "error": "gone\u{1b}[2J"}],
            "stages": [
                {"name": "capture", "state": "streaming", "events": events, "position": "0/16B3748", "lag_bytes": 1536,
                 "lag_records": null},
                {"name": "embed", "state": null, "events": 4, "position": null, "lag_bytes": null, "lag_records": 7},
            ],
            "slot": {"retained_bytes": 3_u64 << 30, "safe_bytes": null},
            "stores": [{"name": "local", "status": "healthy", "rows": 3, "points": 5, "staleness_ms": 435,
                "lag_records": 0}],
        })
    }

    fn seen(states: &[Value]) -> Seen<'static> {
        let (mut rates, mut last, mut now) = (Rates::default(), BTreeMap::new(), Instant::now());
        for state in states {
            last = rates.of(state, now);
            now += Duration::from_secs(2);
        }
        Seen { url: "http://a:1", state: states.last().expect("a state").clone(), rates: Some(last) }
    }

    #[test]
    fn asked_once_it_has_all_events_and_no_rate() {
        let frame = Seen { rates: None, ..seen(&[state(10)]) }.frame();
        let lines: Vec<&str> = frame.lines().collect();
        assert_eq!(lines[0], "vecsync at http://a:1 is degraded, pipeline faq, 13:45:45 UTC.");
        assert_eq!(lines[2], "stage     state           events  lag                 position");
        assert_eq!(lines[3], "capture   streaming           10  1.5 KiB             0/16B3748");
        assert_eq!(lines[12], "! qdrant: gone[2J");
    }

    #[test]
    fn a_frame_has_every_stage_store_and_fault() {
        let frame = seen(&[state(10), state(15)]).frame();
        let lines: Vec<&str> = frame.lines().collect();
        assert_eq!(lines[0], "vecsync at http://a:1 is degraded, pipeline faq, 13:45:45 UTC. Ctrl-C ends.");
        assert_eq!(lines[3], "capture   streaming          2.5  1.5 KiB             0/16B3748");
        assert_eq!(lines[4].trim_end(), "embed                        0.0  7 records");
        assert_eq!(lines[6], "slot      3.0 GiB of WAL kept on the source");
        assert_eq!(lines[9], "local     healthy              5  0 records           0.4 s");
        assert_eq!(lines[11], "searches are answered by local; breaker open; dead letters open: 2");
        assert_eq!(lines[12], "! qdrant: gone[2J");
        assert!(drawn(&frame).starts_with("\x1b[Hvecsync") && drawn("a\n").ends_with("a\x1b[K\n\x1b[J"));
    }

    #[test]
    fn a_line_says_the_same_to_who_writes_it_down() {
        let line = seen(&[state(10)]).line();
        assert_eq!(
            line,
            "2026-01-02T13:45:45.078727Z degraded capture=[streaming, -/s, 1.5 KiB, 0/16B3748] embed=[-/s, 7 records] \
             slot=[3.0 GiB] local=[healthy, 5 points, 0 records behind, 0.4 s old] served_by=local breaker=open \
             dead_letters=2 faults=[qdrant: gone[2J]\n"
        );
    }

    #[test]
    fn one_that_was_started_anew_has_no_rate_until_the_next_answer() {
        let rate = |states: &[Value]| seen(states).rates.and_then(|rates| rates.get("capture").copied());
        assert_eq!(rate(&[state(10), state(3)]), None);
        assert_eq!(rate(&[state(10), state(3), state(7)]), Some(2.0));
    }

    #[test]
    fn a_long_fault_is_not_cut_off() {
        assert_eq!(wrapped("! qdrant: no answer", 12), ["! qdrant: no", "  answer"]);
        assert_eq!(wrapped("! a bbbbbbbbbbbbbbbb c", 5), ["! a", "  bbbbbbbbbbbbbbbb", "  c"]);
        assert_eq!(wrapped("! a b", usize::MAX), ["! a b"]);
    }

    #[test]
    fn bytes_are_shown_in_the_unit_that_fits() {
        for (count, wanted) in
            [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (5 << 20, "5.0 MiB"), (1 << 50, "1024.0 TiB")]
        {
            assert_eq!(bytes(count), wanted);
        }
    }
}
