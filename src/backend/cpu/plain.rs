//! Single steps of the plain path: what the kernels of other devices are compared with.
//!
//! Owns: the way into a step from outside: it lays out what the step wants and calls the code that a batch runs, on
//! plain lanes. Never: a formula, nor a part of any batch.

use super::attention::{Gathered, Query, Room, STRETCH, Sight, View};
use super::kernels::{Products, multiply};
use super::lanes::{LANES, Plain};
use super::packed::{Order, Packing, is_float};
use super::pages::{Kv, Layout};
use super::tiles::{BLOCK, Columns, TILE};
use super::vector;
use crate::backend::PageId;
use crate::model::gguf::{Quant, Tensor};
use crate::model::shape::Activation;
use std::io;

const PLAIN: Plain<false> = Plain;
const FUSED: Plain<true> = Plain;

/// `numbers` filled up to whole vectors with zeros.
fn filled(numbers: &[f32]) -> Vec<f32> {
    let mut numbers = numbers.to_vec();
    numbers.resize(numbers.len().next_multiple_of(LANES), 0.0);
    numbers
}

/// RMS norm of a row: `x / sqrt(mean(x^2) + eps) * gain`. `gains` has as many values as `x`.
pub fn norm(x: &[f32], gains: &[f32], eps: f32) -> Vec<f32> {
    let mut normed = filled(x);
    vector::norm(PLAIN, &mut normed, &filled(gains), x.len(), eps);
    normed.truncate(x.len());
    normed
}

/// `of` of each number, a vector at a time.
fn on_lanes(numbers: &[f32], of: impl Fn(&[f32; LANES]) -> [f32; LANES]) -> Vec<f32> {
    let mut values: Vec<f32> = filled(numbers).as_chunks::<LANES>().0.iter().flat_map(of).collect();
    values.truncate(numbers.len());
    values
}

/// `activation(x)`: what the feed-forward multiplies by, rounded as the vector paths round.
pub fn activated(x: &[f32], activation: Activation) -> Vec<f32> {
    on_lanes(x, |x| vector::gated(FUSED, activation, *x, [1.0; LANES]))
}

/// `cap * tanh(x / cap)`, rounded as the vector paths round.
pub fn capped(x: &[f32], cap: f32) -> Vec<f32> {
    on_lanes(x, |x| vector::capped(FUSED, *x, Some(cap)))
}

/// Quants, and of each 32 their scale and their sum.
pub type Quantised = (Vec<i8>, Vec<(f32, i32)>);

/// A row as a product of integers reads it. The length of `x` is a multiple of 32. Fails if the system has no room.
pub fn quantise(x: &[f32]) -> io::Result<Quantised> {
    let columns = Columns::new(1, x.len(), (true, false))?;
    // SAFETY: nobody else has the columns.
    let tile = unsafe {
        columns.put(PLAIN, (0, 0), x, x.len());
        columns.tile(0, x.len())
    };
    let scales = tile.blocks.iter().map(|block| (block.d[0], -block.minus[0][0])).collect();
    Ok((tile.blocks.iter().flat_map(|block| block.q[0]).collect(), scales))
}

/// Products of a matrix as a GGUF file has it, `rows` of `width`, with columns of `width` values: [column][row]. Formats with
/// blocks quantise the columns. Fails if the system has no room.
pub fn products(format: Quant, [rows, width]: [usize; 2], bytes: &[u8], x: &[f32]) -> io::Result<Vec<f32>> {
    let mut plan = Packing::default();
    let tensor = Tensor { name: "", kind: format, dims: [width, rows, 1, 1], bytes };
    let matrix = plan.add(tensor, Order::File, false);
    let store = plan.pack(1)?;
    let mut y = Vec::with_capacity(x.len() / width * rows);
    for x in x.chunks(TILE * width) {
        let columns =
            Columns::new(TILE, width.next_multiple_of(BLOCK), (!is_float(format), is_float(format)))?;
        let count = x.len() / width;
        let mut products: Vec<Products> = vec![[[0.0; LANES]; TILE]; matrix.groups];
        // SAFETY: nobody else has the columns; nothing is put behind `tile`.
        let tile = unsafe {
            x.chunks(width).enumerate().for_each(|(column, x)| columns.put(PLAIN, (0, column), x, width));
            columns.tile(0, width)
        };
        for (group, products) in products.iter_mut().enumerate() {
            multiply(PLAIN, (&matrix, &store), group, tile, count, products);
        }
        let product = |column: usize, row: usize| products[row / LANES][column][row % LANES];
        y.extend((0..count * rows).map(|at| product(at / rows, at % rows)));
    }
    Ok(y)
}

/// Attention of one query, scaled already, over slots of one KV head, `keys` and `values` [slot][head dim] kept as halves: the
/// sum of the values of the slots that it `sees`, weighted by the softmax of their scores; zeros if it sees none. Fails if
/// the system has no room.
pub fn attend(
    query: &[f32],
    [keys, values]: [&[f32]; 2],
    sees: &[bool],
    cap: Option<f32>,
) -> io::Result<Vec<f32>> {
    let head_dim = query.len();
    let pages: Vec<PageId> = (0..sees.len().div_ceil(LANES) as u32).map(PageId).collect();
    let layout = Layout::of(pages.len(), LANES, 1, head_dim);
    let kv = Kv::<u16>::new(layout)?;
    for (slot, (key, value)) in keys.chunks(head_dim).zip(values.chunks(head_dim)).enumerate() {
        let at = (pages[slot / LANES], 0, slot % LANES);
        // SAFETY: nobody else has the pages.
        unsafe {
            kv.put_key(PLAIN, layout, at, &filled(key));
            kv.put_value(PLAIN, layout, at, &filled(value));
        }
    }
    let mut mask = vec![0u64; sees.len().div_ceil(64)];
    sees.iter().enumerate().for_each(|(slot, &sees)| mask[slot / 64] |= u64::from(sees) << (slot % 64));

    let mut sum = Gathered::NOTHING;
    let view = View { kv: &kv, layout, kv_head: 0, pages: &pages, cap };
    if let Some(slot) = sees.len().checked_sub(1) {
        let query = Query { q: query, sight: Sight { slot, first: 0, mask: Some(&mask) } };
        let mut room = Room::new();
        for stretch in 0..=slot / STRETCH {
            view.attend(PLAIN, stretch, &[query], &mut room, |_, next| {
                sum.join(PLAIN, next.largest, next.total, &next.values[..layout.value_stride]);
            });
        }
    }
    let mut out = vec![0.0; head_dim];
    sum.finish(PLAIN, &mut out);
    Ok(out)
}
