//! Commands over HTTP, on a real port: who is let in, what is asked for, the lines of an answer, its end. What does them is made up.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::time::timeout;
use vecsync::config::{ApiKeys, Secret};
use vecsync::serve::control::{Command, ControlFn, Ended};
use vecsync::serve::{Keys, Limits, Service, Services, Settings};

use super::http::{Server, one_result, service, settings};

const KEY: &str = "canary-key-of-sixteen";
const PATIENCE: Duration = Duration::from_secs(20);

fn post(path: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n{headers}\
         Content-Length: {length}\r\n\r\n{body}"
    )
}

async fn start(control: Arc<ControlFn>, keys: &[&str]) -> Server {
    let keys = keys.iter().map(|key| Secret::new((*key).to_owned())).collect();
    start_with(control, ApiKeys { commanding: keys, ..ApiKeys::default() }).await
}

async fn start_with(control: Arc<ControlFn>, keys: ApiKeys) -> Server {
    let service = Service { control: Some(control), ..service(one_result) };
    Server::start(service, Settings { keys: Keys::new(&keys), ..settings(Limits::default()) }).await
}

/// The lines of an answer, read to its end.
async fn lines(server: &Server, request: &str) -> Vec<Value> {
    let mut stream = server.connect().await;
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut answer)).await.expect("in time").expect("read");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    assert!(head.starts_with("HTTP/1.1 200") && head.contains("application/x-ndjson"), "{head}");
    // Chunks are lines here, with their lengths between them.
    let is_json = |line: &&str| line.starts_with('{');
    body.lines().filter(is_json).map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn says(status: u8) -> Arc<ControlFn> {
    Arc::new(move |command, teller| {
        Box::pin(async move {
            teller.says("ok      slot\n".to_owned());
            teller.passed("rows read", 3, 10);
            tokio::time::sleep(Duration::from_millis(500)).await;
            let error = (status != 0).then(|| "not well".to_owned());
            Ended { status, text: format!("{command:?}"), error }
        })
    })
}

#[tokio::test]
async fn a_command_says_how_far_it_is_and_how_it_ended() {
    let server = start(says(3), &[]).await;
    let lines = lines(&server, &post("/control/sync/", "", r#"{"force": true}"#)).await;
    assert_eq!(lines[0], json!({"said": "ok      slot\n"}));
    assert!(lines.contains(&json!({"passed": {"label": "rows read", "done": 3, "total": 10}})), "{lines:?}");
    let ended = &lines.last().expect("a last line")["ended"];
    assert_eq!((&ended["status"], &ended["error"]), (&json!(3), &json!("not well")));
    assert!(ended["text"].as_str().is_some_and(|text| text.contains("force: true")), "{ended}");
    server.stop().await;
}

#[tokio::test]
async fn of_several_pipelines_one_is_named() {
    let named = |name: &'static str| {
        let control: Arc<ControlFn> =
            Arc::new(move |_, _| Box::pin(async move { Ended { status: 0, text: format!("of {name}"), error: None } }));
        Service { pipeline: name.into(), control: Some(control), ..service(one_result) }
    };
    let pipelines = vec![named("faq"), named("products")];
    let services = Services {
        pipelines,
        default: 0,
        ready: Arc::new(|| Ok(())),
        ..Services::one(service(one_result), Arc::new(String::new))
    };
    let server = Server::start_all(services, settings(Limits::default())).await;
    let lines = lines(&server, &post("/pipelines/products/control/check/", "", "{}")).await;
    assert_eq!(lines.last().expect("a last line")["ended"]["text"], "of products");
    let ask = async |path: &str| server.send(post(path, "", "{}")).await;
    ask("/control/sync")
        .await
        .is_problem(400, "/pipelines/NAME/control/sync (--pipeline NAME); there are faq, products");
    ask("/pipelines/shops/control/sync").await.is_problem(404, "there are faq, products");
    server.stop().await;
}

#[tokio::test]
async fn who_may_not_or_asks_badly_is_refused_before_anything_begins() {
    let begun = Arc::new(AtomicUsize::new(0));
    let counting = Arc::clone(&begun);
    let control: Arc<ControlFn> = Arc::new(move |_, _| {
        counting.fetch_add(1, Ordering::SeqCst);
        Box::pin(async { Ended { status: 0, text: String::new(), error: None } })
    });
    let server = start(Arc::clone(&control), &[KEY]).await;
    server.send(post("/control/sync", "", "{}")).await.is_problem(401, "Authorization");
    server.send(post("/control/sync", "Authorization: Bearer wrong-key-of-16-ch\r\n", "{}")).await.is_problem(401, "");
    let key = format!("Authorization: Bearer {KEY}\r\n");
    server.send(post("/control/sync", &key, r#"{"fource": true}"#)).await.is_problem(400, "fource");
    let asked = post("/control/sync?dry_run=true", &key, "{}");
    server.send(asked).await.is_problem(400, "a POST has its parameters in the body");
    server.send(post("/control/sync", &key, "")).await.is_problem(400, "not JSON");
    server.send(post("/control/restore", &key, "{}")).await.is_problem(404, "no such path");
    server
        .send(post("/control/backup", &key, r#"{"dir": "/tmp/x"}"#))
        .await
        .is_problem(400, "VECSYNC_DATA_DIR/backups");
    let untyped = post("/control/sync", &key, "{}").replace("application/json", "text/plain");
    server.send(untyped).await.is_problem(415, "wanted application/json");
    assert_eq!(begun.load(Ordering::SeqCst), 0);
    // With a key, who is behind a proxy is let in as well.
    lines(&server, &post("/control/sync", &format!("{key}X-Forwarded-For: 10.0.0.1\r\n"), "{}")).await;
    assert_eq!(begun.load(Ordering::SeqCst), 1);
    server.stop().await;

    let server = start(control, &[]).await;
    for header in [
        "X-Forwarded-For: 10.0.0.1",
        "X-Forwarded-Proto: https",
        "CF-Ray: 1",
        "True-Client-IP: 10.0.0.1",
        "Origin: http://evil.example",
        "Forwarded: for=10.0.0.1",
    ] {
        server.send(post("/control/init", &format!("{header}\r\n"), "{}")).await.is_problem(403, "VECSYNC_API_KEYS");
    }
    // A name of somebody else's that leads here.
    for host in ["evil.example", "127.0.0.1.evil.example:8000", "10.0.0.1"] {
        let asked = post("/control/init", "", "{}").replace("Host: localhost", &format!("Host: {host}"));
        server.send(asked).await.is_problem(403, "127.0.0.1");
    }
    assert_eq!(begun.load(Ordering::SeqCst), 1);
    server.stop().await;

    let server = Server::plain().await;
    server.send(post("/control/sync", "", "{}")).await.is_problem(404, "takes no commands");
    server.stop().await;
}

#[tokio::test]
async fn a_key_to_search_does_not_command() {
    const SEARCHING: &str = "canary-key-to-search";
    let begun = Arc::new(AtomicUsize::new(0));
    let counting = Arc::clone(&begun);
    let control: Arc<ControlFn> = Arc::new(move |_, _| {
        counting.fetch_add(1, Ordering::SeqCst);
        Box::pin(async { Ended { status: 0, text: String::new(), error: None } })
    });
    let secret = |key: &str| vec![Secret::new(key.to_owned())];
    let keys = ApiKeys { commanding: secret(KEY), searching: secret(SEARCHING) };
    for (keys, commands) in [(keys.clone(), 1), (ApiKeys { commanding: vec![], ..keys }, 0)] {
        begun.store(0, Ordering::SeqCst);
        let server = start_with(Arc::clone(&control), keys).await;
        let searching = format!("Authorization: Bearer {SEARCHING}\r\n");
        for path in ["/control/sync", "/control/check", "/pipelines/faq/control/verify"] {
            server.send(post(path, &searching, "{}")).await.is_problem(403, "may search, and not command");
        }
        for path in ["/search?q=x", "/status", "/metrics"] {
            let found = server.send(format!("GET {path} HTTP/1.1\r\nHost: x\r\n{searching}\r\n")).await;
            assert_eq!(found.status, 200, "{path}");
        }
        assert_eq!(begun.load(Ordering::SeqCst), 0);
        if commands > 0 {
            lines(&server, &post("/control/sync", &format!("Authorization: Bearer {KEY}\r\n"), "{}")).await;
        }
        assert_eq!(begun.load(Ordering::SeqCst), commands);
        server.stop().await;
    }
}

#[tokio::test]
async fn a_command_is_given_up_with_its_client_and_only_a_few_run_at_once() {
    struct Told(Arc<Notify>);
    impl Drop for Told {
        fn drop(&mut self) {
            self.0.notify_one();
        }
    }
    let given_up = Arc::new(Notify::new());
    let dropped = Arc::clone(&given_up);
    let server = start(
        Arc::new(move |command, _| {
            let told = Told(Arc::clone(&dropped));
            Box::pin(async move {
                let _told = told;
                if matches!(command, Command::Sync(_)) {
                    std::future::pending::<()>().await;
                }
                Ended { status: 0, text: String::new(), error: None }
            })
        }),
        &[],
    )
    .await;
    let mut clients = vec![];
    for _ in 0..4 {
        let mut client = server.connect().await;
        client.write_all(post("/control/sync", "", "{}").as_bytes()).await.expect("sent");
        let mut head = [0; 12];
        client.read_exact(&mut head).await.expect("an answer");
        assert_eq!(&head, b"HTTP/1.1 200");
        clients.push(client);
    }
    let refused = server.send(post("/control/check", "", "{}")).await;
    assert!(refused.is_problem(503, "commands").header("retry-after").is_some());
    clients.pop();
    timeout(PATIENCE, given_up.notified()).await.expect("the command is given up");
    let found = lines(&server, &post("/control/check", "", "{}")).await;
    assert_eq!(found.last().expect("a line")["ended"]["status"], 0);

    // At the end who waits is told so, and not that it is done.
    let mut client = clients.pop().expect("one that waits");
    let reading = tokio::spawn(async move {
        let mut rest = String::new();
        client.read_to_string(&mut rest).await.expect("to its end");
        rest
    });
    server.stop().await;
    let rest = timeout(PATIENCE, reading).await.expect("in time").expect("read");
    assert!(rest.contains(r#""status":1"#) && rest.contains("vecsync stops"), "{rest}");
}
