//! Prompt lookup: what followed the last time that these tokens stood here.
//!
//! Owns: the guess. Never: whether it is right, which only the model can say.

/// Up to `len` tokens that may come behind `tokens`: what followed the latest earlier place where the last `ngram`
/// tokens stood, else the last `ngram` - 1, and so on down to one. What is copied may run into the copy itself, so a
/// loop is drafted on and on.
pub fn draft(tokens: &[u32], ngram: usize, len: usize) -> Vec<u32> {
    let Some(from) = (1..=ngram).rev().find_map(|n| behind_earlier(tokens, n)) else { return Vec::new() };
    let mut all = tokens.to_vec();
    for at in from..from + len {
        all.push(all[at]);
    }
    all.split_off(tokens.len())
}

/// Where the latest earlier occurrence of the last `n` tokens ends.
fn behind_earlier(tokens: &[u32], n: usize) -> Option<usize> {
    let last = tokens.len().checked_sub(n)?;
    let at = tokens[..tokens.len() - 1].windows(n).rposition(|window| window == &tokens[last..])?;
    Some(at + n)
}
