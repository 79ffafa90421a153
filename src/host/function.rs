//! Host functions: typed Rust functions made callable by guests.
//!
//! Owns: [`Interface`], the table of one WIT interface, and the one trampoline that every call goes through:
//! lift the arguments, call, lower the answer, charge fuel. Never: what any function does.
//!
//! A function that must wait returns [`Later::wait`]: the call is suspended (a host error that the driver in
//! `runtime/slice.rs` knows), its future awaited there, and the answer lowered before the guest resumes.

use super::abi::{Canon, Flat, Lift, Lower, Rest, Source, Target};
use super::held::Charge;
use super::lists::Gather;
use super::shape::{FLAT_PARAMETERS, FLAT_RESULTS, Shape, Signature};
use super::{Cx, Trap};
use crate::observe::stages::{self, Stage};
use crate::runtime::slice::SLICE_FUEL;
use crate::runtime::table::Resource;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use wasmi::errors::HostError;
use wasmi::{
    AsContextMut, Error, Func, FuncType, ResumableCall, Store, StoreContextMut, TrapCode, Val, ValType,
};

/// Fuel of crossing the border once, beside the bytes: about what the crossing takes in interpreted instructions.
const CROSSING_FUEL: u64 = 64;

/// An answer that is there, or one to wait for.
pub enum Later<R> {
    Ready(R),
    Wait(Pin<Box<dyn Future<Output = Result<R, Trap>> + Send>>),
}

impl<R> Later<R> {
    pub fn ready(answer: R) -> Later<R> {
        Later::Ready(answer)
    }

    /// The guest is suspended until `answer` is there. Ending the guest drops the future.
    pub fn wait(answer: impl Future<Output = Result<R, Trap>> + Send + 'static) -> Later<R> {
        Later::Wait(Box::pin(answer))
    }
}

/// A Rust function `fn(&mut Cx, A, B, ..) -> Result<R, Trap>` with its arguments as a tuple.
pub trait Function<Arguments, R>: Send + Sync + 'static {
    fn call(&self, cx: &mut Cx, arguments: Arguments) -> Result<R, Trap>;
}

macro_rules! function {
    ($($name:ident)*) => {
        impl<Host, R, $($name),*> Function<($($name,)*), R> for Host
        where
            Host: Fn(&mut Cx, $($name),*) -> Result<R, Trap> + Send + Sync + 'static,
        {
            #[allow(non_snake_case)]
            fn call(&self, cx: &mut Cx, ($($name,)*): ($($name,)*)) -> Result<R, Trap> {
                self(cx, $($name),*)
            }
        }
    };
}

function!();
function!(A);
function!(A B);
function!(A B C);
function!(A B C D);
function!(A B C D E);
function!(A B C D E F);
function!(A B C D E F G);
function!(A B C D E F G H);

/// Goes on with a suspended call: lowers the answer, or a part of it.
pub type Finish = Box<dyn FnOnce(StoreContextMut<'_, Cx>) -> Result<Lowered, Trap> + Send>;

/// How far the lowering of an answer has come, or before that the lifting of a long argument.
pub enum Lowered {
    /// The guest may go on, with this core result if the function has one.
    Done(Option<Val>),
    /// That was a slice's work, and there is more; somebody else may run in between, the guest may not.
    More(Finish),
}
/// What a suspended guest waits for.
pub type Pending = Pin<Box<dyn Future<Output = Result<Finish, Trap>> + Send>>;

type Run = dyn Fn(StoreContextMut<'_, Cx>, Canon, &[Val]) -> Result<Answer, Trap> + Send + Sync;

enum Answer {
    Now(Option<Val>),
    Later(Pending),
}

impl From<Lowered> for Answer {
    fn from(lowered: Lowered) -> Answer {
        match lowered {
            Lowered::Done(value) => Answer::Now(value),
            Lowered::More(finish) => Answer::Later(Box::pin(std::future::ready(Ok(finish)))),
        }
    }
}

/// One function of an interface.
pub struct HostFunction {
    /// As in WIT: `poll`, `[method]queue.synchronize`, `[constructor]blob`.
    pub name: &'static str,
    pub signature: Signature,
    /// `{interface}.{name}`, for sentences.
    place: Arc<str>,
    lowered: FuncType,
    run: Arc<Run>,
}

/// One resource type of an interface.
pub struct HostResource {
    pub name: &'static str,
    drop: fn(&mut Cx, u32) -> Result<(), Trap>,
}

/// The table of one WIT interface.
pub struct Interface {
    /// Package, interface and version without its patch number: `wasi:io/poll@0.2`, `inferlet:core/kvs`.
    pub name: &'static str,
    pub functions: Vec<HostFunction>,
    pub resources: Vec<HostResource>,
}

impl Interface {
    pub fn new(name: &'static str) -> Interface {
        Interface { name, functions: Vec::new(), resources: Vec::new() }
    }

    /// A function that answers at once.
    pub fn call<A: Lift, R: Lower>(self, name: &'static str, function: impl Function<A, R>) -> Interface {
        self.add::<A, R>(name, move |mut ctx, canon, values| {
            let (arguments, pointer) = arguments::<A, R>(ctx.as_context_mut(), canon, values)?;
            let answer = function.call(ctx.data_mut(), arguments)?;
            lower(ctx, canon, answer, pointer).map(Answer::from)
        })
    }

    /// A function that may suspend its guest.
    pub fn wait<A: Lift, R: Lower>(
        self,
        name: &'static str,
        function: impl Function<A, Later<R>>,
    ) -> Interface {
        self.add::<A, R>(name, move |mut ctx, canon, values| {
            let (arguments, pointer) = arguments::<A, R>(ctx.as_context_mut(), canon, values)?;
            match function.call(ctx.data_mut(), arguments)? {
                Later::Ready(answer) => lower(ctx, canon, answer, pointer).map(Answer::from),
                Later::Wait(answer) => Ok(Answer::Later(Box::pin(async move {
                    let answer = answer.await?;
                    let finish: Finish = Box::new(move |ctx| lower(ctx, canon, answer, pointer));
                    Ok(finish)
                }))),
            }
        })
    }

    /// A function that takes a long list, which is lifted in pieces.
    pub fn gather<A: Lift, T: Lift, R: Lower>(
        self,
        name: &'static str,
        function: impl Function<A, Gather<T, R>>,
    ) -> Interface {
        let place: Arc<str> = format!("{}.{name}", self.name).into();
        self.add::<A, R>(name, move |mut ctx, canon, values| {
            let (arguments, pointer) = arguments::<A, R>(ctx.as_context_mut(), canon, values)?;
            let gather = function.call(ctx.data_mut(), arguments)?;
            let held = ctx.data().held.nothing();
            gathered(ctx, Gathered { canon, pointer, gather, items: Vec::new(), held, place: place.clone() })
                .map(Answer::from)
        })
    }

    /// A function that links, so that programs which never call it run, and ends the guest with a sentence when called.
    pub fn refuse<A: Lift, R: Lower>(self, name: &'static str, why: &'static str) -> Interface {
        self.add::<A, R>(name, move |_, _, _| Err(Trap::error(why)))
    }

    /// A resource type; guests drop its handles.
    pub fn resource<R: Resource>(mut self) -> Interface {
        let drop = |cx: &mut Cx, handle| cx.table.take::<R>(handle).map(|_| ());
        self.resources.push(HostResource { name: R::NAME, drop });
        self
    }

    pub fn function(&self, name: &str) -> Option<&HostFunction> {
        self.functions.iter().find(|function| function.name == name)
    }

    pub fn resource_named(&self, name: &str) -> Option<&HostResource> {
        self.resources.iter().find(|resource| resource.name == name)
    }

    fn add<A: Lift, R: Lower>(
        self,
        name: &'static str,
        run: impl Fn(StoreContextMut<'_, Cx>, Canon, &[Val]) -> Result<Answer, Trap> + Send + Sync + 'static,
    ) -> Interface {
        const { assert!(A::FLAT <= FLAT_PARAMETERS, "arguments through memory are not supported") };
        self.row(name, A::shape, (R::FLAT > 0).then_some(R::shape as fn() -> Shape), Arc::new(run))
    }

    /// What is the same for every function, and so is in the binary once.
    #[inline(never)]
    fn row(
        mut self,
        name: &'static str,
        arguments: fn() -> Shape,
        result: Option<fn() -> Shape>,
        run: Arc<Run>,
    ) -> Interface {
        let parameters = match arguments() {
            Shape::Tuple(parameters) => parameters,
            one => vec![one],
        };
        let signature = Signature { parameters, result: result.map(|shape| shape()) };
        let place = format!("{}.{name}", self.name).into();
        let lowered = signature.lowered();
        self.functions.push(HostFunction { name, signature, place, lowered, run });
        self
    }
}

impl HostFunction {
    /// The core function for one `canon lower` in a running instance.
    pub fn link(&self, store: &mut Store<Cx>, canon: Canon) -> Func {
        let (run, place) = (self.run.clone(), self.place.clone());
        Func::new(store, self.lowered.clone(), move |mut caller, values, results| {
            guarded(|| {
                let mut ctx = caller.as_context_mut();
                stages::mark(Stage::Called, ctx.data().instance);
                leave(ctx.data_mut(), &place)?;
                let answer = run(ctx.as_context_mut(), canon, values).map_err(|trap| trap.within(&place))?;
                settle(&mut ctx);
                match answer {
                    Answer::Now(value) => {
                        if let (Some(slot), Some(value)) = (results.first_mut(), value) {
                            *slot = value;
                        }
                        stages::mark(Stage::Returned, ctx.data().instance);
                        Ok(true)
                    }
                    Answer::Later(pending) => {
                        let place = place.clone();
                        let pending = async move { pending.await.map_err(|trap| trap.within(&place)) };
                        ctx.data_mut().pending = Some(Box::pin(pending));
                        Ok(false)
                    }
                }
            })
        })
    }
}

impl HostResource {
    /// The core function for one `canon resource.drop` in a running instance.
    pub fn link(&self, store: &mut Store<Cx>) -> Func {
        let (drop, name) = (self.drop, self.name);
        Func::new(store, FuncType::new([ValType::I32], []), move |mut caller, values, _| {
            guarded(|| {
                let mut ctx = caller.as_context_mut();
                stages::mark(Stage::Called, ctx.data().instance);
                charge(&mut ctx, CROSSING_FUEL);
                leave(ctx.data_mut(), name)?;
                let dropped = Flat::new(values).u32().and_then(|handle| drop(ctx.data_mut(), handle));
                dropped.map_err(|trap| trap.within(&format!("[resource-drop]{name}")))?;
                stages::mark(Stage::Returned, ctx.data().instance);
                Ok(true)
            })
        })
    }
}

/// The border to the interpreter, which a panic must not cross: there it would end the process. `true` lets the guest
/// go on, `false` suspends it.
fn guarded(call: impl FnOnce() -> Result<bool, Trap>) -> Result<(), Error> {
    match catch_unwind(AssertUnwindSafe(call)).unwrap_or(Err(Trap::Panicked)) {
        Ok(true) => Ok(()),
        Ok(false) => Err(Error::host(Suspended)),
        Err(trap) => Err(Error::host(trap)),
    }
}

/// The guest's allocator and its `post-return` run inside a host call and may not start another. Nor may a guest whose end
/// was told.
fn leave(cx: &mut Cx, place: &str) -> Result<(), Trap> {
    if cx.apart.take().is_some_and(|apart| !apart.is_back()) {
        return Err(Trap::error(format!("{place} was called after the end")));
    }
    match cx.may_leave {
        true => Ok(()),
        false => Err(Trap::error(format!(
            "{place} was called from inside the program's allocator or clean-up code"
        ))),
    }
}

fn arguments<A: Lift, R: Lower>(
    mut ctx: StoreContextMut<'_, Cx>,
    canon: Canon,
    values: &[Val],
) -> Result<(A, Option<u32>), Trap> {
    let mut flat = Flat::new(values);
    let mut source = Source::new(&mut ctx, canon.memory);
    let arguments = A::lift(&mut source, &mut flat)?;
    let fuel = source.fuel();
    let pointer = if R::FLAT > FLAT_RESULTS { Some(flat.u32()?) } else { None };
    charge(&mut ctx, fuel);
    Ok((arguments, pointer))
}

/// A long list that is being lifted.
struct Gathered<T, R> {
    canon: Canon,
    pointer: Option<u32>,
    gather: Gather<T, R>,
    items: Vec<T>,
    held: Charge,
    /// For sentences: the first piece's are told by the call, later ones are not.
    place: Arc<str>,
}

/// Lifts a piece. Once all are there, the call is made and its answer lowered.
fn gathered<T: Lift, R: Lower>(
    mut ctx: StoreContextMut<'_, Cx>,
    mut list: Gathered<T, R>,
) -> Result<Lowered, Trap> {
    let mut source = Source::new(&mut ctx, list.canon.memory);
    list.gather.list.piece(&mut source, &mut list.items, list.held.bytes())?;
    let (fuel, held) = (source.fuel(), source.held());
    charge(&mut ctx, fuel);
    if list.gather.list.is_empty() {
        let Gathered { canon, pointer, gather, items, held, .. } = list;
        drop(held); // whatever keeps the items counts them
        let answer = (gather.then)(ctx.data_mut(), items)?;
        return lower(ctx, canon, answer, pointer);
    }
    list.held.set(list.held.bytes() + held)?;
    Ok(Lowered::More(Box::new(move |ctx| {
        let place = list.place.clone();
        gathered(ctx, list).map_err(|trap| trap.within(&place))
    })))
}

fn lower<R: Lower>(
    mut ctx: StoreContextMut<'_, Cx>,
    canon: Canon,
    answer: R,
    pointer: Option<u32>,
) -> Result<Lowered, Trap> {
    charge(&mut ctx, answer.fuel());
    let mut target = Target::new(ctx.as_context_mut(), canon);
    let value = match pointer {
        Some(pointer) => target.store_at(answer, pointer).map(|()| None)?,
        None if R::FLAT == 0 => None,
        None => Some(answer.lower(&mut target)?),
    };
    let (fuel, rest) = (target.fuel(), target.rest());
    charge(&mut ctx, fuel);
    Ok(lowered(canon, value, rest))
}

fn lowered(canon: Canon, value: Option<Val>, mut rest: Vec<Rest>) -> Lowered {
    let Some(next) = rest.pop() else { return Lowered::Done(value) };
    Lowered::More(Box::new(move |mut ctx| {
        let mut target = Target::new(ctx.as_context_mut(), canon);
        next(&mut target)?;
        let fuel = target.fuel();
        rest.extend(target.rest());
        charge(&mut ctx, fuel);
        Ok(lowered(canon, value, rest))
    }))
}

/// Charges a call for the crossing and for the work it says it did, so that work ends the slice as code would.
fn settle(ctx: &mut StoreContextMut<'_, Cx>) {
    let work = std::mem::take(&mut ctx.data_mut().owed_fuel);
    charge(ctx, CROSSING_FUEL.saturating_add(work));
}

/// Takes fuel for work done on the guest's behalf. What the slice cannot pay is owed, and the driver collects it.
pub fn charge(ctx: &mut StoreContextMut<'_, Cx>, fuel: u64) {
    let have = ctx.get_fuel().unwrap_or(0);
    // Fails only where fuel is off, and it is on in every engine of ours.
    let _ = ctx.set_fuel(have.saturating_sub(fuel));
    ctx.data_mut().owed_fuel += fuel.saturating_sub(have);
}

/// Calls guest code from inside a host function. The guest cannot be suspended there, so the call has `fuel` of its
/// own, which is then charged.
///
/// It is given a slice at a time though nobody runs in between: an instruction that the compiler did not make a tail
/// call (`memory.grow` is one) keeps a native frame until its slice ends.
pub fn nested(
    ctx: &mut StoreContextMut<'_, Cx>,
    function: Func,
    arguments: &[Val],
    results: &mut [Val],
    fuel: u64,
) -> Result<(), Error> {
    let before = ctx.get_fuel()?;
    // `left` does not count what is given.
    let mut given = SLICE_FUEL.min(fuel);
    let mut left = fuel - given;
    ctx.set_fuel(given)?;
    let mut call = function.call_resumable(ctx.as_context_mut(), arguments, results);
    let outcome = loop {
        call = match call {
            Ok(ResumableCall::Finished) => break Ok(()),
            Ok(ResumableCall::HostTrap(paused)) => break Err(paused.into_host_error()),
            Ok(ResumableCall::OutOfFuel(paused)) => {
                left = left.saturating_add(ctx.get_fuel()?);
                if paused.required_fuel() > left {
                    left = 0;
                    break Err(TrapCode::OutOfFuel.into());
                }
                given = SLICE_FUEL.max(paused.required_fuel()).min(left);
                left -= given;
                ctx.set_fuel(given)?;
                paused.resume(ctx.as_context_mut(), results)
            }
            Err(error) => break Err(error),
        };
    };
    let unused = left.saturating_add(ctx.get_fuel()?);
    ctx.set_fuel(before)?;
    charge(ctx, fuel.saturating_sub(unused));
    outcome
}

/// Not an error: the call waits for [`Cx::pending`].
#[derive(Debug)]
pub struct Suspended;

impl fmt::Display for Suspended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the call would have to wait where it cannot")
    }
}

impl HostError for Suspended {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::bed::Bed;
    use wasmi::{Linker, Module};

    struct Thing;

    impl Resource for Thing {
        const NAME: &'static str = "thing";
    }

    /// The story: a drop left no marks, so the time that it took in the host was told as guest code.
    #[test]
    fn dropping_a_handle_is_told_as_a_host_call() {
        let _alone = stages::alone();
        let mut bed = Bed::new();
        let handle = bed.cx().table.insert(Thing).unwrap();
        let interface = Interface::new("test:host/things").resource::<Thing>();
        let drop = interface.resources[0].link(&mut bed.store);
        let instance = bed.cx().instance;
        stages::start(1000);
        drop.call(&mut bed.store, &[Val::I32(handle as i32)], &mut []).unwrap();
        let marks: Vec<Stage> =
            stages::take().iter().filter(|mark| mark.instance == instance).map(|mark| mark.stage).collect();
        assert_eq!(marks, [Stage::Called, Stage::Returned]);
        assert!(bed.cx().table.is_empty());
    }

    /// The story: a panic in a host function met the interpreter's frames, which cannot unwind, and ended the process.
    #[test]
    fn a_panic_ends_its_guest_and_not_the_process() {
        let mut bed = Bed::new();
        let panics = |_: &mut Cx| -> Result<u32, Trap> { panic!("a mistake of the host") };
        let interface = Interface::new("test:host/faults").call("panics", panics);
        let function = interface.functions[0].link(&mut bed.store, Canon::default());
        let text =
            r#"(module (import "h" "f" (func $f (result i32))) (func (export "run") (drop (call $f))))"#;
        let module = Module::new(bed.store.engine(), wat::parse_str(text).unwrap()).unwrap();
        let mut linker = Linker::new(bed.store.engine());
        linker.define("h", "f", function).unwrap();
        let program = linker.instantiate_and_start(&mut bed.store, &module).unwrap();
        let run = program.get_func(&bed.store, "run").unwrap();
        let error = run.call(&mut bed.store, &[], &mut []).unwrap_err();
        assert_eq!(Trap::of(error, bed.cx()), Trap::Panicked);
    }
}
