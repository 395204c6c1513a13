//! Where records stand, as the lines at debug say it: `3:17-18 5:2`, of each partition the first and the last offset. No I/O.

use std::collections::BTreeMap;
use std::fmt;

use super::Partition;

/// Where a record stands in its topic.
pub type Place = (Partition, u64);

/// Of each partition the first and the last offset.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places(BTreeMap<Partition, (u64, u64)>);

impl Places {
    /// One more.
    pub fn note(&mut self, (partition, offset): Place) {
        let (first, last) = self.0.entry(partition).or_insert((offset, offset));
        (*first, *last) = (offset.min(*first), offset.max(*last));
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<Place> for Places {
    fn from_iter<T: IntoIterator<Item = Place>>(places: T) -> Places {
        let mut all = Places::default();
        places.into_iter().for_each(|place| all.note(place));
        all
    }
}

impl fmt::Display for Places {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (count, (partition, (first, last))) in self.0.iter().enumerate() {
            let apart = if count > 0 { " " } else { "" };
            write!(f, "{apart}{partition}:{first}")?;
            if last > first {
                write!(f, "-{last}")?;
            }
        }
        if self.is_empty() { f.write_str("none") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_said_by_partition() {
        let check = |places: &[Place], wanted: &str| {
            assert_eq!(places.iter().copied().collect::<Places>().to_string(), wanted);
        };
        check(&[], "none");
        check(&[(3, 17)], "3:17");
        check(&[(5, 2), (3, 18), (3, 17), (3, 40)], "3:17-40 5:2");
    }
}
