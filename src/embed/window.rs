//! Splits a text into windows of a bounded number of tokens, on bounds of sentences where it can. Pure: no tokenizer.

use std::ops::Range;

use super::tokens::{SPECIAL_TOKENS, Token};

/// A part of a text that is embedded as one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// Its tokens, as indices into the text's.
    pub tokens: Range<usize>,
    /// Its bytes in the text. The windows' bytes together are the whole text.
    pub bytes: Range<usize>,
}

/// How many tokens of a title of `title_tokens` stand in front of each window of `window_tokens`: at most half of
/// what the special tokens leave.
pub fn title_share(window_tokens: usize, title_tokens: usize) -> usize {
    title_tokens.min(window_tokens.saturating_sub(SPECIAL_TOKENS) / 2)
}

/// How many tokens of the text fit into a window beside `title_tokens` of the title (its share) and the special ones.
pub fn capacity(window_tokens: usize, title_tokens: usize) -> usize {
    window_tokens.saturating_sub(SPECIAL_TOKENS + title_tokens).max(1)
}

/// What lies before a token, from nothing at all to the end of a sentence. A larger bound is a better place to cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Bound {
    InsideWord,
    Word,
    Space,
    Line,
    Sentence,
}

/// Splits a text into windows of at most `capacity` tokens. Each begins with about `overlap` tokens of the one before
/// (at most half its capacity), in whole sentences where one ends near there. A sentence that is longer than a window
/// is cut at the end of a line, of a word, or of a token.
///
/// A text that fits is one window; a text without tokens has none. Takes time in proportion to the tokens.
pub fn split(text: &str, tokens: &[Token], capacity: usize, overlap: usize) -> Vec<Window> {
    if tokens.is_empty() {
        return vec![];
    }
    let (capacity, count) = (capacity.max(1), tokens.len());
    if count <= capacity {
        return vec![Window { tokens: 0..count, bytes: 0..text.len() }];
    }
    let bounds = bounds(text, tokens);
    let mut windows: Vec<Range<usize>> = vec![];
    let (mut start, mut done) = (0, 0);
    loop {
        let end = window_end(&bounds, start, done, capacity);
        windows.push(start..end);
        if end == count {
            break;
        }
        start = window_start(&bounds, start, end, capacity, overlap.min(capacity / 2));
        done = end;
    }
    let place = |token: usize| tokens.get(token).map_or(text.len(), |token| token.place.start);
    // What lies before the first token belongs to the first window, what follows a token to that token's.
    let first = |window: &Range<usize>| if window.start == 0 { 0 } else { place(window.start) };
    windows.into_iter().map(|window| Window { bytes: first(&window)..place(window.end), tokens: window }).collect()
}

/// The end of the window that begins at `start`; tokens before `done` are in a window already.
fn window_end(bounds: &[Bound], start: usize, done: usize, capacity: usize) -> usize {
    let limit = start + capacity;
    if limit >= bounds.len() {
        return bounds.len();
    }
    let last = |wanted: Bound, from: usize| (from + 1..=limit).rev().find(|token| bounds[*token] >= wanted);
    last(Bound::Sentence, done.max(start))
        // Inside a sentence a window is at least half full, or a list of short lines would make many small ones.
        .or_else(|| {
            let from = done.max(start + capacity / 2);
            [Bound::Line, Bound::Space, Bound::Word].into_iter().find_map(|wanted| last(wanted, from))
        })
        .unwrap_or(limit)
}

/// The start of the window that follows `start..end`: `overlap` tokens before `end`, or at a sentence near there.
fn window_start(bounds: &[Bound], start: usize, end: usize, capacity: usize, overlap: usize) -> usize {
    if overlap == 0 {
        return end;
    }
    // A sentence that fits into a window is not cut for the sake of the overlap.
    let next = (end + 1..=(end + capacity).min(bounds.len()))
        .find(|token| bounds.get(*token).is_none_or(|bound| *bound >= Bound::Sentence));
    let room = next.map_or(overlap, |next| capacity - (next - end));
    let target = end.saturating_sub(overlap.min(room));
    let earliest = end.saturating_sub((overlap + overlap / 2).min(room)).max(start + 1);
    let sentence =
        (earliest..end).filter(|token| bounds[*token] >= Bound::Sentence).min_by_key(|token| token.abs_diff(target));
    let word = || (target.max(start + 1)..end).find(|token| bounds[*token] >= Bound::Space);
    sentence.or_else(word).unwrap_or(end)
}

fn bounds(text: &str, tokens: &[Token]) -> Vec<Bound> {
    let mut bounds = Vec::with_capacity(tokens.len());
    bounds.push(Bound::Sentence);
    for pair in tokens.windows(2) {
        let (before, after) = (&pair[0].place, &pair[1].place);
        let gap = text.get(before.end..after.start).unwrap_or_default();
        bounds.push(bound(&text[..before.end], gap, &text[after.start..], pair[1].begins_word));
    }
    bounds
}

/// The most quotes and brackets between a full stop and the end of its sentence.
const CLOSERS_MAX: usize = 3;

fn is_closer(character: char) -> bool {
    matches!(character, '"' | '\'' | ')' | ']' | '”' | '’' | '»' | '」' | '』' | '）')
}

fn bound(before: &str, gap: &str, after: &str, begins_word: bool) -> Bound {
    let lines = gap.matches('\n').count();
    let space = gap.contains(char::is_whitespace);
    // A closing quote or bracket belongs to the sentence that it ends.
    let mark = before.chars().rev().take(CLOSERS_MAX + 1).find(|character| !is_closer(*character));
    let ends = match mark {
        Some('.' | '!' | '?' | '…' | '‽' | '؟' | '।') => space,
        Some('。' | '！' | '？') => !after.starts_with(is_closer),
        _ => false,
    };
    // “e.g. this” goes on in lower case, a new sentence does not.
    let goes_on = lines == 0 && after.starts_with(char::is_lowercase);
    if lines > 1 || (ends && !goes_on) {
        Bound::Sentence
    } else if lines == 1 {
        Bound::Line
    } else if space {
        Bound::Space
    } else if begins_word {
        Bound::Word
    } else {
        Bound::InsideWord
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stand-in for the tokenizer: words are cut into pieces of three characters, a mark is a word of its own.
    fn tokens(text: &str) -> Vec<Token> {
        let mut tokens: Vec<Token> = vec![];
        let mut length = 0;
        for (place, character) in text.char_indices() {
            let end = place + character.len_utf8();
            let is_word = character.is_alphanumeric();
            if character.is_whitespace() || character == '\u{fffd}' {
                length = 0;
            } else if is_word && length > 0 && length % 3 != 0 {
                tokens.last_mut().expect("a word has begun").place.end = end;
                length += 1;
            } else {
                tokens.push(Token { id: 7, place: place..end, begins_word: !is_word || length == 0 });
                length = if is_word { length + 1 } else { 0 };
            }
        }
        tokens
    }

    fn passages(text: &str, capacity: usize, overlap: usize) -> Vec<&str> {
        split(text, &tokens(text), capacity, overlap).into_iter().map(|window| text[window.bytes].trim()).collect()
    }

    #[test]
    fn cuts_where_a_reader_would() {
        let check = |text: &str, capacity, overlap, expected: &[&str]| {
            assert_eq!(passages(text, capacity, overlap), expected, "{text:?}");
        };
        check("one two", 8, 2, &["one two"]);
        check("", 8, 2, &[]);
        check(" \n ", 8, 2, &[]);
        check("A b c. D e f. G h i.", 8, 0, &["A b c. D e f.", "G h i."]);
        check("A b c. D e f. G h i.", 8, 4, &["A b c. D e f.", "D e f. G h i."]);
        // Not after an abbreviation, not before the closing bracket.
        check("A b e.g. d e f. (G h.) I j k.", 11, 0, &["A b e.g. d e f.", "(G h.) I j k."]);
        check("One\n\nTwo two two\n\nSix six six", 4, 0, &["One\n\nTwo two two", "Six six six"]);
        // A long sentence: at a line's end, else between words, else anywhere.
        check("a b c d e\nf g h i j k", 8, 0, &["a b c d e", "f g h i j k"]);
        check("a b c d e f g h i j", 4, 0, &["a b c d", "e f g h", "i j"]);
        check("abcdefghijklmnopqr", 4, 0, &["abcdefghijkl", "mnopqr"]);
        // The overlap gives way to a sentence that fits as a whole.
        check(
            "A b c. D e f g h i.",
            8,
            3,
            &["A b c.", "c. D e f g h i."].map(|passage| passage.trim_start_matches("c. ")),
        );
        check("漢字。「漢字。」漢字。", 6, 0, &["漢字。「漢字。」", "漢字。"]);
    }

    /// Numbers that look random and are the same every time (a linear congruential generator).
    fn numbers(mut seed: u64) -> impl FnMut(usize) -> usize {
        move |below| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) as usize % below
        }
    }

    #[test]
    fn whatever_the_text_nothing_is_dropped_and_no_window_is_too_long() {
        let pieces = [
            "a",
            "word",
            "longerword",
            "überlänge",
            ". ",
            "! ",
            "? ",
            "\n",
            "\n\n",
            " ",
            " ",
            " ",
            "。",
            "漢",
            "字",
            ")",
            "\"",
            "\u{fffd}",
            "\u{200d}",
            "👩\u{200d}🚀",
            "\u{202e}",
            "e\u{301}",
            "\t",
            "wordwordwordwordwordwordwordword",
        ];
        for seed in 0..400 {
            let mut next = numbers(seed);
            let text: String = (0..next(300)).map(|_| pieces[next(pieces.len())]).collect();
            let (capacity, overlap) = (7 + next(30), next(20));
            let tokens = tokens(&text);
            let windows = split(&text, &tokens, capacity, overlap);
            assert_eq!(windows.is_empty(), tokens.is_empty());
            let (mut token, mut byte, mut start) = (0, 0, None);
            for window in &windows {
                let seen = (seed, &window.tokens, capacity, overlap);
                assert!(window.tokens.len() <= capacity, "too long: {seen:?}");
                assert!(window.tokens.start <= token && window.tokens.end > token, "a gap or no progress: {seen:?}");
                assert!(window.bytes.start <= byte && window.bytes.end >= byte, "bytes missing: {seen:?}");
                assert!(start < Some(window.tokens.start), "does not move on: {seen:?}");
                assert!(token - window.tokens.start <= (capacity / 2).min(overlap) * 3 / 2, "overlap: {seen:?}");
                assert!(text.get(window.bytes.clone()).is_some(), "inside a character: {seen:?}");
                (token, byte, start) = (window.tokens.end, window.bytes.end, Some(window.tokens.start));
            }
            assert!(windows.is_empty() || (token, byte) == (tokens.len(), text.len()), "end missing: {seed}");
        }
    }

    #[test]
    fn a_megabyte_of_one_character_takes_linear_time() {
        for character in [")", "a", "。", ".", "\u{fffd}"] {
            let text = character.repeat(1_000_000 / character.len());
            let (tokens, begun) = (tokens(&text), std::time::Instant::now());
            let windows = split(&text, &tokens, 254, 32);
            assert!(windows.len() <= tokens.len() / 60 + 1, "{} windows of {character:?}", windows.len());
            assert!(begun.elapsed() < std::time::Duration::from_secs(10), "{character:?}");
        }
    }

    #[test]
    fn a_title_takes_at_most_half_a_window() {
        for window in 16..=512 {
            for title in [0, 1, 7, 100, 300] {
                let share = title_share(window, title);
                assert!(share <= title && share <= window / 2);
                assert_eq!(share + capacity(window, share) + SPECIAL_TOKENS, window);
            }
        }
        assert_eq!((title_share(256, 500), title_share(256, 20)), (127, 20));
    }
}
