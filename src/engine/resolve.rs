//! From a pass as the guest built it to a job on physical pages: names, known prefixes, copies on write, what is touched.
//!
//! Owns: the decisions that fall at submission, in submission order: which rows need not run, who gets a copy, which
//! slots are cleared, which embed goes where. Never: when anything runs. Deciding here and ordering by hazards gives every pass, export and
//! import the contents they would have if each operation ran the moment it was submitted.

use crate::backend::{DrawKey, Input, Mask, Output};
use crate::engine::credit::Credit;
use crate::engine::hazards::Touch;
use crate::engine::job::{Move, PassWork};
use crate::engine::operation::{
    Command, Kind, Lost, Notice, Operation, Pass, PassInput, PassOutput, PassResult, QueueId, Refusal, Reply,
    VirtualId,
};
use crate::engine::pages::Physical;
use crate::engine::prefix::Content;
use crate::engine::state::{Got, Held, State, not_held};
use crate::engine::waiting::Lack;
use crate::identity::InstanceId;
use crate::observe::stages::{self, Stage};
#[cfg(test)]
use crate::simulation::plant::{Bug, planted};
use std::collections::HashSet;

/// The physical side of a pass, before it is queued.
struct Found {
    pages: Vec<Physical>,   // [page of the pass]
    inputs: Vec<Input>,     // [row]
    reads: Vec<Physical>,   // embeds read, each once
    stores: Vec<VirtualId>, // embeds written
    /// Rows from the first on that need not run: their pages hold already what they would write.
    known: u32,
    /// What the pages will hold that rows write which run; empty where that does not follow from tokens alone.
    contents: Vec<Content>, // [written page]
    /// Embeds written that others refer to, or that the pass itself reads.
    fresh: HashSet<VirtualId>,
}

impl State {
    /// Resolves and queues a pass. The reply of one that ends its instance is answered here.
    pub(super) fn submit(
        &mut self,
        queue: QueueId,
        pass: Pass,
        reply: Reply<PassResult>,
        credit: Credit,
    ) -> Result<(), Held> {
        stages::mark(Stage::Received, queue.instance);
        match self.resolve(queue, &pass) {
            Ok(Ok(found)) => {
                self.queue_pass(queue, pass, found, reply, credit);
                stages::mark(Stage::Queued, queue.instance);
                Ok(())
            }
            Ok(Err(lack)) => {
                let operation = Operation::Pass(pass, reply);
                Err(Held::Back(Box::new(Command::Submit { queue, operation, credit }), lack))
            }
            Err(ends) => {
                if let Held::Ends(notice) = &ends {
                    let why = match notice {
                        Notice::Misuse { what: why, .. } | Notice::OutOfPages { why, .. } => why.clone(),
                        Notice::Quota { quota, .. } => quota.to_string(),
                        Notice::Evict(_) => Refusal::Ended.to_string(),
                    };
                    self.answer(&reply, Err(Lost(why)));
                }
                Err(ends)
            }
        }
    }

    /// Or the pages that it must wait for, to have copies of its own.
    fn resolve(&mut self, queue: QueueId, pass: &Pass) -> Result<Result<Found, Lack>, Held> {
        let instance = queue.instance;
        let misuse = |what| Held::Ends(Notice::Misuse { instance, what });
        pass.check(&self.info).map_err(misuse)?;
        let mut found = self.find(instance, pass)?;
        self.reuse(instance, pass, &mut found);
        let first = self.first_written(pass, &found);
        let shared = found.pages[first..].iter().filter(|&&page| self.pages.owners(page) > 1);
        let copies = shared.count();
        if let Some(quota) = self.pages.over(instance, copies as u32, 0) {
            return Err(Held::Ends(Notice::Quota { instance, quota }));
        }
        let needs = [(Kind::Page, copies), (Kind::Embed, found.fresh.len())];
        for (kind, count) in needs {
            match self.room(instance, kind, count as u32) {
                Got::Room => {}
                Got::Wait(lack) => return Ok(Err(lack)),
                Got::Never(refusal) => {
                    let why = format!("a copy of a shared {kind}: {refusal}");
                    return Err(Held::Ends(Notice::OutOfPages { instance, why }));
                }
            }
        }
        Ok(Ok(found))
    }

    fn find(&self, instance: InstanceId, pass: &Pass) -> Result<Found, Held> {
        let misuse = |what| Held::Ends(Notice::Misuse { instance, what });
        let page = |id: &VirtualId| {
            self.pages.find(instance, *id).ok_or_else(|| not_held(instance, Kind::Page, *id))
        };
        let embed =
            |id: VirtualId| self.embeds.find(instance, id).ok_or_else(|| not_held(instance, Kind::Embed, id));
        let pages: Vec<Physical> = pass.pages.iter().map(page).collect::<Result<_, _>>()?;

        let first_written = (pass.len as usize - pass.rows()) / self.info.page_size as usize;
        let (read, written) = pass.pages.split_at(first_written);
        let mut once = written.to_vec();
        once.sort_unstable();
        let twice = once.windows(2).find(|pair| pair[0] == pair[1]).map(|pair| pair[0]);
        let twice = twice.or_else(|| read.iter().copied().find(|id| once.binary_search(id).is_ok()));
        if let Some(id) = twice {
            return Err(misuse(format!("kv-pages: page {} is written and listed twice", id.0)));
        }

        let (mut reads, mut inputs) = (Vec::new(), Vec::with_capacity(pass.rows()));
        for input in &pass.inputs {
            inputs.push(match *input {
                PassInput::Token(token) => Input::Token(token),
                PassInput::Embed(id) => {
                    let at = embed(id)?;
                    if self.embeds.filled(at) == 0 {
                        return Err(misuse(format!("input-embeddings: nothing is in embed {}", id.0)));
                    }
                    reads.push(at);
                    Input::Embed(at.into())
                }
            });
        }
        reads.sort_unstable();
        reads.dedup();

        let (mut stores, mut fresh) = (Vec::new(), HashSet::new());
        for output in &pass.outputs {
            if let PassOutput::Embed { to, .. } = *output {
                let at = embed(to)?;
                if self.embeds.owners(at) > 1 || reads.binary_search(&at).is_ok() {
                    fresh.insert(to);
                }
                stores.push(to);
            }
        }
        Ok(Found { pages, inputs, reads, stores, known: 0, contents: Vec::new(), fresh })
    }

    /// Index of the first page that a row writes which has to run.
    fn first_written(&self, pass: &Pass, found: &Found) -> usize {
        let context = pass.len - pass.rows() as u32 + found.known;
        (context / self.info.page_size) as usize
    }

    /// Gives the instance, under its names, pages that hold what the first rows of its pass would write: idle ones as they
    /// are, of others copies. Were these shared, whoever wrote there later would need a page more, and could be ended for
    /// it. Rows that have outputs run all the same, and so does the last. Doing it again, when the pass has waited, changes
    /// nothing.
    fn reuse(&mut self, instance: InstanceId, pass: &Pass, found: &mut Found) {
        let masked = pass.mask != Mask::Causal;
        #[cfg(test)]
        let masked = masked && !planted(Bug::PrefixMask);
        if masked {
            return;
        }
        let context = pass.len - pass.rows() as u32;
        let after = self.pages.prefixes.after(&found.pages, context, &found.inputs, &pass.positions);
        let Some(mut contents) = after else { return };
        let size = self.info.page_size;
        let first = (context / size) as usize;
        let runs = pass.outputs.iter().map(PassOutput::row).min().unwrap_or(u32::MAX);
        let runs = context + runs.min(pass.rows() as u32 - 1);
        let whole = (runs / size) as usize; // Pages before the first row that runs.
        let mut written = found.pages[first..].to_vec();
        written.sort_unstable();
        for (i, content) in (first..whole).zip(&contents) {
            let own = found.pages[i];
            if !self.pages.prefixes.holds(own, content) {
                let Some(subject) = self.pages.subject_of(instance) else { break };
                let Some(page) = self.pages.prefixes.find(subject, content) else { break };
                // One that the pass itself is to write is no prefix of it.
                if !self.pages.is_fresh(own) || written.binary_search(&page).is_ok() {
                    break;
                }
                match self.pages.adopt(instance, pass.pages[i], page) {
                    true => found.pages[i] = page,
                    false => {
                        self.pages.prefixes.write(own, 0, None);
                        self.add_copy(instance, page, own, size);
                    }
                }
            }
            found.known = (i as u32 + 1) * size - context;
        }
        contents.drain(..self.first_written(pass, found) - first);
        found.contents = contents;
        if found.known > 0 {
            tracing::debug!(target: "engine", %instance, rows = found.known, "known prefix");
        }
    }

    fn queue_pass(
        &mut self,
        queue: QueueId,
        pass: Pass,
        found: Found,
        reply: Reply<PassResult>,
        credit: Credit,
    ) {
        let instance = queue.instance;
        let draw = DrawKey {
            seed: self.members.get(&instance).map_or(0, |m| m.seed),
            queue: queue.ordinal,
            pass: self.schedule.number_pass(queue),
        };
        #[cfg(test)]
        self.trace.push(crate::engine::state::Trace::Submitted(
            queue,
            pass.clone(),
            found.known,
            reply.clone().bare(),
        ));
        let rows = pass.rows();
        let (known, context) = (found.known as usize, pass.len - rows as u32 + found.known);
        let first = self.first_written(&pass, &found);
        let mut contents = found.contents.into_iter();
        let mut pages = found.pages;
        for (i, page) in pages.iter_mut().enumerate().skip(first) {
            let span = self.span(i, context, pass.len);
            *page = self.own_copy(instance, pass.pages[i], *page, span);
        }
        self.pages.prefixes.name(&pages);
        let mut touches = Vec::new();
        for (i, &at) in pages.iter().enumerate() {
            let (from, to) = self.span(i, context, pass.len);
            self.clear_if_seen(instance, at, from);
            let touch = |from, to, write| Touch { kind: Kind::Page, at, from, to, write };
            touches.extend((from > 0).then(|| touch(0, from, false)));
            touches.extend((from < to).then(|| touch(from, to, true)));
            let filled = self.pages.filled(at).max(to);
            self.pages.set_filled(at, filled);
            if i >= first {
                self.pages.prefixes.write(at, from, contents.next());
                #[cfg(test)]
                if planted(Bug::PrefixUnwritten) {
                    self.pages.written(at);
                }
            }
        }
        // A page that is only read may be listed again and again; each time it is the same access. With one touch for
        // each, what follows (holds, hazards) is linear in the pages, however they are listed.
        touches.sort_unstable_by_key(|touch| (touch.at, touch.write));
        touches.dedup();
        let touch = |at, write| Touch { kind: Kind::Embed, at, from: 0, to: 1, write };
        touches.extend(found.reads.iter().map(|&at| touch(at, false)));
        self.hold(&touches); // Before the stores: one may take the name of an embed that is read here.
        let held = touches.len();
        for id in found.stores {
            if found.fresh.contains(&id) {
                self.embeds.replace(instance, id); // Written whole: nothing to copy.
            }
            if let Some(at) = self.embeds.find(instance, id) {
                self.embeds.set_filled(at, 1);
                touches.push(touch(at, true));
            }
        }
        self.hold(&touches[held..]);
        let (outputs, yields) = self.place_outputs(instance, &pass.outputs);
        let (mut inputs, mut positions) = (found.inputs, pass.positions);
        inputs.drain(..known);
        positions.drain(..known);
        let work = PassWork {
            pages: pages.into_iter().map(Into::into).collect(),
            page_size: self.info.page_size,
            context,
            begun: found.known,
            inputs,
            positions,
            mask: pass.mask, // Causal where anything is known.
            outputs,
            draw,
            yielded: vec![None; yields],
            reply,
        };
        self.schedule.add_pass(queue, work, touches, Some(credit));
    }

    /// Of page `i` of a pass: slots `0..from` are behind the new rows, `from..to` are theirs.
    fn span(&self, i: usize, context: u32, len: u32) -> (u32, u32) {
        let size = self.info.page_size;
        let start = i as u32 * size;
        (context.saturating_sub(start).min(size), len.saturating_sub(start).min(size))
    }

    /// Copy on write, where others refer to the page.
    fn own_copy(
        &mut self,
        instance: InstanceId,
        id: VirtualId,
        at: Physical,
        written: (u32, u32),
    ) -> Physical {
        #[cfg(test)]
        if planted(Bug::CopyOnWrite) {
            return at;
        }
        if self.pages.owners(at) == 1 {
            return at; // Making room has ended those it was shared with.
        }
        let Some((old, new)) = self.pages.replace(instance, id) else {
            unreachable!("room was made for every copy, and the name was found")
        };
        let filled = self.pages.filled(old);
        if filled == 0 || (written.0 == 0 && filled <= written.1) {
            return new; // Nothing there, or nothing of it stays.
        }
        self.add_copy(instance, old, new, filled);
        new
    }

    /// Has slots `0..filled` of one page copied to another. Hazards put it after what was to be written to the one
    /// before, and before whatever comes.
    fn add_copy(&mut self, instance: InstanceId, old: Physical, new: Physical, filled: u32) {
        self.pages.set_filled(new, filled);
        self.pages.prefixes.copy(old, new);
        let touch = |at, to, write| Touch { kind: Kind::Page, at, from: 0, to, write };
        let touches = vec![touch(old, filled, false), touch(new, self.info.page_size, true)];
        #[cfg(test)]
        let touches = if planted(Bug::CopyTooEarly) { touches[1..].to_vec() } else { touches };
        self.hold(&touches);
        let step = Move::Copy { from: old.into(), to: new.into() };
        self.schedule.add_move(instance, step, touches);
    }

    /// A pass sees slots `0..seen`: those that nothing has written are zero, not what an earlier owner left there.
    fn clear_if_seen(&mut self, instance: InstanceId, at: Physical, seen: u32) {
        let from = self.pages.filled(at);
        if seen <= from {
            return;
        }
        #[cfg(test)]
        if planted(Bug::Clearing) {
            return;
        }
        let to = self.info.page_size;
        let touches = vec![Touch { kind: Kind::Page, at, from, to, write: true }];
        self.hold(&touches);
        self.pages.set_filled(at, to);
        self.schedule.add_move(instance, Move::Clear { page: at.into(), from }, touches);
    }

    fn hold(&mut self, touches: &[Touch]) {
        for touch in touches {
            self.pool_mut(touch.kind).hold(touch.at);
        }
    }

    /// Outputs on physical ids, with their ordinals; and how many yield something.
    fn place_outputs(&self, instance: InstanceId, outputs: &[PassOutput]) -> (Vec<Output>, usize) {
        let place = |(ordinal, output): (usize, &PassOutput)| match *output {
            PassOutput::Token { row, sampler } => {
                Some(Output::Token { row, sampler, ordinal: ordinal as u32 })
            }
            PassOutput::Distribution { row, temperature, top_k } => {
                Some(Output::Distribution { row, temperature, top_k })
            }
            PassOutput::Embed { row, to } => {
                self.embeds.find(instance, to).map(|at| Output::Embed { row, to: at.into() })
            }
        };
        let placed: Vec<Output> = outputs.iter().enumerate().filter_map(place).collect();
        let yields = placed.iter().filter(|o| !matches!(o, Output::Embed { .. })).count();
        (placed, yields)
    }
}
