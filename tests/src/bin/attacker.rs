//! A server program that has been taken over: tries what it must not be able to do, and tells how each of it went.
//!
//! The first argument is the deed, and the result is one line of JSON: on standard output, or in a new FILE where
//! `--into=FILE` is the second argument; then it stays, as a server does. What succeeds is `ok`, else it is an errno.
//!
//! * `reach PID`: look into the process, and govern it
//! * `family`: the same for the parent, for each of its other children, and for a child of its own (`victim`), which
//!   shows that all of it can be done
//! * `bind PORT`: bind a TCP port of the loopback interface
//!
//! Two other deeds have no result: `filter PROGRAM ..` executes the program with a seccomp filter that allows everything,
//! `refuse NUMBER HOW PROGRAM ..` with one that refuses this system call, or as `NUMBER:FIRST:SECOND:THIRD` only with these
//! arguments, of which any may be empty or lack: HOW is the errno, where 0 is a success without an effect, or `kill`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a fixture fails by panicking"
)]
#![allow(
    clippy::disallowed_methods,
    reason = "it is no process of the tests and has one thread"
)]

use std::collections::BTreeMap;
use std::fs;
use std::io::{IoSlice, IoSliceMut};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::{env, io};

use nix::errno::Errno;
use nix::libc;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::uio::{RemoteIoVec, process_vm_readv, process_vm_writev};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, getpid, getppid, pause};

type Results = BTreeMap<&'static str, String>;

fn main() {
    let mut arguments = env::args().skip(1);
    let deed = arguments.next().expect("a deed");
    let mut rest: Vec<String> = arguments.collect();
    let into = match rest.first().and_then(|it| it.strip_prefix("--into=")) {
        Some(file) => {
            let file = file.to_owned();
            rest.remove(0);
            Some(file)
        }
        None => None,
    };
    if deed == "filter" {
        filter(&mut [FILTER_ALLOWS]);
        become_program(&rest);
    }
    if deed == "refuse" {
        let [number, how, program @ ..] = &rest[..] else {
            panic!("refuse NUMBER HOW PROGRAM ..");
        };
        refuse(number, how);
        become_program(program);
    }
    let result = match (deed.as_str(), &rest[..]) {
        ("reach", [pid]) => to_json(&reach(Pid::from_raw(pid.parse().expect("a pid")))),
        ("family", []) => to_json(&family()),
        ("bind", [port]) => to_json(&bind(port.parse().expect("a port"))),
        other => panic!("no such deed: {other:?}"),
    };
    match into {
        None => println!("{result}"),
        Some(file) => {
            // By rename, so that nobody reads half of it.
            let half = format!("{file}.half");
            fs::write(&half, result).expect("cannot write the result");
            fs::rename(&half, &file).expect("cannot write the result");
            pause();
        }
    }
}

fn to_json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("JSON")
}

fn said<T>(result: nix::Result<T>) -> String {
    match result {
        Ok(_) => "ok".to_owned(),
        Err(errno) => format!("{errno:?}"),
    }
}

fn said_by_io<T>(result: io::Result<T>) -> String {
    said(result.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0))))
}

fn bind(port: u16) -> Results {
    BTreeMap::from([("bind", said_by_io(TcpListener::bind(("127.0.0.1", port))))])
}

/// `supervisor`, `sibling` (one of several) and `victim`.
fn family() -> BTreeMap<&'static str, Results> {
    let parent = getppid();
    let listed = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"))
        .expect("cannot list the children of the parent");
    let sibling = listed
        .split_whitespace()
        .map(|pid| Pid::from_raw(pid.parse().expect("a pid")))
        .find(|pid| *pid != getpid());
    let mut family = BTreeMap::from([("supervisor", reach(parent))]);
    family.extend(sibling.map(|sibling| ("sibling", reach(sibling))));
    let mut victim = victim();
    let pid = Pid::from_raw(victim.id().cast_signed());
    family.insert("victim", reach(pid));
    drop(victim.kill());
    drop(victim.wait());
    family
}

/// A process that has nothing to hide.
fn victim() -> Child {
    Command::new("sleep")
        .arg("1000")
        .stdin(Stdio::null())
        .spawn()
        .expect("cannot run sleep")
}

/// Everything that needs the right to look into a process, and what needs the right to govern it. Nothing of it stays,
/// and nothing of it ends the process.
fn reach(pid: Pid) -> Results {
    let detached = |result: nix::Result<()>| {
        if result.is_ok() {
            let _ = kill(pid, Signal::SIGSTOP);
            let _ = waitpid(pid, Some(nix::sys::wait::WaitPidFlag::__WALL));
            let _ = ptrace::detach(pid, None);
            let _ = kill(pid, Signal::SIGCONT);
        }
        said(result)
    };
    let open = |name: &str, write: bool| {
        let mut options = fs::OpenOptions::new();
        let file = format!("/proc/{pid}/{name}");
        said_by_io(options.read(true).write(write).open(file))
    };
    let link = |name: &str| said_by_io(fs::read_link(format!("/proc/{pid}/{name}")));
    BTreeMap::from([
        ("attach", detached(ptrace::attach(pid))),
        (
            "seize",
            detached(ptrace::seize(pid, ptrace::Options::empty())),
        ),
        ("mem", open("mem", true)),
        ("environ", open("environ", false)),
        ("maps", open("maps", false)),
        ("auxv", open("auxv", false)),
        ("descriptors", {
            said_by_io(fs::read_dir(format!("/proc/{pid}/fd")))
        }),
        ("root", link("root")),
        ("cwd", link("cwd")),
        ("exe", link("exe")),
        ("read memory", said(vm(pid, false))),
        ("write memory", said(vm(pid, true))),
        ("take a descriptor", said(take_descriptor(pid))),
        ("compare", said(compare(pid))),
        // Not CONT, which is allowed within a session. By default this one has no effect.
        ("signal", said(kill(pid, Signal::SIGWINCH))),
        ("stop", said(stop(pid))),
        ("limit", said(limit(pid))),
        ("renice", said(renice(pid))),
        (
            "affinity",
            said(sched_getaffinity(getpid()).and_then(|set: CpuSet| sched_setaffinity(pid, &set))),
        ),
        ("io priority", said(io_priority(pid))),
        ("oom score", open("oom_score_adj", true)),
    ])
}

fn stop(pid: Pid) -> nix::Result<()> {
    kill(pid, Signal::SIGSTOP)?;
    kill(pid, Signal::SIGCONT)
}

/// At an address where nothing is: that is another errno than a missing right.
fn vm(pid: Pid, write: bool) -> nix::Result<()> {
    let mut byte = [0_u8];
    let remote = [RemoteIoVec { base: 0, len: 1 }];
    let result = match write {
        true => process_vm_writev(pid, &[IoSlice::new(&byte)], &remote),
        false => process_vm_readv(pid, &mut [IoSliceMut::new(&mut byte)], &remote),
    };
    match result {
        // There is nothing at that address: the right was there.
        Err(Errno::EFAULT) => Ok(()),
        result => result.map(drop),
    }
}

#[expect(unsafe_code, reason = "nix has no pidfd_getfd")]
fn take_descriptor(pid: Pid) -> nix::Result<()> {
    // SAFETY: it takes numbers only.
    let process = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) })?;
    // SAFETY: it takes numbers only. Whatever it opens stays open until this process ends.
    Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process, 0, 0) }).map(drop)
}

/// kcmp(2) of the tables of descriptors.
#[expect(unsafe_code, reason = "nix has no kcmp")]
fn compare(pid: Pid) -> nix::Result<()> {
    const KCMP_FILES: libc::c_int = 2;
    // SAFETY: it takes numbers only.
    Errno::result(unsafe {
        libc::syscall(
            libc::SYS_kcmp,
            getpid().as_raw(),
            pid.as_raw(),
            KCMP_FILES,
            0,
            0,
        )
    })
    .map(drop)
}

#[expect(unsafe_code, reason = "nix has no prlimit")]
fn limit(pid: Pid) -> nix::Result<()> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the kernel writes one struct of this type.
    Errno::result(unsafe {
        libc::prlimit(
            pid.as_raw(),
            libc::RLIMIT_CORE,
            std::ptr::null(),
            &raw mut limit,
        )
    })?;
    // SAFETY: the kernel reads one struct of this type.
    Errno::result(unsafe {
        libc::prlimit(
            pid.as_raw(),
            libc::RLIMIT_CORE,
            &raw const limit,
            std::ptr::null_mut(),
        )
    })
    .map(drop)
}

#[expect(unsafe_code, reason = "nix has no setpriority")]
fn renice(pid: Pid) -> nix::Result<()> {
    // What everybody may do to their own processes, however nice these are already.
    const NICEST: libc::c_int = 19;
    let pid = pid.as_raw().cast_unsigned();
    // SAFETY: it takes numbers only.
    Errno::result(unsafe { libc::setpriority(libc::PRIO_PROCESS, pid, NICEST) }).map(drop)
}

#[expect(unsafe_code, reason = "nix has no ioprio_set")]
fn io_priority(pid: Pid) -> nix::Result<()> {
    const IOPRIO_WHO_PROCESS: libc::c_int = 1;
    const IDLE: libc::c_int = 3 << 13;
    // SAFETY: it takes numbers only.
    Errno::result(unsafe {
        libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, pid.as_raw(), IDLE)
    })
    .map(drop)
}

fn become_program(words: &[String]) -> ! {
    let (program, arguments) = words.split_first().expect("a program");
    panic!("{}", Command::new(program).args(arguments).exec());
}

/// BPF_RET | BPF_K
const FILTER_ALLOWS: libc::sock_filter = instruction(0x06, 0, libc::SECCOMP_RET_ALLOW);

const fn instruction(code: u16, skip_if_not: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter {
        code,
        jt: 0,
        jf: skip_if_not,
        k,
    }
}

/// As a kernel, a container or a unit without this system call does.
fn refuse(call: &str, how: &str) {
    let refusal = match how {
        "kill" => libc::SECCOMP_RET_KILL_PROCESS,
        errno => libc::SECCOMP_RET_ERRNO | errno.parse::<u32>().expect("an errno"),
    };
    let places = [
        NUMBER,
        FIRST_ARGUMENT,
        FIRST_ARGUMENT + 8,
        FIRST_ARGUMENT + 16,
    ];
    let conditions: Vec<(u32, &str)> = places
        .into_iter()
        .zip(call.split(':'))
        .filter(|(_, value)| !value.is_empty())
        .collect();
    let mut program = Vec::new();
    for (done, (place, value)) in (1..).zip(&conditions) {
        // Else to the end, over the other conditions and the refusal.
        let left = u8::try_from(2 * (conditions.len() - done) + 1).expect("a short program");
        // BPF_LD | BPF_W | BPF_ABS, BPF_JMP | BPF_JEQ | BPF_K
        program.push(instruction(0x20, 0, *place));
        program.push(instruction(0x15, left, value.parse().expect("a number")));
    }
    program.extend([instruction(0x06, 0, refusal), FILTER_ALLOWS]);
    filter(&mut program);
}

/// Where a filter finds them in struct seccomp_data (seccomp(2)); of the argument the lower half, on a machine that is
/// little-endian.
const NUMBER: u32 = 0;
const FIRST_ARGUMENT: u32 = 16;

/// Without no_new_privs, which takes root.
#[expect(unsafe_code, reason = "nix has no seccomp")]
fn filter(instructions: &mut [libc::sock_filter]) {
    let program = libc::sock_fprog {
        len: instructions.len().try_into().expect("a short program"),
        filter: instructions.as_mut_ptr(),
    };
    // SAFETY: the kernel reads as many instructions as there are, which live until the end of this function.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            0,
            &raw const program,
        )
    };
    Errno::result(result).expect("cannot install a filter");
}
