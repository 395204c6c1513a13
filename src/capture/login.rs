//! Logs a replication connection in: startup, SCRAM-SHA-256 with and without channel binding, md5, cleartext, trust.

use postgres_protocol::authentication;
use postgres_protocol::authentication::sasl::{self, ScramSha256};
use postgres_protocol::message::backend::{AuthenticationSaslBody, Message};
use postgres_protocol::message::frontend;
use tokio_postgres::config::ChannelBinding;
use tokio_postgres::fallible_iterator::FallibleIterator;

use super::fault::{ConnectFault, StreamError};
use super::link::Link;
use super::socket::{Route, Socket, Target};
use super::sql::{APPLICATION_NAME, PINS};
use super::wire::{LOGIN_FRAME_BYTES_MAX, ServerFrame};
use crate::config::Database;

/// A connection that the server has let in.
pub(super) struct LoggedIn {
    pub(super) link: Link,
    pub(super) backend_pid: i32,
}

/// Opens a socket to the target and logs in for logical replication.
pub(super) async fn login(target: &Target, database: &Database, route: &Route<'_>) -> Result<LoggedIn, ConnectFault> {
    let socket = Socket::open(target, database).await?;
    let mut link = Link::new(socket, LOGIN_FRAME_BYTES_MAX);
    startup(&mut link, database, route).await?;
    authenticate(&mut link, database, route.user()).await?;
    let mut backend_pid = 0;
    loop {
        match answer(&mut link).await? {
            Message::BackendKeyData(body) => backend_pid = body.process_id(),
            Message::ParameterStatus(_) | Message::NoticeResponse(_) => {}
            Message::ReadyForQuery(_) => return Ok(LoggedIn { link, backend_pid }),
            _ => return Err(ConnectFault::Protocol("an unexpected frame after authentication".to_owned())),
        }
    }
}

async fn startup(link: &mut Link, database: &Database, route: &Route<'_>) -> Result<(), ConnectFault> {
    let config = &database.postgres;
    let own = [
        ("user", route.user()),
        ("database", route.database_name()),
        ("replication", "database"),
        ("application_name", config.get_application_name().unwrap_or(APPLICATION_NAME)),
    ];
    let options = config.get_options().map(|options| ("options", options));
    // The settings' own options come first: what is pinned wins.
    let parameters = own.into_iter().chain(options).chain(PINS);
    frontend::startup_message(parameters, &mut link.outgoing)
        .map_err(|_| ConnectFault::Settings("a zero byte in user, database or options"))?;
    Ok(link.send().await?)
}

async fn authenticate(link: &mut Link, database: &Database, user: &str) -> Result<(), ConnectFault> {
    let config = &database.postgres;
    let password = || config.get_password().ok_or(ConnectFault::NoPassword);
    let request = answer(link).await?;
    let bound = config.get_channel_binding() == ChannelBinding::Require;
    if bound && !matches!(request, Message::AuthenticationSasl(_)) {
        return Err(ConnectFault::Authentication("channel_binding=require, and the server does not offer it".into()));
    }
    match request {
        Message::AuthenticationOk => return Ok(()),
        Message::AuthenticationMd5Password(body) => {
            let hash = authentication::md5_hash(user.as_bytes(), password()?, body.salt());
            send_password(link, hash.as_bytes()).await?;
        }
        Message::AuthenticationCleartextPassword => {
            // libpq answers this on any connection, and the SQL connection's library does as well: to refuse it here
            // would protect nothing.
            if link.socket().is_readable_on_the_way() {
                tracing::warn!(
                    "PostgreSQL asks for the password in the clear and the connection has no TLS: anybody on \
                                the way can read it; use scram-sha-256 in pg_hba.conf, or sslmode=require"
                );
            }
            send_password(link, password()?).await?;
        }
        Message::AuthenticationSasl(body) => scram(link, &body, password()?, config.get_channel_binding()).await?,
        _ => {
            let fault = "the server wants a method that vecsync does not have (Kerberos, GSSAPI, SSPI or another)";
            return Err(ConnectFault::Authentication(fault.to_owned()));
        }
    }
    match answer(link).await? {
        Message::AuthenticationOk => Ok(()),
        _ => Err(ConnectFault::Protocol("an unexpected frame in place of the end of authentication".to_owned())),
    }
}

async fn send_password(link: &mut Link, password: &[u8]) -> Result<(), ConnectFault> {
    frontend::password_message(password, &mut link.outgoing)
        .map_err(|_| ConnectFault::Settings("a zero byte in the password"))?;
    Ok(link.send().await?)
}

/// SCRAM-SHA-256 (RFC 7677), bound to the TLS channel where both sides can (RFC 5929).
async fn scram(
    link: &mut Link,
    offered: &AuthenticationSaslBody,
    password: &[u8],
    wanted: ChannelBinding,
) -> Result<(), ConnectFault> {
    let failed = |error: std::io::Error| ConnectFault::Authentication(error.to_string());
    let offered: Vec<&str> = offered.mechanisms().collect().map_err(failed)?;
    let binding = match wanted {
        ChannelBinding::Disable => None,
        _ => link.socket().server_end_point(),
    };
    let (mechanism, binding) = match binding {
        Some(hash) if offered.contains(&sasl::SCRAM_SHA_256_PLUS) => {
            (sasl::SCRAM_SHA_256_PLUS, sasl::ChannelBinding::tls_server_end_point(hash))
        }
        _ if wanted == ChannelBinding::Require => {
            let fault = "channel_binding=require, and server or certificate do not allow it";
            return Err(ConnectFault::Authentication(fault.to_owned()));
        }
        // "We could, you did not offer": the server finds out if somebody on the way took its offer away.
        Some(_) => (sasl::SCRAM_SHA_256, sasl::ChannelBinding::unrequested()),
        None => (sasl::SCRAM_SHA_256, sasl::ChannelBinding::unsupported()),
    };
    if !offered.contains(&mechanism) {
        let fault = format!("the server offers {}, vecsync has {mechanism}", offered.join(" and "));
        return Err(ConnectFault::Authentication(fault));
    }
    let mut scram = ScramSha256::new(password, binding);
    frontend::sasl_initial_response(mechanism, scram.message(), &mut link.outgoing).map_err(failed)?;
    link.send().await?;
    let Message::AuthenticationSaslContinue(body) = answer(link).await? else {
        return Err(ConnectFault::Protocol("an unexpected frame within SCRAM".to_owned()));
    };
    scram.update(body.data()).map_err(failed)?;
    frontend::sasl_response(scram.message(), &mut link.outgoing).map_err(failed)?;
    link.send().await?;
    let Message::AuthenticationSaslFinal(body) = answer(link).await? else {
        return Err(ConnectFault::Protocol("an unexpected frame within SCRAM".to_owned()));
    };
    // Here the server proves that it knows the password, too.
    scram.finish(body.data()).map_err(failed)
}

/// The next frame of the server, which before login is never part of a stream.
async fn answer(link: &mut Link) -> Result<Message, ConnectFault> {
    match link.next().await? {
        ServerFrame::Message(message) => Ok(message),
        ServerFrame::Error(error) => Err(ConnectFault::Server(error)),
        ServerFrame::CopyBoth | ServerFrame::CopyData(_) => {
            Err(ConnectFault::Protocol("a stream before login".to_owned()))
        }
    }
}

impl From<StreamError> for ConnectFault {
    /// A fault of the connection while it is still being made.
    fn from(error: StreamError) -> Self {
        match error {
            StreamError::Network { source, .. } => ConnectFault::Network(source),
            StreamError::Closed | StreamError::Ended => ConnectFault::Closed,
            StreamError::Server(error) => ConnectFault::Server(error),
            error @ (StreamError::Wire(_)
            | StreamError::Unexpected(_)
            | StreamError::OutOfStep
            | StreamError::TooManyRows(_)) => ConnectFault::Protocol(error.to_string()),
        }
    }
}
