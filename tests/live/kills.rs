//! SIGKILL of whatever runs, at moments that a seed gives, again and again; when all is up again, Qdrant, the mirror and the table
//! are the same by hash. `make torture` does it as often as is asked for: `VECSYNC_TEST_KILLS` for each of the two tests, in rounds
//! of `ROUND`, each with the next seed from `VECSYNC_TEST_SEED` on, which is printed.

use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::history::{Pace, Sessions, trace};
use crate::kafka::Cluster;
use crate::support::dice::Dice;
use crate::support::kafka::Kafka;
use crate::support::postgres::{Postgres, Sql};
use crate::support::process::wait_until;
use crate::support::qdrant::Qdrant;
use crate::support::site::Site;
use crate::support::table::expect_equal_once;
use crate::support::vecsync::Vecsync;

/// Kills of each of the two tests where nobody asks for more, and those after which everything is compared.
const KILLS: usize = 25;
const ROUND: usize = 25;
/// What is behind after a round is caught up with by six processes of a debug build, on whatever machine this is.
const CAUGHT_UP: Duration = Duration::from_secs(420);
/// Between two kills, at most: a start, a batch, a rest. Over Kafka the brokers take longer to settle what a kill has left open.
const STROKE: Duration = Duration::from_millis(1200);
const STROKE_OVER_KAFKA: Duration = Duration::from_secs(5);
const PACE: Pace = Pace { sessions: 2, pause: Duration::from_millis(25), truncates: 600, copies: 30 };
/// Over Kafka each round lasts longer, and what was written while processes were down has to be caught up with at its end.
const PACE_OVER_KAFKA: Pace = Pace { sessions: 2, pause: Duration::from_millis(100), truncates: 200, copies: 50 };

/// What can be killed, and comes back.
trait Victim {
    fn name(&self) -> String;
    /// How often it is chosen.
    fn weight(&self) -> usize;
    /// Kills it, if it runs. The number says which time it is.
    fn kill(&mut self, time: usize);
    /// Starts it, if it does not run, as whoever watches over it would.
    fn start(&mut self);
}

struct Process<'a> {
    vecsync: &'a mut Vecsync,
    roles: &'static str,
    weight: usize,
    runs: bool,
    /// How often it has ended by itself.
    ended: usize,
}

impl<'a> Process<'a> {
    fn new(vecsync: &'a mut Vecsync, roles: &'static str, weight: usize) -> Self {
        vecsync.roles(if roles == "all" { "" } else { roles });
        Process { vecsync, roles, weight, runs: false, ended: 0 }
    }
}

impl Victim for Process<'_> {
    fn name(&self) -> String {
        match self.ended {
            0 => format!("vecsync ({})", self.roles),
            ended => format!("vecsync ({}, which ended by itself {ended} times)", self.roles),
        }
    }

    fn weight(&self) -> usize {
        self.weight
    }

    fn kill(&mut self, _: usize) {
        if self.runs {
            self.runs = false;
            self.vecsync.kill();
        }
    }

    fn start(&mut self) {
        if self.runs
            && let Some(status) = self.vecsync.ended()
        {
            // What it needs is away: 1. Anything else is a fault of its own.
            let log = self.vecsync.log();
            assert!(status.code() == Some(1) && !log.contains("panicked"), "{} {status}: {log}", self.name());
            self.ended += 1;
            self.kill(0);
        }
        if !self.runs {
            self.vecsync.start();
            self.runs = true;
        }
    }
}

struct Server<'a, T> {
    name: &'static str,
    weight: usize,
    server: &'a mut T,
    runs: bool,
    /// Whether it is gone then.
    kill: fn(&mut T, usize) -> bool,
    start: fn(&mut T),
}

impl<T> Victim for Server<'_, T> {
    fn name(&self) -> String {
        self.name.to_owned()
    }

    fn weight(&self) -> usize {
        self.weight
    }

    fn kill(&mut self, time: usize) {
        if self.runs {
            self.runs = !(self.kill)(self.server, time);
        }
    }

    fn start(&mut self) {
        if !self.runs {
            (self.start)(self.server);
            self.runs = true;
        }
    }
}

/// The whole server, or the process that sends the stream: then it recovers by itself.
fn source(postgres: &mut Postgres) -> Server<'_, Postgres> {
    let kill = |postgres: &mut Postgres, time: usize| {
        if time % 2 == 1 && postgres.kill_walsender() {
            return false;
        }
        postgres.kill();
        true
    };
    Server { name: "PostgreSQL", weight: 3, server: postgres, runs: true, kill, start: Postgres::launch }
}

fn store(qdrant: &mut Qdrant) -> Server<'_, Qdrant> {
    let kill = |qdrant: &mut Qdrant, _| {
        qdrant.kill();
        true
    };
    Server { name: "Qdrant", weight: 4, server: qdrant, runs: true, kill, start: Qdrant::restart }
}

fn broker(kafka: &mut Kafka) -> Server<'_, Kafka> {
    let kill = |kafka: &mut Kafka, _| {
        kafka.crash();
        true
    };
    Server { name: "Kafka", weight: 2, server: kafka, runs: true, kill, start: Kafka::launch }
}

/// Tells a vecsync of the Qdrant.
fn with_qdrant(vecsync: &mut Vecsync, qdrant: &Qdrant, alias: &str) {
    let settings = qdrant.settings();
    vecsync.set("QDRANT_HOST", settings.host);
    vecsync.set("QDRANT_PORT", settings.port);
    vecsync.set("QDRANT_GRPC_PORT", settings.grpc_port);
    vecsync.set("QDRANT_COLLECTION_NAME", alias);
    vecsync.set("QDRANT_TIMEOUT", 5);
}

/// Transactions that are made when all are up again, so that there is something to compare whatever was truncated.
const AT_LAST: u64 = 60;

/// Kills one of them so many times, then starts them all. Says what was killed.
fn torture(victims: &mut [&mut dyn Victim], kills: usize, stroke: Duration, seed: u64) -> String {
    let mut dice = Dice::new(seed);
    let mut counted = vec![0; victims.len()];
    let all = victims.iter().enumerate();
    let weighted: Vec<usize> = all.flat_map(|(place, victim)| std::iter::repeat_n(place, victim.weight())).collect();
    for _ in 0..kills {
        // The moment of the kill, and no wait for anything.
        sleep(stroke * dice.below(1000) as u32 / 1000);
        let chosen = *dice.pick(&weighted);
        victims[chosen].start();
        victims[chosen].kill(counted[chosen]);
        counted[chosen] += 1;
        // It comes back at once, or when others have been killed meanwhile.
        for victim in victims.iter_mut().filter(|_| dice.below(3) > 0) {
            victim.start();
        }
    }
    victims.iter_mut().for_each(|victim| victim.start());
    let said = victims.iter().zip(counted).map(|(victim, kills)| format!("{} {kills}", victim.name()));
    said.collect::<Vec<_>>().join(", ")
}

/// Waits until all of them stay, and the last one is ready.
#[track_caller]
fn heal(processes: &mut [Process<'_>]) {
    wait_until("all to be up and the last to be ready", CAUGHT_UP, || {
        processes.iter_mut().for_each(Victim::start);
        let last = processes.last_mut().expect("there is one");
        let answer = last.vecsync.http.get("/health/started/").map_err(|error| error.to_string())?;
        if answer.status == 200 { Ok(()) } else { Err(answer.body) }
    });
}

/// By search, and by the hashes of all rows in both stores. Gives what was compared.
#[track_caller]
fn expect_same(processes: &mut [Process<'_>], sql: &Sql) -> String {
    let last = &mut processes.last_mut().expect("there is one").vecsync;
    expect_equal_once(last, sql, CAUGHT_UP);
    // Searches may have been answered by the mirror: a Qdrant that came back last is not asked before it was seen to be there.
    let report = wait_until("both stores to be compared", CAUGHT_UP, || {
        let verified = last.run_within(&["verify", "--json"], CAUGHT_UP);
        let report: Value = serde_json::from_str(&verified.stdout).map_err(|_| format!("{verified:?}"))?;
        let stores = report["stores"].as_array().expect("stores");
        if stores.len() == 2 && stores.iter().all(|store| store["error"].is_null() && store["late"] == false) {
            Ok(report)
        } else {
            Err(report.to_string())
        }
    });
    let stores = report["stores"].as_array().expect("stores");
    assert!(stores.iter().all(|store| store["same"] == report["indexed"]), "{report}");
    format!("{} rows, {} of them indexed", report["rows"], report["indexed"])
}

/// Rounds with a seed each, until there were so many kills.
fn rounds(mut round: impl FnMut(u64, usize)) {
    let number = |name: &str, otherwise| std::env::var(name).map_or(otherwise, |text| text.parse().expect("a number"));
    let (mut seed, mut left) = (number("VECSYNC_TEST_SEED", 4_711), number("VECSYNC_TEST_KILLS", KILLS));
    while left > 0 {
        let (kills, began) = (left.min(ROUND), Instant::now());
        eprintln!("seed {seed}: {kills} kills");
        round(seed as u64, kills);
        eprintln!("seed {seed}: {} s", began.elapsed().as_secs());
        (seed, left) = (seed + 1, left - kills);
    }
}

#[test]
fn whatever_is_killed_at_any_moment_both_stores_equal_the_table() {
    rounds(|seed, kills| {
        let mut site = Site::prepare();
        trace(&site.sql);
        let mut qdrant = Qdrant::own();
        let alias = qdrant.name("faq");
        with_qdrant(&mut site.vecsync, &qdrant, &alias);
        let sessions = Sessions::start_outliving(&site.postgres, seed, PACE);
        let mut processes = [Process::new(&mut site.vecsync, "all", 7)];
        let (source, store) = (&mut source(&mut site.postgres), &mut store(&mut qdrant));
        let said = torture(&mut [&mut processes[0], source, store], kills, STROKE, seed);
        sessions.wait_for_more(AT_LAST);
        let commits = sessions.finish();
        heal(&mut processes);
        let compared = expect_same(&mut processes, &site.postgres.client());
        eprintln!("{said}; {commits} transactions, {compared}");
    });
}

#[test]
fn whatever_is_killed_at_any_moment_over_kafka_both_stores_equal_the_table() {
    rounds(|seed, kills| {
        let mut cluster = Cluster::prepare(Arc::new(Kafka::start()), 20);
        trace(&cluster.site.sql);
        let mut qdrant = Qdrant::own();
        let alias = qdrant.name("faq");
        let roles = ["capture", "capture", "embed", "embed", "index", "serve"];
        let mut vecsyncs = roles.map(|roles| cluster.process(roles));
        vecsyncs[4..].iter_mut().for_each(|vecsync| with_qdrant(vecsync, &qdrant, &alias));
        let sessions = Sessions::start_outliving(&cluster.site.postgres, seed, PACE_OVER_KAFKA);
        let said = {
            let mut processes: Vec<Process<'_>> =
                vecsyncs.iter_mut().zip(roles).map(|(vecsync, roles)| Process::new(vecsync, roles, 2)).collect();
            // Every other time from a whole index on, else from the first load.
            if seed % 2 == 0 {
                heal(&mut processes);
            }
            let source = &mut source(&mut cluster.site.postgres);
            let kafka = Arc::get_mut(&mut cluster.kafka).expect("it is nobody else's");
            let (broker, store) = (&mut broker(kafka), &mut store(&mut qdrant));
            let mut victims: Vec<&mut dyn Victim> = vec![source, broker, store];
            victims.extend(processes.iter_mut().map(|process| process as &mut dyn Victim));
            victims.iter_mut().for_each(|victim| victim.start());
            let said = torture(&mut victims, kills, STROKE_OVER_KAFKA, seed);
            drop(victims);
            sessions.wait_for_more(AT_LAST);
            let commits = sessions.finish();
            heal(&mut processes);
            let compared = expect_same(&mut processes, &cluster.site.postgres.client());
            format!("{said}; {commits} transactions, {compared}")
        };
        eprintln!("{said}, {} events of the stream", cluster.expect_none_twice());
    });
}
