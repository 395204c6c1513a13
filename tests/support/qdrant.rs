//! A private Qdrant: the test server of qdrant-server/, or the real one that `QDRANT_TEST_URL` names.

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use qdrant_client::qdrant::{
    CollectionExistsRequest, CreateCollectionBuilder, Distance, OptimizersConfigDiffBuilder, VectorParamsBuilder,
};
use tempfile::TempDir;

use super::process::{free_port, signal, wait_for_exit, wait_until};

/// Longer than a start takes that has a journal to do again.
const START: Duration = Duration::from_secs(120);
const STOP: Duration = Duration::from_secs(60);
/// How long a question to it may take.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// Width of every vector.
pub const WIDTH: usize = 384;

pub struct Qdrant {
    host: String,
    pub grpc_port: u16,
    pub http_port: u16,
    /// Settings of the test server: its environment.
    environment: Vec<(&'static str, String)>,
    key: Option<String>,
    own: Option<Own>,
}

struct Own {
    folder: TempDir,
    server: Option<Child>,
}

impl Qdrant {
    /// The real one if `QDRANT_TEST_URL` names its gRPC (REST is one port below, as in Qdrant's defaults), else a test
    /// server of one's own. Tests share a real one, so they take `name`s for what they make.
    pub fn start() -> Qdrant {
        let Ok(url) = std::env::var("QDRANT_TEST_URL") else { return Qdrant::own() };
        let place = url.trim_start_matches("http://").trim_end_matches('/');
        let (host, port) = place.rsplit_once(':').expect("QDRANT_TEST_URL is http://host:port");
        let grpc_port: u16 = port.parse().expect("QDRANT_TEST_URL ends with a port");
        let (environment, key) = (vec![], None);
        Qdrant { host: host.to_owned(), grpc_port, http_port: grpc_port - 1, environment, key, own: None }
    }

    /// A test server, to be harmed.
    pub fn own() -> Qdrant {
        Qdrant::own_with(None, &[])
    }

    /// A test server that asks for a key, or with faults of its own.
    pub fn own_with(key: Option<&str>, environment: &[(&'static str, &str)]) -> Qdrant {
        let folder = tempfile::Builder::new().prefix("vecsync-qdrant-").tempdir().expect("make a folder");
        let mut qdrant = Qdrant {
            host: "127.0.0.1".to_owned(),
            grpc_port: free_port(),
            http_port: free_port(),
            environment: environment.iter().map(|(name, value)| (*name, (*value).to_owned())).collect(),
            key: key.map(str::to_owned),
            own: Some(Own { folder, server: None }),
        };
        qdrant.restart();
        qdrant
    }

    /// Where its gRPC is.
    pub fn url(&self) -> String {
        format!("http://{}:{}", self.host, self.grpc_port)
    }

    /// How vecsync is told of it.
    pub fn settings(&self) -> vecsync::config::Qdrant {
        vecsync::config::Qdrant {
            host: self.host.clone(),
            port: self.http_port,
            grpc_port: self.grpc_port,
            api_key: self.key.clone().map(vecsync::config::Secret::new),
            tls: false,
            collection: "none".to_owned(),
            timeout: PATIENCE,
        }
    }

    /// A setting of the test server from its next start on.
    pub fn set(&mut self, name: &'static str, value: &str) {
        self.environment.push((name, value.to_owned()));
    }

    pub fn client(&self) -> qdrant_client::Qdrant {
        self.client_with(self.key.as_deref())
    }

    pub fn client_with(&self, key: Option<&str>) -> qdrant_client::Qdrant {
        let client = qdrant_client::Qdrant::from_url(&self.url()).timeout(PATIENCE).skip_compatibility_check();
        let client = match key {
            Some(key) => client.api_key(key),
            None => client,
        };
        client.build().expect("a client")
    }

    /// A name for a collection or alias that no other test has.
    pub fn name(&self, what: &str) -> String {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        format!("vecsync_test_{}_{}_{what}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// A collection of cosine vectors, made now.
    pub async fn collection(&self, what: &str) -> String {
        let name = self.name(what);
        let request = CreateCollectionBuilder::new(&name)
            .vectors_config(VectorParamsBuilder::new(WIDTH as u64, Distance::Cosine))
            .optimizers_config(OptimizersConfigDiffBuilder::default().default_segment_number(2));
        self.client().create_collection(request).await.expect("the collection is made");
        let request = CollectionExistsRequest { collection_name: name.clone() };
        assert!(
            self.client().collection_exists(request).await.expect("Qdrant answers"),
            "{name} was made and is not there"
        );
        name
    }

    /// What a crash leaves behind.
    pub fn kill(&mut self) {
        let server = self.own_mut().server.take();
        if let Some(mut server) = server {
            signal(&server, "KILL");
            wait_for_exit(&mut server, STOP);
        }
    }

    /// `STOP` makes it hang, `CONT` lets it go on.
    pub fn signal(&mut self, name: &str) {
        signal(self.own_mut().server.as_ref().expect("it runs"), name);
    }

    /// Starts it on its data, and waits until it is ready.
    pub fn restart(&mut self) {
        let binary = std::env::var_os("VECSYNC_TEST_QDRANT").expect("VECSYNC_TEST_QDRANT is not set: use `make test`");
        let mut command = Command::new(binary);
        command.args(["--grpc-port", &self.grpc_port.to_string(), "--http-port", &self.http_port.to_string()]);
        command.args(self.key.iter().flat_map(|key| ["--api-key", key]));
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        let http_port = self.http_port;
        let own = self.own_mut();
        assert!(own.server.is_none(), "it runs already");
        let log = own.folder.path().join("qdrant.log");
        let errors = File::options().create(true).append(true).open(&log).expect("open the server's log");
        command.arg("--data").arg(own.folder.path().join("data"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors);
        let mut server = command.spawn().expect("start the test server");
        wait_until("the test server to be ready", START, || {
            if let Some(status) = server.try_wait().expect("ask for the process") {
                panic!("it ended with {status}: {}", std::fs::read_to_string(&log).unwrap_or_default());
            }
            match TcpStream::connect(("127.0.0.1", http_port)) {
                Ok(_) => Ok(()),
                Err(error) => Err(error.to_string()),
            }
        });
        own.server = Some(server);
    }

    #[track_caller]
    fn own_mut(&mut self) -> &mut Own {
        self.own.as_mut().expect("a test that harms it starts its own")
    }

    /// Asks its REST interface. Gives status and body.
    pub fn rest(&self, method: &str, path: &str, kind: &str, body: &[u8]) -> (u16, Vec<u8>) {
        let mut stream = TcpStream::connect((self.host.as_str(), self.http_port)).expect("connect to its REST");
        stream.set_read_timeout(Some(PATIENCE)).expect("a deadline");
        let key = self.key.as_ref().map(|key| format!("api-key: {key}\r\n")).unwrap_or_default();
        let length = body.len();
        // HTTP/1.0 has neither chunks nor a connection that stays.
        let head = format!(
            "{method} {path} HTTP/1.0\r\nHost: qdrant\r\n{key}Content-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body)).expect("ask its REST");
        let mut answer = vec![];
        stream.read_to_end(&mut answer).expect("read its answer");
        let end = answer.windows(4).position(|four| four == b"\r\n\r\n").expect("a head");
        let head = String::from_utf8_lossy(&answer[..end]).into_owned();
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        (status, answer.split_off(end + 4))
    }

    /// Puts a snapshot's file where a collection is or is to be.
    pub fn upload(&self, collection: &str, snapshot: &[u8]) {
        let (status, answer) = self.try_upload(collection, snapshot, "");
        assert_eq!(status, 200, "{}", String::from_utf8_lossy(&answer));
    }

    /// As `upload`, with more behind the query string. Gives status and body.
    pub fn try_upload(&self, collection: &str, snapshot: &[u8], more: &str) -> (u16, Vec<u8>) {
        const BOUNDARY: &str = "vecsync-test-boundary";
        let mut body = format!(
            "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"snapshot\"; filename=\"a.snapshot\"\r\n\
             Content-Type: application/octet-stream\r\n\r\n"
        )
        .into_bytes();
        body.extend_from_slice(snapshot);
        body.extend_from_slice(format!("\r\n--{BOUNDARY}--\r\n").as_bytes());
        let path = format!("/collections/{collection}/snapshots/upload?priority=snapshot&wait=true{more}");
        self.rest("POST", &path, &format!("multipart/form-data; boundary={BOUNDARY}"), &body)
    }
}

impl Drop for Qdrant {
    fn drop(&mut self) {
        if let Some(mut server) = self.own.as_mut().and_then(|own| own.server.take()) {
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}
