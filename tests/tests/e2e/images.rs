//! Functions that come as images: from archives, layouts and a real registry, through the whole fleet.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use stoker_core::ImageRef;
use stoker_core::error::{Blame, Code};
use stoker_core::function::{FunctionName, FunctionSpec, Root};
use stoker_proto::{convert, v1};
use stoker_tests::busybox;
use stoker_tests::calls::{Call, Door};
use stoker_tests::fleet::Plan;
use stoker_tests::functions::{Change as _, function};
use stoker_tests::registry::Registry;
use stoker_tests::within;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::sandbox;

/// Says who and where it is, with what it was started, and what it was sent.
const SCRIPT: &str = r#"#!/bin/sh
read -r line
echo "uid=$(id -u) gid=$(id -g) pwd=$(pwd) args=$* FROM=$FROM BOTH=$BOTH OWN=$OWN release=$(cat /etc/release) sent=$line"
if touch /written 2>/dev/null; then echo "root=writable"; else echo "root=read-only"; fi
"#;

/// An image made of a static busybox, in files: an OCI layout with the manifest of `docker save` beside it.
struct Image {
    files: BTreeMap<String, Vec<u8>>,
    manifest: Vec<u8>,
}

fn digest(bytes: &[u8]) -> String {
    let mut sum = Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    sum.stdin.take().unwrap().write_all(bytes).unwrap();
    let said = sum.wait_with_output().unwrap().stdout;
    format!("sha256:{}", String::from_utf8_lossy(&said[..64]))
}

fn tar(directory: &Path) -> Vec<u8> {
    let made = Command::new("tar")
        .args([
            "--create",
            "--numeric-owner",
            "--owner=0",
            "--group=0",
            "--sort=name",
            "--mtime=@0",
            "--directory",
        ])
        .args([directory, Path::new(".")])
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    made.stdout
}

impl Image {
    /// `None` where there is no static busybox.
    fn make() -> Option<Self> {
        let busybox = busybox()?;
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        for directory in ["base/bin", "base/etc", "app/app", "app/etc"] {
            std::fs::create_dir_all(at(directory)).unwrap();
        }
        std::fs::copy(busybox, at("base/bin/busybox")).unwrap();
        for name in ["sh", "id", "cat", "touch", "sleep"] {
            std::os::unix::fs::symlink("busybox", at("base/bin").join(name)).unwrap();
        }
        std::fs::write(at("base/etc/release"), "base").unwrap();
        std::fs::write(at("base/etc/passwd"), "root:x:0:0::/:/bin/sh\nworker:x:1234:2345::/app:/bin/sh\n")
            .unwrap();
        std::fs::write(at("app/etc/release"), "app").unwrap();
        std::fs::write(at("app/app/run"), SCRIPT).unwrap();
        for path in ["base/bin/busybox", "app/app/run"] {
            std::fs::set_permissions(at(path), std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        let layers = [tar(&at("base")), tar(&at("app"))];
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let config = json!({
            "os": "linux", "architecture": architecture,
            "config": {
                "Entrypoint": ["/app/run"], "Cmd": ["one", "two"], "User": "worker", "WorkingDir": "/app/work",
                "Env": ["FROM=image", "BOTH=image", "PATH=/bin"],
            },
            "rootfs": {"type": "layers", "diff_ids": layers.each_ref().map(|layer| digest(layer))},
        })
        .to_string()
        .into_bytes();
        let path = |bytes: &[u8]| format!("blobs/sha256/{}", &digest(bytes)["sha256:".len()..]);
        let describe = |bytes: &[u8], kind: &str| json!({"mediaType": format!("application/vnd.oci.image.{kind}"), "digest": digest(bytes), "size": bytes.len()});
        let manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": describe(&config, "config.v1+json"),
            "layers": layers.each_ref().map(|layer| describe(layer, "layer.v1.tar")),
        })
        .to_string()
        .into_bytes();
        let saved = json!([{"Config": path(&config), "Layers": layers.each_ref().map(|layer| path(layer))}]);
        let index = json!({"schemaVersion": 2, "manifests": [describe(&manifest, "manifest.v1+json")]});
        let mut files: BTreeMap<_, _> =
            layers.into_iter().chain([config, manifest.clone()]).map(|blob| (path(&blob), blob)).collect();
        files.insert("manifest.json".into(), saved.to_string().into_bytes());
        files.insert("index.json".into(), index.to_string().into_bytes());
        files.insert("oci-layout".into(), br#"{"imageLayoutVersion": "1.0.0"}"#.to_vec());
        Some(Self { files, manifest })
    }

    fn write(&self, directory: &Path) -> PathBuf {
        for (path, bytes) in &self.files {
            let path = directory.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
        directory.to_owned()
    }

    fn write_archive(&self, directory: &Path) -> PathBuf {
        let layout = self.write(&directory.join("parts"));
        let archive = directory.join("image.tar");
        std::fs::write(&archive, tar(&layout)).unwrap();
        archive
    }
}

fn with_image(name: &str, root: Root) -> FunctionSpec {
    let mut spec = function(name, &[]);
    (spec.root, spec.workdir) = (root, PathBuf::new());
    spec
}

/// What the image's program is to say.
fn said(args: &str, both: &str, own: &str, sent: &str) -> String {
    let (uid, gid) = if sandbox().chooses_user { (1234, 2345) } else { (1000, 1000) };
    format!(
        "uid={uid} gid={gid} pwd=/app/work args={args} FROM=image BOTH={both} OWN={own} release=app sent={sent}\nroot=read-only\n"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_brings_its_program_and_how_to_run_it() {
    let Some(image) = Image::make() else { return };
    if !sandbox().isolates {
        println!("left out: images need a sandbox: {}", sandbox().why);
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let archive = image.write_archive(directory.path());
    let layout = image.write(&directory.path().join("layout"));
    let mut own = with_image("own", Root::Archive(archive.clone()));
    own.env = [("BOTH", "function"), ("OWN", "function")].map(|(k, v)| (k.into(), v.into())).into();
    own.command = ["/app/run", "mine"].map(str::to_owned).into();
    let mut writable = with_image("writable", Root::Archive(archive.clone()));
    writable.writable_root = true;
    let functions = [
        with_image("saved", Root::Archive(archive)),
        with_image("laid-out", Root::OciLayout(layout)),
        own,
        writable,
    ];
    let fleet = Plan::default().start(functions).await;

    let call =
        async |name: &str| fleet.clients.call(Door::Invoke, Call::of(name).body("hello\n")).await.unwrap();
    let first = call("saved").await;
    assert_eq!(first.text(), said("one two", "image", "", "hello"));
    let timings = first.timings.unwrap();
    assert!(timings.cold && timings.image_us > 0, "{timings:?}");
    assert_eq!(call("laid-out").await.text(), said("one two", "image", "", "hello"));
    assert_eq!(call("own").await.text(), said("mine", "function", "function", "hello"));
    assert!(call("writable").await.text().ends_with("root=writable\n"));
    assert_eq!(
        call("saved").await.text(),
        said("one two", "image", "", "hello"),
        "what one wrote no other sees"
    );
    fleet.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_an_image_is_its_authors_to_mend() {
    if !sandbox().isolates {
        println!("left out: images need a sandbox: {}", sandbox().why);
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let broken = directory.path().join("broken.tar");
    std::fs::write(&broken, "this is no image").unwrap();
    let functions = [
        with_image("missing", Root::Archive("/nowhere.tar".into())),
        with_image("broken", Root::Archive(broken)),
    ];
    let fleet = Plan::default().start(functions).await;
    for (name, says) in [("missing", "/nowhere.tar"), ("broken", "broken.tar")] {
        let error = fleet.clients.call(Door::Invoke, Call::of(name)).await.unwrap_err();
        assert_eq!(
            (error.code, error.code.blame()),
            (Code::FunctionInitFailed, Blame::Function),
            "{error:?}"
        );
        assert!(error.message.contains(says), "{error:?}");
    }
    fleet.end().await;
}

fn push(registry: &Registry, repository: &str, tag: &str, image: &Image) {
    for (path, blob) in &image.files {
        if path.starts_with("blobs/") && *blob != image.manifest {
            let path = format!("/v2/{repository}/blobs/uploads/");
            let answer = registry.send("POST", &path, "text/plain", b"");
            let location = answer.lines().find_map(|line| line.strip_prefix("Location: ")).unwrap().trim();
            let to = &location[location.find("/v2/").unwrap()..];
            let to = format!("{to}&digest={}", digest(blob));
            registry.send("PUT", &to, "application/octet-stream", blob);
        }
    }
    let kind = serde_json::from_slice::<Value>(&image.manifest).unwrap()["mediaType"].clone();
    let path = format!("/v2/{repository}/manifests/{tag}");
    registry.send("PUT", &path, kind.as_str().unwrap(), &image.manifest);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tag_is_pinned_when_its_function_is_applied() {
    let (Some(image), Some(registry)) = (Image::make(), Registry::start()) else { return };
    if !sandbox().isolates {
        println!("left out: images need a sandbox: {}", sandbox().why);
        return;
    }
    push(&registry, "team/app", "1", &image);
    let fleet = Plan::default().start([]).await;
    let apply = async |name: &str, image: &str| {
        let image = ImageRef::parse(&format!("{}/{image}", registry.address)).unwrap();
        let spec = fleet.marked(with_image(name, Root::Image(image)));
        let request = v1::ApplyFunctionsRequest { functions: vec![convert::to_function(&spec)], hold: false };
        fleet.clients.functions().apply_functions(request).await
    };
    apply("pulled", "team/app:1").await.unwrap();
    let request = v1::GetFunctionRequest { function: "t/pulled".into() };
    let kept = fleet.clients.functions().get_function(request).await.unwrap().into_inner();
    assert!(format!("{kept:?}").contains(&format!("team/app:1@{}", digest(&image.manifest))), "{kept:?}");
    let answer = fleet.clients.call(Door::Invoke, Call::of("pulled").body("hello\n")).await.unwrap();
    assert_eq!(answer.text(), said("one two", "image", "", "hello"));

    let refused = apply("missing", "team/app:2").await.unwrap_err();
    assert!(format!("{refused:?}").contains("does not have it"), "{refused:?}");
    fleet.end().await;
}

/// In front of a registry: of what it answers by one connection so much is passed on, and the rest when it may go. Says when it holds something back.
async fn slowed(
    registry: SocketAddr,
    at_once: u64,
) -> (SocketAddr, watch::Sender<bool>, watch::Receiver<bool>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (go, going) = watch::channel(false);
    let (hold, held) = watch::channel(false);
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let (mut from_client, mut to_client) = client.into_split();
            let (from_server, mut to_server) = TcpStream::connect(registry).await.unwrap().into_split();
            let (hold, mut going) = (hold.clone(), going.clone());
            tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_server).await });
            tokio::spawn(async move {
                let mut first = from_server.take(at_once);
                tokio::io::copy(&mut first, &mut to_client).await?;
                let mut rest = first.into_inner();
                let mut next = [0];
                if rest.read(&mut next).await? > 0 {
                    hold.send_replace(true);
                    going.wait_for(|go| *go).await.map_err(std::io::Error::other)?;
                    to_client.write_all(&next).await?;
                    tokio::io::copy(&mut rest, &mut to_client).await?;
                }
                to_client.shutdown().await
            });
        }
    });
    (address, go, held)
}

/// A caller with less time than the image takes hears what it waited for, and how far that is. The image comes all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadline_that_comes_before_the_image_names_it() {
    let (Some(image), Some(registry)) = (Image::make(), Registry::start()) else { return };
    if !sandbox().isolates {
        println!("left out: images need a sandbox: {}", sandbox().why);
        return;
    }
    push(&registry, "team/app", "1", &image);
    let (address, go, mut held) = slowed(registry.address, 200_000).await;
    let fleet = Plan::default().queue(Duration::from_secs(1), 10, 10).start([]).await;
    let reference = ImageRef::parse(&format!("{address}/team/app:1")).unwrap();
    let slow = fleet.marked(with_image("slow", Root::Image(reference)));
    // Who comes by HTTP has the times of the function and the balancer, and some more.
    let (second, name) = (Duration::from_secs(1), FunctionName::new("t", "brief").unwrap());
    let brief = FunctionSpec { name, ..slow.clone().with_timeout(second).with_init_timeout(second) };
    let functions = [slow, brief].iter().map(convert::to_function).collect();
    let request = v1::ApplyFunctionsRequest { functions, hold: false };
    fleet.clients.functions().apply_functions(request).await.unwrap();
    let call = || Call::of("slow").body("hello\n");
    fleet.clients.call(Door::Invoke, call().timeout(second)).await.unwrap_err();
    within("the middle of a layer", held.wait_for(|held| *held)).await.unwrap();

    let named = format!("waited for the image {address}/team/app:1@{}: ", digest(&image.manifest));
    let told = async |door| {
        let told = async {
            loop {
                let late = match door {
                    Door::Http => Call::of("brief").body("hello\n"),
                    _ => call().timeout(second),
                };
                let error = fleet.clients.call(door, late).await.unwrap_err();
                if error.message.contains(&named) {
                    break error;
                }
                // On a machine that is busy enough the client's own clock is the first to speak, or the balancer's.
                assert!(matches!(error.code, Code::Cancelled | Code::DeadlineExceeded), "{error:?}");
                println!("{door:?}: {}", error.message);
            }
        };
        let told = within("the name of the image", told).await;
        assert_eq!((told.code, told.may_have_started), (Code::DeadlineExceeded, false), "{door:?}: {told:?}");
        assert!(told.message.contains(" of it had come by then; it is fetched all the same"), "{told:?}");
    };
    tokio::join!(told(Door::Invoke), told(Door::Stream), told(Door::Session), told(Door::Http));
    go.send_replace(true);
    let answer = fleet.clients.call(Door::Invoke, call()).await.unwrap();
    assert_eq!(answer.text(), said("one two", "image", "", "hello"));
    fleet.end().await;
}
