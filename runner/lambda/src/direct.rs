//! The headers of AWS's direct invoke, by which a caller that knows a function well says how it is to be called: checked in AWS's order,
//! refused with AWS's names. They hold for the one call that has them.

use std::ops::RangeInclusive;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::json;

use crate::shape::Bandwidth;
use crate::{MAX_PAYLOAD, is_request_id};

/// What one call asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Direct {
    /// Its name, where the caller gave one.
    pub request_id: Option<String>,
    pub arn: Option<String>,
    /// JSON, as the runtime gets it; empty where the caller gave none.
    pub client_context: String,
    pub identity: String,
    /// Bytes of the answer; `None`: as many as come.
    pub most: Option<usize>,
    /// The answer may come as it is made.
    pub streams: bool,
    pub bandwidth: Option<Bandwidth>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct Customer {
    #[serde(rename = "Cognito-Identity-Id")]
    identity: String,
    #[serde(rename = "Cognito-Identity-Pool-Id")]
    pool: String,
    #[serde(rename = "Client-Context")]
    context: String,
}

impl Direct {
    /// Reads the headers of a call, which `get` finds by their names in lower case. `None` where it has none of them.
    ///
    /// # Errors
    /// AWS's name of the first mistake.
    pub fn read<'a>(
        get: impl Fn(&str) -> Option<&'a str>,
        version: impl FnOnce() -> String,
    ) -> Result<Option<Self>, &'static str> {
        const NAMES: [&str; 8] = [
            "customer-headers",
            "maxpayloadsize",
            "invokeresponsemode",
            "responsebandwidthrate",
            "responsebandwidthburstsize",
            "invoke-id",
            "invoked-function-arn",
            "invoked-function-version",
        ];
        if NAMES.iter().all(|name| get(name).is_none()) {
            return Ok(None);
        }
        let customer = customer(get("customer-headers")).ok_or("ErrMalformedCustomerHeaders")?;
        let most = match get("maxpayloadsize") {
            None => MAX_PAYLOAD as i64,
            Some(text) => text.parse().ok().filter(|size| *size >= -1).ok_or("ErrInvalidMaxPayloadSize")?,
        };
        let asked = match get("invokeresponsemode") {
            None => false,
            Some(text) if text.eq_ignore_ascii_case("streaming") => true,
            Some(text) if text.eq_ignore_ascii_case("buffered") => false,
            Some(_) => return Err("ErrInvalidInvokeResponseMode"),
        };
        let streams = asked || most == -1;
        let bandwidth = match streams {
            true => bandwidth(get("responsebandwidthrate"), get("responsebandwidthburstsize"))?,
            false => None,
        };
        let said = get("lambda-runtime-aws-request-id").filter(|id| !id.is_empty());
        let request_id = match get("invoke-id") {
            None => None,
            Some(id) if is_request_id(id) && said.is_none_or(|said| said == id) => Some(id.to_owned()),
            Some(_) => return Err("ErrInvalidInvokeID"),
        };
        if get("invoked-function-version").is_some_and(|asked| asked != version()) {
            return Err("ErrInvalidFunctionVersion");
        }
        let identity = match customer.identity.is_empty() && customer.pool.is_empty() {
            true => String::new(),
            false => {
                json!({ "cognitoIdentityId": customer.identity, "cognitoIdentityPoolId": customer.pool })
                    .to_string()
            }
        };
        Ok(Some(Self {
            request_id,
            arn: get("invoked-function-arn").filter(|arn| !arn.is_empty()).map(str::to_owned),
            client_context: customer.context,
            identity,
            most: usize::try_from(most).ok(),
            streams,
            bandwidth,
        }))
    }
}

fn customer(text: Option<&str>) -> Option<Customer> {
    let Some(text) = text.filter(|text| !text.is_empty()) else { return Some(Customer::default()) };
    serde_json::from_slice(&STANDARD.decode(text).ok()?).ok()
}

/// What is not said of it is AWS's default; nothing said is no limit.
fn bandwidth(rate: Option<&str>, burst: Option<&str>) -> Result<Option<Bandwidth>, &'static str> {
    fn within(text: Option<&str>, limits: &RangeInclusive<u64>, default: u64) -> Option<u64> {
        match text {
            None => Some(default),
            Some(text) => text.parse().ok().filter(|value| limits.contains(value)),
        }
    }
    let default = Bandwidth::DEFAULT;
    let chosen = Bandwidth {
        rate: within(rate, &Bandwidth::LIMITS, default.rate).ok_or("ErrInvalidResponseBandwidthRate")?,
        burst: within(burst, &Bandwidth::LIMITS, default.burst)
            .ok_or("ErrInvalidResponseBandwidthBurstSize")?,
    };
    Ok((rate.is_some() || burst.is_some()).then_some(chosen))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(headers: &[(&str, &str)]) -> Result<Option<Direct>, &'static str> {
        let get = |name: &str| headers.iter().find(|(key, _)| *key == name).map(|(_, value)| *value);
        Direct::read(get, || "$LATEST".to_owned())
    }

    #[test]
    fn what_is_left_out_has_defaults() {
        assert_eq!(read(&[("content-type", "text/plain")]), Ok(None));
        let least = read(&[("invoke-id", "a-1")]).unwrap().unwrap();
        assert_eq!(
            (least.request_id.as_deref(), least.most, least.streams),
            (Some("a-1"), Some(MAX_PAYLOAD), false)
        );
        assert_eq!(least.bandwidth, None);
        let customer = STANDARD
            .encode(r#"{"Cognito-Identity-Id":"me","Cognito-Identity-Pool-Id":"p","Client-Context":"{}"}"#);
        let most = read(&[
            ("customer-headers", &customer),
            ("maxpayloadsize", "-1"),
            ("responsebandwidthrate", "32768"),
            ("invoked-function-arn", "arn:x"),
            ("invoked-function-version", "$LATEST"),
        ]);
        let most = most.unwrap().unwrap();
        assert_eq!((most.most, most.streams), (None, true), "without a limit it streams");
        assert_eq!(most.bandwidth, Some(Bandwidth { rate: 32 << 10, burst: 6 << 20 }));
        assert_eq!((&*most.client_context, most.arn.as_deref()), ("{}", Some("arn:x")));
        assert_eq!(most.identity, r#"{"cognitoIdentityId":"me","cognitoIdentityPoolId":"p"}"#);
        for mode in ["Streaming", "STREAMING", "streaming"] {
            assert!(read(&[("invokeresponsemode", mode)]).unwrap().unwrap().streams);
        }
    }

    /// Each case has every mistake that is looked for after its own, too.
    #[test]
    fn mistakes_are_found_in_aws_s_order() {
        let all = [
            ("customer-headers", "!", "ErrMalformedCustomerHeaders"),
            ("maxpayloadsize", "-2", "ErrInvalidMaxPayloadSize"),
            ("invokeresponsemode", "foo-bar", "ErrInvalidInvokeResponseMode"),
            ("responsebandwidthrate", "32767", "ErrInvalidResponseBandwidthRate"),
            ("responsebandwidthburstsize", "67108865", "ErrInvalidResponseBandwidthBurstSize"),
            ("invoke-id", "", "ErrInvalidInvokeID"),
            ("invoked-function-version", "2", "ErrInvalidFunctionVersion"),
        ];
        for from in 0..all.len() {
            let mut headers: Vec<_> = all[from..].iter().map(|(key, value, _)| (*key, *value)).collect();
            if from > 2 {
                headers.push(("invokeresponsemode", "streaming"));
            }
            assert_eq!(read(&headers), Err(all[from].2));
        }
        let buffered = read(&[("responsebandwidthrate", "1"), ("invokeresponsemode", "Buffered")]);
        assert_eq!(buffered.unwrap().unwrap().bandwidth, None, "looked at only where it streams");
        let other = [("invoke-id", "a"), ("lambda-runtime-aws-request-id", "b")];
        assert_eq!(read(&other), Err("ErrInvalidInvokeID"));
    }
}
