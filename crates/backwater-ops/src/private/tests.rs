#![cfg(unix)]

use std::{
    env,
    fs::{self, Permissions},
    os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown, symlink},
    path::{Path, PathBuf},
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

#[test]
fn what_a_link_leads_through_is_checked_too() {
    let place = Place::new();
    let Some(theirs) = place.of_another_user() else { return };
    // Their directory has a directory of ours in it, and a link to one elsewhere.
    let (ours, elsewhere) = (theirs.join("ours"), place.0.join("elsewhere"));
    for directory in [&ours, &elsewhere] {
        make_directory(directory, 0o700);
    }
    symlink(&elsewhere, theirs.join("link")).unwrap();
    for target in [ours, theirs.join("link"), "theirs/../theirs/ours".into(), "theirs/link".into()] {
        let link = place.0.join("own link");
        symlink(&target, &link).unwrap();
        let error = error(check_directory_is_own(&link));
        assert!(error.contains("theirs belongs to another user (uid 4711)"), "{}: {error}", target.display());
        fs::remove_file(link).unwrap();
    }
    let link = place.0.join("own link");
    symlink("elsewhere/../elsewhere/.", &link).unwrap();
    check_directory_is_own(&link).unwrap();
    symlink("loop", place.0.join("loop")).unwrap();
    check_directory_is_own(&place.0.join("loop")).unwrap_err();
}

/// Once as this user, and once as another one where this is root: what root may write to is another matter.
#[test]
fn directory_that_others_can_write_to_is_no_place_for_an_own_one() {
    const TEST: &str = "private::tests::directory_that_others_can_write_to_is_no_place_for_an_own_one";
    const PLACE: &str = "BACKWATER_PLACE_OF_ANOTHER_USER";
    if let Some(place) = env::var_os(PLACE) {
        let place = PathBuf::from(place);
        return check_modes(&place, place.parent().map(|above| above.join("open")));
    }
    let place = Place::new();
    fs::set_permissions(&place.0, Permissions::from_mode(0o755)).unwrap();
    check_modes(&place.0, None);
    let Some(theirs) = place.of_another_user() else { return };
    // Of root, for everybody, and without the sticky bit.
    let open = place.0.join("open");
    make_directory(&open, 0o777);
    chown(&theirs, Some(OTHER), Some(OTHER)).unwrap();
    let mut command = std::process::Command::new("setpriv");
    // Another user may have no way to where the program is.
    command.args([&format!("--reuid={OTHER}"), &format!("--regid={OTHER}"), "--clear-groups", "/proc/self/fd/0"]);
    command.args(["--exact", TEST, "--nocapture"]).env(PLACE, &theirs);
    let program = fs::File::open(env::current_exe().unwrap()).unwrap();
    let out = command.stdin(program).output().unwrap();
    let text = [out.stdout, out.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(out.status.success() && text.contains("1 passed"), "{text}");
}

/// `place` is a directory of this user's own, whose parents nobody else can write to; `open` one that root has left open to all.
fn check_modes(place: &Path, open: Option<PathBuf>) {
    let parent = place.join("parent");
    make_directory(&parent, 0o700);
    let child = parent.join("child");
    make_directory(&child, 0o700);
    for (mode, is_safe) in [(0o755, true), (0o757, false), (0o777, false), (0o1777, true), (0o1757, true)] {
        fs::set_permissions(&parent, Permissions::from_mode(mode)).unwrap();
        let checked = check_directory_is_own(&child);
        assert_eq!(checked.is_ok(), is_safe, "{mode:o}: {checked:?}");
        if !is_safe {
            let error = error(make_private_directory(&child));
            assert!(error.contains(&format!("parent has the mode {mode:04o}, so that other users can")), "{error}");
        }
    }
    // A group of root's or of the user's own has no other members.
    fs::set_permissions(&parent, Permissions::from_mode(0o775)).unwrap();
    let groups = (fs::metadata(&parent).unwrap().gid(), rustix::process::geteuid().as_raw());
    assert_eq!(check_directory_is_own(&child).is_ok(), groups.0 == 0 || groups.0 == groups.1, "{groups:?}");
    if chown(&parent, None, Some(OTHER + 1)).is_ok() {
        assert!(error(check_directory_is_own(&child)).contains("parent has the mode 0775, so that other users can"));
    }
    if let Some(open) = open {
        make_directory(&open.join("ours"), 0o700);
        assert!(error(check_directory_is_own(&open.join("ours"))).contains("open has the mode 0777"));
    }
}

fn make_directory(path: &Path, mode: u32) {
    fs::create_dir(path).unwrap();
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

#[cfg(target_os = "linux")]
#[test]
fn memory_is_hidden() {
    use rustix::process::{DumpableBehavior, dumpable_behavior};
    hide_memory().unwrap();
    assert_eq!(dumpable_behavior().unwrap(), DumpableBehavior::NotDumpable);
}
