//! The composition root: what is built in which order, and how it ends.
//!
//! Owns: the order, what a signal ends, the exit status. Never: work; every part does its own.
//!
//! The order: the listening socket (a port that is taken shows before a large model is read; whoever connects meanwhile
//! waits), the model's file, the key-value pairs (a state folder that another server has shows before the weights are
//! packed), worker threads, backend (it borrows the workers), engine (it owns the backend), runtime, programs, door. An
//! upper part holds handles of those below it; nothing below names anything above.

use crate::auth::Grant;
use crate::auth::Verifier;
use crate::backend::choice::{self, NotLoaded, Options};
use crate::backend::{heap, turns};
use crate::cli::{EXIT_DEVICE, Failure};
use crate::clock;
use crate::config::{Config, OpenaiConfig};
use crate::engine::operation::Notice;
use crate::engine::{self, Engine, NotStarted, Reuse};
use crate::exchange::Exchange;
use crate::host::Trap;
use crate::identity::Subject;
use crate::interrupts::when_told_to_end;
use crate::limits;
use crate::model::Model;
use crate::observe;
use crate::outgoing;
use crate::program::{Code, Program, Store, Translation};
use crate::runtime::serve::Serve;
use crate::runtime::{Ending, Runtime, RuntimeParts, Workers};
use crate::server::{self, Door, Names, Served};
use rustix::process::{Resource, getrlimit, setrlimit};
use smol::channel::Receiver;
use smol::net::TcpListener;
use std::io::Write;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How long the last events may take to their clients once the device has failed.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// From an instance's end until what was freed goes back to the system. Shorter would take from a busy box what its next
/// launches are quicker with; longer would keep from others what nobody here needs.
const MEMORY_KEPT: Duration = Duration::from_secs(1);

/// What went wrong with the device; written once, by the engine's last act.
#[derive(Clone, Default)]
struct Fault(Arc<Mutex<Option<String>>>);

/// All parts behind the listener, built and connected; nobody is let in yet.
pub struct Appliance {
    door: Door<Served>,
    /// The server instances of programs.
    serving: server::http::Serving,
    /// Where the API of OpenAI is served, if it is.
    openai: Option<u16>,
    /// The requests that programs make.
    sending: outgoing::Sending,
    runtime: Runtime,
    exchange: Arc<Exchange>,
    /// Instances that the engine has given up.
    given_up: Receiver<Notice>,
    /// Why the device failed, if it does.
    failing: Receiver<String>,
}

/// Serves until SIGINT, SIGTERM, SIGHUP or a device fault. The fault's status makes systemd start the process afresh.
pub fn serve(config: Config) -> Result<ExitCode, Failure> {
    observe::log::start(config.log);
    claim_descriptors();
    let listen = config.listen;
    let listener = smol::block_on(TcpListener::bind(listen)).map_err(|cause| {
        Failure::new(format!(
            "{listen} cannot be listened on: {cause}. Choose another with --listen ADDR:PORT."
        ))
    })?;
    let appliance = Appliance::build(config)?;
    smol::block_on(async {
        let address = listener.local_addr().map_err(failed("The listener has no address"))?;
        let (tell, told) = smol::channel::bounded::<()>(1);
        // On a thread of its own: polled here, they would be asked for at each turn of the io thread.
        let heard = when_told_to_end("signals", move |_| drop(tell));
        heard.map_err(failed("Signals cannot be awaited"))?;
        // A supervisor that closed our output may still connect.
        let mut output = std::io::stdout();
        if let Some(port) = appliance.openai {
            let _ = writeln!(output, "openai on http://127.0.0.1:{port}/v1");
        }
        let _ = writeln!(output, "listening on ws://{address}").and_then(|()| output.flush());
        let told = async {
            let _ = told.recv().await; // an error: closed
            tracing::info!("asked to end");
        };
        appliance.run(listener, told).await
    })?;
    Ok(ExitCode::SUCCESS)
}

impl Appliance {
    /// Builds the parts in their order.
    pub fn build(config: Config) -> Result<Appliance, Failure> {
        heap::keep_one();
        hurry();
        clock::start();
        let name = config.model.name.as_deref();
        let model = Arc::new(
            Model::open(&config.model.path, name, config.model.template.as_deref())
                .map_err(Failure::config)?,
        );
        let exchange = Arc::new(Exchange::open(&config.state).map_err(Failure::config)?);
        let workers =
            Workers::start(config.engine.threads).map_err(failed("The worker threads cannot be started"))?;
        exchange.kvs.yield_while(workers.model_is_busy());
        let options = Options {
            which: config.engine.backend,
            libcuda: config.engine.libcuda.clone(),
            kv_tokens: config.engine.kv_tokens,
            page_size: config.engine.page_size,
            embeds: config.engine.embeds,
            batch_tokens: config.engine.batch_tokens,
            kv: config.engine.kv_cache,
        };

        // One notice per instance may wait, so the engine rarely finds the channel full.
        let (notices, given_up) = smol::channel::bounded(limits::INSTANCES);
        let (fault, failing) = smol::channel::bounded::<String>(1);
        let on_fault = move |why| {
            let _ = fault.try_send(why); // nobody listens any more: the process is ending anyway
        };
        let public: Vec<_> =
            config.model.public_prefixes.iter().map(|text| model.tokenizer.encode(text)).collect();
        if public.iter().any(|tokens| tokens.len() < config.engine.page_size as usize) {
            tracing::warn!("a public prefix has fewer tokens than a page: nothing of it is found again");
        }
        let reuse = Reuse { on: config.engine.prefix_reuse, public };
        let (own, crew) = (model.clone(), workers.crew());
        let backend = move || choice::load(own, &options, crew);
        let engine = Engine::start(backend, Box::new(workers.clone()), reuse, notices, on_fault)
            .map_err(not_started)?;
        announce(&model, &engine, &config);

        let (outgoing, sending) = outgoing::outgoing(config.allow);
        let runtime = Runtime::new(RuntimeParts {
            engine: engine.clone(),
            model: model.clone(),
            workers,
            exchange: exchange.clone(),
            quotas: config.quotas,
            outgoing,
            seed: config.engine.seed,
        });
        let store = Store::open(&config.state.join("programs")).map_err(Failure::config)?;
        let openai = config.openai.map(|openai| (openai, of_openai(config.auth.is_some())));
        let verifier = config.auth.map(|keys| Verifier::new(keys.public, keys.revoked));
        let names = Names { hosts: config.hosts, origins: config.origins };
        let (hall, serving) = server::http::hall(runtime.clone(), names.clone());
        let openai = openai
            .map(|(openai, subject)| smol::block_on(open_openai(openai, subject, &runtime, &hall)))
            .transpose()?;
        let served = Served { store, runtime: runtime.clone(), engine, hall, model: model.name.clone() };
        let door = Door::new(served, verifier, names);
        Ok(Appliance { door, serving, openai, sending, runtime, exchange, given_up, failing })
    }

    /// Closes when the engine's thread has given the model's memory back, which is some time after [`run`](Self::run).
    pub fn ended(&self) -> Receiver<String> {
        self.failing.clone()
    }

    /// Serves `listener` until `told`, or until the device fails, which is the error.
    pub async fn run(self, listener: TcpListener, told: impl Future<Output = ()>) -> Result<(), Failure> {
        let Appliance { door, serving, openai: _, sending, runtime, exchange, given_up, failing } = self;
        let broken = Fault::default();
        let until = smol::future::or(told, device_fails(failing, runtime.clone(), broken.clone()));
        let kept = smol::future::or(end_given_up(runtime.clone(), given_up), give_memory_back(runtime));
        let beside = smol::future::or(smol::future::or(serving.run(), sending.run()), kept);
        smol::future::or(server::run(listener, door, until), beside).await;
        exchange.kvs.close(); // guests that still run hold it too
        match broken.take() {
            None => Ok(()),
            Some(why) => Err(Failure { sentence: why, status: EXIT_DEVICE }),
        }
    }
}

/// Whose the server instance of that API is.
fn of_openai(authenticated: bool) -> Subject {
    if authenticated { Subject::new("openai") } else { Grant::everyone().subject }
}

/// Launches our program that speaks the API of OpenAI, from its file; returns its port.
async fn open_openai(
    config: OpenaiConfig,
    subject: Subject,
    runtime: &Runtime,
    hall: &server::http::Hall,
) -> Result<u16, Failure> {
    let OpenaiConfig { port, program: path } = config;
    let bytes = std::fs::read(&path).map_err(|cause| {
        Failure::config(format!(
            "The program of --openai, {}, cannot be read: {cause}. Build it with `make inferlets`, or say where it is: \
             program under [openai] in the configuration.",
            path.display()
        ))
    })?;
    let refused = |why: &str| Failure::config(format!("The program of --openai, {}: {why}.", path.display()));
    let program = Code::translate(&Subject::everyone(), Translation::new(move || Program::of(&bytes))).await;
    let program = program.map_err(|rejected| refused(&rejected.to_string()))?;
    if !program.kinds().answers {
        return Err(refused("it does not export wasi:http/incoming-handler, so it answers no requests"));
    }
    let quotas = *runtime.quotas();
    let serve = Serve {
        program,
        arguments: Vec::new(),
        subject,
        quotas,
        http: Default::default(),
        port,
        expires: None,
    };
    hall.open(serve).await.map_err(|why| Failure::new(format!("The API of OpenAI is not served: {why}.")))
}

/// Threads that are waited for interrupt those that are not, whoever's they are.
fn hurry() {
    let nice = rustix::process::getpriority_process(None).map_err(std::io::Error::from);
    if let Err(error) = nice.and_then(|nice| turns::take(nice, turns::SHORT)) {
        tracing::warn!("the system gives the server's threads turns of its own length: {error}");
    }
}

/// As many file descriptors as all limits together may need, if the process may have them. Fewer are no fault: then a
/// connection waits to be accepted.
fn claim_descriptors() {
    let wanted = limits::DESCRIPTORS as u64;
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= wanted) {
        return;
    }
    limit.current = Some(limit.maximum.map_or(wanted, |most| most.min(wanted)));
    let now = setrlimit(Resource::Nofile, limit).ok().and(limit.current);
    if now != Some(wanted) {
        let now = getrlimit(Resource::Nofile).current.unwrap_or(wanted);
        tracing::warn!(
            "the process may open {now} files, and its connections may need {wanted}: raise LimitNOFILE= of its unit, or \
             `ulimit -n`"
        );
    }
}

/// Why there is no engine, and whether another start could help.
fn not_started(why: NotStarted<NotLoaded>) -> Failure {
    match why {
        NotStarted::Thread(cause) => failed("The engine's thread cannot be started")(cause),
        NotStarted::Backend(why) if why.is_of_device() => {
            Failure { sentence: why.to_string(), status: EXIT_DEVICE }
        }
        NotStarted::Backend(why) => Failure::config(why),
        NotStarted::Panicked => Failure::new("The engine panicked before it could run."),
    }
}

/// Turns the cause of a failed step into a sentence.
fn failed<E: std::fmt::Display>(what: &str) -> impl FnOnce(E) -> Failure {
    move |cause| Failure::new(format!("{what}: {cause}."))
}

/// What the operator wants to know of a start, in two lines.
fn announce(model: &Model, engine: &engine::Handle, config: &Config) {
    let info = engine.info();
    tracing::info!("model {}: {}", model.name, model.description);
    tracing::info!(
        "{}; {} KV pages of {} tokens, batches of {} rows; authentication {}; seed {}",
        info.device,
        info.pages,
        info.page_size,
        info.batch_tokens,
        if config.auth.is_some() { "on" } else { "OFF, loopback only" },
        config.engine.seed.map_or("random per instance".to_owned(), |seed| seed.to_string()),
    );
}

/// Ends the instances that the engine has given up.
pub(crate) async fn end_given_up(runtime: Runtime, notices: Receiver<Notice>) {
    while let Ok(notice) = notices.recv().await {
        let (instance, ending) = match notice {
            Notice::Evict(instance) => (instance, Ending::evicted()),
            Notice::OutOfPages { instance, why } => {
                (instance, Ending::Exception(format!("OOM unrecoverable: {why}")))
            }
            Notice::Quota { instance, quota } => (instance, Ending::quota(quota)),
            Notice::Misuse { instance, what } => (instance, Ending::trapped(Trap::error(what))),
        };
        runtime.end(instance, ending);
    }
    std::future::pending().await // the engine has ended; the server decides when it is over
}

/// Gives back what guests that have gone took, at most once in [`MEMORY_KEPT`], and never while all rest.
async fn give_memory_back(runtime: Runtime) {
    while runtime.leaving().recv().await.is_ok() {
        smol::Timer::after(MEMORY_KEPT).await;
        smol::unblock(heap::give_back).await;
    }
}

/// Returns once the device has failed and every client has had time to hear of it.
async fn device_fails(failing: Receiver<String>, runtime: Runtime, broken: Fault) {
    match failing.recv().await {
        Ok(why) => {
            runtime.end_all(Ending::ServerError(why.clone()));
            broken.set(why);
            smol::Timer::after(LAST_WORDS).await;
        }
        Err(_) => std::future::pending().await, // the engine ended without a fault: we are being dropped
    }
}

impl Fault {
    fn set(&self, why: String) {
        *self.0.lock().unwrap_or_else(|torn| torn.into_inner()) = Some(why);
    }

    fn take(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(|torn| torn.into_inner()).take()
    }
}
