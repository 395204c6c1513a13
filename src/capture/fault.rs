//! What can go wrong between us and PostgreSQL, what of it passes by itself, and what mends the rest. No I/O.

use std::error::Error;
use std::fmt;
use std::io;
use std::time::Duration;

use tokio_rustls::rustls;

use super::wire::WireError;

/// An error that the server reported.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerError {
    /// SQLSTATE, five characters; empty when the server sent none.
    pub code: String,
    /// What happened.
    pub message: String,
    /// More about it, if the server said more.
    pub detail: Option<String>,
    /// The server's own advice, if any.
    pub hint: Option<String>,
}

impl ServerError {
    /// SQLSTATE.
    pub fn code(&self) -> &str {
        &self.code
    }

    /// Whether trying again can succeed without anybody's help.
    pub fn is_transient(&self) -> bool {
        is_transient_code(&self.code)
    }

    /// What a person can do about it.
    pub fn remedy(&self) -> Option<&'static str> {
        remedy(&self.code, &self.message)
    }
}

impl From<&tokio_postgres::error::DbError> for ServerError {
    fn from(error: &tokio_postgres::error::DbError) -> Self {
        ServerError {
            code: error.code().code().to_owned(),
            message: error.message().to_owned(),
            detail: error.detail().map(str::to_owned),
            hint: error.hint().map(str::to_owned),
        }
    }
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&one_line(&self.message))?;
        if let Some(detail) = &self.detail {
            write!(f, " [{}]", one_line(detail))?;
        }
        write!(f, " ({})", self.code)
    }
}

impl Error for ServerError {}

/// Whether a query failed because a value is none of its type: class 22 of the SQLSTATEs is "data exception".
pub(super) fn is_of_the_values(error: &tokio_postgres::Error) -> bool {
    error.code().is_some_and(|code| code.code().starts_with("22"))
}

/// Whether an error of the ordinary SQL connection can pass by itself: the network's, and the server's as
/// `ServerError::is_transient` says.
pub fn is_transient_sql(error: &tokio_postgres::Error) -> bool {
    match error.as_db_error() {
        Some(server) => is_transient_code(server.code().code()),
        None => error.is_closed() || error.source().is_some_and(|cause| cause.is::<io::Error>()),
    }
}

/// SQLSTATE classes by what a later attempt can expect (appendix A of PostgreSQL's manual).
fn is_transient_code(code: &str) -> bool {
    match code {
        // A limit somebody has set: it stays reached until something is dropped or the limit is raised.
        "53400" => false,
        // The slot's other reader may be a connection that is only not yet known to be dead.
        "55006" | "55P03" => true,
        "57P01" | "57P02" | "57P03" | "57P05" | "57014" => true,
        // Connection lost, transaction rolled back, out of resources, the system beneath failed.
        _ => ["08", "40", "53", "58"].iter().any(|class| code.starts_with(class)),
    }
}

/// What a person can do about a server's error, by SQLSTATE and, where one code has several causes, by message.
pub fn remedy(code: &str, message: &str) -> Option<&'static str> {
    let says = |part: &str| message.contains(part);
    Some(match code {
        "28P01" => "check the user and the password in DATABASE_URL",
        "28000" if says("pg_hba.conf") => {
            "add a line for this user, database and address to pg_hba.conf (logical replication uses the database's \
             line, not a `replication` one) and reload, or change sslmode if it asks for encryption"
        }
        "28000" if says("channel binding") => {
            "somebody between vecsync and PostgreSQL shows another certificate than the server's: use sslmode=verify-full \
             to be sure who it is; a proxy of your own that ends TLS needs channel_binding=disable"
        }
        "28000" => "check the user in DATABASE_URL and that it may log in",
        "3D000" => "create the database, or name another in DATABASE_URL",
        "53300" if says("max_wal_senders") => "raise max_wal_senders and restart PostgreSQL",
        "53300" => "raise max_connections, or close connections",
        "53400" if says("replication slot") => {
            "drop a slot that nobody reads (SELECT slot_name FROM pg_replication_slots WHERE NOT active; \
             SELECT pg_drop_replication_slot('…')), or raise max_replication_slots and restart PostgreSQL"
        }
        "55000" if says("wal_level") => {
            "run ALTER SYSTEM SET wal_level = logical and restart PostgreSQL (a managed one has a setting for it)"
        }
        "55000" if says("can no longer") || says("invalidated") => {
            "the slot has lost WAL that is needed: drop it and run `vecsync sync`; raise max_slot_wal_keep_size so that \
             it does not happen again"
        }
        "55006" => {
            "another process reads this slot: stop it, or wait until PostgreSQL finds that it is gone \
             (wal_sender_timeout), or end it with pg_terminate_backend"
        }
        "42704" if says("replication slot") => "run `vecsync sync`, which makes the slot and reads the table afresh",
        "42704" if says("publication") => "create the publication: CREATE PUBLICATION … FOR TABLE …",
        "42710" if says("replication slot") => {
            "choose another slot in the pipeline file, or drop the one that is there"
        }
        "42501" if says("replication") || says("walsender") || says("WAL sender") => {
            "give the role the right to replicate: ALTER ROLE … REPLICATION (on Amazon RDS: GRANT rds_replication TO …)"
        }
        "42501" => "grant the role what is missing: sql/ has the statements",
        "57P03" => "PostgreSQL is starting or stopping; it is tried again",
        "42704" | "22023" if says("unrecognized configuration parameter") => "use PostgreSQL 14 or newer",
        _ => return None,
    })
}

/// A connection to PostgreSQL that did not come about. Its text is one line: where, who, what, and what to do;
/// never the password.
#[derive(Debug)]
pub struct ConnectError {
    /// `host:port/database` or the socket's path.
    place: String,
    user: String,
    fault: Box<ConnectFault>,
}

/// Why a connection did not come about.
#[derive(Debug, thiserror::Error)]
pub enum ConnectFault {
    /// The settings cannot be used.
    #[error("{0}")]
    Settings(&'static str),
    /// The host's name has no address.
    #[error("find its address: {0}")]
    Resolve(#[source] io::Error),
    /// The network, or nobody listens.
    #[error("{0}")]
    Network(#[source] io::Error),
    /// No answer in time.
    #[error("no answer within {} s", .0.as_secs_f64())]
    TimedOut(Duration),
    /// The server hung up in the middle.
    #[error("the server closed the connection")]
    Closed,
    /// The server has no TLS and `sslmode` wants it.
    #[error("the server does not offer TLS")]
    TlsRefused,
    /// The file or store of root certificates cannot be used.
    #[error("read root certificates {place}: {reason}")]
    Roots {
        /// The file, or the system's store.
        place: String,
        /// What was wrong.
        reason: String,
    },
    /// The server's certificate is not trusted.
    #[error("the server's certificate is not trusted: {0}")]
    Untrusted(#[source] rustls::Error),
    /// The two sides could not agree on TLS.
    #[error("TLS handshake: {0}")]
    Handshake(#[source] io::Error),
    /// The server wants a password.
    #[error("the server wants a password and none is given")]
    NoPassword,
    /// Proving who we are, or who the server is, failed on our side.
    #[error("authenticate: {0}")]
    Authentication(String),
    /// The server's error.
    #[error("{0}")]
    Server(#[source] ServerError),
    /// `target_session_attrs` is not what this server is.
    #[error("the server is {0}, and target_session_attrs wants another")]
    SessionAttrs(&'static str),
    /// What answered does not speak PostgreSQL's protocol.
    #[error("what answers there does not speak PostgreSQL's protocol: {0}")]
    Protocol(String),
}

impl ConnectError {
    /// An error at a place, `host:port/database`, as a user.
    pub(super) fn new(place: impl Into<String>, user: impl Into<String>, fault: ConnectFault) -> Self {
        ConnectError { place: place.into(), user: user.into(), fault: Box::new(fault) }
    }

    /// Why.
    pub fn fault(&self) -> &ConnectFault {
        &self.fault
    }

    /// SQLSTATE, when it was the server that refused.
    pub fn code(&self) -> Option<&str> {
        match &*self.fault {
            ConnectFault::Server(error) => Some(error.code()),
            _ => None,
        }
    }

    /// Whether trying again can succeed without anybody's help.
    pub fn is_transient(&self) -> bool {
        match &*self.fault {
            ConnectFault::Resolve(_)
            | ConnectFault::Network(_)
            | ConnectFault::TimedOut(_)
            | ConnectFault::Closed
            | ConnectFault::SessionAttrs(_) => true,
            ConnectFault::Server(error) => error.is_transient(),
            ConnectFault::Settings(_)
            | ConnectFault::TlsRefused
            | ConnectFault::Roots { .. }
            | ConnectFault::Untrusted(_)
            | ConnectFault::Handshake(_)
            | ConnectFault::NoPassword
            | ConnectFault::Authentication(_)
            | ConnectFault::Protocol(_) => false,
        }
    }
}

impl ConnectFault {
    /// What a person can do about it.
    pub fn remedy(&self) -> Option<&'static str> {
        use rustls::CertificateError as Certificate;
        Some(match self {
            ConnectFault::Settings(_) => "mend DATABASE_URL",
            ConnectFault::Resolve(_) => "check the host in DATABASE_URL",
            ConnectFault::Network(_) | ConnectFault::TimedOut(_) | ConnectFault::Closed => {
                "check that PostgreSQL runs and listens there, and the address in DATABASE_URL"
            }
            ConnectFault::TlsRefused => "set ssl = on in postgresql.conf, or sslmode=prefer in DATABASE_URL",
            ConnectFault::Roots { .. } => {
                "name a PEM file of root certificates in sslrootcert, or sslrootcert=system, or choose another sslmode"
            }
            ConnectFault::Untrusted(rustls::Error::InvalidCertificate(error)) => match error {
                Certificate::UnknownIssuer => "name the certificate's issuer in sslrootcert",
                Certificate::NotValidForName | Certificate::NotValidForNameContext { .. } => {
                    "use a host name that is in the certificate's subjectAltName, or sslmode=verify-ca"
                }
                Certificate::Expired | Certificate::ExpiredContext { .. } => "renew the server's certificate",
                Certificate::NotValidYet | Certificate::NotValidYetContext { .. } => "check both machines' clocks",
                _ => "give the server an X.509 version 3 certificate with a subjectAltName",
            },
            ConnectFault::Untrusted(_) | ConnectFault::Handshake(_) => {
                "check that the server speaks TLS 1.2 or 1.3 with a certificate of X.509 version 3"
            }
            ConnectFault::NoPassword => "put the password into DATABASE_URL",
            ConnectFault::Authentication(what) if what.contains("channel") => {
                "channel_binding=require needs TLS (sslmode=require or stricter), scram-sha-256 in pg_hba.conf and a \
                 certificate that is not signed by Ed25519; or leave it out"
            }
            ConnectFault::Authentication(_) => "use scram-sha-256 or md5 in pg_hba.conf, and check the password",
            ConnectFault::Server(error) => return error.remedy(),
            ConnectFault::SessionAttrs(_) => "wait for the failover to end, or name the right host in DATABASE_URL",
            ConnectFault::Protocol(_) => "check host and port in DATABASE_URL",
        })
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fault = one_line(&self.fault.to_string());
        write!(f, "connect to PostgreSQL at {} as {}: {fault}", self.place, self.user)?;
        match self.fault.remedy() {
            Some(remedy) => write!(f, "; {remedy}"),
            None => Ok(()),
        }
    }
}

impl Error for ConnectError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.fault)
    }
}

impl From<tokio_postgres::Error> for ConnectFault {
    /// Sorts what tokio-postgres says while it logs in; its kinds are private, their causes are not.
    fn from(error: tokio_postgres::Error) -> Self {
        if let Some(server) = error.as_db_error() {
            return ConnectFault::Server(server.into());
        }
        if error.is_closed() {
            return ConnectFault::Closed;
        }
        let what = error.to_string();
        match error.into_source().map(|cause| cause.downcast::<io::Error>()) {
            // What a server says in SCRAM and a driver finds wrong is an I/O error there, too.
            Some(Ok(cause)) if what == "authentication error" => ConnectFault::Authentication(cause.to_string()),
            Some(Ok(cause)) => match cause.kind() {
                io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => {
                    ConnectFault::Protocol(format!("{what}: {cause}"))
                }
                _ => ConnectFault::Network(*cause),
            },
            Some(Err(cause)) if cause.to_string() == "password missing" => ConnectFault::NoPassword,
            Some(Err(cause)) => ConnectFault::Authentication(cause.to_string()),
            None => ConnectFault::Protocol(what),
        }
    }
}

/// A replication connection failed after it was made.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The network.
    #[error("{doing} on the replication connection: {source}")]
    Network {
        /// `read` or `write`.
        doing: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The server closed the connection without a word.
    #[error("the server closed the replication connection")]
    Closed,
    /// The server ended the stream, as it does when it shuts down.
    #[error("the server ended the replication stream")]
    Ended,
    /// The server's error.
    #[error("{0}")]
    Server(#[source] ServerError),
    /// Bytes that are not the protocol's.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// A frame that has no place here.
    #[error("the server sent a frame that does not belong here: {0}")]
    Unexpected(String),
    /// An earlier command was given up half way; its answers are still to come.
    #[error("an earlier command on this connection was given up half way; connect again")]
    OutOfStep,
    /// The server answers with more rows than any replication command has.
    #[error("the answer has more than {0} rows")]
    TooManyRows(usize),
}

impl StreamError {
    /// SQLSTATE, when the server reported an error.
    pub fn code(&self) -> Option<&str> {
        match self {
            StreamError::Server(error) => Some(error.code()),
            _ => None,
        }
    }

    /// Whether a new connection can go on where this one stopped.
    pub fn is_transient(&self) -> bool {
        match self {
            // Damaged bytes come from what lies between: the stream is asked for again from the confirmed position.
            StreamError::Network { .. }
            | StreamError::Closed
            | StreamError::Ended
            | StreamError::Wire(_)
            | StreamError::OutOfStep => true,
            StreamError::Server(error) => error.is_transient(),
            StreamError::Unexpected(_) | StreamError::TooManyRows(_) => false,
        }
    }

    /// What a person can do about it.
    pub fn remedy(&self) -> Option<&'static str> {
        match self {
            StreamError::Server(error) => error.remedy(),
            _ => None,
        }
    }
}

/// A command of the replication connection failed.
#[derive(Debug)]
pub struct CommandError {
    /// Operation and object, like `create replication slot vecsync_faq`.
    pub command: String,
    /// Why.
    pub fault: StreamError,
}

impl CommandError {
    /// SQLSTATE, when the server reported an error.
    pub fn code(&self) -> Option<&str> {
        self.fault.code()
    }

    /// Whether trying again, on a new connection, can succeed without anybody's help.
    pub fn is_transient(&self) -> bool {
        self.fault.is_transient()
    }
}

impl fmt::Display for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.command, one_line(&self.fault.to_string()))?;
        match self.fault.remedy() {
            Some(remedy) => write!(f, "; {remedy}"),
            None => Ok(()),
        }
    }
}

impl Error for CommandError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.fault)
    }
}

/// Servers and drivers break their lines; ours do not.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(code: &str, message: &str) -> ConnectError {
        let error = ServerError { code: code.into(), message: message.into(), ..ServerError::default() };
        ConnectError::new("db:5432/faq", "reader", ConnectFault::Server(error))
    }

    #[test]
    fn codes_sort_into_passing_and_lasting() {
        let passing = ["57P03", "53300", "53200", "57P01", "08006", "40001", "55006", "58030"];
        let lasting = ["28P01", "28000", "3D000", "53400", "55000", "42704", "42501", "42710", "XX000", ""];
        for code in passing {
            assert!(server(code, "m").is_transient(), "{code}");
        }
        for code in lasting {
            assert!(!server(code, "m").is_transient(), "{code}");
        }
    }

    #[test]
    fn a_connect_error_is_one_line_with_place_user_and_remedy() {
        let text = server("28P01", "password authentication failed\nfor user \"reader\"").to_string();
        assert_eq!(
            text,
            "connect to PostgreSQL at db:5432/faq as reader: password authentication failed for user \"reader\" \
             (28P01); check the user and the password in DATABASE_URL"
        );
        let refused = ConnectFault::Network(io::Error::from(io::ErrorKind::ConnectionRefused));
        let refused = ConnectError::new("db:5432/faq", "reader", refused);
        assert!(refused.is_transient());
        let chain = crate::retry::Chain(&refused).to_string();
        assert_eq!(chain, refused.to_string(), "causes are said once");
    }

    #[test]
    fn remedies_tell_causes_of_one_code_apart() {
        for (code, message, wanted) in [
            ("53400", "all replication slots are in use", "max_replication_slots"),
            ("53300", "number of requested standby connections exceeds max_wal_senders", "max_wal_senders"),
            ("53300", "sorry, too many clients already", "max_connections"),
            ("55000", "logical decoding requires wal_level >= logical", "wal_level = logical"),
            ("55000", "can no longer get changes from replication slot \"s\"", "vecsync sync"),
            ("55006", "replication slot \"s\" is active for PID 7", "pg_terminate_backend"),
            ("42704", "replication slot \"s\" does not exist", "vecsync sync"),
            ("42501", "must be superuser or replication role to start walsender", "ALTER ROLE"),
            ("42501", "permission denied to start WAL sender", "ALTER ROLE"),
            ("28000", "SCRAM channel binding check failed", "verify-full"),
            ("42704", "unrecognized configuration parameter \"x\"", "PostgreSQL 14"),
        ] {
            let said = remedy(code, message).unwrap_or("nothing");
            assert!(said.contains(wanted), "{code} {message}: {said}");
        }
        assert_eq!(remedy("42601", "syntax error"), None);
    }
}
