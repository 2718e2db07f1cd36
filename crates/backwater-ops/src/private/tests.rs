#![cfg(unix)]

use std::{
    env,
    fs::{self, Permissions},
    os::unix::fs::{PermissionsExt, chown, lchown, symlink},
    path::PathBuf,
};

use super::*;

/// A user who is neither root nor whoever runs the tests.
const OTHER: u32 = 4711;

/// A directory that is gone with it.
struct Place(PathBuf);

impl Place {
    fn new() -> Self {
        let name = format!("backwater-private-{}-{:?}", std::process::id(), std::thread::current().id());
        let path = env::temp_dir().join(name.replace(['(', ')'], ""));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    /// A directory of another user; `None`, with a line that says so, where only root could make one.
    fn of_another_user(&self) -> Option<PathBuf> {
        let path = self.0.join("theirs");
        fs::create_dir(&path).unwrap();
        if let Err(error) = chown(&path, Some(OTHER), None) {
            eprintln!("skipped in part: no file can be given to another user: {error}");
            return None;
        }
        Some(path)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn error(result: io::Result<()>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn private_directory_has_the_mode_0700_or_is_refused() {
    let place = Place::new();
    let path = place.0.join("a/b");
    make_private_directory(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o700);
    for mode in [0o750, 0o707, 0o1777] {
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        let error = error(make_private_directory(&path));
        assert!(error.contains(&format!("has the mode {mode:04o}: chmod 700 it")), "{error}");
        check_directory_is_own(&path).unwrap();
    }
    fs::write(place.0.join("file"), "").unwrap();
    assert!(error(check_directory_is_own(&place.0.join("file"))).contains("is no directory"));
    assert!(error(check_directory_is_own(&place.0.join("none"))).contains("none: "));
}

#[test]
fn directory_of_another_user_is_refused() {
    let place = Place::new();
    let Some(theirs) = place.of_another_user() else { return };
    assert!(error(make_private_directory(&theirs)).contains("theirs belongs to another user (uid 4711)"));
    // Its owner can put another directory in the place of one that is below it.
    assert!(error(make_private_directory(&theirs.join("ours"))).contains("theirs belongs to another user"));
}

#[test]
fn link_of_another_user_is_refused_and_an_own_one_is_followed() {
    let place = Place::new();
    let (target, link) = (place.0.join("target"), place.0.join("link"));
    make_private_directory(&target).unwrap();
    symlink(&target, &link).unwrap();
    make_private_directory(&link.join("below")).unwrap();
    if let Some(theirs) = place.of_another_user() {
        lchown(&link, Some(OTHER), None).unwrap();
        for path in [link.clone(), link.join("below")] {
            assert!(error(check_directory_is_own(&path)).contains("link belongs to another user"));
        }
        let link = place.0.join("to theirs");
        symlink(&theirs, &link).unwrap();
        assert!(error(check_directory_is_own(&link)).contains("belongs to another user"), "an own link to another's");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn memory_is_hidden() {
    use rustix::process::{DumpableBehavior, dumpable_behavior};
    hide_memory().unwrap();
    assert_eq!(dumpable_behavior().unwrap(), DumpableBehavior::NotDumpable);
}
