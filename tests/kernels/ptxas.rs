//! The gate: NVIDIA's assembler takes every kernel for every device we name, within what the kernel's head declares.
//!
//! `// registers: 64` is the most that a thread may have, `// wants: LDSM IMMA` what must stand in the machine code. On every device: no spills, no stack, no call, no local memory. The assembler in a driver is another
//! one, hence budgets well below the limits.

use crate::{expand, harness};
use std::collections::BTreeMap;
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

/// What the assembler and nvdisasm say of one entry.
struct Entry<'a> {
    report: &'a str,
    listing: &'a str,
}

/// Assembles `texts` for `device` as one module, for each run of nvdisasm takes most of a second, whatever it lists: the
/// assembler's report and the listing, or what is wrong.
fn assemble(tools: &Path, texts: &[PathBuf], device: u32) -> Result<(String, String), String> {
    let cubin = texts[0].with_extension(format!("{device}.cubin"));
    let run = |command: &mut Command| {
        let output = command.stdin(Stdio::null()).output().map_err(|error| error.to_string())?;
        let said = [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned());
        if output.status.success() { Ok(said) } else { Err(said.concat()) }
    };
    let [_, report] = run(Command::new(tools.join("ptxas"))
        .args(["-v", "--warn-on-spills", &format!("-arch=sm_{device}"), "-o"])
        .arg(&cubin)
        .args(texts))?;
    let [listing, _] = run(Command::new(tools.join("nvdisasm")).arg("-c").arg(&cubin))?;
    Ok((report, listing))
}

/// The parts of a report and of a listing, by the entries' names.
fn entries<'a>(report: &'a str, listing: &'a str) -> BTreeMap<&'a str, Entry<'a>> {
    let code: BTreeMap<&str, &str> =
        listing.split("\n.text.").skip(1).filter_map(|part| part.split_once(":\n")).collect();
    let parts = report.split("Compiling entry function '").skip(1).filter_map(|part| part.split_once('\''));
    parts
        .map(|(name, report)| (name, Entry { report, listing: code.get(name).copied().unwrap_or_default() }))
        .collect()
}

/// A kernel, and what its head declares.
struct Kernel {
    /// Of its file and of its entry.
    name: String,
    source: String,
    expanded: String,
}

impl Kernel {
    fn of(file: &str) -> Kernel {
        let source = std::fs::read_to_string(harness::folder().join(file)).expect("the kernel");
        let name = file.strip_suffix(".ptx").expect("a kernel's file").to_owned();
        Kernel { name, source, expanded: harness::expanded(file) }
    }

    /// What is wrong with its entry, and the registers that it takes.
    fn judge(&self, entry: Option<&Entry>) -> (Vec<String>, u32) {
        let Some(Entry { report, listing }) = entry else {
            return (vec!["the assembler made no entry of the file's name".to_owned()], u32::MAX);
        };
        let mut wrong = Vec::new();
        let used = reported(report, "registers").into_iter().max().unwrap_or(u32::MAX);
        match declared(&self.source, "registers")[..] {
            [budget] if used <= budget.parse().expect("a number of registers") => {}
            [budget] => wrong.push(format!("{used} registers, its budget is {budget}")),
            _ => wrong.push("its head wants one line `// registers: N`".to_owned()),
        }
        for what in ["bytes stack frame", "bytes spill stores", "bytes spill loads"] {
            let found = reported(report, what);
            if found.is_empty() || found.iter().any(|&bytes| bytes > 0) {
                wrong.push(format!("{found:?} {what}"));
            }
        }
        let instructions = instructions(listing);
        if instructions.is_empty() {
            wrong.push("no machine code".to_owned());
        }
        for never in ["CALL", "LDL", "STL"] {
            if let Some(found) = instructions.iter().find(|name| name.split('.').next() == Some(never)) {
                wrong.push(format!("{found} in the machine code"));
            }
        }
        let wanted = declared(&self.source, "wants");
        for name in wanted.iter().filter(|wanted| !instructions.iter().any(|name| name.contains(**wanted))) {
            wrong.push(format!("no {name} in the machine code"));
        }
        (wrong, used)
    }
}

/// What is wrong with the kernels on `device`, and the registers that each takes there. `texts` are the plain modules, or
/// those whose launches overlap.
fn judge(
    tools: &Path,
    texts: &[(&Kernel, String)],
    device: u32,
    overlaps: bool,
) -> (Vec<String>, BTreeMap<String, u32>) {
    let place = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join(format!("sm_{device}{}", if overlaps { "_dependent" } else { "" }));
    std::fs::create_dir_all(&place).expect("a folder in target");
    let files: Vec<PathBuf> = texts
        .iter()
        .map(|(kernel, text)| {
            let file = place.join(format!("{}.ptx", kernel.name));
            std::fs::write(&file, text).expect("a file in target");
            file
        })
        .collect();
    let of = if overlaps { ", overlapping," } else { "" };
    let (report, listing) = match assemble(tools, &files, device) {
        Ok(made) => made,
        Err(said) => return (vec![format!("for sm_{device}{of} {said}")], BTreeMap::new()),
    };
    let entries = entries(&report, &listing);
    let (mut wrong, mut registers) = (Vec::new(), BTreeMap::new());
    if entries.len() != texts.len() {
        wrong.push(format!("for sm_{device}{of} {} files have {} entries", texts.len(), entries.len()));
    }
    for (kernel, text) in texts {
        let (mut found, used) = kernel.judge(entries.get(kernel.name.as_str()));
        if overlaps && !text.contains("griddepcontrol.wait") {
            found.push("its launches overlap, and it waits for none".to_owned());
        }
        wrong.extend(found.iter().map(|what| format!("{} for sm_{device}{of} {what}", kernel.name)));
        registers.insert(kernel.name.clone(), used);
    }
    (wrong, registers)
}

#[test]
fn ptxas_takes_every_kernel_within_its_budget() {
    let tools = tools();
    let files = expand::files(&harness::folder()).expect("the folder of the kernels");
    let list: Vec<Kernel> = files.iter().map(|file| Kernel::of(file)).collect();
    let plain: Vec<_> = list.iter().map(|kernel| (kernel, kernels::plain(&kernel.expanded))).collect();
    let overlapping: Vec<_> = list
        .iter()
        .filter_map(|kernel| kernels::dependent(&kernel.expanded).map(|text| (kernel, text)))
        .collect();
    let sweeps: Vec<_> = DEVICES
        .iter()
        .map(|device| (&plain, *device, false))
        .chain(LATER.iter().map(|device| (&overlapping, *device, true)))
        .collect();
    let (next, judged) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(&(texts, device, overlaps)) = sweeps.get(number) else { break };
                    let found = judge(&tools, texts, device, overlaps);
                    judged.lock().expect("no judge panicked").insert(number, found);
                }
            });
        }
    });
    let judged = judged.into_inner().expect("no judge panicked");
    println!("registers for sm_{DEVICES:?}, and where launches overlap for sm_{LATER:?}:");
    for kernel in &list {
        let used: Vec<&u32> = judged.values().filter_map(|(_, used)| used.get(&kernel.name)).collect();
        println!("  {:<24} {used:?}", kernel.name);
    }
    let wrong: Vec<String> = judged.into_values().flat_map(|(wrong, _)| wrong).collect();
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
    let (report, listing) = assemble(&tools, &[text], 80).expect("it assembles");
    let entries = entries(&report, &listing);
    let Entry { report, listing } = &entries["forbidden"];
    assert!(reported(report, "bytes stack frame").iter().any(|&bytes| bytes > 0), "{report}");
    assert!(reported(report, "registers").iter().any(|&count| count > 0), "{report}");
    let names: Vec<&str> = instructions(listing).iter().filter_map(|name| name.split('.').next()).collect();
    for never in ["CALL", "LDL", "STL"] {
        assert!(names.contains(&never), "{never} is not seen in\n{listing}");
    }
}
