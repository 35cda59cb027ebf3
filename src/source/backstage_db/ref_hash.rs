//! The hash that PostgreSQL and we both compute of a ref: `hashtextextended(ref collate "C", 0)`.
//!
//! Two sets of refs are compared by count and by the sum of these hashes, without a ref crossing the wire. A session checks
//! with the server that both compute the same before it relies on that.

/// `hash_bytes_extended` of PostgreSQL's `common/hashfn.c` (Bob Jenkins' lookup3, 2006) with seed 0, little-endian.
pub(super) fn ref_hash(text: &str) -> i64 {
    let mut key = text.as_bytes();
    // PostgreSQL's lengths are 31 bits wide and refs are at most 255 characters.
    let start = 0x9e37_79b9_u32.wrapping_add(key.len() as u32).wrapping_add(3_923_095);
    let (mut a, mut b, mut c) = (start, start, start);
    while let Some((block, rest)) = key.split_at_checked(12) {
        a = a.wrapping_add(word(block, 0));
        b = b.wrapping_add(word(block, 4));
        c = c.wrapping_add(word(block, 8));
        (a, b, c) = mix(a, b, c);
        key = rest;
    }
    a = a.wrapping_add(word(key, 0));
    b = b.wrapping_add(word(key, 4));
    // The lowest byte of c is kept for the length.
    c = c.wrapping_add(word(key, 8) << 8);
    (b, c) = finish(a, b, c);
    ((u64::from(b) << 32) | u64::from(c)) as i64
}

/// Up to four bytes from `at`; those past the end count as 0.
fn word(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0_u8; 4];
    for (to, from) in word.iter_mut().zip(bytes.iter().skip(at)) {
        *to = *from;
    }
    u32::from_le_bytes(word)
}

fn mix(mut a: u32, mut b: u32, mut c: u32) -> (u32, u32, u32) {
    a = a.wrapping_sub(c) ^ c.rotate_left(4);
    c = c.wrapping_add(b);
    b = b.wrapping_sub(a) ^ a.rotate_left(6);
    a = a.wrapping_add(c);
    c = c.wrapping_sub(b) ^ b.rotate_left(8);
    b = b.wrapping_add(a);
    a = a.wrapping_sub(c) ^ c.rotate_left(16);
    c = c.wrapping_add(b);
    b = b.wrapping_sub(a) ^ a.rotate_left(19);
    a = a.wrapping_add(c);
    c = c.wrapping_sub(b) ^ b.rotate_left(4);
    b = b.wrapping_add(a);
    (a, b, c)
}

fn finish(mut a: u32, mut b: u32, mut c: u32) -> (u32, u32) {
    c = (c ^ b).wrapping_sub(b.rotate_left(14));
    a = (a ^ c).wrapping_sub(c.rotate_left(11));
    b = (b ^ a).wrapping_sub(a.rotate_left(25));
    c = (c ^ b).wrapping_sub(b.rotate_left(16));
    a = (a ^ c).wrapping_sub(c.rotate_left(4));
    b = (b ^ a).wrapping_sub(a.rotate_left(14));
    c = (c ^ b).wrapping_sub(b.rotate_left(24));
    (b, c)
}
