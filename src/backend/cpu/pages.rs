//! The paged K/V of all layers, in f32.
//!
//! Owns: where a slot's key and value lie, and copying and clearing of pages. Never: whose a page is, nor which
//! slots a row may see.

use crate::backend::PageId;
use crate::model::shape::Shape;
use std::ops::Range;
use std::sync::RwLock;

use super::matmul::padded;
use super::scratch::write;

/// Keys and values of one layer, each [page, kv_head, slot, stride]. A head's slots of one page lie together, so a
/// page of keys is a small matrix. The stride is the head's size, padded for the dot product.
pub(super) struct Kv {
    pub keys: Vec<f32>,
    pub values: Vec<f32>,
}

/// How slots lie in a [`Kv`].
#[derive(Clone, Copy)]
pub(super) struct Layout {
    pub page_size: usize,
    pub kv_heads: usize,
    pub stride: usize,
}

impl Layout {
    /// The numbers of consecutive slots of one head in one page.
    pub fn slots(&self, page: PageId, kv_head: usize, slots: Range<usize>) -> Range<usize> {
        let head = (page.0 as usize * self.kv_heads + kv_head) * self.page_size;
        (head + slots.start) * self.stride..(head + slots.end) * self.stride
    }

    /// The numbers of a whole page.
    fn page(&self, page: PageId) -> Range<usize> {
        let len = self.kv_heads * self.page_size * self.stride;
        page.0 as usize * len..(page.0 as usize + 1) * len
    }
}

pub(super) struct Pages {
    pub layout: Layout,
    pub layers: Vec<RwLock<Kv>>,
}

impl Pages {
    /// Zeroed pages. The system gives the memory as it is first written.
    pub fn new(shape: &Shape, page_size: u32, pages: u32) -> Pages {
        let layout = Layout {
            page_size: page_size as usize,
            kv_heads: shape.kv_heads,
            stride: padded(shape.head_dim),
        };
        let len = layout.page(PageId(pages)).start;
        let kv = || RwLock::new(Kv { keys: vec![0.0; len], values: vec![0.0; len] });
        Pages { layout, layers: (0..shape.layers).map(|_| kv()).collect() }
    }

    /// Bytes of one page in all layers.
    pub fn page_bytes(shape: &Shape, page_size: u32) -> usize {
        let numbers = shape.kv_heads * page_size as usize * padded(shape.head_dim);
        2 * shape.layers * numbers * size_of::<f32>()
    }

    pub fn copy(&self, from: PageId, to: PageId) {
        for layer in &self.layers {
            let kv = &mut *write(layer);
            for numbers in [&mut kv.keys, &mut kv.values] {
                numbers.copy_within(self.layout.page(from), self.layout.page(to).start);
            }
        }
    }

    /// Zeroes the slots from `from` on.
    pub fn clear(&self, page: PageId, from: usize) {
        for layer in &self.layers {
            let kv = &mut *write(layer);
            for kv_head in 0..self.layout.kv_heads {
                let slots =
                    self.layout.slots(page, kv_head, from.min(self.layout.page_size)..self.layout.page_size);
                kv.keys[slots.clone()].fill(0.0);
                kv.values[slots].fill(0.0);
            }
        }
    }
}
