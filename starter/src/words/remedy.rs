//! Every hint. Its documentation names the situation that it remedies.

mod deploys;

use std::ffi::OsStr;
use std::net::Ipv6Addr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use common::message::POLICY_FILE;
use nix::errno::Errno;

pub use self::deploys::*;
use crate::words::text::quoted;

/// The supervisor's user may not write a file.
const WRITABLE: &str =
    "the user that the server runs as must be able to write the file and its directory";

/// The file system is read-only, more often because of a service manager than because of a disk.
const READ_ONLY: &str =
    "in a unit with ProtectSystem=strict, name its directory in ReadWritePaths=";

/// The limit on open files is too low.
pub const RAISE_OPEN_FILES: &str = "raise it with ulimit -n (LimitNOFILE= of systemd)";
pub const FEWER_LANES: &str =
    "ask for fewer --lanes or --workers, or raise it with ulimit -n (LimitNOFILE= of systemd)";

/// The kernel, or the container around it, does not support some confinement.
pub const CONFINE_FULLY: &str = "it needs Linux 6.12 with `landlock` in /sys/kernel/security/lsm, and no container or \
     unit that blocks it (SystemCallFilter=@system-service does); without --strict this is a warning";

/// The server that runs is older than upgrades in place.
pub const STOP_AND_START: &str = "stop it with --stop and start it again with the new version";

/// The name of the second program, beside this one.
pub const BINDER: &str = "start_server-binder";

/// A user's sandboxed binder was killed for a system call while a seccomp filter of the launcher's is in force.
pub const FOREIGN_FILTER: &str = "a seccomp filter of the unit or container forbids a system call that the binder needs: in a unit, add to SystemCallFilter= \
     seccomp landlock_create_ruleset landlock_add_rule landlock_restrict_self";

/// The same, when the binder's own filter is the only one.
pub const OWN_FILTER: &str =
    "its sandbox does not allow that system call: please report the version of the C library";

/// Someone whom root does not trust could have changed the binder or a directory above it.
pub const TRUSTED_BINDER: &str = "as root every file and directory on its path must belong to root or to the owner of \
     start_server, and be writable by nobody else";

/// A list is too long for one message.
pub const TOO_MANY_GROUPS: &str = "the user to become is in too many groups";

/// No interface has the address of a port.
pub const NO_SUCH_ADDRESS: &str = "no interface of this machine has that address: see `ip address`; `,freebind` after the port binds an address before it exists";

/// Root may not change the owner of a file.
pub const CHOWN_AS_ROOT: &str =
    "root lacks CAP_CHOWN here: give the unit or container that capability";

/// A file or directory of another user is where one is to be made.
pub const LEFT_ALONE: &str = "what belongs to another user is left alone: remove it if nothing uses it, or name another path";

/// A user may not change the owner of a socket file.
pub const CHOWN_AS_USER: &str =
    "an ordinary user can give the socket only to a group that it is in";

/// A user may not create a socket.
pub const WRITABLE_DIRECTORY: &str = "the directory must be writable by this user";

/// Root is root only in a user namespace, and cannot become the user.
pub const MAP_USER: &str = "this user namespace maps only some users, perhaps only root: map the uid and gid of --user \
     too, as with newuidmap(1); or start it in a namespace where you are that user (unshare --map-current-user, podman \
     --userns=keep-id), without --user";

/// A server may have died because it cannot open standard output or error by its path. `names` are those paths.
pub fn of_closed_streams(names: &str) -> String {
    format!(
        "if the program opens {names} by path: this user cannot; with --log-file='| cat' it can"
    )
}

/// A line of the policy is invalid.
pub const POLICY_LINE: &str =
    "a valid line is, for example, `user alice tcp 80,443` or `group dns udp 53`";

/// Another listener of this very process has the address.
pub const HELD_BY_OURSELVES: &str = "another listener of the same command line has it";

/// The server lives in a pid namespace that cannot be seen from here.
pub const ASK_THERE: &str = "pids of one container mean nothing in another: run the command in the container that the \
     server was started in";

/// /proc is missing, or its pids are those of another pid namespace.
pub const MOUNT_PROC: &str = "mount the /proc of this pid namespace: `mount -t proc proc /proc`, as root in it; or create the namespace with `unshare --mount-proc`";

/// The server lives in an inner pid namespace: it has the pid `pid` here and `inner` there.
pub fn of_inner_namespace(pid: i32, inner: i32) -> String {
    format!(
        "it is pid {pid} here and pid {inner} there: as root, put `nsenter --all --target={pid}` before the command, \
         or run the command by the exec of the container (docker exec, podman exec)"
    )
}

/// What is to be watched says only once that it is ready.
pub const ASK_AGAIN: &str = "READY=1 and a line feed come only once: use --ready=exec:COMMAND with a command that asks the server";

/// A client has asked the guardian, which died. Whether the supervisor was told cannot be known.
pub const ASK_THE_SUPERVISOR: &str = "see what it does with --status, and repeat the command if need be: the pid file names the supervisor now";

/// The binder is missing. `program` is start_server itself, `by_cargo` whether it was installed by cargo, which puts the
/// programs of one package there at a time.
pub fn of_missing_binder(program: &Path, by_cargo: bool) -> String {
    let how = match by_cargo {
        true => ": `cargo install --path binder`, as with start_server",
        false => "",
    };
    format!("install {BINDER} beside {}{how}", quoted(program))
}

/// A program that is held open cannot be executed, or nothing is held, which has no errno.
pub fn of_unpinned(errno: Option<Errno>) -> Option<&'static str> {
    match errno? {
        Errno::ENOENT => Some("the interpreter or loader that it needs is gone"),
        Errno::EACCES => {
            Some("the file that served must stay executable, even when another one has replaced it")
        }
        Errno::ENOSYS | Errno::EPERM => {
            Some("a seccomp filter of the unit or container forbids execveat(2)")
        }
        Errno::EMFILE | Errno::ENFILE => Some(RAISE_OPEN_FILES),
        _ => None,
    }
}

/// The port is in use, but no process that holds it is visible.
pub fn of_port_in_use(port: u16) -> String {
    format!(
        "`ss -anp 'sport = :{port}'`, as root, shows who holds it, perhaps a worker left behind by a killed start_server"
    )
}

/// Another process has taken this abstract name, which is written with its @.
pub fn of_abstract_name_in_use(name: &Path) -> String {
    format!(
        "`ss -lxp src {}` as root shows who has it: perhaps a worker left over from a killed start_server",
        quoted(name)
    )
}

/// These processes hold an address: `pid 1 (init) and pid 2 (x)`.
pub fn of_holders(holders: &str) -> String {
    format!(
        "it is held by {holders}: another server, or workers that a killed start_server has left behind"
    )
}

/// A start_server that runs has the address.
pub fn of_running_server(pid: u32) -> String {
    format!(
        "start_server (pid {pid}) already runs on it: with its --pid-file, --restart deploys and --stop ends it"
    )
}

/// A server was killed, and these workers of it still serve: `pid 123 of generation 2`.
pub fn of_workers_left(workers: &str) -> String {
    format!(
        "that server has not ended in order, and its workers still serve: {workers}; end them with `kill` before the \
         next start"
    )
}

/// An ordinary user asks for a low port.
pub fn of_low_port(port: u16) -> String {
    format!(
        "port {port} is reserved for root: start as root, with --user=NAME for the server program; or let root \
         `setcap cap_net_bind_service=ep` on {BINDER} and allow it in {POLICY_FILE} (which has no effect under \
         no_new_privs or on a nosuid file system); or, in a unit with User=, add AmbientCapabilities=CAP_NET_BIND_SERVICE"
    )
}

/// The binder's file capability is not in the bounding set.
pub const BINDER_MAY_NOT: &str = "probably the binder has a file capability that is missing in the bounding set: add NET_BIND_SERVICE to \
     the capabilities of the container (--cap-add) or unit (CapabilityBoundingSet=), or take it from the file: `setcap -r`";

/// The first process of a container is to leave it.
pub const NOT_IN_THE_BACKGROUND: &str =
    "leave out --daemonize: the runtime itself runs containers in the background";

/// The kernel denies permission for a port that needs no privilege.
pub const PORT_OF_A_LABEL: &str = "a security module forbids this port: with SELinux, `ausearch -m avc` shows the refusal \
     and `semanage port -l` the ports that are allowed";

/// The kernel does not support this address family, or a filter forbids it.
pub const NO_SUCH_FAMILY: &str = "this address family is switched off: for IPv6, look for ipv6.disable=1 on the kernel's command line; in \
     a unit, see RestrictAddressFamilies=";

/// A filter of a control group forbids the port.
pub const BIND_DENIED: &str = "a filter of the unit or container forbids this port: in a unit, see SocketBindDeny= and SocketBindAllow=";

/// The interface that is named after the address does not exist.
pub const NO_SUCH_INTERFACE: &str = "no interface has that name: see `ip link`";

/// A link-local address, which any interface may have, was given without its interface.
pub fn of_link_local(ip: Ipv6Addr, port: &str) -> String {
    format!(
        "a link-local address needs its interface: --port=[{ip}%eth0]:{port}, with the name that `ip address` shows"
    )
}

/// An error that any system call can return.
pub fn of_any_call(errno: Errno) -> Option<String> {
    of_resources(errno).map(str::to_owned)
}

/// The policy does not allow a port, or cannot be trusted.
pub fn of_policy(uid: u32, transport: &str, port: u16) -> String {
    format!(
        "root can allow it with a line such as `user {uid} {transport} {port}` in {POLICY_FILE}, which must \
         belong to root, be readable by everybody and writable by root alone"
    )
}

/// Root left a socket to the user, who may not create it either.
pub fn of_directory_of_others(objection: &str) -> String {
    format!(
        "root makes sockets only where nobody else can write, but {objection}; elsewhere the directory must be \
         writable by --user"
    )
}

/// A server's file cannot be opened or created, because of this error.
pub fn of_file(path: &Path, errno: Errno) -> Option<String> {
    match errno {
        Errno::EACCES => Some(WRITABLE.into()),
        // A file of that name alone could only be missing together with the directory itself.
        Errno::ENOENT if path.parent() == Some(Path::new("")) => Some(LAUNCHED_FROM_NOWHERE.into()),
        Errno::ENOENT => Some(missing_directory(path)),
        Errno::ETXTBSY => Some("it is a running program".into()),
        Errno::EROFS => Some(READ_ONLY.into()),
        Errno::ENOTDIR => Some(PART_IS_A_FILE.into()),
        Errno::ENAMETOOLONG => Some("no part of a path can be longer than 255 bytes".into()),
        Errno::ENOSPC => Some("the file system is full: see `df` and `df -i`".into()),
        Errno::EDQUOT => Some("the quota of this user is used up: see `quota`".into()),
        Errno::EPERM => Some("see `lsattr -d`: it or its directory may be immutable".into()),
        _ => of_resources(errno).map(str::to_owned),
    }
}

const PART_IS_A_FILE: &str = "a part of its path is a file, not a directory";

/// The system refuses a resource that many calls need.
fn of_resources(errno: Errno) -> Option<&'static str> {
    match errno {
        Errno::EMFILE => Some("the limit on open files is reached: see `ulimit -n`"),
        Errno::ENFILE => Some("the whole system has too many open files: see `sysctl fs.file-max`"),
        Errno::ENOMEM | Errno::ENOBUFS => {
            Some("no more memory is available: see `free`, or MemoryMax= of the unit")
        }
        _ => None,
    }
}

/// A program exists but cannot be executed, for a reason other than its permissions.
pub fn of_executing(errno: Errno) -> Option<&'static str> {
    match errno {
        Errno::ETXTBSY => Some(
            "a process has it open for writing: write a new version under another name, then rename it to this one",
        ),
        Errno::ENOEXEC => {
            Some("it has no `#!` line, or was built for another kind of machine: see `file`")
        }
        Errno::E2BIG => Some(
            "its arguments and environment, or one of them, are too long: see execve(2); --envdir adds to them",
        ),
        Errno::ELIBBAD | Errno::EISDIR => Some("its interpreter is not a program: see `file`"),
        Errno::EPERM => {
            Some("a filter or a security module forbids it: see the unit or container, and `dmesg`")
        }
        Errno::ENOTDIR => Some(PART_IS_A_FILE),
        Errno::ELOOP => {
            Some("its symbolic links form a loop, or its chain of interpreters is too long")
        }
        _ => of_resources(errno),
    }
}

/// A relative path begins in a directory that no longer exists.
pub const LAUNCHED_FROM_NOWHERE: &str = "the directory that start_server was started in has been removed: start it from another \
     one, or give an absolute path";

/// A directory to change to, or one above it, is a file.
pub const NOT_A_DIRECTORY: &str = "it, or a part of its path, is a file";

/// A file is executable by its mode, but not on its file system.
pub const MOUNTED_NOEXEC: &str = "its file system is mounted with noexec: see findmnt(8)";

/// What was taken for the program contains blanks, and does not exist.
pub fn of_program_with_blanks(program: &OsStr) -> Option<String> {
    program.as_bytes().contains(&b' ').then(|| {
        format!(
            "the program and its arguments are separate words, but {} was given as one",
            quoted(program)
        )
    })
}

/// A user and a group were given in one word, as chown(1) and chpst(8) take them.
pub fn of_user_and_group(typed: &str) -> Option<String> {
    let (user, groups) = typed.split_once(':')?;
    let group = groups.split(':').next().filter(|group| !group.is_empty());
    let group = group.map(|group| format!(" --group={}", quoted(group)));
    (!user.is_empty()).then(|| {
        let (user, group) = (quoted(user), group.unwrap_or_default());
        format!("the group has an option of its own: --user={user}{group}")
    })
}

/// Another program would have accepted another spelling of this path, or accepted it as a port.
pub fn written_as_path(path: &OsStr) -> String {
    format!("a unix socket is written as --path={}", quoted(path))
}

/// Another program would have accepted another spelling of this port.
pub fn written_as_port(endpoint: &str) -> String {
    format!("it is written as --port={}", quoted(endpoint))
}

/// A range of ports was given.
pub fn port_range(first: &str, last: &str) -> String {
    format!("a range is written as a list: --port={first},...,{last}")
}

/// The name of a service was given instead of a port.
pub fn service_name(name: &str) -> String {
    format!("names of services are not looked up: `getent services {name}` shows the number")
}

/// The directory of a file does not exist.
fn missing_directory(file: &Path) -> String {
    let directory = quoted(file.parent().unwrap_or(file));
    format!("create it for the server's user: `install -d -o USER {directory}`")
}

/// A process cannot be created.
pub fn of_spawning(errno: Errno) -> Option<&'static str> {
    match errno {
        Errno::EAGAIN => Some(
            "this user has reached its process limit: see `ulimit -u`, or TasksMax= of the unit",
        ),
        _ => of_resources(errno),
    }
}

/// A file or directory of variables cannot be read.
pub fn of_environment(errno: Errno) -> Option<&'static str> {
    match errno {
        Errno::EACCES => Some(
            "it is read by the user that the server runs as, who must be able to read the directory and every file in it",
        ),
        _ => None,
    }
}

/// The program is a directory.
pub const IS_A_DIRECTORY: &str = "it is a directory";

/// The program has no execute permission.
pub const NOT_EXECUTABLE: &str = "it is not executable for this user: see chmod(1)";

/// The interpreter of a program that is not a script is missing.
pub const MISSING_LOADER: &str =
    "the dynamic loader that it needs does not exist: it was built for another system";

/// A directory of PATH has the program, but this user may not execute it.
pub fn not_executable_in_path(found: &Path) -> String {
    format!("{} is not executable for this user", quoted(found))
}

/// No directory of PATH has the program.
pub fn not_in_path(path: &OsStr) -> String {
    format!("no directory in PATH has it: PATH is {}", quoted(path))
}

/// No directory of PATH that this user can search has the program, but it may be in or below these closed ones.
pub fn maybe_behind(closed: &[&Path], path: &OsStr) -> String {
    let mut names: Vec<String> = closed.iter().map(quoted).collect();
    names.dedup();
    format!(
        "the program may be in or below directories that are closed to this user: {}; PATH is {}",
        names.join(", "),
        quoted(path)
    )
}

/// This user may not search a directory above the program.
pub fn closed_directory(directory: &Path) -> String {
    format!("the directory {} is closed to this user", quoted(directory))
}

/// The interpreter that a script names does not exist.
pub fn missing_interpreter(name: &OsStr) -> String {
    let shown = quoted(name);
    match name.as_bytes().ends_with(b"\r") {
        true => format!(
            "its first line ends with a carriage return, which becomes part of the interpreter's name: {shown}"
        ),
        false => format!("the interpreter in its first line does not exist: {shown}"),
    }
}

/// A worker does not get as far as executing the program.
pub const HANGING: &str =
    "probably a file system does not respond: that of the program, of --dir or of a library";

/// A server program ends without an error right after its start.
pub const STAY_IN_FOREGROUND: &str = "a server must stay in the foreground: nginx with `daemon off;`, others without -D, --daemon or --daemonize";

/// Nobody accepts what waits at a listener.
pub const TAKES_NO_SOCKETS: &str = "probably the server program has not taken its sockets: see --fd-env, and --preset=list for what yours needs";

/// A file is open in a process that cannot be named.
pub fn who_has_open(path: &str) -> String {
    format!("`fuser {path}` as root shows who has it open")
}

/// A stop takes longer than the client waits: workers hold it up, with these pids if they are known.
pub fn workers_that_do_not_exit(pids: Option<String>) -> String {
    match pids.filter(|pids| !pids.is_empty()) {
        Some(pids) => format!(
            "it is waiting for its workers to exit: {pids}; kill -KILL PID ends one; a server started with --stop-timeout=SECONDS does this by itself"
        ),
        None => "it is waiting for workers that do not exit; a server started with --stop-timeout=SECONDS kills them"
            .into(),
    }
}

/// A syslog daemon cannot be reached.
pub fn of_syslog(errno: Errno) -> Option<&'static str> {
    match errno {
        Errno::ENOENT => Some(
            "no syslog daemon has created that socket: start one, or give the address of another with --syslog-address",
        ),
        Errno::ECONNREFUSED => Some("no syslog daemon is running there"),
        Errno::EACCES => Some(
            "the user that the server runs as must be able to write to the socket and to enter its directory",
        ),
        Errno::EPROTOTYPE => Some("it is not a datagram socket, which --syslog needs"),
        Errno::ENETUNREACH | Errno::EHOSTUNREACH => {
            Some("no route leads to that address: see `ip route`")
        }
        _ => of_resources(errno),
    }
}

/// The self-test cannot create a directory for its files.
pub fn of_scratch(place: &Path, errno: Errno, is_root: bool) -> Option<String> {
    match (errno, is_root) {
        (Errno::EACCES | Errno::ENOENT | Errno::ENOTDIR | Errno::EROFS, false) => {
            Some("set TMPDIR to a directory in which this user may create another".into())
        }
        (Errno::EROFS | Errno::ENOENT, true) => Some(format!(
            "root creates it where nobody else can write: mount a tmpfs at {0}, or in a unit with ProtectSystem=strict, name {0} \
             in ReadWritePaths=",
            quoted(place)
        )),
        (Errno::EACCES, true) => None,
        _ => of_file(place, errno),
    }
}

/// The log file is a name of an open descriptor, such as /dev/stderr.
pub const NO_LOG_FILE: &str = "omit --log-file: everything then goes to standard output and error";

/// The user cannot make its directory, and root was not asked to or does not.
pub const RUNTIME_DIR: &str = "root makes it, if started with --user, where only root can write, such as in /run; elsewhere the directory above \
     must be writable by the user";

/// The log file is in a directory where only root can write.
pub const LOG_OF_ROOT: &str = "root opens no log file: name one in --runtime-dir or in a directory of --user's \
     (`install -d -o USER /var/log/APP`), or use --syslog or --log-file='| COMMAND'";

/// The log file is a FIFO that nobody reads, or a socket.
pub const LOG_TO_A_COMMAND: &str = "to pipe the log to a command, use --log-file='| COMMAND'";

/// A command line has no server program.
pub const PROGRAM_LAST: &str = "put it last, after two dashes: see --help";

/// The self-test, run as root, lacks the capabilities to inspect its processes.
pub const CAPABILITIES_OF_THE_SELF_TEST: &str = "give the container or unit CAP_KILL, CAP_SYS_PTRACE and CAP_DAC_OVERRIDE for the self-test; the server itself does not need them";

/// A client may not signal the server.
pub const USER_OF_THE_SERVER: &str = "use the user that the server runs as, or root";

/// Another implementation of start_server holds the pid file.
pub const STATUS_FILE_OF_ANOTHER: &str =
    "to follow another implementation's server, give its --status-file too";

/// A server has no status that could be shown.
pub const NO_STATUS: &str =
    "it is written once the listeners are bound; other implementations of start_server write none";

/// The program is setuid or setgid.
pub const NO_SETUID_BIT: &str = "remove the bit with chmod u-s,g-s";

/// The variables of sd_listen_fds(3) do not describe what this process was started with.
pub const LISTEN_FDS: &str = "correct what the launcher passes on (sd_listen_fds(3)), or unset LISTEN_PID to start without its sockets";

/// The launcher has passed on a connection.
pub const ACCEPT_NO: &str = "start_server takes listeners: remove Accept=yes from the socket unit";

/// The launcher, root, has passed on a socket that another user has created.
pub const SOCKET_OF_ANOTHER: &str = "its owner could take clients from the server: create the socket as root or as --user, as a socket unit does";

/// Root has named no user.
pub const NAME_THE_USER: &str = "add --user=NAME, the user that the server program runs as";

/// An ordinary user has named a user.
pub const ROOT_OR_YOURSELF: &str = "start as root, or omit --user to run as yourself";

/// Root lacks a capability that a change of user takes.
pub const CAPABILITY_OR_THE_USER: &str =
    "give the container or unit that capability, or start as the user itself";

/// The user of the workers is root.
pub const AN_ORDINARY_USER: &str = "name the ordinary user that the server program runs as";

/// A uid without an entry in the user database is in no known group.
pub const ADD_THE_GROUP: &str =
    "add --group=GROUP: a uid without an entry in the user database has no group of its own";

/// An option that a preset sets cannot be used together with what was typed.
pub fn of_preset(name: &str, options: &str) -> String {
    format!("--preset={name} stands for {options}; each of them given besides wins")
}

/// An option is misspelled.
pub fn did_you_mean(suggestion: &str) -> String {
    format!("did you mean {suggestion}?")
}

/// An option is abbreviated or written in another way.
pub fn write_instead(spelling: &str) -> String {
    format!("write {spelling}")
}

/// The value of an option, which may be an option itself.
pub fn value_with_a_dash(name: &str, value: &str) -> String {
    format!("a value that begins with a dash needs an equals sign: --{name}={value}")
}

/// A facility of syslog stands where the server program is expected.
pub fn facility_or_program(name: &str) -> String {
    format!("write --syslog={name}, or -- before a server program of that name")
}
