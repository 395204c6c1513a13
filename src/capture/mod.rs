//! Postgres → `Change`.
