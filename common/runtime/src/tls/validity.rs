//! How long the certificate that we show is good. Nobody speaks to a server whose time has passed, so it is a metric, and a line in the log once
//! it is too late.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use stoker_core::moment;

use super::Tls;
use crate::metrics::{Listed, Metrics, Read};

static BEGINS: Read = Read::gauge(
    "stoker_tls_certificate_not_before_timestamp_seconds",
    "From when on the server's certificate is good, since 1970; shown where there is TLS",
);
static ENDS: Read = Read::gauge(
    "stoker_tls_certificate_not_after_timestamp_seconds",
    "Until when the server's certificate is good, since 1970; shown where there is TLS",
);

/// The metrics of whoever has a certificate.
pub static LISTED: Listed = &[&BEGINS.about, &ENDS.about];

/// From when to when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    begins: SystemTime,
    ends: SystemTime,
}

impl Validity {
    /// What a certificate says. It has been read by those who check certificates, who keep this part to themselves; so what is not found is no mistake.
    pub fn of(certificate: &[u8]) -> Option<Self> {
        let (_, certificate, _) = element(certificate)?;
        let (_, mut fields, _) = element(certificate)?;
        let mut next = || {
            let (tag, content, rest) = element(fields)?;
            fields = rest;
            Some((tag, content))
        };
        // A version, which the first has not, and then: number, algorithm, issuer, validity.
        if next()?.0 == VERSION {
            next()?;
        }
        next()?;
        next()?;
        let (_, both) = next()?;
        let (begins, ends) = element(both).map(|(tag, text, rest)| ((tag, text), rest))?;
        let (tag, text, _) = element(ends)?;
        Some(Self { begins: moment(begins.0, begins.1)?, ends: moment(tag, text)? })
    }

    /// Why nobody takes it at `now`.
    fn wrong(self, now: SystemTime) -> Option<String> {
        if now > self.ends {
            return Some(format!("ended at {}", moment::rfc3339_millis(self.ends)));
        }
        (now < self.begins).then(|| format!("is not good before {}", moment::rfc3339_millis(self.begins)))
    }
}

/// Tags of DER.
const VERSION: u8 = 0xa0;
const SHORT_YEAR: u8 = 0x17;
const LONG_YEAR: u8 = 0x18;

/// The first element of DER: its tag, what is in it, and what follows it.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let [tag, first, rest @ ..] = der else { return None };
    let (length, rest) = match *first {
        short @ 0..=0x7f => (usize::from(short), rest),
        long @ 0x81..=0x83 => {
            let (digits, rest) = rest.split_at_checked(usize::from(long & 0x7f))?;
            (digits.iter().fold(0, |sum, digit| sum << 8 | usize::from(*digit)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((*tag, content, rest))
}

/// `261122024200Z`, or with the century.
fn moment(tag: u8, text: &[u8]) -> Option<SystemTime> {
    let text = std::str::from_utf8(text).ok().filter(|text| text.is_ascii())?;
    let text = match tag {
        // Of two digits of a year those from 50 on are of the last century.
        SHORT_YEAR => format!("{}{text}", if text >= "50" { "19" } else { "20" }),
        LONG_YEAR => text.to_owned(),
        _ => return None,
    };
    let part = |from: usize| text.get(from..from + 2);
    let (day, time) = (format!("{}-{}-{}", text.get(..4)?, part(4)?, part(6)?), text.get(8..)?);
    let time = format!("{}:{}:{}", time.get(..2)?, time.get(2..4)?, time.get(4..)?);
    moment::read(&format!("{day}T{time}")).ok()
}

impl Tls {
    /// Shows how long our certificate is good.
    pub fn measure(self: &Arc<Self>, metrics: &Metrics) {
        let show = |metric, which: fn(Validity) -> SystemTime| {
            let tls = self.clone();
            metrics.read(metric, move || {
                let moment =
                    tls.now.load().validity.map(which).and_then(|at| at.duration_since(UNIX_EPOCH).ok());
                moment.map_or(f64::NAN, |since| since.as_secs_f64())
            });
        };
        show(&BEGINS, |validity| validity.begins);
        show(&ENDS, |validity| validity.ends);
    }

    /// Why nobody speaks to us by the certificate that we show, if so.
    #[must_use]
    pub fn out_of_time(&self) -> Option<String> {
        let wrong = self.now.load().validity?.wrong(SystemTime::now())?;
        let certificate = self.files.certificate.display();
        Some(format!("the certificate in {certificate} {wrong}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_says_when_it_is_good() {
        let day = |year, month, day| rcgen::date_time_ymd(year, month, day);
        for (from, to, begins, ends) in [
            (day(2026, 11, 22), day(2027, 2, 28), "2026-11-22", "2027-02-28"),
            // From 2050 on years have four digits.
            (day(1999, 12, 31), day(2126, 1, 1), "1999-12-31", "2126-01-01"),
        ] {
            let mut params = rcgen::CertificateParams::new(vec!["x".repeat(200)]).unwrap();
            (params.not_before, params.not_after) = (from, to);
            let made = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
            let validity = Validity::of(made.der()).unwrap();
            assert_eq!(moment::rfc3339_millis(validity.begins), format!("{begins}T00:00:00.000Z"));
            assert_eq!(moment::rfc3339_millis(validity.ends), format!("{ends}T00:00:00.000Z"));
            let wrong = |text: &str| validity.wrong(moment::read(text).unwrap());
            assert_eq!(wrong("2027-01-01"), None);
            assert!(wrong("1999-01-01").unwrap().contains("is not good before"));
            assert!(wrong("2127-01-01").unwrap().contains("ended at"));
            // Cut off anywhere it is none, and no reason to panic.
            for end in 0..100 {
                assert_eq!(Validity::of(&made.der()[..end]), None);
            }
        }
    }
}
