//! A program that calls HTTP for the tests, with the client of the stock SDK.
//!
//! usage: call get URL [--connect MS] [--first-byte MS] [--between MS]   the status, and the body or why there is none
//!        call post URL BYTES                                            so many bytes up while a body comes down
//!        call crowd URL COUNT                                           so many at once: what each came to, counted
//!        call hold URL                                                  says when the head is there, and never reads
//!        call insist URL COUNT                                          one after the other, whatever each comes to

use futures::future::join_all;
use inferlet::wstd::http::body::{BodyForthcoming, IncomingBody};
use inferlet::wstd::http::{Client, Method, Request, Response};
use inferlet::wstd::io::{AsyncRead, AsyncWrite, Empty, empty};
use inferlet::wstd::task::sleep;
use inferlet::wstd::time::Duration;
use inferlet::{Args, Result, send};
use std::collections::BTreeMap;
use std::fmt::Display;

#[inferlet::main]
async fn main(mut args: Args) -> Result<String> {
    let mut client = Client::new();
    let mut time = |flag| args.opt_value_from_str(flag).map(|ms: Option<u64>| ms.map(Duration::from_millis));
    if let Some(time) = time("--connect")? {
        client.set_connect_timeout(time);
    }
    if let Some(time) = time("--first-byte")? {
        client.set_first_byte_timeout(time);
    }
    if let Some(time) = time("--between")? {
        client.set_between_bytes_timeout(time);
    }
    let (mode, url): (String, String) = (args.free_from_str()?, args.free_from_str()?);
    match mode.as_str() {
        "get" => Ok(get(&client, &url).await),
        "post" => Ok(post(&client, &url, args.free_from_str()?).await.unwrap_or_else(|why| told(&why))),
        "crowd" => {
            let all = (0..args.free_from_str()?).map(|_| get(&client, &url));
            let mut counts = BTreeMap::new();
            join_all(all).await.into_iter().for_each(|outcome| *counts.entry(outcome).or_insert(0) += 1);
            Ok(format!("{counts:?}"))
        }
        "hold" => {
            let _response = client.send(request(Method::GET, &url)?).await?;
            send("the head is there");
            loop {
                sleep(Duration::from_secs(1)).await;
            }
        }
        "insist" => {
            let mut outcome = String::new();
            for _ in 0..args.free_from_str()? {
                outcome = get(&client, &url).await;
            }
            Ok(outcome)
        }
        _ => Err(inferlet::anyhow!("there is no mode {mode:?}")),
    }
}

fn request(method: Method, url: &str) -> Result<Request<Empty>> {
    Ok(Request::builder().method(method).uri(url).header("x-from", "a program").body(empty())?)
}

fn told(why: &impl Display) -> String {
    format!("failed: {why}")
}

async fn get(client: &Client, url: &str) -> String {
    let request = match request(Method::GET, url) {
        Ok(request) => request,
        Err(why) => return told(&why),
    };
    let mut response = match client.send(request).await {
        Ok(response) => response,
        Err(why) => return told(&why),
    };
    let status = response.status().as_u16();
    let location = response.headers().get("location").map(|place| format!(" to {place:?}"));
    match read(&mut response, |_| ()).await {
        Ok(body) => format!("{status}{}: {}", location.unwrap_or_default(), String::from_utf8_lossy(&body)),
        Err(why) => format!("{status}, then {}", told(&why)),
    }
}

/// Everything of a body, each piece seen as it comes.
async fn read(response: &mut Response<IncomingBody>, mut seen: impl FnMut(&[u8])) -> Result<Vec<u8>> {
    let (mut buffer, mut whole) = (vec![0; 64 * 1024], Vec::new());
    loop {
        match response.body_mut().read(&mut buffer).await {
            Ok(0) => return Ok(whole),
            Ok(read) => {
                seen(&buffer[..read]);
                whole.extend_from_slice(&buffer[..read]);
            }
            Err(why) => return Err(why.into()),
        }
    }
}

/// Sends bytes that count up, and says how many came back in that order.
async fn post(client: &Client, url: &str, bytes: usize) -> Result<String> {
    let request = Request::post(url).body(BodyForthcoming)?;
    let (mut body, response) = client.start_request(request).await?;
    let up = async {
        let mut sent = 0;
        while sent < bytes {
            let piece: Vec<u8> = (sent..bytes.min(sent + 10_000)).map(|at| at as u8).collect();
            body.write_all(&piece).await?;
            sent += piece.len();
        }
        Client::finish(body, None).map_err(inferlet::Error::from)
    };
    let down = async {
        let mut response = response.await?;
        let mut came = 0;
        let mut in_order = true;
        let read = read(&mut response, |piece| {
            in_order &= piece.iter().enumerate().all(|(at, byte)| *byte == (came + at) as u8);
            came += piece.len();
        });
        read.await?;
        Ok(format!("{}: {came} bytes in order: {in_order}", response.status().as_u16()))
    };
    let (up, down): (Result<()>, Result<String>) = futures::future::join(up, down).await;
    up.and(down)
}
