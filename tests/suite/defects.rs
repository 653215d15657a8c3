//! What is wrong with the three programs that start_server replaces, and that ours does not have it.
//!
//! Each defect that was found has a number: B in the Server::Starter of Perl ([`defects_p5`](crate::defects_p5)), R in
//! that of Ruby ([`defects_ruby`](crate::defects_ruby)), G in that of Go ([`defects_go`](crate::defects_go)). The name
//! of a test begins with the number and goes on with what is promised instead. What cannot be provoked from outside
//! has a line at the head of its file.
//!
//! `START_SERVER=/usr/bin/start_server cargo test -p e2e --test suite defects` runs all of them against
//! Server::Starter. A test that it is known to fail says so by [`original_fails`], and must fail there.
//!
//! This file holds what the others share.

use std::any::Any;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use e2e::start::InTurn;
use e2e::{Report, Server, Setup, Worker, proc, programs};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

/// How long the original gets where it is expected to wait in vain: longer than what works takes there.
const PATIENCE: Duration = Duration::from_secs(6);

/// Runs a test. Where START_SERVER names the original it must fail, and the first line of its failure must hold these
/// words: for another reason it could fail without having the defect.
#[track_caller]
pub fn original_fails(words: &str, test: impl FnOnce()) {
    if programs::another().is_none() {
        test();
    } else if let Err(objection) = fails_with(words, test) {
        panic!("{objection}");
    }
}

fn fails_with(words: &str, test: impl FnOnce()) -> Result<(), String> {
    let Err(payload) = catch_unwind(AssertUnwindSafe(test)) else {
        return Err(format!(
            "the original is said to fail this with {words:?}, but passes"
        ));
    };
    let failure = text_of(payload);
    match failure.lines().next() {
        Some(line) if line.contains(words) => Ok(()),
        _ => Err(format!(
            "the original is said to fail this with {words:?}, but fails with:\n{failure}"
        )),
    }
}

fn text_of(payload: Box<dyn Any + Send>) -> String {
    match payload.downcast::<String>() {
        Ok(text) => *text,
        Err(payload) => payload
            .downcast_ref::<&str>()
            .map_or_else(String::new, |text| (*text).to_owned()),
    }
}

#[test]
fn what_the_original_is_said_to_fail_must_fail_there_and_for_that_reason() {
    assert_eq!(
        fails_with("the reason", || panic!("for the reason")),
        Ok(())
    );
    let number = 1;
    assert_eq!(
        fails_with("the reason", || assert_eq!(number, 2, "the reason")),
        Ok(())
    );
    assert!(fails_with("the reason", || {}).is_err());
    let objection = fails_with("the reason", || panic!("for another\nnot the reason"));
    assert!(objection.is_err_and(|objection| objection.contains("for another")));
}

/// Waits for an answer of a server, as [`Server::wait_for`] does, but in vain only for a short time where the original
/// is expected to.
#[track_caller]
pub fn soon<T>(server: &Server, condition: &str, answer: impl Fn(&Server) -> Option<T>) -> T {
    let limit = Instant::now() + PATIENCE;
    let answer = server.wait_for(condition, |server| match answer(server) {
        None if programs::another().is_some() && Instant::now() >= limit => Some(None),
        None => None,
        answer => Some(answer),
    });
    answer.unwrap_or_else(|| {
        panic!(
            "waited {PATIENCE:?} in vain until {condition}\n{}",
            server.log()
        )
    })
}

/// Waits until start_server ends by itself, as [`soon`] does.
#[track_caller]
pub fn ends_soon(server: &mut Server) -> ExitStatus {
    soon(server, "it ended", |server| {
        (!proc::alive(server.pid())).then_some(())
    });
    server.wait_exit()
}

/// Runs `--restart` or `--stop` for a server; what it says goes to the log of the server.
#[track_caller]
pub fn client(server: &Server, arguments: &[&str]) -> Child {
    let log = OpenOptions::new()
        .append(true)
        .open(server.folder().join("log"))
        .expect("cannot open the log");
    let mut client = server.client(arguments.iter().copied());
    client
        .stderr(log)
        .spawn_in_turn()
        .expect("cannot run a client")
}

/// The exit code of such a client.
#[track_caller]
pub fn code_of(server: &Server, mut client: Child) -> Option<i32> {
    let pid = Pid::from_raw(client.id().cast_signed());
    // The server may have ended, and that is no reason to give up.
    let limit = Instant::now() + PATIENCE;
    e2e::wait::until(
        "the client ended",
        || server.log(),
        || match proc::alive(pid) {
            true => {
                let late = programs::another().is_some() && Instant::now() >= limit;
                assert!(!late, "waited {PATIENCE:?} in vain until the client ended");
                None
            }
            false => Some(()),
        },
    );
    client.wait().expect("cannot wait for the client").code()
}

/// The options that name the files of a server with both.
pub const FILES: [&str; 2] = ["--pid-file=pid", "--status-file=status"];

/// Starts a server with a status file, and waits until its first generation serves and is accepted.
#[track_caller]
pub fn serving(setup: Setup) -> (Server, Worker) {
    let server = setup.status_file().start();
    server.wait_until_accepted();
    let worker = server.wait_for_service(1);
    wait_until_acted_on(&server);
    (server, worker)
}

/// Runs a worker that fails to start while the server is broken.
pub fn breakable(setup: Setup) -> Setup {
    let broken = setup.folder().join("broken");
    setup.worker([
        "--graceful".to_owned(),
        format!("--exit-if-exists={}", broken.display()),
    ])
}

/// From now on workers of a [`breakable`] server fail to start.
#[track_caller]
pub fn break_it(server: &Server) {
    fs::write(server.folder().join("broken"), "").expect("cannot break it");
}

/// From now on they start again.
#[track_caller]
pub fn mend_it(server: &Server) {
    fs::remove_file(server.folder().join("broken")).expect("cannot mend it");
}

/// Runs a worker by a name in the server's folder, which [`take_the_program_away`] removes.
pub fn removable(setup: Setup) -> Setup {
    let program = setup.folder().join("program");
    symlink(programs::worker(), &program).expect("cannot make a link");
    let journal = format!("--journal={}", setup.folder().join("journal").display());
    setup.program([
        program.into_os_string(),
        journal.into(),
        "--graceful".into(),
    ])
}

/// From now on the program of a [`removable`] server cannot be executed.
#[track_caller]
pub fn take_the_program_away(server: &Server) {
    fs::remove_file(server.folder().join("program")).expect("cannot remove the link");
}

/// Sends HUP, and not too early for the original: it is deaf for a moment before each wait.
#[track_caller]
pub fn hup(server: &Server) {
    wait_until_acted_on(server);
    server.signal(Signal::SIGHUP);
}

/// Waits until the last event was acted on: no signal waits to be taken, and start_server waits for the next one.
#[track_caller]
pub fn wait_until_acted_on(server: &Server) {
    server.wait_until("it waits for the next event", |server| {
        proc::status(server.pid()).is_some_and(|it| it.pending == 0 && it.state == 'S')
    });
}

/// Whether nothing is left of a process, not even its exit status.
pub fn is_reaped(pid: Pid) -> bool {
    !Path::new(&format!("/proc/{pid}")).exists()
}

/// Writes a file that a server may read and write, whoever it runs as.
#[track_caller]
pub fn write_for_all(path: &Path, text: &str) {
    fs::write(path, text).expect("cannot write the file");
    fs::set_permissions(path, fs::Permissions::from_mode(0o666)).expect("cannot set the mode");
}

/// Adds a folder of environment variables, with these in it.
pub fn envdir(setup: Setup, variables: &[(&str, &str)]) -> Setup {
    let folder = setup.folder().join("env");
    fs::create_dir(&folder).expect("cannot make the folder");
    for (name, value) in variables {
        fs::write(folder.join(name), value).expect("cannot write a variable");
    }
    setup.option("--envdir=env")
}

/// Lets the worker write its report to a file, so that it need not be asked; see [`wait_for_reports`].
pub fn reporting(setup: Setup) -> Setup {
    let report = setup.folder().join("report");
    setup.worker([format!("--report={}", report.display())])
}

/// The reports of so many workers of a [`reporting`] server, oldest first.
#[track_caller]
pub fn wait_for_reports(server: &Server, count: usize) -> Vec<Report> {
    server.wait_for(&format!("{count} workers have reported"), |server| {
        let text = fs::read_to_string(server.folder().join("report")).ok()?;
        let whole = text.rsplit_once('\n')?.0;
        let lines: Vec<&str> = whole.lines().collect();
        let parse = |line: &&str| serde_json::from_str(line).expect("a report");
        (lines.len() >= count).then(|| lines.iter().map(parse).collect())
    })
}
