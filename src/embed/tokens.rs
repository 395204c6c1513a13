//! Cuts text into the model's tokens, with their places in it. Pads nothing and truncates nothing by itself.

use std::ops::Range;
use std::sync::Arc;

use quick_cache::sync::Cache as Known;
use tokenizers::Tokenizer;

use super::model::EmbedError;

/// What the model reads: token ids, the two special ones included.
pub type TokenIds = Vec<u32>;

/// Stands before every text.
const CLS: u32 = 101;
/// Stands after every text.
const SEP: u32 = 102;
/// The special tokens of a text.
pub const SPECIAL_TOKENS: usize = 2;
/// The most bytes that are given to the tokenizer at once, so that its working memory does not grow with the text.
/// Parts are cut at white space, where this tokenizer sees no connection (but for U+000B, U+000C and U+0085, which it leaves
/// out); a longer "word" is cut in two.
const CHUNK_BYTES: usize = 16 * 1024;
/// Words whose tokens are kept: most of those of a text. They take some 100 bytes each, one of nothing but punctuation marks 1 KB.
const WORDS_KEPT: usize = 8192;
/// A longer word is not kept; mostly it is none, but a text in a language without blanks.
const WORD_BYTES_MAX: usize = 32;
/// How long a token is at least, in most texts.
const BYTES_PER_TOKEN: usize = 3;

/// A token of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// Its place in the text, in bytes, on bounds of characters.
    pub place: Range<usize>,
    /// Whether a word (or a punctuation mark) begins with it.
    pub begins_word: bool,
}

/// The tokenizer of the model.
///
/// To it, words between blanks have nothing to do with each other, so each is given to it alone, and what it made of one is kept:
/// to ask it about all of them took 2 % of the time that the int8 model takes.
pub struct Tokens {
    tokenizer: Tokenizer,
    words: Known<Box<str>, Arc<[Token]>>,
}

impl Tokens {
    /// Reads `tokenizer.json`.
    pub fn new(json: &[u8]) -> Result<Tokens, tokenizers::Error> {
        let mut tokenizer = Tokenizer::from_bytes(json)?;
        // The file asks for truncation and for padding to 128.
        tokenizer.with_truncation(None)?;
        tokenizer.with_padding(None);
        Ok(Tokens { tokenizer, words: Known::new(WORDS_KEPT) })
    }

    /// The tokens of a text, the special ones left out. Takes time in proportion to the text's length.
    pub fn of(&self, text: &str) -> Result<Vec<Token>, EmbedError> {
        let mut tokens = Vec::with_capacity(text.len() / BYTES_PER_TOKEN);
        for word in words(text) {
            let (start, word) = (word.start, &text[word]);
            if word.len() > WORD_BYTES_MAX {
                for chunk in chunks(word, CHUNK_BYTES) {
                    self.ask(&word[chunk.clone()], start + chunk.start, &mut tokens)?;
                }
                continue;
            }
            let known = match self.words.get(word) {
                Some(known) => known,
                None => {
                    let mut asked = vec![];
                    self.ask(word, 0, &mut asked)?;
                    let asked: Arc<[Token]> = asked.into();
                    self.words.insert(word.into(), Arc::clone(&asked));
                    asked
                }
            };
            tokens.extend(known.iter().map(|token| {
                let place = start + token.place.start..start + token.place.end;
                Token { place, ..*token }
            }));
        }
        Ok(tokens)
    }

    /// Asks the tokenizer for the tokens of a part of a text, which begins at `start`.
    fn ask(&self, part: &str, start: usize, tokens: &mut Vec<Token>) -> Result<(), EmbedError> {
        let encoding = self.tokenizer.encode(part, false).map_err(|fault| EmbedError::Tokenizer(fault.to_string()))?;
        let mut word_before = None;
        tokens.reserve(encoding.len());
        for ((id, (from, to)), word) in
            encoding.get_ids().iter().zip(encoding.get_offsets()).zip(encoding.get_word_ids())
        {
            let from = part.floor_char_boundary(*from);
            let to = part.ceil_char_boundary(*to).max(from);
            let begins_word = word.is_none() || *word != word_before;
            tokens.push(Token { id: *id, place: start + from..start + to, begins_word });
            word_before = *word;
        }
        Ok(())
    }

    /// The first `limit` tokens of a text, the special ones included, and whether that is less than all.
    pub fn truncated(&self, text: &str, limit: usize) -> Result<(TokenIds, bool), EmbedError> {
        let tokens = self.of(text)?;
        let room = limit.saturating_sub(SPECIAL_TOKENS);
        let cut = tokens.len() > room;
        Ok((input([&tokens[..tokens.len().min(room)]]), cut))
    }
}

/// Joins runs of tokens to one text for the model.
pub fn input<const N: usize>(parts: [&[Token]; N]) -> TokenIds {
    let mut ids = Vec::with_capacity(parts.iter().map(|part| part.len()).sum::<usize>() + SPECIAL_TOKENS);
    ids.push(CLS);
    ids.extend(parts.iter().copied().flatten().map(|token| token.id));
    ids.push(SEP);
    ids
}

/// The shortest text there is: nothing between the special tokens.
pub fn nothing() -> TokenIds {
    vec![CLS, SEP]
}

/// What stands between blanks. Other white space is left to the tokenizer.
fn words(text: &str) -> impl Iterator<Item = Range<usize>> {
    let is_blank = |byte: &u8| matches!(byte, b' ' | b'\n' | b'\t' | b'\r');
    let mut end = 0;
    std::iter::from_fn(move || {
        let start = end + text.as_bytes()[end..].iter().position(|byte| !is_blank(byte))?;
        end = text.as_bytes()[start..].iter().position(is_blank).map_or(text.len(), |length| start + length);
        Some(start..end)
    })
}

/// Cuts a text into parts of at most `limit` bytes (at least 4), after white space where there is any.
fn chunks(text: &str, limit: usize) -> impl Iterator<Item = Range<usize>> {
    let mut start = 0;
    std::iter::from_fn(move || {
        let rest = &text[start..];
        if rest.is_empty() {
            return None;
        }
        let mut length = rest.len();
        if length > limit {
            let head = &rest[..rest.floor_char_boundary(limit)];
            let gap = head.char_indices().rev().find(|(_, character)| character.is_whitespace());
            length = gap.map_or(head.len(), |(place, character)| place + character.len_utf8());
        }
        let chunk = start..start + length;
        start = chunk.end;
        Some(chunk)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_stand_between_blanks() {
        let check = |text: &str, expected: &[&str]| {
            assert_eq!(words(text).map(|word| &text[word]).collect::<Vec<_>>(), expected, "{text:?}");
        };
        check("", &[]);
        check(" \n ", &[]);
        check("one", &["one"]);
        check(" one,\r\n\ttwo\u{a0}ä ", &["one,", "two\u{a0}ä"]);
    }

    #[test]
    fn chunks_end_after_white_space_and_never_inside_a_character() {
        let check = |text: &str, limit: usize, expected: &[&str]| {
            let parts: Vec<&str> = chunks(text, limit).map(|chunk| &text[chunk]).collect();
            assert_eq!(parts, expected);
        };
        check("", 8, &[]);
        check("one two three", 8, &["one two ", "three"]);
        check("one two", 8, &["one two"]);
        check("ääääää", 5, &["ää", "ää", "ää"]);
        check("a\u{3000}bcdefghij", 8, &["a\u{3000}", "bcdefghi", "j"]);
    }
}
