//! `certs`: an authority for a fleet and certificates of its balancers, runners and clients. `token`: a token and what the access file has of it.
//!
//! Files are only ever made, never written over: what is there may be in use. Keys are the owner's alone.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use serde_json::json;
use stoker_runtime::auth;
use stoker_runtime::tls::{self, Role};

use crate::args::{Certs, Common, Output, Token};
use crate::failure::Failure;
use crate::output;

/// An authority outlives many certificates.
const AUTHORITY_DAYS: u64 = 3650;

/// Clocks of a fleet may differ by so much.
const EARLIER: Duration = Duration::from_secs(3600);

const DAY: Duration = Duration::from_secs(24 * 3600);

pub fn certs(args: Certs, common: &Common) -> Result<(), Failure> {
    let wanted = wanted(&args)?;
    let directory = &args.directory;
    fs::create_dir_all(directory).map_err(|error| in_the_way(directory, &error))?;
    let (ca, ca_key) = (directory.join("ca.pem"), directory.join("ca.key"));
    // Looked at before anything is made.
    for one in &wanted {
        for file in one.files(directory) {
            if file.exists() {
                return Err(there(&file));
            }
        }
    }
    let key = match (ca.exists(), ca_key.exists()) {
        (false, false) => {
            let key = KeyPair::generate().map_err(broken)?;
            let made = authority()?.self_signed(&key).map_err(broken)?;
            create(&ca_key, &key.serialize_pem(), 0o600)?;
            create(&ca, &made.pem(), 0o644)?;
            key
        }
        (true, true) => {
            let text = fs::read_to_string(&ca_key).map_err(|error| in_the_way(&ca_key, &error))?;
            KeyPair::from_pem(&text).map_err(|_| {
                Failure::usage(
                    format!("{} is no key", ca_key.display()),
                    "give the directory of an authority that this command made",
                )
            })?
        }
        (_, key) => {
            let (there, missing) = if key { (&ca_key, &ca) } else { (&ca, &ca_key) };
            let advice = "bring both, to sign more certificates with that authority, or take an empty directory for a new one";
            return Err(Failure::usage(
                format!("{} is there, and {} is not", there.display(), missing.display()),
                advice,
            ));
        }
    };
    let issuer = Issuer::new(authority()?, key);
    let mut made = Vec::new();
    for one in &wanted {
        let key = KeyPair::generate().map_err(broken)?;
        let certificate = one.params(args.days)?.signed_by(&key, &issuer).map_err(broken)?;
        let pem = certificate.pem();
        // An authority of somebody else's has another name than ours: what it seems to have signed would be good for nobody.
        tls::is_signed_by(&pem, &ca).map_err(|why| {
            Failure::usage(why, "give the directory of an authority that this command made, or an empty one")
        })?;
        let [file, key_file] = one.files(directory);
        create(&key_file, &key.serialize_pem(), 0o600)?;
        create(&file, &pem, 0o644)?;
        made.push((one, file, key_file));
    }
    let shown = |path: &Path| path.display().to_string();
    match common.output {
        Output::Json => output::print_json(&json!({
            "ca": shown(&ca),
            "certificates": made.iter().map(|(one, file, key)| json!({
                "role": one.role.as_str(), "name": one.name, "uri": one.uri(), "certificate": shown(file), "key": shown(key),
                "days": args.days,
            })).collect::<Vec<_>>(),
        })),
        Output::Table => {
            let rows = made
                .iter()
                .map(|(one, file, key)| {
                    vec![one.role.as_str().to_owned(), one.uri(), shown(file), shown(key)]
                })
                .collect();
            let mut text = output::table(&["ROLE", "NAME", "CERTIFICATE", "KEY"], rows);
            let stays = ca_key.display();
            text += &format!(
                "\nThey are good for {} days, and all of one authority, {}. Whoever has {stays} can make more: keep it off the fleet.\n",
                args.days,
                ca.display()
            );
            output::print(&text)
        }
    }
}

/// A certificate that is asked for.
struct Wanted {
    role: Role,
    /// Empty: for all of its role.
    name: String,
    hosts: Vec<String>,
}

fn wanted(args: &Certs) -> Result<Vec<Wanted>, Failure> {
    let mut wanted = Vec::new();
    let kinds =
        [(Role::Balancer, &args.balancers), (Role::Runner, &args.runners), (Role::Client, &args.clients)];
    for (role, names) in kinds {
        for name in names {
            if !stoker_core::ids::is_name(name) {
                return Err(Failure::usage(
                    format!("`{name}` is not a name"),
                    "write letters, digits, - and _; of a runner its `name`",
                ));
            }
            wanted.push(Wanted { role, name: name.clone(), hosts: hosts(role, args) });
        }
    }
    if let Some(host) = args.hosts.first().filter(|_| !wanted.is_empty() && args.balancers.is_empty()) {
        return Err(Failure::usage(
            format!("`--host {host}` is for the certificate of a balancer, and none is asked for"),
            "add --balancer NAME; or name none, and there will be one for all balancers, one for all runners and one for a client `admin`",
        ));
    }
    if wanted.is_empty() {
        wanted = [Role::Balancer, Role::Runner]
            .map(|role| Wanted { role, name: String::new(), hosts: hosts(role, args) })
            .into();
        wanted.push(Wanted { role: Role::Client, name: "admin".to_owned(), hosts: Vec::new() });
    }
    Ok(wanted)
}

/// Clients look at the host of a balancer; at that of a runner nobody does but a scraper of its metrics, who can know all of a kind by one name.
fn hosts(role: Role, args: &Certs) -> Vec<String> {
    match role {
        Role::Balancer => ["localhost", "127.0.0.1", "::1", "stoker-balancer"]
            .map(str::to_owned)
            .into_iter()
            .chain(args.hosts.clone())
            .collect(),
        Role::Runner => vec!["stoker-runner".to_owned()],
        Role::Client => Vec::new(),
    }
}

impl Wanted {
    fn uri(&self) -> String {
        let name = if self.name.is_empty() { String::new() } else { format!("/{}", self.name) };
        format!("spiffe://stoker/{}{name}", self.role.as_str())
    }

    fn files(&self, directory: &Path) -> [PathBuf; 2] {
        let stem = match self.name.as_str() {
            "" => self.role.as_str().to_owned(),
            name => format!("{}-{name}", self.role.as_str()),
        };
        [directory.join(format!("{stem}.pem")), directory.join(format!("{stem}.key"))]
    }

    fn params(&self, days: u64) -> Result<CertificateParams, Failure> {
        let mut params = CertificateParams::default();
        let no_name =
            |host: &str| Failure::usage(format!("`{host}` is no host"), "write a DNS name or an IP address");
        for host in &self.hosts {
            params.subject_alt_names.push(match host.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(host.as_str().try_into().map_err(|_| no_name(host))?),
            });
        }
        params.subject_alt_names.push(SanType::URI(self.uri().try_into().map_err(broken)?));
        let name = if self.name.is_empty() { self.role.as_str() } else { &self.name };
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = match self.role {
            // A balancer is served to clients, and is a client of runners.
            Role::Balancer => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
            Role::Runner => vec![ExtendedKeyUsagePurpose::ServerAuth],
            Role::Client => vec![ExtendedKeyUsagePurpose::ClientAuth],
        };
        params.use_authority_key_identifier_extension = true;
        lasts(&mut params, days);
        Ok(params)
    }
}

/// The same each time: a certificate names its authority by this.
fn authority() -> Result<CertificateParams, Failure> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "Stoker fleet authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    lasts(&mut params, AUTHORITY_DAYS);
    Ok(params)
}

fn lasts(params: &mut CertificateParams, days: u64) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + now.saturating_sub(EARLIER);
    params.not_after = epoch + now + DAY * u32::try_from(days).unwrap_or(u32::MAX);
}

fn create(path: &Path, text: &str, mode: u32) -> Result<(), Failure> {
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(|error| match error
            .kind()
        {
            std::io::ErrorKind::AlreadyExists => there(path),
            _ => in_the_way(path, &error),
        })?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(|error| in_the_way(path, &error))
}

fn there(path: &Path) -> Failure {
    Failure::usage(
        format!("{} is there already, and may be in use", path.display()),
        "move it away first, or take another --directory; nothing was changed",
    )
}

fn in_the_way(path: &Path, error: &std::io::Error) -> Failure {
    Failure::usage(format!("{}: {error}", path.display()), "take another --directory")
}

fn broken(error: impl std::fmt::Display) -> Failure {
    Failure::platform(format!("a certificate cannot be made: {error}"), "please report this")
}

/// A token, and the entry of the access file for whoever has it.
pub fn token(args: Token, common: &Common) -> Result<(), Failure> {
    let (token, hash) = auth::new_token().map_err(|why| Failure::platform(why, ""))?;
    if common.output == Output::Json {
        return output::print_json(&json!({
            "token": token,
            "entry": {
                "name": args.name, "sha256": hash, "invoke": args.invoke, "manage": args.manage, "observe": args.observe,
            },
        }));
    }
    let list = |apps: &[String]| serde_json::Value::from(apps.to_vec()).to_string();
    let name = serde_json::Value::from(args.name.as_str());
    let mut entry = format!("  - name: {name}\n    sha256: {hash}\n");
    for (key, apps) in [("invoke", &args.invoke), ("manage", &args.manage), ("observe", &args.observe)] {
        if !apps.is_empty() {
            entry += &format!("    {key}: {}\n", list(apps));
        }
    }
    output::print(&format!("{token}\n"))?;
    output::say(&format!(
        "The token is on STDOUT and is not shown again. For the access file of the balancers, under `tokens:`\n\n{entry}\n\
         Whoever has it gives it as STOKER_TOKEN, or its file as STOKER_TOKEN_FILE.\n"
    ));
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use clap::Parser as _;

    fn make(words: &[&str]) -> Result<(), Failure> {
        let cli = crate::args::Cli::parse_from(["stoker", "-ojson", "certs"].iter().chain(words));
        let crate::args::Command::Certs(args) = cli.command else { panic!("it is `certs`") };
        certs(args, &cli.common)
    }

    fn files(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_first_set_whose_keys_are_the_owners_alone_and_that_is_never_written_over() {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path().join("certs");
        let text = at.to_str().unwrap();
        make(&["--directory", text, "--host", "lb.example"]).unwrap();
        let all = [
            "balancer.key",
            "balancer.pem",
            "ca.key",
            "ca.pem",
            "client-admin.key",
            "client-admin.pem",
            "runner.key",
            "runner.pem",
        ];
        assert_eq!(files(&at), all);
        for name in all.iter().filter(|name| name.ends_with(".key")) {
            assert_eq!(fs::metadata(at.join(name)).unwrap().permissions().mode() & 0o777, 0o600, "{name}");
        }
        let before = fs::read(at.join("ca.key")).unwrap();
        let failure = make(&["--directory", text]).unwrap_err();
        assert!(failure.what().contains("balancer.pem is there already"), "{}", failure.what());
        // More of the same authority.
        make(&["--directory", text, "--runner", "r1", "--client", "ci"]).unwrap();
        assert_eq!(files(&at).len(), all.len() + 4);
        let failure = make(&["--directory", text, "--host", "lb.example", "--client", "ada"]).unwrap_err();
        assert!(failure.what().contains("`--host lb.example` is for"), "{}", failure.what());
        make(&["--directory", text, "--host", "lb.example", "--client", "ada", "--balancer", "b1"]).unwrap();
        assert_eq!(files(&at).len(), all.len() + 8);
        assert_eq!(fs::read(at.join("ca.key")).unwrap(), before);
        for name in ["runner-r1", "client-ci", "balancer"] {
            let pem = fs::read_to_string(at.join(format!("{name}.pem"))).unwrap();
            tls::is_signed_by(&pem, &at.join("ca.pem")).unwrap();
        }
    }

    #[test]
    fn an_authority_that_is_none_of_ours_or_half_there_is_refused_before_anything_is_made() {
        let (ours, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for directory in [&ours, &other] {
            make(&["--directory", directory.path().to_str().unwrap(), "--client", "a"]).unwrap();
        }
        fs::copy(other.path().join("ca.pem"), ours.path().join("ca.pem")).unwrap();
        let text = ours.path().to_str().unwrap();
        let failure = make(&["--directory", text, "--client", "b"]).unwrap_err();
        assert!(failure.what().contains("is not signed by"), "{}", failure.what());
        fs::remove_file(ours.path().join("ca.pem")).unwrap();
        let failure = make(&["--directory", text, "--client", "b"]).unwrap_err();
        assert!(failure.what().contains("ca.key is there, and"), "{}", failure.what());
        assert!(!ours.path().join("client-b.key").exists());
        assert!(make(&["--directory", text, "--client", "a/b"]).is_err());
    }
}
