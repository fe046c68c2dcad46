//! Places for calls of functions of which there may be so many at once, over all who let calls in.
//!
//! The store sees to it that all who hold some together never hold more than there are. Who should hold how many they settle themselves, by what
//! each says that it wants: every holder sees the claims of all.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use stoker_core::function::FunctionName;
use tokio::sync::watch;

use crate::Error;

/// What one holder has of a function's places, and would have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Claim {
    pub places: u32,
    /// What its calls would take if there were enough.
    pub wants: u32,
    /// Its turn, where places do not divide evenly.
    pub ticket: u64,
}

impl Claim {
    /// So many, and no more.
    #[must_use]
    pub fn of(places: u32) -> Self {
        Self { places, wants: places, ticket: 0 }
    }

    /// Nothing is held and nothing wanted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.places == 0 && self.wants == 0
    }
}

/// The claims on one function, by holder.
pub type ByHolder = BTreeMap<String, Claim>;

/// All claims.
#[derive(Debug, Clone, Default)]
pub struct Claims {
    pub by_function: BTreeMap<FunctionName, Arc<ByHolder>>,
}

impl Claims {
    pub(crate) fn put(&mut self, name: FunctionName, holder: &str, claim: Claim) {
        if claim.is_empty() {
            return self.remove(&name, holder);
        }
        Arc::make_mut(self.by_function.entry(name).or_default()).insert(holder.to_owned(), claim);
    }

    pub(crate) fn remove(&mut self, name: &FunctionName, holder: &str) {
        let Some(holders) = self.by_function.get_mut(name) else { return };
        Arc::make_mut(holders).remove(holder);
        if holders.is_empty() {
            self.by_function.remove(name);
        }
    }
}

/// See the module.
#[async_trait]
pub trait Places: Send + Sync {
    /// Who holds them here.
    fn holder(&self) -> &str;

    /// Claims places of a function, fewer than before too: as many are held as all holders together stay within the limit with; how many that is.
    /// What is held and wanted is seen by all.
    ///
    /// # Errors
    /// The store's. What is held then is not known.
    async fn hold(&self, name: &FunctionName, limit: u32, claim: Claim) -> Result<u32, Error>;

    /// The claims of all holders, this one's too, now and as they change.
    fn claims(&self) -> watch::Receiver<Arc<Claims>>;

    /// Counts how often everything that was held may have gone to others, because the store had not heard of the holder for too long.
    fn lost(&self) -> watch::Receiver<u64>;
}
