//! Keys: what a setting is called, how it is given, and what it is without that.

use std::any::Any;
use std::sync::Arc;

use super::kind::{Kind, Shape};
use super::{Item, Origin, PREFIX, words};

/// Where a value comes from that nobody gave.
#[derive(Debug, Clone, Copy)]
pub(super) enum Fallback {
    Text(&'static str),
    /// Found out on this machine; the error says why it cannot be.
    Found(fn() -> Result<String, String>),
    Nothing,
    Mistake,
}

/// What is known of a key without its type.
#[derive(Debug)]
pub struct Spec {
    pub(super) name: &'static str,
    pub(super) help: &'static str,
    pub(super) what: &'static str,
    pub(super) shape: Shape,
    pub(super) fallback: Fallback,
    pub(super) flag: Option<&'static str>,
    /// Further variables, each below the one before.
    pub(super) variables: &'static [&'static str],
    pub(super) secret: bool,
    /// A running process takes up a new value.
    pub(super) live: bool,
}

impl Spec {
    /// Its section, if it is in one, and its name there.
    pub(super) fn place(&self) -> (Option<&'static str>, &'static str) {
        match self.name.split_once('.') {
            Some((section, key)) => (Some(section), key),
            None => (None, self.name),
        }
    }

    pub(super) fn flag(&self) -> String {
        self.flag.map_or_else(|| self.name.replace(['.', '_'], "-"), str::to_owned)
    }

    /// Its variables, the highest first.
    pub(super) fn variables(&self) -> impl Iterator<Item = String> {
        let own = format!("{PREFIX}{}", self.name.replace(['.', '-'], "_").to_uppercase());
        std::iter::once(own).chain(self.variables.iter().map(|name| (*name).to_owned()))
    }

    /// Splits the one text that a variable, a flag or a default has.
    pub(super) fn items(&self, text: &str, origin: &Origin) -> Vec<Item> {
        let item = |key: String, text: String| Item { key, text, origin: origin.clone() };
        let parts = || text.split(',').map(str::trim).filter(|part| !part.is_empty());
        match self.shape {
            Shape::One | Shape::Switch => vec![item(String::new(), text.to_owned())],
            Shape::List => parts().map(|part| item(String::new(), part.to_owned())).collect(),
            Shape::Map => parts()
                .map(|part| match part.split_once('=') {
                    Some((key, value)) => item(key.trim().to_owned(), words::percent_decoded(value.trim())),
                    None => item(String::new(), part.to_owned()),
                })
                .collect(),
        }
    }
}

/// The numbers of wrong items, and for each what would be right.
pub type Problems = Vec<(usize, String)>;

/// What [`Declared::read`] made of a value.
pub(super) type Value = Arc<dyn Any + Send + Sync>;

/// A declared key of any type, as a table lists it.
pub trait Declared: Sync {
    /// What is known of it without its type.
    fn spec(&self) -> &Spec;

    /// The checked value, or what is wrong with which item.
    ///
    /// # Errors
    /// What is wrong.
    fn read(&self, items: &[Item]) -> Result<Value, Problems>;
}

/// A key that always has a value.
#[derive(Debug)]
pub struct Key<T: 'static> {
    pub(super) spec: Spec,
    kind: Kind<T>,
}

impl<T> Key<T> {
    /// A key with a default, written like a variable's value.
    pub const fn new(name: &'static str, kind: Kind<T>, default: &'static str, help: &'static str) -> Self {
        Self::with(name, kind, Fallback::Text(default), help)
    }

    /// A key whose default is found out on this machine.
    pub const fn found(
        name: &'static str,
        kind: Kind<T>,
        default: fn() -> Result<String, String>,
        help: &'static str,
    ) -> Self {
        Self::with(name, kind, Fallback::Found(default), help)
    }

    /// A key that somebody must give.
    pub const fn required(name: &'static str, kind: Kind<T>, help: &'static str) -> Self {
        Self::with(name, kind, Fallback::Mistake, help)
    }

    const fn with(name: &'static str, kind: Kind<T>, fallback: Fallback, help: &'static str) -> Self {
        let (what, shape) = (kind.what, kind.shape);
        let spec = Spec {
            name,
            help,
            what,
            shape,
            fallback,
            flag: None,
            variables: &[],
            secret: false,
            live: false,
        };
        Self { spec, kind }
    }

    /// With a flag of another name than the key's.
    #[must_use]
    pub const fn flag(mut self, flag: &'static str) -> Self {
        self.spec.flag = Some(flag);
        self
    }

    /// With further variables, below its own, each below the one before.
    #[must_use]
    pub const fn variables(mut self, variables: &'static [&'static str]) -> Self {
        self.spec.variables = variables;
        self
    }

    /// Its value is never shown.
    #[must_use]
    pub const fn secret(mut self) -> Self {
        self.spec.secret = true;
        self
    }

    /// A running process takes up a new value when it reads its settings again: whoever declares it so sees to that.
    #[must_use]
    pub const fn live(mut self) -> Self {
        self.spec.live = true;
        self
    }

    /// The same key, but with nothing where nobody gives a value.
    #[must_use]
    pub const fn optional(mut self) -> Maybe<T> {
        self.spec.fallback = Fallback::Nothing;
        Maybe(self)
    }
}

impl<T: Clone + Send + Sync> Declared for Key<T> {
    fn spec(&self) -> &Spec {
        &self.spec
    }

    fn read(&self, items: &[Item]) -> Result<Value, Problems> {
        let value = self.kind.read(items).map_err(|mut problems| {
            if self.spec.secret {
                // What a parser says quotes what it read.
                let instead = format!("is not valid; it is a secret and not shown: write {}", self.spec.what);
                problems.iter_mut().for_each(|(_, text)| text.clone_from(&instead));
            }
            problems
        })?;
        Ok(Arc::new(value))
    }
}

/// A key that may have no value.
#[derive(Debug)]
pub struct Maybe<T: 'static>(pub(super) Key<T>);

impl<T: Clone + Send + Sync> Declared for Maybe<T> {
    fn spec(&self) -> &Spec {
        self.0.spec()
    }

    fn read(&self, items: &[Item]) -> Result<Value, Problems> {
        self.0.read(items)
    }
}

/// Keys that belong together.
pub type Table = &'static [&'static dyn Declared];
