//! What can go wrong with an image, and who can mend it.

use std::fmt;
use std::io;
use std::time::Duration;

use stoker_core::{Code, Retry};

/// Who can mend it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Whoever wrote the function: no registry has such an image.
    Missing,
    /// Whoever wrote the function: the registry does not give it to these credentials, or to those without.
    Denied,
    /// Whoever wrote the function: the image is damaged, hostile, over a limit or made for another machine, or its credentials are
    /// not here.
    Image,
    /// The registry, or the way to it: it does not answer, or answers that it cannot.
    Registry,
    /// This machine: its disk, its kernel, its settings.
    Store,
    /// The store has no room beside the images in use. It may have later; another machine may have now.
    Full,
    /// Nobody: the work was given up because nobody waited for it any more.
    Abandoned,
}

/// Why there is no image. The text is for people and has no secret in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// Who can mend it.
    pub fault: Fault,
    /// What was attempted, what went wrong, what would be right.
    pub message: String,
    /// The registry asks to be left alone for this long.
    pub retry_after: Option<Duration>,
}

pub(crate) type Result<T> = std::result::Result<T, Error>;

impl Error {
    fn new(fault: Fault, message: impl Into<String>) -> Self {
        Self { fault, message: message.into(), retry_after: None }
    }

    pub(crate) fn image(message: impl Into<String>) -> Self {
        Self::new(Fault::Image, message)
    }

    pub(crate) fn missing(message: impl Into<String>) -> Self {
        Self::new(Fault::Missing, message)
    }

    pub(crate) fn denied(message: impl Into<String>) -> Self {
        Self::new(Fault::Denied, message)
    }

    pub(crate) fn registry(message: impl Into<String>) -> Self {
        Self::new(Fault::Registry, message)
    }

    pub(crate) fn store(message: impl Into<String>) -> Self {
        Self::new(Fault::Store, message)
    }

    pub(crate) fn full(message: impl Into<String>) -> Self {
        Self::new(Fault::Full, message)
    }

    pub(crate) fn abandoned() -> Self {
        Self::new(Fault::Abandoned, "the image was not fetched: nobody waited for it any more")
    }

    /// A system call of ours that failed.
    pub(crate) fn system(step: impl fmt::Display, source: impl Into<io::Error>) -> Self {
        let source = source.into();
        if source.kind() == io::ErrorKind::StorageFull || source.kind() == io::ErrorKind::QuotaExceeded {
            return Self::full(format!("the image store's disk is full: {step}: {source}"));
        }
        Self::store(format!("the image store: {step}: {source}"))
    }

    /// With what it is about in front.
    pub(crate) fn about(mut self, what: impl fmt::Display) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }

    /// The error of a call whose function has this image.
    #[must_use]
    pub fn of_a_call(&self) -> stoker_core::Error {
        let (code, retry) = match self.fault {
            Fault::Missing | Fault::Denied | Fault::Image => (Code::FunctionInitFailed, Retry::Never),
            Fault::Registry => (Code::Unavailable, self.retry_after.map_or(Retry::Elsewhere, Retry::After)),
            Fault::Store | Fault::Full | Fault::Abandoned => (Code::Unavailable, Retry::Elsewhere),
        };
        stoker_core::Error::new(code, self.message.clone()).retry(retry)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

/// Carries an [`Error`] through a chain of [`io::Read`]s.
pub(crate) fn through_io(error: Error) -> io::Error {
    io::Error::other(error)
}

/// What a chain of readers failed with: an [`Error`] of ours that came through it, or bytes that cannot be understood, which are the
/// image's.
pub(crate) fn from_read(what: &str, error: io::Error) -> Error {
    // Some readers repeat what they could not understand: not here, where it may be anything.
    let text = error.to_string().lines().next().unwrap_or_default().to_owned();
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(error) = source {
        if let Some(ours) = error.downcast_ref::<Error>() {
            return ours.clone();
        }
        // An `io::Error` hides the error that it was made of behind itself.
        source = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    match error.raw_os_error() {
        Some(_) => Error::system(what, error),
        None => Error::image(format!("{what}: {text}")),
    }
}
