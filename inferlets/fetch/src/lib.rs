//! Asks a host by HTTP: `METHOD URL`, `--body BYTES` to send so many, `--first-byte MS` to wait no longer than that.
//!
//! Owns: one request, and what came of it as messages: the status, the length of the body and its first characters; or why
//! there is no answer. Never: redirects; the answer is shown as it came.

use inferlet::{Args, Result, anyhow, send};
use wstd::http::body::BodyForthcoming;
use wstd::http::{Client, Request, Uri};
use wstd::io::{AsyncRead, AsyncWrite};
use wstd::time::Duration;

/// Characters of a body that are shown.
const SHOWN: usize = 200;

#[inferlet::main]
async fn main(mut args: Args) -> Result<()> {
    let length: Option<usize> = args.opt_value_from_str("--body")?;
    let first_byte: Option<u64> = args.opt_value_from_str("--first-byte")?;
    let method: String = args.free_from_str()?;
    let uri: Uri = args.free_from_str()?;
    let mut client = Client::new();
    if let Some(time) = first_byte {
        client.set_first_byte_timeout(Duration::from_millis(time));
    }
    let request = Request::builder().method(method.as_str()).uri(uri).header("x-program", "fetch");
    let outcome = match length {
        None => client.send(request.body(wstd::io::empty())?).await,
        Some(length) => {
            let (mut body, response) =
                client.start_request(request.body(BodyForthcoming)?).await.map_err(failed)?;
            // A host that does not listen to the end may still answer.
            let sent = body.write_all(&vec![b'z'; length]).await;
            match sent {
                Ok(()) => Client::finish(body, None).map_err(failed)?,
                Err(_) => Client::fail(body),
            }
            response.await
        }
    };
    let mut response = match outcome {
        Ok(response) => response,
        Err(why) => {
            send(&format!("failed: {why}"));
            return Ok(());
        }
    };
    send(&format!("status {}", response.status().as_u16()));
    let (mut bytes, mut buffer) = (Vec::new(), vec![0; 16 * 1024]);
    let mut length = 0;
    let end = loop {
        match response.body_mut().read(&mut buffer).await {
            Ok(0) => break "whole".to_owned(),
            Ok(read) => {
                length += read;
                let room = SHOWN.saturating_sub(bytes.len());
                bytes.extend_from_slice(&buffer[..read.min(room)]);
            }
            Err(why) => break format!("broken: {why}"),
        }
    };
    send(&format!("{length} bytes, {end}"));
    send(&String::from_utf8_lossy(&bytes));
    Ok(())
}

fn failed(why: wstd::http::Error) -> inferlet::Error {
    anyhow!("{why}")
}
