//! One store in a verify: asked page by page, its suspects, and why it could not be asked to the end.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::report::{Drifted, StoreReport};
use crate::capture::survey::ROWS_PER_PAGE;
use crate::event::RowKey;
use crate::index::{Cursor, Holder, Kind, Stray, Suspects, Wanted};
use crate::retry::Chain;

/// Keys that differ and are kept of each store: some 150 bytes each.
const SUSPECTS_MAX: usize = 100_000;
/// How long a store is waited for that lacks what was committed.
const LATE_AFTER: Duration = Duration::from_secs(30);
/// How often it is looked whether it has it.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// A store.
pub(super) struct Side {
    pub name: &'static str,
    pub suspects: Suspects,
    /// Points that are no row's.
    strays: Vec<Stray>,
    strays_overlooked: u64,
    /// What was found before a repair.
    before: Option<(Suspects, Vec<Stray>)>,
    holder: Result<Holder, String>,
    late: bool,
}

impl Side {
    pub fn new(name: &'static str, holder: Result<Holder, String>) -> Side {
        let suspects = Suspects::new(SUSPECTS_MAX);
        Side { name, suspects, strays: vec![], strays_overlooked: 0, before: None, holder, late: false }
    }

    /// Rows that it holds, about.
    pub async fn rows(&mut self) -> u64 {
        let Ok(holder) = &self.holder else { return 0 };
        match holder.rows().await {
            Ok(rows) => rows,
            Err(error) => self.failed(&error),
        }
    }

    /// Compares a page of the table with what it holds.
    pub async fn compare(&mut self, page: &[(RowKey, Wanted)]) {
        let Ok(holder) = &self.holder else { return };
        let keys: Vec<RowKey> = page.iter().map(|(key, _)| key.clone()).collect();
        match holder.held(&keys).await {
            Ok(held) => {
                let rows = page.iter().zip(held);
                rows.for_each(|((key, wanted), held)| self.suspects.compare(key, *wanted, held));
            }
            Err(error) => self.failed(&error),
        }
    }

    /// A page of the keys that it holds; `None`: it cannot be asked.
    pub async fn keys(&mut self, cursor: &mut Cursor) -> Option<Vec<RowKey>> {
        match self.holder.as_ref().ok()?.list(cursor, ROWS_PER_PAGE).await {
            Ok((keys, strays)) => {
                let room = SUSPECTS_MAX - self.strays.len().min(SUSPECTS_MAX);
                self.strays_overlooked += strays.len().saturating_sub(room) as u64;
                self.strays.extend(strays.into_iter().take(room));
                Some(keys)
            }
            Err(error) => self.failed(&error),
        }
    }

    /// Looks again for points that are no row's. Nothing on its way looks like one, so once is enough.
    pub async fn settle_strays(&mut self) {
        let Ok(holder) = &self.holder else { return };
        match holder.strays_left(&self.strays, self.suspects.drifted().keys()).await {
            Ok(left) => self.strays = left,
            Err(error) => self.failed(&error),
        }
    }

    /// Removes them, and says how many.
    pub async fn remove_strays(&mut self) -> u64 {
        let before = self.strays.len();
        let Ok(holder) = &self.holder else { return 0 };
        match holder.remove_strays(&self.strays).await {
            Ok(()) => self.settle_strays().await,
            Err(error) => self.failed(&error),
        }
        before.saturating_sub(self.strays.len()) as u64
    }

    /// Keys that are to be looked at again.
    pub fn open(&self) -> impl Iterator<Item = &RowKey> {
        self.holder.iter().flat_map(|_| self.suspects.open())
    }

    /// Looks at its suspects again, when it has all that was committed before `read_ms`, at which moment their rows were
    /// as `wanted` says.
    pub async fn settle(
        &mut self,
        wanted: &HashMap<RowKey, Wanted>,
        read_ms: i64,
        as_of_ms: impl Fn(&str) -> Option<i64>,
        is_cut_off: impl Fn() -> bool,
    ) {
        let Ok(holder) = &self.holder else { return };
        let keys: Vec<RowKey> = self.suspects.open().cloned().collect();
        if keys.is_empty() {
            return;
        }
        let since = Instant::now();
        let is_late = loop {
            if as_of_ms(self.name).is_some_and(|as_of_ms| as_of_ms > read_ms) {
                break false;
            }
            // Nothing comes where capture has refused to go on.
            if since.elapsed() > LATE_AFTER || is_cut_off() {
                break true;
            }
            sleep(LOOK_EVERY).await;
        };
        for some in keys.chunks(ROWS_PER_PAGE) {
            let held = match holder.held(some).await {
                Ok(held) => held,
                Err(error) => return self.failed(&error),
            };
            for (key, held) in some.iter().zip(held) {
                let wanted = wanted.get(key).copied().unwrap_or(Wanted::Nothing);
                self.suspects.judge(key, wanted, held, is_late);
            }
        }
        self.late |= is_late && self.has_drifted();
    }

    /// Keys whose rows are to be published again.
    pub fn to_repair(&self) -> impl Iterator<Item = &RowKey> {
        self.holder.iter().filter(|_| !self.late).flat_map(|_| self.suspects.drifted().keys())
    }

    /// Suspects again what has drifted, after a repair.
    pub fn begin_again(&mut self) {
        if self.holder.is_ok() && !self.late {
            let again = self.suspects.again();
            self.before = Some((std::mem::replace(&mut self.suspects, again), self.strays.clone()));
        }
    }

    /// Rows of the table that it holds otherwise now.
    pub fn drifted(&self) -> impl Iterator<Item = &RowKey> {
        self.holder.iter().flat_map(|_| self.suspects.drifted().keys())
    }

    /// Whether it differs from the table now, after the repair if there was one.
    pub fn has_drifted(&self) -> bool {
        !self.suspects.drifted().is_empty() || !self.strays.is_empty()
    }

    /// Rows that differ now, by kind; `None`: nobody knows.
    pub fn counts(&self) -> Option<[(Kind, u64); 3]> {
        self.holder.as_ref().ok()?;
        let drifted = |kind| self.suspects.drifted().values().filter(|found| **found == kind).count();
        let strays = |kind| if kind == Kind::Extra { self.strays.len() } else { 0 };
        Some(Kind::ALL.map(|kind| (kind, (drifted(kind) + strays(kind)) as u64)))
    }

    /// Why it was not compared, or not to the end.
    pub fn fault(&self) -> Option<String> {
        let overlooked = self.found().0.overlooked() + self.strays_overlooked;
        match &self.holder {
            Err(fault) => Some(fault.clone()),
            Ok(_) if overlooked > 0 => Some(format!(
                "{overlooked} rows more seemed to differ than the {SUSPECTS_MAX} that are looked at twice; `vecsync replay` \
                 fills it anew"
            )),
            Ok(_) => None,
        }
    }

    /// What was found, whatever a repair has mended of it.
    fn found(&self) -> (&Suspects, &[Stray]) {
        match &self.before {
            Some((suspects, strays)) => (suspects, strays),
            None => (&self.suspects, &self.strays),
        }
    }

    pub fn report(&self) -> StoreReport {
        let (found, strays) = self.found();
        let of = |kind| Drifted::of(found.drifted().iter().filter(|(_, of)| **of == kind).map(|(key, _)| key), &[]);
        let extra = found.drifted().iter().filter(|(_, of)| **of == Kind::Extra).map(|(key, _)| key);
        StoreReport {
            store: self.name.to_owned(),
            error: self.fault(),
            same: found.same(),
            missing: of(Kind::Missing),
            stale: of(Kind::Stale),
            extra: Drifted::of(extra, strays),
            unsettled: found.unsettled(),
            late: self.late,
            // What changed all the time since is not mended for certain.
            left: self
                .before
                .as_ref()
                .map(|_| Drifted::of(self.suspects.drifted().keys().chain(self.suspects.open()), &self.strays)),
        }
    }

    fn failed<T: Default>(&mut self, error: &dyn std::error::Error) -> T {
        let fault = Chain(error).to_string();
        tracing::warn!("verify {}: {fault}", self.name);
        self.holder = Err(fault);
        T::default()
    }
}
