//! Generations in Qdrant: the alias names one whole generation at every moment, and nothing of others is touched.

use qdrant_client::qdrant::{
    CountPointsBuilder, CreateAliasBuilder, CreateCollectionBuilder, Distance, VectorParamsBuilder,
};
use vecsync::event::{EmbeddedRow, RowKey, VectorEvent, Window};
use vecsync::index::{QdrantError, QdrantGeneration, QdrantGenerations, QdrantSettings};

use crate::support::dice::Dice;
use crate::support::qdrant::{Qdrant, WIDTH};

fn settings(qdrant: &Qdrant, alias: &str) -> QdrantSettings {
    QdrantSettings {
        server: qdrant.settings(),
        collection: alias.to_owned(),
        pipeline: "faq".to_owned(),
        revision: "rev".to_owned(),
        partitions: 1,
        log: Some("log".to_owned()),
        payload: vec![],
        filters: vec![],
    }
}

fn generations(qdrant: &Qdrant, alias: &str) -> QdrantGenerations {
    QdrantGenerations::new(settings(qdrant, alias)).unwrap()
}

async fn fill(generation: &QdrantGeneration, rows: u64) {
    let upsert = |id: u64| {
        let key = RowKey::from_bytes(format!("{{\"id\":{id}}}").as_bytes()).unwrap();
        let windows = vec![Window::new(&vec![1.0; WIDTH], "p".to_owned())];
        let row = EmbeddedRow { version: id + 1, payload: "{}".to_owned(), windows, ..EmbeddedRow::default() };
        (0, id, VectorEvent::Upsert { key, row })
    };
    generation.store.apply((0..rows).map(upsert).collect()).await.unwrap();
}

/// Points with a vector behind the alias.
async fn behind(qdrant: &Qdrant, alias: &str) -> u64 {
    let ours =
        qdrant_client::qdrant::Filter::must([qdrant_client::qdrant::Condition::matches("_vecsync.deleted", false)]);
    let count = qdrant.client().count(CountPointsBuilder::new(alias).filter(ours).exact(true)).await;
    count.unwrap().result.unwrap().count
}

async fn discard_all(generations: &QdrantGenerations, qdrant: &Qdrant) {
    for number in generations.numbers().await.unwrap() {
        // The current one is not for us to remove, but for a test.
        if generations.discard(number).await.is_err() {
            let name = generations.current().await.unwrap().unwrap().store.collection().to_owned();
            qdrant.client().delete_collection(name).await.unwrap();
        }
    }
}

#[tokio::test]
async fn another_generation_takes_the_place_of_the_first_when_it_is_full() {
    let qdrant = Qdrant::start();
    let alias = qdrant.name("alias");
    let generations = generations(&qdrant, &alias);
    assert!(generations.current().await.unwrap().is_none());
    let first = generations.current_or_first().await.unwrap();
    fill(&first, 2).await;
    assert_eq!((first.number, behind(&qdrant, &alias).await), (1, 2));

    let second = generations.add().await.unwrap();
    fill(&second, 5).await;
    assert_eq!((second.number, behind(&qdrant, &alias).await), (2, 2));
    assert_eq!(generations.current_or_first().await.unwrap().number, 1);
    generations.switch(&second).await.unwrap();
    assert_eq!(behind(&qdrant, &alias).await, 5);

    let kept = generations.discard(2).await;
    assert!(matches!(kept, Err(QdrantError::Foreign { .. })), "{kept:?}");
    generations.discard(1).await.unwrap();
    assert_eq!(generations.numbers().await.unwrap(), [2]);
    let found = self::generations(&qdrant, &alias).current().await.unwrap().unwrap();
    assert_eq!((found.number, found.store.positions()), (2, vec![5]));
    discard_all(&generations, &qdrant).await;
}

#[tokio::test]
async fn a_generation_that_was_made_and_not_named_is_taken_up() {
    let qdrant = Qdrant::start();
    let alias = qdrant.name("alias");
    let generations = generations(&qdrant, &alias);
    fill(&generations.add().await.unwrap(), 3).await;
    let first = generations.current_or_first().await.unwrap();
    assert_eq!((first.number, first.store.positions(), behind(&qdrant, &alias).await), (1, vec![3], 3));
    discard_all(&generations, &qdrant).await;
}

#[tokio::test]
async fn what_others_have_made_is_refused_and_stays() {
    let qdrant = Qdrant::start();
    let (alias, other, client) = (qdrant.name("alias"), qdrant.name("other"), qdrant.client());
    let plain = |name: &str| {
        CreateCollectionBuilder::new(name).vectors_config(VectorParamsBuilder::new(WIDTH as u64, Distance::Cosine))
    };
    let generations = generations(&qdrant, &alias);
    let refused = async |words: &str| {
        for found in [generations.current_or_first().await.map(drop), generations.current().await.map(drop)] {
            let told = found.expect_err("it was taken").to_string();
            assert!(told.contains(words) && told.contains("QDRANT_COLLECTION_NAME"), "wanted {words:?} in {told:?}");
        }
    };
    client.create_collection(plain(&alias)).await.unwrap();
    refused("a collection of its own").await;
    assert!(client.collection_exists(&alias).await.unwrap());
    client.delete_collection(&alias).await.unwrap();

    client.create_collection(plain(&other)).await.unwrap();
    client.create_alias(CreateAliasBuilder::new(&other, &alias)).await.unwrap();
    refused(&other).await;
    // Names that only look like generations.
    for name in [format!("{alias}__x"), format!("{alias}__01"), format!("{alias}_1"), format!("{alias}__0")] {
        client.create_collection(plain(&name)).await.unwrap();
    }
    assert_eq!(generations.numbers().await.unwrap(), [0; 0]);
    for name in [format!("{alias}__x"), format!("{alias}__01"), format!("{alias}_1"), format!("{alias}__0"), other] {
        client.delete_collection(name).await.unwrap();
    }
}

/// After a kill at any moment of moving the alias to and fro it names one of the two, and that is whole.
#[tokio::test]
async fn a_kill_while_the_alias_moves_leaves_it_on_a_whole_generation() {
    let mut qdrant = Qdrant::own();
    let alias = qdrant.name("alias");
    let generations = generations(&qdrant, &alias);
    let first = generations.current_or_first().await.unwrap();
    let second = generations.add().await.unwrap();
    fill(&first, 3).await;
    fill(&second, 4).await;
    let mut dice = Dice::new(23);
    for round in 0..10 {
        let (generations, both) = (generations.clone(), [first.clone(), second.clone()]);
        let (told, mut heard) = tokio::sync::mpsc::channel(1);
        let moving = tokio::spawn({
            let generations = generations.clone();
            async move {
                for generation in both.iter().cycle() {
                    if generations.switch(generation).await.is_err() {
                        return;
                    }
                    let _ = told.send(()).await;
                }
            }
        });
        for _ in 0..1 + dice.below(20) {
            heard.recv().await.unwrap();
        }
        drop(heard);
        qdrant.kill();
        moving.await.unwrap();
        qdrant.restart();
        let current = generations.current().await.unwrap().unwrap();
        let rows = current.store.rows().await.unwrap();
        assert_eq!((rows, behind(&qdrant, &alias).await), (u64::from(current.number) + 2, rows), "round {round}");
    }
}
