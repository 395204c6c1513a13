//! Opens connections for ordinary SQL, with every setting pinned that changes how a value is written.

use std::ops::{Deref, DerefMut};

use tokio_postgres::config::{SslMode, SslNegotiation, TargetSessionAttrs};
use tokio_postgres::{Client, SimpleQueryMessage};
use tokio_util::task::AbortOnDropHandle;

use super::fault::{ConnectError, ConnectFault};
use super::socket::{AlreadyOpen, Route, Socket, Target};
use crate::config::Database;

/// What the server calls us in `pg_stat_activity`, unless the settings choose a name.
pub(super) const APPLICATION_NAME: &str = "vecsync";

/// Settings of the session. The first group decides how values are written, in the stream, in COPY and in queries
/// alike; the second keeps limits that somebody made for short queries away from hours of reading.
pub(super) const PINS: [(&str, &str); 10] = [
    ("client_encoding", "UTF8"),
    ("DateStyle", "ISO"),
    ("IntervalStyle", "iso_8601"),
    ("TimeZone", "UTC"),
    ("extra_float_digits", "3"),
    ("bytea_output", "hex"),
    ("statement_timeout", "0"),
    ("lock_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
    // Row security that would hide rows is an error, not an index that lacks them.
    ("row_security", "off"),
];

/// A connection for SQL. Dropping it closes it.
pub struct Sql {
    client: Client,
    _connection: AbortOnDropHandle<()>,
}

impl Deref for Sql {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl DerefMut for Sql {
    fn deref_mut(&mut self) -> &mut Client {
        &mut self.client
    }
}

/// Connects: the first of the settings' hosts that lets us in.
pub async fn connect(database: &Database) -> Result<Sql, ConnectError> {
    let mut route = Route::of(database).await?;
    while let Some(target) = route.next_target() {
        match route.attempt(&target, login(&target, database, route.user())).await {
            Ok(sql) => return Ok(sql),
            Err(error) => route.failed(error)?,
        }
    }
    Err(route.exhausted())
}

async fn login(target: &Target, database: &Database, user: &str) -> Result<Sql, ConnectFault> {
    let socket = Socket::open(target, database).await?;
    let mut config = database.postgres.clone();
    config.user(user);
    if config.get_application_name().is_none() {
        config.application_name(APPLICATION_NAME);
    }
    // "Direct" makes the library use the socket as it is instead of asking for TLS once more.
    config.ssl_mode(SslMode::Require).ssl_negotiation(SslNegotiation::Direct);
    let (client, connection) = config.connect_raw(socket, AlreadyOpen).await?;
    let connection = tokio::spawn(async move {
        // Whoever waits for an answer is told as well.
        if let Err(error) = connection.await {
            tracing::debug!("SQL connection ended: {}", crate::retry::Chain(&error));
        }
    });
    let sql = Sql { client, _connection: AbortOnDropHandle::new(connection) };
    let pins: String = PINS.iter().map(|(name, value)| format!("SET {name} = '{value}';")).collect();
    sql.batch_execute(&pins).await?;
    // Only PostgreSQL 14 and newer have it.
    let idle = "SELECT set_config(name, '0', false) FROM pg_settings WHERE name = 'idle_session_timeout'";
    sql.batch_execute(idle).await?;
    let wanted = database.postgres.get_target_session_attrs();
    if wanted != TargetSessionAttrs::Any {
        let answer = sql.simple_query("SHOW transaction_read_only").await?;
        let read_only = answer.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0),
            _ => None,
        });
        check_session(wanted, read_only == Some("on"))?;
    }
    Ok(sql)
}

/// `target_session_attrs`: whether this server is the kind that the settings want.
pub(super) fn check_session(wanted: TargetSessionAttrs, read_only: bool) -> Result<(), ConnectFault> {
    match (wanted, read_only) {
        (TargetSessionAttrs::ReadWrite, true) => Err(ConnectFault::SessionAttrs("read-only")),
        (TargetSessionAttrs::ReadOnly, false) => Err(ConnectFault::SessionAttrs("read-write")),
        _ => Ok(()),
    }
}
