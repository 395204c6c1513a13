//! Chance that repeats: the same seed gives the same numbers everywhere. Not for secrets.

/// SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014).
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Dice(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }

    /// A few words that mean something to a language model.
    pub fn words(&mut self, count: usize) -> String {
        (0..count).map(|_| *self.pick(WORDS)).collect::<Vec<_>>().join(" ")
    }
}

const WORDS: &[&str] = &[
    "account", "address", "bill", "cancel", "card", "change", "charge", "country", "courier", "damaged", "date",
    "delay", "delivery", "discount", "email", "exchange", "gift", "invoice", "item", "late", "login", "lost", "money",
    "order", "parcel", "password", "pay", "phone", "price", "receipt", "refund", "reset", "return", "shop", "size",
    "stock", "store", "tax", "track", "voucher", "warranty", "wrong",
];
