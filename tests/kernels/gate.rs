//! `gate_quantize` and `cap_logits` against the processor's functions, bit for bit, and those against f64.

use crate::harness::{
    Caught, Fault, Q8, Seeded, Wrong, each_is_caught, f32_to_bf16, from_bytes, launch, module, passes, same,
    to_bytes,
};
use crate::norm::cut_to_f16;
use ptx_emulator::{Kind, Launch, Memory, Module, Parameters};
use tartlet::backend::cpu::plain::{activated, capped};
use tartlet::model::shape::Activation;

/// Rows of one launch.
struct Case {
    rows: usize,
    dim: usize,
    activation: Activation,
    /// Whether gate and up are the halves of a row, and not two buffers.
    halves: bool,
    /// Which outputs are wanted.
    quantises: bool,
    rounds: bool,
    kept: bool,
    /// How `xb` is rounded.
    half: fn(f32) -> u16,
}

impl Case {
    fn of(rows: usize, dim: usize) -> Case {
        let (quantises, rounds, kept) = (true, true, true);
        Case {
            rows,
            dim,
            activation: Activation::Silu,
            halves: false,
            quantises,
            rounds,
            kept,
            half: f32_to_bf16,
        }
    }

    fn run(&self, module: &Module, seed: u64, gate: &[f32], up: &[f32]) -> Result<(), Wrong> {
        let Case { rows, dim, .. } = *self;
        let padded = dim.next_multiple_of(64);
        let mut memory = Memory::new();
        let (gate_at, up_at, stride) = if self.halves {
            let both: Vec<&[f32]> =
                gate.chunks(dim).zip(up.chunks(dim)).flat_map(|(gate, up)| [gate, up]).collect();
            let both = memory.upload("gate, up", &to_bytes(&both.concat()));
            memory.protect(both, true);
            (both, both + dim as u64 * 4, 2 * dim)
        } else {
            let both = [("gate", gate), ("up", up)].map(|(name, x)| memory.upload(name, &to_bytes(x)));
            both.into_iter().for_each(|x| memory.protect(x, true));
            (both[0], both[1], dim)
        };
        let room =
            |memory: &mut Memory, wanted, bytes, name| if wanted { memory.alloc(bytes, name) } else { 0 };
        let xq = room(&mut memory, self.quantises, rows * padded, "xq");
        let xs = room(&mut memory, self.quantises, rows * padded / 4, "xs");
        let xb = room(&mut memory, self.rounds, rows * padded * 2, "xb");
        let y = room(&mut memory, self.kept, rows * dim * 4, "y");
        let parameters = Parameters::new()
            .u64(gate_at)
            .u64(up_at)
            .u64(xq)
            .u64(xs)
            .u64(xb)
            .u64(y)
            .u32(dim as u32)
            .u32(stride as u32)
            .u32(u32::from(self.activation == Activation::GeluTanh));
        let grid = [rows as u32, padded.div_ceil(1024) as u32, 1];
        let shape = Launch { grid, block: [256, 1, 1], shared: 0, parameters: parameters.bytes() };
        launch(module, &mut memory, &shape, seed)?;

        let active = activated(gate, self.activation);
        let want: Vec<f32> = active.iter().zip(up).map(|(active, up)| active * up).collect();
        if self.kept {
            let got: Vec<u32> = from_bytes(&memory.read(y, want.len() * 4)?);
            same("y", &got, &want.iter().map(|y| y.to_bits()).collect::<Vec<u32>>())?;
        }
        if self.quantises {
            let [quants, scales] = Q8::of(&want, dim).bytes();
            same("xs", &memory.read(xs, scales.len())?, &scales)?;
            same("xq", &memory.read(xq, quants.len())?, &quants)?;
        }
        if self.rounds {
            let mut rounded = Vec::new();
            for row in want.chunks(dim) {
                rounded.extend(row.iter().map(|&y| (self.half)(y)));
                rounded.resize(rounded.len().next_multiple_of(64), 0);
            }
            same("xb", &memory.read(xb, rounded.len() * 2)?, &to_bytes(&rounded))?;
        }
        Ok(())
    }

    /// Gates as a model has them, some far out.
    fn seeded(&self, module: &Module, seed: u64) -> Result<(), Wrong> {
        let mut seeded = Seeded::new(seed);
        let count = self.rows * self.dim;
        let gate: Vec<f32> =
            (0..count).map(|_| seeded.normal() * [1.0, 1.0, 8.0, 60.0][seeded.below(4)]).collect();
        self.run(module, seed, &gate, &seeded.normals(count))
    }
}

fn cases(module: &Module) -> Result<(), Wrong> {
    for (seed, (rows, dim)) in [(1, 32), (3, 96), (2, 1536), (1, 2048 + 160)].into_iter().enumerate() {
        Case::of(rows, dim).seeded(module, seed as u64)?;
    }
    for seed in 10..14 {
        let activation = [Activation::Silu, Activation::GeluTanh][seed as usize % 2];
        Case { activation, halves: seed < 12, ..Case::of(2, 288) }.seeded(module, seed)?;
    }
    Case { kept: false, rounds: false, halves: true, ..Case::of(2, 1056) }.seeded(module, 20)?;
    Case { kept: false, quantises: false, ..Case::of(2, 160) }.seeded(module, 21)?;
    Case { rounds: false, quantises: false, ..Case::of(2, 1120) }.seeded(module, 22)
}

#[test]
fn rows_are_gated_and_quantised() {
    passes("gate_quantize", cases(&module("gate_quantize.ptx")));
    let case = Case { half: cut_to_f16, ..Case::of(2, 1120) };
    passes("gate_quantize_f16", case.seeded(&module("gate_quantize_f16.ptx"), 23));
}

/// Numbers at which the functions bend, saturate or are cut, and any others.
fn hard_numbers(seeded: &mut Seeded) -> Vec<f32> {
    let mut x = vec![0.0, -0.0, 1e-45, -1e-45, f32::MIN_POSITIVE, -f32::MIN_POSITIVE];
    for edge in [43.5, 44.0, 86.9, 87.0, 87.33, 87.34, 88.0, 88.1, 100.0, 1e10, 7e12, 1e20, 1e30] {
        x.extend([edge, -edge, f32::from_bits(f32::to_bits(edge) + 1), -edge * (1.0 - f32::EPSILON)]);
    }
    x.extend((-60..60).flat_map(|exponent| [2f32.powi(exponent), -(2f32.powi(exponent))]));
    x.extend((0..4000).map(|_| seeded.unit() * 100.0));
    x.extend((0..4000).map(|_| seeded.normal()));
    x.extend((0..4000).map(|_| {
        let bits = seeded.bits();
        f32::from_bits((47 + (bits >> 32) as u32 % 160) << 23 | bits as u32 & 0x807f_ffff)
    }));
    x.resize(x.len().next_multiple_of(32), 0.5);
    x
}

/// A row of f32 alone, so that nothing hides a bit.
#[test]
fn hard_numbers_are_the_processors() {
    let module = module("gate_quantize.ptx");
    for seed in 0..6 {
        let gate = hard_numbers(&mut Seeded::new(seed));
        let up = vec![1.0; gate.len()];
        let case = Case { quantises: false, rounds: false, ..Case::of(1, gate.len()) };
        let activation = [Activation::Silu, Activation::GeluTanh][seed as usize % 2];
        passes("gate_quantize", Case { activation, ..case }.run(&module, seed, &gate, &up));
    }
}

/// The processor's functions beside exact ones: of the value, or of what `x` itself is rounded to where they all but vanish.
#[test]
fn the_functions_are_near_exact_ones() {
    let x: Vec<f32> = (-40_000..40_000).map(|i| i as f32 * 0.000_7).collect();
    let silu = |x: f64| x / (1.0 + (-x).exp());
    let gelu = |x: f64| {
        let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
        x / 2.0 * (1.0 + inner.tanh())
    };
    let cap = |x: f64| 30.0 * (x / 30.0).tanh();
    let near = |name: &str, got: Vec<f32>, exact: &dyn Fn(f64) -> f64, floor: f64| {
        for (&x, got) in x.iter().zip(got) {
            let (x, got) = (f64::from(x), f64::from(got));
            let want = exact(x);
            // tanh is a difference from 1: absolutely good, and so is what is made of it.
            let slack = 5e-7 * want.abs() + floor * x.abs().max(1.0);
            assert!((got - want).abs() <= slack, "{name}({x}) is {got}, not {want}");
        }
    };
    near("silu", activated(&x, Activation::Silu), &silu, 0.0);
    near("gelu", activated(&x, Activation::GeluTanh), &gelu, 1.5e-7);
    near("cap", capped(&x, 30.0), &cap, 30.0 * 1.5e-7);
}

const FAULTS: &[Fault] = &[
    Fault {
        name: "the quotient is not corrected",
        file: "divide.inc",
        find: "fma.rn.f32  \\q, %off, \\inverse, %near;",
        replace: "mov.f32     \\q, %near;",
        caught: Caught::WrongResult,
    },
    Fault {
        name: "the row's end is one step late",
        file: "gate_quantize.inc",
        find: "setp.lt.u32     %kept, %place, %dim;",
        replace: "setp.le.u32     %kept, %place, %dim;",
        caught: Caught::By(Kind::OutOfBounds),
    },
    Fault {
        name: "the padding is not written",
        file: "gate_quantize.inc",
        find: "setp.lt.u32     %inside, %place, %padded;",
        replace: "setp.lt.u32     %inside, %place, %dim;",
        caught: Caught::By(Kind::UninitialisedGlobal),
    },
    Fault {
        name: "rows of gates lie side by side",
        file: "gate_quantize.inc",
        find: "mul.wide.u32    %offset, %row, %stride;",
        replace: "mul.wide.u32    %offset, %row, %dim;",
        caught: Caught::WrongResult,
    },
    Fault {
        name: "gelu is silu",
        file: "gate_quantize.inc",
        find: "    @%by_gelu bra.uni BY_GELU;\n",
        replace: "",
        caught: Caught::WrongResult,
    },
    Fault {
        name: "up is another gate",
        file: "gate_quantize.inc",
        find: "POINTER         %up, up",
        replace: "POINTER         %up, gate",
        caught: Caught::WrongResult,
    },
    Fault {
        name: "a kept row that nobody wants",
        file: "gate_quantize.inc",
        find: "setp.ne.and.u64 %kept, %y_row, 0, %kept;",
        replace: "setp.eq.or.u64  %kept, %y_row, 0, %kept;",
        caught: Caught::By(Kind::OutOfBounds),
    },
    Fault {
        name: "the power of two is one too small",
        file: "activation.inc",
        find: "add.u32     %n, %n, 127;",
        replace: "add.u32     %n, %n, 126;",
        caught: Caught::WrongResult,
    },
    Fault {
        name: "ln 2 has no low part",
        file: "activation.inc",
        find: "        fma.rn.f32  %z, %minus_n, 0fb95e8083, %z;           // and the rest, -2.1219444e-4\n",
        replace: "",
        caught: Caught::WrongResult,
    },
    Fault {
        name: "exp has a degree less",
        file: "activation.inc",
        find: "mov.f32     %p, 0f39500d01;",
        replace: "mov.f32     %p, 0f00000000;",
        caught: Caught::WrongResult,
    },
    Fault {
        name: "the last step of exp is not fused",
        file: "activation.inc",
        find: "        fma.rn.f32  %p, %p, %z, \\coefficient;\n",
        replace: "        mul.rn.f32  %p, %p, %z;\n        add.rn.f32  %p, %p, \\coefficient;\n",
        caught: Caught::WrongResult,
    },
    Fault {
        name: "a large divisor is not shrunk",
        file: "activation.inc",
        find: "setp.gt.f32 %large, %e, 0f5f800000;",
        replace: "setp.gt.f32 %large, %e, 0f7f800000;",
        caught: Caught::WrongResult,
    },
    Fault {
        name: "-0 loses its sign",
        file: "activation.inc",
        find: "copysign.f32 \\y, \\x, %e;",
        replace: "mov.f32     \\y, %e;",
        caught: Caught::WrongResult,
    },
    Fault {
        name: "gelu's cube is a square",
        file: "activation.inc",
        find: "        mul.rn.f32  %inner, %inner, \\x;\n",
        replace: "",
        caught: Caught::WrongResult,
    },
];

#[test]
fn faults_in_the_gate_are_caught() {
    let more = |module: &Module| {
        cases(module)?;
        let gate = hard_numbers(&mut Seeded::new(0));
        let case = Case { quantises: false, rounds: false, ..Case::of(1, gate.len()) };
        case.run(module, 0, &gate, &vec![1.0; gate.len()])
    };
    each_is_caught("gate_quantize.ptx", FAULTS, more);
}

fn cap(module: &Module, logits: &[f32], cap: f32, seed: u64) -> Result<(), Wrong> {
    let mut memory = Memory::new();
    let at = memory.upload("logits", &to_bytes(logits));
    let parameters = Parameters::new().u64(at).u32(logits.len() as u32).f32(cap);
    let grid = [logits.len().div_ceil(1024) as u32, 1, 1];
    let shape = Launch { grid, block: [256, 1, 1], shared: 0, parameters: parameters.bytes() };
    launch(module, &mut memory, &shape, seed)?;
    let got: Vec<f32> = from_bytes(&memory.read(at, logits.len() * 4)?);
    // A NaN has no particular bits.
    let bits = |x: &f32| if x.is_nan() { u32::MAX } else { x.to_bits() };
    let [got, want] = [got, capped(logits, cap)].map(|x| x.iter().map(bits).collect::<Vec<u32>>());
    same(&format!("logits capped at {cap}"), &got, &want)
}

fn cap_cases(module: &Module) -> Result<(), Wrong> {
    for (seed, most) in [30.0, 50.0, 0.7, 2f32.powi(-60), 2f32.powi(60)].into_iter().enumerate() {
        let mut logits = hard_numbers(&mut Seeded::new(seed as u64));
        logits.extend([f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, -f32::MAX]);
        logits.extend(logits.clone().iter().map(|x| x * most));
        logits.truncate(logits.len() - seed % 3);
        cap(module, &logits, most, seed as u64)?;
    }
    cap(module, &[7.5], 30.0, 9)
}

#[test]
fn logits_are_capped() {
    passes("cap_logits", cap_cases(&module("cap_logits.ptx")));
}

#[test]
fn faults_in_the_cap_are_caught() {
    let fault = |name, file, find, replace, caught| Fault { name, file, find, replace, caught };
    let own = "cap_logits.ptx";
    let faults = [
        fault(
            "what follows the logits is capped",
            own,
            "    @%inside\\i st.global.f32",
            "    st.global.f32",
            Caught::By(Kind::OutOfBounds),
        ),
        fault(
            "NaN becomes a number",
            own,
            "    selp.f32        %y, %y, %x\\i, %number;\n",
            "",
            Caught::WrongResult,
        ),
        fault(
            "infinity is divided",
            own,
            "    min.f32         %y, %x\\i, %most;\n",
            "    mov.f32         %y, %x\\i;\n",
            Caught::WrongResult,
        ),
        fault(
            "the cap is forgotten at the end",
            own,
            "    mul.rn.f32      %y, %y, %cap;\n",
            "",
            Caught::WrongResult,
        ),
        fault(
            "a number of ones alone has a power of two as its inverse",
            "divide.inc",
            "        @%ones or.b32 %bits, %bits, 1;\n",
            "",
            Caught::WrongResult,
        ),
        fault(
            "tanh is of half the number",
            "activation.inc",
            "        add.rn.f32  %e, \\x, \\x;\n",
            "        mov.f32     %e, \\x;\n",
            Caught::WrongResult,
        ),
    ];
    each_is_caught("cap_logits.ptx", &faults, cap_cases);
}
