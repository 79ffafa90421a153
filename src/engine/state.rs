//! Everything the engine knows, as data: commands in, plans out. No thread, no channel, no tensor.

use crate::backend::{Batch, Fault, Info, Outcome, PageId};
use crate::engine::operation::{Command, Notice};
use crate::engine::schedule::Budget;

/// What must be done to pages before the batch runs, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Move {
    Copy {
        from: PageId,
        to: PageId,
    },
    /// Zero the slots from `from` on: a pass is about to see them, and whoever had the page before left them full.
    Clear {
        page: PageId,
        from: u32,
    },
}

/// One turn's work.
pub struct Plan {
    pub moves: Vec<Move>,
    pub batch: Batch,
}

/// The engine without its thread.
pub struct State {
    notices: Vec<Notice>,
}

impl State {
    pub fn new(_info: &Info) -> State {
        State { notices: Vec::new() }
    }

    pub fn apply(&mut self, _command: Command) {}

    pub fn plan(&mut self, _budget: Budget) -> Option<Plan> {
        None
    }

    pub fn finish(&mut self, _plan: Plan, _outcome: &mut Outcome) -> Result<(), Fault> {
        Ok(())
    }

    pub fn take_notices(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.notices)
    }

    pub fn take_answered(&mut self) -> bool {
        false
    }

    pub fn lose_everything(&mut self, _why: &str) {}
}
