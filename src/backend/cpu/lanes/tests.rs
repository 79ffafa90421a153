//! Every operation of every vector path of this machine against plain Rust with the same roundings, bit for bit.
//!
//! NaN counts as one value: which of its bits survive an operation is the machine's affair. Nor are operations given
//! a signalling one, which no arithmetic makes and which compilers treat as they like.

use super::*;
use crate::model::quant::f16_to_f32;
use crate::model::toy::Random;

/// Something to be done on any path.
pub(in super::super) trait Work {
    type Done;
    fn on<L: Lanes>(&self, l: L) -> Self::Done;
}

pub(in super::super) fn on<W: Work>(path: Path, work: &W) -> W::Done {
    match path {
        Path::Plain(l) => l.enter(|| work.on(l)),
        #[cfg(target_arch = "x86_64")]
        Path::Avx512(l) => l.enter(|| work.on(l)),
        #[cfg(target_arch = "x86_64")]
        Path::AvxVnni(l) => l.enter(|| work.on(l)),
        #[cfg(target_arch = "x86_64")]
        Path::Avx2(l) => l.enter(|| work.on(l)),
        #[cfg(target_arch = "aarch64")]
        Path::Neon(l) => l.enter(|| work.on(l)),
        Path::Fused(l) => l.enter(|| work.on(l)),
    }
}

/// What operations give, each by its name.
type Results = Vec<(&'static str, Vec<u32>)>;

/// What every vector path gives is what plain Rust with their roundings gives.
fn agree<W: Work<Done = Results>>(work: &W, what: &str) {
    let want = on(Path::Fused(Plain), work);
    for path in Path::all().filter(|path| !matches!(path, Path::Plain(_))) {
        for ((name, got), (_, want)) in on(path, work).iter().zip(&want) {
            assert!(got == want, "{path}, {what}, {name}: {got:x?}, not {want:x?}");
        }
    }
}

/// What the operations are given.
#[derive(Clone, Copy, Debug)]
struct Given {
    a: [f32; 16],
    b: [f32; 16],
    c: [f32; 16],
    /// Below 2^31 in size.
    small: [f32; 16],
    i: [i32; 16],
    j: [i32; 16],
    bits: u16,
    halves: [u16; 16],
    signed: [i8; 16],
    unsigned: [u8; 16],
    x: [u8; 64],
    y: [u8; 64],
    /// None is -128.
    fours: [[i8; 4]; 2],
}

/// Floats at the edges: of ranges, of halves, of ties.
const EDGES: [f32; 32] = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.5,
    1.5,
    -2.5,
    f32::NAN,
    f32::INFINITY,
    f32::NEG_INFINITY,
    f32::MAX,
    f32::MIN,
    f32::MIN_POSITIVE,
    -1e-40,
    f32::from_bits(1),
    f32::EPSILON,
    65504.0,
    65519.996,
    65520.0,
    -65536.0,
    6.1e-5,
    5.96e-8,
    2.98e-8,
    -2.99e-8,
    8_388_607.5,
    8_388_609.0,
    16_777_217.0,
    2_147_483_500.0,
    -2_147_483_600.0,
    88.0,
    -87.5,
    std::f32::consts::LOG2_E,
];

impl Given {
    fn new(random: &mut Random) -> Given {
        let mut float = || match random.below(4) {
            0 => EDGES[random.below(EDGES.len())],
            1 => random.normal(),
            2 => (random.below(400) as f32 - 200.0) / 2.0, // ties
            _ => f32::from_bits(bits(f32::from_bits(random.next() as u32))),
        };
        let mut floats = || [(); 16].map(|()| float());
        let (a, b, c, any) = (floats(), floats(), floats(), floats());
        let whole = [0, 1, -1, 127, i32::MIN, i32::MAX, 16_777_217, -33_554_431];
        let mut int = || if random.below(3) == 0 { whole[random.below(8)] } else { random.next() as i32 };
        let (i, j) = ([(); 16].map(|()| int()), [(); 16].map(|()| int()));
        let mut byte = || random.next() as u8;
        Given {
            a,
            b,
            c,
            small: any.map(|x| if x.abs() < 2_147_483_648.0 { x } else { 0.0 }),
            i,
            j,
            unsigned: [(); 16].map(|()| byte()),
            signed: [(); 16].map(|()| byte() as i8),
            x: [(); 64].map(|()| byte()),
            y: [(); 64].map(|()| byte()),
            fours: [(); 2].map(|()| [(); 4].map(|()| (byte() as i8).max(-127))),
            halves: [(); 16].map(|()| random.next() as u16),
            bits: random.next() as u16,
        }
    }
}

/// The most that one sum of `dot_4` may take: eight vectors.
fn eight_fours<L: Lanes>(l: L, start: L::I, [x, y]: [L::B; 2], fours: &[[i8; 4]; 2]) -> L::I {
    let mut sum = l.start_4(start);
    for four in fours {
        for a in [l.low_nibbles(x), l.high_nibbles(x), l.low_nibbles(y), l.high_nibbles(y)] {
            sum = l.dot_4(sum, a, four);
        }
    }
    l.end_4(start, sum)
}

fn bits(x: f32) -> u32 {
    if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() }
}

fn floats<L: Lanes>(l: L, x: L::F) -> Vec<u32> {
    let mut lanes = [0.0; 16];
    l.store(x, &mut lanes);
    lanes.into_iter().map(bits).collect()
}

/// The lower 24 bits are exact as floats; the number itself, rounded, tells the upper ones.
fn integers<L: Lanes>(l: L, x: L::I) -> Vec<u32> {
    [floats(l, l.float(l.shl::<8>(x))), floats(l, l.float(x))].concat()
}

/// The integers as lanes, put together from their bytes.
fn lanes<L: Lanes>(l: L, x: &[i32; 16]) -> L::I {
    let byte = |at: usize| l.from_u8(&x.map(|x| x.to_le_bytes()[at]));
    let low = l.add_i(byte(0), l.shl::<8>(byte(1)));
    l.add_i(low, l.add_i(l.shl::<16>(byte(2)), l.shl::<24>(byte(3))))
}

/// Bytes, read by dot products with single ones.
fn bytes<L: Lanes>(l: L, x: L::B) -> Vec<u32> {
    let ones = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]];
    ones.iter().flat_map(|one| floats(l, l.float(l.dot_8(l.start_8(-1), x, one)))).collect()
}

impl Work for Given {
    type Done = Results;

    #[inline(always)]
    fn on<L: Lanes>(&self, l: L) -> Results {
        let Given { bits: mask, halves, signed, unsigned, .. } = self;
        let (a, b, c) = (l.load(&self.a), l.load(&self.b), l.load(&self.c));
        let (i, j) = (lanes(l, &self.i), lanes(l, &self.j));
        let (x, y) = (l.bytes(&self.x), l.bytes(&self.y));
        let seven = l.bytes(&self.x.map(|x| x & 127));
        let mut to_f16 = [0; 16];
        l.to_f16(a, &mut to_f16);
        let half = |half: u16| bits(f16_to_f32(half));
        let mut to_i8 = [0; 16];
        l.to_i8(l.from_i8(signed), &mut to_i8);
        let [first, second] = self.fours;
        let sum: i32 = self.fours.as_flattened().iter().map(|&b| i32::from(b)).sum();
        let high = l.high_nibbles(y);
        vec![
            ("splat", floats(l, l.splat(self.a[0]))),
            ("load and store", floats(l, a)),
            ("add", floats(l, l.add(a, b))),
            ("sub", floats(l, l.sub(a, b))),
            ("mul", floats(l, l.mul(a, b))),
            ("div", floats(l, l.div(a, b))),
            ("fma", floats(l, l.fma(a, b, c))),
            ("max", floats(l, l.max(a, b))),
            ("min", floats(l, l.min(a, b))),
            ("above", vec![l.above(a, b).into()]),
            ("abs", floats(l, l.abs(a))),
            ("select", floats(l, l.select(*mask, a, b))),
            ("from_f16", floats(l, l.from_f16(halves))),
            ("to_f16", to_f16.map(half).to_vec()),
            ("from_bf16", floats(l, l.from_bf16(halves))),
            ("round", integers(l, l.round(l.load(&self.small)))),
            ("zero", integers(l, l.zero())),
            ("splat_i", integers(l, l.splat_i(self.i[0]))),
            ("add_i", integers(l, l.add_i(i, j))),
            ("mul_i", integers(l, l.mul_i(i, j))),
            ("float", floats(l, l.float(i))),
            ("from_bits", floats(l, l.from_bits(i))),
            ("shl", [integers(l, l.shl::<5>(i)), integers(l, l.shl::<23>(i))].concat()),
            ("from_i8", integers(l, l.from_i8(signed))),
            ("from_u8", integers(l, l.from_u8(unsigned))),
            ("to_i8", to_i8.map(|x| x as u32).to_vec()),
            ("bytes", bytes(l, x)),
            ("low_nibbles", bytes(l, l.low_nibbles(x))),
            ("high_nibbles", bytes(l, l.high_nibbles(x))),
            ("join_2", bytes(l, l.join_2::<0>(high, x))),
            ("join_2, 2", bytes(l, l.join_2::<2>(high, x))),
            ("join_2, 4", bytes(l, l.join_2::<4>(high, x))),
            ("join_2, 6", bytes(l, l.join_2::<6>(high, x))),
            ("dot_7", integers(l, l.dot_7(l.dot_7(l.from_i8(signed), seven, &first), seven, &second))),
            ("dot_4", integers(l, eight_fours(l, l.from_i8(signed), [x, y], &self.fours))),
            ("dot_8", integers(l, l.dot_8(l.dot_8(l.start_8(-sum), x, &first), y, &second))),
            ("sum", vec![bits(l.sum(a))]),
            ("sum_i", vec![l.sum_i(l.from_i8(signed)) as u32]),
            ("largest", vec![bits(l.largest(a) + 0.0)]), // of two zeros, either
        ]
    }
}

#[test]
fn every_operation_agrees() {
    for seed in 0..3000 {
        agree(&Given::new(&mut Random::new(seed)), &format!("seed {seed}"));
    }
}

/// Sixteen halves to floats; floats that round to these halves, and to their neighbours, to halves.
struct Halves([u16; 16]);

impl Work for Halves {
    type Done = Results;

    #[inline(always)]
    fn on<L: Lanes>(&self, l: L) -> Results {
        let mut done = vec![
            ("from_f16", floats(l, l.from_f16(&self.0))),
            ("from_bf16", floats(l, l.from_bf16(&self.0))),
        ];
        // A little below and above each half, on the tie with the next, and on both sides of the tie.
        for beyond in [0, 1, 0xfff, 0x1000, 0x1001, 0x1fff] {
            let x = self.0.map(|half| f32::from_bits(f16_to_f32(half).to_bits() + beyond));
            let mut halves = [0; 16];
            l.to_f16(l.load(&x), &mut halves);
            done.push(("to_f16", halves.map(|half| bits(f16_to_f32(half))).to_vec()));
        }
        done
    }
}

#[test]
fn every_half_agrees() {
    for first in (0..=u16::MAX).step_by(16) {
        agree(&Halves(std::array::from_fn(|i| first + i as u16)), &format!("halves from {first:#06x}"));
    }
}

/// The products of every byte and `b`, alone and four alike in one sum.
struct Products(i8);

impl Work for Products {
    type Done = Results;

    #[inline(always)]
    fn on<L: Lanes>(&self, l: L) -> Results {
        let Products(b) = *self;
        let mut done = Vec::new();
        for four in [[b; 4], [b, 0, 0, 0], [0, b, 0, 0], [0, 0, b, 0], [0, 0, 0, b], [b, -b, -b, b]] {
            let sum: i32 = four.iter().map(|&b| i32::from(b)).sum();
            for first in (0..=255u8).step_by(64) {
                let alike: [u8; 64] = std::array::from_fn(|i| first + (i / 4) as u8 * 4);
                let other: [u8; 64] = std::array::from_fn(|i| first + i as u8);
                for x in [alike, other] {
                    let nibbles = [l.bytes(&x.map(|_| 0xff)), l.bytes(&x)];
                    done.push(("dot_4", integers(l, eight_fours(l, l.zero(), nibbles, &[four; 2]))));
                    let seven = l.bytes(&x.map(|x| x & 127));
                    done.push(("dot_7", integers(l, l.dot_7(l.zero(), seven, &four))));
                    let eight = l.dot_8(l.start_8(-sum), l.bytes(&x), &four);
                    done.push(("dot_8", integers(l, eight)));
                }
            }
        }
        done
    }
}

#[test]
fn every_product_of_bytes_agrees() {
    for b in -127..=127 {
        agree(&Products(b), &format!("b = {b}"));
    }
}
