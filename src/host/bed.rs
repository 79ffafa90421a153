//! For tests: calls host functions as a guest does, through a real memory and a real allocator, without a program.
//!
//! Owns: one guest's state, an engine over a backend that parrots, a bump allocator in wasm. Never: part of the
//! binary.

use super::abi::Canon;
use super::function::{Lowered, Suspended};
use super::{Cx, Trap, interface};
use crate::backend::{Backend, Batch, Fault, Info, Outcome, Output, PageId, Produced, TokenId};
use crate::engine::operation::{Command, Notice};
use crate::engine::{Engine, Handle, Reuse, credit::Credits};
use crate::exchange::{Exchange, Mailbox};
use crate::identity::{InstanceId, Subject};
use crate::model::toy::{TOY_VOCAB, Toy};
use crate::runtime::quota::{Allowance, Quotas};
use crate::runtime::{Directory, events};
use smol::channel::{Receiver, bounded};
use std::sync::Arc;
use wasmi::{AsContextMut, Config, Instance, Linker, Module, Store, Val};

/// Slots in a page of the parrot.
pub const PAGE: u32 = 4;
/// Pages in its pool.
pub const PAGES: u32 = 8;

/// A backend that says the row's number as a token, and the first ids as a distribution.
struct Parrot(Info);

impl Backend for Parrot {
    fn info(&self) -> &Info {
        &self.0
    }
    fn run(&mut self, batch: &Batch, outcome: &mut Outcome) -> Result<(), Fault> {
        let say = |output: &Output| match *output {
            Output::Token { row, .. } => Some(Produced::Token(TokenId(row))),
            Output::Distribution { top_k, .. } => Some(Produced::Distribution {
                ids: (0..top_k).map(TokenId).collect(),
                probs: (0..top_k).map(|_| 1.0 / top_k as f32).collect(),
            }),
            Output::Embed { .. } => None,
        };
        outcome.produced = batch
            .sequences
            .iter()
            .map(|sequence| sequence.outputs.iter().filter_map(say).collect())
            .collect();
        Ok(())
    }
    fn copy_page(&mut self, _: PageId, _: PageId) -> Result<(), Fault> {
        Ok(())
    }
    fn clear_page(&mut self, _: PageId, _: u32) -> Result<(), Fault> {
        Ok(())
    }
}

/// Memory of 16 MiB, the upper half handed out from its start and never taken back.
const PROGRAM: &str = r#"(module
    (memory (export "memory") 256)
    (global $free (mut i32) (i32.const 0x800000))
    (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
        (global.set $free (i32.and
            (i32.add (global.get $free) (i32.sub (local.get 2) (i32.const 1)))
            (i32.sub (i32.const 0) (local.get 2))))
        (global.get $free)
        (global.set $free (i32.add (global.get $free) (local.get 3)))))"#;

/// Where results that need memory are written.
const RESULT: u32 = 1024;
/// Where arguments are put, upward.
const ARGUMENTS: u32 = 4096;

/// What several guests share.
#[derive(Clone)]
pub struct House {
    pub engine: Handle,
    pub exchange: Arc<Exchange>,
    pub notices: Receiver<Notice>,
}

impl House {
    pub fn new() -> House {
        let info = Info {
            device: "parrot".to_owned(),
            page_size: PAGE,
            pages: PAGES,
            embeds: 4,
            batch_tokens: 64,
            vocab: TOY_VOCAB as u32,
            hidden: 64,
        };
        let (sender, notices) = bounded(64);
        let engine = Engine::start(Box::new(Parrot(info)), Box::new(()), &Reuse::default(), sender, |_| ())
            .expect("a thread");
        House { engine, exchange: Arc::default(), notices }
    }
}

/// One guest.
pub struct Bed {
    pub store: Store<Cx>,
    pub events: events::Receiver,
    pub house: House,
    canon: Canon,
    free: u32,
}

impl Bed {
    pub fn new() -> Bed {
        Bed::of(&House::new(), &Subject::everyone())
    }

    pub fn of(house: &House, subject: &Subject) -> Bed {
        let (sender, events) = events::bounded(4);
        let instance = InstanceId::random();
        let (subject, seed) = (subject.clone(), 1);
        let join = Command::Join { instance, subject: subject.clone(), seed };
        assert!(house.engine.try_send(join).is_ok(), "the inbox has room");
        let cx = Cx {
            instance,
            subject,
            arguments: vec!["--name".to_owned(), "wert äöü".to_owned()],
            seed,
            returned: String::new(),
            table: Default::default(),
            queues: Default::default(),
            names: Default::default(),
            held: Default::default(),
            model: Toy::default().model(),
            engine: house.engine.clone(),
            credits: Credits::new(),
            exchange: house.exchange.clone(),
            mailbox: Arc::new(Mailbox::default()),
            events: sender,
            directory: Directory::default(),
            insecure: super::wasi::random::Insecure::seeded(seed),
            log: super::wasi::cli::Log::new(instance, 1 << 16),
            allowance: Allowance::new(Quotas::default(), Default::default()),
            pending: None,
            may_leave: true,
            owed_fuel: 0,
        };
        let engine = wasmi::Engine::new(Config::default().consume_fuel(true));
        let mut store = Store::new(&engine, cx);
        store.set_fuel(u64::MAX / 2).expect("fuel is on");
        let wasm = wat::parse_str(PROGRAM).expect("sound text");
        let module = Module::new(&engine, &wasm[..]).expect("a sound program");
        let program: Instance =
            Linker::new(&engine).instantiate_and_start(&mut store, &module).expect("it imports nothing");
        let canon = Canon {
            memory: program.get_memory(&store, "memory"),
            realloc: program.get_func(&store, "cabi_realloc"),
        };
        Bed { store, events, house: house.clone(), canon, free: ARGUMENTS }
    }

    pub fn cx(&mut self) -> &mut Cx {
        self.store.data_mut()
    }

    /// Bytes as an argument: pointer and length.
    pub fn bytes(&mut self, bytes: &[u8]) -> [Val; 2] {
        let at = self.free;
        self.free = (at + bytes.len() as u32).next_multiple_of(8);
        let memory = self.canon.memory.expect("it has one");
        memory.write(&mut self.store, at as usize, bytes).expect("arguments fit the lower half");
        [Val::I32(at as i32), Val::I32(bytes.len() as i32)]
    }

    pub fn text(&mut self, text: &str) -> [Val; 2] {
        self.bytes(text.as_bytes())
    }

    pub fn list(&mut self, items: &[u32]) -> [Val; 2] {
        let bytes: Vec<u8> = items.iter().flat_map(|item| item.to_le_bytes()).collect();
        let [at, _] = self.bytes(&bytes);
        [at, Val::I32(items.len() as i32)]
    }

    /// Calls to the end, waiting if the call waits. Answers the core result, or where the result was written.
    pub fn call(&mut self, place: &str, name: &str, arguments: &[&[Val]]) -> Result<u64, Trap> {
        let function = interface(place).and_then(|found| found.function(name));
        let function = function.unwrap_or_else(|| panic!("{place} has no {name}"));
        let mut values: Vec<Val> = arguments.concat();
        let pointer = function.signature.returns_by_pointer();
        values.extend(pointer.then_some(Val::I32(RESULT as i32)));
        let lowered = function.signature.lowered();
        let mut results = vec![Val::I32(0); lowered.results().len()];
        let call = function.link(&mut self.store, self.canon);
        let outcome = call.call(&mut self.store, &values, &mut results);
        self.free = ARGUMENTS;
        match outcome {
            Ok(()) => {}
            Err(error) if error.downcast_ref::<Suspended>().is_some() => {
                let pending = self.cx().pending.take().expect("a suspended call waits for something");
                let mut finish = smol::block_on(pending)?;
                let value = loop {
                    match finish(self.store.as_context_mut())? {
                        Lowered::Done(value) => break value,
                        Lowered::More(next) => finish = next,
                    }
                };
                results.clear();
                results.extend(value);
            }
            Err(error) => return Err(Trap::of(error, self.cx())),
        }
        Ok(match results.first() {
            Some(Val::I32(value)) => *value as u32 as u64,
            Some(Val::I64(value)) => *value as u64,
            _ => RESULT as u64,
        })
    }

    /// The sentence that ends the guest.
    pub fn sentence(&mut self, place: &str, name: &str, arguments: &[&[Val]]) -> String {
        self.call(place, name, arguments).expect_err("the call must end the guest").to_string()
    }

    pub fn u32_at(&self, at: u64) -> u32 {
        let mut word = [0; 4];
        self.canon.memory.expect("it has one").read(&self.store, at as usize, &mut word).expect("inside");
        u32::from_le_bytes(word)
    }

    pub fn bytes_at(&self, at: u64) -> Vec<u8> {
        let (place, len) = (self.u32_at(at), self.u32_at(at + 4));
        let mut bytes = vec![0; len as usize];
        self.canon.memory.expect("it has one").read(&self.store, place as usize, &mut bytes).expect("inside");
        bytes
    }

    pub fn text_at(&self, at: u64) -> String {
        String::from_utf8(self.bytes_at(at)).expect("UTF-8")
    }

    pub fn list_at(&self, at: u64) -> Vec<u32> {
        let (place, len) = (self.u32_at(at) as u64, self.u32_at(at + 4) as u64);
        (0..len).map(|i| self.u32_at(place + 4 * i)).collect()
    }

    pub fn texts_at(&self, at: u64) -> Vec<String> {
        let (place, len) = (self.u32_at(at) as u64, self.u32_at(at + 4) as u64);
        (0..len).map(|i| self.text_at(place + 8 * i)).collect()
    }
}

/// A handle or a number as an argument.
pub fn number(value: u64) -> [Val; 1] {
    [Val::I32(value as u32 as i32)]
}

pub fn float(value: f32) -> [Val; 1] {
    [Val::F32(value.into())]
}
