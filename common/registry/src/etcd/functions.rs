//! Changes of the functions: transactions that do all or nothing.
//!
//! Whether a change is allowed depends on other functions (two must not claim one path), so a writer reads all of them at one revision
//! and writes only if no other writer came between: every change also writes the guard key, and requires that the guard has not
//! changed since that revision.

use std::collections::BTreeMap;
use std::sync::Arc;

use etcd_client::{Client, Compare, CompareOp, Txn, TxnOp, TxnOpResponse, TxnResponse};
use stoker_core::function::{FunctionName, FunctionSpec};

use super::link::{self, Link};
use super::record;
use super::view::{self, Table as _};
use crate::{Applied, Error, Functions, check_triggers};

/// Operations in one inner transaction. etcd allows 128, less those around it: so 63 times 64 functions can be applied at once.
const TOGETHER: usize = 64;

/// What a change did, and the revision at which it is there.
pub struct Changed<T> {
    pub what: T,
    pub revision: i64,
}

/// Creates or replaces functions.
pub async fn apply(link: &Link, specs: &[FunctionSpec]) -> Result<Changed<Vec<Applied>>, Error> {
    let attempt = "saving functions";
    loop {
        let (rows, revision) =
            link.ask(attempt, async |client| view::list(link, &client, Functions::PREFIX).await).await?;
        let mut there = Functions::default();
        for row in &rows {
            let key = String::from_utf8_lossy(row.key());
            // What cannot be read is reported by the view, and gives way to what is applied.
            _ = there.put(key.strip_prefix(Functions::PREFIX).unwrap_or(&key), row.value());
        }
        let mut changes = BTreeMap::new();
        let mut applied = Vec::with_capacity(specs.len());
        for spec in specs {
            let spec = Arc::new(spec.clone());
            let before = there.by_name.insert(spec.name.clone(), spec.clone());
            let did = match before {
                None => Applied::Created,
                Some(old) if old == spec => Applied::Unchanged,
                Some(_) => Applied::Updated,
            };
            if did != Applied::Unchanged {
                changes.insert(record::function_key(&spec.name), record::function_value(&spec));
            }
            applied.push(did);
        }
        check_triggers(&there.by_name)?;
        if changes.is_empty() {
            // The revision of the list may be that of a runner's record, which no view of the functions ever reaches.
            let newest = rows.iter().map(etcd_client::KeyValue::mod_revision).max();
            return Ok(Changed { what: applied, revision: newest.unwrap_or(0) });
        }
        let guard = Compare::mod_revision(record::FUNCTIONS_GUARD, CompareOp::Less, revision + 1);
        let puts: Vec<TxnOp> = changes.into_iter().map(|(key, value)| TxnOp::put(key, value, None)).collect();
        let all = puts.chunks(TOGETHER).map(|some| TxnOp::txn(Txn::new().and_then(some)));
        let all: Vec<TxnOp> = std::iter::once(guard_put()).chain(all).collect();
        let done = commit(link, attempt, Txn::new().when([guard]).and_then(all)).await?;
        if done.succeeded() {
            return Ok(Changed { what: applied, revision: revision_of(&done) });
        }
        // Another writer came between, so there was progress: look again.
    }
}

/// Removes a function; says whether there was one.
pub async fn delete(link: &Link, name: &FunctionName) -> Result<Changed<bool>, Error> {
    let key = record::function_key(name);
    let there = Compare::version(key.as_str(), CompareOp::Greater, 0);
    let txn = Txn::new()
        .when([there])
        .and_then([guard_put(), TxnOp::delete(key, None)])
        .or_else([TxnOp::get(record::FUNCTIONS_GUARD, None)]);
    let done = commit(link, "deleting a function", txn).await?;
    // Where there was nothing to delete, a view must have come as far as the last change, and may never come further.
    let revision = if done.succeeded() { revision_of(&done) } else { last_change(&done) };
    Ok(Changed { what: done.succeeded(), revision })
}

/// When functions were changed last, by the guard that was read.
fn last_change(done: &TxnResponse) -> i64 {
    let guards = done.op_responses();
    let guards = guards.iter().filter_map(|answer| match answer {
        TxnOpResponse::Get(found) => found.kvs().first().map(etcd_client::KeyValue::mod_revision),
        _ => None,
    });
    guards.max().unwrap_or(0)
}

async fn commit(link: &Link, attempt: &str, txn: Txn) -> Result<TxnResponse, Error> {
    link.ask(attempt, async |client: Client| link.within(link::kv(&client).txn(txn.clone())).await).await
}

fn guard_put() -> TxnOp {
    TxnOp::put(record::FUNCTIONS_GUARD, record::guard_value(), None)
}

fn revision_of(done: &TxnResponse) -> i64 {
    done.header().map_or(0, etcd_client::ResponseHeader::revision)
}
