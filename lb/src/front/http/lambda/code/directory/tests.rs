use std::io::{Cursor, Write as _};

use zip::ZipWriter;
use zip::write::SimpleFileOptions;

use super::super::zipped::{DEEPEST, MOST_BYTES};
use super::*;

/// A zip with these files (name, mode, content).
fn zipped(files: &[(&str, u32, &[u8])]) -> Bytes {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, mode, content) in files {
        let options = SimpleFileOptions::default().unix_permissions(*mode);
        if mode & 0o170_000 == 0o120_000 {
            zip.add_symlink(*name, String::from_utf8_lossy(content), options).unwrap();
        } else if name.ends_with('/') {
            zip.add_directory(*name, options).unwrap();
        } else {
            zip.start_file(*name, options).unwrap();
            zip.write_all(content).unwrap();
        }
    }
    zip.finish().unwrap().into_inner().into()
}

fn store() -> (tempfile::TempDir, Arc<Directory>) {
    let directory = tempfile::tempdir().unwrap();
    let store = Directory::new(directory.path().join("code"), MOST_BYTES);
    (directory, store)
}

fn runtime(rootfs: Option<PathBuf>) -> Runtime {
    Runtime { rootfs, ..Runtime::default() }
}

async fn put(store: &Arc<Directory>, zip: Bytes) -> Result<PathBuf, Refused> {
    let hash = digest::digest(&digest::SHA256, &zip);
    store.put(zip, hash.as_ref(), &runtime(None), &[]).await.map(|kept| kept.workdir)
}

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o7777
}

#[tokio::test]
async fn a_zip_becomes_a_directory_that_everybody_can_read() {
    let (_directory, store) = store();
    let zip = zipped(&[
        ("func.py", 0o600, b"code"),
        ("bin/run", 0o4700, b"#!"),
        ("empty/", 0o700, b""),
        ("bin/again", 0o120_777, b"../bin/run"),
    ]);
    let at = &put(&store, zip.clone()).await.unwrap();
    assert_eq!(fs::read(at.join("func.py")).unwrap(), b"code");
    assert_eq!(fs::read(at.join("bin/again")).unwrap(), b"#!");
    assert_eq!([at, &at.join("bin"), &at.join("empty")].map(|path| mode(path)), [0o755; 3]);
    assert_eq!((mode(&at.join("func.py")), mode(&at.join("bin/run"))), (0o644, 0o755), "and no setuid");
    let again = async |at: PathBuf| store.again(&at.to_string_lossy(), &runtime(None), &[]).await;
    assert_eq!(again(at.clone()).await.unwrap().workdir, *at);
    assert!(again(at.join("gone")).await.is_err() && again("somewhere".into()).await.is_err());
    // The same is the same, and nothing else lies about.
    assert_eq!(put(&store, zip).await.unwrap(), *at);
    assert_eq!(fs::read_dir(at.parent().unwrap()).unwrap().count(), 1);
}

#[tokio::test]
async fn what_would_do_harm_is_refused_and_leaves_nothing() {
    let (directory, store) = store();
    let deep = format!("{}f", "d/".repeat(DEEPEST));
    let long = "x".repeat(256);
    for (zip, said) in [
        (zipped(&[("../out", 0o644, b"x")]), "no name"),
        (zipped(&[("a/../../out", 0o644, b"x")]), "no name"),
        (zipped(&[(&deep, 0o644, b"x")]), "no name"),
        (zipped(&[(&long, 0o644, b"x")]), "no name"),
        (zipped(&[("a", 0o120_777, b"/etc")]), "leads out"),
        (zipped(&[("a", 0o120_777, b"..")]), "leads out"),
        (zipped(&[("b/a", 0o120_777, b"../../etc")]), "leads out"),
        // Through a link that is there before.
        (zipped(&[("a", 0o120_777, b"b"), ("a/out", 0o644, b"x")]), "twice"),
        (zipped(&[("a", 0o644, b"x"), ("a/b", 0o644, b"x")]), "twice"),
        (Bytes::from_static(b"PK no zip"), "Could not unzip"),
        (Bytes::new(), "Could not unzip"),
    ] {
        let refused = put(&store, zip).await.unwrap_err();
        assert_eq!(refused.name(), (400, "InvalidParameterValueException"));
        assert!(refused.error.message.contains(said), "{said}: {}", refused.error);
    }
    assert!(!directory.path().join("out").exists());
    assert_eq!(fs::read_dir(directory.path().join("code")).unwrap().count(), 0, "nothing is left");
}

#[tokio::test]
async fn a_bomb_is_counted_while_it_goes_off() {
    let directory = tempfile::tempdir().unwrap();
    let store = Directory::new(directory.path().join("code"), 1 << 20);
    let zeros = vec![0; 1 << 19];
    let zip = zipped(&[("one", 0o644, &zeros), ("two", 0o644, &zeros), ("last", 0o644, b"0")]);
    assert!(zip.len() < 1 << 16, "{}", zip.len());
    let refused = put(&store, zip).await.unwrap_err();
    assert!(refused.error.message.contains("Unzipped size"), "{}", refused.error);
    assert_eq!(fs::read_dir(directory.path().join("code")).unwrap().count(), 0, "nothing is left");
}

#[tokio::test]
async fn a_root_with_code_shares_its_files() {
    use std::os::unix::fs::MetadataExt as _;
    let (directory, store) = store();
    let root = directory.path().join("root");
    fs::create_dir_all(root.join("var/task")).unwrap();
    fs::create_dir_all(root.join("bin")).unwrap();
    fs::write(root.join("bin/python"), "an interpreter").unwrap();
    fs::write(root.join("var/task/old"), "of the root").unwrap();
    symlink("bin", root.join("sbin")).unwrap();
    let code = put(&store, zipped(&[("func.py", 0o644, b"code")])).await.unwrap();
    let with_root = async || store.again(&code.to_string_lossy(), &runtime(Some(root.clone())), &[]).await;
    let kept = with_root().await.unwrap();
    assert_eq!((kept.workdir.as_path(), kept.at.as_str()), (Path::new(TASK), &*code.to_string_lossy()));
    let Root::Rootfs(rooted) = kept.root else { panic!("{:?}", kept.root) };
    assert_eq!(fs::read(rooted.join("var/task/func.py")).unwrap(), b"code");
    assert_eq!(fs::read_link(rooted.join("sbin")).unwrap(), Path::new("bin"));
    assert!(!rooted.join("var/task/old").exists() && root.join("var/task/old").exists());
    let inode = |path: PathBuf| path.metadata().unwrap().ino();
    assert_eq!(inode(rooted.join("bin/python")), inode(root.join("bin/python")));
    assert_eq!(with_root().await.unwrap().root, Root::Rootfs(rooted));
}

#[tokio::test]
async fn what_nobody_names_goes_a_day_later() {
    let (_directory, store) = store();
    let one = put(&store, zipped(&[("a", 0o644, b"1")])).await.unwrap();
    let other = put(&store, zipped(&[("a", 0o644, b"2")])).await.unwrap();
    let place = one.parent().unwrap();
    let named = BTreeSet::from([one.clone()]);
    let (now, later) = (SystemTime::now(), SystemTime::now() + UNUSED + Duration::from_secs(60));
    sweep(place, &named, now).unwrap();
    assert!(other.exists(), "it is only marked");
    // Named again, it is as if nothing had been.
    sweep(place, &BTreeSet::from([one.clone(), other.clone()]), now).unwrap();
    sweep(place, &named, later).unwrap();
    assert!(other.exists());
    sweep(place, &named, later + UNUSED).unwrap();
    assert!(one.exists() && !other.exists());
    sweep(&place.join("none"), &named, now).unwrap();
}

#[tokio::test]
async fn layers_lie_on_each_other_and_nothing_is_written_through_a_link() {
    let (place, store) = store();
    let layer = async |files: &[(&str, u32, &[u8])]| {
        let zip = zipped(files);
        let hash = digest::digest(&digest::SHA256, &zip);
        store.put_layer(zip, hash.as_ref()).await.unwrap()
    };
    let code = put(&store, zipped(&[("func.py", 0o644, b"code")])).await.unwrap();
    let code = code.to_string_lossy();
    let below =
        layer(&[("text", 0o644, b"below"), ("deep/one", 0o755, b"1"), ("lib", 0o120_777, b"deep")]).await;
    let above =
        layer(&[("text", 0o644, b"above"), ("lib/two", 0o644, b"2"), ("deep", 0o644, b"a file")]).await;
    let with = async |root: Option<PathBuf>, layers: &[&String]| {
        let layers: Vec<String> = layers.iter().map(|at| (*at).clone()).collect();
        store.again(&code, &runtime(root), &layers).await.unwrap()
    };
    assert_eq!(with(None, &[]).await.opt, Path::new(""));
    assert_eq!(with(None, &[&below]).await.opt, Path::new(&below), "one is what it is");
    let both = with(None, &[&below, &above]).await;
    let read = |name: &str| fs::read(both.opt.join(name)).unwrap();
    assert_eq!(
        (&read("text")[..], &read("deep")[..], &read("lib/two")[..]),
        (&b"above"[..], &b"a file"[..], &b"2"[..])
    );
    let other = with(None, &[&above, &below]).await.opt;
    assert_ne!(other, both.opt);
    assert_eq!(fs::read(other.join("text")).unwrap(), b"below");
    assert_eq!(
        fs::read_link(other.join("lib")).unwrap(),
        Path::new("deep"),
        "the link took the directory's place"
    );
    assert!(!Path::new(&below).join("two").exists() && !Path::new(&below).join("deep/two").exists());

    // In a root of the runtime's they lie in its own, where that is a link to elsewhere too.
    let root = place.path().join("root");
    let outside = place.path().join("outside");
    fs::create_dir_all(&root).unwrap();
    fs::create_dir(&outside).unwrap();
    symlink(&outside, root.join("opt")).unwrap();
    let joined = with(Some(root), &[&below]).await;
    let Root::Rootfs(at) = &joined.root else { panic!("{joined:?}") };
    assert_eq!(fs::read(at.join("opt/deep/one")).unwrap(), b"1");
    assert_eq!((joined.opt.as_os_str().len(), fs::read_dir(&outside).unwrap().count()), (0, 0));

    // What somebody names stays.
    store.sweep(BTreeSet::from([PathBuf::from(&below)])).await;
    let marked = |of: &str| {
        let of = Path::new(of);
        of.with_file_name(format!("{MARK}{}", of.file_name().unwrap().to_string_lossy())).exists()
    };
    assert!(!marked(&below) && marked(&above) && marked(&both.opt.to_string_lossy()));
}
