//! Containers of the format `lambda`: what their process finds in its environment, and how it comes up.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use rustix::fs::{Dir, FileType, Mode, OFlags, ResolveFlags};
use rustix::process::Signal;
use stoker_core::error::{Code, Error, Report};
use stoker_core::function::FunctionSpec;
use stoker_lambda::{About, Failure, MOST_EXTENSIONS, RuntimeApi};
use stoker_sandbox::{Exit, ExitCause, Sandbox};
use tokio::net::{TcpSocket, TcpStream};
use tokio_util::sync::CancellationToken;

use super::launch::{launch_error, reader};
use super::{Container, LaunchError};
use crate::logs::Source;

/// Where the Runtime API is in a network namespace of the container's own.
const PORT: u16 = 9001;
/// What a function that says nothing of it is told it runs in.
const REGION: &str = "us-east-1";
/// Whom every function belongs to.
pub const ACCOUNT: &str = "000000000000";
/// The only version that a function has.
pub const VERSION: &str = "$LATEST";

impl Container {
    /// Starts the function, and waits until it asks for its first invocation.
    pub(super) async fn ask(
        &mut self,
        extensions: Vec<String>,
        stop: &CancellationToken,
    ) -> Result<(), LaunchError> {
        let listen = |port| self.sandbox.listen(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        let listener = match listen(PORT).await {
            // Where several share a network, each takes what is free. In one of its own nothing can be there before it.
            Err(stoker_sandbox::Error::Platform { source, .. }) if source.kind() == ErrorKind::AddrInUse => {
                listen(0).await
            }
            other => other,
        };
        let listener = listener.map_err(launch_error)?;
        let broken = |e: std::io::Error| LaunchError::Platform(format!("serve the Runtime API: {e}"));
        let address = listener.local_addr().map_err(broken)?;
        let api = RuntimeApi::serve(listener, self.about(extensions)).map_err(broken)?;
        let telemetry = api.telemetry();
        self.log.tap(move |line| telemetry.line(line));
        let started = Instant::now();
        let (stdin, stdout) =
            self.run(vec![("AWS_LAMBDA_RUNTIME_API".to_owned(), address.to_string())]).await?;
        self.log.follow(Source::Stdout, reader(stdout)?);
        drop(stdin);
        self.launched.start = started.elapsed();
        let began = Instant::now();
        let asks = async { api.ready().await.map_err(|failure| LaunchError::Function(init_error(failure))) };
        self.ready(stop, asks, || "did not ask for its first invocation").await?;
        self.launched.init = began.elapsed();
        self.lambda = Some(api);
        Ok(())
    }

    fn about(&self, external: Vec<String>) -> About {
        // The sandbox goes with its container, whoever wants to connect.
        let sandbox = Arc::downgrade(&self.sandbox);
        About {
            function: self.spec.name.function().to_owned(),
            version: VERSION.to_owned(),
            handler: self.spec.format_options.handler.clone(),
            account: ACCOUNT.to_owned(),
            log_stream: self.id.as_str().to_owned(),
            memory: self.spec.memory,
            external,
            connect: Arc::new(move |port| {
                let sandbox = sandbox.clone();
                Box::pin(async move {
                    let sandbox = sandbox.upgrade().ok_or(ErrorKind::NotConnected)?;
                    connect(&*sandbox, port).await
                })
            }),
        }
    }
}

/// Extensions that are processes of their own are started by a shell of the function's root, which then becomes the runtime: a sandbox
/// has one command. They do not get what concerns the runtime only.
const START: &str = r#"for extension in /opt/extensions/*; do
  [ -d "$extension" ] || (
    unset _HANDLER AWS_XRAY_CONTEXT_MISSING LAMBDA_TASK_ROOT LAMBDA_RUNTIME_DIR AWS_LAMBDA_LOG_GROUP_NAME AWS_LAMBDA_LOG_STREAM_NAME
    exec "$extension"
  ) &
done
exec "$@""#;

/// The names of the extensions in the root of a sandbox to be, which starts them before its command.
///
/// # Errors
/// There are more than a function may have.
pub async fn with_extensions(sandbox: &mut stoker_sandbox::Spec) -> Result<Vec<String>, LaunchError> {
    let root = match &sandbox.root {
        stoker_sandbox::Root::Host => Path::new("/").to_owned(),
        stoker_sandbox::Root::Directory(path) => path.clone(),
    };
    let names = tokio::task::spawn_blocking(move || extensions(&root));
    let names = names.await.map_err(|e| LaunchError::Platform(format!("look for extensions: {e}")))?;
    if names.len() > MOST_EXTENSIONS {
        let text =
            format!("/opt/extensions has {} extensions, at most {MOST_EXTENSIONS} are allowed", names.len());
        let error = Error::new(Code::FunctionInitFailed, text.clone());
        let (kind, content_type) = ("Extension.LaunchError".to_owned(), String::new());
        return Err(LaunchError::Function(error.report(Report { kind, content_type, body: text.into() })));
    }
    if !names.is_empty() {
        let command = std::mem::take(&mut sandbox.command);
        sandbox.command = ["/bin/sh", "-c", START, "sh"].map(str::to_owned).into();
        sandbox.command.extend(command);
    }
    Ok(names)
}

/// What is in `/opt/extensions` of a root, but directories. Links lead nowhere outside of it.
fn extensions(root: &Path) -> Vec<String> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(root, flags, Mode::empty()).and_then(|root| {
        rustix::fs::openat2(root, "opt/extensions", flags, Mode::empty(), ResolveFlags::IN_ROOT)
    });
    // Most functions have none.
    let Ok(entries) = directory.and_then(Dir::new) else { return Vec::new() };
    let names = entries.flatten().filter(|entry| entry.file_type() != FileType::Directory);
    // The shell passes over those with a dot.
    names
        .filter_map(|e| e.file_name().to_str().ok().map(str::to_owned))
        .filter(|n| !n.starts_with('.'))
        .collect()
}

/// Connects to a port on the loopback device inside. A socket belongs to the network in which it was made, and what a sandbox makes is
/// listeners: one that is told to listen no more is a socket like any other.
async fn connect(sandbox: &dyn Sandbox, port: u16) -> std::io::Result<TcpStream> {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let listener = sandbox.listen(any).await.map_err(std::io::Error::other)?;
    rustix::net::connect_unspec(&listener)?;
    let socket = TcpSocket::from_std_stream(OwnedFd::from(listener).into());
    socket.connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await
}

fn init_error(failure: Failure) -> Error {
    let message = format!("the function could not initialise: {}", failure.told());
    Error::new(Code::FunctionInitFailed, message).report(report(failure))
}

/// A failure as its report.
pub fn report(failure: Failure) -> Report {
    Report { kind: failure.kind, content_type: failure.content_type, body: failure.payload }
}

/// The word on a process that ended. Who knows the invocation [completes](complete) it.
pub fn exited(exit: Exit) -> Report {
    let message = match exit.cause {
        ExitCause::Code(0) => "Runtime exited without providing a reason".to_owned(),
        ExitCause::Code(code) => format!("Runtime exited with error: exit status {code}"),
        ExitCause::Signal(signal) => format!("Runtime exited with error: signal: {}", signal_name(signal)),
        ExitCause::Lost => return Report { kind: "Sandbox.Failure".to_owned(), ..Report::default() },
    };
    Report { kind: "Runtime.ExitError".to_owned(), content_type: String::new(), body: message.into() }
}

/// As Go's runtime, in which AWS's is written, names them.
fn signal_name(signal: i32) -> String {
    let names = [
        (Signal::KILL, "killed"),
        (Signal::SEGV, "segmentation fault"),
        (Signal::ABORT, "aborted"),
        (Signal::TERM, "terminated"),
        (Signal::ILL, "illegal instruction"),
        (Signal::BUS, "bus error"),
        (Signal::FPE, "floating point exception"),
    ];
    let name = names.iter().find(|(known, _)| known.as_raw() == signal);
    name.map_or_else(|| format!("signal {signal}"), |(_, name)| (*name).to_owned())
}

/// An error with the body that callers of AWS Lambda know: a report without a type is a message about an invocation that was not
/// known yet.
pub fn complete(mut error: Error, request_id: &str, timeout: std::time::Duration) -> Error {
    let message = match (&error.report, error.code) {
        (Some(report), _) if !report.content_type.is_empty() => return error,
        (Some(report), _) => (report.kind.clone(), String::from_utf8_lossy(&report.body).into_owned()),
        (None, Code::FunctionTimeout | Code::FunctionInitTimeout) => {
            let text = format!("Task timed out after {:.2} seconds", timeout.as_secs_f64());
            ("Sandbox.Timedout".to_owned(), text)
        }
        (None, Code::FunctionInvalidResponse) => {
            ("Runtime.TruncatedResponse".to_owned(), error.message.clone())
        }
        (None, Code::FunctionInitFailed) => ("Runtime.InvalidEntrypoint".to_owned(), error.message.clone()),
        (None, _) => return error,
    };
    let (kind, text) = message;
    let body = Bytes::from(stoker_lambda::fault::body(&kind, request_id, &text));
    error.report = Some(Box::new(Report { kind, content_type: "application/json".to_owned(), body }));
    error
}

/// The ARN under which a function knows itself where its caller named none.
pub fn arn(spec: &FunctionSpec) -> String {
    let region = spec.env.get("AWS_REGION").map_or(REGION, String::as_str);
    format!("arn:aws:lambda:{region}:{ACCOUNT}:function:{}", spec.name.function())
}

/// Names and values.
type Variables = Vec<(String, String)>;

/// What a runtime finds in its environment, besides what the function's author put there: those of the first list give way to that,
/// those of the second do not.
pub fn environment(spec: &FunctionSpec, workdir: &Path, instance: &str) -> (Variables, Variables) {
    let name = spec.name.function();
    let own = |all: Vec<(&str, String)>| all.into_iter().map(|(k, v)| (k.to_owned(), v)).collect::<Vec<_>>();
    let root = workdir.to_string_lossy().into_owned();
    let gives_way = own(vec![
        ("AWS_REGION", REGION.to_owned()),
        ("AWS_DEFAULT_REGION", REGION.to_owned()),
        ("AWS_XRAY_CONTEXT_MISSING", "LOG_ERROR".to_owned()),
        ("LANG", "en_US.UTF-8".to_owned()),
        ("TZ", ":UTC".to_owned()),
        ("LAMBDA_TASK_ROOT", root),
        ("LAMBDA_RUNTIME_DIR", "/var/runtime".to_owned()),
        ("_HANDLER", spec.format_options.handler.clone()),
    ]);
    let stays = own(vec![
        ("AWS_LAMBDA_FUNCTION_NAME", name.to_owned()),
        ("AWS_LAMBDA_FUNCTION_VERSION", VERSION.to_owned()),
        ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", (spec.memory >> 20).to_string()),
        ("AWS_LAMBDA_LOG_GROUP_NAME", format!("/aws/lambda/{name}")),
        ("AWS_LAMBDA_LOG_STREAM_NAME", instance.to_owned()),
        ("AWS_LAMBDA_INITIALIZATION_TYPE", "on-demand".to_owned()),
    ]);
    (gives_way, stays)
}
