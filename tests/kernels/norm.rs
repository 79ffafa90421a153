//! `norm_quantize` against the same formula in the order that its head names, then the processor's own quantiser, bit for
//! bit; against the processor's own norm; against f64.

use crate::harness::{
    Caught, Fault, Plain, Q8, Seeded, Wrong, each_is_caught, f32_to_bf16, f32_to_f16, from_bytes, launch,
    module, passes, same, to_bytes,
};
use crate::sums::norm;
use ptx_emulator::{Kind, Launch, Memory, Module, Parameters};
use tartlet::backend::cpu::plain;

pub const EPS: f32 = 1e-5;

/// Beside the processor's own norm, which adds the squares in another order: scales to some roundings, quants to one step.
fn near_the_processor(want: &Q8, quants: &[u8], scales: &[u8]) -> Result<(), Wrong> {
    for (at, (&got, &want)) in from_bytes::<i8>(quants).iter().zip(&want.quants).enumerate() {
        if got.abs_diff(want) > 1 {
            return Err(Wrong::Result(format!("xq[{at}] is {got}, where the processor has {want}")));
        }
    }
    for (at, (got, &(want, _))) in scales.chunks(8).zip(&want.scales).enumerate() {
        let got = f32::get(&got[..4]);
        let near = (got - want).abs() <= want * 4.0 * f32::EPSILON; // never with a NaN
        if !near {
            return Err(Wrong::Result(format!("xs[{at}] is {got}, where the processor has {want}")));
        }
    }
    Ok(())
}

/// Rows of one launch.
struct Case {
    tokens: usize,
    dim: usize,
    norms: bool,
    /// Which of the two outputs are wanted.
    quantises: bool,
    rounds: bool,
    /// How `xb` is rounded.
    half: fn(f32) -> u16,
}

impl Case {
    fn of(tokens: usize, dim: usize) -> Case {
        Case { tokens, dim, norms: true, quantises: true, rounds: true, half: f32_to_bf16 }
    }

    fn run(&self, module: &Module, seed: u64, x: &[f32], gain: &[f32]) -> Result<(), Wrong> {
        let Case { tokens, dim, .. } = *self;
        let padded = dim.next_multiple_of(64);
        let mut memory = Memory::new();
        let from = memory.upload("x", &to_bytes(x));
        memory.protect(from, true);
        let gains = if self.norms { memory.upload("gain", &to_bytes(gain)) } else { 0 };
        let room =
            |memory: &mut Memory, wanted, bytes, name| if wanted { memory.alloc(bytes, name) } else { 0 };
        let xq = room(&mut memory, self.quantises, tokens * padded, "xq");
        let xs = room(&mut memory, self.quantises, tokens * padded / 4, "xs");
        let xb = room(&mut memory, self.rounds, tokens * padded * 2, "xb");
        let parameters =
            Parameters::new().u64(from).u64(gains).u64(xq).u64(xs).u64(xb).u32(dim as u32).f32(EPS);
        let grid = [tokens as u32, dim.div_ceil(8192) as u32, 1];
        launch(
            module,
            &mut memory,
            &Launch { grid, block: [256, 1, 1], shared: 0, parameters: parameters.bytes() },
            seed,
        )?;

        if self.norms && self.quantises {
            let normed: Vec<f32> = x.chunks(dim).flat_map(|row| plain::norm(row, gain, EPS)).collect();
            near_the_processor(
                &Q8::of(&normed, dim),
                &memory.read(xq, tokens * padded)?,
                &memory.read(xs, tokens * padded / 4)?,
            )?;
        }
        let want: Vec<f32> = if self.norms {
            let row = |row: &[f32]| {
                let norm = norm(row, EPS);
                row.iter().zip(gain).map(|(x, gain)| x * norm * gain).collect::<Vec<f32>>()
            };
            x.chunks(dim).flat_map(row).collect()
        } else {
            x.to_vec()
        };
        if self.quantises {
            let [quants, scales] = Q8::of(&want, dim).bytes();
            same("xs", &memory.read(xs, scales.len())?, &scales)?;
            same("xq", &memory.read(xq, quants.len())?, &quants)?;
        }
        if self.rounds {
            let mut rounded = Vec::new();
            for row in want.chunks(dim) {
                rounded.extend(row.iter().map(|&x| (self.half)(x)));
                rounded.resize(rounded.len().next_multiple_of(64), 0);
            }
            let rounded = to_bytes(&rounded);
            same("xb", &memory.read(xb, rounded.len())?, &rounded)?;
        }
        Ok(())
    }

    /// Runs the case on data that follow from `seed`.
    fn seeded(&self, module: &Module, seed: u64) -> Result<(), Wrong> {
        let mut seeded = Seeded::new(seed);
        let x = seeded.normals(self.tokens * self.dim);
        let gain: Vec<f32> = (0..self.dim).map(|_| 1.0 + seeded.unit() / 2.0).collect();
        self.run(module, seed, &x, &gain)
    }
}

/// Every shape that differs to the kernel: below a warp, below the block, an odd number of blocks, more than one turn, all
/// turns; each output alone. A seed is also another order of warps and other errors of the approximations: the same bits.
fn cases(module: &Module) -> Result<(), Wrong> {
    for (seed, (tokens, dim)) in
        [(1, 32), (3, 96), (1, 192), (2, 576), (1, 992), (2, 1056), (1, 2048), (1, 8192)]
            .into_iter()
            .enumerate()
    {
        Case::of(tokens, dim).seeded(module, seed as u64)?;
    }
    for seed in 10..18 {
        Case::of(2, 576).seeded(module, seed)?;
    }
    Case { norms: false, ..Case::of(3, 160) }.seeded(module, 20)?;
    Case { norms: false, rounds: false, ..Case::of(1, 8192 + 1504) }.seeded(module, 21)?;
    Case { quantises: false, ..Case::of(2, 288) }.seeded(module, 22)?;
    Ok(())
}

#[test]
fn rows_are_normed_and_quantised() {
    let module = module("norm_quantize.ptx");
    passes("norm_quantize", cases(&module));
}

/// What is larger than the largest half becomes it.
pub fn cut_to_f16(x: f32) -> u16 {
    f32_to_f16(x.clamp(-65504.0, 65504.0))
}

fn f16_cases(module: &Module) -> Result<(), Wrong> {
    Case { half: cut_to_f16, ..Case::of(2, 576) }.seeded(module, 30)?;
    Case { half: cut_to_f16, norms: false, ..Case::of(2, 160) }.seeded(module, 31)?;
    let mut x: Vec<f32> = (0..64).map(|i| 2f32.powi(i - 30) * if i % 3 == 0 { 1.0 } else { -1.37 }).collect();
    x[7] = 65519.9;
    let case = Case { half: cut_to_f16, norms: false, quantises: false, ..Case::of(1, 64) };
    case.run(module, 32, &x, &[])
}

#[test]
fn rows_are_made_halves() {
    passes("norm_quantize_f16", f16_cases(&module("norm_quantize_f16.ptx")));
}

#[test]
fn faults_in_halves_are_caught() {
    let fault = |name, find, replace| Fault {
        name,
        file: "quantise.inc",
        find,
        replace,
        caught: Caught::WrongResult,
    };
    let faults = [
        fault(
            "a large number is infinite",
            "min.f32     %b, \\second, 0f477fe000;",
            "mov.f32     %b, \\second;",
        ),
        fault("a large negative number is infinite", "        max.f32     %a, %a, 0fc77fe000;\n", ""),
        fault("the halves change places", "cvt.rn.f16x2.f32 \\to, %b, %a;", "cvt.rn.f16x2.f32 \\to, %a, %b;"),
        fault("halves are cut off", "cvt.rn.f16x2.f32", "cvt.rz.f16x2.f32"),
    ];
    each_is_caught("norm_quantize_f16.ptx", &faults, f16_cases);
}

/// What rounding and its guards are about: ties, zeros, blocks below the smallest scale and near the largest numbers.
#[test]
fn hard_numbers_quantise_as_on_the_processor() {
    let module = module("norm_quantize.ptx");
    let mut seeded = Seeded::new(3);
    let mut x: Vec<f32> = Vec::new();
    x.extend((0..32).map(|i| if i == 31 { 127.0 } else { i as f32 + 0.5 })); // ties, largest 127
    x.extend([0.0; 32]);
    x.extend((0..32).map(|i| if i == 7 { 1e-30 } else { 0.0 })); // zeros by the rule
    x.extend((0..32).map(|i| if i == 7 { f32::from_bits(1e-30f32.to_bits() + 1) } else { 1e-38 }));
    x.extend((0..32).map(|_| seeded.unit() * 1e-29));
    x.extend((0..32).map(|_| seeded.unit() * 1e37));
    x.extend((0..32).map(|_| -seeded.unit() * f32::from_bits(1)));
    x.extend((0..32).map(|i| if i % 2 == 0 { -1.0 } else { 1.0 }));
    // Every way for a mantissa to be near a rounding's edge.
    x.extend((0..32 * 64).map(|_| f32::from_bits(0x3f80_0000 | seeded.bits() as u32 & 0x807f_ffff)));
    let case = Case { norms: false, rounds: false, ..Case::of(1, x.len()) };
    for seed in 0..4 {
        passes("norm_quantize", case.run(&module, seed, &x, &[]));
    }
}

/// The order of the sums is the kernel's own; the number is that of exact arithmetic.
#[test]
fn the_norm_is_that_of_exact_arithmetic() {
    let mut seeded = Seeded::new(11);
    for dim in [32, 576, 8192] {
        let x = seeded.normals(dim);
        let squares: f64 = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
        let exact = 1.0 / (squares / dim as f64 + f64::from(EPS)).sqrt();
        assert!((f64::from(norm(&x, EPS)) / exact - 1.0).abs() < 4e-7, "{dim} values");
    }
}

/// One row's numbers, finite or not, leave the others alone.
#[test]
fn rows_do_not_meet() {
    let module = module("norm_quantize.ptx");
    let x = Seeded::new(5).normals(3 * 192);
    let row = |x: Vec<f32>| {
        let mut memory = Memory::new();
        let from = memory.upload("x", &to_bytes(&x));
        let gain = memory.upload("gain", &to_bytes(&[1.0f32; 192]));
        let (xq, xs) = (memory.alloc(3 * 192, "xq"), memory.alloc(3 * 48, "xs"));
        let parameters = Parameters::new().u64(from).u64(gain).u64(xq).u64(xs).u64(0).u32(192).f32(EPS);
        let shape = Launch { grid: [3, 1, 1], block: [256, 1, 1], shared: 0, parameters: parameters.bytes() };
        launch(&module, &mut memory, &shape, 0).unwrap_or_else(|fault| panic!("{fault}"));
        [memory.read(xq + 192, 192), memory.read(xs + 48, 48)].map(|read| read.expect("it was written"))
    };
    let mut wild = x.clone();
    wild[..192].fill(f32::NAN);
    wild[400] = f32::INFINITY;
    assert!(row(x) == row(wild));
}

const FAULTS: &[Fault] = &[
    Fault {
        name: "no barrier between the warps' sums",
        file: "norm.inc",
        find: "        bar.sync    0;\n",
        replace: "",
        caught: Caught::By(Kind::UninitialisedShared),
    },
    Fault {
        name: "every lane writes the warp's sum",
        file: "norm.inc",
        find: "@%first st.shared.f32",
        replace: "st.shared.f32",
        caught: Caught::By(Kind::SharedRace),
    },
    Fault {
        name: "the last shuffle of the sum goes too far",
        file: "norm.inc",
        find: "distance, 16, 8, 4, 2, 1",
        replace: "distance, 16, 8, 4, 2, 2",
        caught: Caught::WrongResult,
    },
    Fault {
        name: "a block's shuffles leave the block",
        file: "quantise.inc",
        find: "distance, 4, 2, 1",
        replace: "distance, 8, 2, 1",
        caught: Caught::WrongResult,
    },
    Fault {
        name: "seven warps of eight are summed",
        file: "norm.inc",
        find: ".irp i, 1, 2, 3, 4, 5, 6, 7\n",
        replace: ".irp i, 1, 2, 3, 4, 5, 6\n",
        caught: Caught::WrongResult,
    },
    Fault {
        name: "the row's end is one step late",
        file: "norm_quantize.inc",
        find: "    setp.lt.u32     %inside, %at, %dim;",
        replace: "    setp.le.u32     %inside, %at, %dim;",
        caught: Caught::By(Kind::OutOfBounds),
    },
    Fault {
        name: "the gain is read past its end",
        file: "norm_quantize.inc",
        find: "setp.lt.and.u32 %inside, %at, %dim, %norms;",
        replace: "setp.le.and.u32 %inside, %at, %dim, %norms;",
        caught: Caught::By(Kind::OutOfBounds),
    },
    Fault {
        name: "stores go past the padding",
        file: "norm_quantize.inc",
        find: "setp.lt.u32     %inside, %at, %padded;",
        replace: "setp.le.u32     %inside, %at, %padded;",
        caught: Caught::By(Kind::OutOfBounds),
    },
    Fault {
        name: "the padding is not written",
        file: "norm_quantize.inc",
        find: "setp.lt.u32     %inside, %at, %padded;",
        replace: "setp.lt.u32     %inside, %at, %dim;",
        caught: Caught::By(Kind::UninitialisedGlobal),
    },
    Fault {
        name: "rows are padded to 32",
        file: "norm_quantize.inc",
        find: "0xffffffc0",
        replace: "0xffffffe0",
        caught: Caught::By(Kind::OutOfBounds),
    },
    Fault {
        name: "the scale is stored by the second lane",
        file: "quantise.inc",
        find: "setp.eq.u32     %heads, %other, 0;",
        replace: "setp.eq.u32     %heads, %other, 1;",
        caught: Caught::By(Kind::Misaligned),
    },
    Fault {
        name: "scales lie twice as dense",
        file: "quantise.inc",
        find: "shr.u64         %in_scales, %in_rows, 2;",
        replace: "shr.u64         %in_scales, %in_rows, 3;",
        caught: Caught::By(Kind::Misaligned),
    },
    Fault {
        name: "pairs of quants change places",
        file: "quantise.inc",
        find: "0x5410",
        replace: "0x1054",
        caught: Caught::WrongResult,
    },
    Fault {
        name: "quants are cut off, not rounded",
        file: "quantise.inc",
        find: "cvt.rni.s32.f32",
        replace: "cvt.rzi.s32.f32",
        caught: Caught::WrongResult,
    },
    Fault {
        name: "a block of zeros has a scale",
        file: "quantise.inc",
        find: "    selp.f32        %inverse, %inverse, 0f00000000, %some;\n",
        replace: "",
        caught: Caught::WrongResult,
    },
    Fault {
        name: "a scale is left uncorrected",
        file: "divide.inc",
        find: "fma.rn.f32  \\q, %off, 0f3c010204, %near;",
        replace: "mov.f32     \\q, %near;",
        caught: Caught::WrongResult,
    },
    Fault {
        name: "the gain of the turn before",
        file: "norm_quantize.inc",
        find: "[%gains + \\(\\i * TURN * 4)]",
        replace: "[%gains + \\(\\i * TURN * 2)]",
        caught: Caught::WrongResult,
    },
];

#[test]
fn faults_in_the_norm_are_caught() {
    each_is_caught("norm_quantize.ptx", FAULTS, cases);
}
