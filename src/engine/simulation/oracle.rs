//! The serial executor: every operation runs whole, the moment it is carried out; exports and imports copy contents.
//! No physical page, no sharing, no order to get wrong.

use super::fake;
use crate::backend::{DrawKey, Info, Produced};
use crate::engine::operation::{
    Kind, Leave, Pass, PassInput, PassOutput, PassResult, QueueId, Reply, VirtualId,
};
use crate::engine::state::Trace;
use crate::identity::{InstanceId, Subject};
use std::collections::{BTreeMap, BTreeSet};

/// Contents of a page (its slots) or an embed (one), `None` where nothing was written; and who wrote.
#[derive(Clone, Default)]
pub struct Content {
    pub slots: Vec<Option<u64>>,
    writers: Vec<(InstanceId, Reply<PassResult>)>,
}

pub struct Member {
    pub subject: Subject,
    seed: u64,
    pub names: BTreeMap<(Kind, VirtualId), Content>,
}

pub struct Exported {
    by: InstanceId,
    pub pages: Vec<Content>,
}

pub struct Oracle {
    info: Info,
    pub members: BTreeMap<InstanceId, Member>,
    /// Whose those were that have left.
    gone: BTreeMap<InstanceId, Subject>,
    pub exports: BTreeMap<(Subject, Kind, String), Exported>,
    passes: BTreeMap<QueueId, u64>,
    /// What each pass must answer, in the order carried out.
    pub expected: Vec<(QueueId, Reply<PassResult>, Vec<Produced>)>,
}

impl Oracle {
    pub fn new(info: Info) -> Oracle {
        Oracle {
            info,
            members: BTreeMap::new(),
            gone: BTreeMap::new(),
            exports: BTreeMap::new(),
            passes: BTreeMap::new(),
            expected: Vec::new(),
        }
    }

    pub fn follow(&mut self, step: Trace) {
        match step {
            Trace::Joined(instance, subject, seed) => {
                self.members.insert(instance, Member { subject, seed, names: BTreeMap::new() });
            }
            Trace::Left(instance, how, withdrawn) => self.left(instance, how, withdrawn),
            Trace::Allocated(instance, kind, ids) => {
                let slots = if kind == Kind::Page { self.info.page_size } else { 1 } as usize;
                let fresh = Content { slots: vec![None; slots], writers: Vec::new() };
                for id in ids {
                    let before = self.member(instance).names.insert((kind, id), fresh.clone());
                    assert!(before.is_none(), "{id:?} is given twice");
                }
            }
            Trace::Deallocated(instance, kind, ids) => {
                for id in ids {
                    let was = self.member(instance).names.remove(&(kind, id));
                    assert!(was.is_some(), "{id:?} was not held");
                }
            }
            Trace::Exported(instance, kind, ids, name) => {
                let member = self.member(instance);
                let pages = ids.iter().map(|&id| member.names[&(kind, id)].clone()).collect();
                let key = (member.subject.clone(), kind, name);
                let before = self.exports.insert(key, Exported { by: instance, pages });
                assert!(before.is_none(), "exported over another");
            }
            Trace::Imported(instance, kind, name, ids) => {
                let key = (self.member(instance).subject.clone(), kind, name);
                let pages = self.exports[&key].pages.clone();
                assert_eq!(pages.len(), ids.len());
                for (id, page) in ids.into_iter().zip(pages) {
                    let before = self.member(instance).names.insert((kind, id), page);
                    assert!(before.is_none(), "{id:?} is given twice");
                }
            }
            Trace::Released(instance, kind, name) => {
                let key = (self.member(instance).subject.clone(), kind, name);
                assert!(self.exports.remove(&key).is_some(), "released what was not there");
            }
            Trace::Submitted(queue, pass, known, reply) => self.run(queue, pass, known, reply),
        }
    }

    fn member(&mut self, instance: InstanceId) -> &mut Member {
        self.members.get_mut(&instance).expect("carried out for an instance that is not there")
    }

    /// A killed instance's exports go exactly if a pass of it that wrote them has not run.
    fn left(&mut self, instance: InstanceId, how: Leave, withdrawn: Vec<(Kind, String)>) {
        // A second time if what it left queued is given up too.
        let subject = match self.members.remove(&instance) {
            Some(member) => self.gone.entry(instance).or_insert(member.subject).clone(),
            None => self.gone.get(&instance).expect("it was there").clone(),
        };
        let unwritten = |content: &Content| {
            let mut mine = content.writers.iter().filter(|(by, _)| *by == instance);
            mine.any(|(_, reply)| !matches!(reply.get(), Some(Ok(_))))
        };
        let exports = self.exports.iter();
        let must: BTreeSet<(Kind, String)> = exports
            .filter(|(key, e)| key.0 == subject && e.by == instance)
            .filter(|(_, e)| how == Leave::Killed && e.pages.iter().any(unwritten))
            .map(|((_, kind, name), _)| (*kind, name.clone()))
            .collect();
        assert_eq!(must, withdrawn.into_iter().collect(), "withdrawn exports");
        for (kind, name) in must {
            self.exports.remove(&(subject.clone(), kind, name));
        }
    }

    /// The first `known` rows are not run by the engine: others have, so the pages do not wait for this pass.
    fn run(&mut self, queue: QueueId, pass: Pass, known: u32, reply: Reply<PassResult>) {
        let ordinal = self.passes.entry(queue).or_default();
        let pass_ordinal = *ordinal;
        *ordinal += 1;
        let size = self.info.page_size as usize;
        let member = self.members.get_mut(&queue.instance).expect("a pass of nobody");
        let draw = DrawKey { seed: member.seed, queue: queue.ordinal, pass: pass_ordinal };
        let context = pass.len as usize - pass.inputs.len();
        let mut slots: Vec<u64> = Vec::new();
        for slot in 0..context {
            let page = member.names.get_mut(&(Kind::Page, pass.pages[slot / size]));
            let page = page.expect("a page not held");
            // Seen and never written: zero, and so it stays.
            slots.push(*page.slots[slot % size].get_or_insert(0));
        }
        for (row, input) in pass.inputs.iter().enumerate() {
            let input = match *input {
                PassInput::Token(id) => fake::token_input(id),
                PassInput::Embed(id) => {
                    member.names[&(Kind::Embed, id)].slots[0].expect("an embed not written")
                }
            };
            slots.push(fake::slot(input, pass.positions[row], &pass.mask, row, &slots));
        }
        for (slot, &content) in slots.iter().enumerate().skip(context) {
            let page = member.names.get_mut(&(Kind::Page, pass.pages[slot / size]));
            let page = page.expect("a page not held");
            page.slots[slot % size] = Some(content);
            if slot >= context + known as usize {
                page.writers.push((queue.instance, reply.clone()));
            }
        }
        let (mut produced, mut stores) = (Vec::new(), Vec::new());
        for (ordinal, output) in pass.outputs.iter().enumerate() {
            match *output {
                PassOutput::Token { row, .. } => {
                    let content = slots[context + row as usize];
                    produced.push(fake::token(content, draw, ordinal as u32));
                }
                PassOutput::Distribution { row, .. } => {
                    produced.push(fake::distribution(slots[context + row as usize]));
                }
                PassOutput::Embed { row, to } => stores.push((to, slots[context + row as usize])),
            }
        }
        for (to, content) in stores {
            let embed = member.names.get_mut(&(Kind::Embed, to)).expect("an embed not held");
            embed.slots[0] = Some(fake::embedding(content));
            embed.writers = vec![(queue.instance, reply.clone())];
        }
        self.expected.push((queue, reply, produced));
    }
}
