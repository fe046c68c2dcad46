//! How a command fails: what happened, whose fault it is, what to do. Printed to STDERR, told in the exit code.

use std::process::ExitCode;

use stoker_core::{Blame, Code, Error, Retry};

/// Why a command did not succeed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What was attempted and what went wrong; may have several lines.
    pub what: String,
    pub blame: Blame,
    /// What to do about it; empty if nothing useful can be said.
    pub advice: String,
    /// What the function wrote last.
    pub log_tail: String,
}

impl Failure {
    /// The user's own doing.
    pub fn usage(what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { what: what.into(), blame: Blame::Caller, advice: advice.into(), log_tail: String::new() }
    }

    /// Stoker's or the machine's.
    pub fn platform(what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { blame: Blame::Platform, ..Self::usage(what, advice) }
    }

    /// A call's or an operation's one error.
    pub fn of(error: Error) -> Self {
        let advice = advice(&error);
        Self { what: error.message.clone(), blame: error.blame(), advice, log_tail: error.log_tail }
    }

    /// To STDERR.
    pub fn print(&self) {
        let style = crate::output::Style::stderr();
        eprintln!("{} {}", style.red("error:"), self.what);
        let who = match self.blame {
            Blame::Caller => "the request",
            Blame::Function => "the function",
            Blame::Platform => "the platform",
        };
        eprintln!("  {} {who}", style.dim("at fault:"));
        if !self.advice.is_empty() {
            eprintln!("  {} {}", style.dim("what to do:"), self.advice);
        }
        if !self.log_tail.is_empty() {
            eprintln!("  {}", style.dim("the function's last words:"));
            self.log_tail.lines().for_each(|line| eprintln!("    {line}"));
        }
    }

    /// 1, 2, 3: the function, the request, the platform.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self.blame {
            Blame::Function => 1,
            Blame::Caller => 2,
            Blame::Platform => 3,
        })
    }
}

impl From<tonic::Status> for Failure {
    fn from(status: tonic::Status) -> Self {
        Self::of(stoker_proto::status::from_status(&status))
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::platform(format!("{error:#}"), "")
    }
}

fn advice(error: &Error) -> String {
    let by_code = match error.code {
        Code::NotFound => "see `stoker functions` for what there is",
        Code::FunctionTimeout => "make the function faster, or raise `timeout` in its file",
        Code::FunctionOutOfMemory => "raise `memory` in the function's file",
        Code::FunctionInitTimeout => {
            "check that the function listens on the socket in FN_LISTENER, or raise `init_timeout` in its file"
        }
        Code::FunctionInitFailed => "check `command` and `workdir` in the function's file",
        Code::FunctionCrashed | Code::FunctionFailed | Code::FunctionInvalidResponse => {
            "see `stoker logs` for what the function wrote"
        }
        Code::ResourcesImpossible => {
            "lower `memory` or `cpu` in the function's file, or start larger runners"
        }
        Code::Unavailable => "see `stoker runners`; start one with `stoker up`",
        Code::Internal => "this is a mistake in Stoker: please report it",
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
    use stoker_core::machine::Listed as _;

    #[test]
    fn exit_codes_tell_whose_fault_it_is() {
        for code in Code::ALL {
            let failure = Failure::of(Error::new(*code, "what"));
            assert_eq!(failure.blame, code.blame());
            assert_ne!(failure.exit_code(), ExitCode::SUCCESS);
        }
    }
}
