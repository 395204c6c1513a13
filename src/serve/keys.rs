//! API keys: hashed once, compared in constant time, never printed.

use std::fmt;

use hyper::HeaderMap;
use hyper::header::AUTHORIZATION;
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

use crate::config::{ApiKeys, Secret};

/// The keys that are let in. Holds their hashes only.
#[derive(Clone, Default)]
pub struct Keys {
    commanding: Vec<[u8; 32]>,
    searching: Vec<[u8; 32]>,
}

impl Keys {
    /// Hashes the keys. Without any, everybody is let in.
    pub fn new(keys: &ApiKeys) -> Self {
        let hashes = |keys: &[Secret]| keys.iter().map(|key| hash(key.expose().as_bytes())).collect();
        Keys { commanding: hashes(&keys.commanding), searching: hashes(&keys.searching) }
    }

    /// Whether everybody is let in.
    pub(super) fn is_empty(&self) -> bool {
        self.commanding.is_empty() && self.searching.is_empty()
    }

    /// Whether a request with these headers is let in: one `Authorization: Bearer KEY` with a known key.
    pub(super) fn admit(&self, headers: &HeaderMap) -> bool {
        let keys = || self.commanding.iter().chain(&self.searching);
        self.is_empty() || bearer(headers).is_some_and(|key| is_one_of(key, keys()))
    }

    /// Whether its key may command, and not only search.
    pub(super) fn may_command(&self, headers: &HeaderMap) -> bool {
        bearer(headers).is_some_and(|key| is_one_of(key, self.commanding.iter()))
    }
}

/// Compares hashes, all of them always, so that the time taken says nothing of any key.
fn is_one_of<'a>(key: &[u8], known: impl Iterator<Item = &'a [u8; 32]>) -> bool {
    let given = hash(key);
    known.fold(Choice::from(0), |found, known| found | known.ct_eq(&given)).into()
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keys({}, {} to search)", self.commanding.len(), self.searching.len())
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

    fn keys(commanding: &[&str], searching: &[&str]) -> Keys {
        let secrets = |keys: &[&str]| keys.iter().map(|key| Secret::new((*key).to_owned())).collect();
        Keys::new(&ApiKeys { commanding: secrets(commanding), searching: secrets(searching) })
    }

    fn headers(values: &[&str]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for value in values {
            map.append(AUTHORIZATION, value.parse().expect("a header"));
        }
        map
    }

    fn check(given: &[&str], values: &[&str], wanted: bool) {
        for keys in [keys(given, &[]), keys(&[], given)] {
            assert_eq!(keys.admit(&headers(values)), wanted, "{given:?} {values:?}");
        }
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
    fn a_key_to_search_does_not_command() {
        let keys = keys(&["all"], &["some"]);
        let may = |key: &str| {
            let headers = headers(&[&format!("Bearer {key}")]);
            (keys.admit(&headers), keys.may_command(&headers))
        };
        assert_eq!((may("all"), may("some"), may("none")), ((true, true), (true, false), (false, false)));
        assert!(!self::keys(&[], &["some"]).may_command(&headers(&["Bearer some"])));
        assert!(!self::keys(&[], &[]).may_command(&headers(&[])));
    }

    #[test]
    fn printing_shows_no_key() {
        assert_eq!(format!("{:?}", keys(&["canary"], &["canary"])), "Keys(1, 1 to search)");
    }
}
