//! The partition of a key, as Java's default partitioner computes it.
//!
//! librdkafka's own default hashes with CRC32, so its topics are not co-partitioned with those of Java clients (Streams,
//! Connect, ksqlDB). We compute the partition ourselves, with the partition count that the sink started with.

/// The partition of `key` among `partition_count` (at least 1).
pub(crate) fn partition_of(key: &[u8], partition_count: i32) -> i32 {
    let positive = murmur2(key) & 0x7fff_ffff;
    i32::try_from(positive).expect("31 bits fit") % partition_count.max(1)
}

/// Java's `org.apache.kafka.common.utils.Utils.murmur2`, as the unsigned form of its result.
fn murmur2(data: &[u8]) -> u32 {
    const SEED: u32 = 0x9747_b28c;
    const M: u32 = 0x5bd1_e995;
    const R: u32 = 24;

    // Java takes the length as an int; keys are far shorter than 2 GiB.
    let mut hash = SEED ^ data.len() as u32;
    let mut words = data.chunks_exact(4);
    for word in &mut words {
        let mut k = u32::from_le_bytes([word[0], word[1], word[2], word[3]]).wrapping_mul(M);
        k ^= k >> R;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    let rest = words.remainder();
    if !rest.is_empty() {
        for (index, byte) in rest.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * index);
        }
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ (hash >> 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vectors of Kafka's own `UtilsTest.testMurmur2`.
    #[test]
    fn murmur2_equals_javas_test_vectors() {
        let vectors: [(&[u8], i32); 6] = [
            (b"21", -973_932_308),
            (b"foobar", -790_332_482),
            (b"a-little-bit-long-string", -985_981_536),
            (b"a-little-bit-longer-string", -1_486_304_829),
            (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            (b"abc", 479_470_107),
        ];
        for (key, expected) in vectors {
            assert_eq!(murmur2(key) as i32, expected, "{}", String::from_utf8_lossy(key));
        }
    }

    #[test]
    fn a_partition_is_within_the_count() {
        for count in [1, 2, 3, 7, 128] {
            for key in ["component:default/a", "api:default/pets", "", "ü"] {
                assert!((0..count).contains(&partition_of(key.as_bytes(), count)));
            }
        }
    }
}
