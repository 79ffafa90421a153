//! Rows and pages that only move: of the embedding, of the stream, of keys and values.
//!
//! Owns: what must be where afterwards, and what must be as it was. Never: arithmetic beyond the formats' own.

use super::norms::floats;
use super::products::blocks;
use super::{Bed, Checked, Found, Launched, Rate, Seeded, same};
use crate::backend::cuda::module::number;
use crate::backend::cuda::repack::Layout;
use crate::backend::cuda::{Argument, Error};
use crate::model::quant::Quant;

/// The kernels, and the formats that they read.
pub(super) const EMBEDDINGS: [(&str, Quant); 10] = [
    ("embed_q4_0", Quant::Q4_0),
    ("embed_q4_1", Quant::Q4_1),
    ("embed_q5_0", Quant::Q5_0),
    ("embed_q5_1", Quant::Q5_1),
    ("embed_q8_0", Quant::Q8_0),
    ("embed_q4_k", Quant::Q4_K),
    ("embed_q5_k", Quant::Q5_K),
    ("embed_q6_k", Quant::Q6_K),
    ("embed_bf16", Quant::BF16),
    ("embed_f16", Quant::F16),
];
/// What an input is an embedding slot by.
const SLOT: u32 = 1 << 31;
/// Values of a row that a CTA takes.
const CHUNK: usize = 1024;

/// Tokens, all places of a tile among them, and slots.
const INPUTS: [u32; 12] = [0, 1, 7, 8, 15, 16, SLOT, 31, 36, SLOT + 2, 21, 0];
const VOCAB: usize = 37;
/// Values of a row: blocks of 32 in an odd number; superblocks fill it up.
const HIDDEN: usize = 1056;
const SCALE: f32 = 45.25;

fn words(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

pub(super) fn embedding(bed: &mut Bed) -> Checked {
    let mut launches = Vec::new();
    for (case, (kernel, quant)) in EMBEDDINGS.into_iter().enumerate() {
        let hidden = HIDDEN.next_multiple_of(quant.block_len());
        let mut seeded = Seeded::new(case as u64);
        let file = blocks(quant, VOCAB, hidden, &mut seeded);
        let layout = Layout::new(quant, VOCAB, hidden).ok_or_else(|| Error::Launch {
            kernel: kernel.to_owned(),
            why: format!("no layout for {hidden} columns"),
        })?;
        // Floats have no scales, but a buffer has a byte.
        let (mut quants, mut scales) = (vec![0; layout.quant_bytes()], vec![0; layout.scale_bytes()]);
        layout.pack(&file, &mut quants, &mut scales);
        scales.resize(scales.len().max(1), 0);
        let slots: Vec<f32> = (0..3 * hidden).map(|_| seeded.unit()).collect();
        let mut want = Vec::new();
        for input in INPUTS {
            if input >= SLOT {
                want.extend_from_slice(&slots[(input - SLOT) as usize * hidden..][..hidden]);
                continue;
            }
            let bytes = quant.row_bytes(hidden);
            let mut row = vec![0.0; hidden];
            quant.dequantize(&file[input as usize * bytes..][..bytes], &mut row);
            want.extend(row.iter().map(|x| x * SCALE));
        }
        let on = [&quants, &scales, &words(&INPUTS), &floats(&slots)].map(|bytes| bed.with(bytes));
        let [quants, scales, inputs, slots] = on;
        let (quants, scales, inputs, slots) = (quants?, scales?, inputs?, slots?);
        let stream = bed.blank(want.len() * 4)?;
        let mut arguments: Vec<Argument> =
            [&quants, &scales, &inputs, &slots, &stream].map(Argument::Buffer).into();
        arguments.extend([number(hidden), Argument::F32(SCALE)]);
        // SAFETY: made for these sizes; they live until `bytes` has waited.
        unsafe { bed.launch(kernel, [hidden.div_ceil(CHUNK), INPUTS.len()], 128, &arguments)? };
        let got = bed.bytes(&stream)?;
        if let Err(wrong) = same(&format!("rows of {quant}"), &got, &floats(&want)) {
            return Ok(Err(wrong));
        }
        launches.push(Launched::exact(
            format!("{kernel}, {} rows of {HIDDEN}", INPUTS.len()),
            case as u64,
            &got,
        ));
    }
    Ok(Ok(Found { launches, ..Found::right(EMBEDDINGS.len() * INPUTS.len()) }))
}

/// Values of a row, where they come from and go to; an empty list counts from 0.
type Copies = (usize, [&'static [u32]; 2]);

const COPIES: [Copies; 3] =
    [(576, [&[], &[8, 0, 3, 3]]), (1028, [&[2, 8, 0], &[]]), (32, [&[8, 1], &[0, 6]])];
const ROWS: usize = 9;

pub(super) fn copies(bed: &mut Bed) -> Checked {
    let mut launches = Vec::new();
    for (case, (dim, [to_rows, from_rows])) in COPIES.into_iter().enumerate() {
        let mut seeded = Seeded::new(case as u64);
        let [source, mut want] = [(); 2].map(|()| seeded.bytes(ROWS * dim * 4));
        let (from, to) = (bed.with(&source)?, bed.with(&want)?);
        let count = to_rows.len().max(from_rows.len());
        let row =
            |list: &[u32], number: usize| list.get(number).map_or(number, |&row| row as usize) * dim * 4;
        for number in 0..count {
            let source = &source[row(from_rows, number)..][..dim * 4];
            want[row(to_rows, number)..][..dim * 4].copy_from_slice(source);
        }
        // A list that is not wanted is an address of 0, but a buffer has a byte.
        let lists =
            [bed.with(&words(&[to_rows, &[0]].concat()))?, bed.with(&words(&[from_rows, &[0]].concat()))?];
        let list = |at: usize, rows: &[u32]| {
            if rows.is_empty() { Argument::Address(0) } else { Argument::Buffer(&lists[at]) }
        };
        let arguments = [
            Argument::Buffer(&to),
            Argument::Buffer(&from),
            list(0, to_rows),
            list(1, from_rows),
            number(dim),
        ];
        // SAFETY: made for these sizes; they live until `bytes` has waited.
        unsafe { bed.launch("copy_rows", [dim.div_ceil(CHUNK), count], 256, &arguments)? };
        let (what, got) = (format!("{count} rows of {dim}"), bed.bytes(&to)?);
        if let Err(wrong) = same(&what, &got, &want) {
            return Ok(Err(wrong));
        }
        launches.push(Launched::exact(format!("copy_rows, {what}"), case as u64, &got));
    }
    Ok(Ok(Found::launches(launches)))
}

/// Planes of keys or values, their pages, KV heads and values of a head.
const POOL: [usize; 4] = [6, 4, 3, 64];
const SLOTS: usize = 16;

/// A page copied onto another, and slots of a third cleared: what is beside them stays.
pub(super) fn pages(bed: &mut Bed) -> Checked {
    let [planes, pages, heads, head_dim] = POOL;
    let page_bytes = heads * SLOTS * head_dim * 2;
    let mut want = Seeded::new(0).bytes(planes * pages * page_bytes);
    let pool = bed.with(&want)?;
    let (from, to, cleared, first) = (3, 0, 2, 5);
    let plane = number(pages * page_bytes / 16);
    let copy = [Argument::Buffer(&pool), number(from), number(to), number(page_bytes / 16), plane];
    let clear = [Argument::Buffer(&pool), number(cleared), number(first), number(head_dim), plane];
    let mut launches = Vec::new();
    for kernel in ["copy_page", "clear_page"] {
        let (grid, block, arguments) = match kernel {
            "copy_page" => ([(page_bytes / 16).div_ceil(256), planes], 256, &copy),
            _ => ([heads, planes], 128, &clear),
        };
        // SAFETY: the pages are the pool's; it lives until `bytes` has waited.
        unsafe { bed.launch(kernel, grid, block, arguments)? };
        for plane in want.chunks_mut(pages * page_bytes) {
            if kernel == "copy_page" {
                plane.copy_within(from * page_bytes..(from + 1) * page_bytes, to * page_bytes);
                continue;
            }
            let page = &mut plane[cleared * page_bytes..][..page_bytes];
            page.chunks_mut(SLOTS * head_dim * 2).for_each(|head| head[first * head_dim * 2..].fill(0));
        }
        let got = bed.bytes(&pool)?;
        if let Err(wrong) = same(&format!("the pool after {kernel}"), &got, &want) {
            return Ok(Err(wrong));
        }
        launches.push(Launched::exact(format!("{kernel}, {planes} planes of {pages} pages"), 0, &got));
    }
    Ok(Ok(Found::launches(launches)))
}

/// Values of a row that is timed.
const TIMED_DIM: usize = 4096;
/// KV heads of a page that is timed, and values of a head.
const TIMED_PAGE: [usize; 2] = [8, 128];

pub(super) const RATES: [Rate; 3] = [
    ("copy_rows", copies_rate),
    ("copy_page", |bed| pages_rate(bed, "copy_page")),
    ("clear_page", |bed| pages_rate(bed, "clear_page")),
];

/// Bytes of the matrix, each row once, and of the stream per second.
pub(super) fn embedding_rate(bed: &mut Bed, kernel: &str, quant: Quant) -> Checked {
    let rows = (bed.rate_bytes() / (4 * TIMED_DIM)).next_multiple_of(16);
    let layout = Layout::new(quant, rows, TIMED_DIM).ok_or_else(|| Error::Launch {
        kernel: kernel.to_owned(),
        why: format!("no layout for {TIMED_DIM} columns"),
    })?;
    // What blank memory says as numbers is small and finite.
    let (quants, scales) = (bed.blank(layout.quant_bytes())?, bed.blank(layout.scale_bytes().max(1))?);
    let inputs = bed.with(&words(&(0..rows as u32).collect::<Vec<_>>()))?;
    let (slots, stream) = (bed.blank(4)?, bed.blank(rows * TIMED_DIM * 4)?);
    let mut arguments: Vec<Argument> =
        [&quants, &scales, &inputs, &slots, &stream].map(Argument::Buffer).into();
    arguments.extend([number(TIMED_DIM), Argument::F32(SCALE)]);
    // SAFETY: made for these sizes; they live until the last wait.
    let took = bed.time(&|| unsafe { bed.launch(kernel, [TIMED_DIM / CHUNK, rows], 128, &arguments) })?;
    let bytes = quants.size() + scales.size() + stream.size();
    Ok(Ok(Found::rate(bytes as f64 / took.as_secs_f64())))
}

/// Bytes read and written per second.
fn copies_rate(bed: &mut Bed) -> Checked {
    let rows = bed.rate_bytes() / (4 * TIMED_DIM);
    let (to, from) = (bed.blank(rows * TIMED_DIM * 4)?, bed.blank(rows * TIMED_DIM * 4)?);
    let [all, also_all] = [Argument::Address(0); 2];
    let arguments = [Argument::Buffer(&to), Argument::Buffer(&from), all, also_all, number(TIMED_DIM)];
    // SAFETY: made for these sizes; they live until the last wait.
    let took =
        bed.time(&|| unsafe { bed.launch("copy_rows", [TIMED_DIM / CHUNK, rows], 256, &arguments) })?;
    Ok(Ok(Found::rate(2.0 * to.size() as f64 / took.as_secs_f64())))
}

/// Bytes written, and read if it is a copy, per second, of a page in each of many planes of two.
fn pages_rate(bed: &mut Bed, kernel: &str) -> Checked {
    let [heads, head_dim] = TIMED_PAGE;
    let page_bytes = heads * SLOTS * head_dim * 2;
    let planes = bed.rate_bytes() / (2 * page_bytes);
    let pool = bed.blank(planes * 2 * page_bytes)?;
    let (on, plane) = (Argument::Buffer(&pool), number(2 * page_bytes / 16));
    let (grid, block, arguments, moved) = match kernel {
        "copy_page" => {
            let arguments = [on, number(0), number(1), number(page_bytes / 16), plane];
            ([(page_bytes / 16).div_ceil(256), planes], 256, arguments, 2)
        }
        _ => ([heads, planes], 128, [on, number(1), number(0), number(head_dim), plane], 1),
    };
    // SAFETY: the pages are the pool's; it lives until the last wait.
    let took = bed.time(&|| unsafe { bed.launch(kernel, grid, block, &arguments) })?;
    Ok(Ok(Found::rate((moved * planes * page_bytes) as f64 / took.as_secs_f64())))
}
