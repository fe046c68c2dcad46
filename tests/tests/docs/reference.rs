//! Pages that are made from the code: settings, commands, the gRPC API. A difference is a failure; `STOKER_TEST_WRITE=1` writes them anew.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::process::Command;

use prost::Message as _;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet,
};
use stoker_tests::program;

use crate::page::root;

/// Compares a page with what it should be, or writes it.
fn is(name: &str, should: &str) {
    let path = root().join(name);
    if std::env::var_os("STOKER_TEST_WRITE").is_some() {
        std::fs::write(&path, should).unwrap();
        return;
    }
    let is = std::fs::read_to_string(&path).unwrap_or_default();
    let differs = is.lines().zip(should.lines()).find(|(is, should)| is != should);
    assert!(
        is == should,
        "{name} is not what the code says: run this test with STOKER_TEST_WRITE=1\n{differs:#?}"
    );
}

#[test]
fn settings() {
    let mut page = "\
# Settings

Made from the programs' own tables by a test; do not edit. How settings are read is in [operations.md](operations.md#settings), what
`stoker up` and the other commands take in [cli.md](cli.md).

A setting is taken from its flag, else its variable, else the file that `--config` or `STOKER_CONFIG` names, else its default. In the file
`section.key` is `key:` under `section:`. Lists are written with commas in flags and variables, maps like `a=b,c=d`. *Live* settings are taken up at
SIGHUP, *secret* ones are never shown. *Found out* is what the program finds on its machine; `--help` shows it. `--print-config` shows what is in
effect, and who said it.
"
    .to_owned();
    for program in [&stoker_lb::settings::PROGRAM, &stoker_runner::settings::PROGRAM] {
        _ = write!(page, "\n## {}\n\n{}\n\n{}", program.name, program.about, program.reference());
    }
    is("docs/configuration.md", &page);
}

/// What `stoker` says with these words and `--help`, without anything of this machine.
fn help(words: &[String]) -> String {
    let output = Command::new(program("stoker"))
        .args(words)
        .arg("--help")
        .env_clear()
        .env("COLUMNS", "100")
        .output()
        .unwrap();
    assert!(output.status.success(), "{words:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The commands that a help lists.
fn commands(help: &str) -> Vec<String> {
    let lines = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let lines = lines.take_while(|line| !line.is_empty()).filter(|line| !line.starts_with("   "));
    lines
        .filter_map(|line| line.split_whitespace().next())
        .filter(|c| *c != "help")
        .map(str::to_owned)
        .collect()
}

/// A help without the part that is the same for all.
fn own_part(help: &str) -> String {
    let mut shown = String::new();
    let mut common = false;
    for line in help.lines() {
        if !line.is_empty() && !line.starts_with(' ') {
            common = line == "Global options:";
        }
        if !common {
            shown.push_str(line.trim_end());
            shown.push('\n');
        }
    }
    shown.trim_end().to_owned()
}

fn command(page: &mut String, words: &[String]) {
    let said = help(words);
    let level = "#".repeat(words.len() + 1);
    _ = writeln!(page, "\n{level} stoker {}\n\n```text\n{}\n```", words.join(" "), own_part(&said));
    for name in commands(&said) {
        command(page, &[words, &[name]].concat());
    }
}

#[test]
fn command_line() {
    let whole = help(&[]);
    let mut page = format!(
        "\
# The `stoker` command

Made from the command's own help by a test; do not edit. *Global options* are the same for all commands and stand here once.
The servers `stoker-lb` and `stoker-runner` take settings: [configuration.md](configuration.md).

```text
{}
```
",
        whole.lines().map(str::trim_end).collect::<Vec<_>>().join("\n").trim_end()
    );
    for name in commands(&whole) {
        command(&mut page, &[name]);
    }
    is("docs/cli.md", &page);
}

/// A file with its comments.
struct File<'f> {
    file: &'f FileDescriptorProto,
    comments: HashMap<Vec<i32>, String>,
}

impl<'f> File<'f> {
    fn new(file: &'f FileDescriptorProto) -> Self {
        let locations = file.source_code_info.iter().flat_map(|info| &info.location);
        let comments = locations.filter_map(|location| {
            let said = location.leading_comments.as_ref().or(location.trailing_comments.as_ref())?;
            let lines: Vec<_> = said.lines().map(|line| line.strip_prefix(' ').unwrap_or(line)).collect();
            Some((location.path.clone(), lines.join("\n").trim().to_owned()))
        });
        Self { file, comments: comments.collect() }
    }

    /// As a paragraph.
    fn text(&self, path: &[i32]) -> &str {
        self.comments.get(path).map_or("", String::as_str)
    }

    /// As a cell of a table.
    fn cell(&self, path: &[i32]) -> String {
        escaped(self.text(path)).replace("\n\n", " ").replace('\n', " ")
    }

    fn services(&self, page: &mut String) {
        for (at, service) in self.file.service.iter().enumerate() {
            let path = [6, at as i32];
            _ = writeln!(
                page,
                "\n## {}.{}\n\n{}\n",
                self.file.package(),
                service.name(),
                self.paragraph(&path)
            );
            page.push_str("| method | takes | gives | |\n|---|---|---|---|\n");
            for (number, method) in service.method.iter().enumerate() {
                let side = |stream: bool, name: &str| {
                    format!("{}{}", if stream { "stream of " } else { "" }, named(name))
                };
                _ = writeln!(
                    page,
                    "| `{}` | {} | {} | {} |",
                    method.name(),
                    side(method.client_streaming(), method.input_type()),
                    side(method.server_streaming(), method.output_type()),
                    self.cell(&[6, at as i32, 2, number as i32])
                );
            }
        }
    }

    fn paragraph(&self, path: &[i32]) -> String {
        escaped(self.text(path))
    }

    fn message(&self, page: &mut String, scope: &str, message: &DescriptorProto, path: &[i32]) {
        let name = format!("{scope}{}", message.name());
        _ = writeln!(page, "\n### {name}\n");
        let said = self.paragraph(path);
        if !said.is_empty() {
            _ = writeln!(page, "{said}\n");
        }
        if message.field.is_empty() {
            page.push_str("It has no fields.\n");
        } else {
            page.push_str("| field | number | type | |\n|---|---|---|---|\n");
        }
        for (at, field) in message.field.iter().enumerate() {
            let mut about = self.cell(&[path, &[2, at as i32]].concat());
            if let (Some(index), false) = (field.oneof_index, field.proto3_optional()) {
                about = format!("*one of* `{}`. {about}", message.oneof_decl[index as usize].name());
            }
            let kind = kind(message, field);
            _ = writeln!(page, "| `{}` | {} | {kind} | {} |", field.name(), field.number(), about.trim());
        }
        let scope = format!("{name}.");
        for (at, nested) in message.nested_type.iter().enumerate() {
            if !nested.options.as_ref().is_some_and(|options| options.map_entry()) {
                self.message(page, &scope, nested, &[path, &[3, at as i32]].concat());
            }
        }
        for (at, nested) in message.enum_type.iter().enumerate() {
            self.words(page, &scope, nested, &[path, &[4, at as i32]].concat());
        }
    }

    fn words(&self, page: &mut String, scope: &str, words: &EnumDescriptorProto, path: &[i32]) {
        _ = writeln!(page, "\n### {scope}{}\n", words.name());
        let said = self.paragraph(path);
        if !said.is_empty() {
            _ = writeln!(page, "{said}\n");
        }
        page.push_str("| value | number | |\n|---|---|---|\n");
        for (at, value) in words.value.iter().enumerate() {
            let about = self.cell(&[path, &[2, at as i32]].concat());
            _ = writeln!(page, "| `{}` | {} | {about} |", value.name(), value.number());
        }
    }
}

fn escaped(text: &str) -> String {
    text.replace('|', "\\|").replace('<', "&lt;")
}

/// A message or enum of ours with a link to it, another by its name.
fn named(full: &str) -> String {
    let full = full.trim_start_matches('.');
    let ours = full.strip_prefix("stoker.v1.").or(full.strip_prefix("stoker.runner.v1."));
    match ours {
        Some(name) => format!("[{name}](#{})", name.to_lowercase().replace('.', "")),
        None => format!("`{full}`"),
    }
}

fn kind(message: &DescriptorProto, field: &FieldDescriptorProto) -> String {
    let entry = |name: &str| {
        let short = name.rsplit('.').next().unwrap_or_default();
        message.nested_type.iter().find(|nested| {
            nested.name() == short && nested.options.as_ref().is_some_and(|options| options.map_entry())
        })
    };
    let plain = match field.r#type() {
        Type::Message | Type::Enum => {
            if let Some(entry) = entry(field.type_name()) {
                let side = |at: usize| kind(entry, &entry.field[at]);
                return format!("map of {} to {}", side(0), side(1));
            }
            named(field.type_name())
        }
        other => other.as_str_name().trim_start_matches("TYPE_").to_lowercase(),
    };
    match field.label() {
        Label::Repeated => format!("list of {plain}"),
        _ if field.proto3_optional() => format!("{plain}, or nothing"),
        _ => plain,
    }
}

#[test]
fn api() {
    let mut page = "\
# The gRPC API

Made from the comments of the `.proto` files in [proto/](../proto/proto) by a test; do not edit. What clients and operators use is `stoker.v1`;
the session between balancer and runner is [protocol.md](protocol.md). A balancer also answers `grpc.health.v1` and server reflection (v1 and v1alpha), so
that `grpcurl` and its like need no files. The HTTP doors are in [http.md](http.md).
"
    .to_owned();
    let set = FileDescriptorSet::decode(stoker_proto::DESCRIPTORS).unwrap();
    let files: Vec<_> = set.file.iter().filter(|file| file.package() == "stoker.v1").map(File::new).collect();
    for file in &files {
        file.services(&mut page);
    }
    page.push_str("\n## Messages\n");
    for file in &files {
        for (at, message) in file.file.message_type.iter().enumerate() {
            file.message(&mut page, "", message, &[4, at as i32]);
        }
        for (at, words) in file.file.enum_type.iter().enumerate() {
            file.words(&mut page, "", words, &[5, at as i32]);
        }
    }
    assert!(files.iter().all(|file| !file.comments.is_empty()), "comments are in the descriptors");
    is("docs/api.md", &page);
}
