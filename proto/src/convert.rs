//! Receiver-side checks: a generated message becomes a word of the domain, or a sentence that says what is wrong with it.
//! And the other way (`to_…`), which cannot fail.

mod capacity;
mod error;
mod function;
mod head;
mod times;

pub use self::capacity::{Wrong, capacity, to_capacity, to_warmth, warmth};
pub use self::error::{call_error, refusal, to_call_error, to_refusal};
pub use self::function::{function, to_function};
pub use self::head::{request_head, response_head, to_request_head, to_response_head, to_trailers, trailers};
pub use self::times::{cold, duration, to_duration, to_timings};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1;
    use proptest::prelude::*;
    use prost::Message as _;

    proptest! {
        /// Whatever a peer sends, checking it ends in a value or in a sentence.
        #[test]
        fn no_message_breaks_the_checks(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            if let Ok(f) = v1::Function::decode(&bytes[..]) { _ = function(f); }
            if let Ok(h) = v1::RequestHead::decode(&bytes[..]) { _ = request_head(h); }
            if let Ok(h) = v1::ResponseHead::decode(&bytes[..]) { _ = response_head(h); }
            if let Ok(c) = v1::Capacity::decode(&bytes[..]) { _ = capacity(c); }
            if let Ok(e) = v1::CallError::decode(&bytes[..]) { _ = call_error(e); }
        }
    }
}
