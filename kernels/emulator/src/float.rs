//! Formats of floating point: the 16-bit ones, the rounding modes, flushing, bounded noise. Knows no
//! instruction.

/// A rounding mode, as a constant of generic code: to nearest even, toward zero, down, up.
pub type Mode = u8;
pub const RN: Mode = 0;
pub const RZ: Mode = 1;
pub const RM: Mode = 2;
pub const RP: Mode = 3;

/// The quiet NaN that PTX's f32 operations give.
pub const NAN32: u32 = 0x7fff_ffff;

/// a + b in f64, rounded to odd: rounding the result again to at most 51 bits gives what one rounding of the
/// exact sum would.
pub fn add_odd(a: f64, b: f64) -> f64 {
    let sum = a + b;
    let back = sum - a;
    let rest = (a - (sum - back)) + (b - back);
    // Of an inexact sum's two neighbours one is odd: the greater in magnitude, or, where the rest has the other sign, the
    // lesser. An infinite sum or NaN has a rest of NaN. No branches: the lanes of a warp go side by side.
    let toward_zero = (rest.to_bits() ^ sum.to_bits()) >> 63;
    let odd = f64::from_bits(sum.to_bits().wrapping_sub(toward_zero) | 1);
    if rest.abs() > 0.0 { odd } else { sum }
}

/// Rounds `value` to `bits` bits of significand, exponents from `low` (of the least normal number) to `high`
/// (of the greatest); overflow gives infinity or the greatest number, as the mode has it.
fn round_to(value: f64, bits: i32, low: i32, high: i32, mode: Mode) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return value;
    }
    let exponent = (((value.to_bits() >> 52) & 0x7ff) as i32 - 1023).max(low);
    let scale = exp2(bits - 1 - exponent);
    let scaled = value * scale;
    let whole = match mode {
        RN => scaled.round_ties_even(),
        RZ => scaled.trunc(),
        RM => scaled.floor(),
        _ => scaled.ceil(),
    };
    let rounded = whole / scale;
    let most = (2.0 - exp2(1 - bits)) * exp2(high);
    if rounded.abs() <= most {
        return if rounded == 0.0 { 0.0f64.copysign(value) } else { rounded };
    }
    let limited = mode == RZ || mode == RM && value > 0.0 || mode == RP && value < 0.0;
    if limited { most.copysign(value) } else { f64::INFINITY.copysign(value) }
}

/// 2^n for normal exponents.
fn exp2(n: i32) -> f64 {
    f64::from_bits(((n + 1023) as u64) << 52)
}

pub fn f64_to_f32(value: f64, mode: Mode) -> f32 {
    if mode == RN { value as f32 } else { round_to(value, 24, -126, 127, mode) as f32 }
}

pub fn f64_to_f16(value: f64, mode: Mode) -> u16 {
    let sign = ((value.to_bits() >> 48) & 0x8000) as u16;
    if value.is_nan() {
        return 0x7fff;
    }
    if mode == RN {
        return sign | half_of(value.to_bits() & !(1 << 63));
    }
    let rounded = round_to(value, 11, -14, 15, mode).abs();
    if rounded == f64::INFINITY {
        return sign | 0x7c00;
    }
    if rounded < exp2(-14) {
        return sign | (rounded * exp2(24)) as u16;
    }
    let bits = rounded.to_bits();
    let exponent = ((bits >> 52) as i32 - 1023 + 15) as u16;
    sign | exponent << 10 | ((bits >> 42) & 0x3ff) as u16
}

/// The f16 nearest to a positive f64, by its bits.
fn half_of(bits: u64) -> u16 {
    if bits >= 65520f64.to_bits() {
        return 0x7c00;
    }
    if bits < exp2(-14).to_bits() {
        // Adding 2^28 aligns the value to steps of 2^-24 and rounds to even.
        return (f64::from_bits(bits) + exp2(28)).to_bits() as u16;
    }
    let rounded = bits + ((1 << 41) - 1) + (bits >> 42 & 1);
    ((rounded >> 42) - (1008 << 10)) as u16
}

pub fn f16_to_f32(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    let (exponent, fraction) = (u32::from(bits >> 10) & 31, u32::from(bits & 0x3ff));
    let magnitude = match exponent {
        0 => (fraction as f32 * (1.0 / 16_777_216.0)).to_bits(),
        31 => 0x7f80_0000 | fraction << 13,
        _ => (exponent + 112) << 23 | fraction << 13,
    };
    f32::from_bits(sign | magnitude)
}

/// To nearest even, the common case.
pub fn f32_to_f16(value: f32) -> u16 {
    let bits = value.to_bits();
    let sign = (bits >> 16) as u16 & 0x8000;
    let magnitude = bits & 0x7fff_ffff;
    if magnitude > 0x7f80_0000 {
        return 0x7fff;
    }
    if magnitude >= 0x4780_0000 {
        return sign | 0x7c00;
    }
    if magnitude < 0x3880_0000 {
        // Adding 0.5 aligns the value to steps of 2^-24 and rounds to even.
        return sign | (f32::from_bits(magnitude) + 0.5).to_bits() as u16;
    }
    let rounded = magnitude + 0xfff + ((magnitude >> 13) & 1);
    sign | ((rounded >> 13) - (112 << 10)) as u16
}

pub fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

pub fn f64_to_bf16(value: f64, mode: Mode) -> u16 {
    if value.is_nan() {
        return 0x7fff;
    }
    let (sign, bits) = ((value.to_bits() >> 48) as u16 & 0x8000, value.to_bits() & !(1 << 63));
    if mode == RN && bits >= exp2(-126).to_bits() {
        let rounded = (bits + ((1 << 44) - 1) + (bits >> 45 & 1)) >> 45;
        return sign | (rounded - (896 << 7)).min(0x7f80) as u16;
    }
    ((round_to(value, 8, -126, 127, mode) as f32).to_bits() >> 16) as u16
}

/// To nearest even, the common case.
pub fn f32_to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    if value.is_nan() {
        return 0x7fff;
    }
    ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

/// Subnormals to zero of the same sign.
pub fn flush(value: f32) -> f32 {
    if value.to_bits() & 0x7f80_0000 == 0 { f32::from_bits(value.to_bits() & 0x8000_0000) } else { value }
}

/// A number between -1 and 1 that depends on the seed and the operands alone: the same operation on the same
/// operands gives the same bits wherever it runs, as on a device. Zero for seed 0.
pub fn noise(seed: u64, operands: u64) -> f64 {
    if seed == 0 {
        return 0.0;
    }
    let mut x = operands ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    x = (x ^ (x >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    x ^= x >> 32;
    (x >> 11) as f64 / (1u64 << 52) as f64 - 1.0
}

/// `value` rounded to f32 and moved by at most `ulps` units in the last place, as `noise` says.
pub fn blur(value: f64, ulps: f64, noise: f64) -> f32 {
    let near = value as f32;
    if near == 0.0 || !near.is_finite() {
        return near;
    }
    let steps = (noise * (ulps + 0.49)).round() as i32;
    let moved = f32::from_bits(near.to_bits().wrapping_add_signed(steps));
    // Never across zero, into infinity or NaN.
    if moved.is_finite() && moved.is_sign_negative() == near.is_sign_negative() { moved } else { near }
}
