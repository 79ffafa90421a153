//! Faults of plain code: no end, no bottom, no bound. None of them needs the model.

use crate::Mode;
use std::hint::black_box;
use std::io::Write;
use std::time::Duration;

pub const MODES: &[Mode] = &[
    ("spin", spin),
    ("recurse", recurse),
    ("allocate", allocate),
    ("grow", grow),
    ("fill", fill),
    ("copy", copy),
    ("panic", || panic!("on purpose")),
    ("unreachable", || core::arch::wasm32::unreachable()),
    ("load", load),
    ("call-null", call_null),
    ("exit", || std::process::exit(1)),
    ("exit-well", || std::process::exit(0)),
    ("log", log),
    ("log-control", log_control),
    ("sleep", sleep),
    ("sleep-long", sleep_long),
];

fn spin() -> String {
    let mut n = 0u64;
    loop {
        n = black_box(n.wrapping_add(1));
    }
}

fn recurse() -> String {
    #[allow(unconditional_recursion)]
    fn deeper(n: u64) -> u64 {
        black_box(deeper(black_box(n + 1))) + 1
    }
    format!("survived: {}", deeper(0))
}

fn allocate() -> String {
    let mut kept = Vec::new();
    loop {
        kept.push(black_box(vec![1u8; 1 << 20]));
    }
}

/// One instruction after the other, each of which writes a hundred megabytes.
fn fill() -> String {
    let mut memory = vec![0u8; 100 << 20];
    loop {
        black_box(&mut memory[..]).fill(black_box(7));
    }
}

fn copy() -> String {
    let mut memory = vec![1u8; 100 << 20];
    let half = memory.len() / 2;
    loop {
        black_box(&mut memory[..]).copy_within(..half, black_box(half));
    }
}

/// Asks for memory politely: the answer must be "no" at some point, and the program goes on.
fn grow() -> String {
    let mut pages = 0;
    while core::arch::wasm32::memory_grow::<0>(16) != usize::MAX {
        pages += 16;
    }
    format!("refused after {pages} pages")
}

/// An address past the end of any memory it may have.
fn load() -> String {
    let past = u32::MAX as usize - 7;
    // SAFETY: none, that is the point; the machine must stop it.
    let value = unsafe { black_box(past as *const u64).read_volatile() };
    format!("survived: {value}")
}

fn call_null() -> String {
    // SAFETY: none, that is the point; the table has no such entry.
    let nothing: extern "C" fn() = unsafe { std::mem::transmute(black_box(0xFFFF_usize)) };
    nothing();
    "survived".to_string()
}

/// 256 MB of log lines.
fn log() -> String {
    let line = "x".repeat(1023);
    let mut out = std::io::stdout().lock();
    for _ in 0..256 * 1024 {
        let _ = writeln!(out, "{line}");
    }
    "logged".to_string()
}

/// Lines that would clear a terminal, forge another line, or never end.
fn log_control() -> String {
    println!("\x1b[2J\x1b[H\r\0forged: \u{202e}txet");
    eprint!("no end of line");
    let _ = std::io::stdout().write_all(&[0xFF, 0xFE, b'\n']);
    "logged".to_string()
}

fn sleep() -> String {
    std::thread::sleep(Duration::from_millis(50));
    "slept".to_string()
}

fn sleep_long() -> String {
    std::thread::sleep(Duration::from_secs(1 << 40));
    "survived".to_string()
}
