//! The runner: owns hot containers, admits calls, speaks the function formats.
