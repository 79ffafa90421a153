//! What was sent to the engine and is not carried out yet: a row for each subject.
//!
//! Owns: the end of the channel that all senders share, the rows, and whose command is next: of the subject for which the
//! engine has worked least. Never: what a command does; a bound, which is the channel's while the engine computes, and its
//! senders' credits and waits for answers beyond it.
//!
//! A subject's commands are carried out in the order sent, whichever of its instances sent them. So whoever sends hundreds that
//! name 65,536 pages each, which take milliseconds, keeps its own waiting, and another's pass is behind one of them.

use crate::engine::credit::Credit;
use crate::engine::operation::Command;
use crate::fair::Fair;
use crate::identity::{InstanceId, Subject};
use crate::limits::ENGINE_INBOX;
use smol::channel::{Receiver, RecvError};
use std::collections::HashMap;
use std::time::Duration;

/// A command on its way.
pub struct Sent {
    pub command: Command,
    /// Of one whose sender waits for no answer: room for it, until it is carried out, or waits behind another for pages.
    pub credit: Option<Credit>,
}

pub(super) struct Inbox {
    channel: Receiver<Sent>,
    rows: Fair<Sent>,
    /// Of those that have joined and not left: the row, and joins without a leave.
    instances: HashMap<InstanceId, (usize, usize)>,
    /// Whose the rows from the second on are, and how many members it has. With none it is nobody's.
    subjects: Vec<(Subject, usize)>,
}

/// The row of what no member has sent.
const NOBODY: usize = 0;

impl Inbox {
    pub fn new(channel: Receiver<Sent>) -> Inbox {
        Inbox { channel, rows: Fair::default(), instances: HashMap::new(), subjects: Vec::new() }
    }

    /// Whether nothing has been sent that is still to be carried out.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.channel.is_empty()
    }

    /// Puts what has been sent by now into the rows; true if the channel was full. Not until it is empty: senders must not be
    /// able to hold us here.
    pub fn take_in(&mut self) -> bool {
        let sent = self.channel.len();
        for _ in 0..sent {
            let Ok(sent) = self.channel.try_recv() else { break };
            self.put(sent);
        }
        sent >= ENGINE_INBOX
    }

    /// Waits until something is sent.
    ///
    /// # Errors
    /// There is nobody left who could.
    pub fn wait(&mut self) -> Result<(), RecvError> {
        let sent = self.channel.recv_blocking()?;
        self.put(sent);
        Ok(())
    }

    /// From now on senders hear that there is no engine.
    pub fn close(&self) {
        self.channel.close();
    }

    /// The next command, and the row that it is of: [`Inbox::over`] is told what it took.
    pub fn next(&mut self) -> Option<(usize, Sent)> {
        let (row, sent) = self.rows.pop()?;
        if let Command::Leave { instance, .. } = sent.command {
            self.left(instance);
        }
        Some((row, sent))
    }

    pub fn over(&mut self, row: usize, took: Duration) {
        self.rows.over(row, took.as_nanos() as u64);
    }

    fn put(&mut self, sent: Sent) {
        if let Command::Join { instance, subject, .. } = &sent.command {
            self.joins(*instance, subject);
        }
        let member = sent.command.instance().and_then(|instance| self.instances.get(&instance));
        self.rows.push(member.map_or(NOBODY, |(row, _)| *row), sent);
    }

    fn left(&mut self, instance: InstanceId) {
        let Some((row, joins)) = self.instances.get_mut(&instance) else { return };
        *joins -= 1;
        if *joins == 0 {
            self.subjects[*row - 1].1 -= 1;
            self.instances.remove(&instance);
        }
    }

    fn joins(&mut self, instance: InstanceId, subject: &Subject) {
        if let Some((_, joins)) = self.instances.get_mut(&instance) {
            *joins += 1;
            return;
        }
        let find = |whose: &dyn Fn(&(Subject, usize)) -> bool| self.subjects.iter().position(whose);
        let its = find(&|(known, members)| *members > 0 && known == subject);
        let row = match its.or_else(|| find(&|(_, members)| *members == 0)) {
            Some(at) => at + 1,
            None => {
                self.subjects.push((subject.clone(), 0));
                self.subjects.len()
            }
        };
        let (whose, members) = &mut self.subjects[row - 1];
        if *members == 0 {
            whose.clone_from(subject);
            self.rows.begin(row);
        }
        *members += 1;
        self.instances.insert(instance, (row, 1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::operation::{Leave, PageQuotas, QueueId};
    use smol::channel::{Sender, bounded};

    struct World {
        sender: Sender<Sent>,
        inbox: Inbox,
    }

    impl World {
        fn new() -> World {
            let (sender, channel) = bounded(ENGINE_INBOX);
            World { sender, inbox: Inbox::new(channel) }
        }

        fn send(&self, command: Command) {
            assert!(self.sender.try_send(Sent { command, credit: None }).is_ok());
        }

        fn join(&self, number: u128, subject: &str) -> InstanceId {
            let (instance, subject) = (InstanceId::from_bits(number), Subject::new(subject));
            self.send(Command::Join { instance, subject, pages: PageQuotas::default(), seed: 0 });
            instance
        }

        /// Command number `ordinal` of an instance.
        fn close(&self, instance: InstanceId, ordinal: u32) {
            self.send(Command::Close { queue: QueueId { instance, ordinal } });
        }

        /// Carries all out, each for so long as `takes` says of its instance; what was closed, in this order.
        fn all(&mut self, takes: impl Fn(InstanceId) -> u64) -> Vec<(InstanceId, u32)> {
            let mut closed = Vec::new();
            self.inbox.take_in();
            while let Some((row, Sent { command, .. })) = self.inbox.next() {
                let took = command.instance().map_or(0, &takes);
                self.inbox.over(row, Duration::from_millis(took));
                if let Command::Close { queue } = command {
                    closed.push((queue.instance, queue.ordinal));
                }
            }
            assert!(self.inbox.is_empty());
            closed
        }
    }

    #[test]
    fn a_subject_for_which_the_engine_works_long_keeps_its_own_waiting() {
        let mut w = World::new();
        let [one, two] = [w.join(1, "greedy"), w.join(2, "greedy")];
        (0..100).for_each(|ordinal| w.close([one, two][ordinal as usize % 2], ordinal));
        let modest = w.join(3, "modest");
        (0..100).for_each(|ordinal| w.close(modest, ordinal));
        let closed = w.all(|instance| if instance == modest { 1 } else { 40 });
        let own = |of: &[InstanceId]| -> Vec<u32> {
            closed.iter().filter(|(instance, _)| of.contains(instance)).map(|(_, ordinal)| *ordinal).collect()
        };
        let order: Vec<u32> = (0..100).collect();
        assert_eq!((own(&[one, two]), own(&[modest])), (order.clone(), order), "in the order sent");
        let before = closed.iter().take_while(|(_, ordinal)| *ordinal < 99).filter(|c| c.0 != modest).count();
        assert!(before <= 4, "{before} of the long ones before the last short one");
    }

    #[test]
    fn a_row_is_anothers_when_the_last_of_its_subject_has_left() {
        let mut w = World::new();
        for round in 0..10 {
            let [first, second] = [w.join(1, "a"), w.join(1, "a")];
            w.close(first, round);
            w.send(Command::Leave { instance: first, how: Leave::Killed });
            assert_eq!(w.all(|_| 1).len(), 1);
            assert_eq!(w.inbox.instances.len(), 1, "it has joined twice");
            w.send(Command::Leave { instance: second, how: Leave::Killed });
            w.close(second, 0); // from somebody who has not heard of it
            w.all(|_| 1);
            let other = w.join(2, "b");
            w.send(Command::Leave { instance: other, how: Leave::Killed });
            w.all(|_| 1);
        }
        assert!(w.inbox.instances.is_empty());
        assert_eq!(w.inbox.subjects.len(), 1, "one was enough for all");
    }
}
