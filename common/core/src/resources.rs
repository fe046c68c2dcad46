//! Memory, CPU and slots, with arithmetic that cannot wrap.

use serde::{Deserialize, Serialize};

/// An amount of what a runner gives out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Bytes.
    pub memory: u64,
    /// Thousandths of a core.
    pub cpu_millis: u32,
    /// Containers.
    pub slots: u32,
}

/// What one container needs. Memory and its slot are held as long as it exists, CPU only while it starts or works: an idle
/// container computes nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ask {
    /// Bytes.
    pub memory: u64,
    /// Thousandths of a core; 0 reserves none and limits nothing.
    pub cpu_millis: u32,
}

impl Resources {
    /// The amount left when `part` is taken, or `None` if any of it is not there.
    #[must_use]
    pub fn checked_sub(self, part: Resources) -> Option<Resources> {
        Some(Resources {
            memory: self.memory.checked_sub(part.memory)?,
            cpu_millis: self.cpu_millis.checked_sub(part.cpu_millis)?,
            slots: self.slots.checked_sub(part.slots)?,
        })
    }

    /// The sum, or `None` past the largest number.
    #[must_use]
    pub fn checked_add(self, part: Resources) -> Option<Resources> {
        Some(Resources {
            memory: self.memory.checked_add(part.memory)?,
            cpu_millis: self.cpu_millis.checked_add(part.cpu_millis)?,
            slots: self.slots.checked_add(part.slots)?,
        })
    }

    /// Whether a machine of this size could ever run a container that asks for `ask`.
    #[must_use]
    pub fn could_hold(&self, ask: &Ask) -> bool {
        self.memory >= ask.memory && self.cpu_millis >= ask.cpu_millis && self.slots > 0
    }
}

impl Ask {
    /// What is held as long as the container exists.
    #[must_use]
    pub fn standing(&self) -> Resources {
        Resources { memory: self.memory, cpu_millis: 0, slots: 1 }
    }

    /// What is held while it starts or works.
    #[must_use]
    pub fn working(&self) -> Resources {
        Resources { memory: 0, cpu_millis: self.cpu_millis, slots: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_resources() -> impl Strategy<Value = Resources> {
        (any::<u64>(), any::<u32>(), any::<u32>()).prop_map(|(memory, cpu_millis, slots)| Resources {
            memory,
            cpu_millis,
            slots,
        })
    }

    proptest! {
        #[test]
        fn taking_and_giving_back_changes_nothing(all in any_resources(), part in any_resources()) {
            if let Some(left) = all.checked_sub(part) {
                prop_assert_eq!(left.checked_add(part), Some(all));
            }
        }
    }
}
