//! The socket in the data directory through which commands reach a running vecsync: one JSON line each way.

use std::fs::{File, TryLockError};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::shutdown::Shutdown;
use crate::topic::LetterId;
use crate::topic::replay::{Source, Target};

/// Longest command that is read.
const LINE_BYTES_MAX: u64 = 1 << 20;
/// Longest answer that is read: a record of 16 MiB, each byte of which JSON may spell with six.
const REPLY_BYTES_MAX: u64 = 128 << 20;
/// `sun_path` of unix(7), without its closing NUL.
const SOCKET_PATH_BYTES_MAX: usize = 107;
/// Commands at the same time.
const CONNECTIONS_MAX: usize = 16;
/// A command's first line must come within this time.
const REQUEST_PATIENCE: Duration = Duration::from_secs(5);

/// What a command asks of a running vecsync.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Bring the log back to the table; done when all of it is there.
    Sync {
        /// Whether texts that did not change are embedded again, too.
        force: bool,
        /// Rows of a batch.
        batch_rows: u32,
    },
    /// Wait until the stores hold all that was committed before a moment, and say what was done so far.
    Arrive {
        /// The moment, milliseconds since the Unix epoch; none: no waiting.
        as_of_ms: Option<i64>,
    },
    /// Count the rows of the table and of the log.
    SourceStats,
    /// Count the rows of the stores.
    StoreStats,
    /// List the dead letters.
    DeadLetters,
    /// Show one with its bytes.
    DeadLetter {
        /// Which.
        id: LetterId,
    },
    /// Read the rows of these again and publish them; of all of them where none is named.
    RetryDeadLetters {
        /// Which.
        ids: Vec<LetterId>,
    },
    /// Read a topic again from its beginning.
    Replay {
        /// Which.
        topic: Source,
        /// Where to.
        into: Target,
    },
    /// Compare the table with the stores.
    Verify {
        /// Whether rows that have drifted are published again.
        repair: bool,
    },
    /// Read the rows of these keys and publish them again. Asked by a process that keeps a store and captures nothing.
    Republish {
        /// The keys as JSON.
        keys: Vec<String>,
    },
    /// Fill a new generation in Qdrant, and remove the others.
    Recreate,
    /// Let the mirror answer in Qdrant's place for so long.
    Drill {
        /// How long.
        seconds: u64,
    },
    /// Write a backup.
    Backup {
        /// The folder that it becomes; absolute.
        dir: PathBuf,
    },
}

impl Request {
    /// Who can do it.
    fn door(&self) -> Door {
        match self {
            Request::Sync { .. }
            | Request::SourceStats
            | Request::DeadLetters
            | Request::DeadLetter { .. }
            | Request::RetryDeadLetters { .. }
            | Request::Republish { .. } => Door::Capture,
            Request::Replay { .. }
            | Request::Arrive { .. }
            | Request::StoreStats
            | Request::Recreate
            | Request::Verify { .. }
            | Request::Drill { .. }
            | Request::Backup { .. } => Door::Store,
        }
    }
}

/// Whose socket it is: with a broker the roles of one data directory may be in processes of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// Who captures.
    Capture,
    /// Who keeps the store.
    Store,
}

impl Door {
    fn name(self) -> &'static str {
        match self {
            Door::Capture => "control",
            Door::Store => "store",
        }
    }

    fn role(self) -> &'static str {
        match self {
            Door::Capture => "that captures",
            Door::Store => "that keeps a store",
        }
    }
}

/// A line of an answer: how far it is any number of times, then what it is.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    /// So much of so much is done.
    Passed(u64, u64),
    #[serde(untagged)]
    Reply(Reply),
}

/// What it answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// Done, with what there is to say.
    Done(Value),
    /// Not done, and why.
    Failed(String),
}

/// Answers requests.
pub type Handler = std::sync::Arc<dyn Fn(Request, Passed) -> BoxFuture<'static, Reply> + Send + Sync>;

/// Told how much of how much is done.
pub type Passed = watch::Sender<(u64, u64)>;

/// The socket cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// It cannot be made.
    #[error("open control socket {path}")]
    Bind {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another process does the same for this data directory.
    #[error(
        "use data directory {path}: another vecsync has it; stop that one, or set VECSYNC_DATA_DIR to another folder"
    )]
    Taken {
        /// The folder.
        path: PathBuf,
    },
    /// No vecsync listens.
    #[error("no vecsync {role} listens at {path}: start it, or set VECSYNC_DATA_DIR to the folder of one that runs")]
    NotRunning {
        /// What it would be.
        role: &'static str,
        /// The socket.
        path: PathBuf,
    },
    /// It broke while talking.
    #[error("talk to vecsync through {path}")]
    Talk {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It ended while it was at it.
    #[error("talk to vecsync through {path}: it ended before it had answered; what it was asked for may be half done")]
    Ended {
        /// The socket.
        path: PathBuf,
    },
    /// The command was not done.
    #[error("{0}")]
    Failed(String),
}

/// A socket of a data directory.
pub fn path(data_dir: &Path, door: Door) -> PathBuf {
    data_dir.join(door.name()).with_extension("sock")
}

/// The socket, held for one process by a lock beside it.
pub struct Socket {
    listener: UnixListener,
    _lock: File,
}

/// Keeps every vecsync out of a data directory that would open this door there, as long as what it gives is held.
pub fn lock(data_dir: &Path, door: Door) -> Result<File, ControlError> {
    let path = path(data_dir, door);
    let failed = |source| ControlError::Bind { path: path.clone(), source };
    let lock = File::options().create(true).truncate(false).write(true).open(path.with_extension("lock"));
    let lock = lock.map_err(failed)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(ControlError::Taken { path: data_dir.to_owned() }),
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

/// Whether a running vecsync has this door of a data directory open. Asks it nothing.
pub fn is_open(data_dir: &Path, door: Door) -> bool {
    let connected = reachable(&path(data_dir, door))
        .and_then(|(_folder, reachable)| std::os::unix::net::UnixStream::connect(reachable));
    connected.is_ok()
}

/// Opens the socket, mode 0600. A socket that is there is a dead one: who listens holds the lock.
pub fn bind(data_dir: &Path, door: Door) -> Result<Socket, ControlError> {
    let lock = lock(data_dir, door)?;
    let path = path(data_dir, door);
    let failed = |source| ControlError::Bind { path: path.clone(), source };
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let (_folder, reachable) = reachable(&path).map_err(failed)?;
    let listener = UnixListener::bind(reachable).map_err(failed)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    Ok(Socket { listener, _lock: lock })
}

/// A name of the socket that fits into a socket address, which holds 107 bytes on Linux: a longer path is reached
/// through its open folder, which must stay open until the name has been used.
fn reachable(path: &Path) -> io::Result<(Option<File>, PathBuf)> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { return Ok((None, path.to_owned())) };
    if path.as_os_str().len() <= SOCKET_PATH_BYTES_MAX {
        return Ok((None, path.to_owned()));
    }
    let folder = File::open(folder)?;
    let short = Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(name);
    Ok((Some(folder), short))
}

/// Answers commands until shutdown.
pub async fn run(socket: Socket, handler: Handler, shutdown: Shutdown) {
    let listener = &socket.listener;
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = shutdown.raised() => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => match accepted {
                Ok((stream, _)) => {
                    let handler = handler.clone();
                    connections.spawn(async move {
                        if let Err(error) = answer(stream, handler).await {
                            tracing::debug!(%error, "control connection");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "accept on the control socket");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
        }
    }
    connections.shutdown().await;
}

async fn answer(mut stream: UnixStream, handler: Handler) -> io::Result<()> {
    let mut line = String::new();
    let (read, mut write) = stream.split();
    let mut limited = BufReader::new(read.take(LINE_BYTES_MAX));
    tokio::time::timeout(REQUEST_PATIENCE, limited.read_line(&mut line)).await??;
    let (passed, mut told) = watch::channel((0, 0));
    let mut answering = match serde_json::from_str(&line) {
        // It goes on although who asked may go away.
        Ok(request) => tokio::spawn(handler(request, passed)),
        Err(error) => {
            let reply = Reply::Failed(format!("read the command: {error}"));
            tokio::spawn(async move { reply })
        }
    };
    let mut say = async |line: &Line| -> io::Result<()> {
        write.write_all(format!("{}\n", serde_json::to_string(line)?).as_bytes()).await
    };
    // Who asks sends nothing more: the end of what comes from there is the end of the connection.
    let mut rest = [0; 64];
    let reply = loop {
        tokio::select! {
            biased;
            read = limited.read(&mut rest) => if !matches!(read, Ok(1..)) { return Ok(()) },
            reply = &mut answering => break reply.map_err(io::Error::other)?,
            Ok(()) = told.changed() => {
                let (done, total) = *told.borrow_and_update();
                say(&Line::Passed(done, total)).await?;
            }
        }
    };
    say(&Line::Reply(reply)).await?;
    write.shutdown().await
}

/// Sends a command to the vecsync that runs on this data directory. `passed` is told how much of how much is done.
pub async fn call(data_dir: &Path, request: Request, mut passed: impl FnMut(u64, u64)) -> Result<Value, ControlError> {
    let door = request.door();
    let path = path(data_dir, door);
    let connected = match reachable(&path) {
        Ok((_folder, reachable)) => UnixStream::connect(reachable).await,
        Err(error) => Err(error),
    };
    let mut stream = match connected {
        Ok(stream) => stream,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Err(ControlError::NotRunning { role: door.role(), path });
        }
        Err(source) => return Err(ControlError::Talk { path, source }),
    };
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    let talk = async {
        stream.write_all(format!("{}\n", serde_json::to_string(&request)?).as_bytes()).await?;
        let mut answers = BufReader::new(&mut stream);
        loop {
            let mut line = String::new();
            if (&mut answers).take(REPLY_BYTES_MAX).read_line(&mut line).await? == 0 {
                return Err(UnexpectedEof.into());
            }
            match serde_json::from_str(&line)? {
                Line::Passed(done, total) => passed(done, total),
                Line::Reply(Reply::Done(value)) => return Ok(Ok(value)),
                Line::Reply(Reply::Failed(reason)) => return Ok(Err(ControlError::Failed(reason))),
            }
        }
    };
    talk.await.unwrap_or_else(|source: io::Error| match source.kind() {
        UnexpectedEof | ConnectionReset | BrokenPipe => Err(ControlError::Ended { path }),
        _ => Err(ControlError::Talk { path, source }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn answering(reply: Reply) -> Handler {
        std::sync::Arc::new(move |_, _| {
            let reply = reply.clone();
            Box::pin(async move { reply })
        })
    }

    async fn refused_by_nobody(data_dir: &Path) {
        let refused = call(data_dir, Request::SourceStats, |_, _| ()).await.expect_err("nobody listens");
        assert!(matches!(refused, ControlError::NotRunning { .. }), "{refused}");
    }

    #[tokio::test]
    async fn a_command_is_answered_and_a_dead_socket_is_named() {
        let dir = tempfile::tempdir().expect("a folder");
        refused_by_nobody(dir.path()).await;

        let long = "x".repeat(2 * LINE_BYTES_MAX as usize);
        for reply in [Reply::Done(json!({"rows": 3})), Reply::Done(json!(long)), Reply::Failed("no".into())] {
            let listener = bind(dir.path(), Door::Capture).expect("a dead socket is replaced");
            let mode = std::fs::metadata(path(dir.path(), Door::Capture)).expect("there").permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
            let shutdown = Shutdown::new();
            let server = tokio::spawn(run(listener, answering(reply.clone()), shutdown.clone()));
            let answered = call(dir.path(), Request::SourceStats, |_, _| ()).await.map_err(|error| error.to_string());
            let wanted = match reply {
                Reply::Done(value) => Ok(value),
                Reply::Failed(reason) => Err(reason),
            };
            assert_eq!(answered, wanted);
            shutdown.raise();
            server.await.expect("it ends");
            // A vecsync that was killed leaves its socket behind.
            refused_by_nobody(dir.path()).await;
        }
    }

    #[tokio::test]
    async fn a_folder_whose_path_is_longer_than_a_socket_address_will_do() {
        let dir = tempfile::tempdir().expect("a folder");
        let deep = dir.path().join("a-folder-with-a-long-name".repeat(6));
        std::fs::create_dir(&deep).expect("made");
        let listener = bind(&deep, Door::Capture).expect("a socket");
        let shutdown = Shutdown::new();
        let server = tokio::spawn(run(listener, answering(Reply::Done(Value::Null)), shutdown.clone()));
        assert_eq!(call(&deep, Request::SourceStats, |_, _| ()).await.expect("an answer"), Value::Null);
        shutdown.raise();
        server.await.expect("it ends");
    }

    #[tokio::test]
    async fn what_is_no_command_is_refused_by_name() {
        let dir = tempfile::tempdir().expect("a folder");
        let listener = bind(dir.path(), Door::Capture).expect("a socket");
        let shutdown = Shutdown::new();
        let server = tokio::spawn(run(listener, answering(Reply::Done(Value::Null)), shutdown.clone()));
        let mut stream = UnixStream::connect(path(dir.path(), Door::Capture)).await.expect("a connection");
        stream.write_all(b"{\"command\":\"dance\"}\n").await.expect("written");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("read");
        assert!(answer.contains("failed") && answer.contains("dance"), "{answer}");
        shutdown.raise();
        server.await.expect("it ends");
    }
}
