//! How a command fails: what happened, whose fault it is, what to do. Printed to STDERR, as text or as JSON, and told in the exit code.

use std::process::ExitCode;

use serde_json::{Value, json};
use stoker_core::{Blame, Code, Error, Retry};

use crate::args::Output;
use crate::output;

/// What a shell gives a program that wrote to a reader which had gone (128 and the number of SIGPIPE).
const READER_GONE: u8 = 141;

/// Why a command did not succeed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What was attempted and what went wrong; may have several lines.
    error: Error,
    /// What to do about it; empty if nothing useful can be said.
    advice: Box<str>,
    /// The call that failed, for `stoker explain`; empty if none did, or none is known.
    call_id: Box<str>,
    /// Whoever read STDOUT has what it wanted (`| head`): nobody is told anything.
    quiet: bool,
}

impl Failure {
    /// What happened, and what to do about it.
    pub fn new(error: Error, advice: impl Into<String>) -> Self {
        Self { error, advice: advice.into().into(), call_id: Box::default(), quiet: false }
    }

    /// The user's own doing.
    pub fn usage(what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::new(Error::new(Code::InvalidRequest, what), advice)
    }

    /// A command line that is none.
    pub fn typed(error: &clap::Error) -> Self {
        let text = error.render().to_string();
        // The first paragraph says what is wrong, the others what would be right.
        let (what, rest) = text.split_once("\n\n").unwrap_or((&text, ""));
        let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        let what = words(what);
        Self::usage(what.strip_prefix("error: ").unwrap_or(&what), words(rest))
    }

    /// Stoker's or the machine's.
    pub fn platform(what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::new(Error::new(Code::Internal, what), advice)
    }

    /// Something that should answer does not.
    pub fn away(what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::new(Error::new(Code::Unavailable, what), advice)
    }

    /// A call's or an operation's one error.
    pub fn of(error: Error) -> Self {
        let advice = advice(&error);
        Self::new(error, advice)
    }

    /// An operation on the registry's error: what is in the way is not a runner, and what to look after is where functions are kept.
    pub fn in_registry(status: &tonic::Status) -> Self {
        let error = stoker_proto::status::from_status(status);
        match error.code {
            Code::Internal | Code::Unavailable if is_ours(status) && error.retry != Retry::Elsewhere => {
                let place = "look after where functions are kept (etcd, or the disk of the state directory)";
                Self::new(error, format!("{place}, and send it again: sent twice it does no harm"))
            }
            _ => Self::from(status.clone()),
        }
    }

    /// The reader of STDOUT went away.
    pub fn reader_gone() -> Self {
        Self { quiet: true, ..Self::usage("nobody reads what is written", "") }
    }

    /// Whose fault it is.
    pub fn blame(&self) -> Blame {
        self.error.blame()
    }

    /// What happened.
    pub fn what(&self) -> &str {
        &self.error.message
    }

    /// To STDERR, as the user wants answers.
    pub fn print(&self, output: Output) {
        match output {
            _ if self.quiet => {}
            Output::Json => output::say(&format!("{}\n", json!({"error": self.json()}))),
            Output::Table => output::say(&self.text(output::Style::stderr())),
        }
    }

    fn text(&self, style: output::Style) -> String {
        let who = match self.error.blame() {
            Blame::Caller => "the request",
            Blame::Function => "the function",
            Blame::Platform => "the platform",
        };
        let mut text =
            format!("{} {}\n  {} {who}\n", style.red("error:"), self.what(), style.dim("at fault:"));
        if !self.advice.is_empty() {
            text += &format!("  {} {}\n", style.dim("what to do:"), self.advice);
        }
        if !self.call_id.is_empty() {
            text += &format!("  {} {}\n", style.dim("call:"), output::printable(&self.call_id));
        }
        if !self.error.log_tail.is_empty() {
            text += &format!("  {}\n", style.dim("the function's last words:"));
            text.extend(self.error.log_tail.lines().map(|line| format!("    {}\n", output::printable(line))));
        }
        text
    }

    /// With the names that errors have at the HTTP door.
    fn json(&self) -> Value {
        let Self { error, advice, call_id, .. } = self;
        let after = match error.retry {
            Retry::After(wait) => Some(wait.as_millis() as u64),
            Retry::Never | Retry::Elsewhere => None,
        };
        let mut json = json!({
            "message": error.message, "code": stoker_proto::status::row(error.code).reason,
            "blame": error.blame().as_str(), "retry": error.retry.as_str(), "retry_after_ms": after,
            "may_have_started": error.may_have_started, "advice": advice, "log_tail": error.log_tail,
        });
        if !call_id.is_empty() {
            json["call_id"] = (**call_id).into();
        }
        json
    }

    /// 1, 2, 3: the function, the request, the platform.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self.error.blame() {
            _ if self.quiet => READER_GONE,
            Blame::Function => 1,
            Blame::Caller => 2,
            Blame::Platform => 3,
        })
    }
}

/// Whether the balancer itself said so, and not something on the way.
fn is_ours(status: &tonic::Status) -> bool {
    use tonic_types::StatusExt as _;
    status.get_details_error_info().is_some_and(|info| info.domain == stoker_proto::status::DOMAIN)
}

impl From<tonic::Status> for Failure {
    fn from(status: tonic::Status) -> Self {
        if status.code() == tonic::Code::Unimplemented && !is_ours(&status) {
            return Self::platform(
                format!("the balancer does not know this request: {}", status.message()),
                "it is older than this command: update it, or take the command of its version",
            );
        }
        let call_id = stoker_proto::status::call_id(&status).into();
        Self { call_id, ..Self::of(stoker_proto::status::from_status(&status)) }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::platform(format!("{error:#}"), "")
    }
}

/// What the error itself does not say already.
fn advice(error: &Error) -> String {
    let by_code = match error.code {
        Code::NotFound => "see `stoker functions` for what there is",
        Code::Unauthenticated => {
            "show who you are: --token, STOKER_TOKEN or STOKER_TOKEN_FILE, or --cert and --cert-key"
        }
        Code::PermissionDenied => "ask whoever runs the fleet for more, or use another identity",
        Code::FunctionTimeout => "make the function faster, or raise `timeout` in its file",
        Code::FunctionInitTimeout => {
            "check that the function listens on the socket in FN_LISTENER, or raise `init_timeout` in its file"
        }
        Code::FunctionInitFailed => {
            "check `command`, `workdir`, and what it has for files (`image`, `archive`, `oci-layout`, `rootfs`) in the function's file"
        }
        Code::FunctionCrashed | Code::FunctionFailed | Code::FunctionInvalidResponse => {
            "see `stoker logs` for what the function wrote"
        }
        Code::DeadlineExceeded => {
            "give it more time with --timeout; where the time goes, --show-timing and `stoker runners` tell"
        }
        // What is missing may be a network: then the message says which, and how to have it.
        Code::ResourcesImpossible if !error.message.contains("network") => {
            "lower `memory` or `cpu` in the function's file, or start larger runners"
        }
        // Of a part that is missing the message says which, and how to have it.
        Code::Unavailable if error.message.contains("runner") && !error.may_have_started => {
            "see `stoker runners`"
        }
        Code::Internal => "this is a mistake in Stoker: please report it, with what its log says",
        _ => "",
    };
    let retry = match error.retry {
        Retry::Never if error.may_have_started => {
            "it may have started, so look before you send it again".to_owned()
        }
        Retry::Never => String::new(),
        Retry::Elsewhere => "it had no effect: send it again".to_owned(),
        Retry::After(wait) => format!("it had no effect: send it again after {} ms", wait.as_millis()),
    };
    [by_code, retry.as_str()].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use stoker_core::machine::Listed as _;

    #[test]
    fn exit_codes_tell_whose_fault_it_is() {
        for code in Code::ALL {
            let failure = Failure::of(Error::new(*code, "what"));
            assert_eq!(failure.error.blame(), code.blame());
            let expected = match code.blame() {
                Blame::Function => 1,
                Blame::Caller => 2,
                Blame::Platform => 3,
            };
            assert_eq!(failure.exit_code(), ExitCode::from(expected));
        }
        assert_eq!(Failure::reader_gone().exit_code(), ExitCode::from(141));
    }

    #[test]
    fn a_command_line_that_is_none_is_told_in_one_sentence() {
        use clap::Parser as _;
        for (line, what, advice) in [
            (&["stoker", "cal"][..], "unrecognized subcommand 'cal'", "'call'"),
            (&["stoker", "call"], "the following required arguments were not provided: <APP/FN>", "--help"),
            (&["stoker", "runners", "-o", "xml"], "invalid value 'xml' for '--output <OUTPUT>'", "--help"),
            (&["stoker", "bench", "a/f", "-c", "x"], "invalid value 'x' for", "--help"),
        ] {
            let error = crate::args::Cli::try_parse_from(line).expect_err("it is none");
            let failure = Failure::typed(&error);
            assert!(failure.what().starts_with(what), "{:?}", failure.what());
            let whole = format!("{} {}", failure.what(), failure.advice);
            assert!(whole.contains(advice) && !whole.contains('\n'), "{whole:?}");
            assert_eq!(failure.json()["code"], "INVALID_REQUEST");
            assert_eq!(failure.exit_code(), ExitCode::from(2), "as the parser's own");
        }
    }

    #[test]
    fn a_failed_call_is_named() {
        let lost = Error::new(Code::RunnerLost, "r1 was lost");
        let status = |id: &str| stoker_proto::status::to_status(&lost, id);
        let failure = Failure::from(status("01977c3e5d8a7b02a9a2c36f1d0e4b57"));
        let text = failure.text(output::Style::plain());
        assert!(text.contains("\n  call: 01977c3e5d8a7b02a9a2c36f1d0e4b57\n"), "{text}");
        assert_eq!(failure.json()["call_id"], "01977c3e5d8a7b02a9a2c36f1d0e4b57");
        let of_none = Failure::from(status(""));
        assert!(
            !of_none.text(output::Style::plain()).contains("call:")
                && of_none.json().get("call_id").is_none()
        );
    }

    #[test]
    fn programs_read_what_people_read() {
        let error = Error::new(Code::Overloaded, "full")
            .retry(Retry::After(Duration::from_millis(1500)))
            .log_tail("a\x1b[31m".to_owned());
        let failure = Failure::of(error);
        let json = failure.json();
        let of = |key: &str| json[key].to_string();
        assert_eq!((of("code"), of("blame")), ("\"OVERLOADED\"".into(), "\"platform\"".into()));
        assert_eq!((of("retry"), of("retry_after_ms")), ("\"after\"".into(), "1500".into()));
        let text = failure.text(output::Style::plain());
        assert!(text.starts_with("error: full\n  at fault: the platform\n  what to do: "), "{text}");
        assert!(!text.contains('\x1b'), "a function does not steer the terminal: {text:?}");
    }

    #[test]
    fn a_store_in_trouble_is_not_a_missing_runner() {
        let of = |error: Error| Failure::in_registry(&stoker_proto::status::to_status(&error, "")).advice;
        for code in [Code::Internal, Code::Unavailable] {
            let full = Error::new(code, "writing functions to /s/functions.json: No space left on device");
            assert!(of(full).starts_with("look after where functions are kept"), "{code:?}");
        }
        assert!(!of(Error::new(Code::NotFound, "no")).contains("kept"));
        let stopping = Error::new(Code::Unavailable, "this balancer is stopping").retry(Retry::Elsewhere);
        assert!(!of(stopping).contains("kept"));
    }

    #[test]
    fn an_older_balancer_is_told_apart_from_a_mistake() {
        let failure = Failure::from(tonic::Status::unimplemented("no such method"));
        assert!(failure.advice.contains("older than this command"), "{failure:?}");
        let ours = Error::new(Code::MethodNotAllowed, "POST only");
        assert_eq!(Failure::from(stoker_proto::status::to_status(&ours, "")).what(), "POST only");
    }
}
