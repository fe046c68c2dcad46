//! SnapStart's half of a start: the runtime that is initialised waits to be told that it was restored from a snapshot, runs its hooks for
//! that, and gets its credentials anew by a request.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use stoker_core::machine::Machine as _;
use uuid::Uuid;

use crate::machine::{Event, State};
use crate::telemetry::{Api, ms};
use crate::{Failure, RuntimeApi, fault};

/// The keys of a function, and the word by which its processes get them.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    token: String,
    pub access_key: String,
    pub secret_key: String,
    pub session: String,
    /// RFC 3339.
    pub expiration: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credentials")
    }
}

impl Credentials {
    /// With a word that nobody else knows.
    #[must_use]
    pub fn new(access_key: String, secret_key: String, session: String, expiration: String) -> Self {
        Self { token: Uuid::now_v7().to_string(), access_key, secret_key, session, expiration }
    }

    /// The word.
    #[must_use]
    pub fn token(&self) -> &str {
        &self.token
    }

    /// As the API of containers gives them, to whoever knows the word.
    pub(crate) fn for_bearer(&self, said: Option<&str>) -> Option<Value> {
        (said == Some(&self.token)).then(|| {
            json!({
                "AccessKeyId": self.access_key,
                "SecretAccessKey": self.secret_key,
                "Token": self.session,
                "Expiration": self.expiration,
            })
        })
    }
}

impl RuntimeApi {
    /// Tells a runtime that waits for it that it was restored, and waits until it asks for an invocation. One that does not wait for
    /// it has no hooks, and is as good.
    ///
    /// # Errors
    /// A hook failed, as it says itself, or took longer than `within`.
    pub async fn restore(&self, within: Duration) -> Result<(), Failure> {
        let begun = Instant::now();
        {
            let mut inner = self.shared.lock();
            match inner.state.on(Event::Restored) {
                Ok(to) => inner.state = to,
                Err(_) => return Ok(()),
            }
        }
        let tell = |name: &str, record: &dyn Fn() -> Value| {
            self.shared.telemetry.platform(Some(Api::Telemetry), name, record);
        };
        tell("platform.restoreStart", &|| self.shared.start_record());
        self.shared.changed.notify_waiters();
        let asks = self.shared.until(|inner| match (inner.state, &inner.init_error) {
            (State::RestoreError, Some(failure)) => Some(Err(failure.clone())),
            (State::Restoring, _) => None,
            _ => Some(Ok(())),
        });
        let done = match tokio::time::timeout(within, asks).await {
            Ok(done) => done,
            Err(_) => {
                let text = format!("the hooks after a restore took longer than {within:?}");
                let body = fault::body("Runtime.RestoreHookUserTimeout", "", &text);
                Err(Failure::broken("Runtime.RestoreHookUserTimeout", body.into()))
            }
        };
        let status = if done.is_ok() { "success" } else { "error" };
        tell("platform.restoreRuntimeDone", &|| {
            let mut record = json!({ "status": status });
            if let Err(failure) = &done {
                record["errorType"] = json!(failure.kind);
            }
            record
        });
        tell(
            "platform.restoreReport",
            &|| json!({ "status": status, "metrics": { "durationMs": ms(begun.elapsed()) } }),
        );
        done
    }
}
