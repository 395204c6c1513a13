//! The real program: started, asked, stopped, killed. Its settings are all that it gets of the environment.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use super::http::{Answer, Http, escape};
use super::process::{cpu_seconds, free_port, memory_kb, signal, wait_for_exit, wait_until};

/// From start to ready, with a cold disk and a busy machine.
pub const READY: Duration = Duration::from_secs(60);
/// Commands, and starts that are refused.
pub const COMMAND: Duration = Duration::from_secs(30);

/// The pipeline of the tests. `id` can be filtered by, so that one row can be asked for.
pub const PIPELINE: &str = r#"name = "faq"
[source]
table = "public.faq_faq"
[document]
title = "{{ question }}"
text = "{{ answer }}"
payload = ["id", "question", "answer", "category", "updated_at"]
when = "is_active"
[index]
filters = ["category", "id"]
"#;

pub struct Vecsync {
    pub port: u16,
    pub http: Http,
    folder: TempDir,
    settings: BTreeMap<String, String>,
    /// `--role`; empty: all.
    roles: String,
    /// What it is started by, such as `prlimit` with its arguments; empty: nothing.
    under: Vec<String>,
    /// The program itself.
    program: PathBuf,
    process: Option<Child>,
    readers: Vec<JoinHandle<()>>,
    log: Arc<Mutex<Vec<u8>>>,
}

/// How a process ended and what it said.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Vecsync {
    /// With a data directory, a port and a pipeline file of its own, but not started.
    pub fn prepare(database_url: &str) -> Self {
        let folder = tempfile::Builder::new().prefix("vecsync-").tempdir().expect("make a folder");
        let port = free_port();
        let log = Arc::default();
        let (settings, readers) = (BTreeMap::new(), vec![]);
        let (http, roles, under) = (Http::new(port), String::new(), vec![]);
        let program = env!("CARGO_BIN_EXE_vecsync").into();
        let mut vecsync = Vecsync { port, http, folder, settings, roles, under, program, process: None, readers, log };
        vecsync.write_pipeline(PIPELINE);
        vecsync.set("DATABASE_URL", database_url);
        vecsync.set("VECSYNC_DATA_DIR", vecsync.path("data"));
        vecsync.set("VECSYNC_PIPELINE", vecsync.path("pipeline.toml"));
        vecsync.set("VECSYNC_LISTEN", format!("127.0.0.1:{port}"));
        vecsync.set("VECSYNC_MODEL_DIR", model_dir().display());
        // Half the time of the other; the same code but for the size of a call.
        vecsync.set("VECSYNC_MODEL", "int8");
        if let Ok(filter) = std::env::var("VECSYNC_TEST_LOG") {
            vecsync.set("VECSYNC_LOG", filter);
        }
        vecsync
    }

    pub fn set(&mut self, name: &str, value: impl std::fmt::Display) {
        self.settings.insert(name.to_owned(), value.to_string());
    }

    /// What it does when it is started, such as `embed` or `capture,embed`.
    pub fn roles(&mut self, roles: &str) {
        roles.clone_into(&mut self.roles);
    }

    /// Starts it by another program, which puts it in its own place, such as `prlimit`; none: as it is.
    pub fn under(&mut self, words: &[&str]) {
        self.under = words.iter().map(|word| (*word).to_owned()).collect();
    }

    /// Takes another build of it than this one.
    pub fn program(&mut self, program: &Path) {
        self.program = program.to_owned();
    }

    pub fn write_pipeline(&self, text: &str) {
        fs::write(self.folder.path().join("pipeline.toml"), text).expect("write the pipeline file");
    }

    /// A path in the folder of this vecsync.
    pub fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    pub fn start(&mut self) {
        assert!(self.process.is_none(), "vecsync runs already");
        let roles = self.roles.clone();
        let arguments: &[&str] = if roles.is_empty() { &["run"] } else { &["run", "--role", &roles] };
        let mut child = self.command(arguments).stdout(Stdio::null()).spawn().expect("start vecsync");
        let stderr = child.stderr.take().expect("it is piped");
        self.readers.push(collect(stderr, Arc::clone(&self.log)));
        self.process = Some(child);
    }

    #[track_caller]
    pub fn start_ready(&mut self) {
        self.start();
        self.wait_ready();
    }

    /// Ready, and with a whole table: until then a search that finds nothing is refused.
    #[track_caller]
    pub fn wait_ready(&mut self) {
        wait_until("vecsync to be ready", READY, || {
            if let Some(status) = self.ended() {
                panic!("vecsync ended with {status}: {}", self.log().lines().last().unwrap_or("it said nothing"));
            }
            let ready = self.http.get("/health/ready/").map_err(|error| error.to_string())?;
            let local =
                &self.http.get("/health/detailed/").map_err(|error| error.to_string())?.json()["components"]["local"];
            if ready.status == 200 && local["details"]["loaded"] == true {
                Ok(())
            } else {
                Err(format!("{} {}, {local}", ready.status, ready.body))
            }
        });
    }

    /// Whether it has ended by itself, and how.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.process.as_mut()?.try_wait().expect("ask for the process")
    }

    /// Waits for it to end by itself.
    #[track_caller]
    pub fn wait_for_exit(&mut self, limit: Duration) -> Ended {
        let status = wait_for_exit(self.process.as_mut().expect("vecsync was started"), limit);
        self.process = None;
        self.join_readers();
        Ended { code: status.code(), stdout: String::new(), stderr: self.log() }
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        let mut child = self.process.take().expect("vecsync was started");
        child.kill().expect("kill vecsync");
        child.wait().expect("wait for vecsync");
        self.join_readers();
    }

    /// SIGTERM, and how it ends.
    #[track_caller]
    pub fn terminate(&mut self) -> Ended {
        self.signal("TERM");
        self.wait_for_exit(COMMAND)
    }

    pub fn signal(&self, name: &str) {
        signal(self.process.as_ref().expect("vecsync was started"), name);
    }

    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("vecsync was started").id()
    }

    /// Memory in use and its peak, in kB.
    pub fn memory_kb(&self) -> (u64, u64) {
        (memory_kb(self.pid(), "VmRSS"), memory_kb(self.pid(), "VmHWM"))
    }

    pub fn cpu_seconds(&self) -> f64 {
        cpu_seconds(self.pid())
    }

    /// Everything it has said on standard error, over all its starts.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&self.log.lock().expect("no reader panics")).into_owned()
    }

    #[track_caller]
    pub fn wait_for_log(&self, text: &str, limit: Duration) {
        wait_until(&format!("the log to say {text:?}"), limit, || {
            if self.log().contains(text) { Ok(()) } else { Err("it does not".to_owned()) }
        });
    }

    /// Another process with the same settings, run to its end.
    #[track_caller]
    pub fn run(&self, arguments: &[&str]) -> Ended {
        self.run_within(arguments, COMMAND)
    }

    /// As `run`, for what takes its time.
    #[track_caller]
    pub fn run_within(&self, arguments: &[&str], limit: Duration) -> Ended {
        let mut child = self.command(arguments).stdout(Stdio::piped()).spawn().expect("start vecsync");
        let (stdout, stderr) = (Arc::default(), Arc::default());
        let readers = [
            collect(child.stdout.take().expect("it is piped"), Arc::clone(&stdout)),
            collect(child.stderr.take().expect("it is piped"), Arc::clone(&stderr)),
        ];
        let status = wait_until(&format!("vecsync {}", arguments.join(" ")), limit, || {
            child.try_wait().expect("ask for the process").ok_or_else(|| {
                let said = stderr.lock().map(|text| String::from_utf8_lossy(&text).into_owned());
                format!("it runs, and says {said:?}")
            })
        });
        readers.into_iter().for_each(|reader| reader.join().expect("a reader does not panic"));
        let text =
            |bytes: Arc<Mutex<Vec<u8>>>| String::from_utf8_lossy(&bytes.lock().expect("no reader panics")).into_owned();
        Ended { code: status.code(), stdout: text(stdout), stderr: text(stderr) }
    }

    /// Another process with the same settings, at work. It reads nothing and is heard by nobody.
    pub fn spawn(&self, arguments: &[&str]) -> Child {
        self.command(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("start vecsync")
    }

    /// Another process with the same settings, not started.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let words: Vec<&OsStr> = self.under.iter().map(OsStr::new).chain([self.program.as_os_str()]).collect();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]);
        // The folder has no `.env`, and no setting of this machine goes along.
        command.args(arguments).current_dir(self.folder.path()).env_clear().envs(&self.settings);
        command.stdin(Stdio::null()).stderr(Stdio::piped());
        command
    }

    #[track_caller]
    pub fn get(&mut self, path: &str) -> Answer {
        self.http.get(path).unwrap_or_else(|error| panic!("GET {path}: {error}"))
    }

    /// A search that must be answered. `more` is the rest of the query string, such as `&limit=1`.
    #[track_caller]
    pub fn search(&mut self, query: &str, more: &str) -> Value {
        let answer = self.get(&format!("/search?q={}{more}", escape(query)));
        assert_eq!(answer.status, 200, "search {query:?}{more}: {}", answer.body);
        answer.json()
    }

    /// The payload of one row, if it is indexed: it is the only one that passes the filter.
    #[track_caller]
    pub fn row(&mut self, id: i64) -> Option<Value> {
        let answer = self.search("anything", &format!("&limit=2&min_score=-1&filter=id:{id}"));
        let results = answer["results"].as_array().expect("results");
        assert!(results.len() <= 1, "row {id} is there more than once: {answer}");
        let row = results.first()?;
        assert_eq!(row["id"], id, "{answer}");
        Some(row["payload"].clone())
    }

    /// As `row`, where a search may not be answered yet.
    pub fn row_if_answered(&mut self, id: i64) -> Option<Value> {
        let answer = self.http.get(&format!("/search?q=anything&min_score=-1&filter=id:{id}")).ok()?;
        if answer.status == 200 { answer.json()["results"].get(0).map(|row| row["payload"].clone()) } else { None }
    }

    /// Points in the local store, if it answers.
    pub fn points(&mut self) -> Option<u64> {
        let answer = self.http.get("/health/detailed/").ok()?;
        answer.json()["components"]["local"]["details"]["points"].as_u64()
    }

    /// A metric of the pipeline: all its lines that carry this part, such as `store="local"`, added up.
    pub fn metric(&mut self, name: &str, part: &str) -> Option<f64> {
        let answer = self.http.get("/metrics").ok()?;
        let lines = answer.body.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let (labels, value) = if rest.starts_with('{') { rest.rsplit_once(' ')? } else { ("", rest.trim()) };
            if !rest.starts_with(['{', ' ']) || !labels.contains(part) {
                return None;
            }
            value.parse::<f64>().ok()
        });
        lines.reduce(|a, b| a + b)
    }

    fn join_readers(&mut self) {
        self.readers.drain(..).for_each(|reader| reader.join().expect("a reader does not panic"));
    }
}

impl Drop for Vecsync {
    fn drop(&mut self) {
        if let Some(mut child) = self.process.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("--- vecsync\n{}", lines[lines.len().saturating_sub(80)..].join("\n"));
        }
    }
}

fn collect(mut from: impl Read + Send + 'static, into: Arc<Mutex<Vec<u8>>>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(read @ 1..) = from.read(&mut buffer) {
            into.lock().expect("no holder panics").write_all(&buffer[..read]).expect("memory takes it");
        }
    })
}

/// The models; `make setup` fetches them.
pub fn model_dir() -> PathBuf {
    let fetched = || Path::new(env!("CARGO_MANIFEST_DIR")).join("models/all-MiniLM-L6-v2");
    let folder = std::env::var_os("VECSYNC_TEST_MODEL_DIR").map_or_else(fetched, PathBuf::from);
    assert!(folder.join("tokenizer.json").is_file(), "no model in {}: run `make setup`", folder.display());
    folder
}
