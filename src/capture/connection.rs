//! A connection for logical replication: its commands, and the stream it turns into. Decodes no output plugin.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use postgres_protocol::message::backend::{DataRowBody, Message};
use postgres_protocol::message::frontend;
use tokio_postgres::config::TargetSessionAttrs;
use tokio_postgres::fallible_iterator::FallibleIterator;

pub use super::fault::{CommandError, ConnectError, ServerError, StreamError, remedy};
use super::link::Link;
use super::login::{LoggedIn, login};
use super::socket::{Route, Target};
use super::sql::check_session;
pub use super::wire::Frame;
use super::wire::{self, FRAME_BYTES_MAX, ServerFrame, WireError};
use crate::config::Database;
use crate::event::Lsn;

/// No command that is used here answers with more; a server that sends more is not held in memory.
const ROWS_MAX: usize = 10_000;

/// The end of a stream is a courtesy that frees the slot at once; it is not worth a longer wait.
const FINISH_TIMEOUT: Duration = Duration::from_secs(2);

/// A connection with `replication=database`, between commands.
pub struct ReplicationConnection {
    link: Link,
    backend_pid: i32,
    /// The answer of the last command has been read to its end.
    in_step: bool,
}

/// Who the server is and how far it has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SystemIdentity {
    /// The cluster's identifier, made by initdb.
    pub system_id: u64,
    /// Its timeline; a promotion begins a new one.
    pub timeline: u32,
    /// How far WAL is flushed.
    pub flushed: Lsn,
    /// The database of this connection.
    pub database: String,
}

/// Whether a new slot comes with a snapshot to read the tables by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExportSnapshot {
    /// Export one. It lives until this connection's next command, or its end.
    Export,
    /// None.
    No,
}

/// A slot that was just made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreatedSlot {
    /// Where its stream begins: the snapshot shows everything committed before.
    pub consistent_point: Lsn,
    /// The snapshot's name, for `SET TRANSACTION SNAPSHOT`.
    pub snapshot: Option<String>,
}

impl ReplicationConnection {
    /// Connects: the first of the settings' hosts that lets us in.
    pub async fn connect(database: &Database) -> Result<Self, ConnectError> {
        let mut route = Route::of(database).await?;
        while let Some(target) = route.next_target() {
            match route.attempt(&target, Self::open(&target, database, &route)).await {
                Ok(connection) => return Ok(connection),
                Err(error) => route.failed(error)?,
            }
        }
        Err(route.exhausted())
    }

    async fn open(target: &Target, database: &Database, route: &Route<'_>) -> Result<Self, super::fault::ConnectFault> {
        let LoggedIn { mut link, backend_pid } = login(target, database, route).await?;
        link.set_frame_bytes_max(FRAME_BYTES_MAX);
        let mut connection = ReplicationConnection { link, backend_pid, in_step: true };
        let wanted = database.postgres.get_target_session_attrs();
        if wanted != TargetSessionAttrs::Any {
            let rows = connection.run("SHOW transaction_read_only").await?;
            check_session(wanted, first_row(&rows).first() == Some(&Some("on")))?;
        }
        Ok(connection)
    }

    /// The server's process, as in `pg_stat_activity`: to find out what a command of it waits for.
    pub fn backend_pid(&self) -> i32 {
        self.backend_pid
    }

    /// `IDENTIFY_SYSTEM`.
    pub async fn identify_system(&mut self) -> Result<SystemIdentity, CommandError> {
        let rows = self.run("IDENTIFY_SYSTEM").await.map_err(|fault| failed("identify system", fault))?;
        let identity = || match first_row(&rows)[..] {
            [Some(system_id), Some(timeline), Some(flushed), database, ..] => Some(SystemIdentity {
                system_id: system_id.parse().ok()?,
                timeline: timeline.parse().ok()?,
                flushed: flushed.parse().ok()?,
                database: database?.to_owned(),
            }),
            _ => None,
        };
        identity().ok_or_else(|| failed("identify system", unexpected_answer()))
    }

    /// Makes a logical slot with the plugin pgoutput. A temporary one ends with this connection.
    ///
    /// Waits until every transaction that writes now has ended. There is no time limit here: who gives the wait up
    /// drops the connection, and ends `backend_pid` if the slot's name is to be free at once.
    pub async fn create_slot(
        &mut self,
        slot: &str,
        temporary: bool,
        snapshot: ExportSnapshot,
    ) -> Result<CreatedSlot, CommandError> {
        let temporary = if temporary { " TEMPORARY" } else { "" };
        // The older spelling, which every version from 10 on reads.
        let export = match snapshot {
            ExportSnapshot::Export => "EXPORT_SNAPSHOT",
            ExportSnapshot::No => "NOEXPORT_SNAPSHOT",
        };
        let command = format!("CREATE_REPLICATION_SLOT {}{temporary} LOGICAL pgoutput {export}", quote_name(slot));
        let fault = |fault| failed(format!("create replication slot {slot}"), fault);
        let rows = self.run(&command).await.map_err(fault)?;
        match first_row(&rows)[..] {
            [_, Some(consistent_point), snapshot, ..] => Ok(CreatedSlot {
                consistent_point: consistent_point.parse().map_err(|_| fault(unexpected_answer()))?,
                snapshot: snapshot.map(str::to_owned),
            }),
            _ => Err(fault(unexpected_answer())),
        }
    }

    /// Runs a command of the replication protocol, or SQL that it understands, and gives its rows as text.
    pub async fn query(&mut self, sql: &str) -> Result<Rows, CommandError> {
        self.run(sql).await.map_err(|fault| failed(format!("run {sql}"), fault))
    }

    /// Starts streaming what the publication has, from the slot's confirmed position or `from`, whichever is later.
    pub async fn start_replication(
        mut self,
        slot: &str,
        from: Lsn,
        publication: &str,
    ) -> Result<ReplicationStream, CommandError> {
        // A list of names inside a string: quoted for the one, then for the other.
        let publications = quote_literal(&quote_name(publication));
        let slot_name = quote_name(slot);
        let command = format!(
            "START_REPLICATION SLOT {slot_name} LOGICAL {from} (proto_version '1', publication_names {publications})"
        );
        match self.start(&command).await {
            Ok(()) => Ok(ReplicationStream { link: self.link }),
            Err(fault) => Err(failed(format!("start replication from slot {slot}"), fault)),
        }
    }

    async fn start(&mut self, command: &str) -> Result<(), StreamError> {
        self.send_query(command).await?;
        loop {
            match self.link.next().await? {
                ServerFrame::CopyBoth => return Ok(()),
                ServerFrame::Error(error) => return Err(StreamError::Server(error)),
                ServerFrame::Message(Message::NoticeResponse(_) | Message::ParameterStatus(_)) => {}
                ServerFrame::CopyData(_) | ServerFrame::Message(_) => {
                    return Err(StreamError::Unexpected("no stream after START_REPLICATION".to_owned()));
                }
            }
        }
    }

    async fn run(&mut self, command: &str) -> Result<Rows, StreamError> {
        self.send_query(command).await?;
        let (mut rows, mut error) = (Vec::new(), None);
        loop {
            match self.link.next().await? {
                ServerFrame::Error(said) => error = Some(StreamError::Server(said)),
                // What follows it is for the next command to find: the connection stays out of step.
                ServerFrame::Message(Message::DataRow(_)) if rows.len() == ROWS_MAX => {
                    return Err(StreamError::TooManyRows(ROWS_MAX));
                }
                ServerFrame::Message(Message::DataRow(body)) => rows.push(row(&body)?),
                ServerFrame::Message(Message::ReadyForQuery(_)) => break,
                ServerFrame::Message(
                    Message::RowDescription(_)
                    | Message::CommandComplete(_)
                    | Message::EmptyQueryResponse
                    | Message::NoticeResponse(_)
                    | Message::ParameterStatus(_),
                ) => {}
                ServerFrame::CopyBoth | ServerFrame::CopyData(_) | ServerFrame::Message(_) => {
                    return Err(StreamError::Unexpected(format!("within the answer to {command}")));
                }
            }
        }
        self.in_step = true;
        error.map_or(Ok(rows), Err)
    }

    async fn send_query(&mut self, command: &str) -> Result<(), StreamError> {
        if !std::mem::replace(&mut self.in_step, false) {
            return Err(StreamError::OutOfStep);
        }
        frontend::query(command, &mut self.link.outgoing)
            .map_err(|_| StreamError::Unexpected("a zero byte in the command".to_owned()))?;
        self.link.send().await
    }
}

/// Rows as text; `None` is NULL.
pub type Rows = Vec<Vec<Option<String>>>;

/// The columns of a row as text; `None` is NULL. How many there are said to be reserves nothing.
pub fn row(body: &DataRowBody) -> Result<Vec<Option<String>>, StreamError> {
    let malformed = |source| StreamError::Wire(WireError::Malformed { tag: b'D', source });
    let text = |range| String::from_utf8_lossy(&body.buffer()[range]).into_owned();
    let (mut ranges, mut row) = (body.ranges(), vec![]);
    while let Some(range) = ranges.next().map_err(malformed)? {
        row.push(range.map(text));
    }
    Ok(row)
}

fn first_row(rows: &Rows) -> Vec<Option<&str>> {
    rows.first().map(|row| row.iter().map(Option::as_deref).collect()).unwrap_or_default()
}

fn failed(command: impl Into<String>, fault: StreamError) -> CommandError {
    CommandError { command: command.into(), fault }
}

fn unexpected_answer() -> StreamError {
    StreamError::Unexpected("an answer without the columns that it should have".to_owned())
}

/// A name as the replication grammar and SQL read it.
pub fn quote_name(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A string as the replication grammar reads it, which knows no backslashes.
fn quote_literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// The stream of a slot.
pub struct ReplicationStream {
    link: Link,
}

impl ReplicationStream {
    /// The next frame. Giving the wait up loses nothing. That the server ends the stream, reports an error or hangs up
    /// is an error that says which.
    ///
    /// There is no time limit here: a server that is alive sends a keepalive at least every half `wal_sender_timeout`.
    pub async fn next(&mut self) -> Result<Frame, StreamError> {
        loop {
            let frame = self.link.next().await?;
            if let Some(frame) = stream_frame(frame)? {
                return Ok(frame);
            }
        }
    }

    /// The next frame that has been read already; `None` when waiting would be needed.
    pub fn try_next(&mut self) -> Result<Option<Frame>, StreamError> {
        while let Some(frame) = self.link.buffered()? {
            if let Some(frame) = stream_frame(frame)? {
                return Ok(Some(frame));
            }
        }
        Ok(None)
    }

    /// Tells the server that everything below `flushed` is durable here: it may remove that WAL. `reply` asks for a
    /// keepalive in return. Giving the wait up loses nothing: what is left goes out with the next status.
    pub async fn send_status(&mut self, flushed: Lsn, reply: bool) -> Result<(), StreamError> {
        wire::standby_status(flushed, now_ms(), reply, &mut self.link.outgoing);
        self.link.send().await
    }

    /// Ends the stream so that the slot is free at once. Best effort, for two seconds.
    pub async fn finish(mut self) {
        let goodbye = async {
            frontend::copy_done(&mut self.link.outgoing);
            self.link.send().await?;
            // What was under way still comes; the slot is free when the server is ready for another command.
            while !matches!(self.link.next().await?, ServerFrame::Message(Message::ReadyForQuery(_))) {}
            frontend::terminate(&mut self.link.outgoing);
            self.link.send().await
        };
        match tokio::time::timeout(FINISH_TIMEOUT, goodbye).await {
            Ok(Ok(())) => self.link.close().await,
            Ok(Err(error)) => tracing::debug!("end of the replication stream: {error}"),
            Err(_) => tracing::debug!("end of the replication stream: no answer in time"),
        }
    }
}

/// A frame as part of a stream; `None` for what only accompanies it.
fn stream_frame(frame: ServerFrame) -> Result<Option<Frame>, StreamError> {
    match frame {
        ServerFrame::CopyData(payload) => Ok(Some(wire::replication_frame(payload)?)),
        ServerFrame::Error(error) => Err(StreamError::Server(error)),
        ServerFrame::Message(Message::CopyDone) => Err(StreamError::Ended),
        ServerFrame::Message(Message::NoticeResponse(_) | Message::ParameterStatus(_)) => Ok(None),
        ServerFrame::CopyBoth | ServerFrame::Message(_) => {
            Err(StreamError::Unexpected("within the replication stream".to_owned()))
        }
    }
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::socket::Socket;
    use super::*;
    use bytes::{BufMut, BytesMut};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;

    #[test]
    fn names_and_literals_cannot_leave_their_quotes() {
        assert_eq!(quote_name(r#"a"b'c"#), r#""a""b'c""#);
        assert_eq!(quote_literal(&quote_name(r#"a"b'c\"#)), r#"'"a""b''c\"'"#);
    }

    fn framed(tag: u8, body: &[u8]) -> BytesMut {
        let mut out = BytesMut::new();
        out.put_u8(tag);
        out.put_i32(body.len() as i32 + 4);
        out.put_slice(body);
        out
    }

    fn connection() -> (ReplicationConnection, UnixStream) {
        let (ours, theirs) = UnixStream::pair().expect("a socket pair");
        let link = Link::new(Socket::Unix(ours), FRAME_BYTES_MAX);
        (ReplicationConnection { link, backend_pid: 1, in_step: true }, theirs)
    }

    async fn answer<const N: usize>(peer: &mut UnixStream, frames: [BytesMut; N]) {
        let mut question = [0; 1024];
        assert!(peer.read(&mut question).await.expect("read") > 0);
        peer.write_all(&frames.concat()).await.expect("written");
    }

    #[tokio::test]
    async fn an_error_leaves_the_connection_usable_and_a_given_up_command_does_not() {
        let (mut connection, mut peer) = connection();
        let error = framed(b'E', b"C42601\0Msyntax error\0\0");
        let ready = framed(b'Z', b"I");
        let (result, ()) = tokio::join!(connection.query("NONSENSE"), answer(&mut peer, [error, ready.clone()]));
        assert_eq!(result.expect_err("an error").code(), Some("42601"));
        let row = framed(b'D', b"\0\x02\0\0\0\x01x\xff\xff\xff\xff");
        let (result, ()) = tokio::join!(connection.query("SHOW x"), answer(&mut peer, [row, ready]));
        assert_eq!(result.expect("rows"), [[Some("x".to_owned()), None]]);
        let given_up = tokio::time::timeout(Duration::from_millis(1), connection.query("SHOW y")).await;
        assert!(given_up.is_err());
        let fault = connection.query("SHOW z").await.expect_err("out of step").fault;
        assert!(matches!(fault, StreamError::OutOfStep));
    }

    #[tokio::test]
    async fn every_end_of_a_stream_says_what_it_was() {
        let keepalive = framed(b'd', &[&b"k"[..], &[0; 16], b"\x01"].concat());
        for (end, wanted) in [
            (framed(b'c', b""), "ended"),
            (framed(b'E', b"C57P01\0Mterminating connection\0\0"), "terminating connection (57P01)"),
            (framed(b'Z', b"I"), "does not belong"),
            (framed(b'd', b"x"), "unknown kind"),
            (BytesMut::from(&b"HTTP/1.1 400 Bad Request"[..]), "more than"),
            (BytesMut::new(), "closed"),
        ] {
            let (connection, mut peer) = connection();
            let mut stream = ReplicationStream { link: connection.link };
            peer.write_all(&[&keepalive[..], &end[..]].concat()).await.expect("written");
            drop(peer);
            assert!(matches!(stream.next().await, Ok(Frame::Keepalive { reply_requested: true, .. })));
            let error = stream.next().await.expect_err("the end").to_string();
            assert!(error.contains(wanted), "{error}");
        }
    }
}
