//! Images of functions that are applied: a name that may lead elsewhere tomorrow becomes one that leads to the same image for ever, on
//! every runner and after every restart.
//!
//! A balancer has neither images nor credentials, so it asks a runner. Who applies a function again asks again: that is how a newer image
//! of the same name comes in.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use stoker_core::error::{Blame, Code, Error, Retry};
use stoker_core::function::Root;
use stoker_core::{FunctionSpec, ImageRef};
use stoker_policy::placement;
use stoker_proto::runner::v1::ResolveImageRequest;
use stoker_proto::runner::v1::runner_service_client::RunnerServiceClient;
use tokio::time::Instant;
use tonic::Status;
use tonic::transport::Channel;

use crate::fleet::{Fleet, HANDSHAKE, Runner};
use crate::link::state::LinkState;

/// So many runners are asked for one image: what none of them can find out, the next cannot either.
const MOST: usize = 3;

/// How long one of them may take, which is how long its registry may.
const PATIENCE: Duration = Duration::from_secs(10);

/// Images asked for at once.
const AT_ONCE: usize = 8;

/// Why the images of functions are not known.
pub enum Unpinned {
    /// It is the functions' fault: which of them, and why.
    Wrong(Vec<(usize, String)>),
    /// Runners were asked, and could not find it out.
    Unanswered(Error),
    /// Nobody could be asked.
    Unasked(Error),
}

/// Writes the digest into each image that has none. All, or none.
pub async fn pin(fleet: &Fleet, specs: &mut [FunctionSpec]) -> Result<(), Unpinned> {
    let mut wanted: HashMap<(ImageRef, String), Vec<usize>> = HashMap::new();
    for (at, spec) in specs.iter().enumerate() {
        if let Root::Image(image) = &spec.root
            && !image.is_pinned()
        {
            wanted.entry((image.clone(), spec.credentials.clone())).or_default().push(at);
        }
    }
    let asked = wanted
        .into_iter()
        .map(|((image, credentials), at)| async move { (at, resolve(fleet, &image, &credentials).await) });
    let answers: Vec<_> = futures_util::stream::iter(asked).buffer_unordered(AT_ONCE).collect().await;
    let mut wrong = Vec::new();
    for (at, answer) in answers {
        match answer? {
            Ok(pinned) => at.iter().for_each(|at| specs[*at].root = Root::Image(pinned.clone())),
            Err(error) if error.blame() == Blame::Caller => {
                wrong.extend(at.into_iter().map(|at| (at, error.message.clone())));
            }
            Err(error) => return Err(Unpinned::Unanswered(error)),
        }
    }
    wrong.sort();
    if wrong.is_empty() { Ok(()) } else { Err(Unpinned::Wrong(wrong)) }
}

/// Asks one runner after the other. That the image itself is at fault outweighs that somebody could not be asked.
async fn resolve(
    fleet: &Fleet,
    image: &ImageRef,
    credentials: &str,
) -> Result<Result<ImageRef, Error>, Unpinned> {
    linked(fleet).await;
    let runners = fleet.runners();
    let mut connected: Vec<(&Arc<Runner>, Channel)> =
        runners.iter().filter_map(|runner| Some((runner, runner.channel()?))).collect();
    // The same image is asked of the same runner, others of others.
    let first = placement::key(image.to_string().as_bytes()) as usize % connected.len().max(1);
    connected.rotate_left(first);
    let mut told: Option<Error> = None;
    for (runner, channel) in connected.into_iter().take(MOST) {
        match ask(channel, image, credentials).await {
            Ok(pinned) => return Ok(Ok(pinned)),
            Err(status) => {
                let error = failed(image, &runner.name, &status);
                tracing::info!(runner = runner.name, %image, %error, "an image was not resolved");
                if told.as_ref().is_none_or(|told| told.blame() != Blame::Caller) {
                    told = Some(error);
                }
            }
        }
    }
    told.map(Err).ok_or_else(|| {
        let text = format!(
            "nobody can say what {image} is now: this balancer is connected to no runner. Start one, or write the image with its digest"
        );
        Unpinned::Unasked(Error::new(Code::Unavailable, text).retry(Retry::Elsewhere))
    })
}

/// Waits until there is a runner to ask, as long as one may be about to be.
async fn linked(fleet: &Fleet) {
    let mut changes = fleet.changes();
    let until = Instant::now() + HANDSHAKE;
    loop {
        changes.mark_unchanged();
        let runners = fleet.runners();
        let connected = runners.iter().any(|runner| runner.channel().is_some());
        if connected || !runners.iter().any(|runner| runner.link().0 == LinkState::Connecting) {
            return;
        }
        if tokio::time::timeout_at(until, changes.changed()).await.is_err() {
            return;
        }
    }
}

async fn ask(channel: Channel, image: &ImageRef, credentials: &str) -> Result<ImageRef, Status> {
    let request = ResolveImageRequest { reference: image.to_string(), credentials: credentials.to_owned() };
    let mut client = RunnerServiceClient::new(channel);
    let answer = tokio::time::timeout(PATIENCE, client.resolve_image(request)).await;
    let answer = answer.map_err(|_| Status::unavailable(format!("no answer within {PATIENCE:?}")))?;
    let pinned = answer?.into_inner().pinned;
    match ImageRef::parse(&pinned) {
        Ok(answer) if answer.is_pinned() && answer.unpinned() == *image => Ok(answer),
        _ => Err(Status::internal(format!("it answered {pinned:?}"))),
    }
}

/// Whose fault it is that a runner did not resolve an image.
fn failed(image: &ImageRef, runner: &str, status: &Status) -> Error {
    use tonic::Code as G;
    let said = status.message();
    match status.code() {
        G::InvalidArgument
        | G::NotFound
        | G::PermissionDenied
        | G::Unauthenticated
        | G::FailedPrecondition => Error::new(Code::InvalidRequest, format!("{image}: {said}")),
        code => {
            let text = match code {
                G::Unimplemented => format!("runner {runner} cannot say what {image} is now: {said}"),
                _ => format!("runner {runner} could not find out what {image} is now: {said}"),
            };
            Error::new(Code::Unavailable, text).retry(Retry::Elsewhere)
        }
    }
}
