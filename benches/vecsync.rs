//! Measures the program as a user runs it: `cargo bench --bench vecsync -- [PART…] [--model M] [--json FILE]`.

#[path = "measure/mod.rs"]
mod measure;
#[path = "../tests/support/mod.rs"]
mod support;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use measure::report::Report;
use measure::{
    backfill, capture, embed, failover, finding, freshness, joins, kafka, limit, qdrant, scan, search, single, soak,
};
use support::kafka::Kafka;

const USAGE: &str = "usage: [freshness|backfill|embed|search|idle|finding|scan|capture|joins|qdrant|failover|kafka|replay|all]… [--model fp32|int8|both] [--json FILE] [--no-docs]; or: soak SECONDS [--model M]; or: single --before PATH; joins: [--documents N]";

/// What is measured.
#[derive(Debug, Default)]
struct Wanted {
    freshness: bool,
    backfill: bool,
    embed: bool,
    search: bool,
    idle: bool,
    finding: bool,
    scan: bool,
    capture: bool,
    joins: bool,
    qdrant: bool,
    failover: bool,
    kafka: bool,
    replay: bool,
    /// Documents of the category that is renamed.
    documents: usize,
    /// Held against `before`; not a part of all.
    single: bool,
    /// The program of another build.
    before: Option<PathBuf>,
    /// How long; not a part of all.
    soak: Option<Duration>,
    models: Vec<&'static str>,
    json: Option<PathBuf>,
    docs: bool,
}

fn main() -> ExitCode {
    // The bare loop, which a backfill is held against.
    if let [Some(limit::ARGUMENT), Some(model)] =
        [1, 2].map(|place| std::env::args().nth(place)).each_ref().map(Option::as_deref)
    {
        return limit::serve(model);
    }
    let wanted = match Wanted::parse(std::env::args().skip(1)) {
        Ok(wanted) => wanted,
        Err(fault) => {
            eprintln!("{fault}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let mut report = Report::new();
    for model in &wanted.models {
        if wanted.freshness {
            report.add(model, "freshness", freshness::measure(model, None));
        }
        if wanted.backfill || wanted.search || wanted.idle || wanted.embed {
            // They share one loaded table: a backfill is measured while it is made.
            let (mut site, figures) = backfill::measure(model, wanted.backfill);
            if wanted.backfill {
                report.add(model, "backfill", figures);
            }
            if wanted.search {
                report.add(model, "search", search::latency(&mut site, model));
            }
            if wanted.idle {
                report.add(model, "idle", search::idle(&mut site));
            }
            if wanted.embed {
                report.add(model, "unchanged text", embed::unchanged(&mut site, model));
                report.add(model, "query", embed::queries(&mut site, model));
                drop(site);
                report.add(model, "peers", embed::peers(model));
            }
        }
    }
    if wanted.backfill && wanted.models.len() == 2 {
        report.add_ratio();
    }
    if wanted.finding {
        let (figures, table) = finding::measure(&wanted.models);
        for (model, figures) in figures {
            report.add(model, "finding", figures);
        }
        println!("{table}");
    }
    if wanted.scan {
        // Which model made the vectors does not matter.
        report.add("int8", "scan", scan::search("int8"));
    }
    if wanted.capture {
        // Capture does not run the model.
        report.add("int8", "capture stream", capture::decode());
        report.add("int8", "capture copy", capture::copy());
        report.add("int8", "capture transaction", capture::transaction());
        report.add("int8", "capture beside", capture::beside());
    }
    if wanted.joins {
        // Texts are known.
        report.add("int8", "joins", joins::measure("int8", wanted.documents));
    }
    if let Some(before) = wanted.before.as_deref().filter(|_| wanted.single) {
        // Texts are known.
        report.add("int8", "single table", single::measure(before));
    }
    if wanted.qdrant {
        // The vectors are drawn by chance.
        report.add("int8", "qdrant upsert", qdrant::upsert());
        report.add("int8", "qdrant replay", qdrant::replay());
    }
    if wanted.failover {
        // The questions' vectors are kept.
        report.add("int8", "failover", failover::measure("int8"));
    }
    if wanted.kafka || wanted.replay {
        let broker = Kafka::start();
        // Capture and replay do not run the model.
        if wanted.kafka {
            for model in &wanted.models {
                report.add(model, "kafka freshness", freshness::measure(model, Some(&broker)));
            }
            report.add("int8", "kafka capture", kafka::capture(&broker));
        }
        if wanted.replay {
            report.add("int8", "kafka replay", kafka::replay(&broker));
        }
    }
    for model in wanted.models.iter().filter(|_| wanted.soak.is_some()) {
        match soak::run(model, wanted.soak.unwrap_or_default()) {
            Ok(figures) => report.add(model, "soak", figures),
            Err(fault) => {
                eprintln!("soak, {model}: {fault}");
                return ExitCode::FAILURE;
            }
        }
    }
    println!("{}", report.table());
    let written = report.write(wanted.json.as_deref(), wanted.docs);
    if let Err(fault) = written {
        eprintln!("{fault}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

impl Wanted {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut wanted =
            Wanted { models: vec!["fp32", "int8"], docs: true, documents: joins::MANY, ..Wanted::default() };
        let mut any = false;
        while let Some(argument) = arguments.next() {
            let part = match argument.as_str() {
                "freshness" => &mut wanted.freshness,
                "backfill" => &mut wanted.backfill,
                "embed" => &mut wanted.embed,
                "search" => &mut wanted.search,
                "idle" => &mut wanted.idle,
                "finding" => &mut wanted.finding,
                "scan" => &mut wanted.scan,
                "capture" => &mut wanted.capture,
                "joins" => &mut wanted.joins,
                "single" => &mut wanted.single,
                "qdrant" => &mut wanted.qdrant,
                "failover" => &mut wanted.failover,
                "kafka" => {
                    (wanted.kafka, wanted.replay, any) = (true, true, true);
                    continue;
                }
                "replay" => &mut wanted.replay,
                "all" => continue,
                "soak" => {
                    let seconds = arguments.next().and_then(|text| text.parse().ok()).ok_or("soak wants seconds")?;
                    (wanted.soak, any) = (Some(Duration::from_secs(seconds)), true);
                    continue;
                }
                // cargo says so to every benchmark.
                "--bench" => continue,
                "--no-docs" => {
                    wanted.docs = false;
                    continue;
                }
                "--before" => {
                    let path = PathBuf::from(arguments.next().ok_or("--before wants the program of an older build")?);
                    // vecsync is started in a folder of its own.
                    let whole = path.canonicalize().map_err(|error| format!("--before {}: {error}", path.display()))?;
                    wanted.before = Some(whole);
                    continue;
                }
                "--documents" => {
                    let number = arguments.next().and_then(|text| text.parse().ok()).filter(|number| *number > 1_000);
                    wanted.documents = number.ok_or("--documents wants a number above 1000: fewer are no fan-out")?;
                    continue;
                }
                "--json" => {
                    wanted.json = Some(arguments.next().ok_or("--json wants a file")?.into());
                    continue;
                }
                "--model" => {
                    wanted.models = match arguments.next().as_deref() {
                        Some("fp32") => vec!["fp32"],
                        Some("int8") => vec!["int8"],
                        Some("both") => vec!["fp32", "int8"],
                        other => return Err(format!("--model: {other:?}")),
                    };
                    continue;
                }
                other => return Err(format!("unknown: {other}")),
            };
            (*part, any) = (true, true);
        }
        if !any {
            let Wanted { freshness, backfill, embed, search, idle, finding, scan, .. } = &mut wanted;
            for part in [freshness, backfill, embed, search, idle, finding, scan] {
                *part = true;
            }
            let Wanted { capture, joins, qdrant, failover, kafka, replay, .. } = &mut wanted;
            for part in [capture, joins, qdrant, failover, kafka, replay] {
                *part = true;
            }
        }
        if wanted.single && wanted.before.is_none() {
            return Err(
                "single wants --before PATH: the program of an older build, which this one is held against".to_owned()
            );
        }
        // A part of the figures must not replace the table of all.
        wanted.docs &= !any && wanted.models.len() == 2;
        Ok(wanted)
    }
}
