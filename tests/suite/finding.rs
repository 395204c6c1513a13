//! Whether the default finds what users look for: questions in their words over the real FAQ text.

use std::panic::catch_unwind;

use vecsync::config::{Model, pipeline};
use vecsync::embed::{Cache, Embedder};

use crate::embedding::model_dir;
use crate::faq::{Entry, faq};
use crate::questions::{Index, Places, hold, place, questions};

#[tokio::test(flavor = "multi_thread")]
async fn the_default_finds_what_users_ask_for() {
    let faq = faq();
    let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/pipelines/faq.toml");
    let document = pipeline::read(shipped.as_ref(), &|_| vec![]).unwrap().document;
    let model = Model { precision: None, dir: model_dir(), runtime: None };
    let embedder = Embedder::load(&model, 2).unwrap();
    let index = Index::of(&embedder, &document, &Cache::off(), &faq).await;
    let mut places = Places::default();
    for question in questions(&faq) {
        let query = embedder.query(&question.ask).await.unwrap();
        places.0.push(place(&index.search(&query.vector), &question));
    }
    hold(&faq, &places);
    // Float arithmetic of another processor moves a row by a place here and there, which the mean hardly shows.
    assert!((places.mrr() - 0.817).abs() < 0.02, "{}", places.mrr());
}

#[test]
fn a_question_whose_row_is_gone_or_ambiguous_is_named() {
    let faq = faq();
    let named = |faq: &[Entry], wanted: &str| {
        let fault = catch_unwind(|| questions(faq)).expect_err("refused");
        let told = fault.downcast_ref::<String>().expect("a text");
        assert!(told.contains("which toy was wheezy") && told.contains(wanted), "{told}");
        assert_eq!(told.matches("which toy was wheezy").count(), 1, "{told}");
    };
    let toys = faq.iter().position(|entry| entry.question.contains("these codenames come from")).unwrap();
    let without: Vec<Entry> = faq.iter().enumerate().filter(|(n, _)| *n != toys).map(|(_, e)| e.clone()).collect();
    named(&without, "no row of the FAQ");
    let twice = [&faq[..], &faq[toys..=toys]].concat();
    named(&twice, &format!("rows [{}, {}] of the FAQ", toys + 1, faq.len() + 1));
}
