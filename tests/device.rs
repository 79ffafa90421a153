//! The device as the backend sees it, on the stand-in driver: what is refused and in which words, what a graph and a wait
//! do, and that a fault is final.
//!
//! One test: the stand-in driver is one device of one process, and a device that is lost stays so.

mod support;

use std::time::Duration;
use support::stand_in::stand_in;
use tartlet::backend::cuda::{Argument, Buffer, Device, Error, Kernel, Stream};

const PATIENCE: Duration = Duration::from_secs(60);

/// A kernel of one instruction that matters: thread 0 of each CTA stores `value` at `to`.
fn store(name: &str, head: &str) -> String {
    format!(
        "{head}
.version 7.4
.target sm_80
.address_size 64
.extern .shared .align 16 .b8 staged[];
.visible .entry {name}(.param .u64 to, .param .u32 value)
{{
    .reg .pred  %other;
    .reg .u64   %to;
    .reg .u32   %value, %thread, %place;
    ld.param.u64 %to, [to];
    ld.param.u32 %value, [value];
    mov.u32     %place, staged;
    mov.u32     %thread, %tid.x;
    setp.ne.u32 %other, %thread, 0;
    @%other bra DONE;
    st.global.u32 [%to], %value;
DONE:
    ret;
}}
"
    )
}

struct Bench {
    device: Device,
    stream: Stream,
    kernel: Kernel,
    to: Buffer,
}

impl Bench {
    fn launch(&self, stream: &Stream, block: u32, shared: u32, value: u32) -> Result<(), Error> {
        let arguments = [Argument::Buffer(&self.to), Argument::U32(value)];
        // SAFETY: the kernel stores four bytes, which `to` has; it lives as long as the stream.
        unsafe { stream.launch(&self.kernel, [1, 1, 1], [block, 1, 1], shared, &arguments) }
    }

    fn value(&mut self) -> u32 {
        let mut bytes = [0; 4];
        self.stream.download(&self.to, 0, &mut bytes).expect("a download");
        u32::from_le_bytes(bytes)
    }
}

fn refused(ended: Result<(), Error>, call: &str, code: i32) {
    match ended {
        Err(Error::Refused { call: by, code: with }) if by == call && with == code => {}
        other => panic!("not refused by {call} with {code}: {other:?}"),
    }
}

#[test]
fn the_device_layer_does_its_part() {
    let device = Device::open(Some(stand_in())).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!((device.properties().capability, device.properties().driver), ((8, 0), 11_040));
    let stream = device.stream(PATIENCE).expect("a stream");
    let kernel = device.kernel("store", &store("store", "// registers: 32")).expect("a kernel");
    assert_eq!((kernel.properties().registers, kernel.properties().local_bytes), (32, 0));
    let to = device.buffer(4).expect("a buffer");
    let mut bench = Bench { device, stream, kernel, to };
    bench.stream.upload(&7u32.to_le_bytes(), &bench.to, 0).expect("an upload");

    work_is_done_when_somebody_waits(&mut bench);
    launches_are_checked(&mut bench);
    ptx_is_refused_with_its_place(&bench);
    memory_has_an_end(&bench);
    a_capture_bears_no_allocation(&mut bench);
    a_graph_does_its_work_each_time(&mut bench);
    a_fault_is_final(bench);
}

fn work_is_done_when_somebody_waits(bench: &mut Bench) {
    let event = bench.device.event().expect("an event");
    assert!(event.is_past().expect("a status"), "never recorded: nothing to wait for");
    bench.launch(&bench.stream, 32, 0, 8).expect("a launch");
    bench.stream.record(&event).expect("a record");
    assert!(!event.is_past().expect("a status"));
    bench.stream.wait().expect("done");
    assert!(event.is_past().expect("a status"));
    assert_eq!(bench.value(), 8);
}

fn launches_are_checked(bench: &mut Bench) {
    // 64 registers for each of 1024 threads are all that there are.
    let wide = bench.device.kernel("wide", &store("wide", "// registers: 65")).expect("a kernel");
    let narrow = std::mem::replace(&mut bench.kernel, wide);
    refused(bench.launch(&bench.stream, 1024, 0, 1), "cuLaunchKernel", 701);
    bench.launch(&bench.stream, 896, 0, 9).expect("28 warps of 72 registers fit");
    bench.kernel = narrow;

    refused(bench.launch(&bench.stream, 2048, 0, 1), "cuLaunchKernel", 1);
    refused(bench.launch(&bench.stream, 0, 0, 1), "cuLaunchKernel", 1);
    refused(bench.launch(&bench.stream, 32, (48 << 10) + 1, 1), "cuLaunchKernel", 1);
    bench.launch(&bench.stream, 32, 48 << 10, 10).expect("so much nobody has to ask for");
    assert_eq!(bench.value(), 10);

    for (arguments, words) in [
        (&[Argument::Buffer(&bench.to)][..], "2 parameters, but 1 arguments"),
        (&[Argument::U32(1), Argument::U32(1)], "parameter 0 is Bits64, but Bits32"),
        (&[Argument::Buffer(&bench.to), Argument::F32(1.0)], "parameter 1 is Bits32, but F32"),
    ] {
        // SAFETY: nothing is launched.
        let ended = unsafe { bench.stream.launch(&bench.kernel, [1; 3], [32, 1, 1], 0, arguments) };
        let sentence = ended.expect_err(words).to_string();
        assert!(sentence.contains(words), "{sentence}");
    }
    let beyond = bench.stream.upload(&[0; 5], &bench.to, 0).expect_err("five bytes into four");
    assert!(beyond.to_string().contains("leave a buffer of 4"), "{beyond}");
}

fn ptx_is_refused_with_its_place(bench: &Bench) {
    let wrong = store("wrong", "")
        .replace("setp.ne.u32", "setp.nx.u32")
        .replace(".version", "# 20 \"wrong.inc\"\n.version");
    let error = bench.device.kernel("wrong", &wrong).map(drop).expect_err("nx is no comparison");
    assert!(matches!(&error, Error::Kernel { code: 218, log, .. } if log.contains("wrong.inc")), "{error:?}");
    // What is newer than the driver says so.
    let newer = store("newer", "").replace(".version 7.4", ".version 8.0");
    let error = bench.device.kernel("newer", &newer).map(drop).expect_err("CUDA 11.4 ends at PTX 7.4");
    assert!(matches!(error, Error::Kernel { code: 222, .. }), "{error:?}");
    assert!(error.to_string().ends_with("Install a newer driver."), "{error}");
    let error = bench.device.kernel("other", &store("store", "")).map(drop).expect_err("no such entry");
    assert!(matches!(error, Error::Launch { .. }), "{error:?}");
}

fn memory_has_an_end(bench: &Bench) {
    let total = bench.device.properties().memory;
    match bench.device.buffer(total).map(drop) {
        Err(Error::OutOfMemory { wanted, free, .. }) => {
            assert!(wanted == total && free < total && free > total / 2)
        }
        other => panic!("{other:?}"),
    }
}

fn a_capture_bears_no_allocation(bench: &mut Bench) {
    let ended = bench.stream.capture(|stream| {
        bench.launch(stream, 32, 0, 11)?;
        bench.device.buffer(16).map(drop)
    });
    refused(ended.map(drop), "cuMemAlloc_v2", 900);
    let ended = bench.stream.capture(|stream| stream.wait());
    refused(ended.map(drop), "cuEventQuery", 900);
    // Nothing of a capture that failed has run, and the stream works on.
    assert_eq!(bench.value(), 10);
}

fn a_graph_does_its_work_each_time(bench: &mut Bench) {
    let graph = bench.stream.capture(|stream| bench.launch(stream, 32, 0, 12)).expect("a graph");
    for before in [1u32, 2] {
        bench.stream.upload(&before.to_le_bytes(), &bench.to, 0).expect("an upload");
        assert_eq!(bench.value(), before);
        // SAFETY: `to` lives.
        unsafe { bench.stream.replay(&graph).expect("a launch") };
        assert_eq!(bench.value(), 12);
    }
}

fn a_fault_is_final(bench: Bench) {
    let arguments = [Argument::Address(bench.to.address() + 4096), Argument::U32(1)];
    // SAFETY: none; the stand-in driver's device has bounds.
    unsafe { bench.stream.launch(&bench.kernel, [1; 3], [32, 1, 1], 0, &arguments).expect("not seen yet") };
    let error = bench.stream.wait().expect_err("a store outside of all memory");
    assert_eq!(error, Error::Lost { call: "cuEventQuery", code: 700 });
    assert!(error.is_final() && bench.device.is_lost());
    let again = bench.device.buffer(4).map(drop).expect_err("the device is lost");
    assert_eq!(again, Error::Lost { call: "cuMemAlloc_v2", code: 700 });
    // All of it is dropped now, and nothing is asked of the device.
}
