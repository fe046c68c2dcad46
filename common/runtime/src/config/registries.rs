//! How registries of images are asked, by runners that fetch from them and by balancers that put code there.

use std::path::PathBuf;

use super::kind::{PATH, REGISTRIES};
use super::{Key, Maybe};

/// Those that are asked without TLS.
pub static WITHOUT_TLS: Key<Vec<String>> = Key::new(
    "registry_without_tls",
    REGISTRIES,
    "",
    "Registries that are asked without TLS, beside those on loopback, as images name them: host or host:port",
);
/// Who signs their certificates.
pub static CA: Maybe<PathBuf> = Key::required(
    "registry_ca",
    PATH,
    "Authorities, in PEM form, that sign certificates of registries, beside those that the system trusts",
)
.optional();
