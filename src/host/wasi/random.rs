//! `wasi:random`: secure numbers from the operating system, and insecure ones.
//!
//! The insecure kinds follow from the instance's seed alone, so a run with a fixed seed iterates its hash maps in
//! the same order again.

use crate::host::{Cx, Interface, Trap};
use crate::limits;

pub fn interfaces() -> Vec<Interface> {
    vec![
        Interface::new("wasi:random/random@0.2")
            .call("get-random-bytes", bytes)
            .call("get-random-u64", number),
        Interface::new("wasi:random/insecure@0.2")
            .call("get-insecure-random-bytes", insecure_bytes)
            .call("get-insecure-random-u64", insecure_number),
        Interface::new("wasi:random/insecure-seed@0.2").call("insecure-seed", insecure_seed),
    ]
}

/// Fuel of asking the system, some 300 ns.
const SYSTEM_FUEL: u64 = 256;
/// Fuel of a byte: the system makes some 400 MB/s.
const RANDOM_BYTE_FUEL: u64 = 2;

fn bounded(len: u64) -> Result<usize, Trap> {
    match len <= limits::RANDOM_BYTES as u64 {
        true => Ok(len as usize),
        false => {
            Err(Trap::error(format!("{len} random bytes at once, and {} is the most", limits::RANDOM_BYTES)))
        }
    }
}

fn bytes(cx: &mut Cx, len: u64) -> Result<Vec<u8>, Trap> {
    let mut bytes = vec![0; bounded(len)?];
    cx.owe(1, SYSTEM_FUEL);
    cx.owe(bytes.len(), RANDOM_BYTE_FUEL);
    getrandom::fill(&mut bytes).map_err(|e| Trap::error(format!("the system gives no random bytes: {e}")))?;
    Ok(bytes)
}

fn number(cx: &mut Cx) -> Result<u64, Trap> {
    cx.owe(1, SYSTEM_FUEL);
    getrandom::u64().map_err(|e| Trap::error(format!("the system gives no random bytes: {e}")))
}

fn insecure_bytes(cx: &mut Cx, len: u64) -> Result<Vec<u8>, Trap> {
    let len = bounded(len)?;
    cx.owe(len, RANDOM_BYTE_FUEL);
    let words = std::iter::repeat_with(|| cx.insecure.next().to_le_bytes());
    Ok(words.take(len.div_ceil(8)).flatten().take(len).collect())
}

fn insecure_number(cx: &mut Cx) -> Result<u64, Trap> {
    Ok(cx.insecure.next())
}

fn insecure_seed(cx: &mut Cx) -> Result<(u64, u64), Trap> {
    Ok((cx.insecure.next(), cx.insecure.next()))
}

/// SplitMix64 (Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", 2014): a counter, mixed.
pub struct Insecure(u64);

impl Insecure {
    pub fn seeded(seed: u64) -> Insecure {
        Insecure(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
