//! Packed comparisons, classes of numbers, directed rounding in f64.

use crate::arithmetic::wide_f16;
use crate::harness::{Random, each, each32};

#[test]
fn packed_comparisons_give_two_predicates() {
    let mut random = Random(12);
    let operands: Vec<[u64; 3]> = (0..600).map(|_| [random.next(), random.next(), random.next()]).collect();
    // Equal halves now and then.
    let operands: Vec<[u64; 3]> = operands
        .into_iter()
        .map(|[a, b, c]| [a, if c % 3 == 0 { a ^ (c & 0x8000_0000) } else { b }, c])
        .collect();
    let half = |word: u64, by: u32| wide_f16((word >> by) as u16);
    let pack = "selp.b32 %s, 2, 0, %q; selp.b32 %t, 1, 0, %p; or.b32 %t, %t, %s;";
    for (name, holds) in [
        ("lt", (|a, b| a < b) as fn(f64, f64) -> bool),
        ("eq", |a, b| a == b),
        ("geu", |a, b| a >= b || a.is_nan() || b.is_nan()),
    ] {
        let got = each32(&format!("setp.{name}.f16x2 %p|%q, %x, %y; {pack}"), &operands);
        let odd = "and.b32 %s, %z, 1; setp.eq.u32 %r, %s, 1;";
        let xor = each32(&format!("{odd} setp.{name}.xor.f16x2 %p|%q, %x, %y, %r; {pack}"), &operands);
        for (n, &[a, b, c]) in operands.iter().enumerate() {
            let want = [0, 16].map(|by| holds(half(a, by), half(b, by)));
            let bits = |low: bool, high: bool| u32::from(low) | u32::from(high) << 1;
            assert_eq!(got[n], bits(want[0], want[1]), "{name} of {a:#x} and {b:#x}");
            let odd = c & 1 == 1;
            assert_eq!(xor[n], bits(want[0] ^ odd, want[1] ^ odd), "{name} of {a:#x} and {b:#x}");
        }
    }
}

#[test]
fn numbers_are_tested() {
    let mut random = Random(13);
    let mut doubles: Vec<f64> = (0..300).map(|_| f64::from_bits(random.edges())).collect();
    doubles.extend([0.0, -0.0, 5e-324, f64::MIN_POSITIVE, f64::INFINITY, f64::NAN, -1.5]);
    let operands: Vec<[u64; 3]> = doubles.iter().map(|value| [value.to_bits(), 0, 0]).collect();
    for (name, holds) in [
        ("finite", f64::is_finite as fn(f64) -> bool),
        ("infinite", f64::is_infinite),
        ("number", |value| !value.is_nan()),
        ("notanumber", f64::is_nan),
        ("normal", |value| value.is_normal() || value == 0.0),
        ("subnormal", f64::is_subnormal),
    ] {
        let got = each32(&format!("testp.{name}.f64 %p, %u; selp.b32 %t, 1, 0, %p;"), &operands);
        for (got, &value) in got.into_iter().zip(&doubles) {
            assert_eq!(got, u32::from(holds(value)), "{name} of {value:e}");
        }
    }
}

#[test]
fn doubles_round_in_every_direction() {
    // Integers times powers of two, whose products and sums are exact in i128.
    let mut random = Random(14);
    let mut whole = |bits: u64| (random.next() as i64 >> (64 - bits)) as f64;
    let mut operands = Vec::new();
    for n in 0..600 {
        let (a, b, c) = (whole(53), whole(1 + n % 53), whole(1 + n * 7 % 53));
        operands
            .push([a, b, c * f64::from(1u32 << (n % 31)) * f64::from(1u32 << (n % 23))].map(f64::to_bits));
    }
    let cut = |exact: i128, mode: &str| {
        let near = exact as f64;
        let other = (near as i128).cmp(&exact);
        let (above, below) = (other.is_gt(), other.is_lt());
        match mode {
            "rp" if below => near.next_up(),
            "rm" if above => near.next_down(),
            "rz" if above && near > 0.0 => near.next_down(),
            "rz" if below && near < 0.0 => near.next_up(),
            _ => near,
        }
    };
    for mode in ["rz", "rm", "rp"] {
        let check = |body: &str, of: fn(i128, i128, i128) -> i128| {
            let got = each(&format!("{} mov.b64 %d, %o;", body.replace("?", mode)), &operands);
            for (got, bits) in got.into_iter().zip(&operands) {
                let [a, b, c] = bits.map(|bits| f64::from_bits(bits) as i128);
                let (got, want) = (f64::from_bits(got), cut(of(a, b, c), mode));
                assert_eq!(got, want, "{body} {mode} of {a}, {b}, {c}");
            }
        };
        check("add.?.f64 %o, %u, %w;", |a, _, c| a + c);
        check("sub.?.f64 %o, %u, %w;", |a, _, c| a - c);
        check("mul.?.f64 %o, %u, %v;", |a, b, _| a * b);
        check("fma.?.f64 %o, %u, %v, %w;", |a, b, c| a * b + c);
    }
    // The ends of the range, and the signs of zero.
    let (least, most) = (f64::from_bits(1), f64::MAX);
    let one = |body: &str, a: f64, b: f64| {
        let operands = [[a.to_bits(), b.to_bits(), 0]];
        f64::from_bits(each(&format!("{body} mov.b64 %d, %o;"), &operands)[0])
    };
    let edges = [
        ("mul.rz.f64 %o, %u, %v;", least, -0.5, -0.0),
        ("mul.rm.f64 %o, %u, %v;", least, -0.5, -least),
        ("mul.rp.f64 %o, %u, %v;", least, least, least),
        ("mul.rp.f64 %o, %u, %v;", -0.0, 2.0, -0.0),
        ("add.rz.f64 %o, %u, %v;", most, most, most),
        ("add.rp.f64 %o, %u, %v;", most, least, f64::INFINITY),
        ("add.rm.f64 %o, %u, %v;", most, least, most),
        ("add.rm.f64 %o, %u, %v;", -most, -least, f64::NEG_INFINITY),
        ("sub.rm.f64 %o, %u, %v;", 1.0, least, 1.0f64.next_down()),
        ("sub.rm.f64 %o, %u, %v;", 3.0, 3.0, -0.0),
        ("sub.rp.f64 %o, %u, %v;", 3.0, 3.0, 0.0),
        ("add.rz.f64 %o, %u, %v;", f64::INFINITY, 1.0, f64::INFINITY),
    ];
    for (body, a, b, want) in edges {
        assert_eq!(one(body, a, b).to_bits(), want.to_bits(), "{body} of {a:e}, {b:e}");
    }
}
