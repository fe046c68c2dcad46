//! Who is at the other end, by what its certificate says.

use rustls::pki_types::CertificateDer;
use webpki::EndEntityCert;

/// What a certificate of the fleet is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Balancer,
    Runner,
    Client,
}

impl Role {
    /// As it stands in a certificate.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Balancer => "balancer",
            Role::Runner => "runner",
            Role::Client => "client",
        }
    }
}

/// The names in a certificate that was found good.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Peer {
    /// The URIs, then the DNS names.
    pub names: Vec<String>,
}

impl Peer {
    /// Out of a certificate; nothing if it is none.
    #[must_use]
    pub fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let parsed = EndEntityCert::try_from(certificate).ok()?;
        let names = parsed.valid_uri_names().chain(parsed.valid_dns_names()).map(str::to_owned).collect();
        Some(Self { names })
    }

    /// Its name in this role, empty for one that stands for all of them; nothing if it does not have the role.
    #[must_use]
    pub fn is(&self, role: Role) -> Option<&str> {
        self.names.iter().find_map(|name| {
            let (_domain, path) = name.strip_prefix("spiffe://")?.split_once('/')?;
            let (kind, holder) = path.split_once('/').unwrap_or((path, ""));
            (kind == role.as_str() && !holder.contains('/')).then_some(holder)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_is_the_first_word_of_the_path_and_nothing_else() {
        let is = |name: &str, role| Peer { names: vec![name.to_owned()] }.is(role).map(str::to_owned);
        assert_eq!(is("spiffe://stoker/runner/r1", Role::Runner).as_deref(), Some("r1"));
        assert_eq!(is("spiffe://stoker/runner", Role::Runner).as_deref(), Some(""));
        for other in [
            "spiffe://stoker/client/runner",
            "spiffe://runner/client/x",
            "spiffe://stoker/runners/x",
            "spiffe://stoker/runner/x/y",
            "https://stoker/runner/r1",
            "runner/r1",
        ] {
            assert_eq!(is(other, Role::Runner), None, "{other}");
        }
    }
}
