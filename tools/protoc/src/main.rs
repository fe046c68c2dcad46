//! So much of `protoc` as build scripts use: `--include_imports --include_source_info -o FILE -I DIR FILE...`.
//!
//! Everything else is refused by name: a build that wants more of protoc must not get less in silence.

use std::path::PathBuf;

use anyhow::{Context as _, bail};

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let (mut files, mut includes, mut out) = (Vec::new(), Vec::new(), None);
    let (mut imports, mut source) = (false, false);
    while let Some(argument) = arguments.next() {
        let mut value =
            || arguments.next().with_context(|| format!("{} needs a value", argument.to_string_lossy()));
        match argument.to_str() {
            Some("--version") => {
                println!("libprotoc 30.0 (protox)");
                return Ok(());
            }
            Some("--include_imports") => imports = true,
            Some("--include_source_info") => source = true,
            Some("-o") => out = Some(PathBuf::from(value()?)),
            Some("-I") => includes.push(PathBuf::from(value()?)),
            Some(flag) if flag.starts_with('-') => {
                bail!("this protoc does not know {flag}: set PROTOC to another one")
            }
            _ => files.push(PathBuf::from(argument)),
        }
    }
    let out = out.context("-o FILE is missing")?;
    let mut compiler = protox::Compiler::new(includes)?;
    compiler.include_imports(imports).include_source_info(source).open_files(files)?;
    std::fs::write(&out, compiler.encode_file_descriptor_set())
        .with_context(|| format!("write {}", out.display()))
}
