//! Changes of the functions: transactions that do all or nothing.
//!
//! Whether a change is allowed depends on other functions (two must not claim one path), so a writer reads all of them at one revision
//! and writes only if no other writer came between: every change also writes the guard key, and requires that the guard has not
//! changed since that revision. What is written is the difference between the rows as they are and as they are to be.

use std::collections::BTreeMap;

use etcd_client::{Client, Compare, CompareOp, DeleteOptions, Txn, TxnOp, TxnOpResponse, TxnResponse};
use stoker_core::function::FunctionName;

use super::link::{self, Link};
use super::record;
use super::view::{self, Table};
use crate::{Error, Functions};

/// Operations in one inner transaction. etcd allows 128, less those around it: so 63 times 64 rows can be changed at once.
const TOGETHER: usize = 64;

/// What a change did, and the revision at which it is there.
pub struct Changed<T> {
    pub what: T,
    pub revision: i64,
}

/// Rows by key.
type Rows = BTreeMap<String, Vec<u8>>;

/// Changes the functions of these names, and no others.
pub async fn change<T>(
    link: &Link,
    attempt: &str,
    names: &[FunctionName],
    change: impl Fn(&mut Functions) -> Result<T, Error>,
) -> Result<Changed<T>, Error> {
    loop {
        let (rows, revision) =
            link.ask(attempt, async |client| view::list(link, &client, Functions::PREFIX).await).await?;
        let (mut functions, mut before) = (Functions::default(), Rows::new());
        let newest = rows.iter().map(etcd_client::KeyValue::mod_revision).max();
        for row in rows {
            let (key, value) = row.into_key_value();
            let key = String::from_utf8_lossy(&key).into_owned();
            let name = key.strip_prefix(Functions::PREFIX).unwrap_or(&key);
            // What cannot be read is reported by the view, and gives way to what is applied.
            _ = Table::put(&mut functions, name, &value);
            if record::function_of(name).is_some_and(|(name, _)| names.contains(&name)) {
                before.insert(key, value);
            }
        }
        let what = change(&mut functions)?;
        let after = written(&functions, names);
        let gone = before.keys().filter(|key| !after.contains_key(*key));
        let gone: Vec<TxnOp> = gone.map(|key| TxnOp::delete(key.as_str(), None)).collect();
        let made = after.into_iter().filter(|(key, value)| before.get(key) != Some(value));
        let all: Vec<TxnOp> = made.map(|(key, value)| TxnOp::put(key, value, None)).chain(gone).collect();
        if all.is_empty() {
            // The revision of the list may be that of a runner's record, which no view of the functions ever reaches.
            return Ok(Changed { what, revision: newest.unwrap_or(0) });
        }
        let guard = Compare::mod_revision(record::FUNCTIONS_GUARD, CompareOp::Less, revision + 1);
        let all = all.chunks(TOGETHER).map(|some| TxnOp::txn(Txn::new().and_then(some)));
        let all: Vec<TxnOp> = std::iter::once(guard_put()).chain(all).collect();
        let done = commit(link, attempt, Txn::new().when([guard]).and_then(all)).await?;
        if done.succeeded() {
            return Ok(Changed { what, revision: revision_of(&done) });
        }
        // Another writer came between, so there was progress: look again.
    }
}

/// The rows of these functions as they are to be.
fn written(functions: &Functions, names: &[FunctionName]) -> Rows {
    let mut rows = Rows::new();
    for name in names {
        if let Some(release) = functions.releases.get(name) {
            rows.insert(record::function_key(name), record::function_value(release));
        }
        for revision in functions.older.get(name).into_iter().flat_map(|older| older.values()) {
            rows.insert(record::revision_key(name, revision.number), record::revision_value(revision));
        }
    }
    rows
}

/// Removes a function with its revisions; says whether there was one.
pub async fn delete(link: &Link, name: &FunctionName) -> Result<Changed<bool>, Error> {
    let key = record::function_key(name);
    let there = Compare::version(key.as_str(), CompareOp::Greater, 0);
    let older = TxnOp::delete(format!("{key}/"), Some(DeleteOptions::new().with_prefix()));
    let txn = Txn::new()
        .when([there])
        .and_then([guard_put(), TxnOp::delete(key, None), older])
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

pub async fn commit(link: &Link, attempt: &str, txn: Txn) -> Result<TxnResponse, Error> {
    link.ask(attempt, async |client: Client| link.within(link::kv(&client).txn(txn.clone())).await).await
}

fn guard_put() -> TxnOp {
    TxnOp::put(record::FUNCTIONS_GUARD, record::guard_value(), None)
}

pub fn revision_of(done: &TxnResponse) -> i64 {
    done.header().map_or(0, etcd_client::ResponseHeader::revision)
}
