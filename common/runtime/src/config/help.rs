//! `--help`, from the tables.

use clap::{Arg, Command};

use super::{Fallback, Program, Spec};

pub(super) fn text(program: &Program) -> String {
    let mut command = Command::new(program.name)
        .version(program.version)
        .about(program.about)
        .max_term_width(110)
        .after_help(format!(
            "A setting is taken from its flag, else its variable, else the file, else its default. In the file \
             `section.key` is `key:` under `section:`. What is `live` is read again at SIGHUP.\n\nExamples:\n{}",
            program.examples
        ))
        .arg(Arg::new("config").long("config").value_name("FILE").help("Read settings from a YAML file [STOKER_CONFIG]"))
        .arg(
            Arg::new("print-config")
                .long("print-config")
                .num_args(0)
                .help("Show the settings in effect and who said each, and end"),
        );
    for key in program.keys() {
        let spec = key.spec();
        command = command.arg(
            Arg::new(spec.name).long(spec.flag()).value_name(spec.what).help(remark(spec)).help_heading(
                spec.place().0.map_or_else(|| "Settings".to_owned(), |s| format!("Settings: {s}")),
            ),
        );
    }
    command.render_help().to_string()
}

fn remark(spec: &Spec) -> String {
    let variables: Vec<_> = spec.variables().collect();
    let default = match spec.fallback {
        Fallback::Text("") => "default none".to_owned(),
        Fallback::Text(text) => format!("default {text}"),
        Fallback::Found(find) => {
            find().map_or_else(|_| "required".to_owned(), |text| format!("default {text}"))
        }
        Fallback::Nothing => "not set by default".to_owned(),
        Fallback::Mistake => "required".to_owned(),
    };
    let live = if spec.live { "; live" } else { "" };
    format!("{} [{}; {}; {default}{live}]", spec.help, spec.name, variables.join(", "))
}
