//! The few paths of the REST interface that are needed: health, the list of collections, snapshots' files.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Frame, Incoming};
use hyper::header::HeaderValue;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use qdrant_client::qdrant::SnapshotDescription;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tonic::{Code, Status};

use crate::{Site, TITLE, VERSION, allowed};

type Body = BoxBody<Bytes, io::Error>;

/// A part of a form is announced in so many bytes at most.
const PART_HEAD_MAX: usize = 16 << 10;
const CHUNK: usize = 256 << 10;

pub async fn serve(listener: TcpListener, site: Site, key: Option<Arc<str>>) -> io::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        let (site, key) = (site.clone(), key.clone());
        tokio::spawn(async move {
            let service = service_fn(move |request| respond(request, site.clone(), key.clone()));
            // A client that goes away in the middle is its own affair.
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn respond(request: Request<Incoming>, site: Site, key: Option<Arc<str>>) -> io::Result<Response<Body>> {
    let from = Instant::now();
    let path = request.uri().path().to_owned();
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let is_open = matches!(parts.as_slice(), [] | ["healthz" | "livez" | "readyz"]);
    if let Some(key) = key.as_deref().filter(|_| !is_open)
        && let Err(status) = allowed(key, |name| request.headers().get(name)?.to_str().ok())
    {
        return Ok(refused(&status, from));
    }
    let answer = match (request.method().clone(), parts.as_slice()) {
        (Method::GET, []) => return Ok(whole(StatusCode::OK, json!({"title": TITLE, "version": VERSION}).to_string())),
        (Method::GET, [name @ ("healthz" | "livez" | "readyz")]) => {
            return Ok(whole(
                StatusCode::OK,
                if *name == "readyz" { "all shards are ready" } else { "healthz check passed" },
            ));
        }
        (Method::GET, ["collections"]) => site.run(|store| Ok(store.names())).await.map(|(names, _)| {
            let names: Vec<Value> = names.into_iter().map(|name| json!({"name": name})).collect();
            json!({"collections": names})
        }),
        (Method::GET, ["collections", name, "snapshots", snapshot]) => {
            let (name, snapshot) = ((*name).to_owned(), (*snapshot).to_owned());
            match site.run(move |store| store.snapshot(&name, &snapshot)).await {
                Ok((path, _)) => return download(&path),
                Err(status) => Err(status),
            }
        }
        (Method::POST, ["collections", name, "snapshots", "upload"]) => {
            let name = (*name).to_owned();
            restore(request, &site, name).await.map(|()| json!(true))
        }
        (Method::POST, ["collections", name, "snapshots"]) => {
            let name = (*name).to_owned();
            site.run(move |store| store.create_snapshot(&name)).await.map(|(made, _)| description(made))
        }
        (Method::GET, ["collections", name, "snapshots"]) => {
            let name = (*name).to_owned();
            let listed = site.run(move |store| store.list_snapshots(&name)).await;
            listed.map(|(listed, _)| listed.into_iter().map(description).collect())
        }
        (Method::DELETE, ["collections", name, "snapshots", snapshot]) => {
            let (name, snapshot) = ((*name).to_owned(), (*snapshot).to_owned());
            site.run(move |store| store.delete_snapshot(&name, &snapshot)).await.map(|_| json!(true))
        }
        _ => return Ok(whole(StatusCode::NOT_IMPLEMENTED, "the test server does not do this")),
    };
    Ok(match answer {
        Ok(result) => {
            let time = from.elapsed().as_secs_f64();
            whole(StatusCode::OK, json!({"result": result, "status": "ok", "time": time}).to_string())
        }
        Err(status) => refused(&status, from),
    })
}

fn whole(status: StatusCode, body: impl Into<Bytes>) -> Response<Body> {
    let body: Bytes = body.into();
    let kind = if body.starts_with(b"{") { "application/json" } else { "text/plain" };
    let mut response = Response::new(Full::new(body).map_err(|never| match never {}).boxed());
    *response.status_mut() = status;
    response.headers_mut().insert("content-type", HeaderValue::from_static(kind));
    response
}

fn refused(status: &Status, from: Instant) -> Response<Body> {
    let code = match status.code() {
        Code::InvalidArgument => StatusCode::BAD_REQUEST,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists => StatusCode::CONFLICT,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    let body = json!({"result": null, "status": {"error": status.message()}, "time": from.elapsed().as_secs_f64()});
    whole(code, body.to_string())
}

/// A snapshot as REST tells of it; times are without a zone there.
fn description(snapshot: SnapshotDescription) -> Value {
    let time = snapshot.creation_time.map(|time| time.to_string().trim_end_matches('Z').to_owned());
    json!({"name": snapshot.name, "creation_time": time, "size": snapshot.size, "checksum": snapshot.checksum})
}

fn download(path: &Path) -> io::Result<Response<Body>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let (chunks, receiver) = tokio::sync::mpsc::channel(4);
    tokio::task::spawn_blocking(move || {
        loop {
            let mut buffer = vec![0; CHUNK];
            let chunk = file.read(&mut buffer).map(|read| {
                buffer.truncate(read);
                Frame::data(Bytes::from(buffer))
            });
            let is_end = chunk.as_ref().is_ok_and(|frame| frame.data_ref().is_none_or(Bytes::is_empty));
            let has_failed = chunk.is_err();
            if is_end || chunks.blocking_send(chunk).is_err() || has_failed {
                return;
            }
        }
    });
    let mut response = Response::new(Chunks(receiver).boxed());
    response.headers_mut().insert("content-length", HeaderValue::from(length));
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/octet-stream"));
    Ok(response)
}

async fn restore(request: Request<Incoming>, site: &Site, name: String) -> Result<(), Status> {
    let failed = |error: &dyn std::fmt::Display| Status::internal(format!("Service internal error: {error}"));
    let path = site.store.scratch();
    let mut file = File::create(&path).map_err(|error| failed(&error))?;
    let mut query = request.uri().query().unwrap_or_default().split('&');
    let wanted = query.find_map(|part| part.strip_prefix("checksum=")).map(str::to_owned);
    let mut body = request.into_body();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.map_err(|error| failed(&error))?.into_data() {
            file.write_all(&data).map_err(|error| failed(&error))?;
        }
    }
    let done = site
        .run(move |store| {
            let part = part(&path).map_err(|error| failed(&error))?;
            let done = store.restore(&name, &path, part, wanted.as_deref());
            // A file that stays in scratch goes with the next start.
            let _ = std::fs::remove_file(&path);
            done
        })
        .await;
    done.map(|((), _)| ())
}

/// Where the one part of a form (RFC 7578) is: behind the empty line that ends its head, up to the line that ends the form.
fn part(path: &Path) -> io::Result<Range<u64>> {
    let mut file = File::open(path)?;
    let (mut head, length) = (vec![], file.metadata()?.len());
    (&mut file).take(PART_HEAD_MAX as u64).read_to_end(&mut head)?;
    let line = head.windows(2).position(|two| two == b"\r\n").unwrap_or_default();
    let end = head.windows(4).position(|four| four == b"\r\n\r\n");
    let begin = end.ok_or_else(|| io::Error::other("no part of a form"))? as u64 + 4;
    // The last line is that of the part's head, two dashes behind it, and mostly a line's end.
    let last = [b"\r\n", &head[..line], b"--"].concat();
    let mut tail = vec![];
    let from = length.saturating_sub(last.len() as u64 + 2).max(begin);
    file.seek(SeekFrom::Start(from))?;
    file.read_to_end(&mut tail)?;
    let end = tail.windows(last.len()).position(|found| found == last);
    let end = end.ok_or_else(|| io::Error::other("the form has no end"))?;
    Ok(begin..from + end as u64)
}

/// The chunks of a file as they are read.
struct Chunks(tokio::sync::mpsc::Receiver<io::Result<Frame<Bytes>>>);

impl hyper::body::Body for Chunks {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.0.poll_recv(context)
    }
}
