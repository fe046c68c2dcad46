use super::*;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

#[test]
fn frames_and_descriptors_arrive_in_order_whatever_their_size() {
    let (left, right) =
        socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
    let big = "x".repeat(3 << 20);
    let writer = std::thread::spawn(move || {
        let stdin = io::stdin();
        let env = vec![("BIG".to_owned(), big)];
        send_frame(left.as_fd(), &Launch { env }, &[stdin.as_fd()]).unwrap();
        send_frame(left.as_fd(), &Launch { env: vec![("A".to_owned(), "b".to_owned())] }, &[]).unwrap();
    });
    let mut inbox = Inbox::default();
    let first: Launch = inbox.wait(&right).unwrap().unwrap();
    let second: Launch = inbox.wait(&right).unwrap().unwrap();
    writer.join().unwrap();
    assert_eq!(first.env[0].1.len(), 3 << 20);
    assert_eq!(second.env[0].0, "A");
    assert!(inbox.descriptor().is_some());
    assert!(inbox.descriptor().is_none());
    assert!(inbox.wait::<Launch>(&right).unwrap().is_none());
}

#[test]
fn maps_name_every_id_of_an_image_once() {
    let mapped = Identity::Mapped { user: 7_000_000, others: 8_000_000 };
    let lines = |uid| mapped.maps(User { uid, gid: 0 }).unwrap()[0].clone();
    assert_eq!(lines(0), "0 7000000 1\n1 8000001 65535\n");
    assert_eq!(lines(33), "33 7000000 1\n0 8000000 33\n34 8000034 65502\n");
    assert_eq!(lines(65_535), "65535 7000000 1\n0 8000000 65535\n");
    assert_eq!(lines(100_000), "100000 7000000 1\n0 8000000 65536\n");
    assert_eq!(Identity::Renamed.maps(User { uid: 5, gid: 6 }).unwrap(), ["5 1000 1\n", "6 1000 1\n"]);
    assert_eq!(Identity::Inside.maps(User { uid: 5, gid: 6 }), None);
}

/// Spawner and inits of the program before are told this. A change here that an older one would not understand takes another
/// [`crate::handover::PROTOCOL`].
#[test]
fn the_words_of_this_protocol() {
    let json = |orders: &[Order]| serde_json::to_string(orders).unwrap();
    assert_eq!(crate::handover::PROTOCOL, 2);
    assert_eq!(
        json(&[Order::Terminate, Order::KillCommand, Order::Kill, Order::Stop, Order::Continue]),
        r#"["Terminate","KillCommand","Kill","Stop","Continue"]"#
    );
    assert_eq!(
        serde_json::to_string(&ToSpawner::Clone { sequence: 7, cgroup: true }).unwrap(),
        r#"{"Clone":{"sequence":7,"cgroup":true}}"#
    );
    let begin = Begin {
        isolate: true,
        rootless: Some((1, 2)),
        attach: vec!["/a".into()],
        network: NetworkPlan::Tunnel { six: false },
    };
    assert_eq!(
        json(&[Order::Begin(begin)]),
        r#"[{"Begin":{"isolate":true,"rootless":[1,2],"attach":["/a"],"network":{"Tunnel":{"six":false}}}}]"#
    );
    let plan = Plan {
        id: "i".to_owned(),
        root: RootPlan::Directory("/r".into()),
        writable_root: false,
        program: Program { command: vec!["c".to_owned()], env: vec![("K".to_owned(), "V".to_owned())] },
        workdir: "/w".into(),
        tmp_size: 1,
        open_files: 2,
        processes: Some(3),
        watch_memory: None,
        shared: None,
        identity: Identity::Mapped { user: 4, others: 5 },
        user: User { uid: 6, gid: 7 },
        groups: vec![8],
        opt: None,
        stop_signal: 15,
        stays: false,
        names: Some(Names { hosts: "h".to_owned(), resolver: "r".to_owned() }),
        home: None,
        hidden: Vec::new(),
    };
    assert_eq!(
        json(&[Order::Build(Box::new(plan))]),
        concat!(
            r#"[{"Build":{"id":"i","root":{"Directory":"/r"},"writable_root":false,"#,
            r#""program":{"command":["c"],"env":[["K","V"]]},"workdir":"/w","tmp_size":1,"open_files":2,"#,
            r#""processes":3,"watch_memory":null,"opt":null,"shared":null,"identity":{"Mapped":{"user":4,"others":5}},"#,
            r#""user":{"uid":6,"gid":7},"groups":[8],"stop_signal":15,"stays":false,"#,
            r#""names":{"hosts":"h","resolver":"r"},"home":null}}]"#
        )
    );
    let launch = Launch { env: vec![("K".to_owned(), "V".to_owned())] };
    assert_eq!(serde_json::to_string(&launch).unwrap(), r#"{"env":[["K","V"]]}"#);
    let end = End { code: Some(1), signal: None, out_of_memory: false, peak: 2 };
    let said = r#"["Stopped","Continued","Orphaned",{"Ended":{"code":1,"signal":null,"out_of_memory":false,"peak":2}}]"#;
    let reports = [Report::Stopped, Report::Continued, Report::Orphaned, Report::Ended(end)];
    assert_eq!(serde_json::to_string(&reports).unwrap(), said);
    let cloned = FromSpawner::Cloned { sequence: 7, pid: 8 };
    assert_eq!(serde_json::to_string(&cloned).unwrap(), r#"{"Cloned":{"sequence":7,"pid":8}}"#);
}

#[test]
fn a_length_beyond_the_limit_is_refused() {
    let mut inbox = Inbox { bytes: vec![0xff, 0xff, 0xff, 0xff, 0], ..Inbox::default() };
    assert!(inbox.take::<Launch>().is_err());
}
