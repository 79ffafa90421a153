//! `embed_<format>` against the exact values of `quant.rs` times the scale: bit for bit.

use crate::harness::{
    Caught, Fault, Seeded, Wrong, blocks, each_is_caught, from_bytes, launch, module, passes, same, to_bytes,
    whole,
};
use ptx_emulator::{Kind, Launch, Memory, Module, Parameters};
use tartlet::backend::cuda::repack::Layout;
use tartlet::model::quant::Quant;

const FORMATS: [(&str, Quant); 10] = [
    ("embed_q4_0.ptx", Quant::Q4_0),
    ("embed_q4_1.ptx", Quant::Q4_1),
    ("embed_q5_0.ptx", Quant::Q5_0),
    ("embed_q5_1.ptx", Quant::Q5_1),
    ("embed_q8_0.ptx", Quant::Q8_0),
    ("embed_q4_k.ptx", Quant::Q4_K),
    ("embed_q5_k.ptx", Quant::Q5_K),
    ("embed_q6_k.ptx", Quant::Q6_K),
    ("embed_bf16.ptx", Quant::BF16),
    ("embed_f16.ptx", Quant::F16),
];

/// What an input is an embedding slot by.
const SLOT: u32 = 1 << 31;

struct Case {
    vocab: usize,
    hidden: usize,
    scale: f32,
    inputs: Vec<u32>,
}

impl Case {
    /// Rows of the stream as bits: a zero has its sign.
    fn run(&self, module: &Module, quant: Quant, seed: u64) -> Result<(), Wrong> {
        let Case { vocab, hidden, scale, ref inputs } = *self;
        let hidden = whole(quant, hidden);
        let seeded = &mut Seeded::new(seed);
        let file = blocks(quant, vocab, hidden, seeded);
        let embeds = seeded.normals(3 * hidden);
        let layout = Layout::new(quant, vocab, hidden).expect("a format with kernels");
        let (mut quants, mut scales) = (vec![0; layout.quant_bytes()], vec![0; layout.scale_bytes()]);
        layout.pack(&file, &mut quants, &mut scales);

        let mut memory = Memory::new();
        let mut given = |name, bytes: &[u8]| {
            let at = if bytes.is_empty() { 0 } else { memory.upload(name, bytes) };
            if at > 0 {
                memory.protect(at, true);
            }
            at
        };
        let parameters = Parameters::new()
            .u64(given("quants", &quants))
            .u64(given("scales", &scales))
            .u64(given("inputs", &to_bytes(inputs)))
            .u64(given("embeds", &to_bytes(&embeds)));
        let stream = memory.alloc(inputs.len() * hidden * 4, "stream");
        let parameters = parameters.u64(stream).u32(hidden as u32).f32(scale);
        let grid = [hidden.div_ceil(1024) as u32, inputs.len() as u32, 1];
        let shape = Launch { grid, block: [128, 1, 1], shared: 0, parameters: parameters.bytes() };
        launch(module, &mut memory, &shape, seed)?;

        let mut want = Vec::new();
        for &input in inputs {
            if input & SLOT == 0 {
                let bytes = &file[input as usize * quant.row_bytes(hidden)..][..quant.row_bytes(hidden)];
                let mut row = vec![0.0; hidden];
                quant.dequantize(bytes, &mut row);
                want.extend(row.iter().map(|x| (x * scale).to_bits()));
            } else {
                let slot = (input - SLOT) as usize;
                want.extend(embeds[slot * hidden..][..hidden].iter().map(|x| x.to_bits()));
            }
        }
        same("stream", &from_bytes::<u32>(&memory.read(stream, want.len() * 4)?), &want)
    }
}

/// Every place in a tile, a ragged last tile, an odd number of blocks, more than one CTA a row; slots among tokens.
fn cases(module: &Module, quant: Quant) -> Result<(), Wrong> {
    let all = Case { vocab: 21, hidden: 96, scale: 1.0, inputs: (0..21).collect() };
    all.run(module, quant, 1)?;
    let inputs = vec![4, SLOT, 36, SLOT + 2, 0, 4];
    Case { vocab: 37, hidden: 192, scale: 48f32.sqrt(), inputs: inputs.clone() }.run(module, quant, 2)?;
    Case { vocab: 40, hidden: 1024 + 352, scale: 0.3, inputs }.run(module, quant, 3)
}

#[test]
fn rows_are_those_of_the_file() {
    for (file, quant) in FORMATS {
        passes(file, cases(&module(file), quant));
    }
}

const FAULTS: &[Fault] = &[
    Fault {
        name: "blocks behind the row's end are made too",
        file: "embed.inc",
        find: "    @%past ret;\n",
        replace: "",
        caught: Caught::By(Kind::OutOfBounds),
    },
    Fault {
        name: "a slot is looked for in the matrix",
        file: "embed.inc",
        find: "    @%names_slot bra.uni SLOT;\n",
        replace: "",
        caught: Caught::By(Kind::OutOfBounds),
    },
    Fault {
        name: "a slot keeps its mark",
        file: "embed.inc",
        find: "    xor.b32         %input, %input, NAMES_SLOT;\n",
        replace: "",
        caught: Caught::By(Kind::OutOfBounds),
    },
    Fault {
        name: "a tile has 8 rows",
        file: "embed.inc",
        find: "shr.u32         %tile, %input, 4;",
        replace: "shr.u32         %tile, %input, 3;",
        caught: Caught::By(Kind::OutOfBounds),
    },
    Fault {
        name: "the last pair of an odd number is none",
        file: "embed.inc",
        find: "add.u32         %pairs, %hidden, 63;",
        replace: "add.u32         %pairs, %hidden, 31;",
        caught: Caught::WrongResult,
    },
    Fault {
        name: "rows 8 to 15 are rows 0 to 7",
        file: "embed.inc",
        find: "bfe.u32         %upper, %input, 3, 1;",
        replace: "bfe.u32         %upper, %input, 4, 1;",
        caught: Caught::WrongResult,
    },
    Fault {
        name: "the scale is forgotten",
        file: "embed.inc",
        find: "    mul.rn.f32      %x\\i, %x\\i, %scale;\n",
        replace: "",
        caught: Caught::WrongResult,
    },
    Fault {
        name: "all CTAs of a row have its first blocks",
        file: "embed.inc",
        find: "mad.lo.u32      %block, %part, BLOCKS, %block;",
        replace: "mad.lo.u32      %block, %part, 0, %block;",
        caught: Caught::By(Kind::GlobalRace),
    },
    Fault {
        name: "the second half's quants are the first's",
        file: "quant.inc",
        find: "mad.wide.u32    %at, %half, 8, %quants;",
        replace: "mad.wide.u32    %at, %half, 0, %quants;",
        caught: Caught::WrongResult,
    },
    Fault {
        name: "the second half's scale is the first's",
        file: "fmt/scales_d.inc",
        find: "mad.wide.u32    %at, %half, 2, %at;",
        replace: "mad.wide.u32    %at, %half, 0, %at;",
        caught: Caught::WrongResult,
    },
    Fault {
        name: "low nibbles are high ones",
        file: "quant.inc",
        find: "bfe.u32         %n\\i, %word, \\(8 * \\i), 4;",
        replace: "bfe.u32         %n\\i, %word, \\(8 * \\i + 4), 4;",
        caught: Caught::WrongResult,
    },
    Fault {
        name: "no offset is taken away",
        file: "fmt/scales_d.inc",
        find: "    sub.rn.f32      %x\\i, %x\\i, %m;\n",
        replace: "",
        caught: Caught::WrongResult,
    },
];

#[test]
fn faults_in_rows_are_caught() {
    each_is_caught("embed_q4_0.ptx", FAULTS, |module| cases(module, Quant::Q4_0));
}

#[test]
fn faults_in_formats_are_caught() {
    let wrong = |name, file, find, replace| Fault { name, file, find, replace, caught: Caught::WrongResult };
    let each = |kernel: &str, quant: Quant, faults: &[Fault]| {
        each_is_caught(kernel, faults, |module| cases(module, quant));
    };
    let minimum = wrong(
        "the minimum is the first half's",
        "fmt/scales_dm.inc",
        "mad.wide.u32    %at, %half, 4, %at;",
        "mad.wide.u32    %at, %half, 0, %at;",
    );
    let fifth = wrong(
        "fifth bits are row g's",
        "fmt/quants_5.inc",
        "mad.lo.u32      %bits, %upper, 4, %half;",
        "mov.b32         %bits, %half;",
    );
    each("embed_q5_1.ptx", Quant::Q5_1, &[minimum, fifth]);
    let signs = wrong(
        "quants have no sign",
        "fmt/quants_8.inc",
        "bfe.s32         %n\\(4 + \\i)",
        "bfe.u32         %n\\(4 + \\i)",
    );
    each("embed_q8_0.ptx", Quant::Q8_0, &[signs]);
    let late = wrong(
        "block 4 is one of the first four",
        "fmt/scales_k.inc",
        "setp.gt.u32 %late, %part, 3;",
        "setp.gt.u32 %late, %part, 4;",
    );
    let superblock = wrong(
        "all superblocks are the row's first",
        "embed.inc",
        "    shr.u32         %bits, %block, 3;\n",
        "    mov.b32         %bits, 0;\n",
    );
    each("embed_q4_k.ptx", Quant::Q4_K, &[late, superblock]);
    let scale = wrong(
        "both halves have the first one's scale",
        "fmt/scales_6.inc",
        "bfe.s32     %s, %word, 8, 8;",
        "bfe.s32     %s, %word, 0, 8;",
    );
    let behind = wrong(
        "superblocks lie before the pairs",
        "embed.inc",
        "    mad.lo.u32      %bits, %pairs, PAIR_SCALES, %bits;\n    cvt",
        "    cvt",
    );
    each("embed_q6_k.ptx", Quant::Q6_K, &[scale, behind]);
    let second = wrong(
        "the second of two values keeps the first",
        "fmt/floats.inc",
        "and.b32         %bits, %word, 0xffff0000;",
        "mov.b32         %bits, %word;",
    );
    each("embed_bf16.ptx", Quant::BF16, &[second]);
}
