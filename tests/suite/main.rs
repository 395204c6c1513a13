//! Tests without other servers: in this process, or of the binary alone; real sockets and files.
#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

#[path = "../support/decoders.rs"]
mod decoders;
#[path = "../support/dice.rs"]
#[allow(dead_code, reason = "this target uses a part of it")]
mod dice;

#[path = "../support/faq.rs"]
mod faq;
#[path = "../support/process.rs"]
#[allow(dead_code, reason = "this target uses a part of it")]
mod process;
#[path = "../support/questions.rs"]
#[allow(dead_code, reason = "this target uses a part of it")]
mod questions;

mod chart;
mod config;
mod damage;
mod deploy;
mod deploy_site;
mod embedding;
mod embedding_log;
mod embedding_texts;
mod finding;
mod house;
mod http;
mod http_control;
mod http_elsewhere;
mod http_page;
mod metric_labels;
mod operations;
mod pipeline_schema;
