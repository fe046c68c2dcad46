//! A server of a cluster: a process that logs JSON, takes signals, and can be started again as it was.

use std::os::unix::process::ExitStatusExt as _;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;

use crate::left::MARK;
use crate::net::Host;
use crate::{patiently, program, within};

/// How long a server's end may take before it counts as a hang: longer than any grace that tests give.
const END: Duration = Duration::from_secs(60);

/// Lines of its log that the message of a failure shows.
const LAST_LINES: usize = 60;

/// See the module. Its process ends with it.
pub struct Server {
    pub name: String,
    program: &'static str,
    settings: Vec<(String, String)>,
    mark: String,
    host: Option<Host>,
    child: Option<Child>,
    pid: Pid,
    log: watch::Receiver<Vec<Value>>,
}

impl Server {
    /// Starts it with these settings, as `STOKER_…` variables without that prefix.
    #[must_use]
    pub fn start(
        program: &'static str,
        name: &str,
        mark: &str,
        settings: impl IntoIterator<Item = (&'static str, String)>,
    ) -> Self {
        Self::start_on(None, program, name, mark, settings)
    }

    /// The same, on this host.
    #[must_use]
    pub fn start_on(
        host: Option<&Host>,
        program: &'static str,
        name: &str,
        mark: &str,
        settings: impl IntoIterator<Item = (&'static str, String)>,
    ) -> Self {
        let mut settings: Vec<_> =
            settings.into_iter().map(|(key, value)| (format!("STOKER_{key}"), value)).collect();
        settings.push(("STOKER_NAME".to_owned(), name.to_owned()));
        settings.push(("STOKER_LOG_FORMAT".to_owned(), "json".to_owned()));
        let (child, log) = spawn(program, mark, host, &settings);
        let (name, mark, pid) = (name.to_owned(), mark.to_owned(), id(&child));
        Self { name, program, settings, mark, host: host.cloned(), child: Some(child), pid, log }
    }

    /// Starts it again, with the same settings.
    pub fn start_again(&mut self) {
        assert!(self.child.is_none(), "{} runs", self.name);
        let (child, log) = spawn(self.program, &self.mark, self.host.as_ref(), &self.settings);
        (self.pid, self.log) = (id(&child), log);
        self.child = Some(child);
    }

    /// With another setting from its next start on.
    pub fn set(&mut self, key: &str, value: &str) {
        self.set_variable(&format!("STOKER_{key}"), value);
    }

    /// With another variable of its environment from its next start on.
    pub fn set_variable(&mut self, key: &str, value: &str) {
        self.settings.retain(|(k, _)| *k != key);
        self.settings.push((key.to_owned(), value.to_owned()));
    }

    #[must_use]
    pub fn runs(&self) -> bool {
        self.child.is_some()
    }

    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Waits until this life of it has logged this message, and gives the line.
    pub async fn logged(&self, message: &str) -> Value {
        self.logged_that(message, |said| said == message).await
    }

    /// Whether its last life, which has ended, had logged a message with this in it.
    pub async fn had_logged(&self, part: &str) -> bool {
        let mut log = self.log.clone();
        // Its log ends a little after itself.
        let over = async { while log.changed().await.is_ok() {} };
        within(&format!("the end of the log of {}", self.name), over).await;
        let lines = self.log.borrow();
        lines.iter().any(|line| line["message"].as_str().is_some_and(|said| said.contains(part)))
    }

    /// Waits until this life of it has logged a message with this in it, and gives the line.
    pub async fn logged_about(&self, part: &str) -> Value {
        self.logged_that(part, |said| said.contains(part)).await
    }

    /// # Panics
    /// When it ends before.
    async fn logged_that(&self, what: &str, holds: impl Fn(&str) -> bool) -> Value {
        let mut log = self.log.clone();
        let find = |lines: &Vec<Value>| {
            lines.iter().find(|line| line["message"].as_str().is_some_and(&holds)).cloned()
        };
        let all = log.wait_for(|lines| find(lines).is_some());
        let found = within(&format!("{what:?} from {}", self.name), all).await;
        let found = found.map(|lines| find(&lines).unwrap());
        found
            .unwrap_or_else(|_| panic!("{} ended before it had logged {what:?}:\n{}", self.name, self.tail()))
    }

    /// SIGKILL, and waits for the end.
    pub async fn kill(&mut self) {
        let mut child = self.child.take().expect("it runs");
        child.start_kill().unwrap();
        let status = within(&format!("the end of {}", self.name), child.wait()).await.unwrap();
        assert_eq!(status.signal(), Some(libc::SIGKILL), "{}:\n{}", self.name, self.tail());
    }

    /// SIGUSR2: a runner becomes the program that its file is now.
    pub fn upgrade(&self) {
        kill_process(self.pid, Signal::USR2).unwrap();
    }

    /// SIGTERM; [`Server::ended`] waits for what comes of it.
    pub fn terminate(&self) {
        kill_process(self.pid, Signal::TERM).unwrap();
    }

    /// Waits for the end that it was told to come to.
    ///
    /// # Panics
    /// When it does not end well.
    pub async fn ended(&mut self) {
        let mut child = self.child.take().expect("it runs");
        let limit = patiently(END);
        let Ok(status) = tokio::time::timeout(limit, child.wait()).await else {
            panic!("{} did not end within {limit:?}:\n{}", self.name, self.tail());
        };
        let status = status.unwrap();
        assert!(status.success(), "{} ended with {status}:\n{}", self.name, self.tail());
    }

    /// SIGTERM, and waits for a good end.
    pub async fn stop(&mut self) {
        self.terminate();
        self.ended().await;
    }

    /// SIGSTOP: its connections stay open and nothing answers. Returns when it stands.
    pub fn freeze(&self) {
        kill_process(self.pid, Signal::STOP).unwrap();
        waitid(WaitId::Pid(self.pid), WaitIdOptions::STOPPED).unwrap();
    }

    /// SIGCONT.
    pub fn thaw(&self) {
        kill_process(self.pid, Signal::CONT).unwrap();
    }

    fn tail(&self) -> String {
        let lines = self.log.borrow();
        let last = lines.iter().skip(lines.len().saturating_sub(LAST_LINES));
        last.map(|line| format!("    {line}\n")).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the last lines of {}:\n{}", self.name, self.tail());
        }
    }
}

fn id(child: &Child) -> Pid {
    Pid::from_raw(child.id().expect("it was not waited for") as i32).unwrap()
}

fn spawn(
    name: &str,
    mark: &str,
    host: Option<&Host>,
    settings: &[(String, String)],
) -> (Child, watch::Receiver<Vec<Value>>) {
    let program = program(name);
    let mut child = host
        .map_or_else(|| Command::new(&program), |host| host.command(&program))
        .envs(settings.iter().map(|(key, value)| (key, value)))
        .env(MARK, mark)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let (log, seen) = watch::channel(Vec::new());
    // Ends with the process, whose log it is; a pipe that nobody reads would fill up.
    tokio::spawn(async move {
        while let Ok(Some(line)) = lines.next_line().await {
            let line = serde_json::from_str(&line).unwrap_or(Value::String(line));
            log.send_modify(|log| log.push(line));
        }
    });
    (child, seen)
}
