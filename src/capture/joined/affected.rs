//! Asks which documents changes of watched tables make new: few at once, or a fan-out.

use std::collections::BTreeMap;

use super::causes::Cause;
use super::fanout::VALUES_MAX;
use super::{AT_ONCE_MAX, of_query};
use crate::capture::CaptureError;
use crate::capture::catalog::server_text;
use crate::capture::documents::reader::is_of_the_rows;
use crate::capture::documents::{KeyText, Reader, place};

/// Changes of one watched table that are asked for one by one when together they make too many documents new: a small one among
/// them need not wait for a large one.
const ALONE_MAX: usize = 8;

/// What changes of watched tables make new.
pub(super) struct Affected {
    pub keys: Vec<(KeyText, Cause)>,
    /// Too many at once: of which watched table, which values, and their first cause.
    pub fanouts: Vec<(usize, Vec<KeyText>, Cause)>,
}

pub(super) async fn affected(
    reader: &Reader,
    watched: Vec<BTreeMap<KeyText, Cause>>,
) -> Result<Affected, CaptureError> {
    let mut found = Affected { keys: vec![], fanouts: vec![] };
    for (number, changes) in watched.into_iter().enumerate() {
        let Some(table) = reader.documents().watched.get(number) else { continue };
        let all: Vec<(KeyText, Cause)> = changes.into_iter().collect();
        let mut waiting: Vec<&[(KeyText, Cause)]> = all.chunks(VALUES_MAX).collect();
        while let Some(some) = waiting.pop() {
            let values: Vec<KeyText> = some.iter().map(|(value, _)| value.clone()).collect();
            let Some((first, last)) = first_and_last(some) else { continue };
            match reader.affected(table, &values, AT_ONCE_MAX).await {
                Ok(Some(keys)) => found.keys.extend(keys.into_iter().map(|key| (key, last))),
                Ok(None) if (2..=ALONE_MAX).contains(&some.len()) => waiting.extend(some.chunks(1)),
                Ok(None) => found.fanouts.push((number, values, first)),
                Err(error) if !is_of_the_rows(&error) => {
                    return Err(of_query(&place(number, "affects"), error.into()));
                }
                Err(error) if some.len() == 1 => leave_out(number, &values, &error),
                Err(_) => {
                    let (front, back) = some.split_at(some.len() / 2);
                    waiting.extend([front, back]);
                }
            }
        }
    }
    // In the order of the log.
    found.fanouts.sort_by_key(|(_, _, cause)| cause.position);
    Ok(found)
}

/// One value that `affects` cannot do with holds up no other: nothing says which documents it concerns.
pub(super) fn leave_out(number: usize, values: &[KeyText], error: &tokio_postgres::Error) {
    let texts: Vec<&str> = values.iter().flatten().map(|text| text.as_deref().unwrap_or("NULL")).collect();
    let (place, values) = (place(number, "affects"), texts.join(", "));
    tracing::warn!("{place} fails for {values}, whose change reaches no document: {}", server_text(error));
}

fn first_and_last(changes: &[(KeyText, Cause)]) -> Option<(Cause, Cause)> {
    let of = |(_, cause): &(KeyText, Cause)| (cause.position, *cause);
    let first = changes.iter().map(of).min_by_key(|(position, _)| *position)?.1;
    let last = changes.iter().map(of).max_by_key(|(position, _)| *position)?.1;
    Some((first, last))
}
