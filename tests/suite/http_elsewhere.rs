//! The program as a command for a vecsync elsewhere: what it asks for, what it prints, how it exits. What is asked is made up.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command as Program;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use vecsync::config::{ApiKeys, Secret};
use vecsync::serve::control::{Command, ControlFn, Ended, Teller};
use vecsync::serve::{Keys, Limits, Service, Services, Settings};

use super::http::{Server, commanding, one_result, service, settings};

const KEY: &str = "canary-key-of-sixteen";
const SEARCHING: &str = "canary-key-to-search";

/// How it ended: status, standard output, standard error.
type Said = (Option<i32>, String, String);

/// Runs the program in a folder where nothing is but these files, with nothing else in its environment.
async fn run(at: SocketAddr, key: &str, files: &[(&str, &str)], words: &[&str]) -> Said {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        std::fs::create_dir_all(folder.path().join(name).parent().unwrap()).unwrap();
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    let url = format!("http://{at}");
    run_in(&folder, &[("VECSYNC_URL", &url), ("VECSYNC_API_KEYS", key)], words).await
}

async fn run_in(folder: &TempDir, environment: &[(&str, &str)], words: &[&str]) -> Said {
    let mut program = Program::new(env!("CARGO_BIN_EXE_vecsync"));
    program.args(words).current_dir(folder.path()).env_clear();
    program.envs(environment.iter().filter(|(_, value)| !value.is_empty()).copied());
    let output = tokio::task::spawn_blocking(move || program.output()).await.unwrap().unwrap();
    assert!(!Path::new(&folder.path().join("data")).exists(), "it makes no data directory");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

fn pipeline(name: &str) -> String {
    format!("name = '{name}'\n[source]\ntable = 't'\n[document]\ntext = 'x'\npayload = []\n")
}

/// Notes what it is asked for, and ends with this status.
fn noting(asked: &Arc<Mutex<Vec<String>>>, status: u8) -> Arc<ControlFn> {
    let asked = Arc::clone(asked);
    Arc::new(move |command: Command, teller: Teller| {
        asked.lock().unwrap().push(format!("{} {}", command.name(), command.body()));
        Box::pin(async move {
            teller.says("ok      slot\u{1b}[2J\n".to_owned());
            teller.passed("rows read", 3, 10);
            tokio::time::sleep(Duration::from_millis(250)).await;
            let error = (status != 0).then(|| "not well".to_owned());
            Ended { status, text: "Done.\n".to_owned(), error }
        })
    })
}

async fn start(control: Arc<ControlFn>, names: &[&'static str]) -> Server {
    let named =
        |name: &&str| Service { pipeline: (*name).into(), control: Some(Arc::clone(&control)), ..service(one_result) };
    let services = Services {
        pipelines: names.iter().map(named).collect(),
        default: 0,
        ready: Arc::new(|| Ok(())),
        ..Services::one(service(one_result), Arc::new(String::new))
    };
    let keys = ApiKeys { searching: vec![Secret::new(SEARCHING.into())], ..commanding([KEY]) };
    Server::start_all(services, Settings { keys: Keys::new(&keys), ..settings(Limits::default()) }).await
}

#[tokio::test]
async fn every_command_is_asked_for_with_its_flags() {
    let asked = Arc::default();
    let server = start(noting(&asked, 0), &["faq"]).await;
    for (words, wanted) in [
        (&["sync"][..], r#"sync {"batch_size":100}"#),
        (&["sync", "--force", "--batch-size", "7", "--json"], r#"sync {"force":true,"batch_size":7,"json":true}"#),
        (&["sync", "--dry-run"], r#"sync {"dry_run":true,"batch_size":100}"#),
        (&["sync", "--stats-only"], r#"sync {"batch_size":100,"stats_only":true}"#),
        (&["init", "--validate", "--stats"], r#"init {"validate":true,"stats":true}"#),
        (&["init", "--migrate", "--local-store-path", "x"], r#"init {"migrate":true,"local_store_path":"x"}"#),
        (&["check", "--drill", "3", "--verbose"], r#"check {"drill":3,"verbose":true}"#),
        (&["doctor", "--skip-operations"], r#"check {"skip_operations":true}"#),
        (&["verify", "--repair"], r#"verify {"repair":true}"#),
        (&["replay", "--topic", "changes"], r#"replay {"topic":"changes","into":"new"}"#),
        (&["dead-letters", "list", "--json"], r#"dead-letters {"json":true}"#),
        (&["dead-letters", "show", "3-7"], r#"dead-letters {"show":"3-7"}"#),
        (&["dead-letters", "retry", "3-7", "0-1"], r#"dead-letters {"retry":["3-7","0-1"]}"#),
        (&["dead-letters", "retry", "--all"], r#"dead-letters {"retry_all":true}"#),
        (&["backup", "night"], r#"backup {"dir":"night"}"#),
        (&["sync", "--pipeline", "faq"], r#"sync {"batch_size":100}"#),
    ] {
        let (status, output, errors) = run(server.address(), KEY, &[], words).await;
        assert_eq!(status, Some(0), "{words:?}: {errors}");
        assert_eq!(output, "ok      slot[2J\nDone.\n", "{words:?}");
        assert!(errors.contains("asking http://127.0.0.1"), "{words:?}: {errors}");
        assert_eq!(std::mem::take(&mut *asked.lock().unwrap()), [wanted], "{words:?}");
    }
    server.stop().await;
}

#[tokio::test]
async fn its_exit_status_is_the_commands() {
    for (status, wanted) in [(1, 1), (2, 2), (3, 3)] {
        let server = start(noting(&Arc::default(), status), &["faq"]).await;
        let (status, output, errors) = run(server.address(), KEY, &[], &["verify"]).await;
        assert_eq!((status, output.ends_with("Done.\n")), (Some(wanted), true), "{errors}");
        assert!(errors.ends_with("vecsync: not well\n"), "{errors}");
        server.stop().await;
    }
}

#[tokio::test]
async fn another_pipeline_than_the_one_that_is_meant_is_not_commanded() {
    let asked = Arc::default();
    let server = start(noting(&asked, 0), &["faq", "products"]).await;
    let other = pipeline("shop");
    for (words, files, wanted) in [
        (&["sync"][..], &[][..], "which pipeline?"),
        (&["sync"], &[("pipelines/faq.toml", other.as_str())], "no such pipeline: \"shop\"; there are faq, products"),
        (&["verify", "--pipeline", "orders"], &[], "no such pipeline: \"orders\"; there are faq, products"),
    ] {
        let (status, output, errors) = run(server.address(), KEY, files, words).await;
        assert_eq!((status, output.as_str()), (Some(2), ""), "{words:?}: {errors}");
        assert!(errors.contains(wanted) && errors.contains("--pipeline NAME"), "{words:?}: {errors}");
    }
    assert_eq!(*asked.lock().unwrap(), [""; 0]);
    // What is named counts, whatever the files here say; a file's own name does where none is.
    for (words, files) in [
        (&["sync", "--pipeline", "products"][..], &[("pipelines/faq.toml", other.as_str())][..]),
        (&["sync"], &[("pipelines/faq.toml", pipeline("products").as_str())]),
    ] {
        let (status, _, errors) = run(server.address(), KEY, files, words).await;
        assert_eq!(status, Some(0), "{words:?}: {errors}");
        assert!(errors.contains("/pipelines/products"), "{words:?}: {errors}");
    }
    // A check is of all that are known here.
    let folder = tempfile::tempdir().unwrap();
    for name in ["faq", "products"] {
        std::fs::write(folder.path().join(format!("{name}.toml")), pipeline(name)).unwrap();
    }
    let url = format!("http://{}", server.address());
    let environment = [("VECSYNC_URL", url.as_str()), ("VECSYNC_API_KEYS", KEY), ("VECSYNC_PIPELINE", ".")];
    let (status, output, errors) = run_in(&folder, &environment, &["check"]).await;
    assert_eq!(status, Some(0), "{errors}");
    assert_eq!(output, "pipeline faq\nok      slot[2J\nDone.\npipeline products\nok      slot[2J\nDone.\n");
    server.stop().await;
}

#[tokio::test]
async fn who_may_not_command_is_told_so() {
    let asked = Arc::default();
    let server = start(noting(&asked, 0), &["faq"]).await;
    for (key, wanted) in [
        ("", "wants an API key: set VECSYNC_API_KEYS"),
        ("another-key-of-sixteen", "wants an API key: set VECSYNC_API_KEYS"),
        (SEARCHING, "may search, and not command"),
        (&format!("search:{SEARCHING}"), "may search, and not command"),
    ] {
        let (status, output, errors) = run(server.address(), key, &[], &["sync"]).await;
        assert_eq!((status, output.as_str()), (Some(1), ""), "{key}: {errors}");
        assert!(errors.contains(wanted) && !errors.contains("canary"), "{key}: {errors}");
    }
    let (status, _, errors) = run(server.address(), KEY, &[], &["backup", "/tmp/night"]).await;
    assert_eq!(status, Some(2), "{errors}");
    assert!(errors.contains("VECSYNC_DATA_DIR/backups"), "{errors}");
    assert_eq!(*asked.lock().unwrap(), [""; 0]);
    // Of several keys each is used for what it may.
    let keys = format!("search:{SEARCHING},{KEY}");
    assert_eq!(run(server.address(), &keys, &[], &["sync"]).await.0, Some(0));
    assert_eq!(run(server.address(), &keys, &[], &["search", "x"]).await.0, Some(0));
    server.stop().await;
}

/// Answers each connection with these bytes, and hangs up.
async fn answering(answer: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut asked = vec![0; 65536];
            let _ = stream.read(&mut asked).await;
            let _ = stream.write_all(answer.as_bytes()).await;
            let _ = stream.shutdown().await;
        }
    });
    address
}

#[tokio::test]
async fn an_answer_without_an_end_is_no_success() {
    for (answer, wanted) in [
        ("", "it is not known whether it began"),
        ("HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\n\r\n", "half done"),
        ("HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\n\r\n{\"said\": \"a\\n\"}\n{\"ended\"", "half done"),
        ("HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\ncontent-length: 99\r\n\r\n\n\n", "half done"),
        ("HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\n\r\n{\"done\": 1}\n", "not a vecsync"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", "is not a vecsync"),
        ("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", "is not a vecsync: /control/… answers 404 Not Found"),
        ("HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n", "it is not known whether it began"),
        ("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n", "answers 503: Service Unavailable"),
        ("SSH-2.0-x\r\n", "it is not known whether it began"),
    ] {
        let (status, _, errors) = run(answering(answer).await, "", &[], &["sync"]).await;
        assert_eq!(status, Some(1), "{answer}: {errors}");
        assert!(errors.contains(wanted), "{answer}: {errors}");
    }
}

#[tokio::test]
async fn where_nobody_listens_on_this_machine_it_is_done_here() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let (status, _, errors) = run(address, "", &[], &["verify"]).await;
    assert_eq!(status, Some(1), "{errors}");
    assert!(errors.contains("nobody listens at") && errors.contains("VECSYNC_DATA_DIR"), "{errors}");
    // Another machine's silence is not taken for that.
    let folder = tempfile::tempdir().unwrap();
    for words in [&["verify"][..], &["sync"], &["check"], &["dead-letters", "list"]] {
        let (status, output, errors) = run_in(&folder, &[("VECSYNC_URL", "http://nowhere.invalid:8000")], words).await;
        assert_eq!((status, output.as_str()), (Some(1), ""), "{words:?}: {errors}");
        assert!(errors.contains("reach http://nowhere.invalid:8000"), "{words:?}: {errors}");
    }
}
