//! What a row of the table should be in a store: renders it as rows on their way are rendered, and embeds nothing.

use serde_json::Value;

use super::document::{Document, DocumentError};
use super::model::EmbedError;
use super::rows::{payload, row_hash, text_hash};
use super::tokens::Tokens;
use crate::config;
use crate::event::Row;

/// So much of a text is asked for words before all of it is.
const BEGINNING_BYTES: usize = 128;

/// Says of rows what a store should hold of them.
#[derive(Debug)]
pub struct Expectation {
    document: Document,
    revision: String,
}

/// What a store should hold of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// The row with this hash.
    Row([u8; 16]),
    /// Nothing: it does not belong into the index.
    Nothing,
    /// It cannot be rendered, so its change is a dead letter.
    Unfit,
}

impl Expectation {
    /// For this model and document.
    pub fn new(model: &config::Model, settings: &config::Document) -> Result<Self, DocumentError> {
        Ok(Expectation { document: Document::compile(settings)?, revision: super::revision(model, settings) })
    }

    /// What is expected of a row, as it was read from the table. `tokens` tells a text in which the model finds nothing
    /// from one that it embeds; without it only a text of no characters is taken for such a one. Takes some 20 µs.
    pub fn of(&self, row: &Row, tokens: Option<&Tokens>) -> Expected {
        let Ok(rendered) = self.document.render(&as_recorded(row)) else { return Expected::Unfit };
        let Some(rendered) = rendered else { return Expected::Nothing };
        let title = rendered.title.as_deref().unwrap_or_default();
        match is_empty(title, tokens).and_then(|title| Ok(title && is_empty(&rendered.text, tokens)?)) {
            Ok(true) => Expected::Nothing,
            Ok(false) => {
                let hash = row_hash(&text_hash(&self.revision, &rendered), &payload(&rendered));
                Expected::Row(hash.to_bytes())
            }
            Err(_) => Expected::Unfit,
        }
    }
}

/// The row as embed reads it from its record: a number may be the nearest one to what was written.
fn as_recorded(row: &Row) -> Row {
    let text = Value::Object(row.clone()).to_string();
    serde_json::from_str(&text).unwrap_or_else(|_| row.clone())
}

fn is_empty(text: &str, tokens: Option<&Tokens>) -> Result<bool, EmbedError> {
    // Which is a word to every model, if only an unknown one.
    if text.bytes().any(|byte| byte.is_ascii_alphanumeric()) {
        return Ok(false);
    }
    match tokens {
        // Where the beginning has a word, the whole has.
        Some(tokens) => {
            let beginning = &text[..text.floor_char_boundary(BEGINNING_BYTES)];
            Ok(tokens.of(beginning)?.is_empty() && tokens.of(text)?.is_empty())
        }
        None => Ok(text.is_empty()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn expectation(when: Option<&str>) -> Expectation {
        let settings = config::Document {
            title: Some("{{ question }}".into()),
            text: "{{ answer }} {{ 100 // size }}".into(),
            payload: vec!["id".into(), "price".into()],
            when: when.map(str::to_owned),
            title_weight: 0.3,
            window_tokens: 256,
            overlap_tokens: 32,
        };
        let document = Document::compile(&settings).expect("templates");
        Expectation { document, revision: "r".into() }
    }

    fn row(value: Value) -> Row {
        value.as_object().expect("an object").clone()
    }

    #[test]
    fn what_is_indexed_has_a_hash_and_the_rest_is_nothing_or_unfit() {
        let of = |when, changed: Value| {
            let mut all = row(json!({"id": 1, "question": "Q", "answer": "A", "size": 1, "price": 0.1, "live": true}));
            all.extend(row(changed));
            expectation(when).of(&all, None)
        };
        let Expected::Row(hash) = of(None, json!({})) else { panic!("it is indexed") };
        assert_eq!(of(Some("live"), json!({"live": true})), Expected::Row(hash), "the column is in no text");
        for changed in [json!({"question": "R"}), json!({"answer": "B"}), json!({"price": 0.2}), json!({"id": 2})] {
            assert!(matches!(of(None, changed.clone()), Expected::Row(other) if other != hash), "{changed}");
        }
        assert_eq!(of(Some("live"), json!({"live": false})), Expected::Nothing);
        assert_eq!(of(None, json!({"size": 0})), Expected::Unfit);
    }

    #[test]
    fn numbers_are_those_of_the_record() {
        let number = 123_456.789_012_345_68_f64;
        let written = row(json!({"price": number}));
        let read: Row = serde_json::from_slice(&serde_json::to_vec(&written).expect("JSON")).expect("JSON");
        assert_eq!(as_recorded(&written), read);
    }
}
