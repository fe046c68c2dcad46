//! What pages of other sites may do with a function, said as the Fetch standard has it.
//!
//! The balancer says all of it: a preflight costs no call, and what a function says of it itself is replaced, where its owner has
//! written down who may. Where nobody has, all of it is the function's business, as it is without a balancer.

use std::sync::Arc;

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, HeaderName, ORIGIN, VARY,
};
use http::{HeaderMap, HeaderValue, Method};
use stoker_core::error::{Code, Error};
use stoker_core::function::Cors;

/// The method that a preflight asks for.
pub fn preflight<'a>(method: &Method, headers: &'a HeaderMap) -> Option<&'a str> {
    if method != Method::OPTIONS || !headers.contains_key(ORIGIN) {
        return None;
    }
    headers.get(ACCESS_CONTROL_REQUEST_METHOD)?.to_str().ok()
}

/// What a page is told with an answer, whatever that is.
pub struct Page {
    cors: Arc<Cors>,
    origin: Option<HeaderValue>,
}

impl Page {
    pub fn new(cors: Arc<Cors>, headers: &HeaderMap) -> Self {
        Self { cors, origin: headers.get(ORIGIN).cloned() }
    }

    /// The page's origin, if it may.
    fn allowed(&self) -> Option<&HeaderValue> {
        self.origin.as_ref().filter(|origin| origin.to_str().is_ok_and(|origin| self.cors.allows(origin)))
    }

    /// Says it on an answer.
    pub fn tell(&self, headers: &mut HeaderMap) {
        for said in
            [ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_EXPOSE_HEADERS]
        {
            headers.remove(said);
        }
        self.origin_of(headers);
        if self.allowed().is_some() {
            listed(headers, ACCESS_CONTROL_EXPOSE_HEADERS, &self.cors.expose);
        }
    }

    fn origin_of(&self, headers: &mut HeaderMap) {
        let for_all = self.cors.is_for_all();
        if !for_all {
            // Also where there is none: a cache must not give this answer to a page.
            headers.append(VARY, HeaderValue::from_static("origin"));
        }
        let Some(origin) = self.allowed() else { return };
        let told = if for_all { HeaderValue::from_static("*") } else { origin.clone() };
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, told);
        if self.cors.credentials {
            headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        }
    }

    /// The headers that answer a preflight for `method`.
    ///
    /// # Errors
    /// Pages of this origin may not call.
    pub fn permit(&self, method: &str, asked: &HeaderMap) -> Result<HeaderMap, Error> {
        if self.allowed().is_none() {
            let origin = self.origin.as_ref().and_then(|origin| origin.to_str().ok()).unwrap_or_default();
            let origin: String = origin.chars().take(200).collect();
            let text =
                format!("pages of {origin:?} may not call this: `cors` of the function does not name it");
            return Err(Error::new(Code::PermissionDenied, text));
        }
        let mut headers = HeaderMap::new();
        self.origin_of(&mut headers);
        for name in [ACCESS_CONTROL_REQUEST_METHOD, ACCESS_CONTROL_REQUEST_HEADERS] {
            headers.append(VARY, name.into());
        }
        match self.cors.methods.is_empty() {
            true => listed(&mut headers, ACCESS_CONTROL_ALLOW_METHODS, &[method.to_owned()]),
            false => listed(&mut headers, ACCESS_CONTROL_ALLOW_METHODS, &self.cors.methods),
        }
        listed(&mut headers, ACCESS_CONTROL_ALLOW_HEADERS, &self.headers(asked));
        if self.cors.max_age > 0 {
            headers.insert(ACCESS_CONTROL_MAX_AGE, self.cors.max_age.into());
        }
        Ok(headers)
    }

    /// Request headers that a page may set. Said one by one instead of `*`, which browsers take for a name where there are credentials.
    fn headers(&self, asked: &HeaderMap) -> Vec<String> {
        let known = &self.cors.headers;
        let mut named: Vec<String> = known.iter().filter(|name| *name != "*").cloned().collect();
        if !named.iter().any(|name| name == "content-type") {
            named.push("content-type".to_owned());
        }
        if known.iter().any(|name| name == "*") {
            let asked = asked.get_all(ACCESS_CONTROL_REQUEST_HEADERS).iter();
            let asked = asked.filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
            // By the standard the star is all but this one.
            let asked = asked.filter_map(|name| HeaderName::try_from(name.trim()).ok());
            let asked = asked.map(|name| name.as_str().to_owned()).filter(|name| name != "authorization");
            for name in asked {
                if !named.contains(&name) {
                    named.push(name);
                }
            }
        }
        named
    }
}

fn listed(headers: &mut HeaderMap, name: HeaderName, values: &[String]) {
    if let (false, Ok(value)) = (values.is_empty(), HeaderValue::from_str(&values.join(", "))) {
        headers.insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(cors: &Cors, origin: &'static str) -> Page {
        let mut headers = HeaderMap::new();
        headers.insert(ORIGIN, HeaderValue::from_static(origin));
        Page::new(Arc::new(cors.clone()), &headers)
    }

    fn said(headers: &HeaderMap) -> Vec<String> {
        let mut all: Vec<_> = headers
            .iter()
            .map(|(name, value)| {
                let name = name.as_str();
                let short = name.strip_prefix("access-control-").unwrap_or(name);
                format!("{short}: {}", value.to_str().expect("text"))
            })
            .collect();
        all.sort();
        all
    }

    #[test]
    fn an_answer_is_for_those_who_are_named() {
        let named = Cors {
            origins: vec!["https://a.example".into()],
            credentials: true,
            expose: vec!["x-total".into()],
            ..Cors::default()
        };
        let tell = |cors: &Cors, origin| {
            let mut headers = HeaderMap::new();
            // What the function thinks of it does not count.
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("https://evil.example"));
            page(cors, origin).tell(&mut headers);
            said(&headers)
        };
        let all = [
            "allow-credentials: true",
            "allow-origin: https://a.example",
            "expose-headers: x-total",
            "vary: origin",
        ];
        assert_eq!(tell(&named, "https://a.example"), all);
        assert_eq!(tell(&named, "https://b.example"), ["vary: origin"]);
        let open = Cors { origins: vec!["*".into()], ..Cors::default() };
        assert_eq!(tell(&open, "https://b.example"), ["allow-origin: *"]);
        let mut headers = HeaderMap::new();
        Page::new(Arc::new(named), &HeaderMap::new()).tell(&mut headers);
        assert_eq!(said(&headers), ["vary: origin"], "an answer for nobody's page may not be kept for one");
    }

    #[test]
    fn a_preflight_is_told_what_may_be_asked() {
        let mut asked = HeaderMap::new();
        asked
            .insert(ACCESS_CONTROL_REQUEST_HEADERS, HeaderValue::from_static("X-A, authorization,x-b, ,b@d"));
        let cors = |headers: &[&str], methods: &[&str]| Cors {
            origins: vec!["https://*.a.example".into()],
            methods: methods.iter().map(|text| (*text).to_owned()).collect(),
            headers: headers.iter().map(|text| (*text).to_owned()).collect(),
            max_age: 600,
            ..Cors::default()
        };
        let permit = |cors: &Cors| page(cors, "https://x.a.example").permit("PUT", &asked).map(|h| said(&h));
        let vary =
            ["vary: access-control-request-headers", "vary: access-control-request-method", "vary: origin"];
        let with = |headers: &str, methods: &str| {
            let mut all = vec![
                format!("allow-headers: {headers}"),
                format!("allow-methods: {methods}"),
                "allow-origin: https://x.a.example".to_owned(),
                "max-age: 600".to_owned(),
            ];
            all.extend(vary.map(str::to_owned));
            all
        };
        assert_eq!(permit(&cors(&[], &[])), Ok(with("content-type", "PUT")));
        assert_eq!(permit(&cors(&["x-c"], &["GET", "PUT"])), Ok(with("x-c, content-type", "GET, PUT")));
        assert_eq!(permit(&cors(&["*"], &[])), Ok(with("content-type, x-a, x-b", "PUT")));
        let named = with("authorization, content-type, x-a, x-b", "PUT");
        assert_eq!(permit(&cors(&["*", "authorization"], &[])), Ok(named));
        let other = page(&cors(&[], &[]), "https://a.example.evil").permit("PUT", &asked);
        assert_eq!(other.map_err(|error| error.code), Err(Code::PermissionDenied));
    }
}
