//! Takes over a collection that has the alias's name: copied beside it, compared, then the copy answers by that name.
//!
//! **Invariant:** the original is removed only when a copy is there that was compared with it point by point and is marked
//! as whole; a copy that is whole is never written to.

use qdrant_client::qdrant::alias_operations::Action;
use qdrant_client::qdrant::{
    AliasOperations, ChangeAliases, CollectionInfo, CreateAlias, CreateCollection, CreateFieldIndexCollection,
    DeleteCollection, FieldType, GetCollectionInfoRequest, ListCollectionAliasesRequest, PayloadSchemaInfo,
    PayloadSchemaType, PointId, RetrievedPoint, ShardingMethod, UpdateCollection,
};

use super::copy::{Digest, as_written};
use super::generations::ADOPTED;
use super::link::Link;
use super::{QdrantError, QdrantGenerations, collection};

const OPERATION: &str = "take over";

/// How far a collection is taken over, as the copy's metadata says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The copy is being filled.
    Copying,
    /// It is whole. What comes next is the removal of the original, then the alias.
    Copied,
    /// The copy has answered by the name.
    Adopted,
}

const STAGES: [(Stage, &str); 3] =
    [(Stage::Copying, "being taken over"), (Stage::Copied, "copied to be taken over"), (Stage::Adopted, "taken over")];

/// A collection that was taken over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adopted {
    /// Where its points are now.
    pub collection: String,
    /// How many.
    pub points: u64,
    /// Their hash, in the original and in the copy.
    pub hash: String,
}

impl QdrantGenerations {
    /// Takes over a collection that has the alias's name, or finishes what a kill has interrupted; `None`: there is none.
    /// Applications that ask by that name find the same points before and after; between the removal of the original and
    /// the alias, two calls one behind the other, there is nothing of that name. `told` hears how much of how much is done.
    pub async fn adopt(&self, mut told: impl FnMut(u64, u64) + Send) -> Result<Option<Adopted>, QdrantError> {
        let collections = self.collections().await?;
        let copy = self.link.to(self.collection(ADOPTED));
        let stage = match collections.iter().any(|name| name == copy.name()) {
            true => Some(self.stage(&copy).await?),
            false => None,
        };
        if !collections.contains(&self.settings.collection) {
            if !self.finish_adoption().await? {
                return Ok(None);
            }
            let digest = copy.digest(|_| ()).await?;
            return Ok(Some(adopted(&copy, digest)));
        }
        let info = self.plain_info().await?;
        let points = self.link.count_all().await?;
        let total = points * 3;
        if let None | Some(Stage::Copying) = stage {
            if stage.is_none() {
                self.make_copy(&info).await?;
            }
            self.copy_indexes(&info, &copy).await?;
            self.copy_points(&copy, |done| told(done.min(points), total)).await?;
        }
        let in_copy = copy.digest(|done| told(points + done.min(points), total)).await?;
        let there = self.link.digest(|done| told(2 * points + done.min(points), total)).await?;
        if in_copy != there || self.link.count_all().await? != there.points {
            return Err(self.differs(stage, in_copy, there, &copy));
        }
        if stage != Some(Stage::Adopted) {
            self.mark(Stage::Copied).await?;
        }
        self.move_aliases(&copy).await?;
        if self.link.count_all().await? != there.points {
            return Err(self.differs(stage, in_copy, there, &copy));
        }
        let request = DeleteCollection { collection_name: self.settings.collection.clone(), timeout: None };
        self.link.call("remove", self.link.collections().delete(request)).await?;
        self.switch(&self.of(ADOPTED)).await?;
        self.mark(Stage::Adopted).await?;
        Ok(Some(adopted(&copy, in_copy)))
    }

    /// Gives the name to a copy whose original was removed before a kill. Says whether that was to be done.
    pub(super) async fn finish_adoption(&self) -> Result<bool, QdrantError> {
        let copy = self.link.to(self.collection(ADOPTED));
        if !self.collections().await?.iter().any(|name| name == copy.name()) {
            return Ok(false);
        }
        match self.stage(&copy).await {
            Ok(Stage::Copied) => {}
            Ok(Stage::Copying | Stage::Adopted) | Err(QdrantError::Refused { .. }) => return Ok(false),
            Err(error) => return Err(error),
        }
        if self.named().await?.is_none() {
            self.switch(&self.of(ADOPTED)).await?;
        }
        self.mark(Stage::Adopted).await?;
        Ok(true)
    }

    async fn stage(&self, copy: &Link) -> Result<Stage, QdrantError> {
        let info = self.info(ADOPTED).await?;
        let stamp = collection::stamp(&self.settings, &info);
        let stage = STAGES.iter().find(|(_, said)| Some(*said) == stamp).map(|(stage, _)| *stage);
        stage.ok_or_else(|| {
            let what = format!(
                "its copy would be {}, and a collection of that name is there that vecsync did not make: rename or remove that",
                copy.name()
            );
            self.not_taken(what)
        })
    }

    async fn mark(&self, stage: Stage) -> Result<(), QdrantError> {
        let metadata = collection::stamped(&self.settings, said(stage));
        let request =
            UpdateCollection { collection_name: self.collection(ADOPTED), metadata, ..UpdateCollection::default() };
        self.link.call("mark", self.link.collections().update(request)).await?;
        Ok(())
    }

    async fn plain_info(&self) -> Result<CollectionInfo, QdrantError> {
        let request = GetCollectionInfoRequest { collection_name: self.settings.collection.clone() };
        let info = self.link.call("look at", self.link.collections().get(request)).await?;
        Ok(info.result.unwrap_or_default())
    }

    /// An empty collection with the same settings.
    #[expect(deprecated, reason = "on_disk_payload is what servers say")]
    async fn make_copy(&self, info: &CollectionInfo) -> Result<(), QdrantError> {
        let config = info.config.clone().unwrap_or_default();
        let params = config.params.unwrap_or_default();
        if params.sharding_method() == ShardingMethod::Custom {
            return Err(self.not_taken("its shards have keys of their own, which a copy would not have".to_owned()));
        }
        let mut metadata = config.metadata;
        metadata.extend(collection::stamped(&self.settings, said(Stage::Copying)));
        let request = CreateCollection {
            collection_name: self.collection(ADOPTED),
            hnsw_config: config.hnsw_config,
            wal_config: config.wal_config,
            optimizers_config: config.optimizer_config,
            shard_number: Some(params.shard_number.max(1)),
            on_disk_payload: params.payload.is_none().then_some(params.on_disk_payload),
            vectors_config: params.vectors_config,
            replication_factor: params.replication_factor,
            write_consistency_factor: params.write_consistency_factor,
            quantization_config: config.quantization_config,
            sharding_method: params.sharding_method,
            sparse_vectors_config: params.sparse_vectors_config,
            strict_mode_config: config.strict_mode_config,
            payload: params.payload,
            metadata,
            ..CreateCollection::default()
        };
        self.link.call("copy", self.link.collections().create(request)).await?;
        Ok(())
    }

    async fn copy_indexes(&self, info: &CollectionInfo, copy: &Link) -> Result<(), QdrantError> {
        for (field, schema) in &info.payload_schema {
            let request = CreateFieldIndexCollection {
                collection_name: copy.name().to_owned(),
                wait: Some(true),
                field_name: field.clone(),
                field_type: field_type(schema).map(i32::from),
                field_index_params: schema.params.clone(),
                ..CreateFieldIndexCollection::default()
            };
            copy.completed("index", copy.points().create_field_index(request)).await?;
        }
        Ok(())
    }

    /// Makes the copy what the original is: writes the points that it lacks or has otherwise, removes those that it has
    /// and the original has not.
    async fn copy_points(&self, copy: &Link, mut told: impl FnMut(u64) + Send) -> Result<(), QdrantError> {
        let is_begun = copy.count_all().await? > 0;
        let (mut after, mut done) = (None, 0);
        loop {
            let (page, more) = self.link.page(after).await?;
            done += page.len() as u64;
            let known = match is_begun {
                true => copy.whole(&ids(&page)).await?,
                false => Default::default(),
            };
            let is_there = |point: &RetrievedPoint| {
                point.id.as_ref().and_then(|id| known.get(id)).is_some_and(|known| same(known, point))
            };
            let lacking = page.into_iter().filter(|point| !is_there(point)).map(as_written).collect();
            copy.put(lacking).await?;
            told(done);
            match more {
                Some(next) => after = Some(next),
                None => break,
            }
        }
        if is_begun && copy.count_all().await? != done { self.remove_strangers(copy).await } else { Ok(()) }
    }

    /// Removes what the original has lost since an earlier, interrupted copying.
    async fn remove_strangers(&self, copy: &Link) -> Result<(), QdrantError> {
        let mut after = None;
        loop {
            let (page, more) = copy.page(after).await?;
            let found = self.link.whole(&ids(&page)).await?;
            let strangers: Vec<PointId> = ids(&page).into_iter().filter(|id| !found.contains_key(id)).collect();
            if !strangers.is_empty() {
                copy.remove(strangers).await?;
            }
            match more {
                Some(next) => after = Some(next),
                None => return Ok(()),
            }
        }
    }

    /// Lets other aliases of the original name the copy, in one step: they would go with the original.
    async fn move_aliases(&self, copy: &Link) -> Result<(), QdrantError> {
        let request = ListCollectionAliasesRequest { collection_name: self.settings.collection.clone() };
        let listed = self.link.call("look up", self.link.collections().list_collection_aliases(request)).await?;
        let actions: Vec<AliasOperations> = listed
            .aliases
            .into_iter()
            .map(|alias| {
                let create = CreateAlias { collection_name: copy.name().to_owned(), alias_name: alias.alias_name };
                AliasOperations { action: Some(Action::CreateAlias(create)) }
            })
            .collect();
        if actions.is_empty() {
            return Ok(());
        }
        let request = ChangeAliases { actions, timeout: None };
        self.link.call("move the aliases of", self.link.collections().update_aliases(request)).await?;
        Ok(())
    }

    fn differs(&self, stage: Option<Stage>, in_copy: Digest, there: Digest, copy: &Link) -> QdrantError {
        let (copy, found) = (copy.name(), format!("{} points, hash {}", there.points, there.hash()));
        let copied = format!("{} points, hash {}", in_copy.points, in_copy.hash());
        self.not_taken(match stage {
            None | Some(Stage::Copying) => format!(
                "it was written to while it was copied: it has {found}; the copy {copy} has {copied}. It stays as it was; \
                 stop what writes to it, and run this once more, which goes on from the copy"
            ),
            Some(Stage::Copied | Stage::Adopted) => format!(
                "it has {found}, and {copy}, which was taken over by that name before, has {copied}. Nothing was changed: \
                 remove the one that is not wanted, then run this once more"
            ),
        })
    }

    fn not_taken(&self, what: String) -> QdrantError {
        QdrantError::Refused { operation: OPERATION, collection: self.settings.collection.clone(), what }
    }
}

fn adopted(copy: &Link, digest: Digest) -> Adopted {
    Adopted { collection: copy.name().to_owned(), points: digest.points, hash: digest.hash() }
}

fn said(stage: Stage) -> &'static str {
    STAGES.iter().find(|(known, _)| *known == stage).map_or("", |(_, said)| said)
}

fn ids(points: &[RetrievedPoint]) -> Vec<PointId> {
    points.iter().filter_map(|point| point.id.clone()).collect()
}

fn same(one: &RetrievedPoint, other: &RetrievedPoint) -> bool {
    let of = |point| {
        let mut digest = Digest::default();
        digest.add(point);
        digest
    };
    of(one) == of(other)
}

/// The kind of index that makes such a schema.
fn field_type(schema: &PayloadSchemaInfo) -> Option<FieldType> {
    Some(match schema.data_type() {
        PayloadSchemaType::UnknownType => return None,
        PayloadSchemaType::Keyword => FieldType::Keyword,
        PayloadSchemaType::Integer => FieldType::Integer,
        PayloadSchemaType::Float => FieldType::Float,
        PayloadSchemaType::Geo => FieldType::Geo,
        PayloadSchemaType::Text => FieldType::Text,
        PayloadSchemaType::Bool => FieldType::Bool,
        PayloadSchemaType::Datetime => FieldType::Datetime,
        PayloadSchemaType::Uuid => FieldType::Uuid,
    })
}
