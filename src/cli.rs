//! The command line: commands, their flags, and nothing of what they do.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use vecsync::app::backup::Only;
use vecsync::config::Role;
use vecsync::topic::LetterId;
use vecsync::topic::replay::{Source, Target};

/// Keeps a semantic search index in step with a PostgreSQL table.
#[derive(Debug, Parser)]
#[command(name = "vecsync", version, propagate_version = true, arg_required_else_help = true)]
#[command(after_help = "Settings come from the environment and from .env in the current folder; `vecsync config` \
                        lists them.\nExit status: 0 done, 1 failed, 2 usage or configuration, 3 something unhealthy or \
                        drifted was found.")]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Which pipeline it is about, where VECSYNC_PIPELINE is a folder of several
    #[arg(long, global = true, value_name = "NAME")]
    pub pipeline: Option<String>,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Capture, embed, index and serve, until SIGINT or SIGTERM
    Run {
        /// What this process does; without Kafka only all of it together
        #[arg(long, value_enum, value_delimiter = ',', value_name = "ROLE,…")]
        role: Vec<Role>,
    },
    /// Make the collection in Qdrant behind its alias, or say how it is
    Init(Init),
    /// Look at everything that a run needs, each thing with its remedy; status 3 if anything is wrong
    #[command(alias = "doctor")]
    Check(Check),
    /// Search through a running vecsync
    Search(Search),
    /// Read the whole table again and bring the index in step with it, while searches go on
    Sync(Sync),
    /// Fill the index of a running vecsync again from the log, while it goes on answering
    Replay {
        /// What to read again: vectors costs no embedding, changes renders and embeds every row anew
        #[arg(long, value_enum, default_value = "vectors")]
        topic: Source,
        /// Fill a new generation and switch to it, or the one that is there
        #[arg(long, value_enum, default_value = "new")]
        into: Target,
        /// Print one JSON document
        #[arg(long)]
        json: bool,
    },
    /// Compare the table with the stores of a running vecsync, row by row
    Verify {
        /// Publish the rows again that have drifted, and look at them once more
        #[arg(long)]
        repair: bool,
        /// Print one JSON document
        #[arg(long)]
        json: bool,
    },
    /// Write Qdrant's generation, the mirror and the embedded log into a folder
    Backup {
        /// The folder: not there yet, or empty
        dir: PathBuf,
        /// Print one JSON document
        #[arg(long)]
        json: bool,
    },
    /// Put a backup back, into an empty data directory and a Qdrant without the alias
    Restore {
        /// The backup's folder
        dir: PathBuf,
        /// Restore this part alone: the data directory, or the generation in Qdrant
        #[arg(long, value_enum)]
        only: Option<Only>,
        /// Print one JSON document
        #[arg(long)]
        json: bool,
    },
    /// Show what a running vecsync says of itself
    Status {
        /// Go on showing it once a second until Ctrl-C: redrawn in place on a terminal, a line each elsewhere
        #[arg(long, conflicts_with = "json")]
        watch: bool,
        /// Print one JSON document
        #[arg(long)]
        json: bool,
    },
    /// List, show and retry records that were put aside
    #[command(subcommand)]
    DeadLetters(DeadLetters),
    /// Check pipeline files
    #[command(subcommand)]
    Pipeline(Pipeline),
    /// Print every setting with its value and where it came from, secrets masked
    Config,
    /// Say whether a running vecsync is ready, for health checks of containers; status 3 if not
    Healthcheck,
}

/// `vecsync init`.
#[derive(Clone, Debug, clap::Args)]
pub struct Init {
    /// Only say whether Qdrant answers; status 3 if not
    #[arg(long, conflicts_with_all = ["validate", "stats", "recreate"])]
    pub health_check_only: bool,
    /// Compare what is there with what would be made, and change nothing; status 3 where it differs
    #[arg(long, conflicts_with = "recreate")]
    pub validate: bool,
    /// Print the rows and points of each generation, and change nothing
    #[arg(long)]
    pub stats: bool,
    /// Have the running vecsync fill a new generation from the log; the others go when searches ask it
    #[arg(long)]
    pub recreate: bool,
    /// Take over a plain collection that has the alias's name, or load a local store
    #[arg(long, conflicts_with_all = ["health_check_only", "validate", "stats", "recreate"])]
    pub migrate: bool,
    /// What to load: a mirror of vecsync's, or a file of JSON lines {"id", "vector", "payload"}
    #[arg(long, value_name = "PATH", requires = "migrate")]
    pub local_store_path: Option<PathBuf>,
}

/// `vecsync check`.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Check {
    /// Leave out the running vecsync
    #[arg(long)]
    pub skip_health: bool,
    /// Leave out what does something: an embedding, a point in Qdrant, a search
    #[arg(long)]
    pub skip_operations: bool,
    /// Have the running vecsync answer without Qdrant for so long, 1 to 3600, and look how searches fare
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    #[arg(conflicts_with_all = ["skip_health", "skip_operations"])]
    pub drill: Option<u64>,
    /// Say how long each took
    #[arg(long)]
    pub verbose: bool,
}

/// `vecsync sync`.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Sync {
    /// Embed texts again that did not change, too
    #[arg(long)]
    pub force: bool,
    /// Only count what it would insert, update, delete and leave as it is; write nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Rows that are read and written to the log at a time, 1 to 10000
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub batch_size: u32,
    /// Only print how many rows the table, the log and the stores have, and how far they are behind
    #[arg(long, conflicts_with_all = ["force", "dry_run"])]
    pub stats_only: bool,
    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
}

/// `vecsync search`.
#[derive(Clone, Debug, clap::Args)]
pub struct Search {
    /// What to look for, in plain words
    #[arg(value_parser = words_wanted)]
    pub text: String,
    /// How many results at most
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub limit: u32,
    /// Only rows whose payload field has this value; may be given several times
    #[arg(long = "filter", value_name = "FIELD=VALUE", value_parser = filter)]
    pub filters: Vec<(String, String)>,
    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
}

/// `vecsync dead-letters`.
#[derive(Clone, Debug, Subcommand)]
pub enum DeadLetters {
    /// List them, newest first: id, key, reason, time, error, size
    List {
        /// Print one JSON document
        #[arg(long)]
        json: bool,
    },
    /// Show one with its place and its bytes
    Show {
        /// Its id, PARTITION-OFFSET as the list shows it
        id: LetterId,
        /// Print one JSON document
        #[arg(long)]
        json: bool,
    },
    /// Read their rows again and publish them; those that can be embedded now leave the list
    Retry {
        /// Ids as the list shows them
        #[arg(value_name = "ID", required_unless_present = "all", conflicts_with = "all")]
        ids: Vec<LetterId>,
        /// Retry all of them
        #[arg(long)]
        all: bool,
    },
}

/// `vecsync pipeline`.
#[derive(Debug, Subcommand)]
pub enum Pipeline {
    /// Say what is wrong with pipeline files, all of it at once
    Check {
        /// Pipeline files, or folders of them
        #[arg(required = true, value_name = "PATH")]
        files: Vec<PathBuf>,
    },
    /// Print the JSON Schema of pipeline files, by which editors complete and underline them
    Schema,
}

fn words_wanted(text: &str) -> Result<String, &'static str> {
    if text.trim().is_empty() { Err("wanted words to look for") } else { Ok(text.to_owned()) }
}

fn filter(text: &str) -> Result<(String, String), &'static str> {
    match text.split_once('=') {
        Some((field, value)) if !field.is_empty() => Ok((field.to_owned(), value.to_owned())),
        _ => Err("wanted field=value"),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(words: &[&str]) -> Result<Command, clap::Error> {
        Cli::try_parse_from(["vecsync"].iter().chain(words)).map(|cli| cli.command)
    }

    #[test]
    fn the_definition_holds_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn search_takes_a_limit_and_several_filters() {
        let words = ["search", "lost password", "--limit", "3", "--filter", "a=1", "--filter", "b=x=y", "--json"];
        let Command::Search(search) = parse(&words).expect("valid") else { panic!("another command") };
        assert_eq!((search.text.as_str(), search.limit, search.json), ("lost password", 3, true));
        assert_eq!(search.filters, [("a".to_owned(), "1".to_owned()), ("b".to_owned(), "x=y".to_owned())]);
    }

    #[test]
    fn every_command_takes_the_name_of_a_pipeline() {
        let named = |words: &[&str]| {
            let cli = Cli::try_parse_from(["vecsync"].iter().chain(words)).expect("valid");
            cli.pipeline
        };
        assert_eq!(named(&["sync", "--pipeline", "faq"]).as_deref(), Some("faq"));
        assert_eq!(named(&["dead-letters", "retry", "--all", "--pipeline", "faq"]).as_deref(), Some("faq"));
        assert_eq!(named(&["search", "x"]), None);
    }

    #[test]
    fn roles_are_separated_by_commas() {
        let Command::Run { role } = parse(&["run", "--role", "capture,serve"]).expect("valid") else {
            panic!("another command")
        };
        assert_eq!(role, [Role::Capture, Role::Serve]);
    }

    #[test]
    fn a_replay_fills_a_new_generation_from_vectors_unless_told_otherwise() {
        let Command::Replay { topic, into, json } = parse(&["replay"]).expect("valid") else { panic!("another") };
        assert_eq!((topic, into, json), (Source::Vectors, Target::New, false));
        let words = ["replay", "--topic", "changes", "--into", "current"];
        let Command::Replay { topic, into, .. } = parse(&words).expect("valid") else { panic!("another") };
        assert_eq!((topic, into), (Source::Changes, Target::Current));
    }

    #[test]
    fn sync_takes_a_hundred_rows_at_a_time_unless_told_otherwise() {
        let Command::Sync(sync) = parse(&["sync"]).expect("valid") else { panic!("another") };
        assert_eq!((sync.batch_size, sync.force, sync.dry_run, sync.stats_only), (100, false, false, false));
        let Command::Sync(sync) = parse(&["sync", "--force", "--batch-size", "7"]).expect("valid") else {
            panic!("another")
        };
        assert_eq!((sync.batch_size, sync.force), (7, true));
    }

    #[test]
    fn verify_repairs_when_it_is_told_to() {
        let flags = |words: &[&str]| match parse(&[&["verify"], words].concat()).expect("valid") {
            Command::Verify { repair, json } => (repair, json),
            other => panic!("{other:?}"),
        };
        assert_eq!((flags(&[]), flags(&["--repair", "--json"])), ((false, false), (true, true)));
    }

    #[test]
    fn dead_letters_are_named_by_their_place() {
        let ids = |words: &[&str]| match parse(&[&["dead-letters", "retry"], words].concat()) {
            Ok(Command::DeadLetters(DeadLetters::Retry { ids, all })) => {
                (ids.iter().map(ToString::to_string).collect::<Vec<_>>(), all)
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(ids(&["3-7", "0-12"]), (vec!["3-7".to_owned(), "0-12".to_owned()], false));
        assert_eq!(ids(&["--all"]), (vec![], true));
        let refused = parse(&["dead-letters", "show", "7"]).expect_err("refused").to_string();
        assert!(refused.contains("'7'") && refused.contains("PARTITION-OFFSET"), "{refused}");
    }

    #[test]
    fn every_command_in_the_documents_is_one() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        let docs = std::fs::read_dir(root.join("docs")).expect("docs").map(|entry| entry.expect("readable").path());
        let documents = docs.filter(|path| path.extension().is_some_and(|extension| extension == "md"));
        let (mut found, mut faults) = (0, vec![]);
        for path in documents.chain([root.join("README.md")]) {
            let text = std::fs::read_to_string(&path).expect("readable");
            for command in commands(&text) {
                found += 1;
                // Help and version are answers, too.
                if parse(&words(command)).is_err_and(|error| error.exit_code() != 0) {
                    faults.push(format!("{}: vecsync {command}", path.display()));
                }
            }
        }
        assert!(faults.is_empty(), "{faults:#?}");
        assert!(found > 100, "{found}");
    }

    /// What follows the program's name, in lines of code and in code within a sentence. A synopsis is not one command.
    fn commands(text: &str) -> impl Iterator<Item = &str> {
        let mut fenced = false;
        let lines = text.lines().flat_map(move |line| {
            fenced ^= line.starts_with("```");
            let is_code = fenced || line.starts_with("    ");
            let pieces: Vec<&str> = if is_code { vec![line] } else { line.split('`').skip(1).step_by(2).collect() };
            pieces.into_iter().filter_map(|code| {
                let (before, command) = code.rsplit_once("vecsync ")?;
                let is_program = before.trim().is_empty() || before.ends_with(['/', ' ']) && before.contains("vecsync");
                (is_program || before.ends_with("target/release/")).then_some(command)
            })
        });
        lines.filter(|command| {
            !command.contains(['[', '|', '…', '{']) && command.starts_with(|c: char| c.is_ascii_lowercase() || c == '-')
        })
    }

    /// As a shell splits them, up to what is the shell's own; names that stand for something get it.
    fn words(command: &str) -> Vec<&str> {
        let mut words = vec![];
        let mut rest = command.trim_start();
        while !rest.is_empty() && !rest.starts_with(['#', '&', '>', ';', '(']) {
            let (word, after) = match rest.strip_prefix('"').and_then(|quoted| quoted.split_once('"')) {
                Some(quoted) => quoted,
                None => rest.split_once(' ').unwrap_or((rest, "")),
            };
            words.push(match word {
                "N" | "SECONDS" => "7",
                "ID" => "3-1027",
                word => word,
            });
            rest = after.trim_start();
        }
        words
    }

    #[test]
    fn bad_usage_exits_with_2() {
        for words in [
            &["search", "x", "--limit", "0"][..],
            &["search", "x", "--filter", "a"],
            &["search", "x", "--filter", "=a"],
            &["search"],
            &["search", ""],
            &["search", " \t"],
            &["run", "--role", "cook"],
            &["pipeline", "check"],
            &["sync", "--stats-only", "--dry-run"],
            &["sync", "--batch-size", "0"],
            &["sync", "all"],
            &["verify", "all"],
            &["replay", "--topic", "dead-letter"],
            &["replay", "--into", "old"],
            &["dead-letters"],
            &["dead-letters", "show"],
            &["dead-letters", "show", "seven"],
            &["dead-letters", "retry"],
            &["dead-letters", "retry", "1-2", "--all"],
            &[],
        ] {
            assert_eq!(parse(words).expect_err("refused").exit_code(), 2, "{words:?}");
        }
        assert_eq!(parse(&["--version"]).expect_err("printed").exit_code(), 0);
    }
}
