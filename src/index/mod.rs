//! Embedded rows into the stores and out of them again: the mirror on this machine, and Qdrant.
//!
//! **Invariant:** a store's positions are written with the data that they cover, in one transaction; a row's newer
//! version wins, in whatever order the versions come; nothing here reads `changes` or PostgreSQL.

pub mod arrivals;
mod batch;
pub mod drift;
pub mod earlier;
pub mod filter;
pub mod generations;
pub mod held;
pub mod local;
pub mod matrix;
pub mod mirror;
pub mod primary;
pub mod qdrant;
pub mod quantise;
mod run;
pub mod scan;
pub mod sink;
mod trail;

pub use arrivals::{Arrival, Arrivals};
pub use drift::{Held, Kind, RowHash, Suspects, Wanted};
pub use filter::{Filter, FilterValue};
pub use generations::{Earlier, Generations};
pub use held::{Cursor, HeldError, Holder};
pub use mirror::{Applied, Difference, Hit, Mirror, MirrorError, MirrorSettings, TransferError, Transferred};
pub use primary::{Primary, PrimaryState, RebuildRequest, Rebuilt, SearchesCompared, Taken};
pub use qdrant::{
    Accuracy, Adopted, Begun, Contents, Kept, Listed, LoadedRow, Look, QdrantError, QdrantGeneration,
    QdrantGenerations, QdrantSettings, QdrantStore, Settled, Snapshot, SnapshotError, Snapshots, Stray, lines,
};
pub use run::{Index, IndexError, ReplayRequest, Replayed};
