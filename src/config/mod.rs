//! Settings and pipeline file, parsed once into types that need no further check. All problems are reported at once.
//!
//! **Invariant:** nothing here connects to anything, changes the environment, or puts a secret into a message.

mod conninfo;
mod database;
pub mod environment;
mod fields;
pub mod folder;
mod kafka;
mod keys;
pub mod listing;
mod passfile;
pub mod pipeline;
pub mod problems;
mod qdrant;
mod query;
pub mod settings;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use environment::Environment;
use pipeline::CheckTemplates;
use problems::{Problem, Problems};
use settings::Settings;

/// All that a running vecsync needs to know of one pipeline. Built only by a parser that has checked everything.
#[derive(Clone, Debug)]
pub struct Config {
    /// What this process does; at least one.
    pub roles: Vec<Role>,
    /// The source; none where this process does not capture.
    pub database: Option<Database>,
    /// What to index.
    pub pipeline: Pipeline,
    /// Where this pipeline has its log, mirror and sockets: `root_dir`, or a folder below it.
    pub data_dir: PathBuf,
    /// `VECSYNC_DATA_DIR`: what all pipelines share is here.
    pub root_dir: PathBuf,
    /// The log.
    pub topics: Topics,
    /// The brokers that hold it; none: it is on this machine.
    pub kafka: Option<Kafka>,
    /// The primary store; none: the local store alone.
    pub qdrant: Option<Qdrant>,
    /// The model.
    pub model: Model,
    /// The query server.
    pub server: Server,
    /// What is logged, and how.
    pub log: Log,
}

/// What a process does. Without a broker they all live in one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Role {
    /// PostgreSQL into `changes`.
    Capture,
    /// `changes` into `vectors`.
    Embed,
    /// `vectors` into the stores.
    Index,
    /// Answers searches.
    Serve,
}

/// The configurations of all pipelines of a process. What is not the pipeline's own is the same in each.
#[derive(Clone, Debug)]
pub struct Configs {
    /// At least one, in the order of their files.
    pub pipelines: Vec<Config>,
    /// The place of the one that is meant where none is named.
    pub default: usize,
}

impl Configs {
    /// Reads all that `run` needs. `roles` are those asked for, none meaning all; `check_templates` says what is
    /// wrong with a document's templates.
    pub fn load(
        environment: &Environment,
        roles: &[Role],
        check_templates: CheckTemplates<'_>,
    ) -> Result<Configs, Problems> {
        let mut problems = Problems::new();
        let database = problems.take(database::read(environment));
        let settings = problems.take(Settings::read(environment));
        // With settings that cannot be read the files are still looked at: they have problems of their own to tell.
        let path =
            settings.as_ref().map_or_else(|| settings::pipeline_path(environment), |given| given.pipeline.clone());
        let set = problems.take(folder::read_set(&path, check_templates));
        // What is said of roles is said once, also where the files could not be read.
        let pipelines: Vec<Option<&Pipeline>> = match &set {
            Some(set) => set.pipelines.iter().map(|(_, pipeline)| Some(pipeline)).collect(),
            None => vec![None],
        };
        check_roles(environment, roles, &pipelines, database.as_ref(), &mut problems);
        if let (Some(set), Some(server)) = (&set, settings.as_ref().and_then(|settings| settings.qdrant.as_ref())) {
            problems.take::<()>(folder::same_collection(set, &server.collection).or(Some(())));
        }
        let configs = match (settings, database, set) {
            (Some(settings), Some(database), Some(folder::Set { pipelines, default })) => {
                let one = |(_, pipeline)| Config::of(&settings, database.clone(), roles, pipeline);
                Some(Configs { pipelines: pipelines.into_iter().map(one).collect(), default })
            }
            _ => None,
        };
        problems.or(configs)
    }

    /// Their names, in the order of their files.
    pub fn names(&self) -> Vec<String> {
        self.pipelines.iter().map(|config| config.pipeline.name.clone()).collect()
    }
}

const ALL_ROLES: [Role; 4] = [Role::Capture, Role::Embed, Role::Index, Role::Serve];

impl Config {
    fn of(settings: &Settings, database: Option<Database>, asked: &[Role], pipeline: Pipeline) -> Config {
        let Settings { data_dir, topics, kafka, mut qdrant, model, server, log, .. } = settings.clone();
        if let (Some(qdrant), Some(collection)) = (&mut qdrant, &pipeline.collection) {
            qdrant.collection.clone_from(collection);
        }
        let roles = roles_of(asked, Some(&pipeline));
        let root_dir = data_dir.clone();
        Config { roles, database, pipeline, data_dir, root_dir, topics, kafka, qdrant, model, server, log }
    }
}

/// What a process does for a pipeline: what is asked for, and unasked all that there is to do.
fn roles_of(asked: &[Role], pipeline: Option<&Pipeline>) -> Vec<Role> {
    let has_topic = pipeline.is_some_and(|pipeline| pipeline.source.topic.is_some());
    let does = |role: &Role| match asked {
        [] => *role != Role::Capture || !has_topic,
        asked => asked.contains(role),
    };
    ALL_ROLES.into_iter().filter(does).collect()
}

fn topic_of<'a>(pipeline: &Option<&'a Pipeline>) -> Option<&'a String> {
    pipeline.and_then(|pipeline| pipeline.source.topic.as_ref())
}

/// What the roles need that is not set.
fn check_roles(
    environment: &Environment,
    asked: &[Role],
    pipelines: &[Option<&Pipeline>],
    database: Option<&Option<Database>>,
    problems: &mut Problems,
) {
    let has_brokers = settings::given(environment, kafka::BROKERS).is_some();
    let captures = |pipeline: &Option<&Pipeline>| roles_of(asked, *pipeline).contains(&Role::Capture);
    for pipeline in pipelines {
        if let (Some(topic), true) = (topic_of(pipeline), captures(pipeline)) {
            let which = match pipeline {
                Some(pipeline) if pipelines.len() > 1 => format!("the pipeline {}", pipeline.name),
                _ => "this pipeline".to_owned(),
            };
            let what = format!("capture is not for {which}: its source.topic is {topic}, which Debezium fills");
            problems.push(Problem::new("--role", what));
        }
    }
    if pipelines.iter().any(|pipeline| topic_of(pipeline).is_some()) && !has_brokers {
        let what = "is not set: source.topic of the pipeline file is a topic of Kafka";
        problems.push(Problem::new(kafka::BROKERS, what));
    }
    let own: Vec<_> = pipelines.iter().filter(|pipeline| topic_of(pipeline).is_none()).collect();
    if matches!(database, Some(None)) && own.iter().any(|pipeline| captures(pipeline)) {
        let what = "is not set; wanted postgresql://user:password@host:port/database";
        problems.push(Problem::new(database::DATABASE_URL, what));
    }
    if !own.is_empty() && !asked.is_empty() && roles_of(asked, None).len() < ALL_ROLES.len() && !has_brokers {
        let what = "the embedded log serves one process, which has all four: leave it out, or set KAFKA_BROKERS";
        problems.push(Problem::new("--role", what));
    }
}

/// The source that `DATABASE_URL` names, if it is set.
pub fn source_database(environment: &Environment) -> Result<Option<Database>, Problems> {
    database::read(environment)
}

/// `VECSYNC_LOG*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// A `tracing` filter that has been parsed once.
    pub filter: String,
    /// How an event is written.
    pub format: LogFormat,
}

/// `VECSYNC_LOG_FORMAT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One line for people.
    Pretty,
    /// One JSON object on a line.
    Json,
}

/// How to reach PostgreSQL.
#[derive(Clone, Debug)]
pub struct Database {
    /// Host, port, user, password, database. Its own ssl mode is not used.
    pub postgres: tokio_postgres::Config,
    /// libpq's `sslmode`.
    pub ssl_mode: SslMode,
    /// libpq's `sslrootcert`.
    pub ssl_root: SslRoot,
}

/// libpq's `sslmode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SslMode {
    /// Never TLS.
    Disable,
    /// TLS where the server has it.
    Prefer,
    /// TLS, any certificate (the root's, if one is given, as libpq does).
    Require,
    /// TLS, a certificate of a known root.
    VerifyCa,
    /// TLS, a certificate of a known root with the host's name.
    VerifyFull,
}

/// Which roots a certificate is checked against.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SslRoot {
    /// None was named and there is no `~/.postgresql/root.crt`.
    None,
    /// The certificates of this file.
    File(PathBuf),
    /// The operating system's.
    System,
}

/// One pipeline file.
#[derive(Clone, Debug, PartialEq)]
pub struct Pipeline {
    /// Name: lower-case letters, digits and underscores.
    pub name: String,
    /// Whether it is marked as the one that is meant where several are there and none is named.
    pub is_default: bool,
    /// Where rows come from.
    pub source: Source,
    /// What is embedded and returned.
    pub document: Document,
    /// Fields of the payload that searches may filter by.
    pub filters: Vec<String>,
    /// The alias in Qdrant; `None`: the one of `QDRANT_COLLECTION_NAME`.
    pub collection: Option<String>,
}

/// `[source]` of a pipeline file.
#[derive(Clone, Debug, PartialEq)]
pub struct Source {
    /// Schema, as in the catalog.
    pub schema: String,
    /// Table, as in the catalog.
    pub table: String,
    /// Publication.
    pub publication: String,
    /// Replication slot.
    pub slot: String,
    /// A topic that Debezium writes, to be read instead of capturing.
    pub topic: Option<String>,
    /// What a document is, where it is not a row of the table.
    pub query: Option<Query>,
}

/// `source.query` and what it takes: documents out of several tables.
#[derive(Clone, Debug, PartialEq)]
pub struct Query {
    /// Gives the documents of the table's keys in `$1`, an array; of a composite key `$1`, `$2` and so on.
    pub sql: String,
    /// Other tables that documents are made of.
    pub watch: Vec<Watch>,
}

/// One `[[source.watch]]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Watch {
    /// Schema, as in the catalog.
    pub schema: String,
    /// Table, as in the catalog.
    pub table: String,
    /// The columns whose values `affects` is given; none: the primary key's.
    pub keys: Option<Vec<String>>,
    /// Gives the keys of the documents that rows with these values are part of.
    pub affects: String,
}

/// `[document]` of a pipeline file.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    /// Template of the title.
    pub title: Option<String>,
    /// Template of the text.
    pub text: String,
    /// Columns in the payload, in order.
    pub payload: Vec<String>,
    /// Expression; false removes the row from the index.
    pub when: Option<String>,
    /// Share of the title's own vector in each point, 0 to 1.
    pub title_weight: f32,
    /// Length of a window in the model's tokens, the two special ones included; 16 to 512.
    pub window_tokens: usize,
    /// Tokens that neighbouring windows share; less than half of `window_tokens`.
    pub overlap_tokens: usize,
}

/// `VECSYNC_TOPIC_*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topics {
    /// Prefix of the topics' names.
    pub prefix: String,
    /// Partitions of a topic when it is made.
    pub partitions: u16,
    /// Brokers that hold each partition of a topic when it is made.
    pub replication: u16,
}

/// `KAFKA_*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kafka {
    /// Bootstrap servers, `host:port`, separated by commas.
    pub brokers: String,
    /// librdkafka's own properties of security, with their values.
    pub security: Vec<(&'static str, Secret)>,
}

/// `QDRANT_*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Qdrant {
    /// Its host as it stands in a URL.
    pub host: String,
    /// The port of REST.
    pub port: u16,
    /// The port of gRPC.
    pub grpc_port: u16,
    /// The key that it asks for.
    pub api_key: Option<Secret>,
    /// Whether both are reached by TLS.
    pub tls: bool,
    /// The alias that searches ask; the collections behind it are generations.
    pub collection: String,
    /// How long a write may take.
    pub timeout: Duration,
}

impl Qdrant {
    /// Where its gRPC is.
    pub fn url(&self) -> String {
        self.url_of(self.grpc_port)
    }

    /// Where its REST is.
    pub fn rest_url(&self) -> String {
        self.url_of(self.port)
    }

    fn url_of(&self, port: u16) -> String {
        format!("{}://{}:{port}", if self.tls { "https" } else { "http" }, self.host)
    }
}

/// `VECSYNC_MODEL*` and `ORT_DYLIB_PATH`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    /// Which of the two; `None`: the preferred one of those that are in the folder.
    pub precision: Option<Precision>,
    /// Folder with `model.onnx` (or `model_int8.onnx`) and `tokenizer.json`.
    pub dir: PathBuf,
    /// ONNX Runtime's shared library; `None`: the one beside the model.
    pub runtime: Option<PathBuf>,
}

/// The model's arithmetic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// 32-bit floating point.
    Fp32,
    /// Dynamically quantised to 8-bit integers.
    Int8,
}

/// The query server.
#[derive(Clone, Debug)]
pub struct Server {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Keys that are let in, and what each may; none: everyone.
    pub api_keys: ApiKeys,
    /// Certificate chain and key, PEM files.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// A search's limit.
    pub search_deadline: Duration,
    /// How long Qdrant is waited for before the mirror is asked, too.
    pub hedge_delay: Duration,
}

/// The keys of the query server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ApiKeys {
    /// May search, look and command.
    pub commanding: Vec<Secret>,
    /// May search and look: those with `search:` in front.
    pub searching: Vec<Secret>,
}

impl ApiKeys {
    /// Whether everyone is let in.
    pub fn is_empty(&self) -> bool {
        self.commanding.is_empty() && self.searching.is_empty()
    }

    /// What a search is asked for with: the key that may least.
    pub fn to_search(&self) -> Option<&Secret> {
        self.searching.first().or(self.commanding.first())
    }

    /// What a command is asked for with. One that may only search is better than none: the answer then says what is missing.
    pub fn to_command(&self) -> Option<&Secret> {
        self.commanding.first().or(self.searching.first())
    }
}

/// A value that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a value.
    pub fn new(value: String) -> Self {
        Secret(value)
    }

    /// The value itself, for comparing or sending.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}
