//! Why a request is refused, as AWS says it: a status, a name in a header, and a body of which some kits read one spelling and some the other.

use bytes::Bytes;
use http::Response;
use http::header::HeaderValue;
use serde_json::json;
use stoker_core::error::{Code, Error};
use stoker_core::ids::CallId;
use stoker_registry::revisions::Refusal;

use super::super::{AnswerBody, challenge, retry_after};
use super::{ERROR_TYPE, plain};

/// Why a request is refused, and what AWS calls that where the error alone does not say it.
#[derive(Debug)]
pub struct Refused {
    pub error: Error,
    aws: Option<(u16, &'static str)>,
    /// Of a call over a limit: which one.
    reason: &'static str,
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self { error, aws: None, reason: "ConcurrentInvocationLimitExceeded" }
    }
}

/// What the registry does not do.
impl From<stoker_registry::Error> for Refused {
    fn from(error: stoker_registry::Error) -> Self {
        let said = Error::from(&error);
        let stoker_registry::Error::Refused(refusal) = error else { return said.into() };
        match refusal {
            Refusal::FunctionExists(name) => {
                Self::conflict(format!("Function already exist: {}", name.function()))
            }
            Refusal::AliasExists(_, alias) => Self::conflict(format!("Alias already exists: {alias}")),
            Refusal::InUse(..) => Self::aws(409, "ResourceConflictException", said),
            Refusal::Changed(_) => Self::changed(),
            _ => said.into(),
        }
    }
}

impl Refused {
    pub fn aws(status: u16, name: &'static str, error: Error) -> Self {
        Self { aws: Some((status, name)), ..Self::from(error) }
    }

    pub fn parameter(text: impl Into<String>) -> Self {
        Self::from(Error::new(Code::InvalidRequest, text))
    }

    pub fn content(text: impl Into<String>) -> Self {
        Self::aws(400, "InvalidRequestContentException", Error::new(Code::InvalidRequest, text))
    }

    pub fn conflict(text: impl Into<String>) -> Self {
        Self::aws(409, "ResourceConflictException", Error::new(Code::InvalidRequest, text))
    }

    pub fn missing(text: impl Into<String>) -> Self {
        Self::from(Error::new(Code::NotFound, text))
    }

    /// Stoker does not do it.
    pub fn unsupported(text: impl Into<String>) -> Self {
        Self::from(Error::new(Code::Unsupported, text))
    }

    /// The function is not any more as its caller saw it.
    pub fn changed() -> Self {
        let text = "The RevisionId provided does not match the latest RevisionId. Call the GetFunction API to retrieve the latest RevisionId";
        Self::aws(412, "PreconditionFailedException", Error::new(Code::InvalidRequest, text))
    }

    /// The call is one more than is reserved for its function.
    pub fn over_reserved(mut self) -> Self {
        self.reason = "ReservedFunctionConcurrentInvocationLimitExceeded";
        self
    }

    /// AWS has a name of its own for it.
    pub fn is_named(&self) -> bool {
        self.aws.is_some()
    }

    /// Status and name. What may have started must not be sent again, which SDKs do by themselves with every status from 500 on.
    pub fn name(&self) -> (u16, &'static str) {
        match self.error.code {
            _ if self.aws.is_some() => self.aws.unwrap_or_default(),
            Code::NotFound => (404, "ResourceNotFoundException"),
            Code::RequestTooLarge => (413, "RequestTooLargeException"),
            Code::Overloaded => (429, "TooManyRequestsException"),
            Code::MethodNotAllowed => (405, "MethodNotAllowedException"),
            Code::Unauthenticated => (403, "UnrecognizedClientException"),
            Code::PermissionDenied => (403, "AccessDeniedException"),
            Code::RateLimited => (429, "TooManyRequestsException"),
            _ if self.error.may_have_started => (409, "InvocationMayHaveStartedException"),
            Code::InvalidRequest | Code::HeadersTooLarge | Code::ResourcesImpossible | Code::Cancelled => {
                (400, "InvalidParameterValueException")
            }
            Code::Unsupported => (501, "NotImplementedException"),
            Code::Internal => (500, "ServiceException"),
            _ => (503, "ServiceException"),
        }
    }

    pub fn response(&self, id: CallId) -> Response<AnswerBody> {
        let (status, name) = self.name();
        let user = status < 500;
        let mut body = json!({"Type": if user { "User" } else { "Service" }});
        if self.error.code == Code::Overloaded {
            body["Reason"] = self.reason.into();
            body["message"] = "Rate Exceeded.".into();
        } else {
            body["Message"] = self.error.message.as_str().into();
            // Some kits read the one, some the other.
            body["message"] = self.error.message.as_str().into();
        }
        let mut response = plain(status, Bytes::from(body.to_string()), id);
        response.headers_mut().insert(ERROR_TYPE, HeaderValue::from_static(name));
        challenge(response.headers_mut(), self.error.code);
        retry_after(response.headers_mut(), self.error.retry);
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_have_started_is_not_sent_again_by_itself() {
        use stoker_core::machine::Listed as _;
        for code in Code::ALL {
            let error = Error::new(*code, "x").may_have_started();
            let (status, _) = Refused::from(error).name();
            let again = status >= 500 || status == 429;
            // These are said before anything has started.
            assert!(!again || matches!(code, Code::Overloaded | Code::RateLimited), "{code:?}: {status}");
        }
    }
}
