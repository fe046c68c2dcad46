//! What tests across components share.
