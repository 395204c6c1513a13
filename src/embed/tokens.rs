//! Cuts text into the model's tokens, with their places in it. Pads nothing and truncates nothing by itself.

use std::ops::Range;

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
/// Parts are cut at white space, where this tokenizer sees no connection; a longer "word" is cut in two.
const CHUNK_BYTES: usize = 16 * 1024;

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
pub struct Tokens(Tokenizer);

impl Tokens {
    /// Reads `tokenizer.json`.
    pub fn new(json: &[u8]) -> Result<Tokens, tokenizers::Error> {
        let mut tokenizer = Tokenizer::from_bytes(json)?;
        // The file asks for truncation and for padding to 128.
        tokenizer.with_truncation(None)?;
        tokenizer.with_padding(None);
        Ok(Tokens(tokenizer))
    }

    /// The tokens of a text, the special ones left out. Takes time in proportion to the text's length.
    pub fn of(&self, text: &str) -> Result<Vec<Token>, EmbedError> {
        let mut tokens = vec![];
        for chunk in chunks(text, CHUNK_BYTES) {
            let encoding =
                self.0.encode(&text[chunk.clone()], false).map_err(|fault| EmbedError::Tokenizer(fault.to_string()))?;
            let mut word_before = None;
            tokens.reserve(encoding.len());
            for ((id, (start, end)), word) in
                encoding.get_ids().iter().zip(encoding.get_offsets()).zip(encoding.get_word_ids())
            {
                let start = text.floor_char_boundary(chunk.start + start);
                let end = text.ceil_char_boundary(chunk.start + end).max(start);
                tokens.push(Token { id: *id, place: start..end, begins_word: word.is_none() || *word != word_before });
                word_before = *word;
            }
        }
        Ok(tokens)
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
