//! Arithmetic of every width and format against Rust's.

use crate::harness::{Random, each, each_float, each32};

/// A binary operation on low words.
fn words(opcode: &str, of: impl Fn(u32, u32, u32) -> u32) {
    let operands = Random(opcode.len() as u64).triples(300);
    let sources =
        if opcode.starts_with("mad") || opcode.starts_with("sad") { "%x, %y, %z" } else { "%x, %y" };
    let got = each32(&format!("{opcode} %t, {sources};"), &operands);
    for (got, &[a, b, c]) in got.into_iter().zip(&operands) {
        let want = of(a as u32, b as u32, c as u32);
        assert_eq!(got, want, "{opcode} of {:#x}, {:#x}, {:#x}", a as u32, b as u32, c as u32);
    }
}

fn longs(opcode: &str, of: impl Fn(u64, u64, u64) -> u64) {
    let operands = Random(opcode.len() as u64).triples(300);
    let sources = if opcode.starts_with("mad") { "%a, %b, %c" } else { "%a, %b" };
    let got = each(&format!("{opcode} %d, {sources};"), &operands);
    for (got, &[a, b, c]) in got.into_iter().zip(&operands) {
        assert_eq!(got, of(a, b, c), "{opcode} of {a:#x}, {b:#x}, {c:#x}");
    }
}

#[test]
fn integers_wrap_as_in_rust() {
    words("add.u32", |a, b, _| a.wrapping_add(b));
    words("sub.s32", |a, b, _| a.wrapping_sub(b));
    words("add.sat.s32", |a, b, _| (a as i32).saturating_add(b as i32) as u32);
    words("sub.sat.s32", |a, b, _| (a as i32).saturating_sub(b as i32) as u32);
    words("mul.lo.u32", |a, b, _| a.wrapping_mul(b));
    words("mul.hi.u32", |a, b, _| ((u64::from(a) * u64::from(b)) >> 32) as u32);
    words("mul.hi.s32", |a, b, _| ((i64::from(a as i32) * i64::from(b as i32)) >> 32) as u32);
    words("mad.lo.s32", |a, b, c| a.wrapping_mul(b).wrapping_add(c));
    words("mad.hi.u32", |a, b, c| (((u64::from(a) * u64::from(b)) >> 32) as u32).wrapping_add(c));
    words("min.s32", |a, b, _| (a as i32).min(b as i32) as u32);
    words("max.u32", |a, b, _| a.max(b));
    words("div.u32", |a, b, _| a.checked_div(b).unwrap_or(u32::MAX));
    words("rem.u32", |a, b, _| a.checked_rem(b).unwrap_or(a));
    words("sad.u32", |a, b, c| c.wrapping_add(a.abs_diff(b)));
    longs("add.s64", |a, b, _| a.wrapping_add(b));
    longs("sub.u64", |a, b, _| a.wrapping_sub(b));
    longs("mul.lo.u64", |a, b, _| a.wrapping_mul(b));
    longs("mul.hi.u64", |a, b, _| ((u128::from(a) * u128::from(b)) >> 64) as u64);
    longs("mul.hi.s64", |a, b, _| ((i128::from(a as i64) * i128::from(b as i64)) >> 64) as u64);
    longs("mad.lo.u64", |a, b, c| a.wrapping_mul(b).wrapping_add(c));
    longs("div.s64", |a, b, _| if b == 0 { u64::MAX } else { (a as i64).wrapping_div(b as i64) as u64 });
    longs("rem.s64", |a, b, _| if b == 0 { a } else { (a as i64).wrapping_rem(b as i64) as u64 });
    longs("min.u64", |a, b, _| a.min(b));
    longs("max.s64", |a, b, _| (a as i64).max(b as i64) as u64);
    longs("xor.b64", |a, b, _| a ^ b);
}

#[test]
fn wide_products_carries_and_shifts() {
    let operands = Random(1).triples(300);
    let wide = each("mad.wide.s32 %d, %x, %y, %c;", &operands);
    let unsigned = each("mul.wide.u32 %d, %x, %y;", &operands);
    // A 128-bit sum and difference, the high halves.
    let sum = each("add.cc.u64 %e, %a, %b; addc.u64 %d, %c, %a;", &operands);
    let difference = each("sub.cc.u32 %t, %x, %y; subc.u32 %s, %z, %x; mov.b64 %d, {%t, %s};", &operands);
    let product = each(
        "mul.lo.u32 %t, %x, %y; mad.lo.cc.u32 %t, %x, %y, %z; madc.hi.u32 %s, %x, %y, 0; mov.b64 %d, {%t, %s};",
        &operands,
    );
    for (n, &[a, b, c]) in operands.iter().enumerate() {
        let [x, y, z] = [a as u32, b as u32, c as u32];
        assert_eq!(wide[n], (i64::from(x as i32) * i64::from(y as i32)).wrapping_add(c as i64) as u64);
        assert_eq!(unsigned[n], u64::from(x) * u64::from(y));
        assert_eq!(sum[n], c.wrapping_add(a).wrapping_add(u64::from(a.checked_add(b).is_none())));
        let high = z.wrapping_sub(x).wrapping_sub(u32::from(x < y));
        assert_eq!(difference[n], u64::from(high) << 32 | u64::from(x.wrapping_sub(y)));
        assert_eq!(product[n], (u64::from(x) * u64::from(y)).wrapping_add(u64::from(z)));
    }
    words("shl.b32", |a, b, _| a.checked_shl(b).unwrap_or(0));
    words("shr.u32", |a, b, _| a.checked_shr(b).unwrap_or(0));
    words("shr.s32", |a, b, _| ((a as i32) >> b.min(31)) as u32);
    let shifted = each("shl.b64 %d, %a, %y;", &operands);
    let right = each("shr.s64 %d, %a, %y;", &operands);
    for (n, &[a, b, _]) in operands.iter().enumerate() {
        assert_eq!(shifted[n], a.checked_shl(b as u32).unwrap_or(0));
        assert_eq!(right[n], ((a as i64) >> (b as u32).min(63)) as u64);
    }
}

#[test]
fn floats_round_flush_and_order_as_ptx_says() {
    let operands = Random(2).float_triples(600);
    let check = |body: &str, of: &dyn Fn(f32, f32, f32) -> f32| {
        let got = each_float(body, &operands);
        for (got, &bits) in got.into_iter().zip(&operands) {
            let [a, b, c] = bits.map(|bits| f32::from_bits(bits as u32));
            let want = of(a, b, c);
            let same = got.to_bits() == want.to_bits() || want.is_nan() && got.to_bits() == 0x7fff_ffff;
            assert!(same, "{body} of {a:?}, {b:?}, {c:?}: {got:?} where {want:?} is right");
        }
    };
    let flush = |value: f32| if value.is_subnormal() { 0.0f32.copysign(value) } else { value };
    check("add.rn.f32 %l, %f, %g;", &|a, b, _| a + b);
    check("sub.f32 %l, %f, %g;", &|a, b, _| a - b);
    check("mul.rn.f32 %l, %f, %g;", &|a, b, _| a * b);
    check("mul.ftz.f32 %l, %f, %g;", &|a, b, _| flush(flush(a) * flush(b)));
    check("fma.rn.f32 %l, %f, %g, %h;", &|a, b, c| a.mul_add(b, c));
    check("div.rn.f32 %l, %f, %g;", &|a, b, _| a / b);
    check("sqrt.rn.f32 %l, %f;", &|a, _, _| a.sqrt());
    check("rcp.rn.f32 %l, %f;", &|a, _, _| 1.0 / a);
    check("neg.f32 %l, %f;", &|a, _, _| -a);
    check("abs.f32 %l, %f;", &|a, _, _| a.abs());
    check("add.sat.f32 %l, %f, %g;", &|a, b, _| {
        if (a + b).is_nan() { 0.0 } else { (a + b).clamp(0.0, 1.0) + 0.0 }
    });
    let least = |a: f32, b: f32| match (a.is_nan(), b.is_nan()) {
        (true, _) => b,
        (_, true) => a,
        _ if a == b => {
            if a.is_sign_negative() {
                a
            } else {
                b
            }
        }
        _ => a.min(b),
    };
    check("min.f32 %l, %f, %g;", &|a, b, _| least(a, b));
    check("max.f32 %l, %f, %g;", &|a, b, _| -least(-a, -b));
    check("max.NaN.f32 %l, %f, %g;", &|a, b, _| {
        if a.is_nan() || b.is_nan() { f32::NAN } else { -least(-a, -b) }
    });
    check("add.rz.f32 %l, %f, %g;", &|a, b, _| toward_zero(a, b));
}

/// The sum by integers of 2^-149 where it fits, else by f64, which is exact enough there.
fn toward_zero(a: f32, b: f32) -> f32 {
    let near = a + b;
    let exact = f64::from(a) + f64::from(b);
    if near.is_nan() || exact.is_infinite() {
        return near;
    }
    if near.is_infinite() {
        return f32::MAX.copysign(near);
    }
    // What rounding to nearest lost, exactly.
    let back = near - a;
    let rest = (a - (near - back)) + (b - back);
    let beyond = if rest == 0.0 {
        (f64::from(near) - exact) * exact.signum() > 0.0
    } else {
        (rest > 0.0) != (near > 0.0)
    };
    if beyond && near != 0.0 { f32::from_bits(near.to_bits() - 1) } else { near }
}
