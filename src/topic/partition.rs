//! Which partition a key belongs to: murmur2, as Kafka's Java client computes it. No I/O.

use super::Partition;

/// The partition of `key`: `toPositive(murmur2(key)) % partitions`, so that an embedded log, vecsync's own topics in
/// Kafka and those that other Java clients wrote keep a row in the same place. `partitions` must not be 0.
pub fn partition_of(key: &[u8], partitions: u16) -> Partition {
    let positive = murmur2(key) & 0x7fff_ffff;
    (positive % u32::from(partitions)) as Partition
}

/// MurmurHash2, 32 bits, with the seed that Kafka's clients use (`org.apache.kafka.common.utils.Utils.murmur2`).
fn murmur2(data: &[u8]) -> u32 {
    const SEED: u32 = 0x9747_b28c;
    const M: u32 = 0x5bd1_e995;
    let mut hash = SEED ^ data.len() as u32;
    let mut words = data.chunks_exact(4);
    for word in words.by_ref() {
        let mut k = u32::from_le_bytes([word[0], word[1], word[2], word[3]]).wrapping_mul(M);
        k = (k ^ (k >> 24)).wrapping_mul(M);
        hash = hash.wrapping_mul(M) ^ k;
    }
    let tail = words.remainder();
    if !tail.is_empty() {
        let rest = tail.iter().rev().fold(0u32, |rest, &byte| rest << 8 | u32::from(byte));
        hash = (hash ^ rest).wrapping_mul(M);
    }
    hash = (hash ^ (hash >> 13)).wrapping_mul(M);
    hash ^ (hash >> 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values are those of Kafka's own unit test of this hash.
    #[test]
    fn hashes_as_kafka_does() {
        for (key, wanted) in [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            ("abc", 479_470_107),
        ] {
            assert_eq!(murmur2(key.as_bytes()) as i32, wanted, "{key}");
        }
    }

    #[test]
    fn a_negative_hash_gives_a_partition_all_the_same() {
        assert_eq!(partition_of(b"21", 8), ((-973_932_308i32 & 0x7fff_ffff) % 8) as u16);
        assert_eq!(partition_of(b"anything", 1), 0);
        assert!((0..1000).all(|n: u32| partition_of(n.to_string().as_bytes(), 7) < 7));
    }
}
