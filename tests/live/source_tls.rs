//! TLS to PostgreSQL as libpq's `sslmode` and `channel_binding` mean it, on both connections: who is let in, and who is not.

use std::path::PathBuf;
use std::time::Duration;

use tokio_postgres::SimpleQueryMessage;
use tokio_postgres::config::ChannelBinding;
use vecsync::capture::connection::ReplicationConnection;
use vecsync::capture::sql;
use vecsync::config::{Database, SslMode, SslRoot};

use crate::support::postgres::{DATABASE, PASSWORD, Postgres, USER};
use crate::support::postgres_tls::{Authority, Identity, Interceptor};
use crate::support::process::wait_until;
use crate::support::site::Site;
use crate::support::table::{insert, values};
use crate::support::vecsync::COMMAND;

const SOON: Duration = Duration::from_secs(30);

/// A PostgreSQL with TLS, whose certificate is for `localhost`.
struct Guarded {
    postgres: Postgres,
    authority: Authority,
    other: Authority,
    folder: tempfile::TempDir,
}

impl Guarded {
    fn start() -> Guarded {
        let folder = tempfile::tempdir().expect("a folder");
        let authority = Authority::new(folder.path(), "authority");
        let mut postgres = Postgres::prepare(&[]);
        offer(&mut postgres, &authority.identity("localhost"));
        postgres.launch();
        let other = Authority::new(folder.path(), "other");
        Guarded { postgres, authority, other, folder }
    }

    fn ours(&self) -> SslRoot {
        SslRoot::File(self.authority.root.clone())
    }

    fn others(&self) -> SslRoot {
        SslRoot::File(self.other.root.clone())
    }

    /// Both connections, by `localhost`.
    fn check(&self, mode: SslMode, root: SslRoot, wanted: Wanted) {
        self.attempt(mode, root).check(wanted);
    }

    fn attempt(&self, ssl_mode: SslMode, ssl_root: SslRoot) -> Attempt {
        let mut postgres = tokio_postgres::Config::new();
        postgres.host("localhost").port(self.postgres.port).user(USER).password(PASSWORD).dbname(DATABASE);
        Attempt { database: Database { postgres, ssl_mode, ssl_root } }
    }
}

/// From its start on, or where it runs, from its next look at its files on.
fn offer(postgres: &mut Postgres, identity: &Identity) {
    let certificate = postgres.give("server.crt", &identity.certificate);
    let key = postgres.give("server.key", &identity.key);
    let settings = [("ssl_cert_file", certificate), ("ssl_key_file", key), ("ssl", PathBuf::from("on"))];
    settings.iter().for_each(|(name, value)| postgres.set(name, &value.display().to_string()));
}

/// Has a running server take its files anew, and waits until it has.
#[track_caller]
fn reload(postgres: &Postgres) {
    // What a session is told is what the server knew when the session began.
    let loaded = || postgres.client().value("SELECT pg_conf_load_time()");
    let before = loaded();
    postgres.client().query("SELECT pg_reload_conf()");
    wait_until("the files to be read", SOON, || if loaded() != before { Ok(()) } else { Err(before.clone()) });
}

/// How an attempt is to end.
#[derive(Clone, Copy, Debug)]
enum Wanted {
    /// With TLS.
    Tls,
    /// Without.
    Plain,
    /// Not at all, and the reason has these words.
    Refused(&'static [&'static str]),
}

use Wanted::{Plain, Refused, Tls};

struct Attempt {
    database: Database,
}

impl Attempt {
    fn host(mut self, host: &str) -> Attempt {
        let mut postgres = tokio_postgres::Config::new();
        let port = self.database.postgres.get_ports()[0];
        postgres.host(host).port(port).user(USER).password(PASSWORD).dbname(DATABASE);
        self.database.postgres = postgres;
        self
    }

    fn port(mut self, port: u16) -> Attempt {
        let mut postgres = tokio_postgres::Config::new();
        postgres.host("localhost").port(port).user(USER).password(PASSWORD).dbname(DATABASE);
        self.database.postgres = postgres;
        self
    }

    fn binding(mut self, binding: ChannelBinding) -> Attempt {
        self.database.postgres.channel_binding(binding);
        self
    }

    #[track_caller]
    fn check(&self, wanted: Wanted) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let database = &self.database;
        let ends: [Result<bool, String>; 2] = runtime.block_on(async {
            let query = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
            let ordinary = async {
                let sql = sql::connect(database).await.map_err(|error| error.to_string())?;
                let answer = sql.simple_query(query).await.map_err(|error| error.to_string())?;
                let row = answer.iter().find_map(|message| match message {
                    SimpleQueryMessage::Row(row) => row.get(0),
                    _ => None,
                });
                Ok(row == Some("t"))
            };
            let replication = async {
                let connected = ReplicationConnection::connect(database).await;
                let rows = connected.map_err(|error| error.to_string())?.query(query).await;
                Ok(rows.map_err(|error| error.to_string())?[0][0].as_deref() == Some("t"))
            };
            [ordinary.await, replication.await]
        });
        let said = format!("{:?} {:?}: wanted {wanted:?}, got {ends:?}", database.ssl_mode, database.ssl_root);
        for end in &ends {
            match (wanted, end) {
                (Tls, Ok(true)) | (Plain, Ok(false)) => {}
                (Refused(parts), Err(error)) => {
                    assert!(parts.iter().all(|part| error.contains(part)), "{said}");
                    assert!(!error.contains(PASSWORD) && !error.contains('\n'), "{said}");
                }
                _ => panic!("{said}"),
            }
        }
    }
}

#[test]
fn each_sslmode_lets_in_whom_libpq_lets_in() {
    use SslMode::{Disable, Prefer, Require, VerifyCa, VerifyFull};
    let mut guarded = Guarded::start();
    const STRANGER: Wanted = Refused(&["certificate is not trusted", "sslrootcert"]);
    const OTHER_NAME: Wanted = Refused(&["subjectAltName", "sslmode=verify-ca"]);
    const UNBOUND: Wanted = Refused(&["channel_binding=require", "leave it out"]);
    let ours = guarded.ours();
    guarded.check(Disable, SslRoot::None, Plain);
    guarded.check(Prefer, SslRoot::None, Tls);
    guarded.check(Require, SslRoot::None, Tls);
    guarded.check(Require, ours.clone(), Tls);
    guarded.check(Require, guarded.others(), STRANGER);
    guarded.check(VerifyCa, ours.clone(), Tls);
    guarded.check(VerifyCa, guarded.others(), STRANGER);
    guarded.attempt(VerifyCa, ours.clone()).host("127.0.0.1").check(Tls);
    guarded.check(VerifyFull, ours.clone(), Tls);
    guarded.check(VerifyFull, guarded.others(), STRANGER);
    guarded.attempt(VerifyFull, ours.clone()).host("127.0.0.1").check(OTHER_NAME);
    for mode in [Prefer, Require, VerifyFull] {
        guarded.attempt(mode, ours.clone()).binding(ChannelBinding::Require).check(Tls);
    }
    guarded.attempt(Disable, SslRoot::None).binding(ChannelBinding::Require).check(UNBOUND);

    // A certificate that SCRAM cannot be bound to.
    let unbindable = Authority::unbindable(guarded.folder.path(), "unbindable");
    let root = || SslRoot::File(unbindable.root.clone());
    offer(&mut guarded.postgres, &unbindable.identity("localhost"));
    reload(&guarded.postgres);
    guarded.check(VerifyFull, root(), Tls);
    guarded.attempt(VerifyFull, root()).binding(ChannelBinding::Require).check(UNBOUND);

    offer(&mut guarded.postgres, &guarded.authority.expired("localhost"));
    reload(&guarded.postgres);
    guarded.check(Require, SslRoot::None, Tls);
    for mode in [Require, VerifyCa, VerifyFull] {
        guarded.check(mode, ours.clone(), Refused(&["certificate is not trusted", "renew the server's certificate"]));
    }

    // TLS is there, and pg_hba.conf lets nobody in with it.
    let line = "hostnossl all all 127.0.0.1/32 scram-sha-256\n";
    let hba = guarded.postgres.give("pg_hba.conf", line);
    guarded.postgres.stop();
    guarded.postgres.set("hba_file", &hba.display().to_string());
    guarded.postgres.launch();
    guarded.check(Prefer, SslRoot::None, Plain);
    guarded.check(Require, SslRoot::None, Refused(&["pg_hba.conf", "sslmode"]));
    // Nor without.
    guarded.postgres.give("pg_hba.conf", "hostnossl all postgres 127.0.0.1/32 scram-sha-256\n");
    reload(&guarded.postgres);
    guarded.check(Prefer, SslRoot::None, Refused(&["pg_hba.conf", "SSL encryption"]));

    // There is none.
    guarded.postgres.give("pg_hba.conf", line);
    guarded.postgres.stop();
    guarded.postgres.set("ssl", "off");
    guarded.postgres.launch();
    guarded.check(Prefer, SslRoot::None, Plain);
    for (mode, root) in [(Require, SslRoot::None), (VerifyCa, ours.clone()), (VerifyFull, ours.clone())] {
        guarded.check(mode, root, Refused(&["does not offer TLS", "ssl = on", "sslmode"]));
    }
}

#[test]
fn somebody_in_the_middle_is_noticed() {
    let guarded = Guarded::start();
    let shows = guarded.other.identity("localhost");
    let port = guarded.postgres.port;
    let middle = Interceptor::start(port, &guarded.authority, &shows, None);
    // That the server can bind to the channel is kept from the client.
    let hides: (&[u8], &[u8]) = (b"SCRAM-SHA-256-PLUS", b"SCRAM-SHA-256-NONE");
    let sly = Interceptor::start(port, &guarded.authority, &shows, Some(hides));
    const NOTICED: Wanted = Refused(&["channel binding", "somebody between", "sslmode=verify-full"]);
    let through = |port| guarded.attempt(SslMode::Require, SslRoot::None).port(port);
    through(middle.port).check(NOTICED);
    through(sly.port).check(NOTICED);
    through(sly.port).binding(ChannelBinding::Require).check(Refused(&["channel_binding=require"]));
    // `prefer` does not go on without TLS after that.
    guarded.attempt(SslMode::Prefer, SslRoot::None).port(middle.port).check(NOTICED);
    // Who asks for no binding is heard by whoever is there: that is what `require` alone means.
    through(middle.port).binding(ChannelBinding::Disable).check(Tls);
    let checked = guarded.attempt(SslMode::VerifyFull, guarded.ours()).port(middle.port);
    checked.binding(ChannelBinding::Disable).check(Refused(&["certificate is not trusted", "sslrootcert"]));
}

#[test]
fn a_certificate_that_runs_out_is_named_and_searches_go_on_until_it_is_renewed() {
    let folder = tempfile::tempdir().expect("a folder");
    let authority = Authority::new(folder.path(), "authority");
    let mut site = Site::prepare();
    // From now on nobody but the test's own superuser is let in without TLS.
    let lines = "hostnossl all postgres 127.0.0.1/32 scram-sha-256\nhostssl all vecsync 127.0.0.1/32 scram-sha-256\n";
    let hba = site.postgres.give("pg_hba.conf", lines);
    let right = authority.identity("localhost");
    let renewed = authority.identity("localhost");
    site.postgres.stop();
    offer(&mut site.postgres, &right);
    site.postgres.set("hba_file", &hba.display().to_string());
    site.postgres.launch();
    site.sql = site.postgres.client();
    let root = authority.root.display().to_string();
    let url = |host: &str, more: &str| {
        let port = site.postgres.port;
        format!("postgresql://{USER}:{PASSWORD}@{host}:{port}/{DATABASE}?sslmode=verify-full&sslrootcert={root}{more}")
    };
    let (strict, elsewhere) = (url("localhost", "&channel_binding=require"), url("127.0.0.1", ""));
    let plain = site.postgres.url(USER, PASSWORD);
    for (url, parts) in
        [(&elsewhere, &["subjectAltName", "sslmode=verify-ca"][..]), (&plain, &["pg_hba.conf", "sslmode"])]
    {
        site.set("DATABASE_URL", url);
        let ended = site.vecsync.run(&["run"]);
        assert_eq!(ended.code, Some(1), "{}", ended.stderr);
        let said = ended.stderr.lines().find(|line| line.starts_with("vecsync: ")).unwrap_or_default();
        assert!(parts.iter().all(|part| said.contains(part)), "wanted {parts:?}: {}", ended.stderr);
        assert!(!ended.stderr.contains(PASSWORD), "{}", ended.stderr);
    }

    site.set("DATABASE_URL", &strict);
    site.vecsync.start_ready();
    site.sql.execute(&insert(&[values(1, "Who reads this?", "Nobody on the way", "c01")]));
    site.expect_equal(SOON);
    let open = "SELECT count(*) FILTER (WHERE ssl), count(*) FILTER (WHERE NOT ssl), count(*) FILTER (WHERE backend_type = 'walsender')
                FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE usename = 'vecsync'";
    let row = site.sql.query(open).remove(0);
    let number = |column| row.get(column).unwrap().parse::<u32>().unwrap();
    assert!(number(0) >= 2 && number(1) == 0 && number(2) == 1, "{row:?}");

    offer(&mut site.postgres, &authority.expired("localhost"));
    reload(&site.postgres);
    site.sql.query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'vecsync'");
    wait_until("health to name it", COMMAND, || {
        let health = site.vecsync.get("/health/detailed/").json();
        let told = health["components"]["source"]["error"].as_str().unwrap_or_default().to_owned();
        let named = told.contains("renew the server's certificate");
        if named && health["status"] == "degraded" { Ok(()) } else { Err(health.to_string()) }
    });
    assert!(site.vecsync.row(1).is_some());
    assert_eq!(site.get("/health/ready/").status, 200);
    site.sql.execute(&insert(&[values(2, "And this?", "Later", "c02")]));
    offer(&mut site.postgres, &renewed);
    reload(&site.postgres);
    site.expect_equal(SOON);
    assert!(!site.vecsync.log().contains(PASSWORD), "{}", site.vecsync.log());
}
