//! The access file: its words, and every mistake in it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use stoker_core::moment;

use super::jwt::{Condition, Issuer, Source};
use super::{Access, Grants, Identity, Limit, Pattern, Secret};
use crate::config::kind::uri;
use crate::yaml::{Fields, Node, Reader};

/// Most of what stands in one list.
const MANY: usize = 10_000;

const GRANTS: [&str; 3] = ["invoke", "manage", "observe"];

pub fn read(path: &Path, text: &str) -> Result<Access, String> {
    let mut reader = Reader::new(path);
    let mut access = Access {
        tokens: HashMap::new(),
        certificates: HashMap::new(),
        keys: HashMap::new(),
        issuers: Vec::new(),
        anybody: None,
        limits: Vec::new(),
        files: Vec::new(),
        remembered: Mutex::default(),
    };
    if let Some(document) = reader.document(text, "write all of it in one") {
        let keys = ["tokens", "certificates", "access_keys", "jwt", "anybody", "limits"];
        let fields = reader.fields("the access file", &document, &keys);
        for node in entries(&mut reader, &fields, "tokens") {
            token(&mut reader, node, &mut access);
        }
        for node in entries(&mut reader, &fields, "certificates") {
            certificate(&mut reader, node, &mut access);
        }
        for node in entries(&mut reader, &fields, "access_keys") {
            access_key(&mut reader, path, node, &mut access);
        }
        for node in entries(&mut reader, &fields, "jwt") {
            let issuer = issuer(&mut reader, path, node, &mut access.files);
            access.issuers.extend(issuer.map(Arc::new));
        }
        if let Some(node) = fields.get("anybody") {
            let fields = reader.fields("`anybody`", node, &GRANTS);
            let grants = grants(&mut reader, &fields);
            access.anybody = Some(known("anybody".to_owned(), grants));
        }
        for node in entries(&mut reader, &fields, "limits") {
            access.limits.extend(limit(&mut reader, node));
        }
    }
    let mistakes = reader.finish();
    let lines = || mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    if mistakes.is_empty() { Ok(access) } else { Err(lines()) }
}

fn entries<'n, 'y>(reader: &mut Reader<'_>, fields: &Fields<'n, 'y>, key: &str) -> &'n [Node<'y>] {
    let Some(node) = fields.get(key) else { return &[] };
    let all = reader.list(&format!("`{key}`"), node, "[{name: …}]").unwrap_or_default();
    if let Some(first) = all.get(MANY) {
        reader.wrong(first.span.start, format!("`{key}` has more than {MANY} entries"));
        return &[];
    }
    all
}

fn pattern(text: &str) -> Result<Pattern, String> {
    let beginning = text.strip_suffix('*').unwrap_or(text);
    if text.is_empty() || beginning.contains('*') {
        return Err(format!(
            "`{text}` is no pattern: write a name, its beginning like `web-*`, or `*` for all"
        ));
    }
    Ok(Pattern(text.to_owned()))
}

fn grants(reader: &mut Reader<'_>, fields: &Fields<'_, '_>) -> Grants {
    Grants(GRANTS.map(|key| {
        let node = fields.get(key);
        let list = node.and_then(|node| reader.list(&format!("`{key}`"), node, "[shop, web-*]"));
        list.into_iter()
            .flatten()
            .filter_map(|node| {
                let text = reader.text(&format!("an app of `{key}`"), node)?;
                pattern(&text).map_err(|why| reader.wrong(node.span.start, format!("`{key}`: {why}"))).ok()
            })
            .collect()
    }))
}

fn named(reader: &mut Reader<'_>, what: &str, node: &Node<'_>, fields: &Fields<'_, '_>) -> Option<String> {
    let name = reader.needed(what, node, fields, "name")?;
    let good = (1..=200).contains(&name.len()) && name.chars().all(|c| !c.is_control()) && name != "anybody";
    if !good {
        reader.wrong(node.span.start, "`name`: 1 to 200 characters of text, and not `anybody`");
    }
    good.then_some(name)
}

fn token(reader: &mut Reader<'_>, node: &Node<'_>, access: &mut Access) {
    let fields =
        reader.fields("a token", node, &["name", "sha256", "expires", "invoke", "manage", "observe"]);
    let grants = grants(reader, &fields);
    let expires = reader.maybe(&fields, "expires", moment::read);
    let name = named(reader, "a token", node, &fields);
    let Some(text) = reader.needed("a token", node, &fields, "sha256") else { return };
    let Some(hash) = hexadecimal(&text) else {
        // Perhaps the token itself: it is not repeated here.
        reader.wrong(
            node.span.start,
            "`sha256`: 64 hexadecimal digits, the hash of the token: `stoker token` makes both",
        );
        return;
    };
    if let Some(name) = name
        && access.tokens.insert(hash, Arc::new(Identity { name, grants, expires, signer: None })).is_some()
    {
        reader.wrong(node.span.start, "`sha256`: the same token stands here twice");
    }
}

/// Somebody who is known for as long as the file says so.
fn known(name: String, grants: Grants) -> Arc<Identity> {
    Arc::new(Identity { name, grants, expires: None, signer: None })
}

fn certificate(reader: &mut Reader<'_>, node: &Node<'_>, access: &mut Access) {
    let fields = reader.fields("a certificate", node, &["name", "san", "invoke", "manage", "observe"]);
    let grants = grants(reader, &fields);
    let name = named(reader, "a certificate", node, &fields);
    let san = reader.needed("a certificate", node, &fields, "san");
    if let (Some(name), Some(san)) = (name, san)
        && access.certificates.insert(san, known(name, grants)).is_some()
    {
        reader.wrong(node.span.start, "`san`: the same name stands here twice");
    }
}

fn access_key(reader: &mut Reader<'_>, path: &Path, node: &Node<'_>, access: &mut Access) {
    let fields =
        reader.fields("an access key", node, &["name", "id", "secret_file", "invoke", "manage", "observe"]);
    let grants = grants(reader, &fields);
    let name = named(reader, "an access key", node, &fields);
    let id = reader.needed("an access key", node, &fields, "id");
    let secret = reader.needed("an access key", node, &fields, "secret_file").and_then(|file| {
        let file = beside(path, &file);
        access.files.push(file.clone());
        match std::fs::read_to_string(&file).map(|text| text.trim_end().to_owned()) {
            Ok(text) if (16..=256).contains(&text.len()) => Some(Secret(text)),
            Ok(_) => {
                reader.wrong(
                    node.span.start,
                    format!("`secret_file`: {} must have 16 to 256 characters", file.display()),
                );
                None
            }
            Err(error) => {
                reader.wrong(node.span.start, format!("`secret_file`: {}: {error}", file.display()));
                None
            }
        }
    });
    if let (Some(name), Some(id), Some(secret)) = (name, id, secret)
        && access.keys.insert(id, (secret, known(name, grants))).is_some()
    {
        reader.wrong(node.span.start, "`id`: the same key stands here twice");
    }
}

fn issuer(reader: &mut Reader<'_>, path: &Path, node: &Node<'_>, files: &mut Vec<PathBuf>) -> Option<Issuer> {
    let fields = reader.fields("an issuer", node, &["issuer", "audience", "jwks", "ca", "claim", "grants"]);
    let name = reader.needed("an issuer", node, &fields, "issuer");
    let audience = reader.needed("an issuer", node, &fields, "audience");
    let jwks = reader.needed("an issuer", node, &fields, "jwks");
    let ca = reader.maybe(&fields, "ca", |text| Ok(beside(path, text)));
    let claim = reader.maybe(&fields, "claim", |text| Ok(text.to_owned()));
    let mut conditions = Vec::new();
    for node in entries(reader, &fields, "grants") {
        let fields = reader.fields("a grant", node, &["when", "invoke", "manage", "observe"]);
        let when = fields.get("when").map(|node| reader.pairs("`when`", node)).unwrap_or_default();
        conditions.push(Condition { when, grants: grants(reader, &fields) });
    }
    let source = match jwks? {
        // It is in the log when it does not answer.
        url if url.contains("://") && url.contains('@') => {
            reader.wrong(
                node.span.start,
                "`jwks`: has a user or a password in it: keys are public, and asked for without",
            );
            return None;
        }
        url if url.starts_with("https://") => {
            let Some(url) = uri(&url) else {
                reader.wrong(
                    node.span.start,
                    format!("`jwks`: `{url}` is not a URL: write it like https://host/keys"),
                );
                return None;
            };
            Source::Url { url, ca }
        }
        url if url.starts_with("http://") => {
            reader.wrong(
                node.span.start,
                "`jwks`: keys that come without TLS are anybody's: write https:// or a file",
            );
            return None;
        }
        file => {
            let file = beside(path, &file);
            files.push(file.clone());
            Source::File(file)
        }
    };
    let issuer = Issuer::new(name?, audience?, source, claim.unwrap_or_else(|| "sub".to_owned()), conditions);
    // A file is read with the access file, so that what is wrong with it is told at once.
    if let Err(why) = issuer.read_file() {
        reader.wrong(node.span.start, format!("`jwks`: {why}"));
    }
    Some(issuer)
}

fn limit(reader: &mut Reader<'_>, node: &Node<'_>) -> Option<Limit> {
    let keys =
        ["identity", "app", "calls_per_second", "burst", "bytes_per_second", "bytes_burst", "concurrent"];
    let fields = reader.fields("a limit", node, &keys);
    let identity = reader.maybe(&fields, "identity", pattern);
    let app = reader.maybe(&fields, "app", pattern);
    let number = |text: &str| match text.parse::<f64>() {
        Ok(number) if number > 0.0 && number <= 1e9 => Ok(number),
        _ => Err(format!("`{text}` is not a number above 0")),
    };
    let calls_per_second = reader.maybe(&fields, "calls_per_second", number);
    let burst = reader.maybe(&fields, "burst", number);
    let size = |text: &str| match stoker_core::units::parse_size(text)? {
        0 => Err("nothing would ever pass: write a size like 10MiB".to_owned()),
        size => Ok(size as f64),
    };
    let bytes_per_second = reader.maybe(&fields, "bytes_per_second", size);
    let bytes_burst = reader.maybe(&fields, "bytes_burst", size);
    let concurrent = reader.maybe(&fields, "concurrent", |text| match text.parse::<u32>() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err(format!("`{text}` is not a whole number from 1")),
    });
    if identity.is_none() && app.is_none() {
        reader.wrong(
            node.span.start,
            "a limit is for an `identity`, an `app` or both: write `identity: \"*\"` for each of them",
        );
        return None;
    }
    if !["calls_per_second", "bytes_per_second", "concurrent"].iter().any(|key| fields.contains_key(*key)) {
        reader.wrong(
            node.span.start,
            "a limit without `calls_per_second`, `bytes_per_second` and `concurrent` limits nothing",
        );
        return None;
    }
    let burst = burst.or(calls_per_second).unwrap_or(1.0).max(1.0);
    let bytes_burst = bytes_burst.or(bytes_per_second).unwrap_or(1.0);
    Some(Limit { identity, app, calls_per_second, burst, bytes_per_second, bytes_burst, concurrent })
}

/// Files are named from where the access file is.
fn beside(path: &Path, file: &str) -> PathBuf {
    path.parent().unwrap_or(Path::new("")).join(file)
}

fn hexadecimal(text: &str) -> Option<[u8; 32]> {
    let digits = text.as_bytes();
    if digits.len() != 64 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let mut hash = [0; 32];
    for (byte, pair) in hash.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mistake_has_its_place() {
        let text = "tokens:\n  - name: ci\n    sha256: hunter2\n  - sha256: '00'\n    invoke: ['a*b']\nlimits:\n  - {calls_per_second: 1}\n  - {app: x}\n  - {app: x, concurrent: 0}\nanybdy: {}\njwt:\n  - {issuer: i, audience: a, jwks: 'http://x/keys'}\n  - {issuer: i, audience: b, jwks: 'https://x:y/keys'}\n  - {issuer: i, audience: c, jwks: 'https://me:hunter2@x/keys'}\n";
        let wrong = read(Path::new("access.yaml"), text).err().unwrap();
        assert!(!wrong.contains("hunter2"), "a token given for its hash is not repeated: {wrong}");
        for expected in [
            "access.yaml:2:5: `sha256`: 64 hexadecimal digits",
            "access.yaml:4:5: a token has no `name`",
            "access.yaml:5:14: `invoke`: `a*b` is no pattern",
            "access.yaml:7:5: a limit is for an `identity`",
            "access.yaml:8:5: a limit without",
            "access.yaml:9:26: `concurrent`: `0` is not",
            "access.yaml:10:1: `anybdy` is not a key of the access file: did you mean `anybody`?",
            "`jwks`: keys that come without TLS",
            "`jwks`: `https://x:y/keys` is not a URL",
            "`jwks`: has a user or a password in it",
        ] {
            assert!(wrong.contains(expected), "{expected}\n{wrong}");
        }
    }
}
