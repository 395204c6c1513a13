//! What operators get beside the program, held to the program: dashboards, alerts and the runbook name only what there is.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

const BOARDS: [&str; 3] = ["pipeline", "qdrant", "process"];

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()))
}

fn board(name: &str) -> Value {
    serde_json::from_str(&read(&format!("dashboards/{name}.json"))).unwrap()
}

fn alerts() -> Vec<String> {
    let rules = read("dashboards/alerts.yml");
    let names = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: "));
    names.map(str::to_owned).collect()
}

#[test]
fn every_alert_leads_to_its_section_of_the_runbook() {
    let (rules, runbook, alerts) = (read("dashboards/alerts.yml"), read("docs/runbook.md"), alerts());
    assert!(alerts.len() >= 12, "{alerts:?}");
    let sections: Vec<&str> = runbook.split("\n## ").skip(1).collect();
    let titles: Vec<&str> = sections.iter().map(|section| section.lines().next().unwrap()).collect();
    assert_eq!(titles.iter().collect::<BTreeSet<_>>().len(), titles.len(), "a section is there twice");
    for alert in &alerts {
        let link = format!("runbook_url: \"docs/runbook.md#{}\"", alert.to_lowercase());
        assert_eq!(rules.matches(&link).count(), 1, "{link}");
        assert!(titles.contains(&alert.as_str()), "docs/runbook.md has no section {alert}");
    }
    for (title, section) in titles.iter().zip(&sections) {
        assert!(alerts.iter().any(|alert| alert == title), "no alert leads to {title}");
        for part in ["**Users:**", "**Confirm:**", "**Mend:**", "**Escalate:**"] {
            assert_eq!(section.matches(part).count(), 1, "{part} of {title}");
        }
    }
    for link in links(&runbook) {
        match link.strip_prefix('#') {
            Some(anchor) => assert!(titles.iter().any(|title| title.to_lowercase() == anchor), "{link}"),
            None => assert!(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(link).exists(), "{link}"),
        }
    }
    for alert in &alerts {
        let tests = read("dashboards/alerts_test.yml");
        let fires = tests.contains(&format!("alertname=\"{alert}\", alertstate=\"firing\""));
        assert!(fires || tests.contains(&format!("alertname: {alert},")), "alerts_test.yml never has {alert} fire");
    }
}

fn links(text: &str) -> Vec<&str> {
    text.split("](").skip(1).filter_map(|rest| rest.split(')').next()).collect()
}

#[test]
fn the_runbook_names_commands_flags_paths_and_settings_that_there_are() {
    let runbook = read("docs/runbook.md");
    let commands = commands(&runbook);
    assert!(commands.len() > 20, "{commands:?}");
    for command in &commands {
        // Everything before is understood first, and nothing is done.
        let mut program = Command::new(env!("CARGO_BIN_EXE_vecsync"));
        let said = program.args(words(command)).arg("--help").env_clear().output().unwrap();
        assert!(said.status.success(), "{command}: {}", String::from_utf8_lossy(&said.stderr));
    }
    let unknown = Command::new(env!("CARGO_BIN_EXE_vecsync")).args(["verify", "--mend", "--help"]).output().unwrap();
    assert_eq!(unknown.status.code(), Some(2), "a flag that is not there goes unnoticed");
    let paths: Value = serde_json::from_str(&read("src/serve/openapi.json")).unwrap();
    let asked = runbook
        .split("http://127.0.0.1:8000")
        .skip(1)
        .chain(runbook.split('`').filter(|code| code.starts_with("/health")));
    for rest in asked {
        let path = rest.split([' ', '?', '"', '\n']).next().unwrap().trim_end_matches('/');
        assert!(paths["paths"].get(path).is_some(), "{path} is not answered");
    }
    let settings = Command::new(env!("CARGO_BIN_EXE_vecsync")).arg("config").env_clear().output().unwrap();
    let settings = String::from_utf8_lossy(&settings.stdout).into_owned();
    for name in names(&runbook, "VECSYNC_") {
        assert!(settings.contains(&name), "{name} is no setting");
    }
}

#[test]
fn the_runbook_is_run_where_the_table_says() {
    let runbook = read("docs/runbook.md");
    // What else it asks for is with a shell on the machine, and wants a key where vecsync does.
    let others = ["curl -s -H \"Authorization: ", "df -h ", "for task in ", "top -H ", "ls /proc/", "SELECT "];
    for line in runbook.lines().filter_map(|line| line.strip_prefix("    ")) {
        let is_known = line.starts_with("vecsync ") || others.iter().any(|other| line.starts_with(other));
        assert!(is_known, "where is this run, and is it there? {line}");
    }
    let compose = crate::deploy::compose();
    let services = compose["services"].as_object().unwrap();
    for name in ["runbook", "deploying", "backup"] {
        let text = read(&format!("docs/{name}.md"));
        for (place, _) in text.match_indices("docker compose ") {
            let line = text[place..].split(['\n', '`']).next().unwrap();
            let words: Vec<&str> = line.split_whitespace().skip(2).filter(|word| !word.starts_with('-')).collect();
            let ["exec" | "stop" | "logs", rest @ ..] = &words[..] else { continue };
            let named = rest.iter().find(|word| word.parse::<u32>().is_err() && **word != "5m").expect("a service");
            assert!(services.contains_key(*named), "docs/{name}.md: {line}: no service {named}");
        }
    }
    for part in ["vecsync-ctl", "vecsync-verify.timer", "vecsync-verify.service"] {
        assert!(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/systemd").join(part).is_file(), "{part}");
        assert!(read("docs/deploying.md").contains(part), "docs/deploying.md does not install {part}");
    }
}

/// Every command of the program, in a line of its own or within a sentence.
fn commands(text: &str) -> Vec<&str> {
    let lines = text.lines().filter_map(|line| line.strip_prefix("    vecsync "));
    let lines = lines.map(|line| line.split(" # ").next().unwrap().trim_end());
    lines.chain(text.split('`').filter_map(|code| code.strip_prefix("vecsync "))).collect()
}

fn words(command: &str) -> Vec<String> {
    let mut words = vec![];
    for (place, part) in command.split('"').enumerate() {
        if place % 2 == 1 {
            words.push(part.to_owned());
        } else {
            // What stands for an ID has to look like one.
            words.extend(part.split_whitespace().map(|word| if word == "ID" { "3-1027" } else { word }.to_owned()));
        }
    }
    words
}

/// Names that begin so, as long as they go on.
fn names(text: &str, begin: &str) -> BTreeSet<String> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let found = text.match_indices(begin).filter(|(place, _)| !text[..*place].ends_with(is_name));
    found.map(|(place, _)| text[place..].split(|c| !is_name(c)).next().unwrap().to_owned()).collect()
}

#[test]
fn dashboards_alerts_and_runbook_name_metrics_that_there_are() {
    let described = read("src/metrics.rs");
    let reference = read("docs/reference.md");
    let mut texts = vec![read("dashboards/alerts.yml"), read("docs/runbook.md"), read("dashboards/alerts_test.yml")];
    texts.extend(BOARDS.map(|name| board(name).to_string()));
    let used: BTreeSet<String> =
        texts.iter().flat_map(|text| [names(text, "vecsync_"), names(text, "process_")]).flatten().collect();
    assert!(used.len() > 35, "{used:?}");
    for name in used {
        let series = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix)).unwrap_or(&name);
        // Groups of rules, a slot and a secret have such names, too.
        if ["vecsync_freshness", "vecsync_faq", "vecsync_api_key"].contains(&series) {
            continue;
        }
        assert!(described.contains(&format!("\"{series}\"")), "{name} is no metric");
        let documented = format!("`{}`", series.trim_start_matches("vecsync_"));
        assert!(reference.contains(&documented), "docs/reference.md does not say what {series} is");
    }
}

#[test]
fn dashboards_are_as_grafana_wants_them_and_an_operator_reads_them() {
    let mut uids = BTreeSet::new();
    for name in BOARDS {
        let board = board(name);
        assert!(uids.insert(board["uid"].as_str().unwrap().to_owned()), "{name}: uid");
        assert!(board["title"].is_string() && board["schemaVersion"].as_u64() >= Some(36), "{name}");
        let variables: Vec<&str> =
            board["templating"]["list"].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect();
        assert!(variables.starts_with(&["datasource", "instance"]), "{name}: {variables:?}");
        let (mut ids, mut taken) = (BTreeSet::new(), BTreeSet::new());
        for panel in board["panels"].as_array().unwrap() {
            let title = panel["title"].as_str().unwrap();
            assert!(ids.insert(panel["id"].as_u64().unwrap()), "{name}: {title}: id");
            let at = |side: &str| panel["gridPos"][side].as_u64().unwrap();
            assert!(at("w") > 0 && at("x") + at("w") <= 24, "{name}: {title} is beside the grid");
            for cell in (at("x")..at("x") + at("w")).flat_map(|x| (at("y")..at("y") + at("h")).map(move |y| (x, y))) {
                assert!(taken.insert(cell), "{name}: {title} lies on another panel at {cell:?}");
            }
            if panel["type"] == "row" {
                continue;
            }
            check_panel(name, panel, &variables);
        }
    }
    // Freshness comes before everything else.
    let first = &board("pipeline")["panels"][0];
    assert!(first["type"] == "row" && first["title"].as_str().unwrap().starts_with("Freshness"), "{first}");
}

fn check_panel(name: &str, panel: &Value, variables: &[&str]) {
    let title = format!("{name}: {}", panel["title"].as_str().unwrap());
    assert!(panel["description"].as_str().is_some_and(|text| text.len() > 10), "{title} says nothing of itself");
    let defaults = &panel["fieldConfig"]["defaults"];
    assert!(defaults["unit"].is_string(), "{title} has no unit");
    let steps = defaults["thresholds"]["steps"].as_array().unwrap();
    assert!(!steps.is_empty() && steps[0]["value"].is_null(), "{title}: thresholds");
    let values: Vec<f64> = steps[1..].iter().map(|step| step["value"].as_f64().unwrap()).collect();
    assert!(values.is_sorted(), "{title}: thresholds");
    for part in [panel].into_iter().chain(panel["targets"].as_array().unwrap()) {
        assert_eq!(part["datasource"]["uid"], "${datasource}", "{title}");
    }
    for target in panel["targets"].as_array().unwrap() {
        let query = target["expr"].as_str().unwrap();
        assert!(query.contains("instance=~\"$instance\""), "{title} shows every instance");
        for (place, _) in query.match_indices('$') {
            let used = query[place + 1..].split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next().unwrap();
            let is_grafanas = ["__rate_interval", "__range"].contains(&used);
            assert!(is_grafanas || variables.contains(&used), "{title}: ${used}");
        }
    }
}

#[test]
fn what_is_provisioned_fits_together() {
    let (source, provider) = (
        read("dashboards/grafana/provisioning/datasources/prometheus.yml"),
        read("dashboards/grafana/provisioning/dashboards/vecsync.yml"),
    );
    assert!(source.contains("type: prometheus") && source.contains("isDefault: true"), "{source}");
    assert!(provider.contains("path: /etc/grafana/dashboards"), "{provider}");
    let config = read("dashboards/prometheus/prometheus.yml");
    assert!(config.contains("job_name: vecsync") && config.contains("rule_files: [alerts.yml]"), "{config}");
    let interval = |text: &str, name: &str| {
        let line = text.lines().find_map(|line| line.trim().strip_prefix(name).map(str::to_owned));
        line.unwrap_or_else(|| panic!("no {name} in {text}"))
    };
    assert_eq!(interval(&config, "scrape_interval: "), interval(&source, "timeInterval: "));
}
