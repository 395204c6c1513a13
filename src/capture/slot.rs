//! Creates a replication slot, reads what the server says about it and about its own position. Streams nothing.

use std::io;
use std::time::Duration;

use postgres_protocol::escape::escape_literal;
use tokio_postgres::types::PgLsn;
use tokio_postgres::{Client, Row};

use super::catalog::CatalogError;
use super::connection::{CommandError, CreatedSlot, ExportSnapshot, ReplicationConnection, StreamError};
use super::progress::SlotFacts;
use crate::event::Lsn;

/// How long to wait for a slot before saying what it waits for, and for an answer to the question what that is.
const CREATE_PATIENCE: Duration = Duration::from_secs(5);

/// A logical replication slot as the server has it now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The output plugin; empty for a physical slot.
    pub plugin: String,
    /// The database it belongs to; empty for a physical slot.
    pub database: String,
    /// The server's process that streams from it, if one does.
    pub active_pid: Option<i32>,
    /// Everything below has been confirmed.
    pub confirmed_flush: Option<Lsn>,
    /// Where the oldest WAL that it needs begins.
    pub restart: Option<Lsn>,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: Option<String>,
    /// Bytes that may still be written before it can be lost; `None` where there is no limit, or it is lost.
    pub safe_wal_size: Option<i64>,
    /// Bytes of WAL that the server keeps for it.
    pub retained_bytes: u64,
}

impl From<Slot> for SlotFacts {
    fn from(slot: Slot) -> SlotFacts {
        SlotFacts {
            lost: slot.wal_status.as_deref() == Some("lost"),
            plugin: slot.plugin,
            confirmed: slot.confirmed_flush.unwrap_or_default(),
            active_pid: slot.active_pid,
        }
    }
}

/// Creates a slot. That waits for every open writing transaction: after a while says which.
pub async fn create(
    replication: &mut ReplicationConnection,
    watcher: &Client,
    name: &str,
    temporary: bool,
    snapshot: ExportSnapshot,
) -> Result<CreatedSlot, CommandError> {
    let pid = replication.backend_pid();
    let mut create = std::pin::pin!(replication.create_slot(name, temporary, snapshot));
    let mut gone = false;
    loop {
        if let Ok(created) = tokio::time::timeout(CREATE_PATIENCE, &mut create).await {
            return created;
        }
        let looked = tokio::time::timeout(CREATE_PATIENCE, look(watcher, name, pid)).await;
        // Done there, and no word of it here twice in a row: a connection that is dead without saying so.
        match looked {
            Ok(true) => gone = false,
            Ok(false) | Err(_) if gone => {
                let fault = StreamError::Network { doing: "read", source: io::ErrorKind::TimedOut.into() };
                return Err(CommandError { command: format!("create replication slot {name}"), fault });
            }
            Ok(false) | Err(_) => gone = true,
        }
    }
}

/// Says what the slot waits for; whether the server's process is still at it.
async fn look(watcher: &Client, name: &str, pid: i32) -> bool {
    let sql = "SELECT coalesce(bool_or(state IN ('active', 'disabled')), false) FROM pg_stat_activity WHERE pid = $1";
    match watcher.query_one(sql, &[&pid]).await {
        Ok(row) if row.get::<_, bool>(0) => {
            say_what_it_waits_for(watcher, name).await;
            true
        }
        Ok(_) => false,
        Err(error) => {
            tracing::warn!(%error, "slot {name} waits to be created");
            false
        }
    }
}

async fn say_what_it_waits_for(client: &Client, slot: &str) {
    let sql = "SELECT pid, state, extract(epoch FROM now() - xact_start)::bigint FROM pg_stat_activity \
               WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid() ORDER BY xact_start LIMIT 1";
    match client.query_opt(sql, &[]).await {
        Ok(Some(row)) => {
            let (pid, state) = (row.get::<_, i32>(0), row.get::<_, Option<String>>(1));
            let open_s = row.get::<_, Option<i64>>(2);
            tracing::warn!(
                pid,
                state,
                open_s,
                "slot {slot} waits for an open writing transaction; end it, or SELECT pg_terminate_backend({pid})"
            );
        }
        Ok(None) => say_which_is_prepared(client, slot).await,
        Err(error) => tracing::warn!(%error, "slot {slot} waits to be created"),
    }
}

async fn say_which_is_prepared(client: &Client, slot: &str) {
    let sql = "SELECT gid, database::text, extract(epoch FROM now() - prepared)::bigint FROM pg_prepared_xacts \
               ORDER BY prepared LIMIT 1";
    match client.query_opt(sql, &[]).await {
        Ok(Some(row)) => {
            let (gid, database) = (row.get::<_, String>(0), row.get::<_, String>(1));
            let open_s = row.get::<_, Option<i64>>(2);
            tracing::warn!(
                gid,
                database,
                open_s,
                "slot {slot} waits for a prepared transaction; in its database run COMMIT PREPARED or ROLLBACK PREPARED {}",
                escape_literal(&gid)
            );
        }
        Ok(None) => tracing::warn!("slot {slot} waits to be created"),
        Err(error) => tracing::warn!(%error, "slot {slot} waits to be created"),
    }
}

/// The slot, if there is one of this name.
pub async fn slot(client: &Client, name: &str) -> Result<Option<Slot>, CatalogError> {
    Ok(source_progress(client, name).await?.1)
}

/// How far the server's WAL is flushed (a standby's: replayed), and the slot, seen at one moment.
pub async fn source_progress(client: &Client, slot: &str) -> Result<(Lsn, Option<Slot>), CatalogError> {
    let sql = "
        SELECT now.flushed, s.slot_name IS NOT NULL AS found, coalesce(s.plugin::text, '') AS plugin,
               coalesce(s.database::text, '') AS database, s.active_pid, s.confirmed_flush_lsn AS confirmed_flush,
               s.restart_lsn AS restart, s.wal_status, s.safe_wal_size,
               greatest(pg_wal_lsn_diff(now.flushed, s.restart_lsn), 0)::bigint AS retained
        FROM (SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END
                     AS flushed) now
             LEFT JOIN pg_replication_slots s ON s.slot_name = $1";
    let row = client.query_one(sql, &[&slot]).await;
    let row = row.map_err(|source| CatalogError::query(format!("read replication slot {slot}"), source))?;
    let flushed = lsn(&row, "flushed").unwrap_or_default();
    if !row.get::<_, bool>("found") {
        return Ok((flushed, None));
    }
    let slot = Slot {
        plugin: row.get("plugin"),
        database: row.get("database"),
        active_pid: row.get("active_pid"),
        confirmed_flush: lsn(&row, "confirmed_flush"),
        restart: lsn(&row, "restart"),
        wal_status: row.get("wal_status"),
        safe_wal_size: row.get("safe_wal_size"),
        retained_bytes: row.get::<_, Option<i64>>("retained").and_then(|bytes| bytes.try_into().ok()).unwrap_or(0),
    };
    Ok((flushed, Some(slot)))
}

fn lsn(row: &Row, column: &str) -> Option<Lsn> {
    row.get::<_, Option<PgLsn>>(column).map(|lsn| Lsn(lsn.into()))
}
