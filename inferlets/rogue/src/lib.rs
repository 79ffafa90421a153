//! The program that misbehaves: one fault per run, chosen by the first argument. The tests launch it beside a
//! well-behaved chat and look at what happens to each.
//!
//! usage: rogue MODE
//!
//! A mode that the server let pass returns `survived: …`; where passing is the right answer the text says what came
//! of it. `rogue modes` returns the names of all modes.

mod costly;
mod crowd;
mod machine;
mod model;
mod raw;

use inferlet::{Args, Result, anyhow};

/// A name and what it does. The text is returned if the server lets the program live.
type Mode = (&'static str, fn() -> String);

const MODES: &[&[Mode]] = &[machine::MODES, raw::MODES, model::MODES, crowd::MODES, costly::MODES];

#[inferlet::main]
async fn main(mut args: Args) -> Result<String> {
    let wanted: String = args.free_from_str()?;
    let modes = || MODES.iter().copied().flatten();
    match wanted.as_str() {
        "modes" => Ok(modes().map(|(name, _)| *name).collect::<Vec<_>>().join(" ")),
        "fail" => Err(anyhow!("the reason").context("failing as asked")),
        "return" => Ok("at once".to_string()),
        _ => {
            let (_, mode) = modes()
                .find(|(name, _)| *name == wanted)
                .ok_or_else(|| anyhow!("there is no mode {wanted:?}"))?;
            Ok(mode())
        }
    }
}
