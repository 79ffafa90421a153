//! What the command line does with a server: run a program, start, list and stop those that answer HTTP.
//!
//! Owns: the program's file, what is printed, the exit status. Never: the protocol.

use super::{Client, ClientError, Event};
use crate::auth::Token;
use crate::limits;
use crate::output;
use crate::wire::ServerInstance;
use smol::future::or;
use smol::stream::StreamExt;
use std::io::{IsTerminal, Read};
use std::path::Path;
use std::time::Duration;

/// How long a program that was told to terminate may take to say so.
const TERMINATE_WAIT: Duration = Duration::from_secs(5);

/// Runs a program file on a server, its messages to standard output as they come, and gives the exit status: 0 when it
/// completed, 1 when it ended otherwise (the reason is on standard error), 130 when interrupted twice.
pub fn run_program(
    server: &str,
    token: Option<Token>,
    program: &Path,
    arguments: Vec<String>,
) -> Result<u8, ClientError> {
    let component = read_program(program)?;
    smol::block_on(async {
        let mut client = Client::let_in(server, token).await?;
        let hash = client.bring(&component).await?;
        let instance = client.launch(&hash, arguments).await?;
        let status = follow(&mut client, &instance).await?;
        client.close().await;
        Ok(status)
    })
}

/// Launches a program file as a server instance, and answers where it is.
pub fn start_server(
    server: &str,
    token: Option<Token>,
    program: &Path,
    port: u16,
    arguments: Vec<String>,
) -> Result<String, ClientError> {
    let component = read_program(program)?;
    smol::block_on(async {
        let mut client = Client::let_in(server, token).await?;
        let hash = client.bring(&component).await?;
        client.launch_server(&hash, port, arguments).await?;
        client.close().await;
        Ok(format!("serving on http://127.0.0.1:{port}\n"))
    })
}

/// The server instances as a table.
pub fn list_servers(server: &str, token: Option<Token>) -> Result<String, ClientError> {
    smol::block_on(async {
        let mut client = Client::let_in(server, token).await?;
        let servers = client.server_instances().await?;
        client.close().await;
        let mut table = format!(
            "{:<36}  {:>5}  {:<12}  {:>9}  {:>8}  SUBJECT\n",
            "ID", "PORT", "PROGRAM", "ANSWERING", "REQUESTS"
        );
        for ServerInstance { id, port, program, answering, requests, subject, .. } in servers {
            let program: String = program.chars().take(12).collect();
            table += &printable(&format!(
                "{id:<36}  {port:>5}  {program:<12}  {answering:>9}  {requests:>8}  {subject}\n"
            ));
        }
        Ok(table)
    })
}

/// Ends a server instance.
pub fn stop_server(server: &str, token: Option<Token>, id: &str) -> Result<(), ClientError> {
    smol::block_on(async {
        let mut client = Client::let_in(server, token).await?;
        client.stop_server(id).await?;
        client.close().await;
        Ok(())
    })
}

fn read_program(path: &Path) -> Result<Vec<u8>, ClientError> {
    read_bounded(path).map_err(|why| ClientError::Program { path: path.display().to_string(), why })
}

/// No server takes a larger one, and whatever else was named may be of any size.
fn read_bounded(path: &Path) -> Result<Vec<u8>, String> {
    let file = std::fs::File::open(path).map_err(|e| e.to_string())?;
    let mut bytes = Vec::new();
    let most = limits::PROGRAM_BYTES as u64;
    file.take(most + 1).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    match bytes.len() as u64 > most {
        true => Err(format!("it has more than the {} MiB of a program", most >> 20)),
        false => Ok(bytes),
    }
}

enum Step {
    Event(Result<Event, ClientError>),
    Interrupted,
    Late,
}

/// Prints what the instance sends until it ends.
async fn follow(client: &mut Client, instance: &str) -> Result<u8, ClientError> {
    use async_signal::{Signal, Signals};
    // Where signals cannot be had, Ctrl-C ends this process, and the server ends the program.
    let mut interrupts = Signals::new([Signal::Int, Signal::Term]).ok();
    let mut printer = Printer { said: String::new(), failed: false };
    let mut terminating = None;
    loop {
        let event = async { Step::Event(client.next_event(instance).await) };
        let interrupted = async {
            if let Some(signals) = &mut interrupts
                && signals.next().await.is_some()
            {
                return Step::Interrupted;
            }
            std::future::pending().await
        };
        let late = async {
            match terminating {
                Some(since) => smol::Timer::at(since + TERMINATE_WAIT).await,
                None => std::future::pending().await,
            };
            Step::Late
        };
        match or(event, or(interrupted, late)).await {
            Step::Event(Err(lost)) => {
                printer.finish("");
                return Err(lost);
            }
            Step::Event(Ok(event)) => match event {
                Event::Message(text) => printer.print(&text),
                Event::Blob(blob) => {
                    output::complain(format_args!("the program sent a blob of {} bytes.", blob.len()));
                }
                Event::Ended { code: 1, text } => {
                    printer.finish(&text);
                    return Ok(printer.failed.into());
                }
                Event::Ended { text, .. } => {
                    printer.finish("");
                    output::complain(printable(&text));
                    return Ok(1);
                }
            },
            Step::Interrupted if terminating.is_none() => {
                terminating = Some(std::time::Instant::now());
                client.terminate(instance).await?;
            }
            Step::Interrupted => {
                printer.finish("");
                return Ok(130);
            }
            Step::Late => {
                printer.finish("");
                let most = TERMINATE_WAIT.as_secs();
                output::complain(format_args!("the program did not terminate in {most} s."));
                return Ok(1);
            }
        }
    }
}

/// Standard output, flushed after each message.
struct Printer {
    /// The messages so far, up to the length of one.
    said: String,
    /// Some was not written, which is told once: the program goes on, but not all that it was run for is done.
    failed: bool,
}

impl Printer {
    fn print(&mut self, text: &str) {
        // A terminal obeys control characters; a program's text must not move its cursor or change its title.
        let written = match std::io::stdout().is_terminal() {
            true => output::write(printable(text).as_bytes()),
            false => output::write(text.as_bytes()),
        };
        if let Err(why) = written
            && !std::mem::replace(&mut self.failed, true)
        {
            output::complain(why);
        }
        if self.said.len() + text.len() > limits::MESSAGE_BYTES {
            self.said.clear();
        }
        self.said.push_str(text);
    }

    /// Ends the line, and gives the return value one of its own unless it repeats what was said (programs that stream
    /// an answer often return it as well).
    fn finish(&mut self, value: &str) {
        let repeats = self.said == value;
        if !self.said.is_empty() && !self.said.ends_with('\n') {
            self.print("\n");
        }
        if !repeats && !value.is_empty() {
            self.print(value);
            self.print("\n");
        }
    }
}

fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c }).collect()
}
