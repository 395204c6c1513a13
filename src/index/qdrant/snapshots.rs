//! Snapshots of a generation over Qdrant's REST interface: made, fetched into a file, put back from one. Moves no alias and
//! judges no points.
//!
//! **Invariant:** a file is streamed, never held in memory; what Qdrant says of its hash is compared with what was written.

use std::error::Error;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{TryStreamExt, stream};
use http_body_util::{BodyExt, Empty, Full, LengthLimitError, Limited, StreamBody};
use hyper::body::{Body, Frame, Incoming};
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::Value;
use tokio::io::AsyncReadExt;
use tokio::time::timeout;

use crate::archive::{ArchiveError, FileInfo, Pace, Writer, files};
use crate::config::Qdrant as Server;
use crate::requests::{RequestError, Target, escaped};

/// How long Qdrant may take to make a snapshot, or to take one in when it has all of it: it copies or reads gigabytes.
const PATIENCE: Duration = Duration::from_secs(3600);
/// Largest answer that is a document, in bytes.
const DOCUMENT_BYTES_MAX: usize = 1 << 20;
/// Bytes of a file that are sent at once.
const CHUNK: usize = 256 << 10;
/// Separates the one part of a form from its end. It need not differ from anything in the file: the length is known.
const BOUNDARY: &str = "vecsync-6f1d0a5e3c1b4c47";

/// A snapshot was not made, fetched or put back.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// No answer.
    #[error("{operation} a snapshot of Qdrant collection {collection} at {url}")]
    Request {
        /// What was being done.
        operation: &'static str,
        /// The collection.
        collection: String,
        /// Where REST is.
        url: String,
        /// What the way there said.
        source: RequestError,
    },
    /// An answer that says no.
    #[error("{operation} a snapshot of Qdrant collection {collection} at {url}: it answers {status}: {said}")]
    Refused {
        /// What was being done.
        operation: &'static str,
        /// The collection.
        collection: String,
        /// Where REST is.
        url: String,
        /// HTTP status.
        status: u16,
        /// What it says itself.
        said: String,
    },
    /// No answer in time.
    #[error("{operation} a snapshot of Qdrant collection {collection} at {url}: nothing comes for {} s", after.as_secs())]
    Silent {
        /// What was being done.
        operation: &'static str,
        /// The collection.
        collection: String,
        /// Where REST is.
        url: String,
        /// How long it was waited for.
        after: Duration,
    },
    /// What came is not what Qdrant has.
    #[error("fetch a snapshot of Qdrant collection {collection}: it has SHA-256 {found}, Qdrant says {wanted}")]
    Checksum {
        /// The collection.
        collection: String,
        /// Of what came.
        found: String,
        /// What Qdrant says.
        wanted: String,
    },
    /// The file.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
}

/// A snapshot that Qdrant has made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Its name there.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    checksum: Option<String>,
}

/// The snapshots of one collection.
pub struct Snapshots {
    server: Server,
    url: String,
    collection: String,
}

/// Why a step came to nothing, before it is said of what.
enum Fault {
    Request(RequestError),
    Refused(StatusCode, String),
    Silent(Duration),
    Archive(ArchiveError),
}

impl From<RequestError> for Fault {
    fn from(error: RequestError) -> Self {
        Fault::Request(error)
    }
}

impl From<ArchiveError> for Fault {
    fn from(error: ArchiveError) -> Self {
        Fault::Archive(error)
    }
}

impl Snapshots {
    /// Those of this collection, which need not be there. Makes no connection.
    pub fn of(server: &Server, collection: &str) -> Snapshots {
        Snapshots { server: server.clone(), url: server.rest_url(), collection: collection.to_owned() }
    }

    /// Has Qdrant make one.
    pub async fn make(&self) -> Result<Snapshot, SnapshotError> {
        let made = self.ask(Method::POST, "?wait=true", PATIENCE).await;
        let made = made.map_err(|fault| self.failed("make", fault))?;
        let result = &made["result"];
        let Some(name) = result["name"].as_str() else {
            return Err(self.failed("make", Fault::Refused(StatusCode::OK, format!("{made:.200}"))));
        };
        let (bytes, checksum) = (result["size"].as_u64().unwrap_or_default(), result["checksum"].as_str());
        Ok(Snapshot { name: name.to_owned(), bytes, checksum: checksum.map(str::to_owned) })
    }

    /// Fetches one into a file.
    pub async fn fetch(&self, snapshot: &Snapshot, mut file: Writer) -> Result<FileInfo, SnapshotError> {
        let received = Arc::new(AtomicU64::new(0));
        let fetch = async {
            let (target, request) = self.request(Method::GET, &format!("/{}", snapshot.name), Empty::<Bytes>::new())?;
            let received = Arc::clone(&received);
            let read = async move |response: Response<Incoming>| {
                let mut response = accepted(response).await?;
                while let Some(frame) = response.frame().await {
                    let frame = frame.map_err(|error| RequestError::Broken(error.into()))?;
                    if let Ok(data) = frame.into_data() {
                        received.fetch_add(data.len() as u64, Ordering::Relaxed);
                        file.write(&data)?;
                    }
                }
                Ok::<_, Fault>(file)
            };
            let file = target.send(request, read).await?;
            let finished = tokio::task::spawn_blocking(move || file.finish()).await;
            Ok(finished.unwrap_or(Err(ArchiveError::Unwanted))?)
        };
        let fetch = self.watched(fetch, &received, |_| self.server.timeout);
        let info = fetch.await.map_err(|fault| self.failed("fetch", fault))?;
        match &snapshot.checksum {
            Some(wanted) if *wanted != info.sha256 => Err(SnapshotError::Checksum {
                collection: self.collection.clone(),
                found: info.sha256,
                wanted: wanted.clone(),
            }),
            _ => Ok(info),
        }
    }

    /// Removes one from Qdrant.
    pub async fn remove(&self, snapshot: &Snapshot) -> Result<(), SnapshotError> {
        let asked = self.ask(Method::DELETE, &format!("/{}?wait=true", snapshot.name), self.server.timeout).await;
        asked.map(drop).map_err(|fault| self.failed("remove", fault))
    }

    /// Makes the collection from a file, or replaces it.
    pub async fn put(&self, path: &Path, info: &FileInfo, pace: &Pace) -> Result<(), SnapshotError> {
        self.upload(path, info, pace).await.map_err(|fault| self.failed("put back", fault))
    }

    async fn upload(&self, path: &Path, info: &FileInfo, pace: &Pace) -> Result<(), Fault> {
        let head = format!(
            "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"snapshot\"; filename=\"backup.snapshot\"\r\n\
             Content-Type: application/octet-stream\r\n\r\n"
        );
        let end = format!("\r\n--{BOUNDARY}--\r\n");
        let length = head.len() as u64 + info.bytes + end.len() as u64;
        let sent = Arc::new(AtomicU64::new(0));
        let file = tokio::fs::File::open(path).await.map_err(files("open", path))?;
        let body = form(head, file.take(info.bytes), end, Arc::clone(&sent), pace.clone());
        let query = format!("/upload?priority=snapshot&wait=true&checksum={}", info.sha256);
        let (target, mut request) = self.request(Method::POST, &query, body)?;
        let kind = format!("multipart/form-data; boundary={BOUNDARY}");
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_str(&kind).map_err(|_| RequestError::Address)?);
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
        let sending = target.send(request, async |response: Response<Incoming>| document(response).await);
        // When Qdrant has all of it, it has work to do.
        let limit = |sent| if sent < info.bytes { self.server.timeout } else { PATIENCE };
        self.watched(sending, &sent, limit).await.map(drop)
    }

    /// Waits for something that moves bytes, and gives it up when none has moved for as long as `limit` says.
    async fn watched<T>(
        &self,
        work: impl Future<Output = Result<T, Fault>>,
        moved: &AtomicU64,
        limit: impl Fn(u64) -> Duration,
    ) -> Result<T, Fault> {
        let mut work = std::pin::pin!(work);
        let (stall, mut seen, mut silent) = (self.server.timeout, 0, Duration::ZERO);
        loop {
            if let Ok(done) = timeout(stall, &mut work).await {
                return done;
            }
            let now = moved.load(Ordering::Relaxed);
            silent = if now > seen { Duration::ZERO } else { silent + stall };
            seen = now;
            if silent >= limit(now) {
                return Err(Fault::Silent(limit(now)));
            }
        }
    }

    /// Asks something that is answered by a document.
    async fn ask(&self, method: Method, path: &str, patience: Duration) -> Result<Value, Fault> {
        let (target, request) = self.request(method, path, Full::<Bytes>::default())?;
        let sending = target.send(request, async |response: Response<Incoming>| document(response).await);
        timeout(patience, sending).await.map_err(|_| Fault::Silent(patience))?
    }

    fn request<B>(&self, method: Method, path: &str, body: B) -> Result<(Target, Request<B>), RequestError> {
        let target = Target::parse(&self.url)?;
        let path = format!("/collections/{}/snapshots{path}", escaped(&self.collection));
        let mut request = target.request(method, &path, body)?;
        if let Some(key) = &self.server.api_key {
            // The settings let only those keys through that a header can carry.
            let mut key = HeaderValue::from_str(key.expose()).map_err(|_| RequestError::Address)?;
            key.set_sensitive(true);
            request.headers_mut().insert("api-key", key);
        }
        Ok((target, request))
    }

    fn failed(&self, operation: &'static str, fault: Fault) -> SnapshotError {
        let (collection, url) = (self.collection.clone(), self.url.clone());
        match fault {
            Fault::Request(source) => SnapshotError::Request { operation, collection, url, source },
            Fault::Refused(status, said) => {
                SnapshotError::Refused { operation, collection, url, status: status.as_u16(), said }
            }
            Fault::Silent(after) => SnapshotError::Silent { operation, collection, url, after },
            Fault::Archive(error) => SnapshotError::Archive(error),
        }
    }
}

/// A form with a file as its one part (RFC 7578).
fn form(
    head: String,
    file: tokio::io::Take<tokio::fs::File>,
    end: String,
    sent: Arc<AtomicU64>,
    pace: Pace,
) -> impl Body<Data = Bytes, Error = Box<dyn Error + Send + Sync>> {
    let file = stream::try_unfold(file, move |mut file| {
        let (sent, pace) = (Arc::clone(&sent), pace.clone());
        async move {
            let mut chunk = Vec::with_capacity(CHUNK);
            file.read_buf(&mut chunk).await?;
            sent.fetch_add(chunk.len() as u64, Ordering::Relaxed);
            pace.add(chunk.len() as u64).map_err(io::Error::other)?;
            Ok::<_, io::Error>((!chunk.is_empty()).then(|| (Bytes::from(chunk), file)))
        }
    });
    let one = |text: String| stream::iter([Ok(Bytes::from(text))]);
    let all = futures_util::StreamExt::chain(futures_util::StreamExt::chain(one(head), file), one(end));
    StreamBody::new(Box::pin(all.map_ok(Frame::data).map_err(Into::into)))
}

async fn document(response: Response<Incoming>) -> Result<Value, Fault> {
    let body = accepted(response).await?;
    let body = Limited::new(body, DOCUMENT_BYTES_MAX).collect().await;
    let body = body.map_err(RequestError::Broken)?.to_bytes();
    serde_json::from_slice(&body).map_err(|error| RequestError::Broken(error.into()).into())
}

/// The answer's body, where it says yes.
async fn accepted(response: Response<Incoming>) -> Result<Incoming, Fault> {
    let status = response.status();
    if status == StatusCode::OK {
        return Ok(response.into_body());
    }
    let body = match Limited::new(response.into_body(), DOCUMENT_BYTES_MAX).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => Bytes::new(),
        Err(error) => return Err(RequestError::Broken(error).into()),
    };
    let said: Option<Value> = serde_json::from_slice(&body).ok();
    let said = said.as_ref().and_then(|said| said["status"]["error"].as_str());
    Err(Fault::Refused(status, said.or(status.canonical_reason()).unwrap_or("no reason given").to_owned()))
}
