//! Sends back what it gets: messages, blobs, arguments. Shows everything that passes between a client and a program
//! without a model.
//!
//! usage: echo [--return TEXT] [--fail TEXT] [--messages N] [--blobs N] [--blob BYTES] [WORD]...
//!
//! In this order: each WORD is sent as a message; a blob of BYTES bytes (0, 1, 2, … modulo 251) is sent; N messages are
//! received and each is sent back; N blobs likewise; then the program ends, returning TEXT (else the number of
//! messages and blobs it echoed), or failing with TEXT. `--messages forever` echoes until it is terminated.

use inferlet::{Args, Blob, Result, api, bail, receive, send, send_blob, wstd};
use std::str::FromStr;

#[inferlet::main]
async fn main(mut args: Args) -> Result<String> {
    let value: Option<String> = args.opt_value_from_str("--return")?;
    let failure: Option<String> = args.opt_value_from_str("--fail")?;
    let messages = args.opt_value_from_str("--messages")?.unwrap_or(Count(0));
    let blobs = args.opt_value_from_str("--blobs")?.unwrap_or(Count(0));
    let blob: Option<usize> = args.opt_value_from_str("--blob")?;

    for word in args.finish() {
        send(&word.to_string_lossy());
    }
    if let Some(bytes) = blob {
        send_blob(Blob::new((0..bytes).map(|i| (i % 251) as u8).collect()));
    }
    for _ in 0..messages.0 {
        send(&receive().await);
    }
    for _ in 0..blobs.0 {
        send_blob(Blob::new(receive_blob().await));
    }
    if let Some(failure) = failure {
        bail!("{failure}");
    }
    Ok(value.unwrap_or_else(|| (messages.0 + blobs.0).to_string()))
}

/// The SDK's own `receive_blob` gives a `Blob` whose bytes cannot be read; the interface below it can.
async fn receive_blob() -> Vec<u8> {
    let arrival = api::message::receive_blob();
    wstd::io::AsyncPollable::new(arrival.pollable()).wait_for().await;
    let blob = arrival.get().expect("the pollable was ready");
    blob.read(0, blob.size())
}

struct Count(u64);

impl FromStr for Count {
    type Err = std::num::ParseIntError;
    fn from_str(text: &str) -> std::result::Result<Count, Self::Err> {
        if text == "forever" { Ok(Count(u64::MAX)) } else { text.parse().map(Count) }
    }
}
