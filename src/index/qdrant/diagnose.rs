//! Why Qdrant cannot be reached, as far as its ports tell: what each of them speaks. Sends no request of Qdrant's.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::Code;

use super::QdrantError;
use crate::config::Qdrant as Server;

/// How long a port may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// As much of an answer as is looked at.
const ANSWER_BYTES_MAX: u64 = 4096;
/// How a client of HTTP/2 begins (RFC 9113, 3.4), with empty settings.
const HTTP2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";
const HTTP1: &[u8] = b"GET / HTTP/1.1\r\nHost: qdrant\r\nConnection: close\r\n\r\n";
/// The type of a frame of HTTP/2 stands here; settings are the first.
const FRAME_TYPE: usize = 3;
const SETTINGS: u8 = 4;
/// Records of TLS by their first byte: alert, handshake.
const TLS_RECORDS: [u8; 2] = [0x15, 0x16];

/// What a port speaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Spoken {
    /// It cannot be connected to, and why.
    Nothing(String),
    /// HTTP/1, as Qdrant's REST does.
    Http1,
    /// HTTP/2 without TLS, as Qdrant's gRPC does.
    Http2,
    /// TLS.
    Tls,
    /// It takes connections and answers nothing.
    Silence,
    /// Something else.
    Unknown,
}

/// What probably mends that gRPC could not be used; `None`: the ports do not tell.
pub async fn remedy(server: &Server, error: &QdrantError) -> Option<String> {
    let may_be_the_way = match error {
        QdrantError::Call { status, .. } => {
            matches!(
                status.code(),
                Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled | Code::DeadlineExceeded
            )
        }
        QdrantError::Silent { .. } => true,
        _ => false,
    };
    if !may_be_the_way {
        return None;
    }
    let port = server.grpc_port;
    match (spoken(&server.host, port).await, server.tls) {
        (Spoken::Http1, _) => Some(format!(
            "port {port} speaks HTTP/1, as Qdrant's REST does: set QDRANT_GRPC_PORT to its port for gRPC (6334 unless \
             configured otherwise), and QDRANT_PORT to that for REST"
        )),
        (Spoken::Tls, false) => Some(format!("port {port} speaks TLS: set QDRANT_TLS=true")),
        (Spoken::Http2, true) => Some(format!("port {port} speaks gRPC without TLS: set QDRANT_TLS=false")),
        (Spoken::Nothing(_), _) => Some(match spoken(&server.host, server.port).await {
            Spoken::Http1 => format!(
                "nothing can be reached at port {port}, but REST answers at port {}: set QDRANT_GRPC_PORT to the port for \
                 gRPC, and see that gRPC is on and its port is open",
                server.port
            ),
            _ => format!(
                "nothing can be reached at {} port {port}: start Qdrant, or correct QDRANT_HOST and QDRANT_GRPC_PORT",
                server.host
            ),
        }),
        (Spoken::Silence, _) => Some(format!(
            "port {port} takes connections and answers nothing within {} s: Qdrant stands still or has too much to do (its log \
             and the machine's load tell; start it again), or something else has the port",
            PATIENCE.as_secs()
        )),
        _ => None,
    }
}

/// What is wrong with the port for REST, and what mends it; `None`: it is REST.
pub async fn rest_remedy(server: &Server) -> Option<String> {
    let (port, grpc_port) = (server.port, server.grpc_port);
    match (spoken(&server.host, port).await, server.tls) {
        (Spoken::Http1, false) | (Spoken::Tls, true) => None,
        (Spoken::Http1, true) => {
            Some(format!("port {port} speaks HTTP without TLS while QDRANT_TLS is true: REST needs TLS, too"))
        }
        (Spoken::Tls, false) => {
            Some(format!("port {port} speaks TLS, and port {grpc_port} does not: REST and gRPC need the same"))
        }
        (Spoken::Nothing(why), _) => Some(format!(
            "nothing can be reached at port {port} ({why}): set QDRANT_PORT to Qdrant's port for REST (6333 unless \
             configured otherwise)"
        )),
        (Spoken::Silence, _) => {
            Some(format!("port {port} for REST takes connections and answers nothing: is Qdrant at a standstill?"))
        }
        (Spoken::Http2 | Spoken::Unknown, _) => Some(format!(
            "port {port} is not Qdrant's REST: set QDRANT_PORT to that (6333 unless configured otherwise), and \
             QDRANT_GRPC_PORT to the one for gRPC"
        )),
    }
}

/// Finds out what a port speaks.
async fn spoken(host: &str, port: u16) -> Spoken {
    match answer(host, port, HTTP1).await {
        Err(error) => return Spoken::Nothing(error.to_string()),
        Ok(answer) if says_tls(&answer) => return Spoken::Tls,
        Ok(answer) if answer.starts_with(b"HTTP/1.") => return Spoken::Http1,
        Ok(_) => {}
    }
    match answer(host, port, HTTP2).await {
        Err(error) => Spoken::Nothing(error.to_string()),
        Ok(answer) if says_tls(&answer) => Spoken::Tls,
        Ok(answer) if answer.get(FRAME_TYPE) == Some(&SETTINGS) => Spoken::Http2,
        Ok(answer) if answer.is_empty() => Spoken::Silence,
        Ok(_) => Spoken::Unknown,
    }
}

fn says_tls(answer: &[u8]) -> bool {
    let is_record = answer.first().is_some_and(|first| TLS_RECORDS.contains(first)) && answer.get(1) == Some(&3);
    // Some servers of HTTPS say so in plain HTTP.
    is_record || (answer.starts_with(b"HTTP/1.") && answer.windows(5).any(|five| five == b"HTTPS"))
}

/// The first of what a port answers; nothing where it is silent. An error: it cannot be connected to.
async fn answer(host: &str, port: u16, greeting: &[u8]) -> io::Result<Vec<u8>> {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let mut stream = timeout(PATIENCE, TcpStream::connect((host, port)))
        .await
        .unwrap_or_else(|_| Err(io::Error::other(format!("no answer for {} s", PATIENCE.as_secs()))))?;
    let mut answer = vec![];
    let talk = async {
        stream.write_all(greeting).await?;
        // What came before a reset counts.
        while (answer.len() as u64) < ANSWER_BYTES_MAX && stream.read_buf(&mut answer).await? > 0 {
            if greeting == HTTP2 && answer.len() > FRAME_TYPE {
                break;
            }
        }
        io::Result::Ok(())
    };
    let _silent_or_reset = timeout(PATIENCE, talk).await;
    Ok(answer)
}
