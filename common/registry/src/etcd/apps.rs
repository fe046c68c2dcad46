//! Changes of the records of apps: each stands alone, so a comparison with what was read is enough.

use etcd_client::{Compare, CompareOp, Txn, TxnOp};

use super::functions::{Changed, commit, revision_of};
use super::link::{self, Link};
use super::record;
use crate::Error;
use crate::apps::{self, App};

/// Writes a record over the one that it says it was made of.
pub async fn put(link: &Link, name: &str, app: &App) -> Result<Changed<()>, Error> {
    const ATTEMPT: &str = "saving an app";
    let key = record::app_key(name);
    let mut tried: Option<Vec<u8>> = None;
    loop {
        let read = async |client| Ok(link.within(link::kv(&client).get(key.as_str(), None)).await?);
        let read: etcd_client::GetResponse = link.ask(ATTEMPT, read).await?;
        let row = read.kvs().first();
        let (there, revision) = row.map_or((None, 0), |row| (Some(row.value()), row.mod_revision()));
        // The answer to what was written was lost on its way.
        if there.is_some() && there == tried.as_deref() {
            return Ok(Changed { what: (), revision });
        }
        // What cannot be read is reported by the view, and gives way.
        let before = there.and_then(|value| record::app(value).ok()).map(|app| app.changes);
        let value = record::app_value(&apps::next(before, name, app.clone())?);
        let same = Compare::mod_revision(key.as_str(), CompareOp::Equal, revision);
        let txn = Txn::new().when([same]).and_then([TxnOp::put(key.as_str(), value.clone(), None)]);
        let done = commit(link, ATTEMPT, txn).await?;
        if done.succeeded() {
            return Ok(Changed { what: (), revision: revision_of(&done) });
        }
        // Somebody else wrote, or this did, unheard: look again.
        tried = Some(value);
    }
}

/// Removes a record; says whether there was one.
pub async fn delete(link: &Link, name: &str) -> Result<Changed<bool>, Error> {
    let key = record::app_key(name);
    let there = Compare::version(key.as_str(), CompareOp::Greater, 0);
    let txn = Txn::new().when([there]).and_then([TxnOp::delete(key, None)]);
    let done = commit(link, "deleting an app", txn).await?;
    // Where there was nothing to delete there is nothing to wait for.
    let revision = if done.succeeded() { revision_of(&done) } else { 0 };
    Ok(Changed { what: done.succeeded(), revision })
}
