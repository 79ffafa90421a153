//! Guests that are scripted: each does, call by call, what a program could.
//!
//! Owns: what a guest asks of the engine, its client and its mailbox, in an order that its seed decides. Never: wasm. What
//! the host does between a program and these (lifting, rights, handles) is not simulated.

use super::ledger::{Ledger, Said};
use super::lock;
use crate::clock;
use crate::engine;
use crate::engine::credit::Credits;
use crate::engine::operation::{
    Command, Kind, Operation, Pass, PassOutput, PassResult, Priority, QueueId, Refusal, Reply, VirtualId,
};
use crate::engine::simulation::random::{Held, Random};
use crate::host::Trap;
use crate::host::common::Blob;
use crate::identity::InstanceId;
use crate::limits;
use crate::runtime::directory::Entry;
use crate::runtime::{Ending, InstanceEvent, Launch, What, events};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How long a guest whose work was given up waits for its end, which is on the way.
const ENDING: Duration = Duration::from_secs(5);

/// What a guest is launched with, as the client writes it into the arguments.
#[derive(Clone, Copy)]
pub struct Play {
    pub client: usize,
    pub part: Part,
    pub seed: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Says a few things and ends.
    Talks,
    /// Says more than is read.
    Floods,
    /// Uses the model.
    Thinks,
    /// Says what it hears.
    Hears,
    /// Never ends.
    Waits,
}

const PARTS: [Part; 5] = [Part::Talks, Part::Floods, Part::Thinks, Part::Hears, Part::Waits];

impl Play {
    pub fn write(&self) -> Vec<String> {
        vec![self.client.to_string(), format!("{:?}", self.part), self.seed.to_string()]
    }

    pub fn read(arguments: &[String]) -> Play {
        let [client, part, seed] = arguments else { panic!("three arguments") };
        let part = PARTS.into_iter().find(|known| format!("{known:?}") == *part).expect("a part");
        Play { client: client.parse().expect("a number"), part, seed: seed.parse().expect("a number") }
    }

    pub fn talks(&self) -> bool {
        self.part == Part::Talks
    }
}

/// The guest cannot go on: its client or the engine has given it up.
struct Stopped;

pub struct Guest {
    play: Play,
    instance: InstanceId,
    entry: Entry,
    events: events::Sender,
    engine: engine::Handle,
    credits: Credits,
    ledger: Arc<Mutex<Ledger>>,
    random: Random,
    held: Held,
    /// Its open queues: `queues.0..queues.1`.
    queues: (u32, u32),
    results: Vec<Reply<PassResult>>,
    said: u32,
}

impl Guest {
    pub fn new(
        play: Play,
        entry: Entry,
        launch: Launch,
        engine: engine::Handle,
        ledger: Arc<Mutex<Ledger>>,
    ) -> Guest {
        let mut random = Random(play.seed << 20);
        Guest {
            play,
            instance: entry.instance,
            entry,
            events: launch.events,
            engine,
            credits: Credits::default(),
            ledger,
            queues: (0, 1 + random.below(3)),
            random,
            held: Held::default(),
            results: Vec::new(),
            said: 0,
        }
    }

    pub async fn act(mut self) -> Ending {
        let played = match self.play.part {
            Part::Talks => self.talk().await,
            Part::Floods => self.flood().await,
            Part::Thinks => self.think().await,
            Part::Hears => self.hear().await,
            Part::Waits => {
                let _ = self.talk().await;
                std::future::pending().await
            }
        };
        if let Err(Stopped) = played {
            clock::after(ENDING).await;
            let instance = self.instance;
            lock(&self.ledger).must(false, || format!("{instance} was given up, and nobody ends it"));
            std::future::pending::<()>().await;
        }
        let ending = match self.random.below(12) {
            0 => Ending::failed("as scripted"),
            1 => Ending::trapped(Trap::Panicked),
            _ => Ending::Completed(format!("after {}", self.said)),
        };
        lock(&self.ledger).ends(self.instance, ending.clone());
        if let Ending::ServerError(_) = ending {
            std::panic::resume_unwind(Box::new("as scripted")); // without the panic hook, which would print it
        }
        ending
    }

    // ---- to the client ----

    async fn emit(&mut self, said: Said) -> Result<(), Stopped> {
        self.said += 1;
        let what = match &said {
            Said::Message(text) => What::Message(text.clone()),
            Said::Blob(blob) => What::Blob(Blob::nobodys(blob.clone())),
        };
        let event = InstanceEvent { instance: self.instance, what };
        if let Err(event) = self.events.try_send(event)
            && self.events.send(event).await.is_err()
        {
            return Err(Stopped);
        }
        lock(&self.ledger).said(self.instance, said);
        Ok(())
    }

    async fn say(&mut self, bytes: usize) -> Result<(), Stopped> {
        let number = self.said;
        self.emit(Said::Message(format!("{number:bytes$}"))).await
    }

    async fn say_blob(&mut self) -> Result<(), Stopped> {
        let bytes = match self.random.below(40) {
            0 => limits::CHUNK_BYTES + 1 + self.random.below(1000) as usize,
            _ => self.random.below(100) as usize,
        };
        let blob: Arc<[u8]> = vec![self.said as u8; bytes].into();
        self.emit(Said::Blob(blob)).await
    }

    async fn talk(&mut self) -> Result<(), Stopped> {
        for _ in 0..self.random.below(8) {
            match self.random.below(2) {
                0 => self.say_blob().await?,
                _ => self.say(1).await?,
            }
        }
        Ok(())
    }

    async fn flood(&mut self) -> Result<(), Stopped> {
        let (many, bytes) = match self.random.one_in(2) {
            true => (limits::EVENTS_IN_FLIGHT as u32 + 10 + self.random.below(60), 1),
            false => (40 + self.random.below(20), 50_000),
        };
        for _ in 0..many {
            self.say(bytes).await?;
        }
        Ok(())
    }

    async fn hear(&mut self) -> Result<(), Stopped> {
        for _ in 0..2 + self.random.below(6) {
            if self.random.one_in(6) {
                let receive = self.entry.mailbox.blobs.receive().expect("few wait");
                receive.wait().await;
                let blob = receive.take().expect("it is ready");
                lock(&self.ledger).heard_blob(self.instance, &blob);
                self.emit(Said::Blob(blob)).await?;
            } else {
                let receive = self.entry.mailbox.texts.receive().expect("few wait");
                receive.wait().await;
                let text = receive.take().expect("it is ready");
                lock(&self.ledger).heard_text(self.instance, &text);
                self.emit(Said::Message(text)).await?;
            }
        }
        Ok(())
    }

    // ---- to the engine ----

    async fn think(&mut self) -> Result<(), Stopped> {
        for _ in 0..4 + self.random.below(24) {
            match self.random.below(100) {
                0..38 => self.submit().await?,
                38..58 => self.allocate().await?,
                58..64 => self.deallocate().await?,
                64..70 => self.export().await?,
                70..76 => self.import().await?,
                76..78 => self.release().await?,
                78..82 => self.synchronize().await?,
                82..84 => self.set_priority().await?,
                84..86 => self.close().await?,
                86..92 => self.result().await?,
                92..96 => self.say(1).await?,
                96..99 => clock::after(Duration::from_millis(u64::from(self.random.below(3000)))).await,
                _ => self.misuse().await?,
            }
        }
        while !self.results.is_empty() && !self.random.one_in(8) {
            self.result().await?;
        }
        Ok(())
    }

    async fn tell(&self, command: Command) -> Result<(), Stopped> {
        self.engine.send(command).await.map_err(|_| Stopped)
    }

    fn queue(&mut self) -> QueueId {
        let (first, end) = self.queues;
        QueueId { instance: self.instance, ordinal: first + self.random.below(end - first) }
    }

    async fn submit(&mut self) -> Result<(), Stopped> {
        let capacity = self.engine.info().pages;
        let common = self.random.one_in(4);
        let Some(pass) = self.random.pass(&self.held, capacity, common) else { return self.allocate().await };
        self.note_stores(&pass);
        let (queue, reply) = (self.queue(), Reply::default());
        self.results.push(Reply::clone(&reply));
        let sent = self.engine.submit(&self.credits, queue, Operation::Pass(pass, reply)).await;
        sent.map_err(|_| Stopped)
    }

    fn note_stores(&mut self, pass: &Pass) {
        for output in &pass.outputs {
            if let PassOutput::Embed { to, .. } = output
                && !self.held.written.contains(to)
            {
                self.held.written.push(*to);
            }
        }
    }

    /// Waits for an answer, and says what it is.
    async fn result(&mut self) -> Result<(), Stopped> {
        let at = self.random.below(self.results.len().max(1) as u32) as usize;
        if at >= self.results.len() {
            return Ok(());
        }
        match self.results.swap_remove(at).wait().await {
            Ok(produced) => self.emit(Said::Message(format!("{produced:?}"))).await,
            Err(_) => Err(Stopped),
        }
    }

    fn names(&mut self, kind: Kind) -> &mut Vec<VirtualId> {
        match kind {
            Kind::Page => &mut self.held.pages,
            Kind::Embed => &mut self.held.embeds,
        }
    }

    fn some(&mut self, kind: Kind) -> Vec<VirtualId> {
        let names = self.names(kind).clone();
        self.random.some(&names, 3)
    }

    async fn allocate(&mut self) -> Result<(), Stopped> {
        let kind = self.random.kind();
        let count = self.random.below(if kind == Kind::Page { 5 } else { 3 });
        let (instance, reply) = (self.instance, Reply::default());
        self.tell(Command::Allocate { instance, kind, count, reply: Reply::clone(&reply) }).await?;
        self.named(kind, reply).await
    }

    async fn import(&mut self) -> Result<(), Stopped> {
        let (instance, kind, name) = (self.instance, self.random.kind(), self.random.name());
        let reply = Reply::default();
        self.tell(Command::Import { instance, kind, name, reply: Reply::clone(&reply) }).await?;
        self.named(kind, reply).await
    }

    async fn named(
        &mut self,
        kind: Kind,
        reply: Reply<Result<Vec<VirtualId>, Refusal>>,
    ) -> Result<(), Stopped> {
        match reply.wait().await {
            Ok(ids) => self.names(kind).extend(ids),
            Err(Refusal::Ended) => return Err(Stopped),
            Err(_) => {}
        }
        Ok(())
    }

    async fn deallocate(&mut self) -> Result<(), Stopped> {
        let kind = self.random.kind();
        let (instance, ids) = (self.instance, self.some(kind));
        self.names(kind).retain(|id| !ids.contains(id));
        if kind == Kind::Embed {
            self.held.written.retain(|id| !ids.contains(id));
        }
        self.tell(Command::Deallocate { instance, kind, ids }).await
    }

    async fn export(&mut self) -> Result<(), Stopped> {
        let kind = self.random.kind();
        let (instance, ids, name, reply) =
            (self.instance, self.some(kind), self.random.name(), Reply::default());
        self.tell(Command::Export { instance, kind, ids, name, reply: Reply::clone(&reply) }).await?;
        self.done(reply).await
    }

    async fn release(&mut self) -> Result<(), Stopped> {
        let (instance, kind, name, reply) =
            (self.instance, self.random.kind(), self.random.name(), Reply::default());
        self.tell(Command::Release { instance, kind, name, reply: Reply::clone(&reply) }).await?;
        self.done(reply).await
    }

    async fn done(&self, reply: Reply<Result<(), Refusal>>) -> Result<(), Stopped> {
        match reply.wait().await {
            Err(Refusal::Ended) => Err(Stopped),
            _ => Ok(()),
        }
    }

    async fn synchronize(&mut self) -> Result<(), Stopped> {
        let (queue, reply) = (self.queue(), Reply::default());
        let operation = Operation::Synchronize(Reply::clone(&reply));
        self.engine.submit(&self.credits, queue, operation).await.map_err(|_| Stopped)?;
        if *reply.wait().await { Ok(()) } else { Err(Stopped) }
    }

    async fn set_priority(&mut self) -> Result<(), Stopped> {
        let queue = self.queue();
        let priority = [Priority::Low, Priority::Normal, Priority::High][self.random.below(3) as usize];
        self.tell(Command::SetPriority { queue, priority }).await
    }

    /// Drops its first queue, and has a new one for it.
    async fn close(&mut self) -> Result<(), Stopped> {
        let queue = QueueId { instance: self.instance, ordinal: self.queues.0 };
        self.queues = (self.queues.0 + 1, self.queues.1 + 1);
        self.tell(Command::Close { queue }).await
    }

    async fn misuse(&mut self) -> Result<(), Stopped> {
        let ids = vec![VirtualId(u32::MAX)];
        self.tell(Command::Deallocate { instance: self.instance, kind: Kind::Page, ids }).await?;
        Err(Stopped)
    }
}
