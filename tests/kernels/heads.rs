//! `rotate_append` against the formulas in the order of its head, bit for bit; the norm beside the processor's.

use crate::harness::{
    Caught, Fault, Seeded, Wrong, each_is_caught, f32_to_f16, from_bytes, launch, module, passes, same,
    to_bytes,
};
use ptx_emulator::{Kind, Launch, Memory, Module, Parameters};
use tartlet::backend::cpu::plain;

const EPS: f32 = 1e-6;
const PAGES: usize = 5;

#[derive(Clone, Copy)]
struct Case {
    rows: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    dims: usize,
    /// Pairs are (i, i + dims / 2).
    halves: bool,
    biased: bool,
    normed: bool,
    /// Q, K and V of a row lie side by side in one buffer.
    together: bool,
    /// The queries go where their products are.
    in_place: bool,
}

/// As SmolLM2 has it.
const PLAIN: Case = Case {
    rows: 3,
    heads: 9,
    kv_heads: 3,
    head_dim: 64,
    dims: 64,
    halves: false,
    biased: false,
    normed: false,
    together: false,
    in_place: false,
};

/// The values of a row's Q, K and V, of which each may have a bias and a gain.
struct Given {
    products: Vec<f32>, // [row][head of any][D]
    biases: Vec<f32>,   // [head of any][D]
    gains: [Vec<f32>; 2],
    turns: Vec<f32>, // [row][pair]{cos, sin}
    slots: Vec<u32>,
    before: [Vec<u16>; 2],
}

impl Case {
    fn all_heads(&self) -> usize {
        self.heads + 2 * self.kv_heads
    }

    fn given(&self, seed: u64) -> Given {
        let seeded = &mut Seeded::new(seed);
        let width = self.all_heads() * self.head_dim;
        let mut slots: Vec<u32> = (0..PAGES as u32 * 16).collect();
        (0..self.rows).for_each(|row| slots.swap(row, row + seeded.below(PAGES * 16 - row)));
        slots.truncate(self.rows);
        let mut turns = Vec::new();
        for _ in 0..self.rows {
            let position = [seeded.below(100), seeded.bits() as u32 as usize][seeded.below(2)];
            for pair in 0..self.dims / 2 {
                let angle = position as f64 * 1e4f64.powf(-2.0 * pair as f64 / self.dims as f64);
                turns.extend([angle.cos() as f32, angle.sin() as f32]);
            }
        }
        let mut products = seeded.normals(self.rows * width);
        // What no half can hold is the largest half: in the last row's last value.
        let wild = self.head_dim.min(3);
        let first = products.len() - wild;
        products[first..].copy_from_slice(&[-7e4, 1e6, f32::NAN][..wild]);
        let kept = PAGES * self.kv_heads * 16 * self.head_dim;
        Given {
            products,
            biases: seeded.normals(width),
            gains: [(); 2].map(|()| (0..self.head_dim).map(|_| 1.0 + seeded.unit() / 2.0).collect()),
            turns,
            slots,
            before: [(); 2].map(|()| (0..kept).map(|_| seeded.bits() as u16).collect()),
        }
    }

    /// Which two values of a head are pair `pair`.
    fn pair(&self, pair: usize) -> [usize; 2] {
        if self.halves && pair < self.dims / 2 {
            [pair, pair + self.dims / 2]
        } else {
            [2 * pair, 2 * pair + 1]
        }
    }

    /// Multiplies by what the norm is, summed as the kernel sums, and by the gain.
    fn norm(&self, x: &mut [f32], gain: &[f32]) {
        let mut lanes = [0.0f32; 32];
        for pair in 0..self.head_dim / 2 {
            for at in self.pair(pair) {
                lanes[pair % 32] = x[at].mul_add(x[at], lanes[pair % 32]);
            }
        }
        for distance in [16, 8, 4, 2, 1] {
            lanes = std::array::from_fn(|lane| lanes[lane] + lanes[lane ^ distance]);
        }
        let norm = 1.0 / (lanes[0] / self.head_dim as f32 + EPS).sqrt();
        let processors = plain::norm(x, gain, EPS);
        for ((x, gain), processors) in x.iter_mut().zip(gain).zip(processors) {
            *x = *x * norm * gain;
            assert!((*x - processors).abs() <= 4.0 * f32::EPSILON * x.abs(), "{x}, not {processors}");
        }
    }

    /// Queries, keys and values as they should come out.
    fn want(&self, given: &Given) -> (Vec<f32>, [Vec<u16>; 2]) {
        let Case { heads, kv_heads, head_dim, .. } = *self;
        let (mut queries, mut kept) = (Vec::new(), given.before.clone());
        let half = |x: f32| if x.is_nan() { 0x7bff } else { f32_to_f16(x.clamp(-65504.0, 65504.0)) };
        for (number, x) in given.products.chunks(head_dim).enumerate() {
            let (row, head) = (number / self.all_heads(), number % self.all_heads());
            let mut x = x.to_vec();
            if self.biased {
                x.iter_mut().zip(&given.biases[head * head_dim..]).for_each(|(x, bias)| *x += bias);
            }
            if head < heads + kv_heads {
                if self.normed {
                    self.norm(&mut x, &given.gains[usize::from(head >= heads)]);
                }
                for pair in 0..self.dims / 2 {
                    let [first, second] = self.pair(pair);
                    let turn = &given.turns[(row * self.dims / 2 + pair) * 2..];
                    let (a, b, cos, sin) = (x[first], x[second], turn[0], turn[1]);
                    (x[first], x[second]) = (a * cos - b * sin, a * sin + b * cos);
                }
            }
            if head < heads {
                queries.extend(x);
                continue;
            }
            let (of, head) = ((head - heads) / kv_heads, (head - heads) % kv_heads);
            let slot = given.slots[row] as usize;
            let at = ((slot / 16 * kv_heads + head) * 16 + slot % 16) * head_dim;
            kept[of][at..][..head_dim].iter_mut().zip(x).for_each(|(kept, x)| *kept = half(x));
        }
        (queries, kept)
    }

    fn run(&self, module: &Module, seed: u64) -> Result<(), Wrong> {
        let Case { rows, heads, kv_heads, head_dim, .. } = *self;
        let given = self.given(seed);
        let (q_width, kv_width) = (heads * head_dim, kv_heads * head_dim);
        let width = q_width + 2 * kv_width;
        let mut memory = Memory::new();
        let cut = |numbers: &[f32], from: usize, len: usize| -> Vec<f32> {
            numbers.chunks(width).flat_map(|row| &row[from..from + len]).copied().collect()
        };
        let parts = [(0, q_width), (q_width, kv_width), (q_width + kv_width, kv_width)];
        let (products, strides) = if self.together {
            let all = memory.upload("qkv", &to_bytes(&given.products));
            (parts.map(|(from, _)| all + from as u64 * 4), [width; 3])
        } else {
            let part = parts
                .map(|(from, len)| memory.upload("q, k, v", &to_bytes(&cut(&given.products, from, len))));
            (part, [q_width, kv_width, kv_width])
        };
        let mut constant = |wanted: bool, name, numbers: &[f32]| {
            let at = if wanted { memory.upload(name, &to_bytes(numbers)) } else { 0 };
            if wanted {
                memory.protect(at, true);
            }
            at
        };
        let biases = parts.map(|(from, len)| constant(self.biased, "bias", &given.biases[from..from + len]));
        let gains = given.gains.each_ref().map(|gain| constant(self.normed, "gain", gain));
        let turns = constant(true, "turns", &given.turns);
        let slots = memory.upload("slots", &to_bytes(&given.slots));
        let out = if self.in_place { products[0] } else { memory.alloc(rows * q_width * 4, "out") };
        let kept = given.before.each_ref().map(|before| memory.upload("kept", &to_bytes(before)));
        let addresses = [&products[..], &biases, &gains, &[turns, slots, out], &kept].concat();
        let sizes = [heads, kv_heads, head_dim, self.dims, usize::from(self.halves)];
        let parameters = addresses.iter().fold(Parameters::new(), |list, &address| list.u64(address));
        let parameters =
            sizes.iter().chain(&strides).fold(parameters, |list, &size| list.u32(size as u32)).f32(EPS);
        let grid = [self.all_heads().div_ceil(4) as u32, rows as u32, 1];
        let shape = Launch { grid, block: [128, 1, 1], shared: 0, parameters: parameters.bytes() };
        launch(module, &mut memory, &shape, seed)?;

        let (queries, want) = self.want(&given);
        let bits = |numbers: &[f32]| numbers.iter().map(|x| x.to_bits()).collect::<Vec<u32>>();
        same("q", &bits(&from_bytes::<f32>(&memory.read(out, queries.len() * 4)?)), &bits(&queries))?;
        for (name, (at, want)) in ["keys", "values"].into_iter().zip(kept.iter().zip(&want)) {
            same(name, &from_bytes::<u16>(&memory.read(*at, want.len() * 2)?), want)?;
        }
        Ok(())
    }
}

/// Families as they are, then what none has: heads of every size with each pairing, turned in part or not at all.
const CASES: [Case; 8] = [
    PLAIN,
    Case { heads: 4, kv_heads: 2, halves: true, biased: true, together: true, ..PLAIN }, // Qwen2
    Case { heads: 4, kv_heads: 2, head_dim: 128, dims: 128, halves: true, normed: true, ..PLAIN }, // Qwen3
    Case { heads: 2, kv_heads: 1, head_dim: 256, dims: 256, halves: true, normed: true, rows: 2, ..PLAIN }, // Gemma 3
    Case { heads: 3, kv_heads: 3, head_dim: 128, dims: 96, halves: true, together: true, ..PLAIN }, // Phi-4 mini
    Case { heads: 1, kv_heads: 1, head_dim: 2, dims: 2, biased: true, normed: true, rows: 6, ..PLAIN },
    Case {
        heads: 2,
        kv_heads: 2,
        head_dim: 80,
        dims: 20,
        biased: true,
        normed: true,
        in_place: true,
        ..PLAIN
    },
    Case { heads: 5, kv_heads: 1, head_dim: 96, dims: 0, halves: true, in_place: true, ..PLAIN },
];

fn cases(module: &Module) -> Result<(), Wrong> {
    CASES.into_iter().enumerate().try_for_each(|(seed, case)| case.run(module, seed as u64))
}

#[test]
fn heads_are_turned_and_appended() {
    let module = module("rotate_append.ptx");
    passes("rotate_append", cases(&module));
    for seed in 20..26 {
        passes("rotate_append", CASES[seed as usize % 3].run(&module, seed));
    }
}

#[test]
fn faults_in_the_heads_are_caught() {
    let fault =
        |name, find, replace, caught| Fault { name, file: "rotate_append.ptx", find, replace, caught };
    let faults = [
        fault(
            "a head too many",
            "setp.ge.u32     %past, %head, %slot;",
            "setp.gt.u32     %past, %head, %slot;",
            Caught::By(Kind::OutOfBounds),
        ),
        fault(
            "a key is turned with a query's gain",
            "OF_KIND         q_gain, k_gain, k_gain",
            "OF_KIND         q_gain, q_gain, k_gain",
            Caught::WrongResult,
        ),
        fault(
            "a value has a key's bias",
            "OF_KIND         q_bias, k_bias, v_bias",
            "OF_KIND         q_bias, k_bias, k_bias",
            Caught::WrongResult,
        ),
        fault("a value is turned", "    @%is_v bra.uni  STORE;\n", "", Caught::WrongResult),
        fault(
            "a key has a query's stride",
            "selp.b32        %stride, %other_stride, %stride, %is_k;",
            "mov.b32         %stride, %stride;",
            Caught::By(Kind::OutOfBounds),
        ),
        fault(
            "halves are halves of the head",
            "add.u32         %next, %pair, %turned_pairs;",
            "add.u32         %next, %pair, %pairs;",
            Caught::By(Kind::GlobalRace),
        ),
        fault(
            "pairs behind the turned ones stand apart",
            "setp.lt.and.u32 %apart, %pair, %turned_pairs, %some;",
            "setp.lt.and.u32 %apart, %pair, %pairs, %some;",
            Caught::By(Kind::GlobalRace),
        ),
        fault(
            "a turn is fused",
            "    mul.rn.f32      %norm, %a\\i, %cos;\n    @%turned sub.rn.f32 %a\\i, %norm, %c;\n",
            "    neg.f32         %c, %c;\n    @%turned fma.rn.f32 %a\\i, %a\\i, %cos, %c;\n",
            Caught::WrongResult,
        ),
        fault(
            "turns are those of the first row",
            "mul.wide.u32    %offset, %row, %turned_pairs;",
            "mul.wide.u32    %offset, 0, %turned_pairs;",
            Caught::WrongResult,
        ),
        fault("sine and cosine change places", "{%cos, %sin}", "{%sin, %cos}", Caught::WrongResult),
        fault(
            "slots of all heads lie together",
            "mad.lo.u32      %head, %next, %kv_heads, %head;",
            "mad.lo.u32      %head, %next, 1, %head;",
            Caught::WrongResult,
        ),
        fault(
            "a page has 8 slots",
            "and.b32         %slot, %slot, 15;",
            "and.b32         %slot, %slot, 7;",
            Caught::WrongResult,
        ),
        fault(
            "values go to the keys",
            "selp.b64        %at, %other, %at, %is_v;\n    mul.wide.u32    %offset, %slot, %dim;",
            "mul.wide.u32    %offset, %slot, %dim;",
            Caught::By(Kind::GlobalRace),
        ),
        fault(
            "what no half can hold is infinite",
            "    min.f32         %c, \\x, 0f477fe000; ",
            "    mov.f32         %c, \\x; ",
            Caught::WrongResult,
        ),
        fault("halves are cut off", "cvt.rn.f16.f32", "cvt.rz.f16.f32", Caught::WrongResult),
        fault(
            "the second of a pair is not squared",
            "    fma.rn.f32      %square, %b\\i, %b\\i, %square;\n",
            "",
            Caught::WrongResult,
        ),
    ];
    each_is_caught("rotate_append.ptx", &faults, cases);
}
