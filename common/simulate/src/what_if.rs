//! "What if": one change of a fleet, as an operator types it.

use stoker_core::units::{parse_cpu, parse_duration, parse_size};

use crate::scenario::{MOST_BALANCERS, MOST_RUNNERS, Scenario};
use crate::trace::{Trace, micros};

/// A change: `runners=+3`, `memory=/2`, `cpu=*2`, `load=*1.5`, `balancers=8`, `idle-timeout=30s`,
/// `min-containers=1`.
#[derive(Debug, Clone, PartialEq)]
pub struct WhatIf {
    text: String,
    what: What,
    how: How,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Runners,
    Memory,
    Cpu,
    Balancers,
    Load,
    IdleTimeout,
    MinContainers,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum How {
    Set(f64),
    Add(f64),
    Times(f64),
}

impl WhatIf {
    /// Reads one.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let all = "runners, memory, cpu, balancers, load, idle-timeout or min-containers";
        let (what, how) =
            text.split_once('=').ok_or_else(|| format!("`{text}` is not KEY=CHANGE; KEY is {all}"))?;
        let what = match what {
            "runners" => What::Runners,
            "memory" => What::Memory,
            "cpu" => What::Cpu,
            "balancers" => What::Balancers,
            "load" => What::Load,
            "idle-timeout" => What::IdleTimeout,
            "min-containers" => What::MinContainers,
            _ => return Err(format!("`{what}` cannot be changed; {all} can")),
        };
        let value = |text: &str| -> Result<f64, String> {
            match what {
                What::Memory => parse_size(text).map(|bytes| bytes as f64),
                What::Cpu => parse_cpu(text).map(f64::from),
                What::IdleTimeout => parse_duration(text).map(|time| micros(time) as f64),
                What::Runners | What::Balancers | What::Load | What::MinContainers => number(text),
            }
        };
        let how = match how.as_bytes().first() {
            Some(b'+') => How::Add(value(&how[1..])?),
            Some(b'-') => How::Add(-value(&how[1..])?),
            Some(b'*') => How::Times(number(&how[1..])?),
            Some(b'/') => How::Times(1.0 / number(&how[1..])?),
            _ => How::Set(value(how)?),
        };
        if what == What::Load && !matches!(how, How::Times(_)) {
            return Err("load is changed by a factor, like load=*1.5".to_owned());
        }
        Ok(Self { text: text.to_owned(), what, how })
    }

    /// As it was typed.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Makes the change.
    ///
    /// # Errors
    /// Says why there is no such fleet.
    pub fn apply(&self, scenario: &mut Scenario, trace: &Trace) -> Result<Option<Trace>, String> {
        let to = |value: f64| match self.how {
            How::Set(new) => new,
            How::Add(more) => value + more,
            How::Times(factor) => value * factor,
        };
        let none = || format!("after `{}` nothing would be left", self.text);
        let most = |count: f64, most: usize, what: &str| match some(to(count)).ok_or_else(none)? {
            count if count > most as u64 => Err(format!(
                "after `{}` there would be {count} {what}, and a run has {most} at most",
                self.text
            )),
            count => Ok(count as usize),
        };
        match self.what {
            What::Runners => {
                let Some(first) = scenario.runners.first_mut() else { return Err(none()) };
                first.count = most(first.count as f64, MOST_RUNNERS, "runners")?;
            }
            What::Memory => {
                for kind in &mut scenario.runners {
                    kind.size.memory = some(to(kind.size.memory as f64)).ok_or_else(none)?;
                }
            }
            What::Cpu => {
                for kind in &mut scenario.runners {
                    let cpu = some(to(f64::from(kind.size.cpu_millis))).ok_or_else(none)?;
                    kind.size.cpu_millis = u32::try_from(cpu).unwrap_or(u32::MAX);
                }
            }
            What::Balancers => {
                scenario.balancers = most(scenario.balancers as f64, MOST_BALANCERS, "balancers")?;
            }
            What::IdleTimeout => scenario.idle_timeout = to(scenario.idle_timeout as f64).max(0.0) as u64,
            What::MinContainers => {
                scenario.min_containers = to(f64::from(scenario.min_containers)).max(0.0) as u32
            }
            What::Load => return Ok(Some(trace.clone().stretched(1.0 / to(1.0)))),
        }
        Ok(None)
    }
}

fn some(value: f64) -> Option<u64> {
    (value >= 1.0).then_some(value.round() as u64)
}

fn number(text: &str) -> Result<f64, String> {
    let value: Option<f64> = text.parse().ok();
    value
        .filter(|value| value.is_finite() && *value > 0.0)
        .ok_or_else(|| format!("`{text}` is no number above 0"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::SECOND;
    use crate::trace::synthetic::Steady;

    #[test]
    fn changes_are_read_and_made() {
        let trace = Steady { calls: 500, ..Steady::default() }.trace();
        let mut scenario = Scenario::default();
        for text in
            ["runners=+3", "memory=/2", "cpu=8", "balancers=*2", "idle-timeout=30s", "min-containers=2"]
        {
            let changed = WhatIf::parse(text).and_then(|what| what.apply(&mut scenario, &trace));
            assert_eq!(changed, Ok(None), "{text}");
        }
        let kind = scenario.runners[0];
        assert_eq!((kind.count, kind.size.memory, kind.size.cpu_millis), (23, 8 << 30, 8000));
        assert_eq!((scenario.balancers, scenario.idle_timeout), (8, 30 * SECOND));
        assert_eq!(scenario.min_containers, 2);
        let faster = WhatIf::parse("load=*2").and_then(|what| what.apply(&mut scenario, &trace));
        assert_eq!(faster.map(|trace| trace.map(|trace| trace.span)), Ok(Some(trace.span / 2)));
    }

    #[test]
    fn what_makes_no_sense_is_said() {
        for (text, says) in [
            ("runners", "not KEY=CHANGE"),
            ("slots=3", "cannot be changed"),
            ("memory=many", "many"),
            ("load=+1", "factor"),
            ("cpu=*0", "no number above 0"),
        ] {
            let error = WhatIf::parse(text).expect_err(text);
            assert!(error.contains(says), "{error}");
        }
        let trace = Trace { title: String::new(), functions: vec![], calls: vec![], span: 1 };
        let gone = WhatIf::parse("runners=-20").and_then(|what| what.apply(&mut Scenario::default(), &trace));
        assert!(gone.is_err());
        for (text, says) in [
            ("runners=*6000", "there would be 120000 runners, and a run has 100000 at most"),
            ("balancers=1001", "there would be 1001 balancers"),
        ] {
            let error = WhatIf::parse(text).and_then(|what| what.apply(&mut Scenario::default(), &trace));
            assert!(error.as_ref().is_err_and(|error| error.contains(says)), "{error:?}");
        }
    }
}
