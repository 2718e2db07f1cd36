//! `posix_spawn(3)`: the tunnel blocks all signals that would end it, and what it runs would inherit that.

use std::{
    env,
    ffi::{CStr, CString},
    io::{self, Write},
    os::{
        fd::{AsFd, AsRawFd},
        unix::ffi::OsStrExt,
    },
};

use nix::{
    spawn::{PosixSpawnAttr, PosixSpawnFileActions, PosixSpawnFlags, posix_spawnp},
    sys::{
        signal::SigSet,
        wait::{WaitStatus, waitpid},
    },
};

/// What a pipe holds without a reader.
const MAX_INPUT: usize = 64 << 10;

pub(super) fn run(command: &[&str], input: &str) -> io::Result<()> {
    let arguments = command.iter().map(|argument| CString::new(*argument)).collect::<Result<Vec<_>, _>>()?;
    let program: &CStr = arguments.first().ok_or(io::ErrorKind::InvalidInput)?;
    if input.len() > MAX_INPUT {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let (reader, mut writer) = io::pipe()?;
    writer.write_all(input.as_bytes())?;
    drop(writer);
    let mut attributes = PosixSpawnAttr::init()?;
    attributes.set_flags(PosixSpawnFlags::POSIX_SPAWN_SETSIGMASK)?;
    attributes.set_sigmask(&SigSet::empty())?;
    let mut actions = PosixSpawnFileActions::init()?;
    actions.add_dup2(reader.as_fd().as_raw_fd(), 0)?;
    let child = posix_spawnp(program, &actions, &attributes, &arguments, &environment())?;
    // Without a flag it returns at the end alone.
    let ended = waitpid(child, None)?;
    if let WaitStatus::Exited(_, 0) = ended {
        return Ok(());
    }
    Err(io::Error::other(match ended {
        WaitStatus::Exited(_, code) => format!("exit code {code}"),
        WaitStatus::Signaled(_, signal, _) => format!("ended by {signal}"),
        WaitStatus::Stopped(..)
        | WaitStatus::PtraceEvent(..)
        | WaitStatus::PtraceSyscall(_)
        | WaitStatus::Continued(_)
        | WaitStatus::StillAlive => format!("{ended:?}"),
    }))
}

fn environment() -> Vec<CString> {
    let entry = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        CString::new([name.as_bytes(), b"=", value.as_bytes()].concat()).ok()
    };
    env::vars_os().filter_map(entry).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_a_program_says_by_its_end_is_told() {
        run(&["true"], "").unwrap();
        run(&["sh", "-c", "test \"$(cat)\" = hello"], "hello").unwrap();
        assert_eq!(run(&["sh", "-c", "exit 3"], "").unwrap_err().to_string(), "exit code 3");
        assert_eq!(run(&["sh", "-c", "kill -9 $$"], "").unwrap_err().to_string(), "ended by SIGKILL");
        assert_eq!(run(&["no-such-program-anywhere"], "").unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(run(&["cat\0"], "").unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }

    /// A daemon that a hook starts must be ended as usual.
    #[test]
    fn no_signal_is_blocked_in_it() {
        std::thread::spawn(|| {
            SigSet::all().thread_block().unwrap();
            run(&["sh", "-c", "grep -q '^SigBlk:.0*$' /proc/self/status"], "").unwrap();
        })
        .join()
        .unwrap();
    }
}
