//! API keys: hashed once, compared in constant time, never printed.

use std::fmt;

use hyper::HeaderMap;
use hyper::header::AUTHORIZATION;
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

use crate::config::Secret;

/// The keys that are let in. Holds their hashes only.
#[derive(Clone, Default)]
pub struct Keys(Vec<[u8; 32]>);

impl Keys {
    /// Hashes the keys. Without any, everybody is let in.
    pub fn new(keys: &[Secret]) -> Self {
        Keys(keys.iter().map(|key| hash(key.expose().as_bytes())).collect())
    }

    /// Whether everybody is let in.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a request with these headers is let in: one `Authorization: Bearer KEY` with a known key.
    pub(super) fn admit(&self, headers: &HeaderMap) -> bool {
        self.is_empty() || bearer(headers).is_some_and(|key| self.knows(key))
    }

    /// Compares hashes, all of them always, so that the time taken says nothing of any key.
    fn knows(&self, key: &[u8]) -> bool {
        let given = hash(key);
        let found = self.0.iter().fold(Choice::from(0), |found, known| found | known.ct_eq(&given));
        found.into()
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keys({})", self.0.len())
    }
}

fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (value, None) = (values.next()?, values.next()) else { return None };
    let (scheme, key) = value.as_bytes().split_at_checked(b"Bearer ".len())?;
    let key = key.trim_ascii();
    (scheme.eq_ignore_ascii_case(b"Bearer ") && !key.is_empty()).then_some(key)
}

fn hash(key: &[u8]) -> [u8; 32] {
    Sha256::digest(key).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(keys: &[&str], headers: &[&str], wanted: bool) {
        let secrets: Vec<Secret> = keys.iter().map(|key| Secret::new((*key).to_owned())).collect();
        let mut map = HeaderMap::new();
        for value in headers {
            map.append(AUTHORIZATION, value.parse().expect("a header"));
        }
        assert_eq!(Keys::new(&secrets).admit(&map), wanted, "{keys:?} {headers:?}");
    }

    #[test]
    fn one_known_bearer_key_is_let_in() {
        check(&[], &[], true);
        check(&["old", "new"], &["Bearer old"], true);
        check(&["old", "new"], &["bearer  new "], true);
        check(&["old", "new"], &[], false);
        check(&["old", "new"], &["Bearer other"], false);
        check(&["old", "new"], &["Bearer "], false);
        check(&["old", "new"], &["Bearer"], false);
        check(&[""], &["Bearer "], false);
        check(&["old", "new"], &["old"], false);
        check(&["old", "new"], &["Basic old"], false);
        check(&["old", "new"], &["Bearer old", "Bearer old"], false);
    }

    #[test]
    fn printing_shows_no_key() {
        assert_eq!(format!("{:?}", Keys::new(&[Secret::new("canary".into())])), "Keys(1)");
    }
}
