//! The balancer as a whole, against runners that play a script frame by frame.

mod access;
mod control;
mod doors;
mod draining;
mod ending;
mod events;
mod explain;
mod fields;
mod formats;
mod images;
mod lambda;
mod lambda_manage;
mod later;
mod liveness;
mod moves;
mod nonsense;
mod overload;
mod places;
mod process;
mod promises;
mod revisions;
mod sessions;
mod stage;
mod streams;
mod traces;
mod triggers;
