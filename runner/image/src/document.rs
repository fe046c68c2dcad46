//! Manifests, indexes and configurations: the JSON that leads from a name to layers. Docker's (schema 2) and OCI's are the same but
//! for their media types.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::limits;

/// What a registry is asked for, the newest first.
pub(crate) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

/// What is written here: OCI's.
pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const CONFIGURATION: &str = "application/vnd.oci.image.config.v1+json";
const DOCKERS_CONFIGURATION: &str = "application/vnd.docker.container.image.v1+json";
pub(crate) const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// Where a document leads on to.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Descriptor {
    #[serde(default, rename = "mediaType")]
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
    pub platform: Option<Platform>,
    #[serde(default, deserialize_with = "or_default")]
    pub annotations: BTreeMap<String, String>,
    /// Where else it can be had.
    #[serde(default, deserialize_with = "or_default")]
    pub urls: Vec<String>,
}

/// Which machine an image is for.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Platform {
    #[serde(default)]
    pub os: String,
    #[serde(default)]
    pub architecture: String,
    #[serde(default)]
    pub variant: String,
}

#[derive(Debug)]
pub(crate) enum Document {
    Index(Vec<Descriptor>),
    Manifest { config: Descriptor, layers: Vec<Descriptor> },
}

impl Document {
    /// Reads a manifest or an index.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Any {
            manifests: Option<Vec<Descriptor>>,
            config: Option<Descriptor>,
            layers: Option<Vec<Descriptor>>,
            fs_layers: Option<serde::de::IgnoredAny>,
        }
        let any: Any = serde_json::from_slice(bytes)
            .map_err(|error| Error::image(format!("its manifest cannot be understood: {error}")))?;
        match any {
            // Read one way by one program and another way by the next: the same digest must mean the same image to all.
            Any { manifests: Some(_), layers: Some(_), .. }
            | Any { manifests: Some(_), config: Some(_), .. } => {
                Err(Error::image("its manifest is an index too"))
            }
            Any { manifests: Some(manifests), .. } => {
                if manifests.len() > limits::MANIFESTS {
                    return Err(Error::image(format!(
                        "its index has more than {} manifests",
                        limits::MANIFESTS
                    )));
                }
                Ok(Document::Index(manifests))
            }
            Any { config: Some(config), layers: Some(layers), .. } => {
                if let Some(layer) = layers.iter().find(|layer| layer.media_type.ends_with("+encrypted")) {
                    let digest = layer.digest;
                    return Err(Error::image(format!(
                        "its layer {digest} is encrypted, which is not undone here"
                    )));
                }
                Ok(Document::Manifest { config, layers })
            }
            Any { fs_layers: Some(_), .. } => Err(Error::image(
                "its manifest is of Docker's first kind (schema 1), which is not trusted any more: push the image again",
            )),
            _ => Err(Error::image("its manifest is neither that of an image nor an index")),
        }
    }
}

impl Platform {
    /// That of this machine, in the words of images.
    pub fn here() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "x86" => "386",
            "aarch64" => "arm64",
            "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
            "loongarch64" => "loong64",
            other => other,
        };
        Self { os: "linux".into(), architecture: architecture.into(), variant: String::new() }
    }

    fn fits(&self, here: &Platform) -> bool {
        self.os == here.os && self.machine() == here.architecture
    }

    /// The architecture as images are to call it: some are made by hand, in the words of the system.
    fn machine(&self) -> &str {
        match self.architecture.as_str() {
            "x86_64" | "x86-64" => "amd64",
            "aarch64" => "arm64",
            machine => machine,
        }
    }

    /// Whether it is said of what no machine runs, of statements about an image among them.
    fn is_none(&self) -> bool {
        self.os == "unknown"
    }

    /// Variants go from what every such machine runs to what only some do: the plainest is safe.
    fn rank(&self) -> (&str, usize) {
        (&self.variant, self.variant.len())
    }
}

/// The one of an index that this machine can run.
pub(crate) fn choose<'a>(manifests: &'a [Descriptor], here: &Platform) -> Result<&'a Descriptor> {
    let fitting = manifests.iter().filter(|m| m.platform.as_ref().is_some_and(|p| p.fits(here)));
    let best = fitting.min_by_key(|m| m.platform.as_ref().map(Platform::rank));
    // An index of one image says nothing more than that image does.
    let only = || {
        let mut images = manifests.iter().filter(|m| !m.platform.as_ref().is_some_and(Platform::is_none));
        images.next().filter(|image| image.platform.is_none() && images.next().is_none())
    };
    best.or_else(only).ok_or_else(|| {
        let mut there: Vec<String> = manifests
            .iter()
            .filter_map(|m| m.platform.as_ref())
            .filter(|p| !p.is_none())
            .map(|p| format!("{}/{}", p.os, p.architecture))
            .take(20)
            .collect();
        there.dedup();
        let there = if there.is_empty() { "no machine that it names".to_owned() } else { there.join(", ") };
        Error::image(format!("it is not made for {}/{}, but for {there}", here.os, here.architecture))
    })
}

/// What an image says about itself.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Configuration {
    #[serde(flatten)]
    pub platform: Platform,
    #[serde(default, deserialize_with = "or_default")]
    pub config: Settings,
    pub rootfs: RootFs,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct RootFs {
    #[serde(default, deserialize_with = "or_default")]
    pub diff_ids: Vec<Digest>,
}

/// How its program is to be run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, serde::Serialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Settings {
    #[serde(deserialize_with = "or_default")]
    pub user: String,
    #[serde(deserialize_with = "or_default")]
    pub env: Vec<String>,
    #[serde(deserialize_with = "words")]
    pub entrypoint: Vec<String>,
    #[serde(deserialize_with = "words")]
    pub cmd: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub working_dir: String,
    #[serde(deserialize_with = "or_default")]
    pub stop_signal: String,
}

/// Go writes what is empty as null.
fn or_default<'de, D, T>(from: D) -> std::result::Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Option::deserialize(from).map(Option::unwrap_or_default)
}

/// Old images have one word where a list should be: Docker takes it for a list of one.
fn words<'de, D: serde::Deserializer<'de>>(from: D) -> std::result::Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "a list of words")]
    enum Words {
        Many(Vec<String>),
        One(String),
    }
    Ok(match Option::deserialize(from)? {
        None => Vec::new(),
        Some(Words::Many(words)) => words,
        Some(Words::One(word)) => vec![word],
    })
}

impl Configuration {
    /// Reads a configuration, if it is that of an image for this machine. What its manifest says of its kind is used to say what else it is.
    pub fn parse(bytes: &[u8], kind: &str) -> Result<Self> {
        let configuration: Self = serde_json::from_slice(bytes).map_err(|error| {
            let known = ["", "application/octet-stream", CONFIGURATION, DOCKERS_CONFIGURATION];
            Error::image(match known.contains(&kind) {
                true => format!("its configuration cannot be understood: {error}"),
                false => format!(
                    "it is no image of a container: its manifest calls its configuration {kind:?}, not {CONFIGURATION:?}"
                ),
            })
        })?;
        let (is, here) = (&configuration.platform, Platform::here());
        let other = |is: &str, here: &str| !is.is_empty() && is != here;
        if other(&is.os, &here.os) || other(is.machine(), &here.architecture) {
            return Err(Error::image(format!(
                "it is made for {}/{}, and this machine is {}/{}",
                is.os, is.architecture, here.os, here.architecture
            )));
        }
        let layers = configuration.rootfs.diff_ids.len();
        if layers == 0 || layers > limits::LAYERS {
            return Err(Error::image(format!("it has {layers} layers: 1 to {} can be used", limits::LAYERS)));
        }
        Ok(configuration)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(text: &str) -> String {
        Digest::of(text.as_bytes()).to_string()
    }

    fn index(platforms: &[(&str, &str, &str)]) -> Vec<Descriptor> {
        let manifests: Vec<_> = platforms
            .iter()
            .map(|(os, architecture, variant)| {
                serde_json::json!({
                    "digest": digest(&format!("{os}{architecture}{variant}")), "size": 1,
                    "platform": {"os": os, "architecture": architecture, "variant": variant},
                })
            })
            .collect();
        match Document::parse(serde_json::json!({"manifests": manifests}).to_string().as_bytes()).unwrap() {
            Document::Index(manifests) => manifests,
            Document::Manifest { .. } => panic!("it is an index"),
        }
    }

    #[test]
    fn the_plainest_fitting_variant_is_taken() {
        let here = Platform { os: "linux".into(), architecture: "arm".into(), variant: String::new() };
        let manifests = index(&[
            ("unknown", "unknown", ""),
            ("windows", "arm", ""),
            ("linux", "arm", "v7"),
            ("linux", "arm", "v5"),
            ("linux", "amd64", ""),
        ]);
        let chosen = choose(&manifests, &here).unwrap();
        assert_eq!(chosen.digest.to_string(), digest("linuxarmv5"));
        let other = Platform { architecture: "s390x".into(), ..here.clone() };
        let error = choose(&manifests, &other).unwrap_err();
        assert!(error.message.contains("linux/s390x") && error.message.contains("linux/arm"), "{error}");
        assert!(!error.message.contains("unknown"), "{error}");
    }

    #[test]
    fn what_is_two_things_is_neither() {
        let one = serde_json::json!({"digest": digest("a"), "size": 1});
        let both = serde_json::json!({"manifests": [one], "layers": [one], "config": one});
        assert!(Document::parse(both.to_string().as_bytes()).unwrap_err().message.contains("index too"));
        let half = serde_json::json!({"manifests": [one], "config": one});
        assert!(Document::parse(half.to_string().as_bytes()).is_err());
        let old = serde_json::json!({"schemaVersion": 1, "fsLayers": []});
        assert!(Document::parse(old.to_string().as_bytes()).unwrap_err().message.contains("schema 1"));
        for bad in ["", "[]", "{}", "{\"layers\": []}", "null"] {
            assert!(Document::parse(bad.as_bytes()).is_err(), "{bad}");
        }
        let long = serde_json::json!({"config": {"digest": "sha512:00", "size": 1}, "layers": []});
        assert!(Document::parse(long.to_string().as_bytes()).unwrap_err().message.contains("sha256"));
    }

    #[test]
    fn configurations_for_other_machines_are_named() {
        let text = |architecture: &str| {
            serde_json::json!({
                "architecture": architecture, "os": "linux", "config": {"Env": null, "Cmd": ["a"], "Labels": {"x": "y"}},
                "rootfs": {"type": "layers", "diff_ids": [digest("layer")]},
            })
            .to_string()
        };
        let here = Platform::here().architecture;
        let read = Configuration::parse(text(&here).as_bytes(), CONFIGURATION).unwrap();
        assert_eq!(read.config.cmd, ["a"]);
        assert!(Configuration::parse(text("").as_bytes(), "").is_ok());
        let error = Configuration::parse(text("pdp11").as_bytes(), "").unwrap_err();
        assert!(error.message.contains("linux/pdp11"), "{error}");
        let none = serde_json::json!({"rootfs": {"diff_ids": null}});
        let error = Configuration::parse(none.to_string().as_bytes(), CONFIGURATION).unwrap_err();
        assert!(error.message.contains("0 layers"), "{error}");
    }

    #[test]
    fn what_is_no_image_is_called_what_it_is() {
        let empty = "application/vnd.oci.empty.v1+json";
        let error = Configuration::parse(b"{}", empty).unwrap_err();
        assert!(error.message.contains("no image") && error.message.contains(empty), "{error}");
        for kind in ["", CONFIGURATION, DOCKERS_CONFIGURATION] {
            let error = Configuration::parse(b"{}", kind).unwrap_err();
            assert!(error.message.contains("missing field `rootfs`"), "{error}");
        }
        let layer = serde_json::json!({"digest": digest("l"), "size": 1, "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip+encrypted"});
        let manifest =
            serde_json::json!({"config": {"digest": digest("c"), "size": 1}, "layers": [layer]}).to_string();
        assert!(Document::parse(manifest.as_bytes()).unwrap_err().message.contains("is encrypted"));
    }

    #[test]
    fn one_word_is_a_list_of_one_and_systems_words_for_machines_are_known() {
        let here = if cfg!(target_arch = "x86_64") { "x86_64" } else { std::env::consts::ARCH };
        let text = serde_json::json!({
            "architecture": here, "os": "linux", "config": {"Entrypoint": "/bin/a b", "Cmd": null},
            "rootfs": {"diff_ids": [digest("layer")]},
        });
        let read = Configuration::parse(text.to_string().as_bytes(), CONFIGURATION).unwrap();
        assert_eq!((read.config.entrypoint, read.config.cmd), (vec!["/bin/a b".to_owned()], Vec::new()));
        let wrong = text.to_string().replace("\"/bin/a b\"", "7");
        let error = Configuration::parse(wrong.as_bytes(), CONFIGURATION).unwrap_err();
        assert!(error.message.contains("a list of words"), "{error}");
    }

    #[test]
    fn statements_about_an_image_do_not_hide_it() {
        let mut manifests =
            index(&[("unknown", "unknown", ""), ("linux", "x", ""), ("unknown", "unknown", "v")]);
        manifests[1].platform = None;
        let chosen = choose(&manifests, &Platform::here()).unwrap();
        assert_eq!(chosen.digest, manifests[1].digest);
        manifests[2].platform = None;
        assert!(choose(&manifests, &Platform::here()).is_err(), "which of the two is meant, nobody says");
    }
}
