//! Small kernels for the tests. With PTXAS set to a ptxas, every text is assembled too: what the emulator
//! takes, ptxas takes.

use ptx_emulator::{Counts, Fault, Launch, Memory, Module, Options, Parameters, launch};

pub const HEAD: &str = ".version 7.4\n.target sm_80\n.address_size 64\n";

/// The head of what sm_80 lacks.
pub const HEAD_90: &str = ".version 7.8\n.target sm_90\n.address_size 64\n";

pub fn module(text: &str) -> Module {
    assemble(text);
    match Module::parse(text) {
        Ok(module) => module,
        Err(error) => panic!("{error}\n{text}"),
    }
}

fn assemble(text: &str) {
    let Some(ptxas) = std::env::var_os("PTXAS") else { return };
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("emulator-test-{}-{number}.ptx", std::process::id()));
    std::fs::write(&path, text).expect("a file for ptxas");
    let target = text.split(".target ").nth(1).and_then(|rest| rest.split_whitespace().next());
    let out = std::process::Command::new(ptxas)
        .args([&format!("-arch={}", target.expect("a .target")), "-o", "/dev/null"])
        .arg(&path)
        .output()
        .expect("ptxas runs");
    std::fs::remove_file(&path).expect("the file is there");
    assert!(out.status.success(), "{}\n{text}", String::from_utf8_lossy(&out.stderr));
}

/// A run of the first kernel of a text over device memory.
pub struct Run {
    pub memory: Memory,
    pub grid: u32,
    pub block: u32,
    pub shared: u32,
    pub options: Options,
}

impl Run {
    pub fn new(grid: u32, block: u32) -> Run {
        Run { memory: Memory::new(), grid, block, shared: 0, options: Options::default() }
    }

    pub fn go(&mut self, text: &str, parameters: &Parameters) -> Result<Counts, Fault> {
        let module = module(text);
        let kernel = module.kernels().next().expect("a kernel");
        let launched = Launch {
            grid: [self.grid, 1, 1],
            block: [self.block, 1, 1],
            shared: self.shared,
            parameters: parameters.bytes(),
        };
        launch(kernel, &mut self.memory, &launched, &self.options)
    }

    pub fn words(&self, address: u64, count: usize) -> Vec<u32> {
        let bytes = self.memory.read(address, count * 4).expect("written words");
        bytes.chunks(4).map(|word| u32::from_le_bytes(word.try_into().expect("4 bytes"))).collect()
    }
}

pub fn bytes_of(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// What `body` makes of three 64-bit operands per thread: it finds them in %a, %b, %c (.b64), their low words
/// in %x, %y, %z (.b32) and %f, %g, %h (.f32), their low halves in %i, %j, %k (.b16), as doubles in %u, %v,
/// %w, and leaves its result in %d (.b64).
pub fn each(body: &str, operands: &[[u64; 3]]) -> Vec<u64> {
    each_seeded(body, operands, 0)
}

pub fn each_seeded(body: &str, operands: &[[u64; 3]], seed: u64) -> Vec<u64> {
    let text = format!(
        "{HEAD}.visible .entry each(.param .u64 from, .param .u64 to, .param .u32 count) {{
    .reg .pred %past, %p, %q, %r;
    .reg .b64 %a, %b, %c, %d, %e, %at, %out;
    .reg .b32 %x, %y, %z, %s, %t, %n, %count, %thread, %bx, %bn;
    .reg .f32 %f, %g, %h, %l;
    .reg .b16 %i, %j, %k, %m;
    .reg .f64 %u, %v, %w, %o;
    ld.param.u64 %at, [from];
    ld.param.u64 %out, [to];
    ld.param.u32 %count, [count];
    mov.u32 %thread, %tid.x;
    mov.u32 %bx, %ctaid.x;
    mov.u32 %bn, %ntid.x;
    mad.lo.u32 %thread, %bx, %bn, %thread;
    setp.ge.u32 %past, %thread, %count;
    @%past ret;
    mad.wide.u32 %at, %thread, 24, %at;
    mad.wide.u32 %out, %thread, 8, %out;
    ld.global.b64 %a, [%at];
    ld.global.b64 %b, [%at+8];
    ld.global.b64 %c, [%at+16];
    cvt.u32.u64 %x, %a; cvt.u32.u64 %y, %b; cvt.u32.u64 %z, %c;
    mov.b32 %f, %x; mov.b32 %g, %y; mov.b32 %h, %z;
    cvt.u16.u64 %i, %a; cvt.u16.u64 %j, %b; cvt.u16.u64 %k, %c;
    mov.b64 %u, %a; mov.b64 %v, %b; mov.b64 %w, %c;
    {body}
    st.global.b64 [%out], %d;
    ret;
}}"
    );
    let mut run = Run::new((operands.len() as u32).div_ceil(64), 64);
    run.options.seed = seed;
    let bytes: Vec<u8> = operands.iter().flatten().flat_map(|word| word.to_le_bytes()).collect();
    let from = run.memory.upload("operands", &bytes);
    let to = run.memory.alloc(operands.len() * 8, "results");
    let parameters = Parameters::new().u64(from).u64(to).u32(operands.len() as u32);
    if let Err(fault) = run.go(&text, &parameters) {
        panic!("{fault}\n{text}");
    }
    let bytes = run.memory.read(to, operands.len() * 8).expect("results");
    bytes.chunks(8).map(|word| u64::from_le_bytes(word.try_into().expect("8 bytes"))).collect()
}

/// `each` whose body leaves a 32-bit result in %t.
pub fn each32(body: &str, operands: &[[u64; 3]]) -> Vec<u32> {
    let body = format!("{body}\ncvt.u64.u32 %d, %t;");
    each(&body, operands).into_iter().map(|value| value as u32).collect()
}

/// `each` whose body leaves an f32 in %l.
pub fn each_float(body: &str, operands: &[[u64; 3]]) -> Vec<f32> {
    each32(&format!("{body}\nmov.b32 %t, %l;"), operands).into_iter().map(f32::from_bits).collect()
}

/// A small generator for operands.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// Numbers with the edges among them.
    pub fn edges(&mut self) -> u64 {
        let edges = [
            0,
            1,
            31,
            32,
            33,
            63,
            64,
            0x7fff,
            0x8000,
            0xffff,
            0x7fff_ffff,
            0x8000_0000,
            0xffff_ffff,
            0x7fff_ffff_ffff_ffff,
            0x8000_0000_0000_0000,
            u64::MAX,
        ];
        match self.next() % 3 {
            0 => edges[self.next() as usize % edges.len()],
            _ => self.next(),
        }
    }

    /// Floats: ordinary ones and the special ones.
    pub fn float(&mut self) -> f32 {
        let special = [
            0.0,
            -0.0,
            1.0,
            -1.0,
            f32::INFINITY,
            f32::NEG_INFINITY,
            f32::NAN,
            f32::MAX,
            f32::MIN_POSITIVE,
            1e-40,
            -1e-41,
            0.5,
            2.5,
            -3.5,
            65504.0,
            65520.0,
            1e-7,
            3e38,
        ];
        match self.next() % 4 {
            0 => special[self.next() as usize % special.len()],
            1 => f32::from_bits(self.next() as u32),
            _ => (self.next() as i32 as f32) / 65536.0,
        }
    }

    pub fn triples(&mut self, count: usize) -> Vec<[u64; 3]> {
        (0..count).map(|_| [self.edges(), self.edges(), self.edges()]).collect()
    }

    pub fn float_triples(&mut self, count: usize) -> Vec<[u64; 3]> {
        (0..count).map(|_| std::array::from_fn(|_| u64::from(self.float().to_bits()))).collect()
    }
}
