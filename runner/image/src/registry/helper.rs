//! Docker's credential helpers: programs that give credentials for a registry, as clouds have them for tokens that last some hours.

use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use stoker_core::ImageRef;
use stoker_core::ids::is_name;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;

use super::HUB;
use super::credentials::Secret;

/// One that takes longer does not work.
const LIMIT: Duration = Duration::from_secs(30);
/// The longest answer.
const LARGEST: u64 = 64 << 10;
/// The name of a user that says that the secret is an identity token.
const TOKEN: &str = "<token>";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

/// What a helper is called.
pub(super) fn program(name: &str) -> String {
    format!("docker-credential-{name}")
}

/// What `docker-credential-NAME` has for an image's registry. The error is for whoever runs this machine, and has nothing in it that the
/// program said: that could be the secret.
pub(super) async fn ask(name: &str, image: &ImageRef) -> Result<Secret, String> {
    if !is_name(name) {
        return Err(format!("name a helper {name:?}, which cannot be one's name"));
    }
    let registry = match image.registry() {
        HUB => "https://index.docker.io/v1/",
        other => other,
    };
    let program = program(name);
    let run = async {
        let mut child = Command::new(&program)
            .arg("get")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        if let Some(mut stdin) = stdin {
            // One that knows its registry need not read which it is.
            stdin.write_all(format!("{registry}\n").as_bytes()).await.ok();
        }
        let mut said = Vec::new();
        if let Some(stdout) = stdout {
            stdout.take(LARGEST).read_to_end(&mut said).await?;
        }
        // Whatever more it says breaks its pipe.
        Ok((child.wait().await?, said))
    };
    let by_hand = format!("try `echo {registry} | {program} get`");
    let ran: std::io::Result<_> = tokio::time::timeout(LIMIT, run)
        .await
        .map_err(|_| format!("ask {program}, which did not answer in {LIMIT:?}: {by_hand}"))?;
    let (status, said) = ran.map_err(|error| format!("ask {program}, which cannot be run: {error}"))?;
    if !status.success() {
        return Err(format!("ask {program}, which has none for {registry} ({status}): {by_hand}"));
    }
    let Answer { username, secret } = serde_json::from_slice(&said)
        .map_err(|_| format!("ask {program}, which does not answer as a helper does: {by_hand}"))?;
    Ok(match username.as_str() {
        TOKEN => Secret::Identity(secret),
        _ => Secret::Password { user: username, password: secret },
    })
}
