//! Shows every setting with its value and where it came from, secrets as `***`. Checks nothing.

use std::fmt;
use std::path::Path;

use super::environment::Environment;
use super::folder;
use super::problems::{Problems, without_userinfo};
use super::settings::{self, SETTINGS, Settings, Show, default_url, given};
use super::{database, qdrant};

/// A longer value pushes its own origin to the right, not everybody's; in characters.
const VALUE_WIDTH_MAX: usize = 44;

/// What `vecsync config` prints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    rows: Vec<Listed>,
    /// Which pipelines there are, where there are several.
    pipelines: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Listed {
    name: &'static str,
    value: String,
    origin: String,
}

/// All settings in the order of the reference, and what is wrong with those that are set.
pub fn listing(environment: &Environment) -> (Listing, Problems) {
    let mut problems = Problems::new();
    let settings = problems.take(Settings::read(environment));
    let database_is_good = problems.take(database::read(environment)).is_some();
    // What is wrong with the files is said by `pipeline check`.
    let set = folder::read_set(&settings::pipeline_path(environment), &|_| vec![]).ok();
    // Several have a collection each.
    let only = set.as_ref().and_then(|set| set.pipelines.first().filter(|_| set.pipelines.len() == 1));
    let collection = only.and_then(|(file, pipeline)| Some((file, pipeline.collection.clone()?)));
    let rows = SETTINGS.iter().map(|known| {
        let own = collection.as_ref().filter(|_| known.name == qdrant::COLLECTION);
        let (value, origin) = match (own, given(environment, known.name)) {
            (Some((file, name)), _) => (name.clone(), format!("{}: index.collection", file.display())),
            (None, Some(value)) => {
                let origin = environment.origin(known.name).map(|origin| origin.to_string()).unwrap_or_default();
                (shown(value, known.show, database_is_good), origin)
            }
            (None, None) if known.name == settings::URL => {
                let derived = settings.as_ref().map(|settings| default_url(&settings.server).to_string());
                (derived.unwrap_or_else(|| "-".to_owned()), "default".to_owned())
            }
            (None, None) if known.default.is_empty() => ("-".to_owned(), "not set".to_owned()),
            (None, None) => (known.default.to_owned(), "default".to_owned()),
        };
        Listed { name: known.name, value, origin }
    });
    let rows = rows.collect();
    (Listing { rows, pipelines: set.as_ref().and_then(pipelines) }, problems)
}

/// Names several pipelines and the default among them. Whether their files are good is not asked here.
fn pipelines(set: &folder::Set) -> Option<String> {
    if set.pipelines.len() < 2 {
        return None;
    }
    let name = |(place, (_, pipeline)): (usize, &(_, super::Pipeline))| match place == set.default {
        true => format!("{} (the default)", pipeline.name),
        false => pipeline.name.clone(),
    };
    Some(set.pipelines.iter().enumerate().map(name).collect::<Vec<_>>().join(", "))
}

fn shown(value: &str, show: Show, database_is_good: bool) -> String {
    match show {
        Show::Plain => without_userinfo(value).escape_debug().to_string(),
        Show::Secret => "***".to_owned(),
        Show::SecretFile if Path::new(value).exists() => value.escape_debug().to_string(),
        Show::SecretFile => "*** (no such file)".to_owned(),
        Show::Url if settings::url(value).is_ok() => value.to_owned(),
        Show::Url => "***".to_owned(),
        Show::ConnInfo => database::masked(value, database_is_good).escape_debug().to_string(),
    }
}

impl fmt::Display for Listing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width =
            |text: fn(&Listed) -> &str| self.rows.iter().map(|row| text(row).chars().count()).max().unwrap_or(0);
        let (names, values) = (width(|row| row.name), width(|row| &row.value).min(VALUE_WIDTH_MAX));
        for row in &self.rows {
            writeln!(f, "{:names$}  {:values$}  {}", row.name, row.value, row.origin)?;
        }
        if let Some(pipelines) = &self.pipelines {
            writeln!(f, "Pipelines: {pipelines}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_is_listed_with_its_origin_and_no_secret() {
        let values = [
            ("DATABASE_URL", "postgres://u:canary@h/d"),
            ("VECSYNC_API_KEYS", "canarycanarycanary"),
            ("VECSYNC_TLS_KEY", "canary"),
            ("VECSYNC_URL", "http://u:canary@h"),
            ("QDRANT_API_KEY", "canary"),
            ("VECSYNC_LISTEN", "postgres://u:canary@h/d"),
        ];
        let (listing, problems) = listing(&Environment::of(values, "VECSYNC_MODEL=int8\n"));
        let text = listing.to_string();
        assert_eq!(text.lines().count(), SETTINGS.len());
        assert!(!text.contains("canary") && !problems.to_string().contains("canary"), "{text}\n{problems}");
        for (name, value, origin) in [
            ("DATABASE_URL", "postgresql://u:***@h/d", "environment"),
            ("VECSYNC_MODEL", "int8", ".env line 1"),
            ("VECSYNC_LOG", "info", "default"),
            ("KAFKA_BROKERS", "-", "not set"),
            ("QDRANT_API_KEY", "***", "environment"),
        ] {
            let row = text.lines().find(|line| line.split_whitespace().next() == Some(name)).expect("listed");
            assert!(row.contains(value) && row.ends_with(origin), "{row}");
        }
    }
}
