use std::ffi::OsString;

use stoker_runtime::config::Outcome;

use super::*;

fn load(flags: &[&str], variables: &[(&str, &str)]) -> Result<Outcome, String> {
    let variables = variables.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
    PROGRAM.load(flags.iter().map(OsString::from), variables).map_err(|mistakes| mistakes.to_string())
}

fn plan(flags: &[&str], variables: &[(&str, &str)]) -> Result<Plan, String> {
    match load(flags, variables)? {
        Outcome::Run(settings) => Plan::new(&settings).map_err(|mistakes| mistakes.to_string()),
        Outcome::Say(text) => Err(text),
    }
}

/// What is needed where the machine must not matter.
const FIXED: [(&str, &str); 5] = [
    ("STOKER_ETCD", "http://127.0.0.1:2379"),
    ("STOKER_NAME", "runner-1"),
    ("STOKER_MEMORY", "1GiB"),
    ("STOKER_CPU", "2"),
    ("STOKER_STATE", "/var/lib/stoker"),
];

#[test]
fn every_key_is_shown_and_what_is_shown_can_be_used_again() {
    let variables =
        [&FIXED[..], &[("STOKER_ETCD_PASSWORD", "secret"), ("STOKER_ADVERTISE", "http://r1:7170")]].concat();
    let flags = [
        "--listen",
        "0.0.0.0:7170",
        "--etcd-user",
        "stoker",
        "--labels",
        "disk=ssd,gpu=none",
        "--print-config",
    ];
    let Ok(Outcome::Say(printed)) = load(&flags, &variables) else { panic!("it is asked to print") };
    assert_eq!(printed, include_str!("printed.yaml"));
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &printed).unwrap();
    let again = plan(&["--config", &file.path().display().to_string()], &FIXED[..1]);
    // All but the password, which is not shown.
    assert!(again.unwrap_err().contains("`etcd_user`: has no password"));
}

#[test]
fn values_become_a_runner() {
    let more = [
        ("STOKER_ADMIN_LISTEN", "127.0.0.1:0"),
        ("STOKER_SANDBOX", "process"),
        ("STOKER_ZONE", "z1"),
        ("STOKER_LISTEN", "127.0.0.1:0"),
        ("STOKER_ETCD_LEASE", "5s"),
        ("STOKER_DRAIN_GRACE", "3s"),
    ];
    let plan = plan(&["--freeze-after", "1s", "--threads", "2"], &[&FIXED[..], &more].concat()).unwrap();
    let Config { name, resources, sandbox, zone, freeze_after, state_dir, advertise, .. } = plan.runner;
    assert_eq!((name.as_str(), zone.as_str(), sandbox), ("runner-1", "z1", Choice::Process));
    assert_eq!(resources, Resources { memory: 1 << 30, cpu_millis: 2000, slots: 128 });
    assert_eq!((freeze_after, plan.drain_grace), (Duration::from_secs(1), Duration::from_secs(3)));
    assert_eq!((state_dir, advertise, plan.threads), ("/var/lib/stoker".into(), None, 2));
    assert_eq!((plan.etcd.lease, plan.etcd.endpoints.len()), (Duration::from_secs(5), 1));
    assert!(plan.warnings.is_empty() && plan.telemetry.endpoint.is_none());
}

#[test]
fn the_machine_gives_the_rest() {
    let plan = plan(&["--etcd=http://a:1,http://b:2"], &[("HOME", "/home/x")]).unwrap();
    assert!(plan.runner.resources.memory > 0 && plan.runner.resources.cpu_millis > 0);
    assert!(plan.runner.state_dir.is_absolute());
}

#[test]
fn all_mistakes_between_values_are_told_at_once() {
    let flags = [
        "--listen=0.0.0.0:7170",
        "--insecure",
        "--memory=0MiB",
        "--cpu=0",
        "--etcd-password=x",
        "--etcd-key=k",
    ];
    assert_eq!(
        plan(&flags, &FIXED[..2]).unwrap_err(),
        "flag --etcd-password: `etcd_password`: is nobody's: give `etcd_user` too
flag --etcd-key: `etcd_key`: is of no certificate: give `etcd_certificate` too
`advertise`: is missing: the runner listens on 0.0.0.0:7170, all addresses, and balancers must be told one that leads here: \
         write http://HOST:7170
flag --memory: `memory`: a runner without memory can run nothing: write it like 4GiB
flag --cpu: `cpu`: a runner without CPU can run nothing: write it like 2, or 500m
"
    );
}

#[test]
fn addresses_that_lead_nowhere() {
    let any: SocketAddr = "0.0.0.0:7170".parse().unwrap();
    let local: SocketAddr = "127.0.0.1:7170".parse().unwrap();
    for (listen, advertise, expected) in [
        (local, None, "fine"),
        (local, Some("http://127.0.0.1:7170"), "fine"),
        (any, Some("http://runner-1:7170"), "fine"),
        (any, Some("http://[fd00::1]:7170"), "fine"),
        (any, None, "is missing"),
        ("[::]:7170".parse().unwrap(), None, "is missing"),
        (any, Some("http://0.0.0.0:7170"), "leads nowhere"),
        (local, Some("http://[::]:7170"), "leads nowhere"),
        (any, Some("http://runner-1"), "has no port"),
        (any, Some("http://runner-1:0"), "port 0"),
        (any, Some("http://127.0.0.1:7170"), "warning: balancers on other machines"),
        (any, Some("http://localhost:7170"), "warning: balancers on other machines"),
        (any, Some("http://[::1]:7170"), "warning: balancers on other machines"),
    ] {
        let found = match advertised(listen, advertise) {
            Ok(None) => "fine".to_owned(),
            Ok(Some(warning)) => format!("warning: {warning}"),
            Err(why) => why,
        };
        assert!(found.contains(expected), "{listen} {advertise:?}: {found}");
    }
}

#[test]
fn ports_for_others_take_tls() {
    let said = |flags: &[&str]| plan(flags, &FIXED).err().unwrap_or_default();
    let others = ["--listen=10.0.0.1:7170", "--admin-listen=0.0.0.0:7190"];
    let bare = said(&others);
    for key in ["`listen`: 10.0.0.1:7170", "`admin_listen`: 0.0.0.0:7190"] {
        assert!(
            bare.contains(&format!("{key} can be reached from other machines, and there is no TLS")),
            "{bare}"
        );
    }
    let insecure = plan(&[&others[..], &["--insecure"]].concat(), &FIXED).unwrap();
    assert!(insecure.warnings.iter().any(|warning| warning.contains("can run programs here")));
    assert!(said(&["--advertise=https://r1:7170"]).contains("there is no `tls.certificate`"));
    let files = ["--tls-certificate=/nowhere/a.pem", "--tls-key=/nowhere/a.key"];
    let wrong = said(&[&files[..], &["--advertise=http://r1:7170"]].concat());
    for part in ["give `tls.ca` too", "write https://", "/nowhere/a.key cannot be used"] {
        assert!(wrong.contains(part), "{part} in {wrong}");
    }
}
