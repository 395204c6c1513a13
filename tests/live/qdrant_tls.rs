//! A Qdrant behind TLS that asks for a key: reached, and what is wrong is said.

use crate::qdrant_run::{Pair, SOON};
use crate::support::process::wait_until;
use crate::support::qdrant::Qdrant;
use crate::support::tls_proxy::TlsProxy;

/// What health says that is wrong with Qdrant.
#[track_caller]
fn expect_fault(pair: &mut Pair, parts: &[&str]) {
    let told = wait_until("health to say what is wrong", SOON, || {
        let body = pair.site.vecsync.http.get("/health/qdrant/").map_err(|error| error.to_string())?.body;
        if parts.iter().all(|part| body.contains(part)) { Ok(body) } else { Err(body) }
    });
    assert!(!told.contains("canary"), "{told}");
}

#[test]
fn qdrant_is_reached_over_tls_with_a_key_and_what_is_wrong_is_said() {
    let mut pair = Pair::prepare(Qdrant::own_with(Some("canary-right"), &[]), 20);
    let folder = tempfile::tempdir().unwrap();
    let proxy = TlsProxy::start(folder.path(), "localhost", pair.qdrant.grpc_port);
    let other = TlsProxy::start(folder.path(), "elsewhere", pair.qdrant.grpc_port);
    let vecsync = &mut pair.site.vecsync;
    vecsync.set("QDRANT_HOST", "localhost");
    vecsync.set("QDRANT_GRPC_PORT", proxy.port);
    vecsync.set("QDRANT_TLS", "true");
    vecsync.set("QDRANT_API_KEY", "canary-right");
    // Where the system's certificates are looked for.
    vecsync.set("SSL_CERT_FILE", proxy.certificate.display());
    vecsync.start_ready();
    pair.expect_served_by("qdrant", SOON);
    pair.expect_searched(SOON);
    let said = pair.site.vecsync.run(&["init", "--health-check-only"]);
    assert_eq!(said.code, Some(0), "{}", said.stderr);

    // Another key, a certificate for another name, one that nobody trusts, and no TLS where there is some.
    let mistakes: [(&str, String, &[&str]); 4] = [
        ("QDRANT_API_KEY", "canary-wrong".to_owned(), &["QDRANT_API_KEY"]),
        ("QDRANT_GRPC_PORT", other.port.to_string(), &["certificate"]),
        ("SSL_CERT_FILE", other.certificate.display().to_string(), &["certificate"]),
        ("QDRANT_TLS", "false".to_owned(), &["unhealthy"]),
    ];
    let right = [
        ("QDRANT_API_KEY", "canary-right".to_owned()),
        ("QDRANT_GRPC_PORT", proxy.port.to_string()),
        ("SSL_CERT_FILE", proxy.certificate.display().to_string()),
        ("QDRANT_TLS", "true".to_owned()),
    ];
    for (name, value, parts) in mistakes {
        assert_eq!(pair.site.vecsync.terminate().code, Some(0));
        for (name, value) in &right {
            pair.site.vecsync.set(name, value);
        }
        pair.site.vecsync.set(name, value);
        pair.site.vecsync.start_ready();
        expect_fault(&mut pair, parts);
        pair.expect_served_by("local", SOON);
    }
    assert!(!pair.site.vecsync.log().contains("canary"), "{}", pair.site.vecsync.log());
}
