//! What changes and shows functions: `apply`, `functions`, `describe`, `delete`, and their revisions.

use std::path::PathBuf;

use clap::Args;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  stoker apply -f functions.yaml
  stoker apply -f functions.yaml --dry-run      what would change
  stoker apply -f a.yaml -f b.yaml -o json
  generate | stoker apply -f -")]
pub struct Apply {
    /// Function files; - is STDIN.
    #[arg(long = "file", short = 'f', required = true, num_args = 1.., value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// New revisions get no calls until they are rolled out.
    #[arg(long)]
    pub hold: bool,
    /// Say what would be created and changed, and change nothing.
    #[arg(long, conflicts_with = "hold")]
    pub dry_run: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  stoker functions\n  stoker functions --app demo -o json")]
pub struct Functions {
    /// Only of this app.
    #[arg(long, default_value = "", hide_default_value = true, value_name = "APP")]
    pub app: String,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  stoker describe demo/hello\n  stoker delete demo/hello")]
pub struct Function {
    /// APP/FN, or the function's id.
    #[arg(value_name = "APP/FN")]
    pub function: String,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  stoker apply -f functions.yaml --hold      a new revision, without calls
  stoker rollout demo/hello --to 20%         a fifth of them
  stoker rollout demo/hello --promote        all, also to what is applied later

What the newest revision does not take goes where most calls went before.")]
pub struct Rollout {
    /// APP/FN, or the function's id.
    #[arg(value_name = "APP/FN")]
    pub function: String,
    /// How many calls go to the newest revision.
    #[arg(long, value_parser = percent, value_name = "PERCENT", required_unless_present = "promote")]
    pub to: Option<u32>,
    /// All of them, which is --to 100%.
    #[arg(long, conflicts_with = "to")]
    pub promote: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  stoker rollback demo/hello            in a rollout where most calls went before it, else the revision before
  stoker rollback demo/hello --to 3

What is applied later gets no calls until it is rolled out.")]
pub struct Rollback {
    /// APP/FN, or the function's id.
    #[arg(value_name = "APP/FN")]
    pub function: String,
    /// The revision.
    #[arg(long, value_name = "REVISION", value_parser = clap::value_parser!(u64).range(1..))]
    pub to: Option<u64>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  stoker alias demo/hello live --to 3
  stoker alias demo/hello live --to 3 --with 4=10%
  stoker alias demo/hello live --delete
  stoker call demo/hello:live")]
pub struct Alias {
    /// APP/FN, or the function's id.
    #[arg(value_name = "APP/FN")]
    pub function: String,
    /// The name: letters, digits, - and _, not only digits.
    #[arg(value_name = "ALIAS")]
    pub name: String,
    /// The revision that it leads to.
    #[arg(long, value_name = "REVISION", required_unless_present = "delete", value_parser = clap::value_parser!(u64).range(1..))]
    pub to: Option<u64>,
    /// A second revision, and how many calls go there.
    #[arg(long, value_name = "REVISION=PERCENT", value_parser = weighted, requires = "to")]
    pub with: Option<(u64, u32)>,
    /// What it is for.
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
    pub description: String,
    /// Remove the alias.
    #[arg(long, conflicts_with = "to")]
    pub delete: bool,
}

/// A part of the calls, in ten-thousandths.
fn percent(text: &str) -> Result<u32, String> {
    let wrong = || format!("`{text}` is no part of the calls: write it like 20% or 0.5%, up to 100%");
    let number: f64 = text.strip_suffix('%').ok_or_else(wrong)?.trim_end().parse().map_err(|_| wrong())?;
    let parts = (number * 100.0).round();
    if !(0.0..=10_000.0).contains(&parts) || (parts - number * 100.0).abs() > 1e-6 {
        return Err(wrong());
    }
    Ok(parts as u32)
}

fn weighted(text: &str) -> Result<(u64, u32), String> {
    let wrong = || format!("`{text}` is no second revision: write it like 4=10%");
    let (revision, part) = text.split_once('=').ok_or_else(wrong)?;
    let revision = revision.parse().ok().filter(|revision| *revision > 0).ok_or_else(wrong)?;
    Ok((revision, percent(part)?))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::Cli;

    #[test]
    fn parts_of_the_calls() {
        for (text, parts) in [("20%", 2000), ("0%", 0), ("100%", 10_000), ("0.05%", 5), ("12.5 %", 1250)] {
            assert_eq!(percent(text), Ok(parts), "{text}");
        }
        for wrong in ["20", "101%", "-1%", "%", "a%", "0.001%", "NaN%", "inf%"] {
            assert!(percent(wrong).is_err(), "{wrong}");
        }
        assert_eq!(weighted("4=10%"), Ok((4, 1000)));
        assert!(weighted("0=10%").is_err() && weighted("4").is_err() && weighted("x=1%").is_err());
        let words = |words: &[&str]| Cli::try_parse_from(["stoker"].iter().chain(words)).map(|_| ());
        for good in [
            &["rollout", "a/f", "--to", "20%"][..],
            &["rollout", "a/f", "--promote"],
            &["alias", "a/f", "x", "--delete"],
            &["alias", "a/f", "x", "--to", "3", "--with", "4=10%"],
            &["rollback", "a/f"],
        ] {
            words(good).unwrap();
        }
        for wrong in [
            &["rollout", "a/f"][..],
            &["rollout", "a/f", "--to", "20%", "--promote"],
            &["alias", "a/f", "x"],
            &["alias", "a/f", "x", "--delete", "--to", "3"],
            &["rollback", "a/f", "--to", "0"],
        ] {
            assert!(words(wrong).is_err(), "{wrong:?}");
        }
    }
}
