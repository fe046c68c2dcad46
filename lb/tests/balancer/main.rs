//! The balancer as a whole, against runners that play a script frame by frame.

mod doors;
mod draining;
mod ending;
mod fields;
mod formats;
mod images;
mod lambda;
mod liveness;
mod nonsense;
mod overload;
mod process;
mod promises;
mod sessions;
mod stage;
mod streams;
mod traces;
