//! The runners of a run: who comes and goes, what they say of themselves, and what they are told to keep.

use stoker_core::resources::Resources;
use stoker_policy::min_containers::PATIENCE;
use stoker_policy::placement::key;

use super::balancer::{Kept, Link};
use super::events::Event;
use super::node::Node;
use super::rivals::Known;
use super::{Active, NEWS_APART, REGISTRY, Run, Stage};
use crate::scenario::{Change, Placer};
use crate::trace::micros;

impl Run<'_> {
    /// A runner is there; nobody knows it yet.
    pub(super) fn add(&mut self, size: Resources) -> u32 {
        self.nodes.push(Node::new(size));
        self.news.push((Vec::new(), None));
        self.meter.added();
        (self.nodes.len() - 1) as u32
    }

    /// Everybody knows it.
    pub(super) fn list(&mut self, node: u32) {
        let name = format!("runner-{node}");
        let (key, size, now) =
            (key(name.as_bytes()), self.nodes[node as usize].size, self.rules.instant(self.now));
        for balancer in &mut self.balancers {
            let link = balancer.board.join(key, size, now, |seat| Link::new(node, seat));
            balancer.links.resize(balancer.links.len().max(node as usize + 1), None);
            balancer.links[node as usize] = Some(link);
        }
        let cores = (f64::from(size.cpu_millis) / 1000.0).max(0.001);
        self.listing.put(Known { node, key, cores, reported: 0 });
        for at in 0..self.balancers.len() {
            self.balancers[at].room(node, size);
            self.called(at);
        }
    }

    /// Every balancer decides which runners keep how many containers ready, and says so.
    pub(super) fn keep(&mut self) {
        let wanted = self.scenario.min_containers;
        if wanted == 0 || self.scenario.placer != Placer::Stoker {
            return;
        }
        for at in 0..self.balancers.len() {
            let now = self.rules.instant(self.now);
            for Kept { node, function, containers } in
                self.balancers[at].keep(wanted, &self.keys, &self.asks, &self.nodes, now)
            {
                if !self.nodes[node as usize].alive {
                    continue;
                }
                let ask = self.asks[function as usize];
                let which = (function, self.apps[function as usize]);
                self.nodes[node as usize].keep(at, which, ask, containers, self.now, &self.rules);
            }
        }
        (0..self.nodes.len() as u32).for_each(|node| self.acts(node));
        // A runner that cannot is passed over after a while.
        if !self.looks && self.nodes.iter().any(Node::is_short) {
            self.looks = true;
            self.after(micros(PATIENCE), Event::Keep);
        }
    }

    /// A function's warmth is news.
    pub(super) fn changed(&mut self, node: u32, function: u32) {
        if self.scenario.placer != Placer::Stoker {
            return;
        }
        let (changed, last) = &mut self.news[node as usize];
        let due = changed.is_empty();
        if !changed.contains(&function) {
            changed.push(function);
        }
        if due {
            let wait = last.map_or(0, |last| (last + NEWS_APART).saturating_sub(self.now));
            let life = self.nodes[node as usize].life;
            self.after(wait, Event::News { node, life });
        }
    }

    pub(super) fn heard(&mut self, node: u32) {
        let mut changed = std::mem::take(&mut self.news[node as usize].0);
        let now = self.rules.instant(self.now);
        let room = self.nodes[node as usize].room();
        for at in 0..self.balancers.len() {
            let balancer = &mut self.balancers[at];
            let Some(link) = balancer.link(node).cloned() else { continue };
            balancer.board.freed(link.seat());
            for function in &changed {
                let warmth = self.nodes[node as usize].warmth(*function);
                balancer.board.said(link.seat(), self.keys[*function as usize], warmth, now);
            }
            let given = balancer.room(node, room);
            self.called(at);
            let mut cpu = room.cpu_millis;
            for function in changed.iter().filter(|_| !given) {
                let idle = self.nodes[node as usize].warmth(*function).idle;
                cpu = self.idle(at, *function, node, idle, cpu);
            }
        }
        changed.clear();
        // What changed while the news was told is the next news.
        changed.append(&mut self.news[node as usize].0);
        let more = !changed.is_empty();
        self.news[node as usize].0 = changed;
        if more {
            let life = self.nodes[node as usize].life;
            self.after(NEWS_APART, Event::News { node, life });
        }
    }

    pub(super) fn tell(&mut self, node: u32) {
        let at = (self.now + REGISTRY).max(self.silent_until);
        self.at(at, Event::Listed { node });
    }

    pub(super) fn change(&mut self, nth: u32) {
        let Some((_, change)) = self.scenario.changes.get(nth as usize).copied() else { return };
        match change {
            Change::Silence { lasts } => self.silent_until = self.now + lasts,
            Change::Add { size } => {
                let node = self.add(size);
                self.tell(node);
            }
            Change::Kill { runner, back } => {
                if self.nodes.get(runner).is_some_and(|node| node.alive) {
                    self.kill(runner as u32);
                    if let Some(back) = back {
                        self.after(back, Event::Back { node: runner as u32 });
                    }
                }
            }
        }
        self.meter.changed(self.now);
    }

    pub(super) fn kill(&mut self, node: u32) {
        self.meter.idle(node, &self.nodes[node as usize], self.now);
        self.nodes[node as usize].kill();
        self.news[node as usize] = (Vec::new(), None);
        for balancer in &mut self.balancers {
            if let Some(link) = balancer.gone(node) {
                link.open(false);
                balancer.board.leave(link.seat());
            }
        }
        self.listing.remove(node);
        let there = |active: &Active| active.node == node && active.stage != Stage::Placing;
        let of_it: Vec<(u32, Stage)> = (0u32..)
            .zip(&self.calls)
            .filter(|(call, active)| there(active) && !self.free.contains(call))
            .map(|(call, active)| (call, active.stage))
            .collect();
        for (call, stage) in of_it {
            match stage {
                Stage::Running => {
                    self.exit(call);
                    self.lost(call);
                }
                // An answer that is on its way arrives; what has not begun is offered elsewhere.
                Stage::Answering | Stage::Placing => {}
                Stage::Offered | Stage::Held => {
                    self.stamp(call);
                    let active = &mut self.calls[call as usize];
                    (active.in_line, active.second, active.ready) = (false, false, None);
                    self.refused(call, None, false);
                }
            }
        }
        self.keep();
    }
}
