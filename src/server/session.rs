//! One connection as a state machine: messages in, effects out.
//!
//! Owns: who the client is, which instances are its own, its unfinished uploads, how many frames could not be read and how
//! often it was told; and every answer that needs nothing but these. Never: I/O, clocks; the connection performs the
//! effects and reports back with [`Session::own`] and [`Session::ended`].

use super::seats::Seat;
use crate::auth::{Grant, Verifier};
use crate::identity::{InstanceId, Subject};
use crate::limits;
#[cfg(test)]
use crate::simulation::plant::{Bug, planted};
use crate::wire::upload::{Budget, Chunk, Progress, Upload, Uploads};
use crate::wire::{ClientMessage, ServerMessage, Undecodable};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};
use time::OffsetDateTime;

/// `successful` and `result` of a response.
pub type Answer = Result<String, String>;

/// What the connection is to do about a message. Hashes are still the client's text.
#[derive(Debug)]
pub enum Effect {
    Answer {
        corr_id: u32,
        answer: Answer,
    },
    /// Answer what no honest client sends twice, a wrong token or a frame that is no message, in so long; if it is
    /// answered at all.
    Deny(Duration, Option<ServerMessage>),
    /// Answer whether the program is here.
    Exists {
        corr_id: u32,
        program: String,
    },
    /// Answer with the state of the model.
    Status {
        corr_id: u32,
    },
    /// Keep the program, then answer with its hash or with what is wrong with it.
    Store {
        corr_id: u32,
        upload: Upload,
    },
    Launch {
        corr_id: u32,
        program: String,
        arguments: Vec<String>,
    },
    LaunchServer {
        corr_id: u32,
        program: String,
        arguments: Vec<String>,
        port: u16,
    },
    /// Answer with the server instances.
    Servers {
        corr_id: u32,
    },
    StopServer {
        corr_id: u32,
        server: String,
    },
    Signal {
        instance: InstanceId,
        message: String,
    },
    GiveBlob {
        corr_id: u32,
        instance: InstanceId,
        upload: Upload,
    },
    Terminate {
        instance: InstanceId,
    },
}

pub struct Session<'v> {
    verifier: Option<&'v Verifier>,
    grant: Option<Arc<Grant>>,
    seat: Seat,
    owned: BTreeSet<InstanceId>,
    programs: Uploads,
    blobs: Uploads,
    /// Frames that could not be read.
    unread: u64,
    /// What they cost and no time since has paid for, ...
    strikes: Duration,
    /// ... and when the last one came.
    noise: Option<Instant>,
    notices: usize,
}

impl<'v> Session<'v> {
    /// Without a verifier everyone is let in.
    pub fn new(verifier: Option<&'v Verifier>, budget: Arc<Budget>, seat: Seat) -> Session<'v> {
        Session {
            verifier,
            grant: verifier.is_none().then(|| Arc::new(Grant::everyone())),
            seat,
            owned: BTreeSet::new(),
            programs: Uploads::new(budget.clone()),
            blobs: Uploads::new(budget),
            unread: 0,
            strikes: Duration::ZERO,
            noise: None,
            notices: 0,
        }
    }

    /// The rights of the client; none before it has authenticated.
    pub fn grant(&self) -> Option<&Arc<Grant>> {
        self.grant.as_ref()
    }

    /// The instances that end with the connection.
    pub fn owned(&self) -> &BTreeSet<InstanceId> {
        &self.owned
    }

    /// An instance was launched for this client.
    pub fn own(&mut self, instance: InstanceId) {
        self.owned.insert(instance);
    }

    /// The last event of an instance is on its way.
    pub fn ended(&mut self, instance: InstanceId) {
        #[cfg(test)]
        if planted(Bug::StillOwned) {
            return;
        }
        self.owned.remove(&instance);
    }

    pub fn step(&mut self, message: ClientMessage, now: OffsetDateTime) -> Option<Effect> {
        use ClientMessage as M;
        let answer = |corr_id, answer| Some(Effect::Answer { corr_id, answer });
        let stranger = self.grant.is_none().then(|| "Not authenticated".to_owned());
        let who = self.grant.as_ref().map_or_else(Subject::everyone, |grant| grant.subject.clone());
        match message {
            M::Authenticate { corr_id, token } => match self.authenticate(&token, now) {
                Err(result) => {
                    let denial = ServerMessage::Response { corr_id, successful: false, result };
                    Some(Effect::Deny(limits::WRONG_TOKEN_PAUSE, Some(denial)))
                }
                known => answer(corr_id, known),
            },
            M::UploadProgram { corr_id, program_hash, chunk_index, total_chunks, chunk_data } => {
                let chunk = Chunk {
                    corr_id,
                    hash: program_hash,
                    index: chunk_index,
                    total: total_chunks,
                    data: chunk_data,
                };
                match self.programs.offer(chunk, &who, stranger) {
                    Progress::Pending => None,
                    Progress::Whole(upload) => Some(Effect::Store { corr_id, upload }),
                    Progress::Failed(error) => answer(corr_id, Err(error)),
                }
            }
            M::UploadBlob { corr_id, instance_id, blob_hash, chunk_index, total_chunks, chunk_data } => {
                let chunk = Chunk {
                    corr_id,
                    hash: blob_hash,
                    index: chunk_index,
                    total: total_chunks,
                    data: chunk_data,
                };
                let target = stranger.map_or_else(|| self.own_instance(&instance_id), Err);
                match self.blobs.offer(chunk, &who, target.clone().err()) {
                    Progress::Pending => None,
                    Progress::Whole(upload) => match target {
                        Ok(instance) => Some(Effect::GiveBlob { corr_id, instance, upload }),
                        Err(error) => answer(corr_id, Err(error)),
                    },
                    Progress::Failed(error) => answer(corr_id, Err(error)),
                }
            }
            M::SignalInstance { instance_id, message } => {
                let instance = self.own_instance(&instance_id).ok()?;
                Some(Effect::Signal { instance, message })
            }
            M::TerminateInstance { instance_id } => {
                let instance = self.own_instance(&instance_id).ok()?;
                Some(Effect::Terminate { instance })
            }
            M::Query { corr_id, .. }
            | M::LaunchInstance { corr_id, .. }
            | M::LaunchServerInstance { corr_id, .. }
            | M::StopServerInstance { corr_id, .. }
            | M::AttachRemoteService { corr_id, .. }
                if stranger.is_some() =>
            {
                answer(corr_id, Err(stranger.unwrap_or_default()))
            }
            M::Query { corr_id, subject, record } => match subject.as_str() {
                "program_exists" => Some(Effect::Exists { corr_id, program: record }),
                "model_status" => Some(Effect::Status { corr_id }),
                "server_instances" => Some(Effect::Servers { corr_id }),
                other => answer(corr_id, Err(format!("Unknown query subject: {other}"))),
            },
            M::LaunchInstance { corr_id, program_hash: program, arguments } => {
                Some(Effect::Launch { corr_id, program, arguments })
            }
            M::LaunchServerInstance { corr_id, port, program_hash: program, arguments } => match port {
                limits::SERVER_PORT_LEAST..=65_535 => {
                    Some(Effect::LaunchServer { corr_id, program, arguments, port: port as u16 })
                }
                _ => {
                    let least = limits::SERVER_PORT_LEAST;
                    answer(corr_id, Err(format!("Port {port} is not between {least} and 65535")))
                }
            },
            M::StopServerInstance { corr_id, server_id: server } => {
                Some(Effect::StopServer { corr_id, server })
            }
            M::AttachRemoteService { corr_id, service_type, .. } => match service_type.as_str() {
                "model" => answer(corr_id, Err("Failed to attach to model backend".to_owned())),
                other => answer(corr_id, Err(format!("Unknown service type: {other}"))),
            },
        }
    }

    /// Whether a message waits for nothing that need not be: the end of an instance of its own; and who the client is, which
    /// strangers have no time to say.
    pub fn is_urgent(&self, message: &ClientMessage) -> bool {
        match message {
            ClientMessage::TerminateInstance { instance_id } => self.own_instance(instance_id).is_ok(),
            ClientMessage::Authenticate { .. } => self.grant.is_none(),
            _ => false,
        }
    }

    /// A frame that is no message: answered where it can be, else told about, a bounded number of times. None: there were
    /// so many that the conversation had better end.
    pub fn unreadable(&mut self, what: Undecodable, now: Instant) -> Option<Effect> {
        self.unread += 1;
        // Each costs a second, and each second pays for one.
        let since =
            self.noise.replace(now).map_or(Duration::ZERO, |last| now.saturating_duration_since(last));
        self.strikes = self.strikes.saturating_sub(since) + Duration::from_secs(1);
        // One client that sends nothing else must not fill the log.
        if self.unread.is_power_of_two() {
            tracing::warn!(
                frames = self.unread,
                "a client sends frames that cannot be read: {}",
                what.reason
            );
        }
        if self.strikes.as_secs() > limits::UNREADABLE_FRAMES {
            return None;
        }
        let told = match what.corr_id {
            Some(corr_id) => {
                Some(ServerMessage::Response { corr_id, successful: false, result: what.reason })
            }
            None if self.notices < limits::SERVER_EVENTS_PER_CONNECTION => {
                self.notices += 1;
                Some(ServerMessage::ServerEvent { message: what.reason })
            }
            None => None,
        };
        // Nothing of the client is read meanwhile, its leaving neither, and instances end as soon as it leaves.
        let pause = if self.owned.is_empty() { limits::UNREADABLE_PAUSE } else { Duration::ZERO };
        Some(Effect::Deny(pause, told))
    }

    fn authenticate(&mut self, token: &str, now: OffsetDateTime) -> Answer {
        let Some(verifier) = self.verifier.filter(|_| self.grant.is_none()) else {
            return Ok("Already authenticated".to_owned());
        };
        match verifier.grant(token, now) {
            Ok(grant) => {
                self.seat.keep_for(&grant.subject).map_err(|full| format!("Too many connections: {full}"))?;
                let subject = grant.subject.as_str().to_owned();
                self.grant = Some(Arc::new(grant));
                Ok(subject)
            }
            Err(denial) => {
                tracing::info!("a token was refused: {denial}");
                Err("Invalid token".to_owned())
            }
        }
    }

    fn own_instance(&self, text: &str) -> Result<InstanceId, String> {
        let instance: InstanceId = text.parse().map_err(|_| format!("Invalid instance_id: {text}"))?;
        match self.owned.contains(&instance) {
            true => Ok(instance),
            false => Err(format!("Instance not owned by client: {text}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::seats::Seats;
    use super::*;
    use crate::auth::{Claims, Role, SecretKey, mint};
    use crate::clock;
    use std::collections::HashSet;

    fn now() -> OffsetDateTime {
        OffsetDateTime::now_utc()
    }

    fn seat(guarded: bool) -> Seat {
        Seats::new(guarded).enter().unwrap().0
    }

    fn open() -> Session<'static> {
        Session::new(None, Arc::default(), seat(false))
    }

    /// The answer's result, "true: …" or "false: …"; else the effect's name; "-" for none.
    fn brief(effect: Option<Effect>) -> String {
        match effect {
            None => "-".into(),
            Some(Effect::Answer { answer: Ok(text), .. }) => format!("true: {text}"),
            Some(
                Effect::Answer { answer: Err(text), .. }
                | Effect::Deny(_, Some(ServerMessage::Response { result: text, .. })),
            ) => format!("false: {text}"),
            Some(other) => {
                let shown = format!("{other:?}");
                shown.split([' ', '(']).next().unwrap_or_default().to_owned()
            }
        }
    }

    fn requests(instance: &str) -> Vec<ClientMessage> {
        let (program_hash, instance_id) = ("h".to_owned(), instance.to_owned());
        let hash = blake3::hash(b"x").to_hex().to_string();
        vec![
            ClientMessage::Query { corr_id: 1, subject: "program_exists".into(), record: "h".into() },
            ClientMessage::Query { corr_id: 1, subject: "model_status".into(), record: String::new() },
            ClientMessage::Query { corr_id: 1, subject: "weather".into(), record: String::new() },
            ClientMessage::UploadProgram {
                corr_id: 1,
                program_hash: hash.clone(),
                chunk_index: 0,
                total_chunks: 1,
                chunk_data: b"x".to_vec(),
            },
            ClientMessage::LaunchInstance {
                corr_id: 1,
                program_hash: program_hash.clone(),
                arguments: vec![],
            },
            ClientMessage::LaunchServerInstance {
                corr_id: 1,
                port: 8080,
                program_hash: program_hash.clone(),
                arguments: vec![],
            },
            ClientMessage::LaunchServerInstance {
                corr_id: 1,
                port: 1023,
                program_hash: program_hash.clone(),
                arguments: vec![],
            },
            ClientMessage::LaunchServerInstance { corr_id: 1, port: 65_536, program_hash, arguments: vec![] },
            ClientMessage::UploadBlob {
                corr_id: 1,
                instance_id: instance_id.clone(),
                blob_hash: hash,
                chunk_index: 0,
                total_chunks: 1,
                chunk_data: b"x".to_vec(),
            },
            ClientMessage::SignalInstance { instance_id: instance_id.clone(), message: "m".into() },
            ClientMessage::TerminateInstance { instance_id },
            attach("model"),
            attach("toaster"),
        ]
    }

    fn attach(service_type: &str) -> ClientMessage {
        let (endpoint, service_name) = (String::new(), String::new());
        ClientMessage::AttachRemoteService {
            corr_id: 1,
            endpoint,
            service_type: service_type.into(),
            service_name,
        }
    }

    fn all(session: &mut Session, instance: &str) -> Vec<String> {
        requests(instance).into_iter().map(|request| brief(session.step(request, now()))).collect()
    }

    #[test]
    fn every_request_has_its_effect() {
        let mut session = open();
        let mine = InstanceId::random();
        session.own(mine);
        let before = [
            "Exists",
            "Status",
            "false: Unknown query subject: weather",
            "Store",
            "Launch",
            "LaunchServer",
            "false: Port 1023 is not between 1024 and 65535",
            "false: Port 65536 is not between 1024 and 65535",
        ];
        let after = ["false: Failed to attach to model backend", "false: Unknown service type: toaster"];
        let expect = |instance: [&str; 3]| {
            let whole = [&before[..], &instance, &after].concat();
            whole.into_iter().map(str::to_owned).collect::<Vec<String>>()
        };
        assert_eq!(all(&mut session, &mine.to_string()), expect(["GiveBlob", "Signal", "Terminate"]));
        let other = InstanceId::random().to_string();
        let not_owned = format!("false: Instance not owned by client: {other}");
        assert_eq!(all(&mut session, &other), expect([&not_owned, "-", "-"]));
        assert_eq!(all(&mut session, "nonsense"), expect(["false: Invalid instance_id: nonsense", "-", "-"]));
        session.ended(mine);
        let not_owned = format!("false: Instance not owned by client: {mine}");
        assert_eq!(all(&mut session, &mine.to_string()), expect([&not_owned, "-", "-"]));
    }

    #[test]
    fn a_stranger_gets_nothing_until_the_token_is_good() {
        let key = SecretKey::generate().unwrap();
        let verifier = Verifier::new(vec![key.public()], HashSet::new());
        let mut session = Session::new(Some(&verifier), Arc::default(), seat(true));
        for effect in all(&mut session, &InstanceId::random().to_string()) {
            assert!(["false: Not authenticated", "-"].contains(&effect.as_str()), "{effect}");
        }
        let authenticate = |session: &mut Session, token: &str| {
            brief(session.step(ClientMessage::Authenticate { corr_id: 1, token: token.to_owned() }, now()))
        };
        assert_eq!(authenticate(&mut session, "nonsense"), "false: Invalid token");
        let token = mint(&key, &Claims::new("app", Role::User, Duration::from_secs(60))).unwrap();
        assert_eq!(authenticate(&mut session, token.expose()), "true: app");
        assert_eq!(authenticate(&mut session, "nonsense"), "true: Already authenticated");
        assert_eq!(session.grant().unwrap().subject.as_str(), "app");
        assert_eq!(all(&mut session, "nonsense")[0], "Exists");
        assert_eq!(authenticate(&mut open(), "nonsense"), "true: Already authenticated");
    }

    /// `Not authenticated` follows the rule of uploads: one answer, with the last chunk, and no memory held.
    #[test]
    fn a_strangers_upload_is_answered_once() {
        let verifier = Verifier::new(vec![], HashSet::new());
        let budget = Arc::new(Budget::default());
        let mut session = Session::new(Some(&verifier), budget.clone(), seat(true));
        let mut answers = Vec::new();
        for chunk_index in 0..4 {
            answers.push(brief(session.step(
                ClientMessage::UploadProgram {
                    corr_id: 9,
                    program_hash: String::new(),
                    chunk_index,
                    total_chunks: 4,
                    chunk_data: vec![0; 1000],
                },
                now(),
            )));
            assert_eq!(budget.held(), 0);
        }
        assert_eq!(answers, ["-", "-", "-", "false: Not authenticated"]);
    }

    #[test]
    fn a_program_and_a_blob_may_share_a_corr_id() {
        let mut session = open();
        let mine = InstanceId::random();
        session.own(mine);
        let hash = blake3::hash(b"xx").to_hex().to_string();
        let mut steps = Vec::new();
        for chunk_index in 0..2 {
            let chunk_data = b"x".to_vec();
            let program = ClientMessage::UploadProgram {
                corr_id: 1,
                program_hash: hash.clone(),
                chunk_index,
                total_chunks: 2,
                chunk_data: chunk_data.clone(),
            };
            let blob = ClientMessage::UploadBlob {
                corr_id: 1,
                instance_id: mine.to_string(),
                blob_hash: hash.clone(),
                chunk_index,
                total_chunks: 2,
                chunk_data,
            };
            steps.extend([program, blob].map(|message| brief(session.step(message, now()))));
        }
        assert_eq!(steps, ["-", "-", "Store", "GiveBlob"]);
    }

    #[test]
    fn unreadable_frames_are_told_about_a_bounded_number_of_times_and_borne_so_long() {
        let mut session = open();
        let what = |corr_id| Undecodable { corr_id, reason: "r".into() };
        let start = clock::now();
        let second = |number| start + Duration::from_secs(number);
        let told = |effect| match effect {
            Some(Effect::Deny(_, told)) => told.is_some(),
            other => panic!("{other:?}"),
        };
        let events = (0..1000).filter(|at| told(session.unreadable(what(None), second(*at)))).count();
        assert_eq!(events, limits::SERVER_EVENTS_PER_CONNECTION, "one a second for as long as it likes");
        let answered = brief(session.unreadable(what(Some(4)), second(1000)));
        assert_eq!(answered, "false: r", "an answer is never held back");
        let borne = (0..).take_while(|_| session.unreadable(what(None), second(1001)).is_some()).count();
        assert_eq!(borne as u64, limits::UNREADABLE_FRAMES);

        let pause = |session: &mut Session| match session.unreadable(what(None), second(2000)) {
            Some(Effect::Deny(pause, _)) => pause,
            other => panic!("{other:?}"),
        };
        assert_eq!(pause(&mut session), limits::UNREADABLE_PAUSE);
        session.own(InstanceId::random());
        assert_eq!(pause(&mut session), Duration::ZERO, "an instance ends as soon as its client leaves");
    }
}
