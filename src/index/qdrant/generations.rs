//! Qdrant's generations: the collections behind an alias, and how another becomes the one that searches ask. Reads no log.
//!
//! **Invariant:** the alias names one whole generation at every moment; it is moved by one request and read back; what it
//! names is never removed, nor is anything that vecsync did not make.

use std::time::{Duration, Instant};

use qdrant_client::qdrant::alias_operations::Action;
use qdrant_client::qdrant::{
    AliasOperations, ChangeAliases, CollectionInfo, CreateAlias, DeleteCollection, GetCollectionInfoRequest,
    ListAliasesRequest, ListCollectionsRequest,
};

use super::link::Link;
use super::{QdrantError, QdrantSettings, QdrantStore, collection};

/// What stands between an alias and the number of a generation.
const MARK: &str = "__";
/// The number of the collection that was taken over: older than every generation, and never counted among them.
pub(super) const ADOPTED: u32 = 0;
/// What stands in its name in a number's place.
const ADOPTED_NAME: &str = "adopted";

/// The generations of one pipeline. Clones are the same ones.
#[derive(Clone)]
pub struct QdrantGenerations {
    pub(super) link: Link,
    /// For all of them, but for the collection.
    pub(super) settings: QdrantSettings,
}

/// One generation.
#[derive(Clone, Debug)]
pub struct QdrantGeneration {
    /// Its number, from 1; 0 is a collection that was taken over.
    pub number: u32,
    /// Its points.
    pub store: QdrantStore,
}

/// What a look at Qdrant shows.
#[derive(Clone, Debug)]
pub struct Look {
    /// When it began.
    pub at: Instant,
    /// How long the server took to answer.
    pub took: Duration,
    /// How many collections it has.
    pub collections: usize,
    /// The generation that the alias names.
    pub named: Option<u32>,
    /// Width of that one's vectors, and their distance.
    pub shape: Option<(u64, &'static str)>,
}

impl QdrantGenerations {
    /// Prepares a connection; makes none. Called inside of a runtime. `settings.collection` is the alias.
    pub fn new(settings: QdrantSettings) -> Result<Self, QdrantError> {
        let link = Link::new(&settings)?;
        Ok(QdrantGenerations { link, settings })
    }

    /// What they were made for; the collection is the alias.
    pub fn settings(&self) -> &QdrantSettings {
        &self.settings
    }

    /// The generation that the alias names, opened; `None`: there is no such alias. An alias that names something else,
    /// and a collection that has the alias's name, are refused.
    pub async fn current(&self) -> Result<Option<QdrantGeneration>, QdrantError> {
        match self.named().await? {
            Some(number) => {
                let generation = self.of(number);
                generation.store.open().await?;
                Ok(Some(generation))
            }
            None => Ok(None),
        }
    }

    /// Looks whether Qdrant answers and what the alias names. What it names is not opened.
    pub async fn look(&self) -> Result<Look, QdrantError> {
        let began = Instant::now();
        let listed = self.link.call("list", self.link.collections().list(ListCollectionsRequest {})).await?;
        let took = began.elapsed();
        let named = self.named().await?;
        let shape = match named {
            Some(number) => collection::shape(&self.info(number).await?),
            None => None,
        };
        Ok(Look { at: began, took, collections: listed.collections.len(), named, shape })
    }

    /// In what the generation that the alias names differs from one that would be made now; `None`: there is none.
    pub async fn differences(&self) -> Result<Option<Vec<String>>, QdrantError> {
        let Some(number) = self.named().await? else { return Ok(None) };
        Ok(Some(collection::differences(&self.settings, &self.info(number).await?)))
    }

    /// What the server says it is; one that does not know conditional writes is refused.
    pub async fn version(&self) -> Result<String, QdrantError> {
        self.link.check_version().await
    }

    /// A generation by its number, not opened: a store of its own, which knows nothing of another one's writes.
    pub fn generation(&self, number: u32) -> QdrantGeneration {
        self.of(number)
    }

    /// The newest generation that is not named yet and is of these settings, opened: what a fill before a kill has left.
    pub async fn begun(&self) -> Result<Option<QdrantGeneration>, QdrantError> {
        let named = self.named().await?;
        let newest = self.numbers().await?.last().copied().filter(|newest| named.is_none_or(|named| *newest > named));
        let Some(newest) = newest else { return Ok(None) };
        let generation = self.of(newest);
        match generation.store.create().await {
            Ok(()) => Ok(Some(generation)),
            Err(QdrantError::Foreign { .. } | QdrantError::Outdated { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The current generation; where there is none, the first one, made now. Finishes what was begun before a kill.
    pub async fn current_or_first(&self) -> Result<QdrantGeneration, QdrantError> {
        let named = match self.named().await? {
            None if self.finish_adoption().await? => Some(ADOPTED),
            named => named,
        };
        if let Some(number) = named {
            let generation = self.of(number);
            generation.store.create().await?;
            return Ok(generation);
        }
        let first = match self.numbers().await?.last() {
            // Made, and not named before a kill.
            Some(number) => self.of(*number),
            None => self.of(1),
        };
        first.store.create().await?;
        self.switch(&first).await?;
        Ok(first)
    }

    /// The number of a generation that can be put beside those that are there, where nobody has the alias. An alias, or a
    /// collection of its name, is refused.
    pub async fn free(&self) -> Result<u32, QdrantError> {
        self.link.check_version().await?;
        if let Some(number) = self.named().await? {
            return Err(self.foreign(format!(
                "the alias is there already and names {}, and nothing is put in its place; `vecsync run` fills what that lacks",
                self.collection(number)
            )));
        }
        Ok(self.numbers().await?.last().copied().unwrap_or(0) + 1)
    }

    /// The number in a generation's name, if it is one of these.
    pub fn number_of(&self, collection: &str) -> Option<u32> {
        self.number(collection)
    }

    /// Makes an empty generation beside the others. Searches do not ask it.
    pub async fn add(&self) -> Result<QdrantGeneration, QdrantError> {
        let highest = self.numbers().await?.last().copied().unwrap_or(0);
        let generation = self.of(highest + 1);
        generation.store.create().await?;
        Ok(generation)
    }

    /// Lets the alias name this generation, in one step, and reads it back.
    pub async fn switch(&self, to: &QdrantGeneration) -> Result<(), QdrantError> {
        let (collection, alias) = (self.collection(to.number), &self.settings.collection);
        let create = CreateAlias { collection_name: collection.clone(), alias_name: alias.clone() };
        let action = AliasOperations { action: Some(Action::CreateAlias(create)) };
        let request = ChangeAliases { actions: vec![action], timeout: None };
        self.link.call("move the alias", self.link.collections().update_aliases(request)).await?;
        match self.named().await? {
            Some(number) if number == to.number => Ok(()),
            found => {
                let found = found.map_or("nothing".to_owned(), |number| self.collection(number));
                Err(self.foreign(format!("the alias names {found} after it was moved to {collection}")))
            }
        }
    }

    /// How the collection of a generation is.
    pub(super) async fn info(&self, number: u32) -> Result<CollectionInfo, QdrantError> {
        let request = GetCollectionInfoRequest { collection_name: self.collection(number) };
        let info = self.link.call("look at", self.link.collections().get(request)).await?;
        Ok(info.result.unwrap_or_default())
    }

    /// Removes a generation that the alias does not name.
    pub async fn discard(&self, number: u32) -> Result<(), QdrantError> {
        if self.named().await? == Some(number) {
            return Err(self.foreign(format!("the alias names {}, so it is not removed", self.collection(number))));
        }
        let request = DeleteCollection { collection_name: self.collection(number), timeout: None };
        self.link.call("remove", self.link.collections().delete(request)).await?;
        Ok(())
    }

    /// The numbers of all generations that are there, rising.
    pub async fn numbers(&self) -> Result<Vec<u32>, QdrantError> {
        let collections = self.collections().await?;
        let mut numbers: Vec<u32> = collections.iter().filter_map(|name| self.number(name)).collect();
        numbers.retain(|number| *number != ADOPTED);
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// The number of the generation that the alias names; `None`: there is no alias. What is none of ours is refused.
    pub async fn named(&self) -> Result<Option<u32>, QdrantError> {
        let alias = &self.settings.collection;
        let aliases =
            self.link.call("look up", self.link.collections().list_aliases(ListAliasesRequest {})).await?.aliases;
        let Some(found) = aliases.into_iter().find(|found| found.alias_name == *alias) else {
            if self.collections().await?.contains(alias) {
                let what = "it is a collection of its own, and no alias can have its name: `vecsync init --migrate` takes it \
                            over with all its points; or set QDRANT_COLLECTION_NAME to another name";
                return Err(self.foreign(what.to_owned()));
            }
            return Ok(None);
        };
        match self.number(&found.collection_name) {
            Some(number) => Ok(Some(number)),
            None => Err(self.foreign(format!(
                "the alias names {}, wanted {alias}{MARK} and a number: set QDRANT_COLLECTION_NAME to another name, or remove \
                 the alias",
                found.collection_name
            ))),
        }
    }

    pub(super) fn of(&self, number: u32) -> QdrantGeneration {
        let collection = self.collection(number);
        let settings = QdrantSettings { collection: collection.clone(), ..self.settings.clone() };
        QdrantGeneration { number, store: QdrantStore::over(self.link.to(collection), settings) }
    }

    pub(super) fn collection(&self, number: u32) -> String {
        match number {
            ADOPTED => format!("{}{MARK}{ADOPTED_NAME}", self.settings.collection),
            number => format!("{}{MARK}{number}", self.settings.collection),
        }
    }

    /// Names of all collections that Qdrant has.
    pub(super) async fn collections(&self) -> Result<Vec<String>, QdrantError> {
        let listed = self.link.call("list", self.link.collections().list(ListCollectionsRequest {})).await?;
        Ok(listed.collections.into_iter().map(|collection| collection.name).collect())
    }

    fn number(&self, collection: &str) -> Option<u32> {
        let number = collection.strip_prefix(&self.settings.collection)?.strip_prefix(MARK)?;
        if number == ADOPTED_NAME {
            return Some(ADOPTED);
        }
        // No other spelling of the number: `__01` is not ours.
        number.parse().ok().filter(|parsed: &u32| *parsed > 0 && parsed.to_string() == number)
    }

    pub(super) fn foreign(&self, what: String) -> QdrantError {
        QdrantError::Foreign { collection: self.settings.collection.clone(), what }
    }
}

impl std::fmt::Debug for QdrantGenerations {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("QdrantGenerations").field("alias", &self.settings.collection).finish_non_exhaustive()
    }
}
