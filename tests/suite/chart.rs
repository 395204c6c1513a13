//! The Helm chart is what Kubernetes takes and what the program and the image have. Helm renders it with every set of values in its
//! folder `ci`; nothing is installed anywhere.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::deploy::{
    drain_s, environment_of_image, expect_settings, is_pinned, of_dockerfile, python, read, settings, texts, yaml,
};
use crate::process::wait_until;

const CHART: &str = "deploy/helm/vecsync";
const SETS: [&str; 5] = ["single", "single-qdrant", "roles", "roles-local", "roles-secured"];
/// The oldest Kubernetes that the chart is for, and a new one.
const KUBERNETES: [&str; 2] = ["1.27", "1.34"];
/// Below this the pods find what Secrets have.
const SECRETS: &str = "/run/secrets/";
const PIPELINE_FILE: &str = "pipelines/faq.toml";

fn tools() -> String {
    std::env::var("VECSYNC_TEST_HELM").expect("VECSYNC_TEST_HELM is set: `make setup`")
}

/// What helm makes of a set of values and what is set besides, or what it says.
fn helm(set: &str, besides: &[&str], kubernetes: &str) -> Result<Vec<Value>, String> {
    let home = tempfile::tempdir().unwrap();
    let mut command = Command::new(format!("{}/helm", tools()));
    command.args(["template", "shop", CHART, "--namespace", "search", "--kube-version", &format!("{kubernetes}.0")]);
    command
        .args(["--values", &format!("{CHART}/ci/{set}.yaml")])
        .args(["--set-file", &format!("pipeline={PIPELINE_FILE}")]);
    command.args(besides).env_clear().env("HOME", home.path());
    let ended = command.output().unwrap();
    if !ended.status.success() {
        return Err(String::from_utf8(ended.stderr).unwrap());
    }
    let file = home.path().join("rendered.yaml");
    fs::write(&file, &ended.stdout).unwrap();
    let program = "
import json, sys, yaml
print(json.dumps([one for one in yaml.safe_load_all(open(sys.argv[1])) if one]))
";
    Ok(serde_json::from_str(&python(program, &[file.to_str().unwrap()])).unwrap())
}

#[track_caller]
fn rendered(set: &str) -> Vec<Value> {
    helm(set, &[], KUBERNETES[1]).unwrap_or_else(|said| panic!("{set}: {said}"))
}

fn of_kind<'a>(objects: &'a [Value], kind: &str) -> Vec<&'a Value> {
    objects.iter().filter(|object| object["kind"] == kind).collect()
}

/// Deployments and StatefulSets, by the role of their pods.
fn workloads(objects: &[Value]) -> BTreeMap<String, &Value> {
    let all = objects.iter().filter(|object| object["kind"] == "Deployment" || object["kind"] == "StatefulSet");
    all.map(|object| (text(&object["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/component"]), object))
        .collect()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("a text, not {value}")).to_owned()
}

fn list(value: &Value) -> Vec<&Value> {
    value.as_array().into_iter().flatten().collect()
}

/// Whether all labels that are wanted are there.
fn selects(wanted: &Value, labels: &Value) -> bool {
    let wanted = wanted.as_object().expect("labels");
    !wanted.is_empty() && wanted.iter().all(|(name, value)| labels[name] == *value)
}

#[test]
fn every_set_of_values_makes_what_kubernetes_takes() {
    let kept: BTreeSet<String> = fs::read_dir(format!("{CHART}/ci"))
        .unwrap()
        .map(|file| file.unwrap().file_name().into_string().unwrap().trim_end_matches(".yaml").to_owned())
        .collect();
    assert_eq!(kept, SETS.map(str::to_owned).into());
    let program = "
import json, sys, jsonschema_rs
schema = json.load(open(sys.argv[1]))
for thing in json.load(open(sys.argv[2])):
    group, _, version = thing['apiVersion'].rpartition('/')
    if group == 'monitoring.coreos.com':
        continue
    group = group.removesuffix('.k8s.io') or 'core'
    name = f'io.k8s.api.{group}.{version}.{thing[\"kind\"]}'
    assert name in schema['$defs'], name
    for fault in jsonschema_rs.validator_for({**schema, '$ref': f'#/$defs/{name}'}).iter_errors(thing):
        print(thing['kind'], thing['metadata']['name'], fault.instance_path, fault.message[:300])
";
    for (set, kubernetes) in SETS.iter().flat_map(|set| KUBERNETES.map(|kubernetes| (set, kubernetes))) {
        let objects = helm(set, &[], kubernetes).unwrap_or_else(|said| panic!("{set}: {said}"));
        let file = tempfile::NamedTempFile::new().unwrap();
        let schema = format!("{}/kubernetes-{kubernetes}.json", tools());
        let faults = |objects: &Value| {
            fs::write(file.path(), objects.to_string()).unwrap();
            python(program, &[&schema, file.path().to_str().unwrap()])
        };
        assert_eq!(faults(&json!(objects)), "", "{set}");
        // It does look.
        let mut broken = objects.clone();
        let place = broken.iter().position(|object| object["kind"] == "StatefulSet").unwrap();
        broken[place]["spec"]["template"]["spec"]["containers"][0]["livenes"] = json!({});
        assert!(faults(&json!(broken)).contains("livenes"), "{set}");
        let mut names = BTreeSet::new();
        for object in &objects {
            assert!(
                names.insert((text(&object["kind"]), text(&object["metadata"]["name"]))),
                "{object} is there twice"
            );
            assert_eq!(object["metadata"]["labels"]["app.kubernetes.io/instance"], "shop");
            assert_ne!(object["kind"], "Secret");
        }
    }
    let linted = Command::new(format!("{}/helm", tools()))
        .args([
            "lint",
            "--strict",
            "--quiet",
            "--kube-version",
            "1.27.0",
            "--values",
            &format!("{CHART}/ci/roles.yaml"),
        ])
        .args(["--set-file", &format!("pipeline={PIPELINE_FILE}"), CHART])
        .output()
        .unwrap();
    assert!(linted.status.success(), "{}", String::from_utf8_lossy(&linted.stdout));
}

#[test]
fn pods_are_hardened_bounded_and_watched() {
    let paths: Value = serde_json::from_str(&read("src/serve/openapi.json")).unwrap();
    let (user, group) = of_dockerfile("USER")[0].split_once(':').map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
    for set in SETS {
        let objects = rendered(set);
        for (component, workload) in workloads(&objects) {
            eprintln!("{set}: {component}");
            let spec = &workload["spec"]["template"]["spec"];
            assert_eq!(spec["automountServiceAccountToken"], false);
            assert_eq!(spec["enableServiceLinks"], false);
            assert!(spec["terminationGracePeriodSeconds"].as_u64().unwrap() > drain_s());
            let security = &spec["securityContext"];
            assert_eq!(security["runAsNonRoot"], true);
            for (name, number) in [("runAsUser", &user), ("runAsGroup", &group), ("fsGroup", &group)] {
                assert_eq!(security[name].to_string(), *number, "{name}");
            }
            assert_eq!(security["seccompProfile"]["type"], "RuntimeDefault");
            assert!(spec["hostNetwork"].is_null() && spec["hostPID"].is_null() && spec["initContainers"].is_null());
            let [container] = list(&spec["containers"])[..] else { panic!("one container") };
            assert_eq!(
                container["securityContext"],
                json!({"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}})
            );
            for part in ["requests", "limits"] {
                assert!(container["resources"][part]["memory"].is_string(), "{part}");
            }
            let image = text(&container["image"]);
            let by_digest = image.contains("@sha256:");
            assert!(
                by_digest || is_pinned(&image) && image.ends_with(&format!(":{}", env!("CARGO_PKG_VERSION"))),
                "{image}"
            );

            let [port] = list(&container["ports"])[..] else { panic!("one port") };
            assert_eq!([port["containerPort"].to_string()][..], of_dockerfile("EXPOSE")[..]);
            let is_tls = list(&container["env"]).iter().any(|one| one["name"] == "VECSYNC_TLS_CERT");
            for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
                let asked = &container[probe]["httpGet"];
                let path = text(&asked["path"]);
                let described = &paths["paths"][path.trim_end_matches('/')]["get"];
                assert_eq!(described["security"], json!([]), "{path} is not there, or wants a key");
                assert_eq!(asked["port"], port["name"]);
                assert_eq!(asked["scheme"], if is_tls { "HTTPS" } else { "HTTP" });
            }
            assert_eq!(container["livenessProbe"]["httpGet"]["path"], "/health/live/");
            assert_eq!(container["readinessProbe"]["httpGet"]["path"], "/health/ready/");
            let startup = &container["startupProbe"]["httpGet"]["path"];
            assert_eq!(startup, if component == "serve" { "/health/started/" } else { "/health/live/" });
            // A fault that passes must not end what answers searches.
            let patience = |probe: &str, name: &str| container[probe][name].as_u64().unwrap();
            assert!(patience("livenessProbe", "periodSeconds") * patience("livenessProbe", "failureThreshold") >= 60);
        }
    }
}

#[test]
fn pods_run_roles_with_settings_that_the_program_takes() {
    for set in SETS {
        let objects = rendered(set);
        let workloads = workloads(&objects);
        let roles: &[&str] = match set {
            "single" | "single-qdrant" => &["single"],
            "roles-local" => &["capture", "embed", "serve"],
            _ => &["capture", "embed", "index", "serve"],
        };
        assert_eq!(workloads.keys().map(String::as_str).collect::<Vec<_>>(), roles);
        for (component, workload) in &workloads {
            eprintln!("{set}: {component}");
            let container = &workload["spec"]["template"]["spec"]["containers"][0];
            let arguments = texts(&container["args"]);
            match component.as_str() {
                "single" => assert_eq!(arguments, ["run"]),
                role => assert_eq!(arguments, ["run", "--role", role]),
            }
            let here = Here::of(&objects, workload);
            expect_settings(&here.environment);
            assert_eq!(here.run(&arguments), Some(1), "it refuses its settings: {}", here.said());
            let has = |name: &str| here.environment.contains_key(name);
            let is = |roles: &[&str]| roles.contains(&component.as_str());
            assert_eq!(
                has("DATABASE_URL"),
                is(&["single", "capture"]) || component == "serve" && set == "roles-secured"
            );
            assert_eq!(has("KAFKA_BROKERS"), component != "single");
            assert_eq!(
                has("QDRANT_HOST"),
                !["single", "roles-local"].contains(&set) && is(&["single", "index", "serve"])
            );
        }
    }
    // What is missing is noticed by the same means.
    let objects = rendered("roles");
    let mut here = Here::of(&objects, workloads(&objects)["capture"]);
    here.environment.remove("DATABASE_URL");
    assert_eq!(here.run(&["run".into(), "--role".into(), "capture".into()]), Some(2));
    assert!(here.said().contains("DATABASE_URL"), "{}", here.said());
}

/// What a pod would find, on this machine: its settings, with files in the place of those that volumes bring.
struct Here {
    folder: tempfile::TempDir,
    environment: BTreeMap<String, String>,
}

impl Here {
    fn of(objects: &[Value], workload: &Value) -> Here {
        let folder = tempfile::tempdir().unwrap();
        let spec = &workload["spec"]["template"]["spec"];
        let container = &spec["containers"][0];
        let claims = list(&workload["spec"]["volumeClaimTemplates"]);
        let mounts = list(&container["volumeMounts"]);
        let volumes: BTreeMap<String, &Value> = list(&spec["volumes"])
            .into_iter()
            .map(|volume| (text(&volume["name"]), volume))
            .chain(claims.iter().map(|claim| (text(&claim["metadata"]["name"]), *claim)))
            .collect();
        let used: BTreeSet<String> = mounts.iter().map(|mount| text(&mount["name"])).collect();
        assert_eq!(used, volumes.keys().cloned().collect(), "volumes and mounts");
        let mount_of = |path: &str| mounts.iter().find(|mount| mount["mountPath"] == path).copied();
        let image = environment_of_image();

        assert!(mount_of(&image["VECSYNC_DATA_DIR"]).is_some_and(|mount| mount["name"] == "data"));
        assert!(mount_of("/tmp").is_some());
        let pipeline = mount_of(&image["VECSYNC_PIPELINE"]).expect("the pipeline file");
        let map = text(&volumes[&text(&pipeline["name"])]["configMap"]["name"]);
        let map = of_kind(objects, "ConfigMap").into_iter().find(|found| found["metadata"]["name"] == map.as_str());
        let file = text(&map.expect("the ConfigMap")["data"][text(&pipeline["subPath"])]);
        assert_eq!(file, read(PIPELINE_FILE));
        let pipeline = folder.path().join("pipeline.toml");
        fs::write(&pipeline, file).unwrap();

        let mut environment = image;
        for one in list(&container["env"]) {
            let (name, value) = (text(&one["name"]), one["value"].as_str());
            let value = match value {
                // The chart says what the image says.
                Some(value) if environment.contains_key(&name) => {
                    assert_eq!(environment[&name], value, "{name}");
                    value.to_owned()
                }
                Some(value) if value.starts_with(SECRETS) => {
                    let (place, file) = value.rsplit_once('/').unwrap();
                    let volume = volumes[&text(&mount_of(place).unwrap_or_else(|| panic!("{name}: {place}"))["name"])];
                    let items = list(&volume["secret"]["items"]);
                    assert!(volume["secret"]["secretName"].is_string());
                    let is_whole = items.is_empty() && ["tls.crt", "tls.key"].contains(&file);
                    assert!(is_whole || items.iter().any(|item| item["path"] == file), "{name}: {value}");
                    let path = folder.path().join(&name);
                    match file {
                        // What the preflight of the set-up asks for.
                        "ca.crt" => drop(fs::copy("/etc/ssl/certs/ca-certificates.crt", &path).unwrap()),
                        _ => fs::write(&path, "a-key-of-enough-characters\n").unwrap(),
                    }
                    path.display().to_string()
                }
                Some(value) => value.to_owned(),
                None => {
                    let wanted = &one["valueFrom"]["secretKeyRef"];
                    assert!(wanted["name"].is_string() && wanted["key"].is_string(), "{one}");
                    match name.as_str() {
                        "DATABASE_URL" => {
                            "postgresql://vecsync@shop-db:5432/shop?sslmode=verify-full&sslrootcert=system".to_owned()
                        }
                        _ => "a-secret-of-enough-characters".to_owned(),
                    }
                }
            };
            assert!(
                !name.contains("PASSWORD") && !name.ends_with("API_KEY") || one["value"].is_null(),
                "{name} is given"
            );
            assert!(
                environment.insert(name.clone(), value).is_none_or(|before| before == environment[&name]),
                "{name} twice"
            );
        }
        environment.insert("VECSYNC_PIPELINE".into(), pipeline.display().to_string());
        Here { folder, environment }
    }

    /// Starts it where it must fail before it reaches anybody: the data directory is below a file. Status 2 would be settings that are
    /// refused, and contents of files, too.
    fn run(&self, arguments: &[String]) -> Option<i32> {
        let blocked = self.folder.path().join("file");
        fs::write(&blocked, "").unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_vecsync"));
        command.args(arguments).env_clear().envs(&self.environment).current_dir(self.folder.path());
        command
            .env("VECSYNC_DATA_DIR", blocked.join("data"))
            .env("VECSYNC_LISTEN", "127.0.0.1:0")
            .env_remove("VECSYNC_TLS_CERT");
        command.env_remove("VECSYNC_TLS_KEY");
        let said = fs::File::create(self.folder.path().join("said")).unwrap();
        let mut running = command.stdout(said.try_clone().unwrap()).stderr(said).spawn().unwrap();
        let mut status = None;
        wait_until("it to end", Duration::from_secs(20), || {
            status = running.try_wait().unwrap();
            status.map(drop).ok_or_else(|| self.said())
        });
        status.and_then(|status| status.code())
    }

    fn said(&self) -> String {
        fs::read_to_string(self.folder.path().join("said")).unwrap_or_default()
    }
}

#[test]
fn services_policies_and_budgets_mean_pods_that_are_there() {
    for set in SETS {
        eprintln!("{set}");
        let objects = rendered(set);
        let workloads = workloads(&objects);
        let pods: Vec<&Value> = workloads.values().map(|one| &one["spec"]["template"]["metadata"]["labels"]).collect();
        let meant = |selector: &Value| -> Vec<String> {
            let found = pods.iter().filter(|labels| selects(selector, labels));
            found.map(|labels| text(&labels["app.kubernetes.io/component"])).collect()
        };
        let all: Vec<String> = workloads.keys().cloned().collect();
        let server = if all.contains(&"serve".to_owned()) { "serve" } else { "single" };
        for (component, workload) in &workloads {
            assert_eq!(meant(&workload["spec"]["selector"]["matchLabels"]), [component.as_str()]);
        }
        let services = of_kind(&objects, "Service");
        let [searches, everybody] = services[..] else { panic!("{services:?}") };
        assert_eq!(meant(&searches["spec"]["selector"]), [server]);
        assert_eq!(meant(&everybody["spec"]["selector"]), all);
        assert_eq!(everybody["spec"]["clusterIP"], "None");
        for workload in workloads.values().filter(|one| one["kind"] == "StatefulSet") {
            assert_eq!(workload["spec"]["serviceName"], everybody["metadata"]["name"]);
            assert_eq!(workload["spec"]["volumeClaimTemplates"][0]["metadata"]["name"], "data");
        }
        for budget in of_kind(&objects, "PodDisruptionBudget") {
            let [component] = &meant(&budget["spec"]["selector"]["matchLabels"])[..] else { panic!("{budget}") };
            // A budget for a single pod would keep its machine from being emptied.
            let replicas = &workloads[component]["spec"]["replicas"];
            assert!(replicas.is_null() || replicas.as_u64() > Some(1), "{component}");
        }
        for monitor in of_kind(&objects, "ServiceMonitor") {
            let wanted = &monitor["spec"]["selector"]["matchLabels"];
            let found: Vec<&&Value> =
                services.iter().filter(|service| selects(wanted, &service["metadata"]["labels"])).collect();
            let [service] = found[..] else { panic!("{found:?}") };
            assert_eq!(service["metadata"]["name"], everybody["metadata"]["name"]);
            let endpoint = &monitor["spec"]["endpoints"][0];
            assert_eq!(endpoint["port"], service["spec"]["ports"][0]["name"]);
            assert_eq!((&endpoint["path"], &endpoint["scheme"]), (&json!("/metrics"), &json!("https")));
            assert!(endpoint["authorization"]["credentials"]["name"].is_string());
            // The job's name in dashboards and alerts.
            let label = text(&monitor["spec"]["jobLabel"]);
            assert_eq!(
                service["metadata"]["labels"][label],
                yaml("dashboards/prometheus/prometheus.yml")["scrape_configs"][0]["job_name"]
            );
        }
        for scaler in of_kind(&objects, "HorizontalPodAutoscaler") {
            let target = &scaler["spec"]["scaleTargetRef"];
            let scaled = workloads["serve"];
            assert_eq!((&target["kind"], &target["name"]), (&scaled["kind"], &scaled["metadata"]["name"]));
            assert!(scaled["spec"]["replicas"].is_null(), "two say how many");
        }
        let account = &workloads[server]["spec"]["template"]["spec"]["serviceAccountName"];
        let made = of_kind(&objects, "ServiceAccount");
        assert!(
            set == "single-qdrant" && made.is_empty() && account == "shop" || made[0]["metadata"]["name"] == *account
        );
        check_policies(set, &objects, &meant, server);
    }
}

/// Nobody gets in but by the one port, and nothing goes out but to what the role needs.
fn check_policies(set: &str, objects: &[Value], meant: &dyn Fn(&Value) -> Vec<String>, server: &str) {
    let policies = of_kind(objects, "NetworkPolicy");
    let guarded: BTreeSet<String> =
        policies.iter().flat_map(|policy| meant(&policy["spec"]["podSelector"]["matchLabels"])).collect();
    let all: BTreeSet<String> = workloads(objects).into_keys().collect();
    assert_eq!(guarded, if set == "single-qdrant" { BTreeSet::new() } else { all });
    for policy in policies {
        let component = meant(&policy["spec"]["podSelector"]["matchLabels"]).remove(0);
        assert_eq!(texts(&policy["spec"]["policyTypes"]), ["Ingress", "Egress"]);
        let ingress = policy["spec"]["ingress"].as_array().expect("who may get in is said");
        for rule in ingress {
            // A list of nobody means everybody.
            assert!(!list(&rule["from"]).is_empty(), "{policy}");
            assert_eq!(rule["ports"], json!([{"port": "http", "protocol": "TCP"}]));
        }
        assert_eq!(ingress.is_empty(), set == "roles-local");
        if set == "roles-secured" {
            let peers = list(&ingress[0]["from"]).len();
            assert_eq!(peers, if component == server { 2 } else { 1 }, "{component}");
        }
        let container = &workloads(objects)[&component]["spec"]["template"]["spec"]["containers"][0];
        let setting = |name: &str| {
            let found = list(&container["env"]).into_iter().find(|one| one["name"] == name);
            found.map(|one| one["value"].as_str().unwrap_or_default().to_owned())
        };
        let port_of = |address: &str| address.rsplit_once(':').unwrap().1.to_owned();
        let mut wanted: BTreeSet<String> = ["53".to_owned()].into();
        wanted.extend(setting("DATABASE_URL").map(|_| if set == "roles-secured" { "6432" } else { "5432" }.to_owned()));
        wanted.extend(setting("KAFKA_BROKERS").iter().flat_map(|brokers| brokers.split(',').map(port_of)));
        if setting("QDRANT_HOST").is_some() {
            wanted.extend(["QDRANT_PORT", "QDRANT_GRPC_PORT"].into_iter().filter_map(setting));
        }
        let egress = list(&policy["spec"]["egress"]);
        let ports = egress.iter().flat_map(|rule| list(&rule["ports"])).map(|port| port["port"].to_string());
        assert_eq!(ports.collect::<BTreeSet<_>>(), wanted, "{set}: {component}");
        let is_named = |rule: &&&Value| !list(&rule["to"]).is_empty();
        let named = egress.iter().filter(is_named).count();
        assert_eq!(named, if set == "roles-secured" { egress.len() - 1 } else { 0 });
    }
}

#[test]
fn the_nightly_comparison_is_a_job_that_kubernetes_and_the_program_take() {
    let file = "deploy/kubernetes/verify.yaml";
    let job = yaml(file);
    let program = "
import json, sys, yaml, jsonschema_rs
schema = json.load(open(sys.argv[1]))
thing = yaml.safe_load(open(sys.argv[2]))
for fault in jsonschema_rs.validator_for({**schema, '$ref': '#/$defs/io.k8s.api.batch.v1.CronJob'}).iter_errors(thing):
    print(fault.instance_path, fault.message[:300])
";
    for kubernetes in KUBERNETES {
        assert_eq!(python(program, &[&format!("{}/kubernetes-{kubernetes}.json", tools()), file]), "");
    }
    let spec = &job["spec"]["jobTemplate"]["spec"]["template"]["spec"];
    let [container] = list(&spec["containers"])[..] else { panic!("one container") };
    // It is as hardened as the chart's pods, and asks their service.
    let objects = rendered("roles");
    let pod = &workloads(&objects)["serve"]["spec"]["template"]["spec"];
    for name in ["runAsNonRoot", "runAsUser", "runAsGroup", "fsGroup", "seccompProfile"] {
        assert_eq!(spec["securityContext"][name], pod["securityContext"][name], "{name}");
    }
    assert_eq!(container["securityContext"], pod["containers"][0]["securityContext"]);
    assert_eq!(spec["automountServiceAccountToken"], false);
    assert!(text(&container["image"]).ends_with(&format!(":{}", env!("CARGO_PKG_VERSION"))));
    let settings: BTreeMap<String, String> =
        list(&container["env"]).iter().map(|one| (text(&one["name"]), text(&one["value"]))).collect();
    let service = of_kind(&objects, "Service")[0];
    let port = &service["spec"]["ports"][0]["port"];
    let name = text(&service["metadata"]["name"]).replace("shop", "search");
    assert_eq!(settings["VECSYNC_URL"], format!("http://{name}:{port}"));
    let (folder, key) = settings["VECSYNC_API_KEYS_FILE"].rsplit_once('/').unwrap();
    assert!(list(&container["volumeMounts"]).iter().any(|mount| mount["mountPath"] == folder));
    assert_eq!(spec["volumes"][0]["secret"]["items"][0]["path"], key);
    let folder = tempfile::tempdir().unwrap();
    let keys = folder.path().join("keys");
    fs::write(&keys, "a-key-of-enough-characters\n").unwrap();
    let ended = Command::new(env!("CARGO_BIN_EXE_vecsync"))
        .args(texts(&container["args"]))
        .env_clear()
        .envs(&settings)
        .env("VECSYNC_API_KEYS_FILE", keys)
        .env("VECSYNC_URL", "http://127.0.0.1:9")
        .env("VECSYNC_DATA_DIR", folder.path())
        .current_dir(folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    // Nothing of its settings is refused, and it asks that address for whichever pipeline is there.
    assert_eq!(ended.status.code(), Some(1), "{said}");
    assert!(said.contains("nobody listens at http://127.0.0.1:9/\n"), "{said}");
}

#[test]
fn prometheus_operator_gets_the_alerts_as_they_are() {
    let (source, kept) = (read("dashboards/alerts.yml"), read(&format!("{CHART}/files/alerts.yml")));
    assert!(source == kept, "copy dashboards/alerts.yml to {CHART}/files/alerts.yml");
    assert!(of_kind(&rendered("roles"), "PrometheusRule").is_empty(), "nobody asked for it");
    // It is the operator's alone: each kind is there without the other.
    let only = helm("single", &["--set", "prometheusRule.enabled=true"], KUBERNETES[0]).unwrap();
    assert!(of_kind(&only, "ServiceMonitor").is_empty());
    let elsewhere = "https://wiki.example/vecsync/runbook";
    for (objects, runbook) in [(only, "docs/runbook.md"), (rendered("roles-secured"), elsewhere)] {
        let rules = of_kind(&objects, "PrometheusRule");
        let [rule] = rules[..] else { panic!("{rules:?}") };
        assert_eq!(rule["apiVersion"], "monitoring.coreos.com/v1");
        // But for where the runbook is.
        let said = rule["spec"].to_string();
        assert!(said.contains(&format!("\"runbook_url\":\"{runbook}#vecsyncdown\"")), "{said}");
        let said: Value = serde_json::from_str(&said.replace(runbook, "docs/runbook.md")).unwrap();
        assert_eq!(said, yaml("dashboards/alerts.yml"));
        // What the operator's own schema wants of each, and that Prometheus would not find out before it reads them.
        for group in list(&rule["spec"]["groups"]) {
            assert_eq!(group.as_object().expect("a group").keys().collect::<Vec<_>>(), ["name", "rules"]);
            for rule in list(&group["rules"]) {
                let known = ["alert", "record", "expr", "for", "keep_firing_for", "labels", "annotations"];
                let fields = rule.as_object().expect("a rule");
                assert!(fields.keys().all(|field| known.contains(&field.as_str())), "{rule}");
                assert!(rule["alert"].is_string() != rule["record"].is_string() && rule["expr"].is_string(), "{rule}");
                let texts = ["labels", "annotations"].map(|name| rule[name].as_object());
                assert!(texts.iter().flatten().flat_map(|texts| texts.values()).all(Value::is_string), "{rule}");
            }
        }
    }
    let secured = rendered("roles-secured");
    let labels = |kind| of_kind(&secured, kind)[0]["metadata"]["labels"]["release"].clone();
    assert_eq!((labels("PrometheusRule"), labels("ServiceMonitor")), (json!("prometheus"), json!("prometheus")));
}

#[test]
fn values_that_cannot_work_are_refused_by_name() {
    let check = |set: &str, besides: &[&str], wanted: &[&str]| {
        let said = helm(set, besides, KUBERNETES[1]).expect_err(&format!("{besides:?} is taken"));
        for part in wanted {
            assert!(said.contains(part), "{besides:?}: {said}");
        }
    };
    check("single", &["--set-file", "pipeline=/dev/null"], &["/pipeline"]);
    check("single", &["--set", "source.urlSecret.name="], &["urlSecret", "name"]);
    check("single", &["--set", "pipelin=x"], &["pipelin"]);
    check("single", &["--set", "settings.VECSYNC_LOGG=info"], &["VECSYNC_LOGG"]);
    check("single", &["--set", "settings.QDRANT_API_KEY=secret"], &["QDRANT_API_KEY"]);
    check("single", &["--set", "image.tag=latest"], &["tag"]);
    check("single", &["--set", "settings.VECSYNC_MODEL=fp16"], &["VECSYNC_MODEL", "fp32"]);
    // The image has that model only where it was asked for.
    let fp32 = ["--set", "settings.VECSYNC_MODEL=fp32"];
    check("single", &fp32, &["VECSYNC_MODEL is fp32", "--build-arg FP32=yes", "image.fp32=true"]);
    assert!(read("Dockerfile").contains("if [ \"$FP32\" != yes ]; then rm models/all-MiniLM-L6-v2/model.onnx; fi"));
    let own = helm("single", &[&fp32[..], &["--set", "image.fp32=true"]].concat(), KUBERNETES[1]).unwrap();
    let container = &workloads(&own)["single"]["spec"]["template"]["spec"]["containers"][0];
    assert!(list(&container["env"]).contains(&&json!({"name": "VECSYNC_MODEL", "value": "fp32"})));
    check("single", &["--set", "single.volume.size=much"], &["size", "much"]);
    check("roles", &["--set", "kafka.brokers=kafka"], &["brokers"]);
    check("roles", &["--set", "kafka.securityProtocol=sasl_ssl"], &["saslMechanism"]);
    check("roles", &["--set", "embed.replicas=9"], &["embed.replicas is 9", "kafka.partitions, which is 8"]);
    check(
        "roles-secured",
        &["--set", "serve.autoscaling.minReplicas=20"],
        &["minReplicas is 20", "maxReplicas, which is 12"],
    );
    check("roles-secured", &["--set", "serviceMonitor.keySecret.name="], &["serviceMonitor.keySecret"]);
    let old = helm("single", &[], "1.26").expect_err("an old Kubernetes");
    assert!(old.contains("kubeVersion"), "{old}");
}

#[test]
fn the_chart_knows_every_setting_and_is_of_this_version() {
    let chart = yaml(&format!("{CHART}/Chart.yaml"));
    assert_eq!(
        (&chart["appVersion"], &chart["version"]),
        (&json!(env!("CARGO_PKG_VERSION")), &json!(env!("CARGO_PKG_VERSION")))
    );
    let schema: Value = serde_json::from_str(&read(&format!("{CHART}/values.schema.json"))).unwrap();
    let free: BTreeSet<String> =
        texts(&schema["properties"]["settings"]["propertyNames"]["enum"]).into_iter().collect();
    let mut set_by_it: BTreeSet<String> = SETS
        .iter()
        .flat_map(|set| rendered(set))
        .filter(|object| object["spec"]["template"]["spec"]["containers"].is_array())
        .flat_map(|object| {
            let names = list(&object["spec"]["template"]["spec"]["containers"][0]["env"])
                .into_iter()
                .map(|one| text(&one["name"]));
            names.collect::<Vec<_>>()
        })
        .collect();
    set_by_it.extend(environment_of_image().into_keys());
    // Of the image, said otherwise by the chart, or another name for the same.
    let left =
        ["ORT_DYLIB_PATH", "VECSYNC_API_KEYS", "RAG_VECTOR_STORE_TYPE", "KAFKA_SASL_MECHANISMS"].map(str::to_owned);
    let known: BTreeSet<String> = free.iter().cloned().chain(set_by_it).chain(left).collect();
    let all: BTreeSet<String> = settings(&BTreeMap::new()).into_keys().collect();
    let unknown: Vec<&String> = all.difference(&known).collect();
    assert!(unknown.is_empty(), "the chart cannot set {unknown:?}");
    assert!(free.is_subset(&all), "{free:?}");
    for set in SETS {
        assert!(
            read("docs/deploying.md").contains(&format!("ci/{set}.yaml")),
            "docs/deploying.md does not lead to {set}"
        );
    }
    assert!(Path::new(CHART).join("templates/NOTES.txt").is_file());
}
