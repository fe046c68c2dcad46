//! The same as an ordinary user, where files cannot have their owners.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use crate::kit::is_root;

#[test]
fn an_ordinary_user_has_a_store_too() {
    if !is_root() {
        // Then everything else here has shown it.
        return;
    }
    // Where that user may go, with the program that this is.
    let directory = tempfile::tempdir().unwrap();
    let open =
        |mode| std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(mode)).unwrap();
    open(0o1777);
    let program = directory.path().join("images");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let ran = Command::new("setpriv")
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--bounding-set=-all"])
        .arg(&program)
        .args(["layers::", "archives::", "hostile::", "pulls::a_tag", "pulls::what_is_there"])
        .args(["--skip", "stacks_of_layers", "--skip", "damaged_archives"])
        .env("TMPDIR", directory.path())
        .current_dir(directory.path())
        .output();
    let Ok(ran) = ran else {
        eprintln!("left out: setpriv (package util-linux) is missing");
        return;
    };
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success(), "{said}{}", String::from_utf8_lossy(&ran.stderr));
    assert!(said.contains("layers::what_a_file_is_comes_along_but_what_gives_power ... ok"), "{said}");
}
