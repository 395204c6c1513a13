//! What comes over the replication connection, harmed in many ways: the corpus of the fuzz targets, and mutations of it.

use std::fs;
use std::path::Path;

use crate::decoders::{message, stream};
use crate::dice::Dice;

/// Mutations of each target's corpus, where `VECSYNC_TEST_MUTATIONS` does not say how many.
const MUTATIONS: usize = 20_000;
/// Longer inputs than these say no more and take longer.
const BYTES_MAX: usize = 4096;

#[test]
fn no_bytes_of_a_server_make_the_stream_panic_or_take_memory() {
    run("stream", stream);
}

#[test]
fn no_message_makes_the_decoder_panic_or_take_memory() {
    run("pgoutput", message);
}

fn run(name: &str, target: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let mut files: Vec<_> = fs::read_dir(&folder).expect("the corpus").map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let corpus: Vec<Vec<u8>> = files.iter().map(|file| fs::read(file).unwrap()).collect();
    assert!(corpus.len() >= 20, "only {} files in {}", corpus.len(), folder.display());
    corpus.iter().for_each(|bytes| target(bytes));
    let count = std::env::var("VECSYNC_TEST_MUTATIONS").map_or(MUTATIONS, |text| text.parse().expect("a number"));
    for seed in 0..count as u64 {
        let bytes = mutation(&corpus, &mut Dice::new(seed));
        // A panic says what was wrong; this says how to see it again.
        let ended = std::panic::catch_unwind(|| target(&bytes));
        assert!(ended.is_ok(), "seed {seed} of {name}: {bytes:?}");
    }
}

/// One to four changes of one of the corpus: bytes, lengths, cuts, repetitions, a piece of another.
fn mutation(corpus: &[Vec<u8>], dice: &mut Dice) -> Vec<u8> {
    let mut bytes = dice.pick(corpus).clone();
    for _ in 0..1 + dice.below(4) {
        if bytes.is_empty() {
            break;
        }
        let (at, to) = (dice.below(bytes.len()), dice.below(bytes.len()));
        let (from, end) = (at.min(to), at.max(to) + 1);
        match dice.below(8) {
            0 => bytes[at] ^= 1 << dice.below(8),
            1 => bytes[at] = dice.next() as u8,
            2 => bytes.truncate(at),
            3 => drop(bytes.drain(from..end)),
            4 => {
                let again = bytes[from..end].to_vec();
                bytes.splice(at..at, again);
            }
            5 => {
                let other = dice.pick(corpus);
                let piece = &other[dice.below(other.len())..];
                bytes.splice(from..end, piece.iter().copied());
            }
            // A number of two or four bytes that is at the edge of something.
            6 => put(&mut bytes, at, &dice.pick(&[0u32, 1, 3, 4, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff]).to_be_bytes()),
            _ => put(&mut bytes, at, &dice.pick(&[0u16, 1, 0x7fff, 0xffff]).to_be_bytes()),
        }
        bytes.truncate(BYTES_MAX);
    }
    bytes
}

fn put(bytes: &mut [u8], at: usize, number: &[u8]) {
    bytes[at..].iter_mut().zip(number).for_each(|(byte, new)| *byte = *new);
}
