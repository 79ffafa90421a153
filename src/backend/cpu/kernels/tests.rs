//! Matrix products of every format on every path: bit for bit those of plain Rust with the same roundings, and close to
//! the products of the dequantised numbers in f64.

use super::super::lanes::tests::{Work, on};
use super::super::lanes::{Path, Plain};
use super::super::packed::{Order, Packing, is_float};
use super::super::tiles::BLOCK;
use super::*;
use crate::model::gguf::Tensor;
use crate::model::toy::{Random, random_bytes};

/// How far a product may be off, as a share of the sum of its terms' sizes.
const TOLERANCE: f64 = 1e-5;

/// A matrix and sixteen columns.
struct Case<'a> {
    tensor: Tensor<'a>,
    packed: Packed,
    store: Store,
    blocks: Vec<Block>,
    values: Vec<[f32; TILE]>,
}

impl<'a> Case<'a> {
    fn new(tensor: Tensor<'a>, random: &mut Random) -> Case<'a> {
        let mut plan = Packing::default();
        let packed = plan.add(tensor, Order::File, false);
        let store = plan.pack(2).expect("there is room");
        let mut case = Case { tensor, packed, store, blocks: Vec::new(), values: Vec::new() };
        // Columns of very different sizes; one of them zeros, and zeros here and there.
        let sizes: [f32; TILE] =
            std::array::from_fn(|column| if column == 5 { 0.0 } else { 1e3f32.powi(column as i32 % 5 - 2) });
        let mut values = || sizes.map(|size| if random.below(9) == 0 { 0.0 } else { size * random.normal() });
        let width = tensor.dims[0];
        case.values = (0..width).map(|_| values()).collect();
        if !is_float(tensor.kind) {
            let values = std::mem::take(&mut case.values);
            let quantise = Quantise(values.as_chunks::<BLOCK>().0);
            case.blocks = on(Path::Fused(Plain), &quantise);
            for path in Path::all() {
                let bytes = |blocks: &[Block]| blocks.iter().map(bits_of).collect::<Vec<_>>();
                assert!(bytes(&on(path, &quantise)) == bytes(&case.blocks), "{path}: quantised otherwise");
            }
        }
        case
    }

    /// Value `k` of column `column` as the kernels see it.
    fn value(&self, k: usize, column: usize) -> f64 {
        if is_float(self.tensor.kind) {
            return self.values[k][column].into();
        }
        let block = &self.blocks[k / BLOCK];
        f64::from(block.d[column]) * f64::from(block.q[column][k % BLOCK])
    }

    /// Product, and the sum of the terms' sizes, of each row and column.
    fn exact(&self) -> Vec<[(f64, f64); TILE]> {
        let mut weights = vec![0.0; self.tensor.dims[0]];
        let rows = 0..self.tensor.rows();
        rows.map(|row| {
            self.tensor.kind.dequantize(self.tensor.row(row), &mut weights);
            std::array::from_fn(|column| {
                let terms = weights.iter().enumerate().map(|(k, &w)| f64::from(w) * self.value(k, column));
                terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()))
            })
        })
        .collect()
    }
}

type Bits = (Vec<i8>, Vec<u32>, Vec<i32>);

fn bits_of(block: &Block) -> Bits {
    let floats = [block.d, block.sum].as_flattened().iter().map(|x| x.to_bits()).collect();
    (block.q.as_flattened().to_vec(), floats, block.minus.as_flattened().to_vec())
}

struct Quantise<'a>(&'a [[[f32; TILE]; BLOCK]]);

impl Work for Quantise<'_> {
    type Done = Vec<Block>;

    #[inline(always)]
    fn on<L: Lanes>(&self, l: L) -> Vec<Block> {
        let zero = Block { q: [[0; BLOCK]; TILE], d: [0.0; TILE], sum: [0.0; TILE], minus: [[0; TILE]; 3] };
        let mut blocks = vec![zero; self.0.len()];
        for (block, values) in blocks.iter_mut().zip(self.0) {
            (0..TILE).for_each(|column| {
                let half = |at: usize| std::array::from_fn(|i| values[at + i][column]);
                block.put(l, column, l.load(&half(0)), l.load(&half(LANES)));
            });
        }
        blocks
    }
}

/// The products with the first `count` columns, group after group.
struct Multiply<'a> {
    case: &'a Case<'a>,
    count: usize,
}

impl Work for Multiply<'_> {
    type Done = Vec<Products>;

    #[inline(always)]
    fn on<L: Lanes>(&self, l: L) -> Vec<Products> {
        let Case { packed, store, blocks, values, .. } = self.case;
        let groups = 0..packed.groups;
        groups
            .map(|group| {
                let mut products = [[f32::NAN; LANES]; TILE];
                multiply(l, (packed, store), group, Tile { blocks, values }, self.count, &mut products);
                products
            })
            .collect()
    }
}

fn bits(products: &[Products], count: usize) -> Vec<u32> {
    products.iter().flat_map(|group| group[..count].as_flattened()).map(|x| x.to_bits()).collect()
}

/// One group, an odd number of them, the last one half full; rows of one block, of the demo model's lengths, of any
/// length where the format has no blocks.
#[test]
fn products_are_exact_to_rounding_and_the_same_on_every_path() {
    for (seed, format) in Quant::ALL.into_iter().enumerate() {
        let mut random = Random::new(seed as u64);
        for (width, rows) in [(1, 16), (32, 16), (37, 24), (192, 40), (256, 48), (576, 16), (1536, 9)] {
            if width % format.block_len() != 0 {
                continue;
            }
            let what = format!("{format}, {rows} rows of {width}, seed {seed}");
            let bytes = random_bytes(format, width * rows, 1.0, &mut random);
            let tensor = Tensor { name: "", kind: format, dims: [width, rows, 1, 1], bytes: &bytes };
            let case = Case::new(tensor, &mut random);
            let exact = case.exact();
            let all = on(Path::Fused(Plain), &Multiply { case: &case, count: TILE });
            for count in 1..=TILE {
                let multiply = Multiply { case: &case, count };
                for path in Path::all() {
                    let got = on(path, &multiply);
                    for (row, exact) in exact.iter().enumerate() {
                        for (column, &(product, size)) in exact[..count].iter().enumerate() {
                            let got = f64::from(got[row / LANES][column][row % LANES]);
                            assert!(
                                (got - product).abs() <= TOLERANCE * size,
                                "{path}, {what}, row {row}, column {column}: {got}, not {product} of {size}"
                            );
                        }
                    }
                    if !matches!(path, Path::Plain(_)) {
                        assert!(bits(&got, count) == bits(&all, count), "{path}, {what}, {count} columns");
                    }
                }
            }
        }
    }
}
