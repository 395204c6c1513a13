//! Tests against real servers: PostgreSQL, the program as a user starts it, HTTP. Nothing is replaced by a stand-in.
#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

#[path = "../support/mod.rs"]
mod support;

mod backup;
mod check;
mod commands;
mod dashboards;
mod dead_letters;
mod debezium;
mod deployed;
mod elsewhere;
mod embedding;
mod failover;
mod finding;
mod history;
mod http;
mod joined;
mod joined_property;
mod kafka;
mod kafka_login;
mod kafka_topics;
mod kills;
mod large;
mod load;
mod misconfigured;
mod openapi;
mod page;
mod pipelines;
mod property;
mod qdrant_commands;
mod qdrant_generations;
mod qdrant_migrate;
mod qdrant_run;
mod qdrant_server;
mod qdrant_store;
mod qdrant_tls;
mod refusals;
mod replay;
mod restart;
mod resync;
mod revision;
mod rights;
mod schema;
mod servers;
mod shapes;
mod snapshot;
mod source_faults;
mod source_tls;
mod stream;
mod tables;
mod torture;
mod verify;
mod versions;
mod watch;
mod writer;
