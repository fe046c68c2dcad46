//! The processes of a sandbox as their init has them: the command's, those beside it, and what they left behind.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{Timespec, poll};
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process};

use super::processes;
use super::zygote::Zygote;
use crate::sys;
use crate::wire::{End, Failure, Plan, Program, Report};

pub struct ProcessTree {
    /// The command's process, while it lives.
    command: Option<Pid>,
    /// Those beside it, with the numbers that the runner knows them by.
    companions: Vec<(Pid, u64)>,
    /// What all of them are copies of; where the sandbox stays.
    zygote: Option<Zygote>,
    stays: bool,
    /// What the command's process is a copy for.
    program: Program,
    isolate: bool,
    signals: OwnedFd,
    stop_signal: Option<Signal>,
    watch: Option<Watch>,
    stopped: bool,
    out_of_memory: bool,
    over: bool,
}

impl ProcessTree {
    /// `first` is the function's process: the zygote, where there is one.
    ///
    /// # Errors
    /// When the zygote does not say what came of its first process.
    pub fn new(
        first: Pid,
        mut zygote: Option<Zygote>,
        isolate: bool,
        signals: OwnedFd,
        plan: &Plan,
    ) -> Result<Self, Failure> {
        let command = match &mut zygote {
            None => Some(first),
            // One that is gone has told the runner why.
            Some(zygote) => zygote.first()?,
        };
        Ok(Self {
            command,
            companions: Vec::new(),
            zygote,
            stays: plan.stays,
            program: plan.program.clone(),
            isolate,
            signals,
            stop_signal: Signal::from_named_raw(plan.stop_signal),
            watch: plan.watch_memory.map(Watch::new),
            stopped: false,
            out_of_memory: false,
            over: false,
        })
    }

    pub fn signals(&self) -> &OwnedFd {
        &self.signals
    }

    /// There is nothing left to look after.
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// Takes the signals that have come: what has ended.
    pub fn hear(&mut self) -> Vec<Report> {
        while let Some(signal) = sys::next_signal(self.signals.as_fd()) {
            if signal != libc::SIGCHLD {
                self.terminate();
            }
        }
        let mut reports = Vec::new();
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            reports.extend(self.ended(pid, status));
        }
        if reports.iter().any(|report| matches!(report, Report::Ended(_))) {
            self.finish();
        }
        reports
    }

    fn ended(&mut self, pid: Pid, status: WaitStatus) -> Option<Report> {
        if self.zygote.as_ref().is_some_and(|zygote| zygote.pid == pid) {
            // It is asked for nothing any more.
            self.zygote = None;
            return None;
        }
        let peak = self.watch.as_ref().map_or(0, |watch| watch.highest);
        let (code, signal) = (status.exit_status(), status.terminating_signal());
        let end = End { code, signal, out_of_memory: self.out_of_memory, peak };
        if self.command == Some(pid) {
            self.command = None;
            return Some(if self.stays { Report::Over { number: 0, end } } else { Report::Ended(end) });
        }
        let at = self.companions.iter().position(|(companion, _)| *companion == pid)?;
        let (_, number) = self.companions.swap_remove(at);
        Some(Report::Over { number, end })
    }

    pub fn terminate(&self) {
        self.tell_command(self.stop_signal);
    }

    pub fn kill_command(&self) {
        self.tell_command(Some(Signal::KILL));
    }

    fn tell_command(&self, signal: Option<Signal>) {
        if let (Some(command), Some(signal)) = (self.command, signal) {
            // Gone already is as good.
            kill_process(command, signal).ok();
        }
    }

    /// Kills everything, the zygote too.
    pub fn kill(&self) {
        if self.isolate {
            sys::kill_all(libc::SIGKILL).ok();
            return;
        }
        self.kill_but(None);
    }

    /// Kills what is seen, but this one. `false` if there was nothing.
    fn kill_but(&self, spared: Option<Pid>) -> bool {
        let mut seen = false;
        let members = processes::members(self.isolate).into_iter().map(|process| process.pid);
        // Whoever is not shown becomes our child in the end.
        let all = members.chain(processes::children());
        for pid in all.filter_map(Pid::from_raw).filter(|pid| Some(*pid) != spared) {
            // Gone already is as good.
            kill_process(pid, Signal::KILL).ok();
            seen = true;
        }
        seen
    }

    /// Kills everything, for good.
    pub fn end(&mut self) {
        self.kill();
        // Else the end of the command is the end, and is told.
        if self.stays {
            self.finish();
            self.over = true;
        }
    }

    /// After the function: the kernel ends a pid namespace with its init; plain processes are hunted down, each round
    /// moving the orphans of the last one up to us.
    fn finish(&self) {
        if self.isolate {
            return;
        }
        loop {
            self.kill();
            match rustix::process::wait(WaitOptions::empty()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(_) => return,
            }
        }
    }

    /// Kills all but the zygote, and has it make another process for the command.
    ///
    /// # Errors
    /// Without a zygote that does.
    pub fn again(&mut self, pipes: [OwnedFd; 4]) -> Result<(), Failure> {
        let spared = self.zygote.as_ref().map(|zygote| zygote.pid).ok_or_else(no_zygote)?;
        // Whoever stands still forks nothing: after this there are no more than are seen.
        match self.isolate {
            // Reaches all at once.
            true => _ = sys::kill_all(libc::SIGSTOP),
            false => self.stop(),
        }
        while self.kill_but(Some(spared)) {
            // What is left behind by one that ends becomes our child.
            match rustix::process::wait(WaitOptions::empty()) {
                Ok(Some((pid, _))) if pid == spared => {
                    self.zygote = None;
                    return Err(no_zygote());
                }
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(_) => break,
            }
        }
        kill_process(spared, Signal::CONT).ok();
        self.stopped = false;
        (self.command, self.out_of_memory) = (None, false);
        self.companions.clear();
        self.command = Some(self.fork(self.program.clone(), pipes)?);
        Ok(())
    }

    /// Has another process made beside the command's.
    ///
    /// # Errors
    /// Without a zygote that does.
    pub fn spawn(&mut self, number: u64, program: Program, pipes: [OwnedFd; 4]) -> Result<(), Failure> {
        let pid = self.fork(program, pipes)?;
        self.companions.push((pid, number));
        Ok(())
    }

    fn fork(&mut self, program: Program, pipes: [OwnedFd; 4]) -> Result<Pid, Failure> {
        self.zygote.as_mut().ok_or_else(no_zygote)?.fork(program, &pipes)?.ok_or_else(no_zygote)
    }

    /// Stops everything and returns once it stands still. Without a cgroup: by signal, repeated until no process is left
    /// that runs, since a fork may be under way.
    pub fn stop(&mut self) {
        self.stopped = true;
        loop {
            let running: Vec<_> =
                processes::members(self.isolate).into_iter().filter(processes::Process::runs).collect();
            if running.is_empty() {
                return;
            }
            if self.isolate {
                sys::kill_all(libc::SIGSTOP).ok();
            } else {
                for process in running {
                    if let Some(pid) = Pid::from_raw(process.pid) {
                        kill_process(pid, Signal::STOP).ok();
                    }
                }
            }
            // A process in the kernel stops when it comes back from there: look again in a moment.
            let moment = Timespec { tv_sec: 0, tv_nsec: 100_000 };
            poll(&mut [], Some(&moment)).ok();
        }
    }

    pub fn proceed(&mut self) {
        self.stopped = false;
        if self.isolate {
            sys::kill_all(libc::SIGCONT).ok();
            return;
        }
        for process in processes::descendants() {
            if let Some(pid) = Pid::from_raw(process.pid) {
                kill_process(pid, Signal::CONT).ok();
            }
        }
    }

    /// Memory is to be watched, and may change.
    pub fn watches(&self) -> bool {
        self.watch.is_some() && !self.stopped
    }

    /// Looks at the memory, and ends what has too much. When to look again.
    pub fn look(&mut self) -> Duration {
        let Some(watch) = &mut self.watch else { return Watch::LONGEST };
        let wait = watch.look(self.isolate);
        if !wait.is_zero() {
            return wait;
        }
        self.out_of_memory = true;
        match &self.zygote {
            None => self.kill(),
            Some(zygote) => _ = self.kill_but(Some(zygote.pid)),
        }
        Watch::LONGEST
    }
}

fn no_zygote() -> Failure {
    Failure::function("the function has ended the process by which its sandbox is started again")
}

/// Counts memory where no cgroup does, often enough that a fast allocation cannot get far.
struct Watch {
    limit: u64,
    /// The most that was seen.
    highest: u64,
}

impl Watch {
    /// A process may touch about this much new memory in a second.
    const RATE: u64 = 2 << 30;
    const SHORTEST: Duration = Duration::from_millis(10);
    const LONGEST: Duration = Duration::from_millis(500);

    fn new(limit: u64) -> Self {
        Self { limit, highest: 0 }
    }

    /// When to look again; zero when the limit is passed.
    fn look(&mut self, isolate: bool) -> Duration {
        let used: u64 =
            processes::members(isolate).iter().map(|process| processes::private_memory(process.pid)).sum();
        self.highest = self.highest.max(used);
        let Some(left) = self.limit.checked_sub(used) else { return Duration::ZERO };
        Duration::from_millis(left * 1000 / Self::RATE).clamp(Self::SHORTEST, Self::LONGEST)
    }
}
