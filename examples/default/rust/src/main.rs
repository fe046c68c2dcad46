//! The smallest function in Rust: the request body comes on STDIN, the answer goes to STDOUT.

use std::io::{Read as _, Write as _};

fn main() -> std::io::Result<()> {
    let mut name = String::new();
    std::io::stdin().read_to_string(&mut name)?;
    let name = match name.trim() {
        "" => "world",
        name => name,
    };
    writeln!(std::io::stdout(), "Hello, {name}, from Rust!")
}
