//! The upgrade in place: this process becomes another program, usually a newer release of itself, and its idle containers go over warm.
//!
//! The next program is asked first, in a process of its own, whether it would take over: it reads its settings, compares what it finds with what it would
//! inherit, and answers. Only then are calls kept out; when those inside have ended, the containers, the listening socket and what holds the
//! sandboxes go over by `execve` ([`stoker_sandbox::handover`]). Whatever is in the way before that leaves the runner serving as before;
//! whatever goes wrong after it is the end of a runner, which takes its functions along, as any other.

use std::fmt;
use std::io::{self, Read as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use stoker_sandbox::handover::{FdNumber, HandedDriver, InheritedFds, PROTOCOL, PassedFds};

use crate::container::handover::HandedContainer;
use crate::pool::handover::{HandedMember, Leaving};
use crate::settings::{PROGRAM, Plan};

/// The form of what is handed over: raised with every change that another release could not read.
const FORM: u32 = 1;

/// The variable that asks a program whether it would take over; its value says what.
const QUESTION: &str = "STOKER_HANDOVER_QUESTION";
/// What it writes to STDOUT if it would.
const YES: &str = "stoker-runner would take over";
/// The exit code of one that would not.
const NO: u8 = 3;
/// How long it may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// The most of its reasons that are told.
const REASONS: u64 = 4096;

/// What must be the same before and after.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    form: u32,
    /// What spawner and inits understand.
    protocol: u32,
    name: String,
    state: PathBuf,
    listen: SocketAddr,
    driver: String,
}

impl Terms {
    pub fn new(name: &str, state: PathBuf, listen: SocketAddr, driver: &HandedDriver) -> Self {
        let (name, driver) = (name.to_owned(), driver.name().to_owned());
        Self { form: FORM, protocol: PROTOCOL, name, state, listen, driver }
    }

    /// What speaks against taking over with these settings.
    fn against(&self, plan: &Plan) -> Option<String> {
        let config = &plan.runner;
        let differs = |what: &str, is: &dyn fmt::Display, was: &dyn fmt::Display| {
            Some(format!("{what} is {is} now and was {was}: that takes a restart"))
        };
        let driver = config.sandbox.to_string();
        if self.form != FORM {
            differs("the form of what is handed over", &FORM, &self.form)
        } else if self.protocol != PROTOCOL {
            differs("the protocol of sandboxes", &PROTOCOL, &self.protocol)
        } else if config.name.as_str() != self.name {
            differs("the name", &config.name, &self.name)
        } else if config.state_dir != self.state {
            differs("the state directory", &config.state_dir.display(), &self.state.display())
        } else if config.listen != self.listen {
            differs("the address", &config.listen, &self.listen)
        } else if driver != "auto" && driver != self.driver {
            differs("the sandbox", &driver, &self.driver)
        } else {
            None
        }
    }
}

/// What goes over.
#[derive(Serialize, Deserialize)]
struct HandoverState {
    terms: Terms,
    listener: FdNumber,
    /// Where the admin port was.
    admin: SocketAddr,
    driver: HandedDriver,
    /// An operator wants no calls here.
    cordoned: bool,
    /// One by one: one that the next program does not understand costs it no other.
    members: Vec<serde_json::Value>,
}

/// A runner that is ready to become another program. Dropping it ends its containers.
pub struct Departure {
    passed: PassedFds,
    state: HandoverState,
    leaving: Leaving,
}

impl Departure {
    pub fn new(
        terms: Terms,
        listener: FdNumber,
        admin: SocketAddr,
        driver: HandedDriver,
        cordoned: bool,
        leaving: Leaving,
        passed: PassedFds,
    ) -> Self {
        let written = |member: &HandedMember| match serde_json::to_value(member) {
            Ok(value) => Some(value),
            Err(error) => {
                tracing::warn!(%error, "a container cannot be written down, and ends");
                None
            }
        };
        let members = leaving.members.iter().filter_map(written).collect();
        let state = HandoverState { terms, listener, admin, driver, cordoned, members };
        Self { passed, state, leaving }
    }

    /// How many containers go over, and how many end.
    pub fn containers(&self) -> (usize, usize) {
        let over = self.state.members.len();
        (over, self.leaving.stay + self.leaving.members.len() - over)
    }

    /// Becomes the program that this process was started as. Returns only when that fails, and why.
    pub fn leave(self) -> io::Error {
        self.passed.become_program(&mut program(), &self.state)
    }
}

/// What this process was started as, with its arguments. Looked up anew: there may be another file of that name by now.
fn program() -> Command {
    let mut words = std::env::args_os();
    let mut command = Command::new(words.next().unwrap_or_else(|| PROGRAM.name.into()));
    command.args(words);
    command
}

/// Asks the next program whether it would take over on these terms.
///
/// # Errors
/// Why it would not, or cannot be asked.
pub async fn ask(terms: &Terms) -> Result<(), String> {
    let question = serde_json::to_string(terms).map_err(|error| error.to_string())?;
    let mut command = program();
    let name = command.get_program().to_string_lossy().into_owned();
    command.env(QUESTION, question).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let cannot = |error: io::Error| format!("{name} cannot be asked: {error}");
    // Starting a process may take milliseconds; not on the runtime's threads.
    let child = tokio::task::spawn_blocking(move || command.spawn()).await;
    let child = child.map_err(io::Error::other).flatten().map_err(cannot)?;
    let process = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).map_err(io::Error::from);
    let process = process.map_err(cannot)?;
    let answer = tokio::task::spawn_blocking(move || hear(child));
    match tokio::time::timeout(PATIENCE, answer).await {
        Ok(heard) => match heard.map_err(io::Error::other).flatten().map_err(cannot)? {
            (said, _) if said.lines().any(|line| line == YES) => Ok(()),
            (_, reasons) if reasons.trim().is_empty() => Err(format!("{name} does not say that it would")),
            (_, reasons) => Err(format!("{name} would not: {}", reasons.trim())),
        },
        Err(_) => {
            // Gone already is as good; who hears it out also collects it.
            pidfd_send_signal(&process, Signal::KILL).ok();
            Err(format!("{name} has not answered for {} s", PATIENCE.as_secs()))
        }
    }
}

/// What it says, and its reasons. Bounded: it may be anything.
fn hear(mut child: Child) -> io::Result<(String, String)> {
    // What is more than that is nobody's: the pipe closes, and whoever writes on ends.
    let said = child.stdout.take().map_or(Ok(String::new()), beginning)?;
    let reasons = child.stderr.take().map_or(Ok(String::new()), beginning)?;
    child.wait()?;
    Ok((said, reasons))
}

fn beginning(pipe: impl io::Read) -> io::Result<String> {
    let mut bytes = Vec::new();
    pipe.take(REASONS).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Answers, if that is what this program was started for.
#[must_use]
pub fn asked() -> Option<ExitCode> {
    let question = std::env::var(QUESTION).ok()?;
    Some(match would(&question) {
        Ok(()) => {
            println!("{YES}");
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("{why}");
            ExitCode::from(NO)
        }
    })
}

fn would(question: &str) -> Result<(), String> {
    let terms: Terms = serde_json::from_str(question)
        .map_err(|error| format!("it asks for what this release cannot do ({error})"))?;
    // What is wrong with them stands on STDERR by then.
    let settings = PROGRAM.settings().map_err(|_| String::new())?;
    let plan = Plan::new(&settings).map_err(|mistakes| mistakes.to_string())?;
    terms.against(&plan).map_or(Ok(()), Err)
}

/// What this program has inherited.
pub struct Inherited {
    state: HandoverState,
    fds: InheritedFds,
}

impl Inherited {
    /// To be asked once, before anything is opened or started. What cannot be understood ends with this, and the runner starts anew.
    ///
    /// # Errors
    /// Why it cannot be understood.
    pub fn find() -> Result<Option<Self>, String> {
        match InheritedFds::find() {
            Ok(found) => Ok(found.map(|(state, fds)| Self { state, fds })),
            Err(error) => Err(format!("what was handed over cannot be understood: {error}")),
        }
    }

    /// Where the admin port was.
    pub fn admin(&self) -> SocketAddr {
        self.state.admin
    }

    /// An operator wants no calls here.
    pub fn is_cordoned(&self) -> bool {
        self.state.cordoned
    }

    /// The listening socket.
    ///
    /// # Errors
    /// When it was not left.
    pub fn listener(&mut self) -> io::Result<std::net::TcpListener> {
        self.fds.take(self.state.listener).map(Into::into)
    }

    /// What is left after the listener: the driver, the containers that can be understood, and where their descriptors are.
    pub fn apart(self) -> (HandedDriver, Vec<HandedMember>, InheritedFds) {
        let understood = |value| match serde_json::from_value(value) {
            Ok(member) => Some(member),
            Err(error) => {
                tracing::warn!(%error, "a container of another release is not understood, and ends");
                None
            }
        };
        let members = self.state.members.into_iter().filter_map(understood).collect();
        (self.state.driver, members, self.fds)
    }
}

/// Functions that a runner with this setting may not have.
pub fn is_allowed(container: &HandedContainer, host_network: bool) -> bool {
    host_network || container.spec.network != stoker_core::function::Network::Host
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Another place, name or driver is another runner's; more memory is the same one's.
    #[test]
    fn terms_are_those_of_the_same_runner() {
        let plan = |more: &[(&str, &str)]| {
            let told = [("ETCD", "http://127.0.0.1:1"), ("NAME", "n"), ("STATE", "/s"), ("CPU", "1")];
            let variables =
                told.iter().chain(more).map(|(key, value)| (format!("STOKER_{key}").into(), value.into()));
            let loaded = PROGRAM.load([], variables).unwrap();
            let stoker_runtime::config::Outcome::Run(settings) = loaded else { panic!("it runs") };
            Plan::new(&settings).unwrap()
        };
        let listen = "127.0.0.1:7170".parse().unwrap();
        let terms = Terms {
            form: FORM,
            protocol: PROTOCOL,
            name: "n".to_owned(),
            state: "/s".into(),
            listen,
            driver: "native".to_owned(),
        };
        assert_eq!(terms.against(&plan(&[("MEMORY", "1GiB"), ("DRAIN_GRACE", "1s")])), None);
        assert_eq!(terms.against(&plan(&[("SANDBOX", "native")])), None);
        for (more, says) in [
            (("LISTEN", "127.0.0.1:7171"), "the address is 127.0.0.1:7171 now and was 127.0.0.1:7170"),
            (("SANDBOX", "process"), "the sandbox is process now and was native"),
        ] {
            let against = terms.against(&plan(&[more])).unwrap();
            assert!(against.starts_with(says), "{against}");
        }
        let older = [
            Terms { form: FORM + 1, ..terms.clone() },
            Terms { protocol: PROTOCOL + 1, ..terms.clone() },
            Terms { name: "m".to_owned(), ..terms.clone() },
            Terms { state: "/t".into(), ..terms.clone() },
        ];
        assert!(older.iter().all(|terms| terms.against(&plan(&[])).is_some()));
    }
}
