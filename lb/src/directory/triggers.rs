//! Which trigger of an app takes a request: the most special one that fits, found on a tree of segments.
//!
//! Paths without parameters, which most are, are found by one look into a table. The tree is gone through from the left, a literal before
//! a parameter before what takes the rest; no node is met twice, so a request costs at most as many steps as the app has segments.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use http::HeaderMap;
use http::header::HeaderName;
use stoker_core::function::{Cors, Trigger};
use stoker_core::trigger::Segment;

use super::Known;

/// What a request has that triggers ask for.
pub struct Asked<'a> {
    /// After `/t/{app}`, without escapes.
    pub path: &'a str,
    /// Its segments without escapes, where one of them has a slash in it.
    pub segments: Option<Vec<String>>,
    pub method: &'a str,
    /// Without its port.
    pub host: &'a str,
    pub headers: &'a HeaderMap,
    /// As it is written.
    pub query: &'a str,
}

/// A trigger that takes a request.
#[derive(Clone)]
pub struct Found {
    pub known: Arc<Known>,
    /// Its path as it was applied, where that has parameters or takes the rest of a path.
    pub pattern: Option<Arc<str>>,
    /// What the parameters stand for.
    pub parameters: Vec<(Arc<str>, String)>,
    pub cors: Option<Arc<Cors>>,
}

/// What became of the search.
pub enum Triggered {
    Found(Found),
    /// The path is one, and takes other methods.
    Methods(BTreeSet<String>),
    None,
}

/// One trigger.
struct Route {
    trigger: Trigger,
    pattern: Option<Arc<str>>,
    parameters: Vec<Parameter>,
    headers: Vec<(HeaderName, String)>,
    known: Arc<Known>,
    cors: Option<Arc<Cors>>,
}

struct Parameter {
    /// Its place among the segments.
    at: usize,
    name: Arc<str>,
    /// It stands for all from there on.
    rest: bool,
}

#[derive(Default)]
struct Node {
    literals: HashMap<String, Node>,
    parameter: Option<Box<Node>>,
    rest: Vec<Arc<Route>>,
    /// Whose path ends here.
    here: Vec<Arc<Route>>,
}

/// The triggers of one app.
#[derive(Default)]
pub struct Triggers {
    root: Node,
    /// Those of literal segments alone, whole.
    literals: HashMap<String, Vec<Arc<Route>>>,
    /// All that are asked for.
    hosts: BTreeSet<String>,
    has_patterns: bool,
}

impl Triggers {
    /// Adds a trigger of a function. One that is there already, by another of its revisions, stays.
    pub fn add(&mut self, trigger: &Trigger, known: &Arc<Known>) {
        let segments = trigger.segments();
        let literal = segments.iter().all(|segment| matches!(segment, Segment::Literal(_)));
        let parameters = segments.iter().enumerate().filter_map(|(at, segment)| match segment {
            Segment::Parameter(name) => Some(Parameter { at, name: Arc::from(*name), rest: false }),
            Segment::Rest(Some(name)) => Some(Parameter { at, name: Arc::from(*name), rest: true }),
            Segment::Literal(_) | Segment::Rest(None) => None,
        });
        let parameters = parameters.collect();
        let header =
            |(name, value): (&String, &String)| Some((HeaderName::try_from(name).ok()?, value.clone()));
        let cors = trigger.cors.clone().map(Arc::new);
        let route = Arc::new(Route {
            pattern: (!literal).then(|| Arc::from(trigger.http.as_str())),
            parameters,
            headers: trigger.headers.iter().filter_map(header).collect(),
            known: known.clone(),
            cors: cors.or_else(|| known.cors.clone()),
            trigger: trigger.clone(),
        });
        let leaf = match literal {
            true => self.literals.entry(trigger.http.clone()).or_default(),
            false => {
                self.has_patterns = true;
                let mut node = &mut self.root;
                let mut rest = false;
                for segment in &segments {
                    match segment {
                        Segment::Literal(text) => node = node.literals.entry((*text).to_owned()).or_default(),
                        Segment::Parameter(_) => node = node.parameter.get_or_insert_default(),
                        Segment::Rest(_) => rest = true,
                    }
                }
                if rest { &mut node.rest } else { &mut node.here }
            }
        };
        if leaf.iter().any(|other| other.trigger.conflicts(trigger)) {
            return;
        }
        self.hosts.extend(trigger.hosts.iter().cloned());
        leaf.push(route);
        leaf.sort_by_key(|route| {
            let trigger = &route.trigger;
            (trigger.methods.is_empty(), Reverse(trigger.headers.len()), Reverse(trigger.query.len()))
        });
    }

    /// The trigger that takes a request.
    pub fn find(&self, asked: &Asked<'_>) -> Triggered {
        let mut search = Search { asked, query: None, methods: BTreeSet::new(), host: None };
        if !self.hosts.is_empty() {
            let host = asked.host.to_ascii_lowercase();
            let below = host.match_indices('.').map(|(at, _)| format!("*{}", &host[at..]));
            for name in std::iter::once(host.clone()).chain(below).filter(|name| self.hosts.contains(name)) {
                search.host = Some(name);
                if let Some(found) = self.look(&mut search) {
                    return Triggered::Found(found);
                }
            }
        }
        search.host = None;
        match self.look(&mut search) {
            Some(found) => Triggered::Found(found),
            None if search.methods.is_empty() => Triggered::None,
            None => Triggered::Methods(search.methods),
        }
    }

    fn look(&self, search: &mut Search<'_>) -> Option<Found> {
        let path = search.asked.path;
        let whole = self.literals.get(path).and_then(|routes| search.first(routes));
        if let Some(route) = whole {
            return Some(route.found(&[]));
        }
        if !self.has_patterns {
            return None;
        }
        let segments: Vec<_> = match &search.asked.segments {
            Some(segments) => segments.iter().map(String::as_str).collect(),
            None => path.split('/').skip(1).collect(),
        };
        let route = search.walk(&self.root, &segments, 0)?;
        Some(route.found(&segments))
    }
}

impl Route {
    fn found(&self, segments: &[&str]) -> Found {
        let of = |Parameter { at, name, rest }: &Parameter| {
            let value = match rest {
                true => segments.get(*at..).unwrap_or_default().join("/"),
                false => segments.get(*at).copied().unwrap_or_default().to_owned(),
            };
            (name.clone(), value)
        };
        Found {
            known: self.known.clone(),
            pattern: self.pattern.clone(),
            parameters: self.parameters.iter().map(of).collect(),
            cors: self.cors.clone(),
        }
    }
}

/// One search.
struct Search<'a> {
    asked: &'a Asked<'a>,
    /// The parameters of the query, once somebody asks for one.
    query: Option<Vec<(Cow<'a, str>, Cow<'a, str>)>>,
    /// Those of triggers that would take the request by another.
    methods: BTreeSet<String>,
    /// Only triggers that name this one; `None`: those that name none.
    host: Option<String>,
}

impl Search<'_> {
    fn walk<'n>(&mut self, node: &'n Node, segments: &[&str], at: usize) -> Option<&'n Arc<Route>> {
        let Some(segment) = segments.get(at) else { return self.first(&node.here) };
        if let Some(route) = node.literals.get(*segment).and_then(|next| self.walk(next, segments, at + 1)) {
            return Some(route);
        }
        if !segment.is_empty()
            && let Some(route) = node.parameter.as_deref().and_then(|next| self.walk(next, segments, at + 1))
        {
            return Some(route);
        }
        self.first(&node.rest)
    }

    fn first<'n>(&mut self, routes: &'n [Arc<Route>]) -> Option<&'n Arc<Route>> {
        let mut fits = None;
        for route in routes {
            let trigger = &route.trigger;
            let host = match &self.host {
                Some(host) => trigger.hosts.contains(host),
                None => trigger.hosts.is_empty(),
            };
            if !host || !self.has(route) {
                continue;
            }
            match trigger.methods.is_empty() || trigger.methods.iter().any(|m| m == self.asked.method) {
                true => {
                    fits = Some(route);
                    break;
                }
                false => self.methods.extend(trigger.methods.iter().cloned()),
            }
        }
        fits
    }

    /// Whether the request has the headers and parameters that a trigger asks for.
    fn has(&mut self, route: &Route) -> bool {
        let asked = self.asked;
        let header = |(name, value): &(HeaderName, String)| {
            asked.headers.get_all(name).iter().any(|is| is.as_bytes() == value.as_bytes())
        };
        if !route.headers.iter().all(header) {
            return false;
        }
        if route.trigger.query.is_empty() {
            return true;
        }
        let query =
            self.query.get_or_insert_with(|| form_urlencoded::parse(asked.query.as_bytes()).collect());
        route.trigger.query.iter().all(|(name, value)| query.iter().any(|(k, v)| k == name && v == value))
    }
}
