//! Every hint: what helps, where that is known.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use common::message::POLICY_FILE;
use nix::errno::Errno;

use crate::words::text::printable;

/// Where the supervisor's user may not write a file.
const WRITABLE: &str = "the file is written by the user that the server runs as, in a directory that this user can write";

/// Where nobody may write a file, which is a service manager's doing more often than a disk's.
const READ_ONLY: &str =
    "in a unit with ProtectSystem=strict, name its directory in ReadWritePaths=";

/// Where the limit of open files is too low.
pub const RAISE_OPEN_FILES: &str = "raise it with ulimit -n (LimitNOFILE= of systemd)";

/// Where the kernel, or what is around it, lacks a means of confinement.
pub const CONFINE_FULLY: &str = "Linux 6.12 has all of it, where `landlock` is in /sys/kernel/security/lsm and no \
     container or unit keeps it away (SystemCallFilter=@system-service does); without --strict this is a notice";

/// The name of the second program, beside this one.
pub const BINDER: &str = "start_server-binder";

/// Where a user's sandboxed binder was ended for a system call, and a filter of the launcher's is in force.
pub const FOREIGN_FILTER: &str = "a seccomp filter around it forbids what it needs: in a unit, add to SystemCallFilter= \
     seccomp landlock_create_ruleset landlock_add_rule landlock_restrict_self";

/// The same, without a filter but the binder's own.
pub const OWN_FILTER: &str =
    "its sandbox knows no such system call: please report the version of the C library";

/// Where the binder, or what leads to it, could have been changed by somebody whom root does not trust.
pub const TRUSTED_BINDER: &str = "as root every file and directory on its path must belong to root or to the owner of \
     start_server, and be writable by nobody else";

/// Where a list is too long for one message.
pub const TOO_MANY_GROUPS: &str = "the user to become is in too many groups";

/// Where no interface has the address of a port.
pub const NO_SUCH_ADDRESS: &str = "no interface of this machine has that address: see `ip address`; `,freebind` after the port binds to one that comes later";

/// Where root may not give a socket file away.
pub const CHOWN_AS_ROOT: &str =
    "root lacks CAP_CHOWN here: give the unit or container that capability";

/// Where a user may not give a socket file away.
pub const CHOWN_AS_USER: &str =
    "an ordinary user can give the socket only to a group that it is in";

/// Where a user may not make a socket.
pub const WRITABLE_DIRECTORY: &str = "the directory must be writable by this user";

/// Where a line of the policy is not understood.
pub const POLICY_LINE: &str =
    "a valid line is, for example, `user alice tcp 80,443` or `group dns udp 53`";

/// Where another listener of this very process has the address.
pub const HELD_BY_OURSELVES: &str = "another listener of the same command line has it";

/// Where the binder is missing. The program is this one.
pub fn of_missing_binder(program: &Path) -> String {
    format!("install {BINDER} beside {}", printable(program))
}

/// Where somebody has the port, and nobody is seen who has it.
pub fn of_port_in_use(port: u16) -> String {
    format!(
        "`ss -anp 'sport = :{port}'`, as root, shows who has it: maybe a worker that a killed start_server left behind"
    )
}

/// Where somebody has this abstract name, written with its @.
pub fn of_abstract_name_in_use(name: &Path) -> String {
    format!(
        "`ss -lxp src {}`, as root, shows who has it: maybe a worker that a killed start_server left behind",
        printable(name)
    )
}

/// Where these processes hold an address: `pid 1 (init) and pid 2 (x)`.
pub fn of_holders(holders: &str) -> String {
    format!("it is held by {holders}; a killed start_server leaves its workers behind")
}

/// Where an ordinary user asks for a low port.
pub fn of_low_port(port: u16) -> String {
    format!(
        "port {port} is reserved for root: start as root, with --user=NAME for the server program; or let root \
         `setcap cap_net_bind_service=ep` on {BINDER} and allow it in {POLICY_FILE} (which has no effect under \
         no_new_privs or on a nosuid file system); or, in a unit with User=, add AmbientCapabilities=CAP_NET_BIND_SERVICE"
    )
}

/// Where the policy does not allow a port, or cannot be trusted.
pub fn of_policy(uid: u32, transport: &str, port: u16) -> String {
    format!(
        "root allows it to a user by a line such as `user {uid} {transport} {port}` in {POLICY_FILE}, which must \
         belong to root, be readable by everybody and writable by root alone"
    )
}

/// Where root left a socket to the user, and the user may not make it either.
pub fn of_directory_of_others(objection: &str) -> String {
    format!(
        "root makes sockets only where nobody else can write, but {objection}; elsewhere the directory must be \
         writable by --user"
    )
}

/// What helps when a file of the server cannot be opened or made, by the error.
pub fn of_file(path: &Path, errno: Errno) -> Option<String> {
    match errno {
        Errno::EACCES => Some(WRITABLE.into()),
        Errno::EROFS => Some(READ_ONLY.into()),
        Errno::ENOENT => Some(missing_directory(path)),
        _ => None,
    }
}

/// Where the directory of a file does not exist.
fn missing_directory(file: &Path) -> String {
    let directory = printable(file.parent().unwrap_or(file));
    format!("`install -d -o USER {directory}` makes it, for the user that the server runs as")
}

/// Where a process cannot be made.
pub fn of_spawning(errno: Errno) -> Option<&'static str> {
    match errno {
        Errno::EAGAIN => {
            Some("this user may have no more processes: see `ulimit -u`, or TasksMax of systemd")
        }
        Errno::EMFILE => Some("the limit of open files is reached: see `ulimit -n`"),
        _ => None,
    }
}

/// Where a program is a directory.
pub const IS_A_DIRECTORY: &str = "it is a directory";

/// Where a program lacks its execute permission.
pub const NOT_EXECUTABLE: &str = "it is not executable for this user: see chmod(1)";

/// Where the interpreter of a program that is no script is missing.
pub const MISSING_LOADER: &str =
    "the loader of shared libraries that it needs does not exist: it was built for another system";

/// Where a directory of PATH has the program, which this user may not execute.
pub fn not_executable_in_path(found: &Path) -> String {
    format!("{} is not executable for this user", printable(found))
}

/// Where no directory of PATH has the program; some may be closed to this user.
pub fn not_in_path(path: &OsStr, closed: &[&PathBuf]) -> String {
    let path = printable(path);
    let closed: Vec<String> = closed.iter().map(printable).collect();
    match closed.is_empty() {
        true => format!("PATH is {path}"),
        false => format!("PATH is {path}; closed to this user: {}", closed.join(", ")),
    }
}

/// Where a directory on the way to the program is closed.
pub fn closed_directory(directory: &Path) -> String {
    format!(
        "the directory {} is closed to this user",
        printable(directory)
    )
}

/// Where the interpreter that a script names does not exist.
pub fn missing_interpreter(name: &OsStr) -> String {
    let shown = printable(name);
    match name.as_bytes().ends_with(b"\r") {
        true => format!(
            "its first line ends with a carriage return, which is taken for a part of the name: {shown}"
        ),
        false => format!("the interpreter in its first line does not exist: {shown}"),
    }
}

/// Where a worker does not get as far as to the program.
pub const HANGING: &str =
    "a file system that does not answer holds it up: that of the program, of --dir or of a library";

/// Where a server program ends without an error as soon as it is started.
pub const STAY_IN_FOREGROUND: &str = "a server must stay in the foreground: nginx with `daemon off;`, others without -D, --daemon or --daemonize";
