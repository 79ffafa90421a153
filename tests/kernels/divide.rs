//! `divide.inc` against the processor's division and root, which round as IEEE 754 says; with approximations of other errors
//! for each seed.

use crate::expand;
use crate::harness::{Seeded, folder, from_bytes, launch, passes, same, to_bytes};
use ptx_emulator::{Launch, Memory, Module, Parameters};

/// out[i] = {a[i] / b[i], a[i] / 127, sqrt(a[i]), 1 / b[i], a[i] / b[i], 2 / b[i]}, the last two by QUOTIENT
const KERNEL: &str = r#"
.version 7.4
.target sm_80
.address_size 64
.include "divide.inc"
.visible .entry divide(.param .u64 a, .param .u64 b, .param .u64 out)
{
    .reg .b32 %i, %size;
    .reg .b64 %a, %b, %out;
    .reg .f32 %x, %y, %q, %inverse, %two;
    mov.u32 %i, %ctaid.x;
    mov.u32 %size, %tid.x;
    mad.lo.u32 %i, %i, 256, %size;
    ld.param.u64 %a, [a];
    mad.wide.u32 %a, %i, 4, %a;
    ld.global.f32 %x, [%a];
    ld.param.u64 %b, [b];
    mad.wide.u32 %b, %i, 4, %b;
    ld.global.f32 %y, [%b];
    ld.param.u64 %out, [out];
    mad.wide.u32 %out, %i, 24, %out;
    DIVIDE %q, %x, %y
    st.global.f32 [%out], %q;
    DIVIDE_BY_127 %q, %x
    st.global.f32 [%out + 4], %q;
    ROOT %q, %x
    st.global.f32 [%out + 8], %q;
    INVERT %q, %y
    st.global.f32 [%out + 12], %q;
    mov.f32 %inverse, %q;
    QUOTIENT %q, %x, %y, %inverse
    st.global.f32 [%out + 16], %q;
    mov.f32 %two, 0f40000000;
    QUOTIENT %q, %two, %y, %inverse
    st.global.f32 [%out + 20], %q;
    ret;
}
"#;

#[test]
fn quotients_and_roots_are_correctly_rounded() {
    let read = |name: &str| match name {
        "divide.ptx" => Ok(KERNEL.to_string()),
        _ => std::fs::read_to_string(folder().join(name)).map_err(|error| error.to_string()),
    };
    let text = expand::expand_with("divide.ptx", &read).unwrap_or_else(|error| panic!("{error}"));
    let module = Module::parse(&text).unwrap_or_else(|error| panic!("{error}"));
    for seed in 0..12 {
        let mut seeded = Seeded::new(seed);
        // Any mantissa; exponents from 2^-60 to 2^60, so that no quotient is subnormal.
        let mut numbers = || -> Vec<f32> {
            let exponent = |bits: u64| (67 + (bits >> 32) as u32 % 120) << 23;
            let of = |bits: u64| f32::from_bits(exponent(bits) | bits as u32 & 0x007f_ffff);
            (0..1 << 14).map(|_| of(seeded.bits())).collect()
        };
        let (a, mut b) = (numbers(), numbers());
        // The mantissa whose inverse is the hardest.
        b.iter_mut().step_by(64).for_each(|b| *b = f32::from_bits(b.to_bits() | 0x007f_ffff));
        let mut memory = Memory::new();
        let parameters =
            Parameters::new().u64(memory.upload("a", &to_bytes(&a))).u64(memory.upload("b", &to_bytes(&b)));
        let out = memory.alloc(a.len() * 24, "out");
        let parameters = parameters.u64(out);
        let shape = Launch {
            grid: [a.len() as u32 / 256, 1, 1],
            block: [256, 1, 1],
            shared: 0,
            parameters: parameters.bytes(),
        };
        launch(&module, &mut memory, &shape, seed).unwrap_or_else(|fault| panic!("{fault}"));
        let got: Vec<f32> = from_bytes(&memory.read(out, a.len() * 24).expect("it was written"));
        let want: Vec<f32> = a
            .iter()
            .zip(&b)
            .flat_map(|(a, b)| [a / b, a / 127.0, a.sqrt(), 1.0 / b, a / b, 2.0 / b])
            .collect();
        passes(&format!("seed {seed}"), same("quotients and roots", &got, &want));
    }
}
