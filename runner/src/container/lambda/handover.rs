//! How a container that asks for its calls goes over to the program that takes this process's place.
//!
//! Its API goes over with the requests that stand on its connections ([`stoker_lambda::Handed`]). What has more than that to it starts anew: extensions that
//! are processes of their own, whose ends somebody must hear of; those that subscribe to telemetry, which may be on its way; and a start
//! as from a snapshot, which has keys that are kept nowhere else.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use stoker_lambda::{Asks, Handed, Kind, Known, RuntimeApi};
use stoker_sandbox::handover::{FdNumber, InheritedFds, PassedFds};

use super::{Asking, Plan, keys};
use crate::container::{Container, RETURN};

/// What it asked for is read from memory: longer than this takes only what is broken.
const AGAIN: Duration = Duration::from_secs(10);

/// Its API as it is handed over.
#[derive(Debug, Serialize, Deserialize)]
pub struct HandedApi {
    listener: FdNumber,
    connections: Vec<(FdNumber, Option<Asks>)>,
    known: Known,
    /// It was there before a call came.
    provisioned: bool,
    no_extensions: bool,
}

impl Asking {
    /// Stops its API, and says what the next program needs to go on with it. One that has just answered has a moment to ask for more.
    ///
    /// # Errors
    /// Why it cannot be handed over.
    pub(in crate::container) async fn hand_over(&self, passed: &mut PassedFds) -> Result<HandedApi, String> {
        let Plan { kind, extensions, no_extensions, .. } = &self.plan;
        if !extensions.is_empty() {
            return Err("it has extensions that are processes of their own".to_owned());
        }
        if *kind == Kind::SnapStart {
            return Err("it was started as from a snapshot".to_owned());
        }
        let api = self.api();
        // Whatever comes of it, the API says why.
        _ = tokio::time::timeout(RETURN, api.idle()).await;
        let Handed { listener, connections, known } = api.hand_over()?;
        let mut keep = |descriptor| passed.keep(descriptor).map_err(|error| error.to_string());
        let listener = keep(listener)?;
        let connections = connections.into_iter().map(|(socket, asks)| Ok((keep(socket)?, asks)));
        let connections = connections.collect::<Result<_, String>>()?;
        let (provisioned, no_extensions) = (*kind == Kind::Provisioned, *no_extensions);
        Ok(HandedApi { listener, connections, known, provisioned, no_extensions })
    }
}

impl Container {
    /// Goes on with an API of the process's former program.
    ///
    /// # Errors
    /// Why that cannot be.
    pub(in crate::container) async fn take_up_api(
        &self,
        handed: HandedApi,
        inherited: &mut InheritedFds,
    ) -> Result<Asking, String> {
        let HandedApi { listener, connections, known, provisioned, no_extensions } = handed;
        let mut take = |kept| inherited.take(kept).map_err(|error| error.to_string());
        let listener = take(listener)?;
        let connections = connections.into_iter().map(|(kept, asks)| Ok((take(kept)?, asks)));
        let connections = connections.collect::<Result<_, String>>()?;
        let kind = if provisioned { Kind::Provisioned } else { Kind::OnDemand };
        let (extensions, env, credentials) = (Vec::new(), Vec::new(), None);
        let plan = Plan { kind, extensions, no_extensions, env, credentials, hooks: keys::HOOKS_TAKE };
        let handed = Handed { listener, connections, known };
        let api = RuntimeApi::take_up(handed, self.about(&plan, false)).map_err(|error| error.to_string())?;
        match tokio::time::timeout(AGAIN, api.idle()).await {
            Ok(Ok(())) => Ok(Asking { plan, api: Mutex::new(Arc::new(api)), again: None }),
            Ok(Err(failure)) => Err(failure.told()),
            Err(_) => Err("it does not ask for its next invocation any more".to_owned()),
        }
    }
}
