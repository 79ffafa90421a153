//! `add_normed` against the same formula in the order of `norm_quantize`, bit for bit.

use crate::harness::{
    Caught, Fault, Seeded, Wrong, each_is_caught, from_bytes, launch, module, passes, same, to_bytes,
};
use crate::norm::EPS;
use crate::sums::norm;
use ptx_emulator::{Kind, Launch, Memory, Module, Parameters};

fn check(module: &Module, rows: usize, dim: usize, seed: u64) -> Result<(), Wrong> {
    let mut seeded = Seeded::new(seed);
    let [stream, x, gain] = [rows * dim, rows * dim, dim].map(|len| seeded.normals(len));
    let mut memory = Memory::new();
    let to = memory.upload("stream", &to_bytes(&stream));
    let given = [("x", &x), ("gain", &gain)].map(|(name, x)| memory.upload(name, &to_bytes(x)));
    given.into_iter().for_each(|at| memory.protect(at, true));
    let parameters = Parameters::new().u64(to).u64(given[0]).u64(given[1]).u32(dim as u32).f32(EPS);
    let grid = [rows as u32, 1, 1];
    let shape = Launch { grid, block: [256, 1, 1], shared: 0, parameters: parameters.bytes() };
    launch(module, &mut memory, &shape, seed)?;
    let mut want = Vec::new();
    for (stream, x) in stream.chunks(dim).zip(x.chunks(dim)) {
        let norm = norm(x, EPS);
        want.extend(stream.iter().zip(x).zip(&gain).map(|((stream, x), gain)| stream + x * norm * gain));
    }
    same("stream", &from_bytes::<f32>(&memory.read(to, want.len() * 4)?), &want)
}

fn cases(module: &Module) -> Result<(), Wrong> {
    let shapes = [(1, 32), (3, 96), (2, 576), (1, 1028), (2, 2304), (1, 8192), (1, 4)];
    for (seed, (rows, dim)) in shapes.into_iter().enumerate() {
        check(module, rows, dim, seed as u64)?;
    }
    Ok(())
}

#[test]
fn normed_rows_are_added() {
    passes("add_normed", cases(&module("add_normed.ptx")));
}

#[test]
fn faults_in_what_is_added_are_caught() {
    let fault = |name, file, find, replace, caught| Fault { name, file, find, replace, caught };
    let own = "add_normed.ptx";
    let faults = [
        fault(
            "the row's end is one step late",
            own,
            "setp.lt.u32     %inside, %at, %dim;",
            "setp.le.u32     %inside, %at, %dim;",
            Caught::By(Kind::OutOfBounds),
        ),
        fault(
            "the stream is replaced",
            own,
            "add.rn.f32      %s\\j, %s\\j, %x\\(4 * \\i + \\j);",
            "mov.f32         %s\\j, %x\\(4 * \\i + \\j);",
            Caught::WrongResult,
        ),
        fault(
            "norm and gain are one product",
            own,
            "    mul.rn.f32      %x\\(4 * \\i + \\j), %x\\(4 * \\i + \\j), %norm;\n    mul.rn.f32      %x\\(4 * \\i + \\j), %x\\(4 * \\i + \\j), %g\\j;\n",
            "    mul.rn.f32      %g\\j, %norm, %g\\j;\n    mul.rn.f32      %x\\(4 * \\i + \\j), %x\\(4 * \\i + \\j), %g\\j;\n",
            Caught::WrongResult,
        ),
        fault(
            "the sum is fused",
            own,
            "    mul.rn.f32      %x\\(4 * \\i + \\j), %x\\(4 * \\i + \\j), %g\\j;\n    add.rn.f32      %s\\j, %s\\j, %x\\(4 * \\i + \\j);\n",
            "    fma.rn.f32      %s\\j, %x\\(4 * \\i + \\j), %g\\j, %s\\j;\n",
            Caught::WrongResult,
        ),
        fault(
            "the mean is of one value more",
            "norm.inc",
            "cvt.rn.f32.u32 %root, \\count;",
            "cvt.rn.f32.u32 %root, \\count;\n        add.rn.f32  %root, %root, 0f3f800000;",
            Caught::WrongResult,
        ),
        fault(
            "all rows are the first",
            own,
            "mul.wide.u32    %offset, %row, %dim;",
            "mul.wide.u32    %offset, 0, %dim;",
            Caught::By(Kind::GlobalRace),
        ),
    ];
    each_is_caught("add_normed.ptx", &faults, cases);
}
