//! Why a call went where it went: each call's story, and the last of them, kept for whoever asks.
//!
//! A story is noted by those who decide, step by step, and costs a call that goes straight to a warm runner two counted references
//! and no allocation. Two rings keep them: calls that failed, waited, were cold or slow in one, so that the many others, which
//! are in the other, do not push them out.

mod findings;
mod tell;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use stoker_core::error::{Code, Error, Refusal};
use stoker_core::ids::CallId;
use stoker_policy::board;
use stoker_proto::v1;
use stoker_runtime::telemetry::{Span, TraceId, names};

use crate::directory::Known;
use crate::fleet::Runner;

/// Most steps of one story: of a call that is refused hundreds of times the first tell why it waited, and the last who had it in the end.
const MAX_STEPS: usize = 64;

/// Of which so many are the first; the others are the last.
const FIRST_STEPS: usize = MAX_STEPS / 2;

/// A call that takes so long is worth looking at.
const SLOW: Duration = Duration::from_secs(1);

/// Why a runner was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// It came next by the rules of placement.
    Planned(board::Why),
    /// The call waited here, and there was news of room there.
    Turn,
    /// The call waited at another runner, and this one had somebody idle.
    Idle,
}

impl Why {
    /// What each is called, in the order of [`Why::at`].
    pub const LABELS: [&str; 7] = ["warm", "rank", "young", "spill", "turn", "idle", "line"];

    /// Which of the labels is its own.
    pub fn at(self) -> usize {
        match self {
            Why::Planned(board::Why::Warm { .. }) => 0,
            Why::Planned(board::Why::Rank) => 1,
            Why::Planned(board::Why::Young) => 2,
            Why::Planned(board::Why::Spill) => 3,
            Why::Turn => 4,
            Why::Idle => 5,
            Why::Planned(board::Why::Line { .. }) => 6,
        }
    }

    /// What it was thought to have, on the span of an offer that it refused.
    pub fn note(self, span: &mut Span) {
        let age = match self {
            Why::Planned(board::Why::Warm { idle, age }) => {
                span.set(names::HINT_IDLE, i64::from(idle));
                age
            }
            Why::Planned(board::Why::Line { waiting, age, .. }) => {
                span.set(names::HINT_WAITING, i64::from(waiting));
                age
            }
            _ => return,
        };
        span.set(names::HINT_AGE, i64::try_from(age.as_millis()).unwrap_or(i64::MAX));
    }
}

/// How the fleet stands for a function, where it was counted: that costs something, and is not done for each of many calls.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Census {
    pub runners: u32,
    /// Those that may be asked: connected, not draining, large enough.
    pub open: u32,
    /// Calls that could start at once, that run, that wait there.
    pub idle: u32,
    pub busy: u32,
    pub waiting: u32,
}

/// Something that happens to a call.
pub enum What {
    Offered {
        runner: Arc<Runner>,
        why: Why,
    },
    Refused {
        runner: Arc<Runner>,
        reason: Refusal,
        detail: String,
    },
    Accepted {
        runner: Arc<Runner>,
        expected: Option<Duration>,
        census: Option<Census>,
    },
    Started {
        runner: Arc<Runner>,
    },
    Lost {
        runner: Arc<Runner>,
        reason: String,
        may_have_started: bool,
    },
    Left {
        runner: Arc<Runner>,
    },
    /// In the balancer, `behind` others of its function that did already.
    Waits {
        behind: bool,
        census: Option<Census>,
    },
}

/// A step, and when it was.
pub struct Step {
    at: Instant,
    what: What,
}

/// What the runner measured.
#[derive(Default)]
enum Timed {
    #[default]
    Unknown,
    Known(v1::Timings),
    /// Known at the end of an answer that has begun.
    Coming(Arc<OnceLock<v1::Timings>>),
}

/// A call's story while it goes on.
#[derive(Default)]
pub struct Story {
    function: Option<Arc<Known>>,
    /// Most calls have one step.
    first: Option<Step>,
    /// The others. Where there is no place for more, the last of them are a ring.
    more: Vec<Step>,
    /// Steps between the first and the last, which are not kept.
    left_out: u32,
    timed: Timed,
}

impl Story {
    /// Which function it is about.
    pub fn function(&mut self, function: Arc<Known>) {
        self.function = Some(function);
    }

    /// What happened just now.
    pub fn note(&mut self, at: Instant, what: What) {
        let step = Step { at, what };
        if self.first.is_none() {
            self.first = Some(step);
        } else if self.more.len() + 1 < MAX_STEPS {
            self.more.push(step);
        } else {
            let oldest = FIRST_STEPS - 1 + self.turn();
            self.more[oldest] = step;
            self.left_out = self.left_out.saturating_add(1);
        }
    }

    /// What the runner measured.
    pub fn timed(&mut self, timings: Option<v1::Timings>) {
        if let Some(timings) = timings {
            self.timed = Timed::Known(timings);
        }
    }

    /// The same, to be filled in at the end of its answer.
    pub fn times_come(&mut self) -> Arc<OnceLock<v1::Timings>> {
        let coming = Arc::new(OnceLock::new());
        self.timed = Timed::Coming(coming.clone());
        coming
    }

    /// Which function it is about, if it came so far.
    pub fn about(&self) -> Option<&Arc<Known>> {
        self.function.as_ref()
    }

    /// The runner that was asked last.
    pub fn runner(&self) -> Option<&str> {
        self.end().rev().chain(self.beginning().rev()).find_map(|step| match &step.what {
            What::Offered { runner, .. }
            | What::Refused { runner, .. }
            | What::Accepted { runner, .. }
            | What::Started { runner }
            | What::Lost { runner, .. } => Some(runner.name.as_str()),
            What::Left { .. } | What::Waits { .. } => None,
        })
    }

    /// Whether its own launch served it.
    pub fn is_cold(&self) -> bool {
        self.timings().is_some_and(|timings| timings.cold)
    }

    fn timings(&self) -> Option<&v1::Timings> {
        match &self.timed {
            Timed::Unknown => None,
            Timed::Known(timings) => Some(timings),
            Timed::Coming(coming) => coming.get(),
        }
    }

    /// The first steps; all of them, but of a long story.
    fn beginning(&self) -> impl DoubleEndedIterator<Item = &Step> {
        let first = self.more.len().min(FIRST_STEPS - 1);
        self.first.iter().chain(&self.more[..first])
    }

    /// The last of a long story: what lies between those and its beginning may have been left out.
    fn end(&self) -> impl DoubleEndedIterator<Item = &Step> {
        let (newer, older) = self.more.get(FIRST_STEPS - 1..).unwrap_or_default().split_at(self.turn());
        older.iter().chain(newer)
    }

    /// Where the oldest of the last steps is in their ring.
    fn turn(&self) -> usize {
        self.left_out as usize % (MAX_STEPS - FIRST_STEPS)
    }

    fn steps(&self) -> impl Iterator<Item = &Step> {
        self.beginning().chain(self.end())
    }
}

/// A call that has ended.
pub struct Record {
    pub id: CallId,
    pub door: &'static str,
    pub began: Instant,
    pub took: Duration,
    pub failed: Option<(Code, String)>,
    pub trace: Option<TraceId>,
    pub story: Story,
}

impl Record {
    /// Whether somebody may want to know more of it than of others.
    fn is_notable(&self) -> bool {
        self.failed.is_some()
            || !self.story.more.is_empty()
            || self.took >= SLOW
            || self.story.timings().is_some_and(|timings| timings.cold || timings.wait_us > 0)
    }

    /// The outcome as a story keeps it.
    pub fn failed(outcome: Result<(), &Error>) -> Option<(Code, String)> {
        outcome.err().map(|error| (error.code, error.message.clone()))
    }
}

/// The last calls.
pub struct Stories {
    balancer: String,
    rings: Mutex<Rings>,
}

struct Rings {
    notable: Ring,
    others: Ring,
}

/// So many at most; the oldest goes.
struct Ring {
    records: VecDeque<Record>,
    most: usize,
}

impl Ring {
    fn push(&mut self, record: Record) {
        if self.records.len() >= self.most {
            self.records.pop_front();
        }
        if self.most > 0 {
            self.records.push_back(record);
        }
    }

    fn find(&self, id: CallId) -> Option<&Record> {
        self.records.iter().rev().find(|record| record.id == id)
    }
}

impl Stories {
    /// Of calls of this balancer, so many of each kind.
    pub fn new(balancer: String, most: usize) -> Self {
        let ring = || Ring { records: VecDeque::new(), most };
        Self { balancer, rings: Mutex::new(Rings { notable: ring(), others: ring() }) }
    }

    /// Keeps one.
    pub fn keep(&self, record: Record) {
        let mut rings = self.rings.lock().unwrap_or_else(PoisonError::into_inner);
        let ring = if record.is_notable() { &mut rings.notable } else { &mut rings.others };
        ring.push(record);
    }

    /// The story of a call, if it is kept still.
    pub fn tell(&self, id: CallId) -> Option<v1::CallStory> {
        let rings = self.rings.lock().unwrap_or_else(PoisonError::into_inner);
        let record = rings.notable.find(id).or_else(|| rings.others.find(id))?;
        Some(v1::CallStory { balancer: self.balancer.clone(), ..tell::story(record) })
    }

    /// How many of each kind are kept.
    pub fn most(&self) -> usize {
        self.rings.lock().unwrap_or_else(PoisonError::into_inner).others.most
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(failed: bool) -> Record {
        Record {
            id: CallId::new(),
            door: "invoke",
            began: Instant::now(),
            took: Duration::from_millis(1),
            failed: failed.then(|| (Code::Overloaded, "full".to_owned())),
            trace: None,
            story: Story::default(),
        }
    }

    #[test]
    fn the_many_do_not_push_out_the_few() {
        let stories = Stories::new("b".to_owned(), 3);
        let failed = record(true);
        let (id, first) = (failed.id, record(false));
        let first_id = first.id;
        stories.keep(failed);
        stories.keep(first);
        (0..3).for_each(|_| stories.keep(record(false)));
        assert!(stories.tell(first_id).is_none(), "it was pushed out");
        let told = stories.tell(id).expect("it is kept");
        assert_eq!(
            (told.balancer.as_str(), told.error.map(|error| error.message)),
            ("b", Some("full".into()))
        );
        (0..3).for_each(|_| stories.keep(record(true)));
        assert!(stories.tell(id).is_none());
    }

    /// Both rings together: some three megabytes, whatever calls carry.
    #[test]
    fn a_record_is_small() {
        assert!(size_of::<Record>() <= 400, "{}", size_of::<Record>());
    }

    #[test]
    fn what_comes_at_the_end_of_an_answer_is_told_too() {
        let mut cold = record(false);
        let coming = cold.story.times_come();
        assert!(!cold.is_notable());
        coming.set(v1::Timings { cold: true, ..Default::default() }).expect("once");
        assert!(cold.is_notable());
    }

    #[test]
    fn a_long_story_keeps_its_beginning_and_its_end() {
        let (mut story, began) = (Story::default(), Instant::now());
        for length in 1..200 {
            story.note(began + Duration::from_secs(length), What::Waits { behind: false, census: None });
            let left_out = length.saturating_sub(MAX_STEPS as u64);
            let kept = story.steps().map(|step| step.at.saturating_duration_since(began).as_secs());
            let between = FIRST_STEPS as u64 + 1..=FIRST_STEPS as u64 + left_out;
            assert_eq!(
                kept.collect::<Vec<_>>(),
                (1..=length).filter(|step| !between.contains(step)).collect::<Vec<_>>()
            );
            assert_eq!(u64::from(story.left_out), left_out);
        }
    }
}
