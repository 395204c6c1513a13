//! A whole site for one test: PostgreSQL with the table, and vecsync on it. Only a few exist at the same time.

use std::ops::{Deref, DerefMut};
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use super::postgres::{PASSWORD, Postgres, Sql, USER};
use super::table::expect_equal;
use super::vecsync::Vecsync;

/// Sites at the same time: each has a model at work, and the machines that test have two cores.
const SITES: usize = 2;

/// Fields are dropped in this order: who reads goes before whom it reads from.
pub struct Site {
    pub vecsync: Vecsync,
    pub sql: Sql,
    pub postgres: Postgres,
    _place: Option<Place>,
}

impl Site {
    /// PostgreSQL runs, vecsync does not yet.
    pub fn prepare() -> Self {
        Self::prepare_with(&[])
    }

    /// With settings of PostgreSQL.
    pub fn prepare_with(settings: &[(&str, &str)]) -> Self {
        Self::at(Some(Place::take()), settings)
    }

    /// Beside the few: for the one test that takes minutes, whatever else there is to do.
    pub fn prepare_beside() -> Self {
        Self::at(None, &[])
    }

    /// With another version of PostgreSQL.
    pub fn prepare_version(version: u16, settings: &[(&str, &str)]) -> Self {
        let place = Place::take();
        Self::of(Some(place), Postgres::start_version(version, settings))
    }

    fn at(place: Option<Place>, settings: &[(&str, &str)]) -> Self {
        Self::of(place, Postgres::start_with(settings))
    }

    fn of(place: Option<Place>, postgres: Postgres) -> Self {
        let vecsync = Vecsync::prepare(&postgres.url(USER, PASSWORD));
        Site { vecsync, sql: postgres.client(), postgres, _place: place }
    }

    /// See [`expect_equal`].
    #[track_caller]
    pub fn expect_equal(&mut self, limit: Duration) {
        expect_equal(&mut self.vecsync, &self.sql, limit);
    }

    /// Both run.
    pub fn open() -> Self {
        let mut site = Self::prepare();
        site.vecsync.start_ready();
        site
    }
}

impl Deref for Site {
    type Target = Vecsync;

    fn deref(&self) -> &Vecsync {
        &self.vecsync
    }
}

impl DerefMut for Site {
    fn deref_mut(&mut self) -> &mut Vecsync {
        &mut self.vecsync
    }
}

/// One of the few places; given back when dropped.
pub struct Place(());

static TAKEN: Mutex<usize> = Mutex::new(0);
static GIVEN_BACK: Condvar = Condvar::new();

impl Place {
    pub fn take() -> Self {
        let taken = TAKEN.lock().expect("no holder panics");
        let mut taken = GIVEN_BACK.wait_while(taken, |taken| *taken >= SITES).expect("no holder panics");
        *taken += 1;
        Place(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        *TAKEN.lock().expect("no holder panics") -= 1;
        GIVEN_BACK.notify_one();
    }
}
