//! When secrets are replaced, or a function's files: containers that have the former ones end, and those that come instead have the new ones.
//!
//! What is idle ends at once, what has calls takes no more of them and ends with the last: no call sees it. What is there is compared with what each
//! container was launched with, when its files may have changed and once after each launch: a launch reads before its files are watched, and another
//! may have been under way when they changed. What cannot be read changes nothing.
//!
//! Nobody here knows what a container has read of its function's own files: who changed them says so ([`Pools::renew`]), and all that were launched before go.

use std::sync::Arc;
use std::time::Duration;

use stoker_core::function::{Digest, FunctionSpec};
use stoker_runtime::reload::Changed;

use super::why::Ended;
use super::{Action, Inner, Pools, STOP_GRACE};
use crate::container::Container;
use crate::secrets::Watch;

/// A version with secrets that has containers.
struct User {
    digest: Digest,
    spec: Arc<FunctionSpec>,
    /// Not all of its containers were compared.
    new: bool,
}

impl Pools {
    /// From now on no container stays for long with secrets that were replaced. Ends with the runner.
    pub fn watch_secrets(self: &Arc<Self>) {
        if let Some(watch) = self.launcher.secrets.watch() {
            self.tasks.spawn(self.clone().follow_secrets(watch));
        }
    }

    async fn follow_secrets(self: Arc<Self>, mut watch: Watch) {
        loop {
            let round = async {
                let mut changed = tokio::select! {
                    changed = watch.changed() => changed,
                    () = self.uncompared.notified() => Changed::default(),
                };
                changed.extend(watch.quiet().await);
                self.compare(&mut watch, &changed).await;
            };
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = round => {}
            }
        }
    }

    /// Compares where something changed and where that was not done yet.
    pub(super) async fn compare(self: &Arc<Self>, watch: &mut Watch, changed: &Changed) {
        let users = self.inner().users();
        // First, so that nothing changes unseen after it was read.
        watch.cover(users.iter().map(|user| &*user.spec));
        for User { digest, spec, new } in users {
            if !new && !watch.concerns(changed, &spec) {
                continue;
            }
            match self.launcher.secrets.resolve(&spec).await {
                Ok(secrets) => self.rotate(digest, &secrets),
                Err(error) => {
                    tracing::warn!(function = %spec.name, %error, "its containers keep the secrets that they have");
                }
            }
        }
    }

    /// Lets go what was launched with others than these.
    fn rotate(self: &Arc<Self>, digest: Digest, secrets: &[(String, String)]) {
        let there = self.inner().containers(&digest);
        // Not under the lock: they may be long.
        let (same, former): (Vec<_>, Vec<_>) =
            there.into_iter().partition(|(_, container)| container.was_told(secrets));
        let mut actions = Vec::new();
        let mut inner = self.inner();
        let Some(version) = inner.versions.get_mut(&digest) else { return };
        for (seq, _) in &same {
            if let Some(member) = version.members.get_mut(seq) {
                member.compared = true;
            }
        }
        if former.is_empty() {
            return;
        }
        for (seq, _) in &former {
            if let Some(member) = version.members.get_mut(seq) {
                member.compared = true;
            }
        }
        let busy = inner.let_go(digest, former.iter().map(|(seq, _)| *seq), DRAINED, &mut actions);
        if busy > 0 || !actions.is_empty() {
            let (function, idle) = (&former[0].1.spec.name, actions.len());
            tracing::info!(%function, idle, busy, "secrets were replaced: containers that have the former ones go");
        }
        self.pump(&mut inner, &mut actions);
        self.refill(&mut inner, digest, true, &mut actions);
        drop(inner);
        self.act(actions);
        self.changed.notify_one();
    }

    /// Lets go what was launched of these functions, launches that are under way among it: their files are others now.
    pub fn renew(self: &Arc<Self>, which: impl Fn(&FunctionSpec) -> bool) {
        let mut actions = Vec::new();
        let mut inner = self.inner();
        let concerned = inner.versions.iter().filter(|(_, version)| which(&version.spec));
        let concerned: Vec<Digest> = concerned.map(|(digest, _)| *digest).collect();
        for digest in concerned {
            let Some(version) = inner.versions.get_mut(&digest) else { continue };
            let mut there = Vec::new();
            for (seq, member) in &mut version.members {
                match member.container {
                    Some(_) => there.push(*seq),
                    None => member.stale = true,
                }
            }
            inner.let_go(digest, there, DRAINED, &mut actions);
            self.pump(&mut inner, &mut actions);
            self.refill(&mut inner, digest, true, &mut actions);
        }
        drop(inner);
        self.act(actions);
        self.changed.notify_one();
    }
}

/// How those end that nothing but what they were launched with speaks against.
pub(super) const DRAINED: (Duration, Ended) = (STOP_GRACE, Ended::Drained);

impl Inner {
    /// Ends these where they are idle; the others take no more calls and end with the last. How many those are. Idle ones have so long to end.
    pub(super) fn let_go(
        &mut self,
        digest: Digest,
        which: impl IntoIterator<Item = u64>,
        (grace, why): (Duration, Ended),
        actions: &mut Vec<Action>,
    ) -> usize {
        let mut busy = 0;
        for seq in which {
            let Some(version) = self.versions.get_mut(&digest) else { break };
            let Some(member) = version.members.get_mut(&seq) else { continue };
            if member.calls == 0 {
                actions.extend(self.stop(digest, seq, grace, why));
            } else if member.serves() {
                member.doomed = Some(why);
                version.ready.retain(|ready| *ready != seq);
                busy += 1;
            }
        }
        busy
    }

    fn users(&self) -> Vec<User> {
        let with = self.versions.iter().filter(|(_, version)| !version.spec.secrets.is_empty());
        let users = with.filter_map(|(digest, version)| {
            let mut there = version.members.values().filter(|member| member.container.is_some()).peekable();
            there.peek()?;
            Some(User {
                digest: *digest,
                spec: version.spec.clone(),
                new: there.any(|member| !member.compared),
            })
        });
        users.collect()
    }

    fn containers(&self, digest: &Digest) -> Vec<(u64, Arc<Container>)> {
        let members = self.versions.get(digest).into_iter().flat_map(|version| &version.members);
        members.filter_map(|(seq, member)| Some((*seq, member.container.clone()?))).collect()
    }
}
