//! How fast the output of workers gets into a file where start_server reads each line (`--log-timestamps`), beside `cat`
//! in the same pipe: `cargo bench -p e2e --bench output` prints the table in tests/README.md. It judges nothing.
//!
//! The worker is this program: it writes lines as fast as they are taken. The contestants take turns.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a benchmark that cannot go on has no figures"
)]
#![allow(clippy::print_stdout, reason = "the table is what it is for")]
#![allow(
    clippy::disallowed_methods,
    reason = "nothing is closed that a program which is started could keep"
)]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, thread};

use e2e::folder::Folder;
use e2e::server::NOBODY;
use e2e::{programs, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Gid, Pid, Uid};

/// The first argument of this program as a worker; the second one is the length of a line.
const WRITE: &str = "--write-lines";

/// What is written, in bytes.
const AMOUNT: usize = 400_000_000;

/// The lengths of the lines, in bytes with their ends.
const LENGTHS: [usize; 2] = [100, 1000];

const ROUNDS: usize = 5;

/// The last line.
const END: &str = "that was all\n";

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Contestant {
    Timestamps,
    Direct,
    Cat,
}

impl Contestant {
    const ALL: [Contestant; 3] = [Contestant::Timestamps, Contestant::Direct, Contestant::Cat];

    fn name(self) -> &'static str {
        match self {
            Contestant::Timestamps => "by `--log-file --log-timestamps`",
            Contestant::Direct => "by `--log-file`",
            Contestant::Cat => "by `cat` in a pipe",
        }
    }
}

fn main() {
    let arguments: Vec<String> = env::args().collect();
    match arguments.get(1).map(String::as_str) {
        Some(WRITE) => write_lines(arguments[2].parse().expect("a length")),
        _ if arguments.iter().any(|argument| argument == "--bench") => measure(),
        _ => println!("this is a benchmark: cargo bench -p e2e --bench output"),
    }
}

fn measure() {
    let ourselves = env::current_exe().expect("cannot find this program");
    let writer = programs::install(&ourselves, programs::installed());
    let mut times: BTreeMap<(usize, Contestant), Vec<Duration>> = BTreeMap::new();
    for _ in 0..ROUNDS {
        for length in LENGTHS {
            for contestant in Contestant::ALL {
                let time = take_time(contestant, &writer, length);
                times.entry((length, contestant)).or_default().push(time);
            }
        }
    }
    println!("| output of a worker into a file | lines of 100 bytes | lines of 1000 bytes |");
    println!("|---|---:|---:|");
    let mut median = |length, contestant| {
        let times = times.get_mut(&(length, contestant)).expect("measured");
        times.sort();
        times[times.len() / 2].as_secs_f64()
    };
    for contestant in Contestant::ALL {
        let cells = LENGTHS.map(|length| {
            let time = median(length, contestant);
            let rate = AMOUNT as f64 / 1e6 / time;
            format!(
                "{rate:.0} MB/s ({:.2})",
                median(length, Contestant::Cat) / time
            )
        });
        println!("| {} | {} |", contestant.name(), cells.join(" | "));
    }
}

/// From the start of the worker to its last line in the file.
fn take_time(contestant: Contestant, writer: &Path, length: usize) -> Duration {
    let (uid, gid) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
    let folder = match Uid::effective().is_root() {
        true => Folder::new(uid, gid),
        false => Folder::new(Uid::effective(), Gid::effective()),
    };
    let log = folder.path().join("log");
    let length = length.to_string();
    let began = Instant::now();
    let mut children = match contestant {
        Contestant::Cat => {
            let file = File::create(&log).expect("cannot make the file");
            let mut worker = command(writer)
                .args([WRITE, &length])
                .stdout(Stdio::piped())
                .spawn()
                .expect("cannot run the worker");
            let pipe = worker.stdout.take().expect("a pipe");
            let cat = Command::new("cat").stdin(pipe).stdout(file).spawn();
            vec![worker, cat.expect("cannot run cat")]
        }
        Contestant::Timestamps | Contestant::Direct => {
            let mut start_server = command(&programs::start_server());
            start_server.arg(format!("--log-file={}", log.display()));
            if contestant == Contestant::Timestamps {
                start_server.arg("--log-timestamps");
            }
            start_server.arg("--").arg(writer).args([WRITE, &length]);
            vec![start_server.spawn().expect("cannot run start_server")]
        }
    };
    wait::until(
        "the last line is in the file",
        || log.display().to_string(),
        || ends_with_the_last_line(&log).then_some(()),
    );
    let time = began.elapsed();
    for child in &mut children {
        // The worker waits to be ended; cat ends after it.
        let _ = kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM);
    }
    children.iter_mut().for_each(|child| {
        drop(Child::wait(child));
    });
    time
}

fn ends_with_the_last_line(path: &PathBuf) -> bool {
    let look = || -> io::Result<bool> {
        let mut file = File::open(path)?;
        if file.metadata()?.len() < AMOUNT as u64 {
            return Ok(false);
        }
        file.seek(SeekFrom::End(-200))?;
        let mut end = Vec::new();
        file.read_to_end(&mut end)?;
        Ok(end.ends_with(END.as_bytes()))
    };
    look().unwrap_or(false)
}

fn command(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("PATH", "/usr/bin:/bin");
    command.stdin(Stdio::null()).stderr(Stdio::null());
    if Uid::effective().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}

/// The worker: only the last line says that it was the last one.
fn write_lines(length: usize) {
    let line = format!("{}\n", "x".repeat(length - 1));
    let portion = line.repeat(65536 / length).into_bytes();
    let mut out = File::from(
        std::os::fd::AsFd::as_fd(&io::stdout())
            .try_clone_to_owned()
            .expect("cannot duplicate a descriptor"),
    );
    let mut written = 0;
    while written < AMOUNT {
        out.write_all(&portion).expect("cannot write");
        written += portion.len();
    }
    out.write_all(END.as_bytes()).expect("cannot write");
    drop(out);
    loop {
        thread::park();
    }
}
