//! Tokens and vectors of a text, whatever was asked before, beside it, or in another process.

use std::process::Command;

use sha2::{Digest, Sha256};
use tokenizers::Tokenizer;
use vecsync::config::Precision;
use vecsync::embed::tokens::{self, Token, TokenIds, Tokens};
use vecsync::embed::{Embedder, Vector};

use crate::dice::Dice;
use crate::embedding::{model_dir, settings};
use crate::faq::faq;

/// What the tokenizer says of a whole text when its file asks for no padding and no truncation.
fn whole(tokenizer: &Tokenizer, text: &str) -> Vec<Token> {
    let encoding = tokenizer.encode(text, false).expect("it takes any text");
    let mut word_before = None;
    let places = encoding.get_ids().iter().zip(encoding.get_offsets()).zip(encoding.get_word_ids());
    let tokens = places.map(|((id, (start, end)), word)| {
        let (start, end) = (text.floor_char_boundary(*start), text.ceil_char_boundary(*end));
        let begins_word = word.is_none() || *word != word_before;
        word_before = *word;
        Token { id: *id, place: start..end, begins_word }
    });
    tokens.collect()
}

#[test]
fn words_that_are_cut_one_by_one_are_cut_as_the_whole_text_is() {
    let json = std::fs::read(model_dir().join("tokenizer.json")).expect("readable");
    let ours = Tokens::new(&json).expect("a tokenizer");
    let mut value: serde_json::Value = serde_json::from_slice(&json).expect("JSON");
    assert_eq!(value["padding"]["strategy"]["Fixed"], 128, "the file asks for padding: else this tests nothing");
    (value["padding"], value["truncation"]) = (serde_json::Value::Null, serde_json::Value::Null);
    let theirs = Tokenizer::from_bytes(value.to_string()).expect("a tokenizer");
    let pieces = [
        "word",
        "Longer",
        "ÜBERLÄNGE",
        "don't",
        "e.g.",
        "A\u{301}e\u{301}",
        "漢字",
        "カタカナ",
        "한국어",
        "ﬁ",
        "ẛ̣",
        "İ",
        "Σ",
        "ς",
        "👩\u{200d}🚀",
        "\u{200d}",
        "\u{202e}",
        "\u{fffd}",
        "\u{301}",
        "\u{315}\u{300}",
        "\u{b}",
        "\u{c}",
        "\u{85}",
        "\u{a0}",
        "\u{2028}",
        "\u{3000}",
        "\u{ad}",
        "\u{1}",
        "\u{7f}",
        "[SEP]",
        "[MASK]",
        "[cls]",
        "[",
        "##ing",
        "_",
        "-",
        "…",
        "「",
        "€",
        "\\",
        "x86_64",
        "1,234.5",
        " ",
        " ",
        " ",
        " ",
        "\n",
        "\r\n",
        "\t",
        "a_word_that_is_longer_than_any_that_is_kept_by_its_letters",
    ];
    let mut dice = Dice::new(8);
    let strange = (0..400).map(|_| (0..dice.below(60)).map(|_| *dice.pick(&pieces)).collect::<String>());
    let texts = faq().into_iter().flat_map(|entry| [entry.question, entry.answer]).step_by(3);
    for text in texts.chain(strange.collect::<Vec<_>>()) {
        let wanted = whole(&theirs, &text);
        // Twice: the second time its words are known.
        for _ in 0..2 {
            assert_eq!(ours.of(&text).expect("tokens"), wanted, "{text:?}");
        }
    }
    assert_eq!(ours.of("two words").expect("tokens").len(), 2, "padded");
    assert_eq!(ours.of(&"word ".repeat(700)).expect("tokens").len(), 700, "truncated");
}

fn texts(tokens: &Tokens) -> Vec<TokenIds> {
    let texts = faq().into_iter().step_by(23).map(|entry| format!("{} {}", entry.question, entry.answer));
    texts.map(|text| tokens.truncated(&text, 256).expect("tokens").0).chain([tokens::nothing()]).collect()
}

/// A hash of vectors, bit for bit.
fn hash(vectors: &[Vector]) -> String {
    let mut hasher = Sha256::new();
    vectors.iter().flatten().for_each(|component| hasher.update(component.to_bits().to_le_bytes()));
    format!("{:x?}", hasher.finalize())
}

const OTHER: &str = "VECSYNC_TEST_OTHER_PROCESS";

#[tokio::test]
async fn the_same_text_gives_the_same_vector_in_another_process() {
    // There: one text after the other, the other way round, on one thread. Here: all together, on two.
    let is_other = std::env::var_os(OTHER).is_some();
    let mut hashes = vec![];
    for precision in [Precision::Fp32, Precision::Int8] {
        let embedder = Embedder::load(&settings(precision), if is_other { 1 } else { 2 }).expect("the model loads");
        let texts = texts(embedder.tokens());
        let mut vectors = vec![];
        if is_other {
            for text in texts.into_iter().rev() {
                vectors.extend(embedder.embed(vec![text]).await);
            }
            vectors.reverse();
        } else {
            vectors = embedder.embed(texts).await;
        }
        let vectors: Vec<Vector> = vectors.into_iter().map(|vector| vector.expect("a vector")).collect();
        assert!(vectors.len() > 10);
        hashes.push(format!("vectors {precision:?} {}", hash(&vectors)));
    }
    if is_other {
        return println!("{}", hashes.join("\n"));
    }
    let this = "embedding_texts::the_same_text_gives_the_same_vector_in_another_process";
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    let other = command.args([this, "--exact", "--nocapture"]).env(OTHER, "1").output().expect("it starts");
    let said = String::from_utf8_lossy(&other.stdout);
    for hash in hashes {
        assert!(said.contains(&hash), "wanted {hash}: {said}{}", String::from_utf8_lossy(&other.stderr));
    }
}
