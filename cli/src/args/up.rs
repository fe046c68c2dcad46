//! `up`.

use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use stoker_core::cidr::Cidr;
use stoker_core::units::{parse_duration, parse_size};
use stoker_sandbox::select::Choice;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  stoker up --functions examples/functions.yaml
  stoker up --functions mine.yaml --watch                  takes up what you change
  stoker up --functions mine.yaml --runners 3 --memory 1GiB --state ./stoker-state
  stoker up --sandbox process --grpc 127.0.0.1:0 --http 127.0.0.1:0
  stoker up --etcd http://127.0.0.1:2379

Nobody is asked who they are: whoever reaches the gRPC address can run programs on this machine, whoever reaches the HTTP address can \
call every function. Both are loopback; other addresses take --insecure. A fleet that others are to use is made of the servers, which know \
TLS and tokens.")]
pub struct Up {
    /// Function files to apply at start; - is STDIN.
    #[arg(long, short, num_args = 1.., value_name = "FILE")]
    pub functions: Vec<PathBuf>,
    /// How many runners.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub runners: u16,
    /// Memory that each runner offers [default: four fifths of what this machine or its cgroup has, shared out].
    #[arg(long, value_parser = parse_size, value_name = "SIZE")]
    pub memory: Option<u64>,
    /// Cores that each runner offers, like 2 or 500m [default: what this machine or its cgroup has].
    #[arg(long, value_parser = stoker_core::units::parse_cpu, value_name = "N")]
    pub cpu: Option<u32>,
    /// How functions are kept apart: auto, native, oci, docker or process.
    #[arg(long, default_value = "auto", value_name = "DRIVER")]
    pub sandbox: Choice,
    /// The OCI runtime of the sandbox oci, by path or name [default: the first of crun, runc and youki].
    #[arg(long, value_name = "PATH")]
    pub oci_runtime: Option<PathBuf>,
    /// Where the daemon of the sandbox docker listens [default: /var/run/docker.sock].
    #[arg(long, value_name = "PATH")]
    pub docker_socket: Option<PathBuf>,
    /// Where functions are and runners are found, in place of this process's memory; its members.
    #[arg(long, num_args = 1.., value_delimiter = ',', value_name = "URL", conflicts_with = "state")]
    pub etcd: Vec<String>,
    /// The authority that signed etcd's certificate, for https endpoints.
    #[arg(long, requires = "etcd", value_name = "FILE")]
    pub etcd_ca: Option<PathBuf>,
    /// Our own certificate, where etcd asks for one.
    #[arg(long, requires_all = ["etcd_ca", "etcd_key"], value_name = "FILE")]
    pub etcd_certificate: Option<PathBuf>,
    /// Its key.
    #[arg(long, requires = "etcd_certificate", value_name = "FILE")]
    pub etcd_key: Option<PathBuf>,
    /// Who we are, where etcd asks for a password.
    #[arg(long, requires_all = ["etcd", "etcd_password"], value_name = "NAME")]
    pub etcd_user: Option<String>,
    /// The password; better given by its variable, since flags can be seen by all users of a machine.
    #[arg(long, env = "STOKER_ETCD_PASSWORD", hide_env_values = true, value_name = "TEXT")]
    pub etcd_password: Option<String>,
    /// Where functions are kept over a restart [default: nowhere].
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// Where gRPC is served.
    #[arg(long, default_value = "127.0.0.1:7070", value_parser = address, value_name = "ADDRESS")]
    pub grpc: SocketAddr,
    /// Where HTTP is served.
    #[arg(long, default_value = "127.0.0.1:7080", value_parser = address, value_name = "ADDRESS")]
    pub http: SocketAddr,
    /// Where the page of the fleet is, and /metrics of its balancer [default: 127.0.0.1:7090, beside another gRPC address any free port].
    #[arg(long, value_parser = address, value_name = "ADDRESS")]
    pub admin: Option<SocketAddr>,
    /// Where images of functions are kept over a restart, a directory in it for each runner [default: nowhere].
    #[arg(long, value_name = "DIR")]
    pub images: Option<PathBuf>,
    /// What each runner's images may take on disk.
    #[arg(long, default_value = "20GiB", value_parser = parse_size, value_name = "SIZE")]
    pub images_budget: u64,
    /// Files like Docker's config.json, which functions name in `credentials`.
    #[arg(long, value_name = "DIR")]
    pub registry_credentials: Option<PathBuf>,
    /// Registries that are asked without TLS, beside those on loopback: host or host:port.
    #[arg(long, num_args = 1.., value_delimiter = ',', value_name = "HOST")]
    pub registry_without_tls: Vec<String>,
    /// Certificates of further authorities that registries may have theirs from (PEM).
    #[arg(long, value_name = "FILE")]
    pub registry_ca: Option<PathBuf>,
    /// The directory of functions' secrets: files APP/NAME or APP/NAME/KEY, read for each launch.
    #[arg(long, value_name = "DIR")]
    pub secrets: Option<PathBuf>,
    /// The function that /2015-03-31/functions/function/invocations calls, with the words of AWS's Runtime Interface Emulator.
    #[arg(long, value_name = "APP/FN")]
    pub lambda_emulate: Option<String>,
    /// Proxies before the fleet whose X-Forwarded-For, -Proto and -Port handlers of AWS Lambda are told: addresses and networks.
    #[arg(long, num_args = 1.., value_delimiter = ',', value_name = "ADDRESSES")]
    pub lambda_trusted_proxies: Vec<Cidr>,
    /// How long calls may take to finish after Ctrl-C.
    #[arg(long, default_value = "10s", value_parser = parse_duration, value_name = "TIME")]
    pub grace: Duration,
    /// Do not call the functions of the files at start.
    #[arg(long)]
    pub no_try: bool,
    /// Apply the files again when they are written, and start functions anew when files in their directories are.
    #[arg(long, requires = "functions")]
    pub watch: bool,
    /// Log more than warnings; twice for every step, three times also for those of libraries.
    #[arg(long, short, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

/// An address to listen on: an IP address or a name of this machine, and a port.
fn address(text: &str) -> Result<SocketAddr, String> {
    let wrong = |why: String| format!("{why}: write it like 127.0.0.1:7070 or localhost:7070");
    if !text.contains(':') {
        return Err(wrong("there is no port".to_owned()));
    }
    let all: Vec<_> = text.to_socket_addrs().map_err(|error| wrong(error.to_string()))?.collect();
    // A name may have both kinds; what we print and look for by default is of the older one.
    let best = all.iter().find(|address| address.is_ipv4()).or(all.first());
    best.copied().ok_or_else(|| wrong(format!("`{text}` is no address")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_a_port_and_may_have_a_name() {
        let of = |text: &str| address(text).map(|address| address.to_string());
        assert_eq!(of("localhost:7070"), Ok("127.0.0.1:7070".to_owned()));
        assert_eq!(of("[::1]:0"), Ok("[::1]:0".to_owned()));
        assert_eq!(of("0.0.0.0:80"), Ok("0.0.0.0:80".to_owned()));
        for wrong in ["", "localhost", "127.0.0.1", "127.0.0.1:", "127.0.0.1:99999", "::1", "http://a:1"] {
            assert!(of(wrong).is_err_and(|why| why.contains("localhost:7070")), "{wrong}");
        }
    }
}
