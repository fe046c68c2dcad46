//! Credentials in the form of Docker's `config.json`: for each registry a user and a password, a token, or a program that has them.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use stoker_core::ImageRef;
use stoker_core::ids::is_name;

use super::{HUB, Progress, helper};
use crate::error::{Error, Result};
use crate::found::{open_file, read_document};

/// For one registry. Never shown.
#[derive(Clone)]
pub(super) struct Credential {
    /// The file's.
    pub name: String,
    pub secret: Secret,
}

#[derive(Clone, PartialEq, Eq)]
pub(super) enum Secret {
    Password {
        user: String,
        password: String,
    },
    /// Gives tokens.
    Identity(String),
    /// Is one.
    Token(String),
}

impl Credential {
    /// Whether somebody who reads this text knows the secret.
    pub fn is_in(&self, text: &str) -> bool {
        let (Secret::Password { password: secret, .. } | Secret::Identity(secret) | Secret::Token(secret)) =
            &self.secret;
        !secret.is_empty() && text.contains(secret.as_str())
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential").field("name", &self.name).finish_non_exhaustive()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct File {
    auths: BTreeMap<String, Auth>,
    /// Programs, by registry.
    cred_helpers: BTreeMap<String, String>,
    /// The program for all others.
    creds_store: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Auth {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
    registrytoken: String,
}

/// Those of this name for this image.
pub(super) async fn find(
    directory: &Path,
    name: &str,
    image: &ImageRef,
    progress: &Progress,
) -> Result<Credential> {
    if !is_name(name) {
        return Err(Error::image(format!("{name:?} is not a name of credentials")));
    }
    let path = directory.join(name);
    if !path.try_exists().unwrap_or(true) {
        let path = path.display();
        return Err(Error::image(format!(
            "this machine has no credentials `{name}`: there is no file {path}"
        )));
    }
    let read = move || {
        let mut file = open_file(&path)?;
        let size = file.metadata().map_err(|error| Error::system("credentials", error))?.len();
        read_document(&mut file, 0, size, "credentials")
    };
    let bytes = tokio::task::spawn_blocking(read).await;
    let broken = |why: &str| Error::store(format!("the credentials `{name}` of this machine {why}"));
    let bytes = bytes.ok().and_then(Result::ok).ok_or_else(|| broken("cannot be read"))?;
    // What serde says could repeat what is in the file.
    let file: File =
        serde_json::from_slice(&bytes).map_err(|_| broken("are not like Docker's config.json"))?;
    let entry = choose(&file.auths, image);
    let here = entry.and_then(secret);
    let helper = match (choose(&file.cred_helpers, image), &here) {
        (None, None) => file.creds_store.as_ref(),
        (helper, _) => helper,
    };
    let secret = match (helper, here) {
        (Some(helper), _) => {
            let asked = helper::ask(helper, image);
            progress.awaiting(helper::program(helper), asked).await.map_err(|why| broken(&why))?
        }
        (None, Some(secret)) => secret,
        (None, None) if entry.is_some() => {
            return Err(broken("have no user and password, and no token, for this registry"));
        }
        (None, None) => {
            let host = image.registry();
            return Err(Error::image(format!("the credentials `{name}` have none for {host}")));
        }
    };
    Ok(Credential { name: name.to_owned(), secret })
}

/// The entry for this image: the one that says the most of its path.
fn choose<'a, T>(entries: &'a BTreeMap<String, T>, image: &ImageRef) -> Option<&'a T> {
    let whole = format!("{}/{}", image.registry(), image.repository());
    let fits = |key: &str| {
        let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
        let key = key.trim_end_matches('/');
        let key = key.strip_suffix("/v1").or_else(|| key.strip_suffix("/v2")).unwrap_or(key);
        let key = match key.split_once('/').unwrap_or((key, "")) {
            ("index.docker.io" | super::HUB_HOST, "") => HUB.to_owned(),
            _ => key.to_owned(),
        };
        let fits = whole == key || whole.strip_prefix(&key).is_some_and(|rest| rest.starts_with('/'));
        fits.then_some(key.len())
    };
    entries
        .iter()
        .filter_map(|(key, entry)| Some((fits(key)?, entry)))
        .max_by_key(|(length, _)| *length)
        .map(|(_, entry)| entry)
}

fn secret(auth: &Auth) -> Option<Secret> {
    if !auth.registrytoken.is_empty() {
        return Some(Secret::Token(auth.registrytoken.clone()));
    }
    if !auth.identitytoken.is_empty() {
        return Some(Secret::Identity(auth.identitytoken.clone()));
    }
    if !auth.username.is_empty() {
        return Some(Secret::Password { user: auth.username.clone(), password: auth.password.clone() });
    }
    let text = String::from_utf8(BASE64_STANDARD.decode(auth.auth.trim()).ok()?).ok()?;
    let (user, password) = text.split_once(':')?;
    Some(Secret::Password { user: user.to_owned(), password: password.trim_end_matches('\0').to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(file: &str, image: &str) -> Option<Secret> {
        let file: File = serde_json::from_str(file).unwrap();
        choose(&file.auths, &ImageRef::parse(image).unwrap()).and_then(secret)
    }

    fn password(user: &str, password: &str) -> Option<Secret> {
        Some(Secret::Password { user: user.into(), password: password.into() })
    }

    #[test]
    fn entries_are_found_as_docker_and_podman_write_them() {
        let file = r#"{"auths": {
            "https://index.docker.io/v1/": {"auth": "aHViOnNlY3JldDp3aXRoOmNvbG9ucw=="},
            "r.example": {"username": "all", "password": "p"},
            "r.example/team": {"username": "team", "password": "p"},
            "https://old.example/v2/": {"identitytoken": "i"},
            "127.0.0.1:5000": {"registrytoken": "t"},
            "broken.example": {"auth": "!"}
        }, "credsStore": "ignored"}"#;
        assert_eq!(found(file, "busybox"), password("hub", "secret:with:colons"));
        assert_eq!(found(file, "r.example/other/x"), password("all", "p"));
        assert_eq!(found(file, "r.example/team/x"), password("team", "p"));
        assert_eq!(found(file, "r.example/teams/x"), password("all", "p"));
        assert!(found(file, "old.example/x") == Some(Secret::Identity("i".into())));
        assert!(found(file, "127.0.0.1:5000/x") == Some(Secret::Token("t".into())));
        assert_eq!(found(file, "broken.example/x"), None);
        assert_eq!(found(file, "r.example.com/x"), None);
        assert_eq!(found(file, "127.0.0.1:50001/x"), None);
    }

    #[test]
    fn secrets_are_not_shown() {
        let credential = Credential {
            name: "n".into(),
            secret: Secret::Password { user: "u".into(), password: "hidden".into() },
        };
        assert!(!format!("{credential:?} {:?}", credential.secret).contains("hidden"));
    }
}
