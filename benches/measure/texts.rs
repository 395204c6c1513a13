//! Texts to measure with, made from the real FAQ: its questions, and pieces of its answers of mixed length.

use std::collections::HashSet;

use crate::support::dice::Dice;
use crate::support::faq;

/// One entry.
#[derive(Clone, Debug)]
pub struct Entry {
    pub question: String,
    pub answer: String,
}

/// The FAQ.
pub fn faq() -> Vec<Entry> {
    let entry = |entry: faq::Entry| Entry { question: entry.question, answer: entry.answer };
    faq::faq().into_iter().map(entry).collect()
}

/// `count` entries whose answers are pairwise different runs of words of real answers, `words` long. The lengths are
/// drawn evenly, with a seed, so every run has the same texts.
pub fn pieces(count: usize, words: std::ops::Range<usize>) -> Vec<Entry> {
    let faq: Vec<(String, Vec<String>)> = faq()
        .into_iter()
        .map(|entry| (entry.question, entry.answer.split_whitespace().map(str::to_owned).collect()))
        .collect();
    let mut dice = Dice::new(5);
    let (mut seen, mut pieces) = (HashSet::new(), Vec::with_capacity(count));
    while pieces.len() < count {
        // An answer's chance goes with its length, as a reader meets its sentences.
        let (question, answer) = dice.pick(&faq);
        let length = words.start + dice.below(words.len());
        if answer.len() < length || dice.below(400) > answer.len() {
            continue;
        }
        let start = dice.below(answer.len() - length + 1);
        let answer = answer[start..start + length].join(" ");
        if !is_prose(&answer) {
            continue;
        }
        if seen.insert(answer.clone()) {
            pieces.push(Entry { question: question.clone(), answer });
        }
    }
    pieces
}

/// Code and tables have several tokens a word, and would be split into windows.
fn is_prose(text: &str) -> bool {
    let letters = text.chars().filter(|c| c.is_alphabetic() || c.is_whitespace()).count();
    letters * 100 >= text.chars().count() * 90 && text.split(' ').all(|word| word.len() <= 30)
}
