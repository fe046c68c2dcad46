//! `certs`, `token`.

use std::path::PathBuf;

use clap::Args;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  stoker certs --directory certs --host lb.example --host 10.0.0.5
  stoker certs --directory certs --runner node-7 --client ci     more of the same authority

Without names it makes one certificate for all balancers, one for all runners, and one of a client `admin`. What is there is never \
written over. Where the directory has an authority that was made here before, that one signs.")]
pub struct Certs {
    /// Where they are put: ca.pem, ca.key, balancer.pem, balancer.key, …
    #[arg(long, default_value = "certs", value_name = "DIR")]
    pub directory: PathBuf,
    /// A name or address by which clients reach balancers, besides localhost; may stand several times.
    #[arg(long = "host", value_name = "HOST")]
    pub hosts: Vec<String>,
    /// A balancer of this name; may stand several times.
    #[arg(long = "balancer", value_name = "NAME")]
    pub balancers: Vec<String>,
    /// A runner of this name; may stand several times.
    #[arg(long = "runner", value_name = "NAME")]
    pub runners: Vec<String>,
    /// A client of this name; may stand several times.
    #[arg(long = "client", value_name = "NAME")]
    pub clients: Vec<String>,
    /// How long they are good for.
    #[arg(long, default_value_t = 365, value_name = "DAYS", value_parser = clap::value_parser!(u64).range(1..=3650))]
    pub days: u64,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  stoker token ci --invoke shop --manage shop > ci.token
  stoker token oncall --observe '*'")]
pub struct Token {
    /// What whoever has it is called, in limits and in the audit.
    pub name: String,
    /// Apps whose functions it may call: names, beginnings like web-*, or *.
    #[arg(long, value_name = "APP")]
    pub invoke: Vec<String>,
    /// Apps whose functions it may change; with * also the fleet.
    #[arg(long, value_name = "APP")]
    pub manage: Vec<String>,
    /// Apps whose functions and logs it may see; with * also the fleet.
    #[arg(long, value_name = "APP")]
    pub observe: Vec<String>,
}
