//! Log files: one for each start, rotated by size, the oldest deleted when there are too many.

use std::{
    env,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use crate::private;

/// Where log files are kept, and how much of them.
///
/// A file is named after the process's start (UTC), its id, and how many it has written before:
/// `20261123T031305Z-4711-0000.log`; so their names sort by age. Others than the owner can neither read them (mode
/// 0600) nor list them (0700). A directory that another user owns, or can exchange, is not written to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogFiles {
    /// Where; it is made when it is not there.
    pub directory: PathBuf,
    /// Bytes in all log files of the directory together, of which a file has a tenth. Those that were written least
    /// recently are deleted, but none that is being written, or that another user owns.
    pub max_bytes: u64,
}

/// Files in the directory, however small.
const MAX_FILES: usize = 1000;

/// How long to wait after a file could not be opened.
const RETRY: Duration = Duration::from_secs(1);

impl LogFiles {
    /// In the user's directory for caches, for the application of this name: 100 MiB in
    /// `$XDG_CACHE_HOME/APPLICATION/data/logs`, or below `$HOME/.cache` without that variable; below `~/Library/Caches`
    /// on macOS, and `%LOCALAPPDATA%` on Windows. `None` when the user has no home.
    pub fn of(application: &str) -> Option<Self> {
        let directory = caches(|name| env::var_os(name).map(PathBuf::from), env::home_dir())?;
        Some(Self { directory: directory.join(application).join("data").join("logs"), max_bytes: 100 << 20 })
    }

    /// Of a process that was started then. No file is there before the first line.
    pub(super) fn writer(&self, start: SystemTime) -> Writer {
        let stamp = humantime::format_rfc3339_seconds(start).to_string().replace(['-', ':'], "");
        let state = State::Closed { retry: None };
        Writer {
            options: self.clone(),
            start: format!("{stamp}-{}", std::process::id()),
            number: 0,
            state,
            said: false,
        }
    }

    fn max_file(&self) -> u64 {
        self.max_bytes / 10
    }

    /// Deletes the oldest until there is room for what is being written to grow.
    fn make_room(&self) -> io::Result<()> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(named) = name.to_str().and_then(named) else { continue };
            // Not what a link leads to.
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_file() && private::is_own(&metadata) {
                let path = entry.path();
                let written = is_written(&path);
                // It may yet grow.
                let bytes = if written { metadata.len().max(self.max_file()) } else { metadata.len() };
                files.push((metadata.modified().ok(), named, path, written, bytes));
            }
        }
        files.sort();
        let mut count = files.len();
        let mut total: u64 = files.iter().map(|(.., bytes)| bytes).sum();
        for (_, _, path, _, bytes) in files.iter().filter(|(.., written, _)| !written) {
            if total <= self.max_bytes && count <= MAX_FILES {
                break;
            }
            // Another process may have done so.
            if fs::remove_file(path).is_ok() || !path.exists() {
                total -= bytes;
                count -= 1;
            }
        }
        Ok(())
    }
}

/// Takes one line with each `write`. It never fails: what cannot be written is lost.
pub(super) struct Writer {
    options: LogFiles,
    /// What the names of its files begin with.
    start: String,
    /// Of the next file.
    number: u32,
    state: State,
    /// That it cannot write has been said.
    said: bool,
}

enum State {
    /// Not before that time is one opened.
    Closed { retry: Option<Instant> },
    Open {
        file: File,
        bytes: u64,
        /// A line was written in part.
        torn: bool,
    },
}

impl Write for Writer {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match self.line(line) {
            Ok(()) => self.said = false,
            Err(error) => self.say(&error),
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Writer {
    /// Opens the first file before the first line.
    ///
    /// # Errors
    /// Why it cannot be opened. The caller says so; it is tried again with later lines.
    pub(super) fn begin(&mut self) -> io::Result<()> {
        self.said = true;
        self.state = State::Closed { retry: Some(Instant::now() + RETRY) };
        self.state = State::Open { file: self.open()?, bytes: 0, torn: false };
        self.said = false;
        Ok(())
    }

    fn line(&mut self, line: &[u8]) -> io::Result<()> {
        let len = line.len() as u64;
        let max = self.options.max_file();
        if matches!(self.state, State::Open { bytes, .. } if bytes > 0 && bytes + len > max) {
            self.state = State::Closed { retry: None };
        }
        if let State::Closed { retry } = self.state {
            if retry.is_some_and(|at| Instant::now() < at) {
                return Err(io::Error::other("it could not be opened"));
            }
            self.state = State::Closed { retry: Some(Instant::now() + RETRY) };
            self.state = State::Open { file: self.open()?, bytes: 0, torn: false };
        }
        let State::Open { file, bytes, torn } = &mut self.state else { return Ok(()) };
        if *torn {
            file.write_all(b"\n")?;
        }
        *torn = true;
        file.write_all(line)?;
        *torn = false;
        *bytes += len;
        Ok(())
    }

    fn open(&mut self) -> io::Result<File> {
        let directory = &self.options.directory;
        make_directory(directory)?;
        // A process of the same second and id has been there, as may be in containers.
        let file = loop {
            let path = directory.join(format!("{}-{:04}.log", self.start, self.number));
            self.number += 1;
            match open_new(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                result => break result?,
            }
        };
        // Now that other processes see it, and before it grows. Without room there is still a log of what goes on.
        if let Err(error) = self.options.make_room() {
            self.say(&error);
        }
        Ok(file)
    }

    /// Once until it works again. Nobody may be there to read it.
    fn say(&mut self, error: &io::Error) {
        if !self.said {
            self.said = true;
            let _ = writeln!(io::stderr(), "logs cannot be written to {}: {error}", self.options.directory.display());
        }
    }
}

/// What a log file's name says, if it is one: start, process, number.
fn named(name: &str) -> Option<(String, u32, u32)> {
    let mut parts = name.strip_suffix(".log")?.split('-');
    let (start, process, number) = (parts.next()?, parts.next()?, parts.next()?);
    let is_start = start.len() == "20261123T031305Z".len()
        && start.char_indices().all(|(i, c)| match i {
            8 => c == 'T',
            15 => c == 'Z',
            _ => c.is_ascii_digit(),
        });
    (is_start && parts.next().is_none()).then_some((start.to_owned(), process.parse().ok()?, number.parse().ok()?))
}

#[cfg(not(any(windows, target_vendor = "apple")))]
fn caches(variable: impl Fn(&str) -> Option<PathBuf>, home: Option<PathBuf>) -> Option<PathBuf> {
    // The specification says that a relative path is to be ignored.
    let given = variable("XDG_CACHE_HOME").filter(|path| path.is_absolute());
    given.or_else(|| home.filter(|home| home.is_absolute()).map(|home| home.join(".cache")))
}

#[cfg(target_vendor = "apple")]
fn caches(_: impl Fn(&str) -> Option<PathBuf>, home: Option<PathBuf>) -> Option<PathBuf> {
    home.filter(|home| home.is_absolute()).map(|home| home.join("Library").join("Caches"))
}

#[cfg(windows)]
fn caches(variable: impl Fn(&str) -> Option<PathBuf>, home: Option<PathBuf>) -> Option<PathBuf> {
    let given = variable("LOCALAPPDATA").filter(|path| path.is_absolute());
    given.or_else(|| home.map(|home| home.join("AppData").join("Local")))
}

fn make_directory(path: &Path) -> io::Result<()> {
    let mut builder = DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.recursive(true).create(path)?;
    private::check_directory_is_own(path)
}

/// Opens a file that shows others, for as long as it is open, that it is written: by a lock. On Windows a lock would keep
/// others from reading, and an open file that is not shared cannot be deleted.
fn open_new(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    #[cfg(windows)]
    std::os::windows::fs::OpenOptionsExt::share_mode(&mut options, FILE_SHARE_READ);
    let file = options.append(true).create_new(true).open(path)?;
    // A file system without locks has logs all the same.
    #[cfg(not(windows))]
    drop(file.try_lock());
    Ok(file)
}

#[cfg(windows)]
const FILE_SHARE_READ: u32 = 1;

#[cfg(not(windows))]
fn is_written(path: &Path) -> bool {
    File::open(path).is_ok_and(|file| matches!(file.try_lock(), Err(fs::TryLockError::WouldBlock)))
}

#[cfg(windows)]
fn is_written(path: &Path) -> bool {
    OpenOptions::new().append(true).open(path).is_err()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory that is gone with it.
    struct Place(LogFiles);

    impl Place {
        fn new(max_bytes: u64) -> Self {
            let name = format!("backwater-logs-{}-{:?}", std::process::id(), std::thread::current().id());
            let directory = env::temp_dir().join(name.replace(['(', ')'], "")).join("logs");
            Self(LogFiles { directory, max_bytes })
        }

        fn writer(&self, seconds: u64) -> Writer {
            self.0.writer(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
        }

        fn names(&self) -> Vec<String> {
            let entries = fs::read_dir(&self.0.directory).unwrap();
            let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        }

        fn text(&self, name: &str) -> String {
            fs::read_to_string(self.0.directory.join(name)).unwrap()
        }

        fn bytes(&self) -> u64 {
            self.names().iter().map(|name| self.text(name).len() as u64).sum()
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(self.0.directory.parent().unwrap());
        }
    }

    fn write(writer: &mut Writer, line: &str) {
        assert_eq!(writer.write(line.as_bytes()).unwrap(), line.len());
    }

    #[test]
    fn a_full_file_is_followed_by_another_and_no_line_is_cut() {
        let place = Place::new(1000);
        let mut writer = place.writer(0);
        for n in 0..25 {
            write(&mut writer, &format!("line {n:04}\n"));
        }
        let process = std::process::id();
        let expected = [0, 1, 2].map(|n| format!("19700101T000000Z-{process}-{n:04}.log"));
        assert_eq!(place.names(), expected);
        assert_eq!(expected.each_ref().map(|name| place.text(name).lines().count()), [10, 10, 5]);
        assert!(place.text(&expected[1]).starts_with("line 0010\n"));
        write(&mut writer, &"long".repeat(100));
        assert_eq!(place.names().len(), 4);
    }

    #[test]
    fn the_oldest_are_deleted_but_none_that_is_written() {
        let place = Place::new(1000);
        let mut first = place.writer(1);
        write(&mut first, "the first\n");
        for other in ["notes.log", "20261123T031305Z-1-0000.log.gz", "20261123T031305-1-0000.log"] {
            fs::write(place.0.directory.join(other), "x").unwrap();
        }
        for second in 2..40 {
            write(&mut place.writer(second), &format!("{:0100}\n", second));
            let logs: u64 = place.bytes() - 3;
            assert!(logs <= 1000, "{logs} bytes");
        }
        let names = place.names();
        assert_eq!(names.iter().filter(|name| named(name).is_none()).count(), 3, "others' files stay: {names:?}");
        let kept: Vec<_> = names.iter().filter_map(|name| named(name)).map(|(start, ..)| start).collect();
        assert_eq!(kept.first().map(String::as_str), Some("19700101T000001Z"), "{kept:?}");
        assert_eq!(kept.last().map(String::as_str), Some("19700101T000039Z"), "{kept:?}");
        assert!(kept.len() >= 8 && kept[1].as_str() > "19700101T000030Z", "{kept:?}");
        write(&mut first, "still there\n");
        assert_eq!(place.text(&names[0]), "the first\nstill there\n");
        drop(first);
        for second in 40..60 {
            write(&mut place.writer(second), &format!("{second:0100}\n"));
        }
        assert!(!place.names()[0].starts_with("19700101T000001Z"), "it is written no more");
    }

    #[test]
    fn there_are_not_too_many_small_ones() {
        let place = Place::new(100 << 20);
        fs::create_dir_all(&place.0.directory).unwrap();
        for n in 0..MAX_FILES + 50 {
            fs::write(place.0.directory.join(format!("20260101T000000Z-1-{n:04}.log")), "").unwrap();
        }
        write(&mut place.writer(1 << 31), "x\n");
        let names = place.names();
        assert_eq!((names.len(), &*names[0]), (MAX_FILES, "20260101T000000Z-1-0051.log"));
    }

    #[test]
    fn a_second_process_of_the_same_id_and_second_has_a_file_of_its_own() {
        let place = Place::new(1000);
        let (mut one, mut other) = (place.writer(7), place.writer(7));
        write(&mut one, "one\n");
        write(&mut other, "other\n");
        let names = place.names();
        assert_eq!([place.text(&names[0]), place.text(&names[1])], ["one\n", "other\n"]);
    }

    #[test]
    fn a_directory_that_cannot_be_written_costs_lines_until_it_can() {
        let place = Place::new(1000);
        let parent = place.0.directory.parent().unwrap();
        fs::write(parent, "a file where a directory is wanted").unwrap();
        let mut writer = place.writer(0);
        write(&mut writer, "lost\n");
        assert!(writer.said);
        fs::remove_file(parent).unwrap();
        write(&mut writer, "lost too: it is not tried with each line\n");
        std::thread::sleep(RETRY);
        write(&mut writer, "kept\n");
        assert!(!writer.said);
        assert_eq!(place.text(&place.names()[0]), "kept\n");
    }

    /// A file that is open for reading only stands for a disk that is full.
    #[test]
    fn a_disk_that_is_full_costs_lines_and_fills_no_directory() {
        let place = Place::new(100);
        let mut writer = place.writer(0);
        write(&mut writer, "1\n");
        let path = place.0.directory.join(&place.names()[0]);
        writer.state = State::Open { file: File::open(&path).unwrap(), bytes: 2, torn: false };
        for _ in 0..100 {
            write(&mut writer, "lost\n");
        }
        assert!(writer.said && place.names().len() == 1);
        let again = OpenOptions::new().append(true).open(&path).unwrap();
        let State::Open { file, torn, .. } = &mut writer.state else { panic!("it is open") };
        *file = again;
        assert!(*torn);
        write(&mut writer, "2\n");
        assert_eq!(place.text(&place.names()[0]), "1\n\n2\n");
    }

    /// Another user's file may have such a name; its age and size are nobody's business here.
    #[cfg(unix)]
    #[test]
    fn files_of_another_user_are_not_deleted() {
        let place = Place::new(1000);
        let mut writer = place.writer(1);
        write(&mut writer, "x\n");
        let theirs = place.0.directory.join("19700101T000000Z-1-0000.log");
        fs::write(&theirs, vec![b'x'; 5000]).unwrap();
        if let Err(error) = std::os::unix::fs::chown(&theirs, Some(4711), None) {
            return eprintln!("skipped: no file can be given to another user: {error}");
        }
        write(&mut place.writer(2), "y\n");
        write(&mut place.writer(3), "z\n");
        assert_eq!(place.names().len(), 4, "{:?}", place.names());
    }

    #[cfg(unix)]
    #[test]
    fn link_of_another_user_is_not_followed() {
        let place = Place::new(1000);
        let (parent, elsewhere) = (place.0.directory.parent().unwrap(), place.0.directory.with_file_name("elsewhere"));
        fs::create_dir_all(&elsewhere).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &place.0.directory).unwrap();
        let mut writer = place.writer(0);
        write(&mut writer, "own links are followed\n");
        assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 1);
        if let Err(error) = std::os::unix::fs::lchown(&place.0.directory, Some(4711), None) {
            return eprintln!("skipped: no link can be given to another user: {error}");
        }
        let mut writer = place.writer(1);
        write(&mut writer, "lost\n");
        assert!(writer.said);
        assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 1);
        assert!(parent.exists());
    }

    #[cfg(unix)]
    #[test]
    fn nobody_else_can_read_them() {
        use std::os::unix::fs::PermissionsExt;
        let place = Place::new(1000);
        let mut writer = place.writer(0);
        write(&mut writer, "x\n");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode(&place.0.directory), 0o700);
        assert_eq!(mode(&place.0.directory.join(&place.names()[0])), 0o600);
    }

    #[cfg(not(any(windows, target_vendor = "apple")))]
    #[test]
    fn caches_are_where_the_specification_has_them() {
        let home = || Some(PathBuf::from("/home/a"));
        let caches = |variable: Option<&str>, home| caches(|_| variable.map(PathBuf::from), home);
        assert_eq!(caches(Some("/x"), home()), Some("/x".into()));
        assert_eq!(caches(Some("x"), home()), Some("/home/a/.cache".into()));
        assert_eq!(caches(Some(""), home()), Some("/home/a/.cache".into()));
        assert_eq!(caches(None, None), None);
    }
}
