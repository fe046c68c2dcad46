//! Who may look at the pages: they name functions and runners, and say how much each is called.

use std::fmt;
use std::sync::Arc;

use http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, StatusCode};

use crate::audit::{Audit, Event};
use crate::auth::{AccessFile, Permission, Unknown, bearer, password};
use crate::tls::Peer;

/// See the module. `/livez` and `/readyz` are not among it: those who ask for them have nothing to show.
#[derive(Clone, Default)]
pub enum Viewers {
    /// Whoever reaches the port.
    #[default]
    All,
    /// Whoever shows a certificate of the fleet's authority.
    Certified,
    /// Whoever may observe everything by the access file.
    Known(Arc<AccessFile>, Audit),
}

impl fmt::Debug for Viewers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Viewers::All => "All",
            Viewers::Certified => "Certified",
            Viewers::Known(..) => "Known",
        })
    }
}

/// Why somebody may not look.
#[derive(Debug)]
pub struct Refused {
    pub status: StatusCode,
    pub text: &'static str,
}

impl Viewers {
    /// Those of a port: the access file says it where there is one; without one a port that others reach by TLS is for those whom the fleet's
    /// authority has certified, unless nobody is to be asked.
    #[must_use]
    pub fn of(access: Option<(Arc<AccessFile>, Audit)>, others_by_tls: bool, insecure: bool) -> Self {
        match access {
            Some((kept, audit)) => Self::Known(kept, audit),
            None if others_by_tls && !insecure => Self::Certified,
            None => Self::All,
        }
    }

    /// Whether somebody may look at `page` who shows these headers and this certificate.
    ///
    /// # Errors
    /// What they are told instead.
    pub async fn let_in(
        &self,
        page: &str,
        headers: &HeaderMap,
        peer: Option<&Peer>,
        remote: &str,
    ) -> Result<(), Refused> {
        let (kept, audit) = match self {
            Self::All => return Ok(()),
            Self::Certified => {
                let text =
                    "show a certificate of the fleet's authority, or give this server an access file\n";
                return peer.map(|_| ()).ok_or(Refused { status: StatusCode::UNAUTHORIZED, text });
            }
            Self::Known(kept, audit) => (kept, audit),
        };
        let shown = headers.get(AUTHORIZATION).map(HeaderValue::as_bytes);
        // Browsers know no other way to ask people for a token than as a password.
        let token = shown.and_then(|shown| bearer(shown).map(<[u8]>::to_vec).or_else(|| password(shown)));
        let (now, found) = kept.identify(token.as_deref(), peer).await;
        let refused = |identity: &str, outcome, status, text| {
            let on = [page.to_owned()];
            audit.refused(Event { what: "observe", identity, remote, on: &on, outcome });
            Err(Refused { status, text })
        };
        match found.as_ref().or_else(|unknown| now.access.anybody().ok_or(unknown)) {
            Ok(identity) if identity.may_everywhere(Permission::Observe) => Ok(()),
            Ok(identity) if found.is_ok() => {
                let text =
                    "this page is for those who may observe the fleet: that takes `observe: [\"*\"]`\n";
                refused(identity.name(), "PERMISSION_DENIED", StatusCode::FORBIDDEN, text)
            }
            // Nobody in particular may not: somebody may.
            Ok(_) => Err(Refused { status: StatusCode::UNAUTHORIZED, text: SHOW }),
            Err(Unknown::Nothing) => refused("", "UNAUTHENTICATED", StatusCode::UNAUTHORIZED, SHOW),
            Err(_) => {
                let text = "what is shown is no credential of this fleet, or its time has passed\n";
                refused("", "UNAUTHENTICATED", StatusCode::UNAUTHORIZED, text)
            }
        }
    }
}

const SHOW: &str =
    "show a token (`authorization: Bearer …`, or as the password of any name) or a certificate\n";

impl Refused {
    /// How a browser and a scraper learn what to show.
    pub fn challenge(&self, headers: &mut HeaderMap) {
        if self.status == StatusCode::UNAUTHORIZED {
            for way in ["Bearer realm=\"stoker\"", "Basic realm=\"stoker: any name, a token for password\""] {
                headers.append(WWW_AUTHENTICATE, HeaderValue::from_static(way));
            }
        }
    }
}
