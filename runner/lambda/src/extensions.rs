//! The extensions of one container: who registered, what each was given, and the table of what it may do next.
//!
//! External ones are processes of their own, named after their file in `/opt/extensions`; the rest are threads of the runtime's
//! process, which AWS calls internal. Pure: whoever waits for a change is [`RuntimeApi`](crate::RuntimeApi)'s to wake.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use stoker_core::listed;
use stoker_core::machine::Machine;
use uuid::Uuid;

/// Extensions of one function.
pub const MOST: usize = 10;

/// Where an extension is, once it has registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It has not asked for anything yet.
    Registered,
    /// It waits for an event.
    Ready,
    /// It has one.
    Running,
    /// It said that it cannot start. Final.
    InitError,
    /// It said that it cannot go on. Final.
    ExitError,
    /// Its process ended. Final.
    Exited,
}

listed!(State: Registered, Ready, Running, InitError, ExitError, Exited);

/// What an extension does, or what becomes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// It asks for an event.
    Next,
    /// One was given to it.
    Given,
    InitError,
    ExitError,
    /// Its process, where it has its own, ended.
    Exited,
}

listed!(Event: Next, Given, InitError, ExitError, Exited);

impl Machine for State {
    type Event = Event;
    const MOVES: &'static [(Self, Event, Self)] = &[
        (State::Registered, Event::Next, State::Ready),
        (State::Registered, Event::InitError, State::InitError),
        (State::Registered, Event::ExitError, State::ExitError),
        // One that lost its connection while it waited asks again.
        (State::Ready, Event::Next, State::Ready),
        (State::Ready, Event::Given, State::Running),
        (State::Ready, Event::ExitError, State::ExitError),
        (State::Running, Event::Next, State::Ready),
        (State::Running, Event::ExitError, State::ExitError),
        (State::InitError, Event::InitError, State::InitError),
        (State::ExitError, Event::ExitError, State::ExitError),
        (State::Registered, Event::Exited, State::Exited),
        (State::Ready, Event::Exited, State::Exited),
        (State::Running, Event::Exited, State::Exited),
    ];
}

impl State {
    /// As events of the Telemetry API name it.
    pub fn name(self) -> &'static str {
        match self {
            State::Registered => "Registered",
            State::Ready => "Ready",
            State::Running => "Running",
            State::InitError => "InitError",
            State::ExitError => "ExitError",
            State::Exited => "Exited",
        }
    }
}

/// Why a request of an extension is refused, in AWS's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub kind: &'static str,
    pub message: String,
}

impl Refusal {
    pub fn new(kind: &'static str, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}

#[derive(Debug)]
pub struct Extension {
    /// What it is known by from its registration on.
    pub id: String,
    pub name: String,
    invoke: bool,
    shutdown: bool,
    pub state: State,
    /// Waits for it to ask.
    event: Option<Bytes>,
}

impl Extension {
    /// What it asked to be told of.
    pub fn events(&self) -> Vec<&'static str> {
        [(self.invoke, "INVOKE"), (self.shutdown, "SHUTDOWN")]
            .into_iter()
            .filter_map(|(asked, name)| asked.then_some(name))
            .collect()
    }

    /// It still asks for events, as far as one can tell.
    fn listens(&self) -> bool {
        matches!(self.state, State::Registered | State::Ready | State::Running)
    }

    fn on(&mut self, event: Event) -> Result<(), Refusal> {
        let to = self.state.on(event);
        self.state = to.map_err(|_| {
            Refusal::new("Extension.InvalidExtensionState", "State transition is not allowed")
        })?;
        Ok(())
    }
}

/// An extension that is a part of the runtime's process, and waits for its next event.
#[derive(Debug, Serialize, Deserialize)]
pub struct Waiting {
    id: String,
    name: String,
    invoke: bool,
}

/// The end of an extension, which is the end of its function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fatal {
    /// `Extension.InitError`, `Extension.ExitError` or `Extension.Crash`.
    pub kind: &'static str,
    pub extension: String,
    /// The class of its error as it named it, scrubbed; how its process ended.
    pub said: String,
}

#[derive(Debug, Default)]
pub struct Extensions {
    all: Vec<Extension>,
    /// External ones that were started and have not registered.
    expected: Vec<String>,
    /// External ones that there are.
    external: Vec<String>,
    /// Who comes now comes too late.
    closed: bool,
    /// Several invocations are under way at once: nobody can be told of each.
    several: bool,
    /// They were told of the end: theirs is no failure any more.
    ending: bool,
    pub fatal: Option<Fatal>,
}

impl Extensions {
    /// With these external ones, which are waited for. `several`: invocations are not one after the other.
    pub fn new(external: Vec<String>, several: bool) -> Self {
        Self { expected: external.clone(), external, several, ..Self::default() }
    }

    /// Those of an API that goes on: each asks again for its next event, and nobody else registers.
    pub fn again(all: Vec<Waiting>, several: bool) -> Self {
        let known = |Waiting { id, name, invoke }| {
            let (shutdown, state, event) = (false, State::Registered, None);
            Extension { id, name, invoke, shutdown, state, event }
        };
        Self { all: all.into_iter().map(known).collect(), several, closed: true, ..Self::default() }
    }

    /// All of them, if each is a part of the runtime's process and waits for its next event.
    pub fn waiting(&self) -> Option<Vec<Waiting>> {
        let waits = |e: &Extension| e.state == State::Ready && e.event.is_none();
        let all_wait = self.fatal.is_none() && self.external.is_empty() && self.all.iter().all(waits);
        let waiting = |e: &Extension| Waiting { id: e.id.clone(), name: e.name.clone(), invoke: e.invoke };
        all_wait.then(|| self.all.iter().map(waiting).collect())
    }

    /// `POST /extension/register`. Gives its identifier.
    pub fn register(&mut self, name: &str, body: &[u8]) -> Result<String, Refusal> {
        if name.is_empty() {
            return Err(Refusal::new("Extension.InvalidExtensionName", "Empty extension name"));
        }
        let events = asked_for(body)?;
        let external = self.external.iter().any(|known| known == name);
        let (mut invoke, mut shutdown) = (false, false);
        for event in &events {
            let why = match event.as_str() {
                "INVOKE" if self.several => "InvokeEventNotSupportedWithConcurrency",
                "INVOKE" => {
                    invoke = true;
                    continue;
                }
                "SHUTDOWN" if external => {
                    shutdown = true;
                    continue;
                }
                "SHUTDOWN" => "ShutdownEventNotSupportedForInternalExtension",
                _ => "ErrorInvalidEventType",
            };
            let event: String = event.chars().take(64).collect();
            return Err(Refusal::new("Extension.InvalidEventType", format!("{event}: {why}")));
        }
        if self.closed {
            return Err(Refusal::new(
                "Extension.RegistrationClosed",
                "Extension registration closed already",
            ));
        }
        if self.all.iter().any(|extension| extension.name == name) {
            let text = "Extension with this name already registered";
            return Err(Refusal::new("Extension.InvalidExtensionState", text));
        }
        if self.all.len() >= MOST {
            let text = format!("Extension limit ({MOST}) reached");
            return Err(Refusal::new("Extension.TooManyExtensions", text));
        }
        let id = Uuid::now_v7().to_string();
        self.expected.retain(|expected| expected != name);
        let (state, event) = (State::Registered, None);
        self.all.push(Extension { id: id.clone(), name: name.to_owned(), invoke, shutdown, state, event });
        Ok(id)
    }

    /// Who sends a request, by the header that says so.
    pub fn known(&mut self, id: Option<&str>) -> Result<&mut Extension, Refusal> {
        let Some(id) = id else {
            let text = "Missing Lambda-Extension-Identifier header";
            return Err(Refusal::new("Extension.MissingExtensionIdentifier", text));
        };
        if Uuid::parse_str(id).is_err() {
            let text = "Invalid Lambda-Extension-Identifier";
            return Err(Refusal::new("Extension.InvalidExtensionIdentifier", text));
        }
        match self.all.iter_mut().find(|extension| extension.id == id) {
            Some(extension) => Ok(extension),
            None => {
                Err(Refusal::new("Extension.UnknownExtensionIdentifier", format!("Unknown extension {id}")))
            }
        }
    }

    /// `GET /extension/event/next`: it waits from now on.
    pub fn next(&mut self, id: Option<&str>) -> Result<(), Refusal> {
        self.known(id)?.on(Event::Next)
    }

    /// The event that waits for it, which is its from now on.
    pub fn take(&mut self, id: Option<&str>) -> Result<Option<Bytes>, Refusal> {
        let extension = self.known(id)?;
        match extension.event.take() {
            None => Ok(None),
            Some(event) => extension.on(Event::Given).map(|()| Some(event)),
        }
    }

    /// It says that it cannot start, or go on.
    pub fn fails(&mut self, id: Option<&str>, event: Event, said: Option<&str>) -> Result<(), Refusal> {
        let extension = self.known(id).map_err(|refusal| match refusal.kind {
            "Extension.UnknownExtensionIdentifier" => {
                Refusal::new(refusal.kind, "Unknown Lambda-Extension-Identifier")
            }
            _ => refusal,
        })?;
        let Some(said) = said else {
            let text = "Lambda-Extension-Function-Error-Type not found";
            return Err(Refusal::new("Extension.MissingHeader", text));
        };
        extension.on(event)?;
        let kind = if event == Event::InitError { "Extension.InitError" } else { "Extension.ExitError" };
        let fatal = Fatal {
            kind,
            extension: extension.name.clone(),
            said: crate::fault::scrub_extension(said).to_owned(),
        };
        // The first one says why.
        self.fatal.get_or_insert(fatal);
        Ok(())
    }

    /// The process of an external one ended, as `how` says.
    pub fn exited(&mut self, name: &str, how: &str) {
        self.expected.retain(|expected| expected != name);
        if let Some(extension) = self.all.iter_mut().find(|extension| extension.name == name) {
            // One that said that it fails has said more.
            _ = extension.on(Event::Exited);
            extension.event = None;
        }
        if !self.ending {
            let fatal = Fatal { kind: "Extension.Crash", extension: name.to_owned(), said: how.to_owned() };
            self.fatal.get_or_insert(fatal);
        }
    }

    /// Every one that was started has registered.
    pub fn registered(&self) -> bool {
        self.expected.is_empty()
    }

    /// Every one that was started has registered, and every one that registered has asked for its first event.
    pub fn settled(&self) -> bool {
        self.expected.is_empty() && self.all.iter().all(|extension| extension.state != State::Registered)
    }

    /// Nobody registers any more.
    pub fn close(&mut self) {
        self.closed = true;
    }

    /// Gives this to those who are told of invocations.
    pub fn invoke(&mut self, event: &Bytes) {
        for extension in self.all.iter_mut().filter(|extension| extension.invoke && extension.listens()) {
            extension.event = Some(event.clone());
        }
    }

    /// Gives this to those who are told of the end.
    pub fn shut_down(&mut self, event: &Bytes) {
        self.ending = true;
        for extension in self.all.iter_mut().filter(|extension| extension.shutdown && extension.listens()) {
            extension.event = Some(event.clone());
        }
    }

    /// None of those who are told of invocations is still at work on one.
    pub fn done(&self) -> bool {
        self.all.iter().all(|e| !e.invoke || (e.event.is_none() && e.state != State::Running))
    }

    /// Somebody asked to be told of the end.
    pub fn waits_for_the_end(&self) -> bool {
        self.all.iter().any(|extension| extension.shutdown)
    }

    /// None of those who were told of the end is still at work on it.
    pub fn all_down(&self) -> bool {
        self.all.iter().all(|e| !e.shutdown || (e.event.is_none() && e.state != State::Running))
    }

    pub fn all(&self) -> &[Extension] {
        &self.all
    }
}

/// The events in the body of a registration.
fn asked_for(body: &[u8]) -> Result<Vec<String>, Refusal> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Body {
        #[serde(default)]
        events: Vec<String>,
        #[serde(default)]
        configuration_keys: Option<serde::de::IgnoredAny>,
    }
    let broken = |why: String| Refusal::new("InvalidRequestFormat", why);
    let body: Body = serde_json::from_slice(body).map_err(|error| broken(error.to_string()))?;
    match body.configuration_keys {
        None => Ok(body.events),
        Some(_) => {
            Err(broken("configurationKeys are deprecated; use environment variables instead".to_owned()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_is_what_the_contract_says() {
        let allowed: Vec<_> =
            State::table().lines().filter(|l| !l.ends_with("refused")).map(str::to_owned).collect();
        assert_eq!(
            allowed,
            [
                "Registered + Next -> Ready",
                "Registered + InitError -> InitError",
                "Registered + ExitError -> ExitError",
                "Registered + Exited -> Exited",
                "Ready + Next -> Ready",
                "Ready + Given -> Running",
                "Ready + ExitError -> ExitError",
                "Ready + Exited -> Exited",
                "Running + Next -> Ready",
                "Running + ExitError -> ExitError",
                "Running + Exited -> Exited",
                "InitError + InitError -> InitError",
                "ExitError + ExitError -> ExitError",
            ]
        );
    }

    #[test]
    fn registrations_are_checked() {
        let mut all = Extensions::new(vec!["ext".into()], false);
        let cases = [
            ("", "{}", "Extension.InvalidExtensionName", "Empty extension name"),
            (
                "a",
                r#"{"events":["INVOKED"]}"#,
                "Extension.InvalidEventType",
                "INVOKED: ErrorInvalidEventType",
            ),
            (
                "a",
                r#"{"events":["INVOKE","SHUTDOWN"]}"#,
                "Extension.InvalidEventType",
                "SHUTDOWN: ShutdownEventNotSupportedForInternalExtension",
            ),
        ];
        for (name, body, kind, message) in cases {
            assert_eq!(
                all.register(name, body.as_bytes()),
                Err(Refusal::new(kind, message)),
                "{name} {body}"
            );
        }
        for body in ["", "[1]", r#"{"events":[],"configurationKeys":["a"]}"#, r#"{"events":"INVOKE"}"#] {
            assert_eq!(
                all.register("a", body.as_bytes()).unwrap_err().kind,
                "InvalidRequestFormat",
                "{body}"
            );
        }
        assert!(!all.settled(), "one that was started has not come");
        all.register("ext", br#"{"events":["INVOKE","SHUTDOWN"]}"#).unwrap();
        let text = "Extension with this name already registered";
        assert_eq!(all.register("ext", b"{}"), Err(Refusal::new("Extension.InvalidExtensionState", text)));
        for n in 1..MOST {
            all.register(&format!("internal-{n}"), b"{}").unwrap();
        }
        let refused = all.register("one-more", b"{}").unwrap_err();
        assert_eq!(refused, Refusal::new("Extension.TooManyExtensions", "Extension limit (10) reached"));
        all.close();
        assert_eq!(all.register("late", b"{}").unwrap_err().kind, "Extension.RegistrationClosed");
        assert_eq!(all.all().len(), MOST);
    }

    #[test]
    fn an_invocation_is_over_when_those_who_are_told_of_it_are_back() {
        let mut all = Extensions::new(vec!["told".into()], false);
        let told = all.register("told", br#"{"events":["INVOKE","SHUTDOWN"]}"#).unwrap();
        let quiet = all.register("quiet", br#"{"events":[]}"#).unwrap();
        assert!(!all.settled());
        all.next(Some(&told)).unwrap();
        assert!(!all.settled());
        all.next(Some(&quiet)).unwrap();
        assert!(all.settled() && all.done());
        all.invoke(&Bytes::from_static(b"1"));
        assert!(!all.done());
        assert_eq!(all.take(Some(&quiet)), Ok(None), "it did not ask for invocations");
        assert_eq!(all.take(Some(&told)), Ok(Some(Bytes::from_static(b"1"))));
        assert!(!all.done());
        all.next(Some(&told)).unwrap();
        assert!(all.done());
        assert!(all.waits_for_the_end());
        all.shut_down(&Bytes::from_static(b"2"));
        assert!(!all.all_down());
        all.take(Some(&told)).unwrap();
        all.next(Some(&told)).unwrap();
        assert!(all.all_down());
    }

    #[test]
    fn identifiers_are_checked_and_the_first_failure_counts() {
        let mut all = Extensions::default();
        let kind = |all: &mut Extensions, id| all.next(id).unwrap_err().kind;
        assert_eq!(kind(&mut all, None), "Extension.MissingExtensionIdentifier");
        assert_eq!(kind(&mut all, Some("x")), "Extension.InvalidExtensionIdentifier");
        let nobody = Uuid::nil().to_string();
        assert_eq!(kind(&mut all, Some(&nobody)), "Extension.UnknownExtensionIdentifier");
        let id = all.register("a", b"{}").unwrap();
        let refused = all.fails(Some(&id), Event::InitError, None).unwrap_err();
        assert_eq!(refused.kind, "Extension.MissingHeader");
        all.fails(Some(&id), Event::InitError, Some("Extension.Bad")).unwrap();
        all.fails(Some(&id), Event::InitError, Some("Extension.Bad")).unwrap();
        assert_eq!(
            all.fails(Some(&id), Event::ExitError, Some("x")).unwrap_err().kind,
            "Extension.InvalidExtensionState"
        );
        assert_eq!(kind(&mut all, Some(&id)), "Extension.InvalidExtensionState");
        let fatal =
            Fatal { kind: "Extension.InitError", extension: "a".into(), said: "Extension.Bad".into() };
        assert_eq!(all.fatal, Some(fatal));
    }

    #[test]
    fn the_end_of_a_process_is_a_failure_unless_it_was_asked_for() {
        let mut all = Extensions::new(vec!["a".into(), "b".into()], false);
        let id = all.register("a", br#"{"events":["INVOKE","SHUTDOWN"]}"#).unwrap();
        all.next(Some(&id)).unwrap();
        assert!(!all.registered());
        all.exited("b", "exit status 1");
        assert!(all.registered());
        let crash = Fatal { kind: "Extension.Crash", extension: "b".into(), said: "exit status 1".into() };
        assert_eq!(all.fatal, Some(crash));
        let mut all = Extensions::new(vec!["a".into()], false);
        let id = all.register("a", br#"{"events":["SHUTDOWN"]}"#).unwrap();
        all.next(Some(&id)).unwrap();
        all.shut_down(&Bytes::from_static(b"1"));
        assert!(!all.all_down());
        all.exited("a", "exit code 0");
        assert!(all.all_down() && all.fatal.is_none());
        // One that is gone already is not waited for.
        all.shut_down(&Bytes::from_static(b"2"));
        assert!(all.all_down());
    }

    #[test]
    fn nobody_is_told_of_invocations_that_are_under_way_at_once() {
        let mut all = Extensions::new(vec!["a".into()], true);
        let refused = all.register("a", br#"{"events":["INVOKE"]}"#).unwrap_err();
        assert_eq!(refused.kind, "Extension.InvalidEventType");
        all.register("a", br#"{"events":["SHUTDOWN"]}"#).unwrap();
    }
}
