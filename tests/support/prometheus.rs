//! A private Prometheus for one test: it scrapes what it is told to, by rules whose durations are scaled, and is asked.

use std::collections::BTreeSet;
use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::http::{Http, escape};
use super::process::{free_port, wait_until};

const START: Duration = Duration::from_secs(30);

pub struct Prometheus {
    folder: TempDir,
    http: Http,
    server: Child,
}

impl Prometheus {
    /// Knows these rules, and nobody to scrape yet.
    pub fn start(rules: &str) -> Prometheus {
        let folder = tempfile::Builder::new().prefix("vecsync-prometheus-").tempdir().expect("make a folder");
        let port = free_port();
        // Both intervals are those of dashboards/prometheus/prometheus.yml by the factor of the rules, or shorter.
        let config = "global: { scrape_interval: 250ms, scrape_timeout: 250ms, evaluation_interval: 250ms }\n\
                      rule_files: [rules.yml]\n\
                      scrape_configs:\n- job_name: vecsync\n  file_sd_configs: [ { files: [targets.json] } ]\n";
        for (name, text) in [("prometheus.yml", config), ("rules.yml", rules), ("targets.json", "[]")] {
            fs::write(folder.path().join(name), text).expect("write a file");
        }
        let binary =
            std::env::var_os("VECSYNC_TEST_PROMETHEUS").expect("VECSYNC_TEST_PROMETHEUS is not set: use `make test`");
        let log = fs::File::create(folder.path().join("log")).expect("make its log");
        let mut command = Command::new(binary);
        command.args(["--config.file=prometheus.yml", "--storage.tsdb.path=data", "--log.level=warn"]);
        command.arg(format!("--web.listen-address=127.0.0.1:{port}")).current_dir(folder.path());
        let server = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().expect("start Prometheus");
        let mut prometheus = Prometheus { folder, http: Http::new(port), server };
        wait_until("Prometheus to be ready", START, || {
            if let Some(status) = prometheus.server.try_wait().expect("ask for the process") {
                let log = fs::read_to_string(prometheus.folder.path().join("log")).unwrap_or_default();
                panic!("Prometheus ended with {status}: {log}");
            }
            match prometheus.http.get("/-/ready") {
                Ok(answer) if answer.status == 200 => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
        prometheus
    }

    /// Whom it scrapes from now on, by their ports.
    pub fn scrape(&self, ports: &[u16]) {
        let targets: Vec<String> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        // In one step: it notices changes of the file by itself.
        let written = self.folder.path().join("targets.new");
        fs::write(&written, json!([{"targets": targets}]).to_string()).expect("write the targets");
        fs::rename(written, self.folder.path().join("targets.json")).expect("replace the targets");
    }

    /// The samples of a query now, each with its labels and its value; why not, where it is no query.
    pub fn query(&mut self, query: &str) -> Result<Vec<(Value, f64)>, String> {
        let answer =
            self.http.get(&format!("/api/v1/query?query={}", escape(query))).map_err(|error| error.to_string())?;
        let answer = answer.json();
        let samples = answer["data"]["result"].as_array().ok_or_else(|| answer.to_string())?;
        let number = |sample: &Value| sample["value"][1].as_str().and_then(|value| value.parse().ok());
        let read = |sample: &Value| number(sample).map(|value| (sample["metric"].clone(), value));
        samples.iter().map(read).collect::<Option<_>>().ok_or_else(|| answer.to_string())
    }

    /// The alerts that are pending or fire now.
    pub fn alerts(&mut self) -> BTreeSet<String> {
        self.names("ALERTS")
    }

    /// The alerts that fire now.
    pub fn firing(&mut self) -> BTreeSet<String> {
        self.names("ALERTS{alertstate=\"firing\"}")
    }

    /// The alerts that have fired at some time.
    pub fn fired(&mut self) -> BTreeSet<String> {
        self.names("count_over_time(ALERTS{alertstate=\"firing\"}[1h])")
    }

    fn names(&mut self, query: &str) -> BTreeSet<String> {
        let samples = self.query(query).expect("a query");
        samples.iter().filter_map(|(labels, _)| labels["alertname"].as_str().map(str::to_owned)).collect()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// Rules with every duration divided: what an alert waits for, the ranges and the offsets of its expression. Nothing else.
pub fn scaled(rules: &str, by: u32) -> String {
    let mut scaled = String::new();
    let mut rest = rules;
    while let Some((place, begin)) =
        ["for: ", "[", "offset "].iter().filter_map(|begin| rest.find(begin).map(|place| (place, begin))).min()
    {
        let (before, behind) = rest.split_at(place + begin.len());
        scaled += before;
        let digits = behind.find(|c: char| !c.is_ascii_digit()).unwrap_or(behind.len());
        let unit_ms = match behind[digits..].chars().next() {
            Some('s') => 1_000,
            Some('m') => 60_000,
            Some('h') => 3_600_000,
            _ => 0,
        };
        rest = behind;
        if let (Ok(number), 1..) = (behind[..digits].parse::<u32>(), unit_ms) {
            scaled += &format!("{}ms", number * unit_ms / by);
            rest = &behind[digits + 1..];
        }
    }
    scaled + rest
}
