//! What the image and the compose service of the Django site say is what is in the repository. Nothing is built, no container runs.

use std::path::Path;

use serde_json::Value;

use super::deploy::{compose, read, texts};

const SITE: &str = "examples/django-faq";

/// Instructions of the site's Dockerfile, with what they are given.
fn instructions(verb: &str) -> Vec<String> {
    let text = read(&format!("{SITE}/Dockerfile")).replace("\\\n", " ");
    let lines = text.lines().filter_map(|line| line.strip_prefix(verb)?.strip_prefix(' '));
    lines.map(|line| line.trim().to_owned()).collect()
}

#[test]
fn the_image_is_made_of_what_is_there() {
    let ignored = read(&format!("{SITE}/Dockerfile.dockerignore"));
    let let_through: Vec<&str> = ignored.lines().filter_map(|line| line.strip_prefix('!')).collect();
    assert!(ignored.lines().any(|line| line == "*"), "everything else stays here");
    let mut inside = vec![];
    for line in instructions("COPY") {
        let mut words: Vec<&str> = line.split_whitespace().collect();
        words.pop();
        for path in words {
            assert!(Path::new(path).exists(), "COPY {path}");
            assert!(let_through.iter().any(|begin| path.starts_with(begin)), "its .dockerignore keeps {path}");
            inside.push(path.rsplit('/').next().unwrap().to_owned());
        }
    }
    // All that the site has beside its tests and what is about it.
    let outside = ["tests", "Dockerfile", "Dockerfile.dockerignore", "README.md", "pyproject.toml", "__pycache__"];
    for entry in std::fs::read_dir(SITE).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let is_hidden = name.starts_with('.');
        assert!(is_hidden || outside.contains(&name.as_str()) || inside.contains(&name), "{name} is not in the image");
    }
    let modules: Vec<String> = inside
        .iter()
        .filter(|name| Path::new(SITE).join(name).is_dir() || *name == "django_vecsync")
        .cloned()
        .collect();
    assert_eq!(modules, ["django_vecsync", "help_centre", "faq"]);
    let base = instructions("FROM");
    assert!(base.len() == 1 && base[0].starts_with("python:3.11."), "{base:?}: the wheels are for that");
}

#[test]
fn what_it_runs_on_is_what_is_tested() {
    let tested = read("setup/django.txt");
    let installed = read(&format!("{SITE}/requirements.txt"));
    let rows: Vec<&str> = installed.lines().filter(|line| !line.starts_with('#')).collect();
    assert!(rows.iter().any(|row| row.starts_with("django==")) && rows.iter().any(|row| row.starts_with("psycopg==")));
    for row in rows {
        assert!(row.contains("--hash=sha256:") && tested.lines().any(|line| line == row), "{row}");
    }
}

#[test]
fn the_service_is_told_what_the_site_reads() {
    let service = &compose()["services"]["app"];
    assert_eq!(service["build"]["dockerfile"], format!("{SITE}/Dockerfile"));
    assert_eq!(texts(&service["user"]), instructions("USER"));
    assert!(service["image"].as_str().unwrap().ends_with(&format!(":{}", env!("CARGO_PKG_VERSION"))));
    let given = service["environment"].as_object().unwrap();
    let site = read(&format!("{SITE}/help_centre/settings.py"));
    let client = read("clients/django/django_vecsync/conf.py");
    for name in given.keys().filter(|name| *name != "PGPASSWORD") {
        let quoted = format!("\"{name}\"");
        assert!(site.contains(&quoted) || client.contains(&quoted), "nobody reads {name}");
    }
    // It reaches its neighbours by their names and ports, and asks with the key that vecsync knows.
    let vecsync = &compose()["services"]["vecsync"];
    assert_eq!(given["VECSYNC_URL"], "http://vecsync:8000");
    assert!(texts(&vecsync["ports"]).iter().any(|port| port.ends_with(":8000")));
    assert_eq!(given["VECSYNC_API_KEYS_FILE"], vecsync["environment"]["VECSYNC_API_KEYS_FILE"]);
    assert_eq!(texts(&service["secrets"]), texts(&vecsync["secrets"]));
    let databases = [service, vecsync].map(|one| one["environment"]["DATABASE_URL"].as_str().unwrap().to_owned());
    assert_eq!(databases[0].replace("//app@", "//vecsync@"), databases[1]);
    assert!(read("deploy/postgres/init.sh").contains("CREATE ROLE app LOGIN"));
    // What is started listens where the port is published, and its health is asked for there.
    let started: Vec<String> = serde_json::from_str(&instructions("CMD").remove(0)).unwrap();
    assert!(started[2].ends_with("python -m help_centre.serve 0.0.0.0:8001"), "{started:?}");
    assert_eq!(texts(&service["ports"]), ["127.0.0.1:8001:8001"]);
    assert_eq!(instructions("EXPOSE"), ["8001"]);
    let asked = texts(&service["healthcheck"]["test"])[1..].to_vec();
    assert_eq!(asked, ["python", "-m", "help_centre.healthy"]);
    assert!(
        instructions("HEALTHCHECK")[0]
            .ends_with(&format!("CMD {}", serde_json::to_string(&asked).unwrap().replace(',', ", ")))
    );
    assert!(read(&format!("{SITE}/help_centre/healthy.py")).contains("http://127.0.0.1:8001/health/live/"));
    assert_eq!(service["ports"].as_array().map(Vec::len), Some(1));
    assert_ne!(service["environment"]["DJANGO_DEBUG"], Value::from("true"));
}
