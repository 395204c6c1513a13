//! What comes over the replication connection, harmed in many ways: the corpus of the fuzz targets, and mutations of it.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs;
use std::path::Path;

use crate::decoders::{message, stream};
use crate::dice::Dice;

/// Mutations of each target's corpus, where `VECSYNC_TEST_MUTATIONS` does not say how many.
const MUTATIONS: usize = 20_000;
/// Longer inputs than these say no more and take longer.
const BYTES_MAX: usize = 4096;
/// What an input may make anybody ask for in one piece: so many bytes for each of its own, and what is asked for anyway.
const MEMORY_PER_BYTE: usize = 128;
const MEMORY_ANYWAY: usize = 64 * 1024;

/// The system's memory; notes the largest piece that each thread has asked for.
struct Noting;

#[global_allocator]
static NOTING: Noting = Noting;

thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: all is the system's own doing.
unsafe impl GlobalAlloc for Noting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: as the caller has promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: as the caller has promised.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        note(bytes);
        // SAFETY: as the caller has promised.
        unsafe { System.realloc(pointer, layout, bytes) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller has promised.
        unsafe { System.dealloc(pointer, layout) }
    }
}

fn note(bytes: usize) {
    // A thread that ends has none any more.
    let _ = LARGEST.try_with(|largest| largest.set(largest.get().max(bytes)));
}

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
    corpus.iter().for_each(|bytes| within_bounds(bytes, target));
    let count = std::env::var("VECSYNC_TEST_MUTATIONS").map_or(MUTATIONS, |text| text.parse().expect("a number"));
    for seed in 0..count as u64 {
        let bytes = mutation(&corpus, &mut Dice::new(seed));
        // A panic says what was wrong; this says how to see it again.
        let ended = std::panic::catch_unwind(|| within_bounds(&bytes, target));
        assert!(ended.is_ok(), "seed {seed} of {name}: {bytes:?}");
    }
}

fn within_bounds(bytes: &[u8], target: fn(&[u8])) {
    LARGEST.set(0);
    target(bytes);
    let (largest, limit) = (LARGEST.get(), bytes.len() * MEMORY_PER_BYTE + MEMORY_ANYWAY);
    assert!(largest <= limit, "{} bytes made somebody ask for {largest} bytes", bytes.len());
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
