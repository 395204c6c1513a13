//! The program: arguments → settings → command → exit code. Decides nothing else.

mod cli;

use std::borrow::Cow;
use std::collections::HashMap;
use std::error::Error;
use std::future::Future;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Once;
use std::time::Duration;

use clap::Parser;
use cli::{Check, Cli, Command, DeadLetters, Init, Pipeline, Sync};
use serde_json::Value;
use vecsync::capture::Wanted;
use vecsync::client::Query;
use vecsync::commands::dead_letters as letters;
use vecsync::commands::sync;
use vecsync::commands::verify::Found;
use vecsync::config::environment::Environment;
use vecsync::config::problems::{Problem, Problems};
use vecsync::config::settings::Settings;
use vecsync::config::{Config, Configs, Document, Log, Role, folder, listing, pipeline};
use vecsync::control::Request;
use vecsync::embed::DocumentError;
use vecsync::retry::Chain;
use vecsync::serve::control as elsewhere;
use vecsync::{app, commands, embed, logging, remedy};

/// It was tried and failed.
const FAILED: u8 = 1;
/// The arguments or the settings are wrong and nothing was tried. clap exits with the same.
const MISUSED: u8 = 2;
/// A check found something that is not as it should be.
const UNHEALTHY: u8 = 3;

/// For how long calls that block are waited for when all else has ended.
const END_PATIENCE: Duration = Duration::from_secs(5);

/// Why a command did not do what it was asked.
enum Failure {
    /// Found before anything was connected to.
    Problems(Problems),
    /// Printed once, with all its causes.
    Error(Box<dyn Error>),
    /// What a check found.
    Unhealthy(String),
    /// What the vecsync elsewhere ended with.
    Elsewhere(u8, Option<String>),
}

impl From<Problems> for Failure {
    fn from(problems: Problems) -> Self {
        Failure::Problems(problems)
    }
}

impl From<app::AppError> for Failure {
    fn from(error: app::AppError) -> Self {
        Failure::Error(Box::new(error))
    }
}

impl From<Box<dyn Error>> for Failure {
    fn from(error: Box<dyn Error>) -> Self {
        Failure::Error(error)
    }
}

fn main() -> ExitCode {
    app::keep_memory_private();
    let cli = Cli::parse();
    let named = cli.pipeline.as_deref();
    let complain = |text: &str| complain(&of_pipeline(text, named));
    match dispatch(cli.command, named) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Problems(problems)) => {
            let many = if problems.len() == 1 { "problem" } else { "problems" };
            complain(&format!("vecsync: {} {many} in settings and pipeline files\n{problems}", problems.len()));
            ExitCode::from(MISUSED)
        }
        Err(Failure::Error(error)) => {
            complain(&format!("vecsync: {}", Chain(error.as_ref())));
            ExitCode::from(FAILED)
        }
        Err(Failure::Unhealthy(what)) => {
            complain(&format!("vecsync: {what}"));
            ExitCode::from(UNHEALTHY)
        }
        Err(Failure::Elsewhere(status, error)) => {
            complain(&format!("vecsync: {}", error.as_deref().unwrap_or("it gave no reason")));
            // What failed without a status of its own must not look done.
            ExitCode::from(if status == 0 { FAILED } else { status })
        }
    }
}

fn dispatch(command: Command, named: Option<&str>) -> Result<(), Failure> {
    let environment = Environment::of_process();
    let about = About { environment: &environment, named };
    match command {
        Command::Run { .. } | Command::Pipeline(_) | Command::Config if named.is_some() => {
            let what = "is for commands about one pipeline: this one takes all that VECSYNC_PIPELINE names";
            Err(Problems::from(Problem::new("--pipeline", what)).into())
        }
        Command::Run { role } => run(&environment, &role),
        Command::Init(wanted) => init(&about, wanted),
        Command::Check(wanted) => check(&about, wanted),
        Command::Search(search) => {
            let settings = about.server()?;
            let query = Query {
                text: search.text,
                limit: Some(search.limit as usize),
                min_score: None,
                filter: search.filters,
            };
            print(&to_end(&settings.log, commands::search(&settings, &query, search.json))?)
        }
        Command::Sync(wanted) => resync(&about, wanted),
        Command::Status { watch: true, .. } => {
            let settings = about.server()?;
            to_end(&settings.log, commands::watch::watch(&settings))
        }
        Command::Status { json, .. } => {
            let settings = about.server()?;
            about.print(&to_end(&settings.log, commands::status(&settings, json, named.is_some()))?)
        }
        Command::Replay { topic, into, json } => {
            let wanted = elsewhere::Replay { topic: Some(topic), into: Some(into), json };
            if about.has_done_elsewhere(&elsewhere::Command::Replay(wanted))? {
                return Ok(());
            }
            let settings = about.settings()?;
            about.print(&to_end(&settings.log, commands::replay::replay(&settings, topic, into, json))?)
        }
        Command::Verify { repair, json } => {
            if about.has_done_elsewhere(&elsewhere::Command::Verify(elsewhere::Verify { repair, json }))? {
                return Ok(());
            }
            let settings = about.settings()?;
            let (said, found) = to_end(&settings.log, commands::verify::verify(&settings, repair, json))?;
            about.print(&said)?;
            match found {
                Found::Same => Ok(()),
                Found::Drift(what) => Err(Failure::Unhealthy(what)),
                Found::Incomplete(error) => Err(Failure::Error(Box::new(error))),
            }
        }
        Command::Backup { dir, json } => {
            let wanted = elsewhere::Backup { dir: dir.display().to_string(), json };
            if about.has_done_elsewhere(&elsewhere::Command::Backup(wanted))? {
                return Ok(());
            }
            let settings = about.settings()?;
            let said = match to_end(&settings.log, commands::backup::backup(&settings, &dir, json))? {
                Some(said) => said,
                None => {
                    let config = about.config()?;
                    block_on(commands::backup::backup_alone(config, dir, json))?
                }
            };
            about.print(&said)
        }
        Command::Restore { dir, only, json } => {
            let config = about.config()?;
            about.print(&to_end(&config.log, commands::backup::restore(&config, &dir, only, json))?)
        }
        Command::DeadLetters(command) => dead_letters(&about, command),
        Command::Pipeline(Pipeline::Check { files }) => check_pipelines(&environment, &files),
        Command::Pipeline(Pipeline::Schema) => print(pipeline::SCHEMA),
        Command::Healthcheck => {
            let settings = about.server()?;
            match to_end(&settings.log, commands::healthcheck(&settings))? {
                None => print("ready\n"),
                Some(why) => Err(Failure::Unhealthy(why)),
            }
        }
        Command::Config => {
            let (listing, problems) = listing::listing(&environment);
            print(&listing.to_string())?;
            Ok(problems.or(Some(()))?)
        }
    }
}

fn run(environment: &Environment, roles: &[Role]) -> Result<(), Failure> {
    let configs = Configs::load(environment, roles, &check_templates)?;
    let log = configs.pipelines[configs.default].log.clone();
    let settings = Settings::read(environment)?;
    // The paths of one among several stand below its name.
    let of =
        |name: &String| if configs.pipelines.len() > 1 { settings.of_pipeline(name) } else { Ok(settings.clone()) };
    let of_each = configs.names().into_iter().map(|name| of(&name).map(|settings| (name, settings)));
    let of_each = of_each.collect::<Result<HashMap<_, _>, _>>()?;
    let is_one = configs.pipelines.len() == 1;
    let control = move |config: &Config| {
        let settings = of_each.get(&config.pipeline.name).unwrap_or(&settings).clone();
        commands::door::door(config.clone(), Settings { data_dir: config.data_dir.clone(), ..settings }, is_one)
    };
    app::raise_file_limit().map_err(|error| Failure::Error(Box::new(error)))?;
    to_end(&log, app::run(configs, control))
}

/// What a command is about: the pipeline that is named, or the only one.
struct About<'a> {
    environment: &'a Environment,
    named: Option<&'a str>,
}

impl About<'_> {
    /// Writes to standard output what is said of the pipeline that is named.
    fn print(&self, text: &str) -> Result<(), Failure> {
        print(&of_pipeline(text, self.named))
    }

    /// How a running vecsync is reached over HTTP: it knows its pipelines itself, and which is meant where none is named.
    fn server(&self) -> Result<Settings, Failure> {
        let settings = Settings::read(self.environment)?;
        Ok(match self.named {
            Some(name) => settings.of_pipeline(name)?,
            None => settings,
        })
    }

    /// How the vecsync that has the pipeline is reached, also through its data directory.
    fn settings(&self) -> Result<Settings, Failure> {
        let settings = self.server()?;
        let names = folder::names(&settings.pipeline);
        let name = match self.named {
            // Files that cannot be read are no reason not to reach one that runs.
            Some(name) if names.is_empty() => name,
            _ => match self.place(&names)? {
                Some(place) => &names[place],
                None => return Ok(settings),
            },
        };
        let data_dir = app::home::of(&settings.data_dir, name, names.len() == 1).map_err(Box::<dyn Error>::from)?;
        Ok(Settings { data_dir, ..settings })
    }

    /// Has the vecsync at VECSYNC_URL do it, where that is set and none runs here. `false`: it is to be done here.
    fn has_done_elsewhere(&self, command: &elsewhere::Command) -> Result<bool, Failure> {
        let settings = Settings::read(self.environment)?;
        if !settings.url_is_set {
            return Ok(false);
        }
        let names = folder::names(&settings.pipeline);
        let is_check = matches!(command, elsewhere::Command::Check(flags) if flags.drill.is_none());
        let asked = match (self.named, names.as_slice()) {
            (None, []) => vec![settings],
            (None, [_, _, ..]) if !is_check => return Ok(false), // One has to be named, here as there.
            (named, names) => {
                let wanted = names.iter().map(String::as_str).filter(|_| named.is_none()).chain(named);
                let of = |name: &str| -> Result<Settings, Failure> {
                    let data_dir = app::home::of(&settings.data_dir, name, names.len() < 2);
                    let data_dir = data_dir.map_err(Box::<dyn Error>::from)?;
                    Ok(Settings { data_dir, ..settings.of_pipeline(name)? })
                };
                wanted.map(of).collect::<Result<_, _>>()?
            }
        };
        if !asked.iter().all(|settings| commands::elsewhere::is_meant(settings, command)) {
            return Ok(false);
        }
        let mut found = Ok(true);
        for (place, settings) in asked.iter().enumerate() {
            let heading = if asked.len() > 1 { format!("pipeline {}\n", names[place]) } else { String::new() };
            match self.asks_elsewhere(settings, command, heading) {
                Ok(true) => {}
                Err(Failure::Elsewhere(UNHEALTHY, what)) => found = Err(Failure::Elsewhere(UNHEALTHY, what)),
                other => return other,
            }
        }
        found
    }

    fn asks_elsewhere(
        &self,
        settings: &Settings,
        command: &elsewhere::Command,
        mut heading: String,
    ) -> Result<bool, Failure> {
        start_logging(&settings.log)?;
        // Nobody reading on is no failure.
        let tell = |text: &str| drop(print(&(std::mem::take(&mut heading) + text)));
        let asked = commands::elsewhere::ask(settings, command, tell);
        match run_on_all_cores(async { Ok::<_, Failure>(asked.await) })? {
            Ok(None) => Ok(false),
            Ok(Some(elsewhere::Ended { status, text, error })) => {
                print(&text)?;
                if status == 0 && error.is_none() { Ok(true) } else { Err(Failure::Elsewhere(status, error)) }
            }
            // Who looks for what is wrong wants to know what is wrong here.
            Err(error) if error.is_unreachable() && self.can_check(command) => Ok(false),
            Err(error) if error.is_misuse() => Err(Failure::Elsewhere(MISUSED, Some(Chain(&error).to_string()))),
            Err(error) => Err(Failure::Error(Box::new(error))),
        }
    }

    /// Whether it is a check, and the settings of this machine say of what.
    fn can_check(&self, command: &elsewhere::Command) -> bool {
        matches!(command, elsewhere::Command::Check(_)) && self.configs().is_ok()
    }

    /// The configuration of the pipeline.
    fn config(&self) -> Result<Config, Failure> {
        let mut configs = self.configs()?;
        let place = self.place(&configs.names())?.unwrap_or(configs.default);
        Ok(configs.pipelines.swap_remove(place))
    }

    /// The configurations of all, each with the place of its data.
    fn configs(&self) -> Result<Configs, Failure> {
        let mut configs = Configs::load(self.environment, &[], &check_templates)?;
        app::home::settle(&mut configs).map_err(Box::<dyn Error>::from)?;
        Ok(configs)
    }

    /// Which of these is meant; `None`: there is none.
    fn place(&self, names: &[String]) -> Result<Option<usize>, Failure> {
        let refused = |problem: Problem| Failure::from(Problems::from(problem));
        match self.named {
            Some(name) => match names.iter().position(|known| known == name) {
                Some(place) => Ok(Some(place)),
                None => {
                    let what = format!("there is no such pipeline; there are {}", names.join(", "));
                    Err(refused(Problem::new("--pipeline", what).showing(name)))
                }
            },
            None if names.len() > 1 => {
                let what = format!("is missing: VECSYNC_PIPELINE has several, name one of {}", names.join(", "));
                Err(refused(Problem::new("--pipeline", what)))
            }
            None => Ok((!names.is_empty()).then_some(0)),
        }
    }
}

fn resync(about: &About<'_>, wanted: Sync) -> Result<(), Failure> {
    let Sync { force, dry_run, batch_size, stats_only, json } = wanted;
    let asked = elsewhere::Sync { force, dry_run, batch_size: Some(batch_size), stats_only, json };
    if about.has_done_elsewhere(&elsewhere::Command::Sync(asked))? {
        return Ok(());
    }
    let settings = about.settings()?;
    let wanted = Wanted { force, batch_rows: batch_size };
    let said = to_end(&settings.log, async {
        match (dry_run, stats_only) {
            (true, _) => sync::dry_run(&settings, json).await.map(Some),
            (_, true) => sync::stats(&settings, json).await.map(Some),
            _ => sync::sync(&settings, wanted, json).await,
        }
    })?;
    let Some(said) = said else {
        let config = about.config()?;
        return about.print(&block_on(sync::prepare(config, wanted, json))?);
    };
    about.print(&said.text)?;
    said.failed.map_or(Ok(()), |failed| Err(Failure::Error(Box::new(failed))))
}

fn check(about: &About<'_>, wanted: Check) -> Result<(), Failure> {
    let Check { skip_health, skip_operations, drill, verbose } = wanted;
    let asked = elsewhere::Check { skip_health, skip_operations, drill, verbose };
    if about.has_done_elsewhere(&elsewhere::Command::Check(asked))? {
        return Ok(());
    }
    let drill = drill.map(Duration::from_secs);
    let wanted = commands::check::Wanted { skip_health, skip_operations, drill, verbose };
    let mut configs = about.configs()?;
    let is_one = configs.pipelines.len() == 1;
    if about.named.is_some() || drill.is_some() {
        let place = about.place(&configs.names())?.unwrap_or(configs.default);
        configs.pipelines = vec![configs.pipelines.swap_remove(place)];
    }
    let settings = Settings::read(about.environment)?;
    let log = settings.log.clone();
    let checked = async {
        let mut wrong = 0;
        for config in &configs.pipelines {
            let settings = if is_one { settings.clone() } else { settings.of_pipeline(&config.pipeline.name)? };
            let settings = Settings { data_dir: config.data_dir.clone(), ..settings };
            let named = (!is_one).then_some(config.pipeline.name.as_str());
            // Nobody reading on is no failure.
            let tell = |line: String| drop(print(&of_pipeline(&line, named)));
            if let Some(name) = named {
                tell(format!("pipeline {name}\n"));
            }
            wrong += commands::check::check(config, &settings, wanted, tell).await?;
        }
        Ok::<_, Failure>(wrong)
    };
    start_logging(&log)?;
    let wrong = run_on_all_cores(checked)?;
    commands::check::verdict(wrong).map_or(Ok(()), |what| Err(Failure::Unhealthy(what)))
}

fn init(about: &About<'_>, wanted: Init) -> Result<(), Failure> {
    let Init { health_check_only, validate, stats, recreate, migrate, local_store_path } = wanted;
    let path = local_store_path.as_ref().map(|path| path.display().to_string());
    let asked = elsewhere::Init { health_check_only, validate, stats, recreate, migrate, local_store_path: path };
    if about.has_done_elsewhere(&elsewhere::Command::Init(asked))? {
        return Ok(());
    }
    let config = about.config()?;
    let no_qdrant = || {
        let mut problems = Problems::new();
        problems.push(Problem::new("QDRANT_HOST", commands::init::NO_QDRANT));
        Failure::from(problems)
    };
    if migrate {
        let migrated = to_end(&config.log, commands::migrate::migrate(&config, local_store_path.as_deref()))?;
        return about.print(&migrated.ok_or_else(no_qdrant)?);
    }
    let wanted = commands::init::Wanted { health_check_only, validate, stats, recreate };
    let said = to_end(&config.log, commands::init::init(&config, wanted))?.ok_or_else(no_qdrant)?;
    about.print(&said.text)?;
    said.unhealthy.map_or(Ok(()), |what| Err(Failure::Unhealthy(what)))
}

fn dead_letters(about: &About<'_>, command: DeadLetters) -> Result<(), Failure> {
    let asked = match command.clone() {
        DeadLetters::List { json } => elsewhere::DeadLetters { json, ..Default::default() },
        DeadLetters::Show { id, json } => elsewhere::DeadLetters { show: Some(id), json, ..Default::default() },
        DeadLetters::Retry { ids, all } => elsewhere::DeadLetters { retry: ids, retry_all: all, ..Default::default() },
    };
    if about.has_done_elsewhere(&elsewhere::Command::DeadLetters(asked))? {
        return Ok(());
    }
    let settings = about.settings()?;
    let (request, as_json, lines): (_, _, fn(&Value) -> String) = match command {
        DeadLetters::Retry { ids, all: _ } => {
            let retried = to_end(&settings.log, letters::retry(&settings, ids));
            let is_foreign = |config: Config| config.pipeline.source.topic.is_some();
            if retried.is_err() && about.config().is_ok_and(is_foreign) {
                return Err(Failure::Error(app::foreign::NO_RETRY.into()));
            }
            let (said, failed) = retried?;
            about.print(&said)?;
            return failed.map_or(Ok(()), |failed| Err(Failure::Error(Box::new(failed))));
        }
        DeadLetters::List { json } => (Request::DeadLetters, json, letters::list_lines),
        DeadLetters::Show { id, json } => (Request::DeadLetter { id }, json, letters::letter_lines),
    };
    let answer = match to_end(&settings.log, letters::ask(&settings, request.clone()))? {
        Some(answer) => answer,
        None => {
            let config = about.config()?;
            block_on(letters::read(config, request))?
        }
    };
    print(&if as_json { format!("{answer:#}\n") } else { lines(&answer) })
}

fn check_pipelines(environment: &Environment, paths: &[PathBuf]) -> Result<(), Failure> {
    let mut problems = Problems::new();
    let files = commands::pipeline::files(paths, &mut problems);
    let mut untried = None;
    for (file, result) in folder::read_all(&files, &check_templates) {
        let Some(pipeline) = problems.take(result) else { continue };
        let source = &pipeline.source;
        let good = format!("{}: ok: {} from {}.{}", file.display(), pipeline.name, source.schema, source.table);
        if source.query.is_none() {
            print(&format!("{good}\n"))?;
            continue;
        }
        // Only the database knows what is wrong with SQL.
        match problems.take(vecsync::config::source_database(environment)) {
            Some(Some(database)) => {
                let asked = block_on(commands::pipeline::check_queries(&database, &pipeline));
                let (said, wrong) = match asked {
                    Ok(found) => found,
                    // What is wrong with other files is told all the same.
                    Err(Failure::Error(error)) => {
                        untried.get_or_insert((file.display().to_string(), error));
                        continue;
                    }
                    Err(other) => return Err(other),
                };
                for what in &wrong {
                    problems.push(Problem::new(file.display().to_string(), what.clone()));
                }
                if wrong.is_empty() {
                    print(&format!("{good}, {said}\n"))?;
                }
            }
            Some(None) => print(&format!("{good}; its queries were not tried: DATABASE_URL is not set\n"))?,
            None => {}
        }
    }
    match untried {
        Some((_, error)) if problems.is_empty() => return Err(error.into()),
        Some((file, error)) => {
            problems.push(Problem::new(file, format!("its queries were not tried: {}", Chain(error.as_ref()))))
        }
        None => {}
    }
    Ok(problems.or(Some(()))?)
}

/// What is wrong with a document's templates, each with its path in front (`document.text: …`).
fn check_templates(document: &Document) -> Vec<String> {
    match embed::Document::compile(document) {
        Err(DocumentError::Templates(problems)) => problems,
        Err(other) => vec![other.to_string()],
        Ok(_) => vec![],
    }
}

/// Starts logging and runs a command to its end.
fn to_end<T, E: Error + 'static>(log: &Log, command: impl Future<Output = Result<T, E>>) -> Result<T, Failure> {
    start_logging(log)?;
    block_on(command)
}

/// Once, whatever is done after it.
fn start_logging(log: &Log) -> Result<(), Failure> {
    static STARTED: Once = Once::new();
    let mut started = Ok(());
    STARTED.call_once(|| started = logging::start(log));
    Ok(started.map_err(Box::<dyn Error>::from)?)
}

/// Runs a command on as many threads as there are cores.
fn block_on<T, E: Error + 'static>(command: impl Future<Output = Result<T, E>>) -> Result<T, Failure> {
    run_on_all_cores(async { command.await.map_err(|error| Failure::Error(Box::new(error))) })
}

fn run_on_all_cores<T>(command: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cores)
        .thread_name("vecsync")
        .enable_all()
        .build()
        .map_err(|error| Box::<dyn Error>::from(format!("start threads and timers: {error}")))?;
    let result = runtime.block_on(command);
    // A call that does not come back, of a disk or of a library, does not keep the process from ending.
    runtime.shutdown_timeout(END_PATIENCE);
    result
}

/// A text with commands that work where there are several pipelines, if one of them is named.
fn of_pipeline<'t>(text: &'t str, named: Option<&str>) -> Cow<'t, str> {
    named.map_or(Cow::Borrowed(text), |name| remedy::named(text, name))
}

/// Writes to standard output. Nobody reading on (`| head`) is no failure.
fn print(text: &str) -> Result<(), Failure> {
    let mut output = io::stdout().lock();
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::Error(Box::new(error))),
        _ => Ok(()),
    }
}

/// Writes to standard error, where there may be nobody.
fn complain(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}
