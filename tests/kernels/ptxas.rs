//! The gate: NVIDIA's assembler takes every kernel for every device we name, within what the kernel's head declares.
//!
//! `// registers: 64` is the most that a thread may have, `// wants: LDSM IMMA` what must stand in the machine code. On every device: no spills, no stack, no call, no local memory. The assembler in a driver is another
//! one, hence budgets well below the limits.

use crate::{expand, harness};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use tartlet::backend::cuda::kernels;

const DEVICES: [u32; 8] = [80, 86, 87, 89, 90, 100, 110, 120];
/// Those of them that take modules whose launches overlap.
const LATER: [u32; 4] = [90, 100, 110, 120];

/// Where the assembler lies.
fn tools() -> PathBuf {
    let folder = std::env::var_os("TARTLET_PTXAS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/ptxas"), PathBuf::from);
    assert!(
        folder.join("ptxas").is_file(),
        "there is no ptxas in {}: run `make ptxas` first",
        folder.display()
    );
    folder
}

/// What a kernel's head declares after `// <word>:`, over all its lines of that word.
fn declared<'a>(text: &'a str, word: &str) -> Vec<&'a str> {
    let lines = text.lines().take_while(|line| line.starts_with("//"));
    lines
        .filter_map(|line| line.strip_prefix("// ")?.strip_prefix(word)?.strip_prefix(':'))
        .flat_map(str::split_whitespace)
        .collect()
}

/// The numbers before `what` in the assembler's report, of all kernels in it.
fn reported(report: &str, what: &str) -> Vec<u32> {
    let words: Vec<&str> =
        report.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).collect();
    let what: Vec<&str> = what.split(' ').collect();
    let at = (1..words.len()).filter(|&at| words[at..].starts_with(&what));
    at.filter_map(|at| words[at - 1].parse().ok()).collect()
}

/// The instructions in nvdisasm's listing, without predicate and operands.
fn instructions(listing: &str) -> Vec<&str> {
    let code = listing.lines().filter_map(|line| line.trim().strip_prefix("/*")?.split_once("*/"));
    let words = code.filter_map(|(_, code)| code.split_whitespace().find(|word| !word.starts_with('@')));
    words.map(|word| word.trim_end_matches(';')).collect()
}

/// Assembles `text` for `device`: the assembler's report and the instructions' names, or what it says is wrong.
fn assemble(tools: &Path, text: &Path, device: u32) -> Result<(String, String), String> {
    let cubin = text.with_extension(format!("{device}.cubin"));
    let run = |command: &mut Command| {
        let output = command.stdin(Stdio::null()).output().map_err(|error| error.to_string())?;
        let said = [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned());
        if output.status.success() { Ok(said) } else { Err(said.concat()) }
    };
    let [_, report] = run(Command::new(tools.join("ptxas"))
        .args(["-v", "--warn-on-spills", &format!("-arch=sm_{device}"), "-o"])
        .arg(&cubin)
        .arg(text))?;
    let [listing, _] = run(Command::new(tools.join("nvdisasm")).arg("-c").arg(&cubin))?;
    Ok((report, listing))
}

/// What is wrong with `file`, and the registers it takes on each device.
fn judge(tools: &Path, file: &str) -> (Vec<String>, Vec<u32>) {
    let source = std::fs::read_to_string(harness::folder().join(file)).expect("the kernel");
    let expanded = harness::expanded(file);
    let mut texts = vec![(DEVICES.to_vec(), file.to_owned(), kernels::plain(&expanded))];
    texts.extend(
        kernels::dependent(&expanded).map(|text| (LATER.to_vec(), format!("dependent_{file}"), text)),
    );
    let budget: u32 = match declared(&source, "registers")[..] {
        [budget] => budget.parse().expect("a number of registers"),
        _ => return (vec![format!("{file} wants one line `// registers: N` in its head")], Vec::new()),
    };
    let wanted = declared(&source, "wants");
    let (mut wrong, mut registers) = (Vec::new(), Vec::new());
    let each = texts.iter().flat_map(|(devices, name, text)| devices.iter().map(move |it| (*it, name, text)));
    for (device, name, text) in each {
        let mut say = |what: String| wrong.push(format!("{name} for sm_{device}: {what}"));
        let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::write(&place, text).expect("a file in target");
        if name != file && !text.contains("griddepcontrol.wait") {
            say("its launches overlap, and it waits for none".to_owned());
        }
        let (report, listing) = match assemble(tools, &place, device) {
            Ok(made) => made,
            Err(said) => {
                say(said);
                continue;
            }
        };
        let used = reported(&report, "registers").into_iter().max().unwrap_or(u32::MAX);
        registers.push(used);
        if used > budget {
            say(format!("{used} registers, its budget is {budget}"));
        }
        for what in ["bytes stack frame", "bytes spill stores", "bytes spill loads"] {
            let found = reported(&report, what);
            if found.is_empty() || found.iter().any(|&bytes| bytes > 0) {
                say(format!("{found:?} {what}"));
            }
        }
        let instructions = instructions(&listing);
        for never in ["CALL", "LDL", "STL"] {
            if let Some(found) = instructions.iter().find(|name| name.split('.').next() == Some(never)) {
                say(format!("{found} in the machine code"));
            }
        }
        for name in wanted.iter().filter(|wanted| !instructions.iter().any(|name| name.contains(**wanted))) {
            say(format!("no {name} in the machine code"));
        }
    }
    (wrong, registers)
}

#[test]
fn ptxas_takes_every_kernel_within_its_budget() {
    let tools = tools();
    let files = expand::files(&harness::folder()).expect("the folder of the kernels");
    let (next, judged) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some(file) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let found = judge(&tools, file);
                    judged.lock().expect("no judge panicked").push((file, found));
                }
            });
        }
    });
    let mut judged = judged.into_inner().expect("no judge panicked");
    judged.sort();
    println!("registers for sm_{DEVICES:?}, and where launches overlap for sm_{LATER:?}:");
    for (file, (_, registers)) in &judged {
        println!("  {file:<24} {registers:?}");
    }
    let wrong: Vec<String> = judged.into_iter().flat_map(|(_, (wrong, _))| wrong).collect();
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// The gate's own eyes: each thing it forbids is in this kernel's reports.
#[test]
fn the_gate_sees_what_it_forbids() {
    let tools = tools();
    let text = Path::new(env!("CARGO_TARGET_TMPDIR")).join("forbidden.ptx");
    let kernel = "
        .version 7.4
        .target sm_80
        .address_size 64
        .func (.reg .f32 %y) other(.reg .f32 %x) { sqrt.rn.f32 %y, %x; ret; }
        .visible .entry forbidden(.param .u64 at, .param .u32 i) {
            .local .align 4 .b8 kept[64];
            .reg .b64 %at, %l; .reg .b32 %i; .reg .f32 %x;
            ld.param.u64 %at, [at];
            ld.param.u32 %i, [i];
            mov.u64 %l, kept;
            mad.wide.u32 %l, %i, 4, %l;
            ld.global.f32 %x, [%at];
            call (%x), other, (%x);
            st.local.f32 [%l], %x;
            ld.local.f32 %x, [%l + 4];
            st.global.f32 [%at], %x;
            ret;
        }";
    std::fs::write(&text, kernel).expect("a file in target");
    let (report, listing) = assemble(&tools, &text, 80).expect("it assembles");
    assert!(reported(&report, "bytes stack frame").iter().any(|&bytes| bytes > 0), "{report}");
    assert!(reported(&report, "registers").iter().any(|&count| count > 0), "{report}");
    let names: Vec<&str> = instructions(&listing).iter().filter_map(|name| name.split('.').next()).collect();
    for never in ["CALL", "LDL", "STL"] {
        assert!(names.contains(&never), "{never} is not seen in\n{listing}");
    }
}
