//! For tests: calls host functions as a guest does, through a real memory and a real allocator, without a program.
//!
//! Owns: one guest's state, an engine over a backend that parrots, a bump allocator in wasm. Never: part of the
//! binary.

use super::abi::Canon;
use super::function::{Finish, Lowered, Pending, Suspended};
use super::held::Meter;
use super::{Cx, Trap, interface};
use crate::backend::{Backend, Batch, Fault, Info, Outcome, Output, PageId, Produced, TokenId};
use crate::engine::operation::{Command, Notice, PageQuotas};
use crate::engine::{Engine, Handle, Reuse, credit::Credits};
use crate::exchange::{Exchange, Mailbox};
use crate::identity::{InstanceId, Subject};
use crate::model::Model;
use crate::model::toy::{TOY_VOCAB, Toy};
use crate::pacer::Pacer;
use crate::quota::Quotas;
use crate::runtime::account::Account;
use crate::runtime::aside::Aside;
use crate::runtime::quota::Allowance;
use crate::runtime::table::Table;
use crate::runtime::{Directory, events};
use smol::channel::{Receiver, bounded};
use std::sync::Arc;
use wasmi::{AsContextMut, Config, Global, Instance, Linker, Module, Store, Val};

/// Slots in a page of the parrot.
pub const PAGE: u32 = 4;
/// Pages in its pool.
pub const PAGES: u32 = 8;

/// A backend that says the row's number as a token, and the first ids as a distribution.
struct Parrot(Info, Outcome);

impl Backend for Parrot {
    fn info(&self) -> &Info {
        &self.0
    }
    fn submit(&mut self, batch: &Batch) -> Result<(), Fault> {
        let say = |output: &Output| match *output {
            Output::Token { row, .. } => Some(Produced::Token(TokenId(row))),
            Output::Distribution { top_k, .. } => Some(Produced::Distribution {
                ids: (0..top_k).map(TokenId).collect(),
                probs: (0..top_k).map(|_| 1.0 / top_k as f32).collect(),
            }),
            Output::Embed { .. } => None,
        };
        self.1.produced = batch
            .sequences
            .iter()
            .map(|sequence| sequence.outputs.iter().filter_map(say).collect())
            .collect();
        Ok(())
    }
    fn collect(&mut self, outcome: &mut Outcome, _pause: bool) -> Result<bool, Fault> {
        std::mem::swap(outcome, &mut self.1);
        Ok(true)
    }
    fn copy_page(&mut self, _: PageId, _: PageId) -> Result<(), Fault> {
        Ok(())
    }
    fn clear_page(&mut self, _: PageId, _: u32) -> Result<(), Fault> {
        Ok(())
    }
}

/// Memory of so many wasm pages, the upper half handed out from its start; [`Bed::forget_answers`] takes all of it back.
fn program(pages: u32) -> String {
    let upper = pages / 2 * 65_536;
    format!(
        r#"(module
            (memory (export "memory") {pages})
            (global $free (export "free") (mut i32) (i32.const {upper}))
            (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
                (global.set $free (i32.and
                    (i32.add (global.get $free) (i32.sub (local.get 2) (i32.const 1)))
                    (i32.sub (i32.const 0) (local.get 2))))
                (global.get $free)
                (global.set $free (i32.add (global.get $free) (local.get 3)))))"#
    )
}

/// Wasm pages of a guest's memory, where a test needs no other: 16 MiB.
const MEMORY: u32 = 256;
/// Where results that need memory are written.
pub const RESULT: u32 = 1024;
/// Where arguments are put, upward.
const ARGUMENTS: u32 = 4096;

/// What several guests share.
#[derive(Clone)]
pub struct House {
    pub engine: Handle,
    pub exchange: Arc<Exchange>,
    pub notices: Receiver<Notice>,
    model: Arc<Model>,
    aside: Aside,
    /// [`program`], translated once.
    program: Arc<(wasmi::Engine, Module)>,
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
        House::over(Toy::default().model(), Box::new(Parrot(info, Outcome::default())), MEMORY, |_| ())
    }

    /// A house with this backend, whose guests have so many wasm pages of memory; `on_fault` is told should its engine
    /// end.
    pub fn over(
        model: Arc<Model>,
        backend: Box<dyn Backend + Send>,
        memory: u32,
        on_fault: impl FnOnce(String) + Send + 'static,
    ) -> House {
        let (sender, notices) = bounded(64);
        let backend = move || Ok::<Box<dyn Backend>, ()>(backend);
        let engine =
            Engine::start(backend, Box::new(()), Reuse::default(), sender, on_fault).expect("a thread");
        let wasm = wat::parse_str(program(memory)).expect("sound text");
        let guests = wasmi::Engine::new(Config::default().consume_fuel(true));
        let program = Module::new(&guests, &wasm[..]).expect("a sound program");
        let aside = Aside::alone(1);
        House {
            engine,
            exchange: Arc::default(),
            notices,
            model,
            aside,
            program: Arc::new((guests, program)),
        }
    }
}

/// One guest.
pub struct Bed {
    pub store: Store<Cx>,
    pub events: events::Receiver,
    pub house: House,
    /// In how many goes the last answer came.
    pub goes: usize,
    canon: Canon,
    /// Where the program's allocator goes on, and where it began.
    answers: (Global, Val),
    free: u32,
}

impl Bed {
    pub fn new() -> Bed {
        Bed::of(&House::new(), &Subject::everyone())
    }

    pub fn of(house: &House, subject: &Subject) -> Bed {
        Bed::seeded(house, subject, 1)
    }

    /// A guest whose draws have this seed.
    pub fn seeded(house: &House, subject: &Subject, seed: u64) -> Bed {
        let (sender, events) = events::bounded(4);
        let instance = InstanceId::random();
        let subject = subject.clone();
        let join = Command::Join { instance, subject: subject.clone(), pages: PageQuotas::default(), seed };
        assert!(house.engine.try_send(join).is_ok(), "the inbox has room");
        let (quotas, account) = (Quotas::default(), Account::alone());
        let held = Meter::new(&quotas, account.memory(&quotas));
        let (outgoing, _) = crate::outgoing::outgoing(Default::default());
        let cx = Cx {
            instance,
            line: outgoing.line(instance, subject.clone(), &Default::default(), Pacer::default()),
            subject,
            arguments: vec!["--name".to_owned(), "wert äöü".to_owned()],
            seed,
            returned: String::new(),
            table: Table::new(&quotas, &held),
            queues: Default::default(),
            names: Default::default(),
            held,
            model: house.model.clone(),
            engine: house.engine.clone(),
            aside: house.aside.clone(),
            credits: Credits::default(),
            exchange: house.exchange.clone(),
            mailbox: Arc::new(Mailbox::new(&quotas, account.unread(&quotas))),
            events: sender,
            directory: Directory::default(),
            servers: Default::default(),
            insecure: super::wasi::random::Insecure::seeded(seed),
            log: super::wasi::cli::Log::new(instance, &quotas, account.clone()),
            allowance: Allowance::new(quotas, account),
            pending: None,
            may_leave: true,
            apart: None,
            owed_fuel: 0,
        };
        let (engine, module) = &*house.program;
        let mut store = Store::new(engine, cx);
        store.set_fuel(u64::MAX / 2).expect("fuel is on");
        let program: Instance =
            Linker::new(engine).instantiate_and_start(&mut store, module).expect("it imports nothing");
        let canon = Canon {
            memory: program.get_memory(&store, "memory"),
            realloc: program.get_func(&store, "cabi_realloc"),
        };
        let free = program.get_global(&store, "free").expect("it is exported");
        let answers = (free, free.get(&store));
        Bed { store, events, house: house.clone(), goes: 0, canon, answers, free: ARGUMENTS }
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

    /// Lists as an argument, each anywhere: a mask, say.
    pub fn lists(&mut self, lists: &[Vec<u32>]) -> [Val; 2] {
        let pairs: Vec<u32> = lists
            .iter()
            .flat_map(|list| self.list(list))
            .map(|val| val.i32().expect("a word") as u32)
            .collect();
        let [at, _] = self.list(&pairs);
        [at, Val::I32(lists.len() as i32)]
    }

    /// Overwrites a word of an argument.
    pub fn poke(&mut self, at: u32, word: u32) {
        let memory = self.canon.memory.expect("it has one");
        memory.write(&mut self.store, at as usize, &word.to_le_bytes()).expect("inside");
    }

    /// Calls to the end, waiting if the call waits. Answers the core result, or where the result was written.
    pub fn call(&mut self, place: &str, name: &str, arguments: &[&[Val]]) -> Result<u64, Trap> {
        self.call_waiting(place, name, arguments.concat(), RESULT, |pending| smol::block_on(pending))
    }

    /// The same with a result pointer of any kind, and a wait that may give up.
    pub fn call_waiting<E: From<Trap>>(
        &mut self,
        place: &str,
        name: &str,
        mut values: Vec<Val>,
        result: u32,
        wait: impl FnOnce(Pending) -> Result<Finish, E>,
    ) -> Result<u64, E> {
        let function = interface(place).and_then(|found| found.function(name));
        let function = function.unwrap_or_else(|| panic!("{place} has no {name}"));
        let pointer = function.signature.returns_by_pointer();
        values.extend(pointer.then_some(Val::I32(result as i32)));
        let lowered = function.signature.lowered();
        let mut results = vec![Val::I32(0); lowered.results().len()];
        let call = function.link(&mut self.store, self.canon);
        let outcome = call.call(&mut self.store, &values, &mut results);
        self.free = ARGUMENTS;
        match outcome {
            Ok(()) => {}
            Err(error) if error.downcast_ref::<Suspended>().is_some() => {
                let pending = self.cx().pending.take().expect("a suspended call waits for something");
                let mut finish = wait(pending)?;
                self.goes = 0;
                let value = loop {
                    self.goes += 1;
                    match finish(self.store.as_context_mut())? {
                        Lowered::Done(value) => break value,
                        Lowered::More(next) => finish = next,
                    }
                };
                results.clear();
                results.extend(value);
            }
            Err(error) => return Err(Trap::of(error, self.cx()).into()),
        }
        Ok(match results.first() {
            Some(Val::I32(value)) => *value as u32 as u64,
            Some(Val::I64(value)) => *value as u64,
            _ => result as u64,
        })
    }

    /// Drops a handle, of whatever type it is.
    pub fn drop_handle(&mut self, place: &str, resource: &str, handle: u32) -> Result<(), Trap> {
        let found = interface(place).and_then(|found| found.resource_named(resource));
        let drop = found.unwrap_or_else(|| panic!("{place} has no {resource}")).link(&mut self.store);
        let dropped = drop.call(&mut self.store, &[Val::I32(handle as i32)], &mut []);
        dropped.map_err(|error| Trap::of(error, self.cx()))
    }

    /// The guest's allocator starts afresh: what was answered so far may be overwritten.
    pub fn forget_answers(&mut self) {
        let (free, start) = self.answers.clone();
        free.set(&mut self.store, start).expect("it is mutable");
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
