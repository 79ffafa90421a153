//! A server as an operator runs it, a process of its own: start to ready, memory, idleness, and the socket.
//!
//! Owns: the child process and what the operating system says of it, round trips and blobs over loopback. Never: what
//! happens inside it (`rig.rs`).

use super::measure::{Effort, Measure, Report, Unit};
use super::{BenchError, Programs, Servers, proc_bytes, within};
use crate::client::{Client, Event};
use std::collections::HashMap;
use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::process::Command;
use std::time::{Duration, Instant};

/// Bytes of a message in the round trips.
const MESSAGE: usize = 64;
/// Messages on their way at once.
const IN_FLIGHT: usize = 64;
/// Round trips of one sample, serial and in flight.
const ROUNDS: usize = 1024;
/// Bytes of the blob: as many chunks as a large picture.
const BLOB: usize = 8 << 20;
/// How long an idle server is watched, per sample.
const WATCHED: Duration = Duration::from_secs(1);
/// How long a server may take until it is ready: a large model is read from a cold disk.
const READY_WITHIN: Duration = Duration::from_secs(600);

/// Where a child listens, and which process it is.
struct Child {
    url: String,
    id: u32,
    /// From the start of the process to the line that says where it listens.
    ready: Duration,
}

impl Child {
    /// Starts this very program as a server; it is ended with `leavings`.
    fn start(servers: &Servers) -> Result<Child, BenchError> {
        let Servers { model, engine, leavings } = servers;
        let folder = leavings.folder();
        let system = |what| move |error| BenchError::System { what, error };
        // A configuration of its own: the box's may ask for tokens.
        let config = folder.join("bench.toml");
        std::fs::write(&config, engine.section())
            .map_err(system("write into the folder for temporary files"))?;
        let program = std::env::current_exe().map_err(system("find this program's file"))?;
        let mut command = Command::new(program);
        command.arg("serve").arg("--config").arg(&config).arg("--model").arg(model);
        command.args(["--no-auth", "--listen", "127.0.0.1:0", "--state"]).arg(folder.join("child"));
        command.env_remove("NOTIFY_SOCKET");
        let started = Instant::now();
        let (id, stdout, stderr) = leavings.start_server(&mut command).map_err(system("start a server"))?;
        let (say, said) = std::sync::mpsc::channel();
        // Both are read to their ends, so that no pipe fills.
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if let Some(url) = line.strip_prefix("listening on ") {
                    let _ = say.send((Instant::now(), url.to_owned())); // given up already
                }
            }
        });
        let complaints =
            std::thread::spawn(move || BufReader::new(stderr).lines().map_while(Result::ok).last());
        match said.recv_timeout(READY_WITHIN) {
            Ok((at, url)) => Ok(Child { url, id, ready: at - started }),
            Err(_) => {
                leavings.end_server();
                let why = complaints.join().ok().flatten().unwrap_or_default();
                Err(BenchError::Server(format!("the server did not start: {why}")))
            }
        }
    }

    /// Bytes of anonymous memory.
    fn anonymous(&self) -> Option<u64> {
        proc_bytes(&format!("/proc/{}/status", self.id), "RssAnon:")
    }

    /// Nanoseconds of processor time so far, of each thread that lives. None where the system does not count them.
    fn processor(&self) -> Option<HashMap<OsString, u64>> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.id)).ok()?;
        let spent = |task: std::io::Result<std::fs::DirEntry>| {
            let task = task.ok()?; // one that ends meanwhile is passed over
            let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
            Some((task.file_name(), text.split_whitespace().next()?.parse().ok()?))
        };
        let threads: HashMap<_, _> = tasks.filter_map(spent).collect();
        (!threads.is_empty()).then_some(threads)
    }
}

/// Seconds that the threads have spent between two looks. One that has begun since counts whole, one that has ended not
/// at all; the process's own count has both, but in steps of 10 ms, and an idle second has less than one.
fn spent(before: &HashMap<OsString, u64>, after: &HashMap<OsString, u64>) -> f64 {
    let one = |(thread, now): (&OsString, &u64)| now.saturating_sub(before.get(thread).copied().unwrap_or(0));
    after.iter().map(one).sum::<u64>() as f64 / 1e9
}

/// Start to ready, memory and idleness of servers that nobody has asked for anything yet.
///
/// `packed_bytes` of their memory are weights.
pub(super) fn server(servers: &Servers, packed_bytes: u64, report: &mut Report) -> Result<(), BenchError> {
    let (mut ready, mut anonymous, mut idle) = (Vec::new(), Vec::new(), Vec::new());
    for run in 0..=Effort::USUAL.least {
        let child = Child::start(servers)?;
        if run > 0 {
            ready.push(child.ready.as_secs_f64() * 1e3);
            anonymous.extend(child.anonymous().map(|bytes| bytes as f64 / 1e6));
        }
        if run == Effort::USUAL.least {
            std::thread::sleep(WATCHED / 2); // for what still settles
            for _ in 0..Effort::USUAL.least {
                let (before, since) = (child.processor(), Instant::now());
                std::thread::sleep(WATCHED);
                let spent = before.zip(child.processor()).map(|(before, after)| spent(&before, &after));
                idle.extend(spent.map(|spent| 100.0 * spent / since.elapsed().as_secs_f64()));
            }
        }
        servers.leavings.end_server();
    }
    let beside: Vec<f64> = anonymous.iter().map(|mb| mb - packed_bytes as f64 / 1e6).collect();
    for (name, label, unit, samples) in [
        ("server.ready", "start to ready, page cache warm", Unit::MS, ready),
        ("server.anonymous", "anonymous memory when ready", Unit::MB, anonymous),
        ("server.anonymous_beside", "  beyond the packed weights", Unit::MB, beside),
        ("server.idle", "processor time while idle", Unit::PERCENT, idle),
    ] {
        match samples.is_empty() {
            true => report.notes.push(format!("{name} is left out: this system does not tell it in /proc.")),
            false => report.measures.push(Measure::of(name, label, unit, &samples)),
        }
    }
    Ok(())
}

/// Round trips through a program that echoes, and blobs there and back.
pub(super) fn socket(servers: &Servers, programs: &Programs) -> Result<Vec<Measure>, BenchError> {
    let child = Child::start(servers)?;
    let mut client = smol::block_on(within(Client::connect(&child.url)))?;
    let program = smol::block_on(within(client.upload_program(&programs.echo)))?;
    let endless = ["--messages", "forever"].map(str::to_owned).to_vec();
    let instance = smol::block_on(within(client.launch(&program, endless)))?;
    let mut measures = Vec::new();
    for (name, label, in_flight) in [
        ("socket.serial", format!("round trips of {MESSAGE} bytes, one at a time"), 1),
        ("socket.flight", format!("round trips of {MESSAGE} bytes, {IN_FLIGHT} in flight"), IN_FLIGHT),
    ] {
        let samples = Effort::USUAL.sample(|| smol::block_on(trips(&mut client, &instance, in_flight)))?;
        measures.push(Measure::of(name, label, Unit::PER_S, &samples));
    }
    smol::block_on(within(client.terminate(&instance)))?;

    let blobs = ["--blobs".to_owned(), (Effort::USUAL.most + 1).to_string()].to_vec();
    let instance = smol::block_on(within(client.launch(&program, blobs)))?;
    let blob: Vec<u8> = (0..BLOB).map(|at| (at % 251) as u8).collect();
    let samples = Effort::USUAL.sample(|| smol::block_on(there_and_back(&mut client, &instance, &blob)))?;
    let label = format!("a blob of {} MiB, there and back", BLOB >> 20);
    measures.push(Measure::of("socket.blob", label, Unit::MB_PER_S, &samples));
    smol::block_on(client.close());
    servers.leavings.end_server();
    Ok(measures)
}

/// Round trips per second.
async fn trips(client: &mut Client, instance: &str, in_flight: usize) -> Result<f64, BenchError> {
    let message = "m".repeat(MESSAGE);
    let started = Instant::now();
    for _ in 0..in_flight {
        within(client.signal(instance, &message)).await?;
    }
    for round in 0..ROUNDS {
        match within(client.next_event(instance)).await? {
            Event::Message(text) if text == message => {}
            other => return Err(BenchError::Server(format!("an echo came back as {other:?}"))),
        }
        if round + in_flight < ROUNDS {
            within(client.signal(instance, &message)).await?;
        }
    }
    Ok(ROUNDS as f64 / started.elapsed().as_secs_f64())
}

/// Megabytes per second, both ways counted.
async fn there_and_back(client: &mut Client, instance: &str, blob: &[u8]) -> Result<f64, BenchError> {
    let started = Instant::now();
    within(client.upload_blob(instance, blob)).await?;
    match within(client.next_event(instance)).await? {
        Event::Blob(back) if back == blob => {}
        _ => return Err(BenchError::Server("a blob came back as something else".into())),
    }
    Ok(2.0 * blob.len() as f64 / 1e6 / started.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The story: the sum over the living threads fell when one ended, and a server was idle at less than nothing.
    #[test]
    fn a_thread_that_ends_takes_nothing_off_the_others() {
        let look = |threads: &[(&str, u64)]| -> HashMap<OsString, u64> {
            threads.iter().map(|(thread, time)| (OsString::from(thread), *time)).collect()
        };
        let before = look(&[("1", 1_000_000_000), ("2", 9_000_000_000)]);
        let after = look(&[("1", 1_500_000_000), ("3", 250_000_000)]);
        assert_eq!(spent(&before, &after), 0.75);
    }
}
