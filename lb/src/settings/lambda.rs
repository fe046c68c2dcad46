//! AWS Lambda's API, as it is told: where code goes that comes as a zip, and what runs it.

use std::path::PathBuf;
use std::sync::Arc;

use stoker_core::ImageRef;
use stoker_core::cidr::Cidr;
use stoker_core::ids::is_name;
use stoker_image::{Publisher, RegistryConfig};
use stoker_runtime::config::kind::{CIDRS, PATH, TEXT};
use stoker_runtime::config::registries::{CA, WITHOUT_TLS};
use stoker_runtime::config::{Key, Kind, Maybe, Mistake, Settings, Table};

use crate::config::{LambdaCode, LambdaConfig, LambdaRuntimes};

static CODE: Maybe<Place> = Key::required(
    "lambda.code",
    Kind::one("DIR|oci://REPOSITORY", place),
    "Where code is kept that comes as a zip by AWS Lambda's API: a repository of a registry, or a directory that all balancers and runners see at this path",
)
.optional();
static CREDENTIALS: Maybe<String> = Key::required(
    "lambda.credentials",
    TEXT,
    "The credentials of that repository, a name in registry_credentials: here to write, on runners, in theirs, to read",
)
.optional();
static RUNTIMES: Maybe<PathBuf> = Key::required(
    "lambda.runtimes",
    PATH,
    "A file in JSON that says what runs it: {\"python3.12\": {\"image\": … or \"rootfs\": …, \"command\": […]}}; without one, with a directory, the host's programs do",
)
.optional();
static EMULATE: Maybe<String> = Key::required(
    "lambda.emulate",
    TEXT,
    "The function, app/function, that /2015-03-31/functions/function/invocations calls, with the words of the Runtime Interface Emulator",
)
.optional();
static TRUSTED_PROXIES: Key<Vec<Cidr>> = Key::new(
    "lambda.trusted_proxies",
    CIDRS,
    "",
    "Addresses and networks of proxies whose X-Forwarded-For, -Proto and -Port are believed: what handlers of the format `lambda` see as sourceIp",
);
static REGISTRY_CREDENTIALS: Maybe<PathBuf> = Key::required(
    "registry_credentials",
    PATH,
    "A directory of files like Docker's config.json, of which lambda.credentials names one",
)
.optional();

pub static KEYS: Table =
    &[&CODE, &CREDENTIALS, &RUNTIMES, &EMULATE, &TRUSTED_PROXIES, &REGISTRY_CREDENTIALS, &WITHOUT_TLS, &CA];

/// The value of `lambda.code`.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Directory(PathBuf),
    Repository(ImageRef),
}

fn place(text: &str) -> Result<Place, String> {
    match text.split_once("://") {
        None if text.starts_with('/') => Ok(Place::Directory(text.into())),
        None => Err(format!(
            "`{text}` is no absolute path, which runners must find too, and no repository: write oci://registry.example/team/code"
        )),
        Some(("oci", repository)) => {
            let image = ImageRef::parse(repository)?;
            // What is put there has tags of its own.
            match image.is_pinned() || image.to_string().len() != repository.len() + ":latest".len() {
                true => Err(format!(
                    "`{text}` is no repository: write oci://registry.example/team/code, with its registry and without a tag"
                )),
                false => Ok(Place::Repository(image)),
            }
        }
        Some((kind, _)) => {
            Err(format!("`{kind}://` is no kind of registry: write oci://registry.example/team/code"))
        }
    }
}

/// What it comes to, and what is wrong with it.
pub fn config(settings: &Settings, mistakes: &mut Vec<Mistake>) -> LambdaConfig {
    let place = settings.maybe(&CODE);
    let runtimes = settings.maybe(&RUNTIMES).map(|path| {
        let runtimes = LambdaRuntimes::read(&path)?;
        runtimes.check(matches!(place, Some(Place::Repository(_)))).map(|()| runtimes)
    });
    let runtimes = runtimes.transpose().unwrap_or_else(|why| {
        mistakes.push(settings.mistake(&RUNTIMES, why));
        None
    });
    let credentials = settings.maybe(&CREDENTIALS);
    match (&credentials, &place, settings.maybe(&REGISTRY_CREDENTIALS)) {
        (Some(name), ..) if !is_name(name) => {
            mistakes.push(
                settings.mistake(&CREDENTIALS, "is no name: it is that of a file in registry_credentials"),
            );
        }
        (Some(_), Some(Place::Repository(_)), Some(_)) | (None, ..) => {}
        (Some(_), Some(Place::Repository(_)), None) => {
            mistakes
                .push(settings.mistake(&CREDENTIALS, "has no directory to be in: give registry_credentials"));
        }
        (Some(_), ..) => {
            mistakes.push(settings.mistake(&CREDENTIALS, "is for a repository: write lambda.code: oci://…"));
        }
    }
    let code = place.and_then(|place| match place {
        Place::Directory(directory) => Some(LambdaCode::Directory(directory)),
        Place::Repository(repository) => {
            let registries = RegistryConfig {
                without_tls: settings.get(&WITHOUT_TLS),
                credentials: settings.maybe(&REGISTRY_CREDENTIALS),
                ca: settings.maybe(&CA),
            };
            match Publisher::new(registries, repository, credentials) {
                Ok(publisher) => Some(LambdaCode::Registry(Arc::new(publisher))),
                Err(why) => {
                    mistakes.push(settings.mistake(&CA, why.to_string()));
                    None
                }
            }
        }
    });
    let (emulate, trusted_proxies) = (settings.maybe(&EMULATE), settings.get(&TRUSTED_PROXIES));
    LambdaConfig { code, runtimes: runtimes.unwrap_or_default(), emulate, trusted_proxies }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_kept_in_a_directory_or_a_repository() {
        assert_eq!(place("/srv/code"), Ok(Place::Directory("/srv/code".into())));
        let repository = |text: &str| Ok(Place::Repository(ImageRef::parse(text).unwrap()));
        for text in ["registry.example/team/code", "localhost:5000/code", "registry.example:443/a/b/c"] {
            assert_eq!(place(&format!("oci://{text}")), repository(text), "{text}");
        }
        for wrong in [
            "srv/code",
            "",
            "oci://",
            "oci://registry.example/code:1",
            "oci://registry.example/Code",
            "oci://code",
            "https://registry.example/code",
            &format!("oci://registry.example/code@sha256:{}", "0".repeat(64)),
        ] {
            assert!(place(wrong).is_err(), "{wrong}");
        }
    }
}
