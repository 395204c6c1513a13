//! Settings and pipeline files through the real program: everything wrong at once, exit 2, nothing connected to, no secret.

use std::fs::File;
use std::io::ErrorKind;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

const CANARY: &str = "canary-5f3a9c1e77b2";

/// The program in a folder of its own, with nothing in its environment but what a test puts there.
struct Program {
    folder: TempDir,
    variables: Vec<(String, String)>,
}

impl Program {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("temporary folder");
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines/faq.toml");
        std::fs::create_dir(folder.path().join("pipelines")).expect("made");
        std::fs::copy(shipped, folder.path().join("pipelines/faq.toml")).expect("copied");
        Program { folder, variables: Vec::new() }
    }

    fn with(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.into(), value.into()));
        self
    }

    fn file(self, name: &str, text: &str) -> Self {
        std::fs::write(self.folder.path().join(name), text).expect("written");
        self
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vecsync"));
        command.args(words).current_dir(self.folder.path()).env_clear();
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command
    }

    fn run(&self, words: &[&str]) -> Outcome {
        Outcome::from(self.command(words).output().expect("the program starts"))
    }

    /// For settings that are good: until the program ends, or has said why it lost its first connection to
    /// `database`, which hangs up on it.
    fn run_until_it_connects_again(&self, words: &[&str], database: &TcpListener) -> Outcome {
        let (errors, output) = (self.folder.path().join("errors"), self.folder.path().join("output"));
        let mut child = self
            .command(words)
            .stdin(Stdio::null())
            .stdout(File::create(&output).expect("made"))
            .stderr(File::create(&errors).expect("made"))
            .spawn()
            .expect("the program starts");
        let deadline = Instant::now() + Duration::from_secs(30);
        let mut connections = 0;
        let status = loop {
            if let Some(status) = child.try_wait().expect("waited") {
                break status.code();
            }
            connections += usize::from(database.accept().is_ok());
            if connections >= 2 || Instant::now() >= deadline {
                child.kill().expect("killed");
                child.wait().expect("waited");
                break None;
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let text = |path: &Path| std::fs::read_to_string(path).expect("UTF-8");
        Outcome { status, output: text(&output), errors: text(&errors) }
    }
}

struct Outcome {
    status: Option<i32>,
    output: String,
    errors: String,
}

impl From<Output> for Outcome {
    fn from(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
        Outcome { status: output.status.code(), output: text(output.stdout), errors: text(output.stderr) }
    }
}

impl Outcome {
    /// Exit 2, nothing on standard output, one line for each of these problems and no more.
    fn refused(&self, wanted: &[&str]) {
        assert_eq!(self.status, Some(2), "{}", self.errors);
        assert_eq!(self.output, "");
        for want in wanted {
            assert!(self.errors.contains(want), "{want:?} is not in:\n{}", self.errors);
        }
        let said = self.errors.lines().count() - 1;
        assert_eq!(said, wanted.len(), "{}", self.errors);
        assert!(self.errors.starts_with(&format!("vecsync: {said} problem")), "{}", self.errors);
    }

    /// The line of `vecsync config` about one setting: value and origin.
    fn row(&self, name: &str) -> (&str, &str) {
        let line = self.output.lines().find(|line| line.split_whitespace().next() == Some(name));
        let (value, origin) = line.expect("listed")[name.len()..].trim().split_once("  ").expect("two columns");
        (value.trim(), origin.trim())
    }
}

#[test]
fn every_problem_of_every_source_is_listed_at_once_and_nothing_is_connected_to() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.set_nonblocking(true).expect("set");
    let server = listener.local_addr().expect("bound");
    let program = Program::new()
        .with("DATABASE_URL", &format!("postgres://u:p@{server}/d?sslmode=allow&sslmod=x"))
        .with("VECSYNC_LISTEN", "everywhere")
        .with("VECSYNC_LISTN", "127.0.0.1:1")
        .with("VECSYNC_TLS_CERT", "cert.pem")
        .with("VECSYNC_SEARCH_DEADLINE_MS", "40")
        .with("VECSYNC_HEDGE_DELAY_MS", "50")
        .with("VECSYNC_URL", &format!("http://{server}"))
        .with("QDRANT_HOST", &server.to_string())
        .file(".env", "VECSYNC_MODEL=fp16\nVECSYNC_LISTEN=127.0.0.1:1\nno equals sign\nVECSYNC_API_KEYS=short\n")
        .file("pipelines/faq.toml", "name = 'Faq'\n[source]\ntopic = 't'\n[document]\nwindow_tokens = 8\n");
    program.run(&["run", "--role", "capture,serve"]).refused(&[
        "--role: the embedded log serves one process",
        "DATABASE_URL (environment) sslmode: allow is not supported",
        "DATABASE_URL (environment) sslmod: is no connection parameter of PostgreSQL; did you mean sslmode?",
        "VECSYNC_LISTEN (environment) = \"everywhere\": wanted an IP address (or localhost) and a port",
        "VECSYNC_LISTN (environment): unknown setting; did you mean VECSYNC_LISTEN?",
        "VECSYNC_TLS_KEY: is missing",
        "VECSYNC_HEDGE_DELAY_MS (environment) = \"50\": wanted less than",
        "wanted a host's name or an IP address, without scheme and port",
        "VECSYNC_MODEL (.env line 1) = \"fp16\": wanted fp32 or int8",
        ".env line 3: is not NAME=value",
        "VECSYNC_API_KEYS (.env line 4): key 1 is too short",
        "pipelines/faq.toml:1: name = 'Faq': wanted",
        "pipelines/faq.toml: source.table: is missing",
        "pipelines/faq.toml: document.text: is missing",
        "pipelines/faq.toml: document.payload: is missing",
        "pipelines/faq.toml:5: document.window_tokens = 8: wanted a whole number from 16 to 512",
    ]);
    for command in [&["search", "x"][..], &["status"], &["sync"]] {
        assert_eq!(program.run(command).status, Some(2), "{command:?}");
    }
    let none = listener.accept().expect_err("nobody connects");
    assert_eq!(none.kind(), ErrorKind::WouldBlock);
}

#[test]
fn run_without_a_database_or_a_pipeline_says_so() {
    let program = Program::new().with("VECSYNC_PIPELINE", "elsewhere.toml");
    program
        .run(&["run"])
        .refused(&["DATABASE_URL: is not set", "VECSYNC_PIPELINE elsewhere.toml: there is no such file"]);
}

#[test]
fn what_two_pipelines_of_a_folder_share_is_refused_with_all_else() {
    let one = |name: &str, more: &str| {
        format!("name = '{name}'\n{more}\n[source]\ntable = 't'\n[document]\ntext = 'x'\npayload = []\n")
    };
    let program = Program::new()
        .with("VECSYNC_PIPELINE", "pipelines")
        .with("QDRANT_HOST", "nowhere.example")
        .file("pipelines/a.toml", &one("faq", "default = true"))
        .file("pipelines/b.toml", &one("other", "default = 1"));
    // What stands in the files first; what concerns Qdrant when they can be read.
    program.run(&["run"]).refused(&[
        "DATABASE_URL: is not set",
        "pipelines/b.toml:2: default = 1: wanted true or false",
        "pipelines/faq.toml: name = \"faq\": pipelines/a.toml has the same name",
        "pipelines/faq.toml: source.slot = \"vecsync_faq\": pipelines/a.toml uses the same slot",
    ]);
    let program = program.file("pipelines/a.toml", &one("second", "")).file("pipelines/b.toml", &one("third", ""));
    program.run(&["run"]).refused(&[
        "DATABASE_URL: is not set",
        "pipelines/b.toml: index.collection = \"faq_embeddings\": pipelines/a.toml has the collection faq_embeddings (QDRANT",
        "pipelines/faq.toml: index.collection = \"faq_embeddings\": pipelines/a.toml has the collection",
        "pipelines/faq.toml: index.collection = \"faq_embeddings\": pipelines/b.toml has the collection",
    ]);
}

#[test]
fn a_topic_of_debeziums_needs_brokers_and_nobody_who_captures() {
    let source = "[source]\ntopic = 'site.public.faq_faq'\n";
    let rest = "[document]\ntext = '{{ answer }}'\npayload = ['answer']\n";
    let program = Program::new().file("pipelines/faq.toml", &format!("name = 'faq'\n{source}{rest}"));
    program.run(&["run"]).refused(&["KAFKA_BROKERS: is not set: source.topic"]);
    program.run(&["run", "--role", "capture,embed"]).refused(&[
        "KAFKA_BROKERS: is not set: source.topic",
        "--role: capture is not for this pipeline: its source.topic is site.public.faq_faq",
    ]);
}

#[test]
fn bad_usage_exits_with_2_and_help_with_0() {
    let program = Program::new();
    for words in [&["serve"][..], &["search"], &["sync", "--force"], &["run", "--role", "cook"], &[]] {
        assert_eq!(program.run(words).status, Some(2), "{words:?}");
    }
    let version = program.run(&["--version"]);
    assert_eq!((version.status, version.output), (Some(0), format!("vecsync {}\n", env!("CARGO_PKG_VERSION"))));
}

#[test]
fn a_secret_in_any_setting_is_never_printed() {
    // What each setting may hold that is nobody's business; the others hold it as a URL in the wrong place.
    let database = TcpListener::bind("127.0.0.1:0").expect("a port");
    database.set_nonblocking(true).expect("set");
    let url = format!("postgres://user:{CANARY}@{}/db?sslmode=disable", database.local_addr().expect("bound"));
    let program = Program::new()
        .file("keys", &format!("{CANARY}\n"))
        .file(".env", &format!("{CANARY}\n'{CANARY}\nOTHER={CANARY}\n"));
    let names: Vec<String> = {
        let listed = program.run(&["config"]).output;
        listed.lines().filter_map(|line| line.split_whitespace().next().map(str::to_owned)).collect()
    };
    assert!(names.len() > 30, "{names:?}");
    let secret = |name: &str| {
        ["API_KEY", "PASSWORD", "USERNAME", "TLS_", "_KEYS_FILE"].iter().any(|part| name.contains(part))
            && !name.ends_with("QDRANT_TLS")
    };
    let mut trials: Vec<(String, String)> = Vec::new();
    for name in names {
        let value = if secret(&name) { CANARY.to_owned() } else { url.clone() };
        trials.push((name, value));
    }
    let canary = CANARY.to_owned();
    for broken in [
        "postgres://u:{}@h:port/d",
        "postgres://u:a/{}@h/d",
        "postgres://u:a@{}@h/d",
        "postgres://u:%{}@h/d",
        "mysql://u:{}@h/d?a=b",
        "password={} host=h x",
        "password='{}",
        "{}",
        "host=h user=u sslmode={} options={} sslpassword={} unknown={} connect_timeout={} passfile={}",
    ] {
        trials.push(("DATABASE_URL".into(), broken.replace("{}", CANARY)));
    }
    trials.push(("VECSYNC_API_KEYS".into(), format!("{CANARY},x")));
    trials.push(("VECSYNC_URL".into(), format!("http://h/?key={CANARY}")));
    trials.push(("VECSYNC_SECRET".into(), canary.clone()));
    trials.push(("KAFKA_SASL_JAAS_CONFIG".into(), canary.clone()));
    trials.push(("PGPASSWORD".into(), canary.clone()));
    trials.push(("PGSSLMODE".into(), canary.clone()));

    let check = |program: &Program, what: &str| {
        for words in [&["config"][..], &["run"], &["search", "x"], &["status"], &["sync"]] {
            let outcome = program.run_until_it_connects_again(words, &database);
            let said = format!("{}{}", outcome.output, outcome.errors);
            assert!(!said.contains(CANARY), "{what}, {words:?}:\n{said}");
            assert!(!said.contains("panicked"), "{what}, {words:?}:\n{said}");
        }
    };
    check(&program, ".env");
    let base = [("VECSYNC_LOG", "trace"), ("VECSYNC_LISTEN", "127.0.0.1:0"), ("VECSYNC_URL", "http://127.0.0.1:1")];
    let with_base = |program: Program| base.iter().fold(program, |program, (name, value)| program.with(name, value));
    let mut program = with_base(program.file(".env", ""));
    for (name, value) in &trials {
        program.variables.truncate(base.len());
        program.variables.push((name.clone(), value.clone()));
        check(&program, &format!("{name}={value}"));
    }
    // All at once, and settings that are good with the secret in them, logged at `trace`.
    program.variables = trials.clone();
    check(&program, "all");
    let good = with_base(Program::new())
        .file("keys", &format!("{CANARY}\n"))
        .with("DATABASE_URL", &url)
        .with("VECSYNC_API_KEYS", CANARY)
        .with("VECSYNC_API_KEYS_FILE", "keys");
    check(&good, "good");
}

#[test]
fn config_shows_every_setting_with_its_origin() {
    let program = Program::new()
        .with("DATABASE_URL", "postgres://app:secret@db:5433/site?sslmode=require")
        .with("VECSYNC_LISTEN", "0.0.0.0:9000")
        .with("VECSYNC_HEDGE_DELAY_MS", "60")
        .with("VECSYNC_LOG", "")
        .file(".env", "# comment\nVECSYNC_LISTEN=127.0.0.1:1\nexport VECSYNC_MODEL='int8'\n");
    let outcome = program.run(&["config"]);
    assert_eq!((outcome.status, outcome.errors.as_str()), (Some(0), ""));
    for (name, value, origin) in [
        ("DATABASE_URL", "postgresql://app:***@db:5433/site?sslmode=require", "environment"),
        ("VECSYNC_LISTEN", "0.0.0.0:9000", "environment"),
        ("VECSYNC_URL", "http://127.0.0.1:9000/", "default"),
        ("VECSYNC_MODEL", "int8", ".env line 3"),
        ("VECSYNC_HEDGE_DELAY_MS", "60", "environment"),
        ("VECSYNC_LOG", "info", "default"),
        ("VECSYNC_DATA_DIR", "data", "default"),
        ("VECSYNC_API_KEYS", "-", "not set"),
    ] {
        assert_eq!(outcome.row(name), (value, origin), "{name}");
    }
}

#[test]
fn config_lists_the_settings_even_when_some_are_bad() {
    let outcome = Program::new().with("VECSYNC_LISTEN", "x").run(&["config"]);
    assert_eq!(outcome.status, Some(2));
    assert_eq!(outcome.row("VECSYNC_LISTEN"), ("x", "environment"));
    assert!(outcome.errors.contains("VECSYNC_LISTEN (environment) = \"x\": wanted"), "{}", outcome.errors);
}

#[test]
fn pipeline_check_names_what_is_good_and_what_is_not() {
    let program = Program::new().file("bad.toml", "name = \"bad\"\nx = [\n").file("empty.toml", "");
    let good = program.run(&["pipeline", "check", "pipelines/faq.toml"]);
    assert_eq!((good.status, good.errors.as_str()), (Some(0), ""));
    assert_eq!(good.output, "pipelines/faq.toml: ok: faq from public.faq_faq\n");

    let mixed = program.run(&["pipeline", "check", "bad.toml", "pipelines/faq.toml", "empty.toml", "none.toml"]);
    assert_eq!(mixed.status, Some(2));
    assert_eq!(mixed.output, "pipelines/faq.toml: ok: faq from public.faq_faq\n");
    for wanted in [
        "bad.toml:2:6: not TOML",
        "empty.toml: name: is missing",
        "empty.toml: source.table: is missing",
        "empty.toml: document.text: is missing",
        "empty.toml: document.payload: is missing",
        "none.toml: cannot be read",
    ] {
        assert!(mixed.errors.contains(wanted), "{wanted:?} is not in:\n{}", mixed.errors);
    }
}

#[test]
fn a_dot_env_that_cannot_be_read_is_a_problem() {
    let program = Program::new();
    std::fs::create_dir(program.folder.path().join(".env")).expect("made");
    program.run(&["search", "x"]).refused(&[".env: cannot be read: "]);
}
