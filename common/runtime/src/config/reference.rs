//! The reference of a program's settings in Markdown, from the tables that `--help` is made of, without anything of the machine it is made on.

use std::fmt::Write as _;

use super::{Fallback, Program, Spec};

impl Program {
    /// Every setting, in tables: first those without a section, then one for each section.
    #[must_use]
    pub fn reference(&self) -> String {
        let keys = self.keys();
        let mut sections: Vec<Option<&str>> = vec![None];
        for section in keys.iter().map(|key| key.spec().place().0) {
            if !sections.contains(&section) {
                sections.push(section);
            }
        }
        let mut out = String::new();
        for section in sections {
            if let Some(section) = section {
                _ = writeln!(out, "\n### {} `{section}`\n", self.name);
            }
            out.push_str(
                "| key | flag | variable | value | default | what it is |\n|---|---|---|---|---|---|\n",
            );
            for spec in keys.iter().map(|key| key.spec()).filter(|spec| spec.place().0 == section) {
                out.push_str(&row(spec));
            }
        }
        out
    }
}

fn row(spec: &Spec) -> String {
    let code = |text: &str| format!("`{}`", text.replace('|', "\\|"));
    let default = match spec.fallback {
        Fallback::Text("") => "none".to_owned(),
        Fallback::Text(text) => code(text),
        Fallback::Found(_) => "found out".to_owned(),
        Fallback::Nothing => "not set".to_owned(),
        Fallback::Mistake => "**required**".to_owned(),
    };
    let variables: Vec<_> = spec.variables().map(|variable| code(&variable)).collect();
    let mut help = spec.help.replace('|', "\\|").replace('<', "&lt;");
    if spec.live {
        help.push_str(" (live)");
    }
    if spec.secret {
        help.push_str(" (secret)");
    }
    let flag = code(&format!("--{}", spec.flag()));
    let (key, what, variables) = (code(spec.name), code(spec.what), variables.join(", "));
    format!("| {key} | {flag} | {variables} | {what} | {default} | {help} |\n")
}
