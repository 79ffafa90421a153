//! griddepcontrol: a launch that starts before the one before it has ended.

use crate::harness::{HEAD_90, Run};
use ptx_emulator::{Fault, Kind, Parameters};

/// Adds `weights` to `from` into `to`, 64 words; `older` is what `from` was made of. The line after
/// `#` is line 7 of overlap.ptx.
fn text(body: &str) -> String {
    let body = body.replace("#\n", "\n# 7 \"overlap.ptx\"\n");
    format!(
        "{HEAD_90}.visible .entry add(
    .param .u64 weights, .param .u64 older, .param .u64 from, .param .u64 to
) {{
    .reg .pred %p, %q; .reg .b64 %weights, %older, %from, %to; .reg .b32 %i, %v, %w;
    .shared .align 16 .b32 tile[64];
    ld.param.u64 %weights, [weights]; ld.param.u64 %older, [older];
    ld.param.u64 %from, [from]; ld.param.u64 %to, [to];
    mov.u32 %i, %tid.x;
    setp.eq.u32 %p, %i, 0; setp.lt.u32 %q, %i, 32;
    mad.wide.u32 %weights, %i, 4, %weights;
    mad.wide.u32 %from, %i, 4, %from;
    mad.wide.u32 %to, %i, 4, %to;
    {body}
    ret;
}}"
    )
}

const WEIGHTS: &str = "ld.global.u32 %w, [%weights];";
const WAIT: &str = "griddepcontrol.wait;";
const EARLY: &str = "griddepcontrol.launch_dependents;";
const SUM: &str = "ld.global.u32 %v, [%from]; add.u32 %v, %v, %w; st.global.u32 [%to], %v;";

/// Runs the bodies one after the other over the same buffers, each from the last one's result to the next
/// buffer: the last result.
fn chain(bodies: &[String], seed: u64) -> Result<Vec<u32>, Fault> {
    let mut run = Run::new(1, 64);
    run.options.seed = seed;
    let bytes: Vec<u8> = (0..64u32).flat_map(u32::to_le_bytes).collect();
    let weights = run.memory.upload("weights", &bytes);
    let mut older = weights;
    let mut from = run.memory.upload("first", &bytes);
    for (n, body) in bodies.iter().enumerate() {
        let to = run.memory.upload(&format!("result {n}"), &[0; 256]);
        run.go(&text(body), &Parameters::new().u64(weights).u64(older).u64(from).u64(to))?;
        (older, from) = (from, to);
    }
    Ok(run.words(from, 64))
}

fn fine(bodies: &[String]) {
    for seed in 0..4 {
        let got = chain(bodies, seed).unwrap_or_else(|fault| panic!("seed {seed}: {fault}"));
        let want: Vec<u32> = (0..64).map(|n| n * (1 + bodies.len() as u32)).collect();
        assert_eq!(got, want, "seed {seed}");
    }
}

fn caught(bodies: &[String]) -> Fault {
    let faults = (0..4).map(|seed| chain(bodies, seed).expect_err("a fault"));
    let mut all: Vec<Fault> = faults.collect();
    for fault in &all {
        let at = (fault.kind, fault.file.as_str(), fault.line);
        assert_eq!(at, (Kind::GridNotWaited, "overlap.ptx", 7), "{fault}");
    }
    all.swap_remove(0)
}

fn plain() -> String {
    format!("{WEIGHTS} {SUM}")
}

#[test]
fn what_the_launch_before_wrote_is_read_behind_the_wait() {
    let right = format!("{WEIGHTS} {WAIT} {SUM} {EARLY}");
    fine(&[plain(), right.clone(), right.clone(), plain(), right]);
    let fault = caught(&[plain(), format!("{WEIGHTS}\n#\n{SUM} {WAIT}")]);
    assert!(fault.sentence.contains("reads byte 0 of `result 0` before griddepcontrol.wait"), "{fault}");
    let copy = "mov.u32 %v, tile; mad.lo.u32 %v, %i, 4, %v;\n#\ncp.async.ca.shared.global [%v], [%from], 4;";
    caught(&[plain(), format!("{copy} cp.async.wait_all; {WAIT} {WEIGHTS} {SUM}")]);
    // Writes come too early as well as reads.
    caught(&[plain(), format!("{WEIGHTS}\n#\nred.global.add.u32 [%from], %w; {WAIT} {SUM}")]);
    caught(&[plain(), format!("{WEIGHTS}\n#\nst.global.u32 [%from], %w; {WAIT} {SUM}")]);
}

#[test]
fn without_the_wait_a_launch_starts_after_the_others() {
    fine(&[plain(), plain(), format!("{EARLY} {}", plain()), plain()]);
    // The first launch of all has none before it.
    fine(&[format!("{} {WAIT}", plain())]);
}

#[test]
fn a_thread_waits_for_itself_or_for_its_barrier() {
    fine(&[plain(), format!("{WEIGHTS} @%p {WAIT} bar.sync 0; {SUM}")]);
    let one = format!("{WEIGHTS} @%q {WAIT}\n#\n{SUM}");
    assert_eq!(caught(&[plain(), one]).thread, [32, 0, 0]);
    let lane = format!("{WEIGHTS} @%p {WAIT} bar.warp.sync -1;\n#\n{SUM}");
    assert_eq!(caught(&[plain(), lane]).thread, [32, 0, 0]);
}

#[test]
fn launches_that_let_others_start_early_run_on_beside_them() {
    // The third reads, before its wait, what the first wrote: harmless where the second had waited when it
    // let the third start.
    let second = "ld.global.u32 %v, [%from]; st.global.u32 [%to], %v;";
    let third = format!("\n#\nld.global.u32 %v, [%older]; {WAIT} {WEIGHTS} {SUM}");
    let run = |second: String| chain(&[plain(), second, third.clone()], 0);
    let at = |result: Result<Vec<u32>, Fault>| result.map_err(|fault| (fault.kind, fault.line)).map(drop);
    assert_eq!(at(run(format!("{WAIT} {EARLY} {second}"))), Ok(()));
    assert_eq!(at(run(format!("{EARLY} {WAIT} {second}"))), Err((Kind::GridNotWaited, 7)));
    assert_eq!(at(run(format!("{EARLY} {second}"))), Ok(()));
}
