//! `copy`, `copy_rows`, `copy_page` and `clear_page`: bytes that are moved or cleared, and those beside them that are not.

use crate::harness::{Caught, Fault, Seeded, Wrong, each_is_caught, launch, module, passes, same, to_bytes};
use ptx_emulator::{Kind, Launch, Memory, Module, Parameters};

/// `count` vectors of 16 bytes by `ctas` CTAs, with one more behind them that stays.
fn copy(module: &Module, count: usize, ctas: u32, seed: u64) -> Result<(), Wrong> {
    let seeded = &mut Seeded::new(seed);
    let [from, mut want] = [(); 2].map(|()| (0..2 * count + 2).map(|_| seeded.bits()).collect::<Vec<u64>>());
    let mut memory = Memory::new();
    let source = memory.upload("from", &to_bytes(&from[..2 * count]));
    memory.protect(source, true);
    let target = memory.upload("to", &to_bytes(&want));
    let parameters = Parameters::new().u64(target).u64(source).u32(count as u32);
    let shape = Launch { grid: [ctas, 1, 1], block: [256, 1, 1], shared: 0, parameters: parameters.bytes() };
    launch(module, &mut memory, &shape, seed)?;
    want[..2 * count].copy_from_slice(&from[..2 * count]);
    same("to", &memory.read(target, want.len() * 8)?, &to_bytes(&want))
}

/// Nothing, one, a ragged step of each of the four parts, several steps of several CTAs.
fn vector_cases(module: &Module) -> Result<(), Wrong> {
    let cases = [(0, 1), (1, 2), (255, 1), (300, 1), (513, 1), (1023, 1), (1024, 3), (5000, 2)];
    cases.into_iter().enumerate().try_for_each(|(seed, (count, ctas))| copy(module, count, ctas, seed as u64))
}

#[test]
fn vectors_are_copied() {
    passes("copy", vector_cases(&module("copy.ptx")));
}

#[test]
fn faults_in_copies_of_vectors_are_caught() {
    let fault = |name, find, replace, caught| Fault { name, file: "copy.ptx", find, replace, caught };
    let faults = [
        fault(
            "a vector more is copied",
            "setp.ge.u32     %done, %at0, %count;",
            "setp.gt.u32     %done, %at0, %count;",
            Caught::By(Kind::OutOfBounds),
        ),
        fault(
            "the second part has one vector more",
            "setp.lt.u32     %has1, %at1, %count;",
            "setp.le.u32     %has1, %at1, %count;",
            Caught::By(Kind::OutOfBounds),
        ),
        fault(
            "the last step counts as whole",
            "setp.lt.u32     %has3, %at3, %count;",
            "setp.ne.u32     %has3, %at3, %count;",
            Caught::By(Kind::OutOfBounds),
        ),
        fault(
            "all CTAs begin at the first step",
            "shl.b32         %at0, %cta, 10;",
            "mov.u32         %at0, 0;",
            Caught::By(Kind::GlobalRace),
        ),
        fault("the second step is the last", "    bra             STEP;\n", "", Caught::WrongResult),
        fault(
            "steps are those of one CTA",
            "shl.b32         %step, %ctas, 10;",
            "mov.u32         %step, 1024;",
            Caught::By(Kind::GlobalRace),
        ),
        fault(
            "the third part is stored in the second's place",
            "@%has2 st.global.v4.b32 [%target2]",
            "@%has2 st.global.v4.b32 [%target1]",
            Caught::WrongResult,
        ),
    ];
    each_is_caught("copy.ptx", &faults, vector_cases);
}

/// Rows of `dim` values: `count` of them copied, each from and to where the arrays say, or to and from its own number.
fn copy_rows(
    module: &Module,
    dim: usize,
    count: usize,
    [to_rows, from_rows]: [&[u32]; 2],
    seed: u64,
) -> Result<(), Wrong> {
    let seeded = &mut Seeded::new(seed);
    let rows = 9;
    let [from, before] = [(); 2].map(|()| seeded.normals(rows * dim));
    let mut memory = Memory::new();
    let source = memory.upload("from", &to_bytes(&from));
    memory.protect(source, true);
    let target = memory.upload("to", &to_bytes(&before));
    let mut array =
        |name, rows: &[u32]| if rows.is_empty() { 0 } else { memory.upload(name, &to_bytes(rows)) };
    let arrays = [array("to_rows", to_rows), array("from_rows", from_rows)];
    let parameters = Parameters::new().u64(target).u64(source).u64(arrays[0]).u64(arrays[1]).u32(dim as u32);
    let grid = [dim.div_ceil(1024) as u32, count as u32, 1];
    let shape = Launch { grid, block: [256, 1, 1], shared: 0, parameters: parameters.bytes() };
    launch(module, &mut memory, &shape, seed)?;

    let mut want = before;
    for row in 0..count {
        let of = |rows: &[u32]| rows.get(row).map_or(row, |&row| row as usize);
        want[of(to_rows) * dim..][..dim].copy_from_slice(&from[of(from_rows) * dim..][..dim]);
    }
    same("to", &memory.read(target, want.len() * 4)?, &to_bytes(&want))
}

fn row_cases(module: &Module) -> Result<(), Wrong> {
    copy_rows(module, 576, 5, [&[], &[8, 0, 3, 3, 7]], 1)?;
    copy_rows(module, 1024 + 4, 4, [&[2, 8, 0, 5], &[]], 2)?;
    copy_rows(module, 32, 3, [&[8, 1, 2], &[0, 0, 6]], 3)?;
    copy_rows(module, 2048, 2, [&[], &[]], 4)
}

#[test]
fn rows_are_copied() {
    passes("copy_rows", row_cases(&module("copy_rows.ptx")));
}

const ROW_FAULTS: &[Fault] = &[
    Fault {
        name: "values behind the row's end are copied",
        file: "copy_rows.ptx",
        find: "    @%past ret;\n",
        replace: "",
        caught: Caught::By(Kind::OutOfBounds),
    },
    Fault {
        name: "no array is an array at 0",
        file: "copy_rows.ptx",
        find: "    @%some ld.global.nc.u32",
        replace: "    ld.global.nc.u32",
        caught: Caught::By(Kind::OutOfBounds),
    },
    Fault {
        name: "rows go where they come from",
        file: "copy_rows.ptx",
        find: "THROUGH         %target, to_rows",
        replace: "THROUGH         %target, from_rows",
        caught: Caught::By(Kind::GlobalRace),
    },
    Fault {
        name: "every row is copied from the first",
        file: "copy_rows.ptx",
        find: "mul.wide.u32    %offset, %source, %dim;",
        replace: "mul.wide.u32    %offset, 0, %dim;",
        caught: Caught::WrongResult,
    },
    Fault {
        name: "the CTA's place in the row is forgotten",
        file: "copy_rows.ptx",
        find: "mad.lo.u32      %place, %part, 256, %thread;",
        replace: "mad.lo.u32      %place, %part, 0, %thread;",
        caught: Caught::By(Kind::GlobalRace),
    },
];

#[test]
fn faults_in_copies_of_rows_are_caught() {
    each_is_caught("copy_rows.ptx", ROW_FAULTS, row_cases);
}

/// A pool of keys and values: planes of pages with something between them that nothing may touch.
struct Pool {
    planes: usize,
    pages: usize,
    kv_heads: usize,
    head_dim: usize,
}

impl Pool {
    fn page_bytes(&self) -> usize {
        self.kv_heads * 16 * self.head_dim * 2
    }

    fn plane_bytes(&self) -> usize {
        self.pages * self.page_bytes() + 48
    }

    /// The pool before and after a launch of a kernel that is given it first, then `numbers`.
    fn run(
        &self,
        module: &Module,
        grid: [u32; 3],
        block: u32,
        numbers: [u32; 4],
        seed: u64,
    ) -> Result<[Vec<u8>; 2], Wrong> {
        let bytes = self.planes * self.plane_bytes();
        let seeded = &mut Seeded::new(seed);
        let before: Vec<u8> = (0..bytes).map(|_| seeded.bits() as u8 | 1).collect();
        let mut memory = Memory::new();
        let pool = memory.upload("pool", &before);
        let parameters = numbers.iter().fold(Parameters::new().u64(pool), |list, &number| list.u32(number));
        let shape = Launch { grid, block: [block, 1, 1], shared: 0, parameters: parameters.bytes() };
        launch(module, &mut memory, &shape, seed)?;
        Ok([before, memory.read(pool, bytes)?])
    }

    fn copy(&self, module: &Module, from: usize, to: usize, seed: u64) -> Result<(), Wrong> {
        let (page, plane) = (self.page_bytes(), self.plane_bytes());
        let grid = [page.div_ceil(256 * 16) as u32, self.planes as u32, 1];
        let numbers = [from, to, page / 16, plane / 16].map(|number| number as u32);
        let [mut want, got] = self.run(module, grid, 256, numbers, seed)?;
        for plane in want.chunks_mut(plane) {
            plane.copy_within(from * page..(from + 1) * page, to * page);
        }
        same("pool", &got, &want)
    }

    fn clear(&self, module: &Module, page: usize, first: usize, seed: u64) -> Result<(), Wrong> {
        let (page_bytes, plane) = (self.page_bytes(), self.plane_bytes());
        let grid = [self.kv_heads as u32, self.planes as u32, 1];
        let numbers = [page, first, self.head_dim, plane / 16].map(|number| number as u32);
        let [mut want, got] = self.run(module, grid, 128, numbers, seed)?;
        for plane in want.chunks_mut(plane) {
            for head in plane[page * page_bytes..][..page_bytes].chunks_mut(32 * self.head_dim) {
                head[first * 2 * self.head_dim..].fill(0);
            }
        }
        same("pool", &got, &want)
    }
}

fn copy_cases(module: &Module) -> Result<(), Wrong> {
    Pool { planes: 4, pages: 5, kv_heads: 3, head_dim: 64 }.copy(module, 4, 1, 1)?;
    Pool { planes: 2, pages: 2, kv_heads: 1, head_dim: 8 }.copy(module, 0, 1, 2)
}

fn clear_cases(module: &Module) -> Result<(), Wrong> {
    let pool = Pool { planes: 4, pages: 3, kv_heads: 3, head_dim: 64 };
    for (seed, (page, first)) in [(0, 0), (1, 5), (2, 15), (2, 16)].into_iter().enumerate() {
        pool.clear(module, page, first, seed as u64)?;
    }
    Pool { planes: 2, pages: 2, kv_heads: 2, head_dim: 256 }.clear(module, 1, 1, 7)?;
    Pool { planes: 2, pages: 2, kv_heads: 2, head_dim: 8 }.clear(module, 1, 3, 8)
}

#[test]
fn pages_are_copied_and_cleared() {
    passes("copy_page", copy_cases(&module("copy_page.ptx")));
    passes("clear_page", clear_cases(&module("clear_page.ptx")));
}

#[test]
fn faults_in_copies_of_pages_are_caught() {
    let fault = |name, find, replace, caught| Fault { name, file: "copy_page.ptx", find, replace, caught };
    let faults = [
        fault("what follows the page is copied", "    @%past ret;\n", "", Caught::By(Kind::OutOfBounds)),
        fault(
            "all CTAs have the first plane",
            "mul.wide.u32    %offset, %number, %plane;",
            "mul.wide.u32    %offset, 0, %plane;",
            Caught::By(Kind::GlobalRace),
        ),
        fault(
            "the page is copied onto itself",
            "mul.wide.u32    %offset, %to, %count;",
            "mul.wide.u32    %offset, %from, %count;",
            Caught::WrongResult,
        ),
        fault(
            "a CTA has 255 vectors",
            "mad.lo.u32      %place, %part, 256, %thread;",
            "mad.lo.u32      %place, %part, 255, %thread;",
            Caught::By(Kind::GlobalRace),
        ),
    ];
    each_is_caught("copy_page.ptx", &faults, copy_cases);
}

#[test]
fn faults_in_clearing_are_caught() {
    let fault = |name, find, replace, caught| Fault { name, file: "clear_page.ptx", find, replace, caught };
    let faults = [
        fault(
            "the first slot is cleared too",
            "mad.lo.u32      %thread, %first, %units, %thread;",
            "mad.lo.u32      %thread, 0, %units, %thread;",
            Caught::WrongResult,
        ),
        fault(
            "a head has 17 slots",
            "setp.ge.u32     %past, %thread, %all;",
            "setp.gt.u32     %past, %thread, %all;",
            Caught::By(Kind::GlobalRace),
        ),
        fault(
            "heads are those of page 0",
            "mad.lo.u32      %page, %page, %heads, %head;",
            "mad.lo.u32      %page, 0, %heads, %head;",
            Caught::WrongResult,
        ),
        fault(
            "every other vector stays",
            "add.u32         %thread, %thread, 128;",
            "add.u32         %thread, %thread, 256;",
            Caught::WrongResult,
        ),
    ];
    each_is_caught("clear_page.ptx", &faults, clear_cases);
}
