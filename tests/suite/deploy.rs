//! What the image, the compose file, the service and the environment's example say is what the program and the repository have.
//! Nothing is built and no container runs: files are read, and the program is asked.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// Services that programs outside of the machine's containers may reach, from this machine alone.
const PUBLISHED: &[&str] = &["vecsync", "app", "grafana"];
/// Services that are in no internal network alone without being published: they have to get out.
const REACHES_OUT: &[&str] = &["alertmanager"];
/// Where a container finds the key that searchers and Prometheus send.
const KEY_FILE: &str = "/run/secrets/vecsync_api_key";
/// What a setting of libpq's does that the program reads as well.
const OF_LIBPQ: &[&str] = &["PGPASSWORD", "PGSSLROOTCERT"];

pub(crate) fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("read {path}: {error}"))
}

/// Runs a line of Python with the libraries that `make setup` fetches.
pub(crate) fn python(program: &str, arguments: &[&str]) -> String {
    let libraries = std::env::var("VECSYNC_TEST_SCHEMATHESIS").expect("VECSYNC_TEST_SCHEMATHESIS is set: `make setup`");
    let ended = Command::new("python3").args(["-c", program]).args(arguments).env("PYTHONPATH", libraries).output();
    let ended = ended.expect("start python3");
    assert!(ended.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&ended.stderr));
    String::from_utf8(ended.stdout).unwrap()
}

pub fn yaml(path: &str) -> Value {
    let program = "import json, sys, yaml; json.dump(yaml.safe_load(open(sys.argv[1])), sys.stdout)";
    serde_json::from_str(&python(program, &[path])).unwrap()
}

pub(crate) fn compose() -> Value {
    yaml("docker-compose.yml")
}

pub(crate) fn texts(value: &Value) -> Vec<String> {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    match value {
        Value::Null => vec![],
        Value::Array(list) => list.iter().map(text).collect(),
        one => vec![text(one)],
    }
}

/// Names and values of an environment, as a map has them.
fn environment(of: &Value) -> BTreeMap<String, String> {
    of.as_object().into_iter().flatten().map(|(name, value)| (name.clone(), texts(value).remove(0))).collect()
}

/// `${NAME…}` of a text: the names, and what stands behind them.
fn variables(text: &str) -> Vec<(String, String)> {
    let text = text.replace("$$", "");
    let found = text.match_indices("${").map(|(place, _)| &text[place + 2..]);
    found
        .map(|rest| {
            let inside = &rest[..rest.find('}').expect("it is closed")];
            let end = inside.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(inside.len());
            (inside[..end].to_owned(), inside[end..].to_owned())
        })
        .collect()
}

/// What `vecsync config` lists with these settings: value and origin by name. It refuses what it does not know.
pub fn settings(environment: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_vecsync"));
    let ended = command.arg("config").env_clear().envs(environment).current_dir(folder.path()).output().unwrap();
    let said = String::from_utf8(ended.stdout).unwrap();
    assert!(ended.status.success(), "{environment:?}: {said}{}", String::from_utf8_lossy(&ended.stderr));
    let lines = said.lines().map(|line| line.split_once(' ').unwrap());
    lines.map(|(name, rest)| (name.to_owned(), rest.trim().to_owned())).collect()
}

#[track_caller]
pub fn expect_settings(environment: &BTreeMap<String, String>) {
    let listed = settings(environment);
    for name in environment.keys().filter(|name| !OF_LIBPQ.contains(&name.as_str())) {
        let line = listed.get(name).unwrap_or_else(|| panic!("{name} is no setting"));
        assert!(line.ends_with("environment"), "{name} {line}");
    }
}

/// Instructions of the Dockerfile, with what they are given.
fn dockerfile() -> Vec<(String, String)> {
    let text = read("Dockerfile").replace("\\\n", " ");
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| line.split_once(' ').unwrap())
        .map(|(verb, rest)| (verb.to_owned(), rest.trim().to_owned()))
        .collect()
}

pub fn of_dockerfile(verb: &str) -> Vec<String> {
    dockerfile().into_iter().filter(|(found, _)| found == verb).map(|(_, rest)| rest).collect()
}

pub fn environment_of_image() -> BTreeMap<String, String> {
    let words = of_dockerfile("ENV");
    let pairs = words.iter().flat_map(|line| line.split_whitespace()).map(|word| word.split_once('=').unwrap());
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// A tag that names one release, or a release of a distribution.
pub fn is_pinned(image: &str) -> bool {
    let tag = image.rsplit_once(':').map_or("", |(_, tag)| tag);
    tag.trim_start_matches('v').starts_with(|c: char| c.is_ascii_digit()) && tag.contains('.')
}

/// In seconds, of a text such as `30s`.
fn seconds(text: &str) -> u64 {
    text.trim_end_matches('s').parse().unwrap_or_else(|_| panic!("{text} is no number of seconds"))
}

/// What the program drains for at most, in seconds.
pub fn drain_s() -> u64 {
    let source = read("src/app.rs");
    let (_, rest) = source.split_once("DRAIN_DEADLINE: Duration = Duration::from_secs(").expect("the deadline");
    rest.split_once(')').unwrap().0.parse().unwrap()
}

#[test]
fn compose_files_are_what_the_specification_allows() {
    let schema = std::env::var("VECSYNC_TEST_COMPOSE").expect("VECSYNC_TEST_COMPOSE is set: `make setup`");
    // The schema is older than the top-level name.
    let program = "
import json, sys, yaml, jsonschema_rs
validator = jsonschema_rs.validator_for(json.load(open(sys.argv[1])))
for name in sys.argv[2:]:
    file = yaml.safe_load(open(name))
    assert file.pop('name', 'vecsync') == 'vecsync'
    for fault in validator.iter_errors(file):
        print(name, fault.instance_path, fault.message)
";
    assert_eq!(python(program, &[&schema, "docker-compose.yml", "docker-compose.debug.yml"]), "");
}

#[test]
fn every_service_is_hardened_watched_and_bounded() {
    let compose = compose();
    let services = compose["services"].as_object().unwrap();
    let names: Vec<&str> = services.keys().map(String::as_str).collect();
    assert_eq!(names, ["postgres", "kafka", "qdrant", "vecsync", "app", "prometheus", "alertmanager", "grafana"]);
    for (name, service) in services {
        eprintln!("{name}");
        assert_eq!(service["restart"], "unless-stopped");
        assert_eq!(service["read_only"], true);
        assert_eq!(texts(&service["cap_drop"]), ["ALL"]);
        assert_eq!(texts(&service["security_opt"]), ["no-new-privileges:true"]);
        assert!(service["cap_add"].is_null() && service["privileged"].is_null());
        assert!(service["mem_limit"].is_string() && service["pids_limit"].is_number());
        assert!(!texts(&service["healthcheck"]["test"]).is_empty());
        for limit in ["interval", "timeout", "start_period"] {
            seconds(service["healthcheck"][limit].as_str().unwrap());
        }
        assert!(is_pinned(service["image"].as_str().unwrap()));
        let user = service["user"].as_str().map_or_else(|| of_dockerfile("USER").remove(0), str::to_owned);
        let number = user.split_once(':').expect("user:group").0;
        assert!(number.parse::<u32>().is_ok_and(|number| number > 0), "{user}");
        let published = texts(&service["ports"]);
        assert_eq!(published.is_empty(), !PUBLISHED.contains(&name.as_str()), "{published:?}");
        assert!(published.iter().all(|port| port.starts_with("127.0.0.1:")), "{published:?}");
        let is_inside = published.is_empty() && !REACHES_OUT.contains(&name.as_str());
        let wanted: &[&str] = if is_inside { &["backend"] } else { &["backend", "frontend"] };
        assert_eq!(texts(&service["networks"]), wanted);
        for after in service["depends_on"].as_object().into_iter().flatten() {
            assert!(services.contains_key(after.0) && after.1["condition"] == "service_healthy");
        }
    }
    assert_eq!(compose["networks"]["backend"]["internal"], true);
    assert_eq!(compose["volumes"]["qdrant_data"]["name"], "qdrant_data");
    // The file for looking inside opens to this machine, too, and nothing that is not there.
    let debug = yaml("docker-compose.debug.yml");
    for (name, service) in debug["services"].as_object().unwrap() {
        assert!(services.contains_key(name), "{name}");
        assert!(texts(&service["ports"]).iter().all(|port| port.starts_with("127.0.0.1:")), "{name}");
    }
}

#[test]
fn every_path_that_is_mounted_is_there() {
    let compose = compose();
    let volumes = compose["volumes"].as_object().unwrap();
    let mut used = BTreeSet::new();
    for (name, service) in compose["services"].as_object().unwrap() {
        for mount in texts(&service["volumes"]) {
            let (from, to) = mount.split_once(':').unwrap();
            match from.strip_prefix("./") {
                Some(path) => {
                    assert!(Path::new(path).exists(), "{name} mounts {path}");
                    assert!(to.ends_with(":ro"), "{name} may write into {path}");
                }
                None => assert!(volumes.contains_key(from) && used.insert(from.to_owned()), "{name}: volume {from}"),
            }
        }
    }
    assert_eq!(used.len(), volumes.len(), "every volume has its service");
    assert!(Path::new("deploy/postgres/init.sh").is_file());
}

#[test]
fn every_variable_is_asked_for_and_every_setting_is_one() {
    let files = read("docker-compose.yml") + &read("docker-compose.debug.yml");
    let mut secrets = BTreeSet::new();
    for (name, rest) in variables(&files) {
        match rest.starts_with(":?") {
            true => drop(secrets.insert(name)),
            // What has a default is a setting of vecsync's.
            false => assert!(rest.starts_with(":-") && settings(&BTreeMap::new()).contains_key(&name), "{name}{rest}"),
        }
    }
    let example = read(".env.example");
    let asked: BTreeSet<String> =
        example.lines().filter_map(|line| line.strip_suffix('=')).map(str::to_owned).collect();
    assert_eq!(secrets, asked, "what docker-compose.yml wants, and .env.example names");
    // The same .env is read by a vecsync that is started beside it.
    let filled: BTreeMap<String, String> =
        asked.iter().map(|name| (name.clone(), "0123456789abcdef0123".to_owned())).collect();
    settings(&filled);

    let compose = compose();
    let given = environment(&compose["services"]["vecsync"]["environment"]);
    let key = tempfile::NamedTempFile::new().unwrap();
    fs::write(&key, "a-key-of-enough-characters").unwrap();
    let mut given: BTreeMap<String, String> = given
        .into_iter()
        .map(|(name, value)| match variables(&value).first() {
            _ if value == KEY_FILE => (name, key.path().display().to_string()),
            Some((variable, _)) if filled.contains_key(variable) => (name, filled[variable].clone()),
            Some((_, default)) => (name, default.trim_start_matches(":-").to_owned()),
            None => (name, value),
        })
        .collect();
    expect_settings(&given);
    expect_settings(&environment_of_image());
    given.extend(environment_of_image());
    expect_settings(&given);
    // Metrics want the key, too.
    for name in ["vecsync", "prometheus"] {
        assert_eq!(texts(&compose["services"][name]["secrets"]), ["vecsync_api_key"]);
    }
    for (name, secret) in compose["secrets"].as_object().unwrap() {
        let path = secret["file"].as_str().unwrap();
        let folder = path.trim_start_matches('.').rsplit_once('/').unwrap().0;
        assert!(read(".gitignore").lines().any(|line| line == folder), "{folder} could be committed");
        assert!(read("docs/deploying.md").contains(&format!("> secrets/{name}")), "nobody is told to make {name}");
    }
    let scraping = yaml("dashboards/prometheus/prometheus.yml")["scrape_configs"][0].clone();
    assert_eq!(scraping["authorization"]["credentials_file"], KEY_FILE);
    let debug = yaml("docker-compose.debug.yml");
    let names: Vec<String> = environment(&debug["services"]["vecsync"]["environment"]).into_keys().collect();
    assert_eq!(names, ["VECSYNC_LOG"]);
}

#[test]
fn alerts_go_from_prometheus_to_somebody() {
    let compose = compose();
    let service = &compose["services"]["alertmanager"];
    let scraping = yaml("dashboards/prometheus/prometheus.yml");
    let address = texts(&scraping["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"]).remove(0);
    let (host, port) = address.split_once(':').unwrap();
    assert!(compose["services"][host].is_object(), "{address}");
    assert!(texts(&service["healthcheck"]["test"]).pop().unwrap().contains(&format!("127.0.0.1:{port}/")));
    // What is mounted is what it reads, and where it writes is a volume.
    let file = "deploy/alertmanager/alertmanager.yml";
    let arguments = texts(&service["command"]);
    let value = |name: &str| arguments.iter().find_map(|one| one.strip_prefix(&format!("--{name}="))).unwrap();
    let volumes = texts(&service["volumes"]);
    assert!(volumes.contains(&format!("./{file}:{}:ro", value("config.file"))), "{volumes:?}");
    assert!(volumes.contains(&format!("alertmanager_data:{}", value("storage.path"))), "{volumes:?}");

    let told = yaml(file);
    let receivers = told["receivers"].as_array().unwrap();
    let route = &told["route"];
    let routes = [route].into_iter().chain(route["routes"].as_array().unwrap());
    for route in routes {
        let receiver = receivers.iter().find(|receiver| receiver["name"] == route["receiver"]).expect("a receiver");
        // One without an integration would swallow what it gets.
        let hook = receiver["webhook_configs"][0]["url_file"].as_str().unwrap();
        let secret = hook.strip_prefix("/run/secrets/").unwrap();
        assert_eq!(texts(&service["secrets"]), [secret]);
        assert!(compose["secrets"][secret].is_object());
    }
    // Labels and names are those of the rules.
    let rules = read("dashboards/alerts.yml");
    for matcher in texts(&route["routes"][0]["matchers"]) {
        let (label, value) = matcher.split_once('=').unwrap();
        assert!(rules.contains(&format!("{label}: {}", value.trim_matches('"'))), "{matcher}");
    }
    for side in ["source_matchers", "target_matchers"] {
        for matcher in texts(&told["inhibit_rules"][0][side]) {
            let name = matcher.strip_prefix("alertname=\"").unwrap().trim_end_matches('"');
            assert!(rules.contains(&format!("- alert: {name}\n")), "{matcher}");
        }
    }
}

#[test]
fn without_kafka_and_qdrant_nothing_asks_for_them() {
    let program = "
import json, sys, yaml
class Merged(yaml.SafeLoader): pass
Merged.add_constructor('!reset', lambda loader, node: '!reset')
Merged.add_constructor('!override', lambda loader, node: {'!override': loader.construct_mapping(node, deep=True)})
json.dump(yaml.load(open('docker-compose.small.yml'), Merged), sys.stdout)
";
    let small: Value = serde_json::from_str(&python(program, &[])).unwrap();
    let compose = compose();
    let services = compose["services"].as_object().unwrap();
    let changed = small["services"].as_object().unwrap();
    let gone: Vec<&str> = changed.iter().filter(|(_, how)| *how == "!reset").map(|(name, _)| name.as_str()).collect();
    assert_eq!(gone, ["kafka", "qdrant"]);
    assert!(changed.keys().all(|name| services.contains_key(name)));
    let vecsync = &changed["vecsync"];
    let left = vecsync["depends_on"]["!override"].as_object().unwrap();
    let before = services["vecsync"]["depends_on"].as_object().unwrap();
    let wanted: Vec<&String> = before.keys().filter(|name| !gone.contains(&name.as_str())).collect();
    assert_eq!(left.keys().collect::<Vec<_>>(), wanted);
    for (name, service) in services.iter().filter(|(name, _)| *name != "vecsync" && !gone.contains(&name.as_str())) {
        assert!(gone.iter().all(|gone| service["depends_on"][gone].is_null()), "{name} waits for what is gone");
    }
    // No setting of vecsync's speaks of them any more, and each that goes was there.
    let mut settings = environment(&services["vecsync"]["environment"]);
    for name in environment(&vecsync["environment"]).keys() {
        assert!(settings.remove(name).is_some(), "{name} was not there");
    }
    assert!(!settings.keys().any(|name| name.starts_with("KAFKA_") || name.starts_with("QDRANT_")), "{settings:?}");
}

#[test]
fn ports_and_hosts_fit_together() {
    let compose = compose();
    let services = &compose["services"];
    let given = environment(&services["vecsync"]["environment"]);
    let defaults = settings(&BTreeMap::new());
    let listen = environment_of_image()["VECSYNC_LISTEN"].clone();
    let port = listen.rsplit_once(':').unwrap().1.to_owned();
    assert_eq!(of_dockerfile("EXPOSE"), [&*port]);
    assert_eq!(texts(&services["vecsync"]["ports"]), [format!("127.0.0.1:{port}:{port}")]);
    assert!(services[given["QDRANT_HOST"].as_str()].is_object());
    let readiness = texts(&services["qdrant"]["healthcheck"]["test"]).pop().unwrap();
    let rest = defaults["QDRANT_PORT"].split_whitespace().next().unwrap().to_owned();
    assert!(readiness.contains(&format!("/dev/tcp/127.0.0.1/{rest} ")), "{readiness}");
    let (host, kafka) = given["KAFKA_BROKERS"].split_once(':').unwrap();
    let broker = read("deploy/kafka/server.properties");
    assert!(
        services[host].is_object() && broker.contains(&format!("advertised.listeners=PLAINTEXT://{host}:{kafka},"))
    );
    assert!(texts(&services[host]["healthcheck"]["test"])[1].contains(&given["KAFKA_BROKERS"]));
    assert!(given["DATABASE_URL"].contains("@postgres:5432/shop"));
    assert_eq!(services["postgres"]["environment"]["POSTGRES_DB"], "shop");
    let debug = yaml("docker-compose.debug.yml");
    assert_eq!(texts(&debug["services"]["kafka"]["ports"]), ["127.0.0.1:29092:29092"]);
    assert!(broker.contains("HOST://127.0.0.1:29092") && broker.contains("HOST://:29092"));
    assert_eq!(texts(&debug["services"]["qdrant"]["ports"]), ["127.0.0.1:6333:6333", "127.0.0.1:6334:6334"]);
    assert!(defaults["QDRANT_GRPC_PORT"].starts_with("6334"));
}

#[test]
fn the_image_is_made_of_what_is_here() {
    for image in of_dockerfile("FROM") {
        assert!(is_pinned(image.split_whitespace().next().unwrap()), "{image}");
    }
    let rust = read("setup/places.sh").lines().find_map(|line| line.strip_prefix("RUST=").map(str::to_owned)).unwrap();
    assert!(of_dockerfile("FROM").iter().any(|image| image.starts_with(&format!("rust:{rust}-"))), "Rust {rust}");
    let ignored = read(".dockerignore");
    let let_through: Vec<&str> = ignored.lines().filter_map(|line| line.strip_prefix('!')).collect();
    assert!(ignored.lines().any(|line| line == "*"), "everything else stays here");
    let mut copied = BTreeSet::new();
    for line in of_dockerfile("COPY").iter().filter(|line| !line.starts_with("--from")) {
        let mut words: Vec<&str> = line.split_whitespace().collect();
        words.pop();
        for path in words {
            assert!(Path::new(path).exists(), "COPY {path}");
            let top = path.split('/').next().unwrap();
            assert!(let_through.contains(&top), ".dockerignore keeps {path}");
            copied.insert(top.to_owned());
        }
    }
    assert_eq!(copied, let_through.iter().map(|path| (*path).to_owned()).collect(), "what is let through is copied");
    // What Cargo wants to see, and what the sources take in.
    let cargo: toml::Table = toml::from_str(&read("Cargo.toml")).unwrap();
    let targets = ["lib", "bin", "test", "bench"].map(|kind| cargo[kind].clone());
    let paths = targets.iter().flat_map(|target| match target {
        toml::Value::Array(list) => list.clone(),
        one => vec![one.clone()],
    });
    for path in paths.map(|target| target["path"].as_str().unwrap().to_owned()) {
        assert!(copied.contains(path.split('/').next().unwrap()), "{path}");
    }
    // The model lands where the settings look for it.
    let inside = environment_of_image();
    let model = &inside["VECSYNC_MODEL_DIR"];
    assert!(
        of_dockerfile("COPY").iter().any(|line| line == &format!("--from=model /src/models/all-MiniLM-L6-v2 {model}"))
    );
    assert!(of_dockerfile("COPY").iter().any(|line| line.ends_with(&format!(" {}", inside["VECSYNC_PIPELINE"]))));
    assert_eq!(of_dockerfile("VOLUME"), [inside["VECSYNC_DATA_DIR"].clone()]);
    let service = &compose()["services"]["vecsync"];
    assert!(texts(&service["volumes"]).contains(&format!("vecsync_data:{}", inside["VECSYNC_DATA_DIR"])));
    assert!(service["image"].as_str().unwrap().ends_with(&format!(":{}", env!("CARGO_PKG_VERSION"))));
    // What is started, and what asks for its health.
    assert_eq!(of_dockerfile("ENTRYPOINT"), [r#"["vecsync"]"#]);
    let commands: [Vec<String>; 2] = [
        serde_json::from_str(&of_dockerfile("CMD").remove(0)).unwrap(),
        texts(&service["healthcheck"]["test"])[2..].to_vec(),
    ];
    assert_eq!(texts(&service["healthcheck"]["test"])[..2], ["CMD", "vecsync"]);
    assert!(of_dockerfile("HEALTHCHECK")[0].ends_with(r#"CMD ["vecsync", "healthcheck"]"#));
    for words in commands {
        let ended = Command::new(env!("CARGO_BIN_EXE_vecsync")).args(&words).arg("--help").output().unwrap();
        assert!(ended.status.success(), "{words:?}");
    }
    assert!(seconds(service["stop_grace_period"].as_str().unwrap()) > drain_s());
}

#[test]
fn the_service_is_what_systemd_and_the_program_take() {
    let unit = read("deploy/systemd/vecsync.service");
    let all = |key: &str| -> Vec<String> {
        unit.lines().filter_map(|line| line.strip_prefix(&format!("{key}="))).map(str::to_owned).collect()
    };
    let given = all("Environment")
        .iter()
        .map(|pair| pair.split_once('=').unwrap())
        .map(|(a, b)| (a.into(), b.into()))
        .collect();
    expect_settings(&given);
    assert_eq!(given["VECSYNC_DATA_DIR"], format!("/var/lib/{}", all("StateDirectory")[0]));
    assert!(seconds(&all("TimeoutStopSec")[0]) > drain_s());
    assert_eq!(all("ExecStart"), ["/usr/local/bin/vecsync run"]);
    // The status of wrong settings, which no restart mends.
    let folder = tempfile::tempdir().unwrap();
    let mut refused = Command::new(env!("CARGO_BIN_EXE_vecsync"));
    let refused = refused.arg("run").env_clear().env("VECSYNC_LISTN", "x").current_dir(folder.path()).output().unwrap();
    assert_eq!(refused.status.code().map(|code| code.to_string()), all("RestartPreventExitStatus").pop());
    // What runs beside it has its settings, its user and its walls.
    let (verify, ctl) = (read("deploy/systemd/vecsync-verify.service"), read("deploy/systemd/vecsync-ctl"));
    for line in unit.lines() {
        let shared =
            ["Environment=", "EnvironmentFile=", "User=", "Group=", "StateDirectory", "UMask=", "WorkingDirectory="];
        let is_wall = unit.find("NoNewPrivileges=").unwrap() <= unit.find(line).unwrap() && line.contains('=');
        let is_shared = shared.iter().any(|name| line.starts_with(name));
        if is_shared || is_wall && !line.starts_with("WantedBy=") {
            assert!(verify.lines().any(|other| other == line), "vecsync-verify.service lacks {line}");
        }
        if is_shared && !line.starts_with("StateDirectory") && line != "Environment=VECSYNC_LOG_FORMAT=json" {
            let wanted = line.strip_prefix("Environment=").map_or(format!("-p {line}"), |pair| format!("-E {pair}"));
            assert!(ctl.contains(&wanted), "vecsync-ctl lacks {wanted}");
        }
    }
    assert!(verify.contains("\nExecStart=/usr/local/bin/vecsync verify\n"));
    assert!(ctl.ends_with("  /usr/local/bin/vecsync \"$@\"\n"));
    // systemd's own tool, where it is.
    for name in ["vecsync-verify.service", "vecsync-verify.timer"] {
        let here =
            read(&format!("deploy/systemd/{name}")).replace("/usr/local/bin/vecsync", env!("CARGO_BIN_EXE_vecsync"));
        fs::write(folder.path().join(name), here).unwrap();
    }
    let timer = folder.path().join("vecsync-verify.timer");
    if let Ok(ended) = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&timer).output() {
        let said = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert!(ended.status.success() && !said.contains("vecsync-verify"), "{said}");
    }
    let here = unit.replace("/usr/local/bin/vecsync", env!("CARGO_BIN_EXE_vecsync"));
    let path = folder.path().join("vecsync.service");
    fs::write(&path, here).unwrap();
    for arguments in [&["verify", "--man=no"][..], &["security", "--offline=true", "--threshold=20"]] {
        let Ok(ended) = Command::new("systemd-analyze").args(arguments).arg(&path).output() else { return };
        let said = String::from_utf8_lossy(&ended.stdout) + String::from_utf8_lossy(&ended.stderr);
        assert!(ended.status.success(), "{arguments:?}: {said}");
        // What it does not know it only tells.
        assert!(!said.contains("ignoring"), "{said}");
    }
}

#[test]
fn documents_say_what_is_not_run_and_link_to_what_is_there() {
    let documents = ["deploying", "django", "migrating", "backup", "upgrading", "troubleshooting", "security"];
    for name in documents.map(|name| format!("docs/{name}.md")) {
        let text = read(&name);
        for block in text.split("```").skip(1).step_by(2).filter_map(|block| block.strip_prefix("sh\n")) {
            let not_run = block.starts_with("# Not run by a test.\n");
            // What is a command of the program is parsed by the program's own tests.
            assert!(not_run || block.lines().all(|line| line.starts_with("vecsync ")), "{name}:\n{block}");
        }
        assert!(read("README.md").contains(&format!("({name})")), "README.md does not lead to {name}");
    }
    let documents = documents.map(|name| format!("docs/{name}.md"));
    for name in documents.iter().map(String::as_str).chain(["README.md", "docs/reference.md"]) {
        let folder = Path::new(name).parent().unwrap();
        for (place, _) in read(name).match_indices("](") {
            let text = read(name);
            let link = text[place + 2..].split(')').next().unwrap();
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            if path.starts_with("http") {
                continue;
            }
            let file = if path.is_empty() { name.into() } else { folder.join(path) };
            let target = fs::read(&file).unwrap_or_else(|error| panic!("{name} leads to {link}: {error}"));
            let target = String::from_utf8_lossy(&target).into_owned();
            let headings = target.lines().filter(|line| line.starts_with('#')).map(|line| {
                let kept =
                    line.trim_start_matches(['#', ' ']).chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
                kept.collect::<String>().to_lowercase().replace(' ', "-")
            });
            assert!(anchor.is_empty() || headings.into_iter().any(|found| found == anchor), "{name} leads to {link}");
        }
    }
}
