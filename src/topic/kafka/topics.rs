//! Makes the topics, and refuses those that are there with other settings. Reads and writes no record.

use std::collections::HashMap;
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::super::LogError;
use super::Settings;
use super::client::{self, Limits, PATIENCE, Quiet, RECORD_BYTES_MAX};

/// A topic that is there, or has to be.
#[derive(Clone)]
pub(super) struct Wanted<'a> {
    pub name: &'a str,
    pub partitions: u16,
}

/// Makes the topics that are missing and checks the others. Gives what all of them ask for. Nothing is made while one has
/// another number of partitions, be it one of those `beside`, which are not made here.
pub(super) async fn ensure(
    settings: &Settings,
    wanted: &[Wanted<'_>],
    beside: &[Wanted<'_>],
) -> Result<Limits, LogError> {
    let all = [beside, wanted].concat();
    let found = partitions(settings, &all).await?;
    refuse_other_numbers(&all, &found)?;
    let missing: Vec<&Wanted> = wanted.iter().filter(|topic| !found.contains_key(topic.name)).collect();
    let admin: AdminClient<Quiet> =
        client::config(settings).create_with_context(Quiet).map_err(client::fault("connect to", &settings.brokers))?;
    let options = AdminOptions::new().request_timeout(Some(PATIENCE)).operation_timeout(Some(PATIENCE));
    make(settings, &admin, &options, &missing).await?;
    let present: Vec<&str> = wanted.iter().map(|topic| topic.name).filter(|name| found.contains_key(*name)).collect();
    check_settings(&admin, &options, &present, Limits::new(settings)).await
}

/// Asks the brokers whether they let us in. Whether they are there at all is not asked.
pub(super) async fn check_login(settings: &Settings) -> Result<(), LogError> {
    match partitions(settings, &[]).await {
        Err(refused @ LogError::Login { .. }) => Err(refused),
        _ => Ok(()),
    }
}

/// Refuses topics whose number of partitions has changed.
pub(super) async fn check_partitions(settings: &Settings, names: &[&str]) -> Result<(), LogError> {
    let wanted: Vec<Wanted> = names.iter().map(|name| Wanted { name, partitions: settings.partitions }).collect();
    refuse_other_numbers(&wanted, &partitions(settings, &wanted).await?)
}

/// Checks the settings of those topics that are there.
pub(super) async fn check_present(settings: &Settings, names: &[&str]) -> Result<(), LogError> {
    let wanted: Vec<Wanted> = names.iter().map(|name| Wanted { name, partitions: settings.partitions }).collect();
    let found = partitions(settings, &wanted).await?;
    let present: Vec<&str> = names.iter().copied().filter(|name| found.contains_key(*name)).collect();
    let admin: AdminClient<Quiet> =
        client::config(settings).create_with_context(Quiet).map_err(client::fault("connect to", &settings.brokers))?;
    let options = AdminOptions::new().request_timeout(Some(PATIENCE)).operation_timeout(Some(PATIENCE));
    check_settings(&admin, &options, &present, Limits::new(settings)).await.map(drop)
}

/// Checks a topic that others write: it has to be there, with as many partitions as ours.
pub(super) async fn check_foreign(settings: &Settings, topic: &str) -> Result<(), LogError> {
    let wanted = [Wanted { name: topic, partitions: settings.partitions }];
    match partitions(settings, &wanted).await?.get(topic) {
        None => Err(LogError::Absent { topic: topic.to_owned() }),
        Some(found) if *found != settings.partitions => {
            let what = format!(
                "it has {found} partitions and VECSYNC_TOPIC_PARTITIONS is {}; a row has the same partition in vectors as \
                 in it: set VECSYNC_TOPIC_PARTITIONS={found}, and another VECSYNC_TOPIC_PREFIX where vecsync's topics \
                 were made with another number",
                settings.partitions
            );
            Err(refused(topic, &what))
        }
        Some(_) => Ok(()),
    }
}

/// Says what follows where others let a topic forget records.
pub(super) async fn warn_of_retention(settings: &Settings, topic: &str) -> Result<(), LogError> {
    let admin: AdminClient<Quiet> =
        client::config(settings).create_with_context(Quiet).map_err(client::fault("connect to", &settings.brokers))?;
    let options = AdminOptions::new().request_timeout(Some(PATIENCE)).operation_timeout(Some(PATIENCE));
    let described = admin.describe_configs(&[ResourceSpecifier::Topic(topic)], &options).await;
    let described = described.map_err(client::fault("read the settings of", topic))?;
    let Some(Ok(resource)) = described.into_iter().next() else { return Ok(()) };
    let value = |name: &str| resource.get(name).and_then(|entry| entry.value.clone()).unwrap_or_default();
    let is_limited = |name: &str| value(name).parse().is_ok_and(|limit: i64| limit >= 0);
    if value("cleanup.policy").contains("delete") && (is_limited("retention.ms") || is_limited("retention.bytes")) {
        tracing::warn!(
            topic,
            "its cleanup.policy deletes records by age or size: rows that do not change disappear from it, so neither a \
             new revision nor a lost index can be filled from it alone; set cleanup.policy=compact, or have Debezium take \
             a snapshot then"
        );
    }
    Ok(())
}

fn refuse_other_numbers(wanted: &[Wanted<'_>], found: &HashMap<String, u16>) -> Result<(), LogError> {
    for topic in wanted {
        if let Some(partitions) = found.get(topic.name)
            && *partitions != topic.partitions
        {
            return Err(refused(topic.name, &wrong_partitions(*partitions, topic.partitions)));
        }
    }
    Ok(())
}

fn wrong_partitions(found: u16, wanted: u16) -> String {
    format!(
        "it has {found} partitions, VECSYNC_TOPIC_PARTITIONS asks for {wanted}; keys would change their partition and \
         lose their order: set VECSYNC_TOPIC_PARTITIONS to the number that all the topics were made with, or, where one of \
         them was given more since, set another VECSYNC_TOPIC_PREFIX and let the topics be made and filled anew"
    )
}

/// Partitions of those topics that exist.
async fn partitions(settings: &Settings, wanted: &[Wanted<'_>]) -> Result<HashMap<String, u16>, LogError> {
    let names: Vec<String> = wanted.iter().map(|topic| topic.name.to_owned()).collect();
    let settings = settings.clone();
    let ask = move || {
        let metadata = client::metadata(&settings)?;
        let topics = metadata.topics().iter().filter(|topic| topic.error().is_none());
        let counted = topics.map(|topic| (topic.name().to_owned(), topic.partitions().len()));
        let known = counted.filter(|(name, _)| names.contains(name));
        Ok(known.map(|(name, count)| (name, u16::try_from(count).unwrap_or(u16::MAX))).collect())
    };
    tokio::task::spawn_blocking(ask).await.unwrap_or_else(|fault| Err(LogError::Task(fault)))
}

async fn make(
    settings: &Settings,
    admin: &AdminClient<Quiet>,
    options: &AdminOptions,
    missing: &[&Wanted<'_>],
) -> Result<(), LogError> {
    if missing.is_empty() {
        return Ok(());
    }
    let retention = settings.tombstone_retention.as_millis().to_string();
    let bytes_max = RECORD_BYTES_MAX.to_string();
    // Two copies must have a record before it counts, where there are enough to lose one.
    let in_sync = if settings.replication >= 3 { "2" } else { "1" };
    let topics: Vec<NewTopic> = missing
        .iter()
        .map(|topic| {
            let replication = TopicReplication::Fixed(i32::from(settings.replication));
            NewTopic::new(topic.name, i32::from(topic.partitions), replication)
                .set("cleanup.policy", "compact")
                .set("delete.retention.ms", &retention)
                .set("max.message.bytes", &bytes_max)
                .set("min.insync.replicas", in_sync)
                .set("min.cleanable.dirty.ratio", "0.2")
                .set("segment.ms", "3600000")
        })
        .collect();
    let made =
        admin.create_topics(&topics, options).await.map_err(client::fault("make topics on", &settings.brokers))?;
    for result in made {
        match result {
            Ok(name) => tracing::info!(topic = name, "topic made"),
            // Another process was faster.
            Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            // It may be that not all brokers are up yet.
            Err((name, RDKafkaErrorCode::InvalidReplicationFactor)) => {
                return Err(client::fault(
                    "make, with the copies that VECSYNC_TOPIC_REPLICATION asks for, which takes as many brokers,",
                    &name,
                )(KafkaError::AdminOp(RDKafkaErrorCode::InvalidReplicationFactor)));
            }
            Err((name, code)) => return Err(client::fault("make", &name)(KafkaError::AdminOp(code))),
        }
    }
    Ok(())
}

async fn check_settings(
    admin: &AdminClient<Quiet>,
    options: &AdminOptions,
    names: &[&str],
    mut limits: Limits,
) -> Result<Limits, LogError> {
    if names.is_empty() {
        return Ok(limits);
    }
    let asked: Vec<ResourceSpecifier> = names.iter().map(|name| ResourceSpecifier::Topic(name)).collect();
    let described = admin.describe_configs(&asked, options).await;
    let described = described.map_err(client::fault("read the settings of", names[0]))?;
    for (name, resource) in names.iter().zip(described) {
        let resource = match resource {
            Ok(resource) => resource,
            // Who may not look may still be allowed to read and write.
            Err(RDKafkaErrorCode::TopicAuthorizationFailed | RDKafkaErrorCode::ClusterAuthorizationFailed) => {
                tracing::warn!(
                    topic = name,
                    "may not read the topic's settings; it has to have cleanup.policy=compact"
                );
                continue;
            }
            Err(code) => return Err(client::fault("read the settings of", name)(KafkaError::AdminOp(code))),
        };
        let policy = resource.get("cleanup.policy").and_then(|entry| entry.value.clone()).unwrap_or_default();
        if policy != "compact" {
            let what = format!(
                "its cleanup.policy is {policy:?}, wanted compact: rows that do not change would be dropped; set it \
                 with kafka-configs --alter --add-config cleanup.policy=compact"
            );
            return Err(refused(name, &what));
        }
        let number = |setting| resource.get(setting)?.value.as_deref()?.parse::<u64>().ok();
        if let Some(bytes) = number("max.message.bytes").and_then(|bytes| usize::try_from(bytes).ok()) {
            limits.batch_bytes_max = limits.batch_bytes_max.min(bytes);
        }
        if let Some(ms) = number("delete.retention.ms") {
            limits.tombstone_retention = limits.tombstone_retention.min(Duration::from_millis(ms));
        }
    }
    Ok(limits)
}

fn refused(topic: &str, what: &str) -> LogError {
    LogError::Topic { topic: topic.to_owned(), what: what.to_owned() }
}
