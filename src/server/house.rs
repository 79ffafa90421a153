//! What stands behind the door: programs, guests, the model's state.
//!
//! Owns: the seam ([`House`]) through which a connection asks for anything, and the real house ([`Served`]). Never: frames, or
//! who may come in; whoever asks has been let in and may do what it asks for. Tests put a scripted house behind the door.

use super::http::Hall;
use crate::auth::Grant;
use crate::clock;
use crate::engine;
use crate::engine::operation::{Command, Reply, Status};
use crate::identity::{InstanceId, ProgramHash, Subject};
use crate::limits;
use crate::pacer::Pacer;
use crate::program::{Code, Kinds, Program, Rejected, Store, Translation};
use crate::runtime::serve::{Serve, Server};
use crate::runtime::{Ending, Launch, Runtime, Traffic, events};
use crate::wire::ServerInstance;
use crate::wire::upload::Upload;
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use time::format_description::well_known::Rfc3339;

/// What a connection needs of the box. Errors are sentences for the client.
pub trait House: Send + Sync + 'static {
    fn contains(&self, program: &ProgramHash) -> bool;
    /// Checks and keeps a program; it is durable when this answers. The upload counts against the server's budget for
    /// as long as anything is done with it, whoever waits for that.
    fn put(&self, program: Upload) -> impl Future<Output = Result<ProgramHash, String>> + Send;
    /// Registers an instance of a program that [`House::contains`], for whom the grant is.
    fn prepare(
        &self,
        program: &ProgramHash,
        arguments: Vec<String>,
        grant: &Grant,
        events: events::Sender,
    ) -> impl Future<Output = Result<Ready, String>> + Send;
    /// Launches a server instance of a program that [`House::contains`]; its port is bound when this answers. A house
    /// without ports refuses.
    fn serve(
        &self,
        _program: &ProgramHash,
        _arguments: Vec<String>,
        _grant: &Grant,
        _port: u16,
    ) -> impl Future<Output = Result<(), String>> + Send {
        async { Err("There are no server instances here".to_owned()) }
    }
    /// The server instances that the grant shows: its subject's, to an admin all.
    fn servers(&self, _grant: &Grant) -> Vec<ServerInstance> {
        vec![]
    }
    /// Ends one of those; its port is free when this answers.
    fn stop(&self, server: &str, _grant: &Grant) -> impl Future<Output = Result<(), String>> + Send {
        let unknown = no_such_server(server);
        async { Err(unknown) }
    }
    /// For what the io thread does for this subject.
    /// For a connection of the subject; each has its own.
    fn pacer(&self, subject: &Subject) -> Pacer;
    fn signal(&self, instance: InstanceId, message: String);
    fn give_blob(&self, instance: InstanceId, blob: Arc<[u8]>);
    fn end(&self, instance: InstanceId, ending: Ending);
    /// The answer to `model_status`: a model that does not answer in time is told as `{model}.error`.
    fn status(&self) -> impl Future<Output = BTreeMap<String, String>> + Send;
}

/// An instance that exists and does not run yet. Dropping it undoes the launch.
pub struct Ready {
    pub instance: InstanceId,
    pub start: Box<dyn FnOnce() + Send>,
}

/// The real one.
pub struct Served {
    pub store: Store,
    pub runtime: Runtime,
    pub engine: engine::Handle,
    /// Where server instances are launched.
    pub hall: Hall,
    /// The name clients and guests know the model by.
    pub model: String,
}

fn no_such_server(id: &str) -> String {
    format!("There is no server instance {id} of yours")
}

/// As its owner sees it.
fn shown(server: &Server) -> ServerInstance {
    let Serve { program, subject, port, expires, .. } = &server.serve;
    ServerInstance {
        id: server.id.to_string(),
        port: *port,
        program: program.hash.to_string(),
        subject: subject.as_str().to_owned(),
        answering: server.answering.load(Ordering::Relaxed),
        requests: server.requests.load(Ordering::Relaxed),
        expires: expires.and_then(|at| at.format(&Rfc3339).ok()),
    }
}

impl Served {
    /// The program, and what it is for. Of one that is not in memory this takes its translation.
    async fn program(&self, subject: &Subject, hash: &ProgramHash) -> Result<(Arc<Program>, Kinds), String> {
        let translate = |translation| self.translate(subject, translation);
        let found =
            self.store.get(subject, hash, translate).await.map_err(|rejected| rejected.to_string())?;
        let program = found.ok_or_else(|| format!("No such program with hash={hash}"))?;
        let kinds = program.kinds();
        Ok((program, kinds))
    }

    /// When it is the subject's turn.
    async fn translate(&self, subject: &Subject, translation: Translation) -> Result<Arc<Program>, Rejected> {
        let turn = self.runtime.translation(subject).await;
        Code::translate(subject, translation.within(move |work| turn.of(work))).await
    }
}

impl House for Served {
    fn contains(&self, program: &ProgramHash) -> bool {
        self.store.contains(program)
    }

    async fn put(&self, program: Upload) -> Result<ProgramHash, String> {
        let subject = program.who().clone();
        let translate = |translation| self.translate(&subject, translation);
        self.store.put(&subject, program, translate).await.map_err(|rejected| rejected.to_string())
    }

    async fn prepare(
        &self,
        program: &ProgramHash,
        arguments: Vec<String>,
        grant: &Grant,
        events: events::Sender,
    ) -> Result<Ready, String> {
        let (program, kinds) = self.program(&grant.subject, program).await?;
        if !kinds.runs {
            return Err(format!(
                "The program {} exports wasi:http/incoming-handler and no inferlet:core/run: it answers HTTP; launch it \
                 with launch_server_instance",
                program.hash
            ));
        }
        let quotas = self.runtime.quotas().lowered(&grant.quotas);
        let (subject, http) = (grant.subject.clone(), grant.http.clone());
        let launch = Launch { program, arguments, subject, quotas, http, events };
        let prepared = self.runtime.prepare(launch).map_err(|refusal| refusal.to_string())?;
        Ok(Ready { instance: prepared.id(), start: Box::new(move || prepared.start()) })
    }

    async fn serve(
        &self,
        program: &ProgramHash,
        arguments: Vec<String>,
        grant: &Grant,
        port: u16,
    ) -> Result<(), String> {
        let (program, kinds) = self.program(&grant.subject, program).await?;
        if !kinds.answers {
            return Err(format!(
                "The program {} does not export wasi:http/incoming-handler: it is no server; launch it with \
                 launch_instance",
                program.hash
            ));
        }
        if self.runtime.outgoing().calls_own_port(port) {
            return Err(format!(
                "Port {port} is somebody's whom programs may call, by [http] allow: what they send there is not for a \
                 program; choose another"
            ));
        }
        let quotas = self.runtime.quotas().lowered(&grant.quotas);
        let (subject, http, expires) = (grant.subject.clone(), grant.http.clone(), grant.expires);
        self.hall.open(Serve { program, arguments, subject, quotas, http, port, expires }).await?;
        Ok(())
    }

    fn servers(&self, grant: &Grant) -> Vec<ServerInstance> {
        self.runtime.servers().of(grant.scope()).iter().map(|server| shown(server)).collect()
    }

    async fn stop(&self, server: &str, grant: &Grant) -> Result<(), String> {
        let found = self.runtime.servers().of(grant.scope()).into_iter().find(|s| s.id.to_string() == server);
        let found = found.ok_or_else(|| no_such_server(server))?;
        found.end(Ending::Aborted);
        found.gone().await;
        Ok(())
    }

    fn pacer(&self, subject: &Subject) -> Pacer {
        self.runtime.pacer(subject, Traffic::Own)
    }

    fn signal(&self, instance: InstanceId, message: String) {
        self.runtime.signal(instance, message);
    }

    fn give_blob(&self, instance: InstanceId, blob: Arc<[u8]>) {
        self.runtime.give_blob(instance, blob);
    }

    fn end(&self, instance: InstanceId, ending: Ending) {
        self.runtime.end(instance, ending);
    }

    async fn status(&self) -> BTreeMap<String, String> {
        status(&self.engine, &self.runtime, &self.model).await
    }
}

pub(crate) async fn status(
    engine: &engine::Handle,
    runtime: &Runtime,
    model: &str,
) -> BTreeMap<String, String> {
    let asked = async {
        let reply = Reply::<Status>::default();
        engine.send(Command::Status { reply: reply.clone() }).await.map_err(|gone| gone.to_string())?;
        Ok(reply.wait().await.clone())
    };
    let late = async {
        clock::after(limits::STATUS_WAIT).await;
        Err(format!("no answer within {} s", limits::STATUS_WAIT.as_secs()))
    };
    match smol::future::or(asked, late).await {
        Ok(status) => told(model, &status, runtime.directory().count()),
        Err(error) => BTreeMap::from([(format!("{model}.error"), error)]),
    }
}

/// The status as named strings. Resource 0 is KV pages, 1 embedding slots, 2 adapters (none here).
fn told(model: &str, status: &Status, instances: usize) -> BTreeMap<String, String> {
    let mut told = BTreeMap::new();
    let mut tell = |key: String, value: String| told.insert(format!("{model}.{key}"), value);
    tell("model.name".into(), model.to_owned());
    tell("instances.active_count".into(), instances.to_string());
    for (number, usage) in [&status.pages, &status.embeds, &Default::default()].into_iter().enumerate() {
        for (key, value) in [
            ("capacity", usage.capacity),
            ("available", usage.capacity.saturating_sub(usage.used)),
            ("used", usage.used),
            ("exported_count", usage.exported),
        ] {
            tell(format!("resource.{number}.{key}"), value.to_string());
        }
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::operation::Usage;

    #[test]
    fn status_is_told_as_named_strings() {
        let pages = Usage { capacity: 100, used: 30, exported: 2 };
        let told = told("m", &Status { pages, ..Status::default() }, 4);
        let get = |key: &str| told[&format!("m.{key}")].as_str();
        assert_eq!((get("model.name"), get("instances.active_count")), ("m", "4"));
        assert_eq!(
            (get("resource.0.capacity"), get("resource.0.available"), get("resource.0.used")),
            ("100", "70", "30")
        );
        assert_eq!((get("resource.0.exported_count"), get("resource.2.capacity")), ("2", "0"));
        assert_eq!(told.len(), 14);
    }
}
