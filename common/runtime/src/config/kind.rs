//! Kinds of values: how each is written, and what a text must look like to be one.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use stoker_core::cidr::Cidr;
use stoker_core::{ImageRef, units};

use super::{Item, Problems, words};

/// How a value stands in a file and on a command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// One text.
    One,
    /// `true` or `false`; the flag alone means `true`.
    Switch,
    /// A list; as one text with commas; as a flag also several times.
    List,
    /// A mapping; as one text like `a=b,c=d`; as a flag also several times.
    Map,
}

/// How texts become a value of this type.
#[derive(Debug)]
pub struct Kind<T: 'static> {
    /// What stands for the value in the help, and in what would be right.
    pub(super) what: &'static str,
    pub(super) shape: Shape,
    read: Read<T>,
}

#[derive(Debug)]
enum Read<T: 'static> {
    One(fn(&str) -> Result<T, String>),
    Choice(&'static [(&'static str, T)]),
    Items(fn(&[Item]) -> Result<T, Problems>),
}

impl<T> Kind<T> {
    /// One text, read by `read`, whose error says what is wrong and what would be right.
    pub const fn one(what: &'static str, read: fn(&str) -> Result<T, String>) -> Self {
        Self { what, shape: Shape::One, read: Read::One(read) }
    }

    /// One of these words; `what` shows them in the help, like `auto|native`.
    pub const fn choice(what: &'static str, words: &'static [(&'static str, T)]) -> Self {
        Self { what, shape: Shape::One, read: Read::Choice(words) }
    }

    const fn items(what: &'static str, shape: Shape, read: fn(&[Item]) -> Result<T, Problems>) -> Self {
        Self { what, shape, read: Read::Items(read) }
    }
}

impl<T: Clone> Kind<T> {
    pub(super) fn read(&self, items: &[Item]) -> Result<T, Problems> {
        let text = items.first().map_or("", |item| item.text.as_str());
        let one = match &self.read {
            Read::Items(read) => return read(items),
            Read::One(read) => read(text),
            Read::Choice(choices) => {
                let chosen = choices.iter().find(|(word, _)| *word == text).map(|(_, value)| value.clone());
                let names = || choices.iter().map(|(word, _)| *word);
                chosen.ok_or_else(|| match words::nearest(text, names()) {
                    Some(near) => format!("`{text}` is not a choice: did you mean `{near}`?"),
                    None => format!("`{text}` is not a choice: write {}", words::or(names())),
                })
            }
        };
        one.map_err(|problem| vec![(0, problem)])
    }
}

/// Any text but an empty one.
pub const TEXT: Kind<String> = Kind::one("TEXT", |text| match text {
    "" => Err("is empty: write a text, or leave it out".to_owned()),
    text => Ok(text.to_owned()),
});

/// Bytes, with a unit.
pub const SIZE: Kind<u64> = Kind::one("SIZE", |text| match text.parse::<u64>() {
    // 128 alone is 128 bytes to the parser, and never what was meant.
    Ok(number) if number > 0 => Err(format!("`{text}` has no unit: write it like {text}MiB")),
    _ => units::parse_size(text),
});

/// A share of CPU, in thousandths of a core.
pub const CPU: Kind<u32> = Kind::one("CPU", units::parse_cpu);

/// A time, with a unit.
pub const DURATION: Kind<Duration> = Kind::one("TIME", |text| match text.parse::<u64>() {
    Ok(_) => Err(format!("`{text}` has no unit: write it like {text}s")),
    Err(_) => units::parse_duration(text),
});

/// A whole number from 1.
pub const COUNT: Kind<usize> = Kind::one("N", |text| match text.parse() {
    Ok(number) if number > 0 => Ok(number),
    _ => Err(format!("`{text}` is not a number from 1: write it like 8")),
});

/// A number from 0 to 1.
pub const RATIO: Kind<f64> = Kind::one("RATIO", |text| match text.parse() {
    Ok(ratio) if (0.0..=1.0).contains(&ratio) => Ok(ratio),
    _ => Err(format!("`{text}` is not a number from 0 to 1: write 0.05 for a twentieth")),
});

/// Whether or not.
pub const TRUTH: Kind<bool> = Kind {
    what: "true|false",
    shape: Shape::Switch,
    read: Read::One(|text| match text {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(format!("`{text}` is neither true nor false")),
    }),
};

/// An address of this machine to listen on.
pub const ADDRESS: Kind<SocketAddr> = Kind::one("IP:PORT", |text| {
    text.parse().map_err(|_| {
        let port = text.rsplit(':').next().and_then(|port| port.parse::<u16>().ok()).unwrap_or(7070);
        format!(
            "`{text}` is not an address: write an IP address and a port, like 127.0.0.1:{port}, or 0.0.0.0:{port} for all"
        )
    })
});

/// A file or a directory.
pub const PATH: Kind<PathBuf> = Kind::one("PATH", |text| match text {
    "" => Err("is empty: write a path".to_owned()),
    text => Ok(PathBuf::from(text)),
});

/// `http://host:port`, or `https://host:port`.
pub const SERVER: Kind<String> = Kind::one("URL", server);

/// Several of them.
pub const SERVERS: Kind<Vec<String>> = Kind::items("URL,…", Shape::List, |items| {
    let read = items.iter().map(|item| server(&item.text));
    collect(read)
});

/// Several registries of images, as images name them.
pub const REGISTRIES: Kind<Vec<String>> = Kind::items("HOST,…", Shape::List, |items| {
    let read = items.iter().map(|item| match ImageRef::parse(&format!("{}/x", item.text)) {
        Ok(image) if image.registry() == item.text => Ok(item.text.clone()),
        _ => Err(format!(
            "`{}` is not a registry: write it as images name it, like registry.example:5000",
            item.text
        )),
    });
    collect(read)
});

/// Several addresses, or networks of them.
pub const CIDRS: Kind<Vec<Cidr>> =
    Kind::items("CIDR,…", Shape::List, |items| collect(items.iter().map(|item| item.text.parse())));

/// Several addresses.
pub const ADDRESSES: Kind<Vec<IpAddr>> = Kind::items("IP,…", Shape::List, |items| {
    let wrong = |text: &str| format!("`{text}` is no address: write it like 10.0.0.7 or fd00::7");
    collect(items.iter().map(|item| item.text.parse().map_err(|_| wrong(&item.text))))
});

/// Names with a text each.
pub const MAP: Kind<BTreeMap<String, String>> = Kind::items("NAME=TEXT,…", Shape::Map, |items| {
    let mut seen = BTreeMap::new();
    let read = items.iter().map(|item| {
        if item.key.is_empty() {
            return Err(format!("`{}` has no name: write it like name=text", item.text));
        }
        match seen.insert(item.key.clone(), ()) {
            None => Ok((item.key.clone(), item.text.clone())),
            Some(()) => Err(format!("`{}` stands here twice", item.key)),
        }
    });
    collect::<_, Vec<_>>(read).map(BTreeMap::from_iter)
});

/// All values, or all mistakes.
fn collect<T, C: FromIterator<T>>(read: impl Iterator<Item = Result<T, String>>) -> Result<C, Problems> {
    let mut problems = Vec::new();
    let values = read
        .enumerate()
        .filter_map(|(number, value)| value.map_err(|problem| problems.push((number, problem))).ok())
        .collect();
    if problems.is_empty() { Ok(values) } else { Err(problems) }
}

fn server(text: &str) -> Result<String, String> {
    let wrong = |what: &str| Err(format!("`{text}` {what}: write it like http://host:port"));
    let uri = uri(text);
    // A URL is shown in settings and logs, and one with a password in it is often none: what stands before its last @ may be anything.
    if text.contains('@') && uri.as_ref().is_none_or(has_user) {
        return Err("has a user or a password in it, where everybody sees it: leave them out".to_owned());
    }
    let Some(uri) = uri else { return wrong("is not a URL") };
    match (uri.scheme_str(), uri.host()) {
        (Some("http" | "https"), Some(host)) if !host.is_empty() => Ok(text.to_owned()),
        _ => wrong("is not a URL of a server"),
    }
}

/// A URL as it is meant: whoever asks for the port of one whose port is no number is told that it has none.
pub(crate) fn uri(text: &str) -> Option<http::Uri> {
    let uri = text.parse::<http::Uri>().ok()?;
    let portless = |all: &http::uri::Authority| all.as_str().rsplit('@').next() == Some(all.host());
    let sound = uri.authority().is_none_or(|all| all.port().is_some() || portless(all));
    sound.then_some(uri)
}

fn has_user(uri: &http::Uri) -> bool {
    uri.authority().is_some_and(|authority| authority.as_str().contains('@'))
}
