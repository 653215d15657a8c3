//! What this process tries in a self-test, to show that its confinement holds. Each attempt is harmless if it succeeds.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsRawFd;

use caps::{CapSet, CapsHashSet};
use common::message::Escape;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, open};
use nix::sys::ptrace;
use nix::sys::signal::kill;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, UnixAddr, bind, socket};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, Uid, UnlinkatFlags, execv, setresuid, unlinkat};

/// Tries it. `Ok` means that the confinement failed; if the sandbox kills, this does not return. The parent's pid was read
/// before the sandbox, which would kill this process for asking for it instead of for the attempt.
pub fn attempt(escape: Escape, parent: Pid) -> nix::Result<()> {
    let root = Uid::from_raw(0);
    match escape {
        Escape::BecomeRoot => setresuid(root, root, root),
        Escape::RaiseCapabilities => {
            let every: CapsHashSet = caps::all();
            caps::set(None, CapSet::Permitted, &every).map_err(|_| Errno::EPERM)
        }
        Escape::BindAnotherPort => {
            let any = SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0));
            bind(open_socket(AddressFamily::Inet)?.as_raw_fd(), &any)
        }
        Escape::BindAnotherPath => {
            let path = format!("/start_server-self-test-{}", parent);
            let socket = open_socket(AddressFamily::Unix)?;
            bind(socket.as_raw_fd(), &UnixAddr::new(path.as_str())?)?;
            // Of a kind that the sandbox may know: if it can be created, it must not stay.
            unlinkat(AT_FDCWD, path.as_str(), UnlinkatFlags::NoRemoveDir)
        }
        Escape::OpenAnotherSocket => open_socket(AddressFamily::Netlink).map(drop),
        Escape::OpenFile => open(
            "/etc/passwd",
            OFlag::O_RDONLY | OFlag::O_CLOEXEC,
            Mode::empty(),
        )
        .map(drop),
        Escape::Execute => execv::<&std::ffi::CStr>(c"/bin/true", &[c"true"]).map(drop),
        Escape::Fork => fork(),
        // Unlike PTRACE_ATTACH it does not stop the parent if it succeeds.
        Escape::TraceParent => ptrace::seize(parent, ptrace::Options::empty()),
        Escape::SignalParent => kill(parent, None),
    }
}

fn open_socket(family: AddressFamily) -> nix::Result<std::os::fd::OwnedFd> {
    let kind = match family {
        AddressFamily::Netlink => SockType::Raw,
        _ => SockType::Stream,
    };
    socket(family, kind, SockFlag::SOCK_CLOEXEC, None)
}

#[expect(unsafe_code, reason = "a self-test tries what a sandbox must refuse")]
fn fork() -> nix::Result<()> {
    // Not fork(3), which makes other system calls first.
    // SAFETY: this process has one thread, and the child exits at once without running anything of it.
    let child = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
    match Errno::result(child)? {
        // SAFETY: _exit(2) only ends the process.
        0 => unsafe { libc::_exit(0) },
        _ => Ok(()),
    }
}
