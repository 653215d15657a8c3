//! Giving up privileges for good, and the proof afterwards.
//!
//! Every function here ends in a proof: the state is read back from the kernel, and the way back is tried and must be
//! closed. A caller that gets an error, which is in words, must exit: its privileges may be half dropped.

use caps::{CapSet, Capability, CapsHashSet};
use nix::errno::Errno;
use nix::sys::prctl;
use nix::unistd::{Gid, Uid, getgroups, getresgid, getresuid, setgroups, setresgid, setresuid};

use crate::message::Identity;

fn cannot(what: &str) -> impl Fn(Errno) -> String + '_ {
    move |errno| format!("cannot {what}: {}", errno.desc())
}

fn cannot_set(what: &str) -> impl Fn(caps::errors::CapsError) -> String + '_ {
    move |error| format!("cannot {what}: {error}")
}

/// How much of the capability bounding set could be given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bounding {
    /// All of it.
    Empty,
    /// Nothing: the process does not have `CAP_SETPCAP`.
    Kept,
}

/// From root to `identity`, with no capability but `retained`.
///
/// The order: the bounding set first, because emptying it takes `CAP_SETPCAP`; groups before the user, because
/// changing them takes root; the session keyring before the user, because any process of the user can exhaust its key
/// quota; the capabilities last, because the change of user clears the effective ones.
pub fn become_user(identity: &Identity, retained: &[Capability]) -> Result<Bounding, String> {
    if identity.uid == 0 {
        return Err("the user to become is root".into());
    }
    only_thread()?;
    let bounding = empty_bounding_set()?;
    if !retained.is_empty() {
        prctl::set_keepcaps(true).map_err(cannot("keep capabilities"))?;
    }
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    let groups: Vec<Gid> = identity.groups.iter().copied().map(Gid::from_raw).collect();
    setgroups(&groups).map_err(cannot("set the supplementary groups"))?;
    setresgid(gid, gid, gid).map_err(cannot("set the group"))?;
    leave_session_keyring().map_err(cannot("leave the session keyring"))?;
    setresuid(uid, uid, uid).map_err(cannot("set the user"))?;
    confine(retained)?;
    prove_identity(uid, gid, &groups)?;
    prove_bounding_set(bounding)?;
    // The way back must be closed.
    if setresuid(Uid::from_raw(0), Uid::from_raw(0), Uid::from_raw(0)).is_ok()
        || setgroups(&[]).is_ok()
    {
        return Err("privileges could be regained".into());
    }
    Ok(bounding)
}

/// Keeps uid 0, without groups and with no capability but `retained`, and locks that state: no exec and no change of user
/// gives a capability back.
pub fn stay_root_with(retained: &[Capability]) -> Result<Bounding, String> {
    only_thread()?;
    let bounding = empty_bounding_set()?;
    // That takes CAP_SETPCAP too. Without it, no_new_privs ensures that an exec gives nothing back.
    if bounding == Bounding::Empty {
        lock_securebits()?;
    }
    let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
    setgroups(&[]).map_err(cannot("clear the supplementary groups"))?;
    setresgid(gid, gid, gid).map_err(cannot("set the group"))?;
    setresuid(uid, uid, uid).map_err(cannot("set the user"))?;
    confine(retained)?;
    prove_identity(uid, gid, &[])?;
    prove_bounding_set(bounding)?;
    Ok(bounding)
}

/// Gives up every capability but `retained`, for an ordinary user who was given some; the user stays.
///
/// Unlike the ways from root it leaves the process able to gain privileges by exec: a worker of an ordinary user
/// may run setuid programs, as it could without us.
pub fn retain_only(retained: &[Capability]) -> Result<(), String> {
    only_thread()?;
    reduce_to(retained)
}

/// Gives up the last capabilities, in a process that has done one of the above. It opens no file, so a sandbox allows it.
pub fn give_up_rest() -> Result<(), String> {
    reduce_to(&[])
}

/// No other process of the same user may trace this one or read its memory from now on, as long as its user stays the same.
pub fn become_undumpable() -> Result<(), String> {
    prctl::set_dumpable(false).map_err(cannot("become undumpable"))?;
    match prctl::get_dumpable() {
        Ok(false) => Ok(()),
        _ => Err("undumpable did not hold".into()),
    }
}

/// Gives up every capability but these, and proves it.
fn reduce_to(retained: &[Capability]) -> Result<(), String> {
    let retained: CapsHashSet = retained.iter().copied().collect();
    let none = CapsHashSet::new();
    // Effective before permitted: the other order leaves an effective capability that is not permitted (EPERM).
    let sets = [
        ("inheritable", CapSet::Inheritable, &none),
        ("effective", CapSet::Effective, &retained),
        ("permitted", CapSet::Permitted, &retained),
    ];
    caps::clear(None, CapSet::Ambient).map_err(cannot_set("give up capabilities"))?;
    for (_, set, allowed) in sets {
        caps::set(None, set, allowed).map_err(cannot_set("give up capabilities"))?;
    }
    // The ambient set is empty with the inheritable one: the kernel keeps it within that (capabilities(7)).
    for (name, set, allowed) in sets {
        let have = caps::read(None, set).map_err(cannot_set("read capabilities"))?;
        if have != *allowed {
            return Err(format!("the {name} capabilities did not hold"));
        }
    }
    Ok(())
}

/// Those of `wanted` that this process has.
pub fn available(wanted: &[Capability]) -> Result<Vec<Capability>, String> {
    let permitted = caps::read(None, CapSet::Permitted)
        .map_err(cannot_set("read the permitted capabilities"))?;
    let is_permitted = |capability: &Capability| permitted.contains(capability);
    Ok(wanted.iter().copied().filter(is_permitted).collect())
}

/// Whether the kernel has given this process more than its launcher has, by a setuid bit or file capabilities
/// (`AT_SECURE`, getauxval(3)).
#[expect(
    unsafe_code,
    reason = "neither the standard library nor nix reads the auxiliary vector"
)]
pub fn were_raised_by_exec() -> bool {
    // SAFETY: it takes a number and reads what the kernel has put beside the environment.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}

fn confine(retained: &[Capability]) -> Result<(), String> {
    reduce_to(retained)?;
    prctl::set_no_new_privs().map_err(cannot("set no_new_privs"))?;
    match prctl::get_no_new_privs() {
        Ok(true) => become_undumpable(),
        _ => Err("no_new_privs did not hold".into()),
    }
}

fn prove_identity(uid: Uid, gid: Gid, groups: &[Gid]) -> Result<(), String> {
    let users = getresuid().map_err(cannot("read the user"))?;
    let primary = getresgid().map_err(cannot("read the group"))?;
    let mut have = getgroups().map_err(cannot("read the supplementary groups"))?;
    let mut want = groups.to_vec();
    for list in [&mut have, &mut want] {
        list.sort_unstable_by_key(|gid| gid.as_raw());
        list.dedup();
    }
    let users_hold = [users.real, users.effective, users.saved] == [uid; 3];
    let groups_hold = [primary.real, primary.effective, primary.saved] == [gid; 3] && have == want;
    match users_hold && groups_hold {
        true => Ok(()),
        false => Err("the change of user and groups did not hold".into()),
    }
}

fn prove_bounding_set(bounding: Bounding) -> Result<(), String> {
    match bounding == Bounding::Empty && capability_numbers().any(bounding_set_has) {
        true => Err("the bounding set did not become empty".into()),
        false => Ok(()),
    }
}

/// set*id acts on all threads of a process, but capabilities and prctl on the calling one alone.
fn only_thread() -> Result<(), String> {
    let threads = std::fs::read_dir("/proc/self/task")
        .map_err(|error| format!("cannot count threads in /proc/self/task: {error}"))?
        .count();
    match threads {
        1 => Ok(()),
        _ => Err(format!(
            "there are {threads} threads, and only one would drop its privileges"
        )),
    }
}

/// Every possible capability number, known to this program or not: later kernels have more.
fn capability_numbers() -> impl Iterator<Item = libc::c_ulong> {
    0..=63
}

fn empty_bounding_set() -> Result<Bounding, String> {
    let can = caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP)
        .map_err(cannot_set("read the effective capabilities"))?;
    if !can {
        return Ok(Bounding::Kept);
    }
    for number in capability_numbers().filter(|number| bounding_set_has(*number)) {
        drop_from_bounding_set(number).map_err(cannot("empty the bounding set"))?;
    }
    Ok(Bounding::Empty)
}

/// A new, empty session keyring: a process that possesses root's can read its keys, whatever its uid (keyrings(7)).
#[expect(unsafe_code, reason = "nix has no keyctl")]
fn leave_session_keyring() -> nix::Result<()> {
    let anonymous = std::ptr::null::<libc::c_char>();
    // SAFETY: without a name the call reads no memory of ours.
    let joined = unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            libc::KEYCTL_JOIN_SESSION_KEYRING,
            anonymous,
        )
    };
    match Errno::result(joined) {
        // A kernel without keyrings, or a container in which nobody can use or read them.
        Err(Errno::ENOSYS | Errno::EPERM) => Ok(()),
        result => result.map(drop),
    }
}

/// Numbers that the kernel does not know are not in the set (EINVAL).
#[expect(
    unsafe_code,
    reason = "neither nix nor caps reaches the numbers that they have no name for"
)]
fn bounding_set_has(number: libc::c_ulong) -> bool {
    // SAFETY: PR_CAPBSET_READ takes numbers only and touches no memory of ours.
    unsafe { libc::prctl(libc::PR_CAPBSET_READ, number, 0, 0, 0) == 1 }
}

#[expect(
    unsafe_code,
    reason = "neither nix nor caps reaches the numbers that they have no name for"
)]
fn drop_from_bounding_set(number: libc::c_ulong) -> nix::Result<()> {
    // SAFETY: PR_CAPBSET_DROP takes numbers only and touches no memory of ours.
    Errno::result(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, number, 0, 0, 0) }).map(drop)
}

/// Uid 0 has no special meaning any more, and nothing can change that (capabilities(7), "securebits").
#[expect(unsafe_code, reason = "neither nix nor caps knows securebits")]
fn lock_securebits() -> Result<(), String> {
    const SECURE: libc::c_int = libc::SECBIT_NOROOT
        | libc::SECBIT_NOROOT_LOCKED
        | libc::SECBIT_NO_SETUID_FIXUP
        | libc::SECBIT_NO_SETUID_FIXUP_LOCKED
        | libc::SECBIT_KEEP_CAPS_LOCKED
        | libc::SECBIT_NO_CAP_AMBIENT_RAISE
        | libc::SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED;
    // SAFETY: PR_SET_SECUREBITS takes a number only and touches no memory of ours.
    let locked = unsafe { libc::prctl(libc::PR_SET_SECUREBITS, SECURE as libc::c_ulong, 0, 0, 0) };
    Errno::result(locked).map_err(cannot("lock the securebits"))?;
    // SAFETY: PR_GET_SECUREBITS takes nothing and touches no memory of ours.
    match unsafe { libc::prctl(libc::PR_GET_SECUREBITS, 0, 0, 0, 0) } {
        SECURE => Ok(()),
        _ => Err("the locked securebits did not hold".into()),
    }
}
