//! Planted things: whatever lies where a socket, pid, status or log file is to be made, or comes there during the start,
//! root follows it nowhere, and what is not ours stays as it is.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use e2e::folder::{Folder, snapshot};
use e2e::server::{NOBODY, Setup};
use e2e::{Server, client, ports, trace, wait};
use nix::sys::signal::Signal;
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::{Gid, Uid, mkfifo, setfsgid, setfsuid};

use crate::attack_launcher::{hold, waits_for_requests};
use crate::launch::{RootFolder, make_directory};
use crate::privileges::{binders, can_drop};

/// The attacker: neither root nor the user of the server.
const FOREIGN: u32 = 4242;

/// What an attacker would like the server to change: only root may, or everybody, but not by way of a link.
///
/// It is where root may make sockets, so that nothing but the way there keeps it from that.
struct Outside {
    folder: RootFolder,
    before: BTreeMap<String, String>,
}

impl Outside {
    fn new() -> Outside {
        let folder = RootFolder::new();
        let path = folder.path();
        make_directory(&path.join("closed"), 0o755, 0);
        make_directory(&path.join("open"), 0o777, 0);
        for (name, text, mode) in [
            ("closed/file", "precious", 0o600),
            ("closed/empty", "", 0o644),
            ("open/file", "precious", 0o666),
            ("open/empty", "", 0o666),
        ] {
            let file = path.join(name);
            fs::write(&file, text).expect("cannot write the file");
            fs::set_permissions(&file, Permissions::from_mode(mode)).expect("cannot set the mode");
        }
        let before = snapshot(path);
        Outside { folder, before }
    }

    fn join(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    #[track_caller]
    fn assert_untouched(&self, what: &str) {
        assert_eq!(snapshot(self.folder.path()), self.before, "{what}");
    }
}

/// What is planted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Thing {
    RegularFile,
    Directory,
    Fifo,
    Device,
    /// To something that is there, by its name in [`Outside`].
    Link(&'static str),
    /// To something that could be made in [`Outside`], by everybody or by root.
    Dangling(&'static str),
    Served,
    Stale,
}

const THINGS: [Thing; 11] = [
    Thing::RegularFile,
    Thing::Directory,
    Thing::Fifo,
    Thing::Device,
    Thing::Link("closed/file"),
    Thing::Link("closed/empty"),
    Thing::Link("open/file"),
    Thing::Link("open/empty"),
    Thing::Dangling("open/new"),
    Thing::Served,
    Thing::Stale,
];

/// What is planted where a directory is to be.
const IN_PLACE_OF_DIRECTORIES: [Thing; 8] = [
    Thing::RegularFile,
    Thing::Fifo,
    Thing::Device,
    Thing::Link("closed"),
    Thing::Link("open/file"),
    Thing::Dangling("open/new"),
    Thing::Served,
    Thing::Stale,
];

impl Thing {
    /// Puts it there, as a user would who can. What must be kept for its sake is returned.
    fn plant(self, path: &Path, owner: u32, outside: &Outside) -> Option<UnixListener> {
        let mut served = None;
        match self {
            Thing::RegularFile => fs::write(path, "precious").expect("cannot write the file"),
            Thing::Directory => {
                make_directory(path, 0o755, owner);
                fs::write(path.join("file"), "precious").expect("cannot write the file");
            }
            Thing::Fifo => mkfifo(path, Mode::empty()).expect("cannot make the fifo"),
            Thing::Device => {
                // That of /dev/null.
                let (kind, number) = (SFlag::S_IFCHR, makedev(1, 3));
                mknod(path, kind, Mode::empty(), number).expect("cannot make the device");
            }
            Thing::Link(name) | Thing::Dangling(name) => {
                symlink(outside.join(name), path).expect("cannot make the link");
            }
            Thing::Served => served = Some(UnixListener::bind(path).expect("cannot bind")),
            Thing::Stale => {
                client::leave_stale_socket(path);
            }
        }
        let mode = match self {
            Thing::Link(_) | Thing::Dangling(_) => None,
            Thing::RegularFile => Some(0o644),
            Thing::Directory => Some(0o755),
            // Where modes are no hindrance.
            Thing::Fifo | Thing::Device | Thing::Served | Thing::Stale => Some(0o777),
        };
        if let Some(mode) = mode {
            fs::set_permissions(path, Permissions::from_mode(mode)).expect("cannot set the mode");
        }
        lchown(path, Some(owner), Some(owner)).expect("cannot give it away");
        served
    }
}

/// A place that an option names; or one beside it that follows from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Path,
    PidFile,
    PidJson,
    StatusFile,
    StatusJson,
    LogFile,
}

const PLACES: [Place; 6] = [
    Place::Path,
    Place::PidFile,
    Place::PidJson,
    Place::StatusFile,
    Place::StatusJson,
    Place::LogFile,
];

impl Place {
    fn option(self, path: &Path) -> String {
        let option = match self {
            Place::Path => "path",
            Place::PidFile | Place::PidJson => "pid-file",
            Place::StatusFile | Place::StatusJson => "status-file",
            Place::LogFile => "log-file",
        };
        format!("--{option}={}", path.display())
    }

    /// Where it is when the option names this path.
    fn beside(self, path: &Path) -> PathBuf {
        match self {
            Place::PidJson | Place::StatusJson => path.with_extension("json"),
            Place::Path | Place::PidFile | Place::StatusFile | Place::LogFile => path.to_owned(),
        }
    }
}

/// Root's start, with a low port, of workers that are started quickly.
fn by_root() -> Setup {
    let setup = Server::setup().as_root().option("--user=nobody");
    setup.interval("0")
}

/// Starts it: it serves, and ends as it is told; or it has ended with one line. Whether it has served. In any case
/// nothing has come out of it, neither while it served nor after its end.
#[track_caller]
fn serves(setup: Setup, port: u16, outside: &Outside, what: &str) -> bool {
    let mut server = setup.port(port).start();
    let ended = server.wait_for_answer_or_exit(port);
    outside.assert_untouched(what);
    let served = ended.is_none();
    match ended {
        None => {
            assert!(server.stop().success(), "{what}: {}", server.log());
        }
        Some(status) => {
            let log = server.log();
            assert_eq!(status.code(), Some(1), "{what}: {log}");
            assert_eq!(server.count_in_log(": cannot "), 1, "{what}: {log}");
            // Nobody has asked for an owner.
            for wrong in ["panicked", "can give the socket only to"] {
                assert!(!log.contains(wrong), "{what}: {log}");
            }
        }
    }
    outside.assert_untouched(what);
    served
}

/// Everything at every place in this directory.
#[track_caller]
fn assert_planted_things_stay(directory: &Path, stale_is_replaced: bool) {
    let (outside, port) = (Outside::new(), ports::low());
    for place in PLACES {
        for thing in THINGS {
            let what = format!("{thing:?} at {place:?} in {}", directory.display());
            let path = directory.join("thing");
            let planted = place.beside(&path);
            let kept = thing.plant(&planted, FOREIGN, &outside);
            let mut before = snapshot(directory);
            let served = serves(by_root().option(place.option(&path)), port, &outside, &what);
            let replaced = place == Place::Path && thing == Thing::Stale && stale_is_replaced;
            let usable = place == Place::LogFile && thing == Thing::Device;
            // Some kernels keep users from opening another's device in a sticky directory.
            assert!(served == replaced || usable, "{what}: {served}");
            if replaced {
                before.remove(&planted.display().to_string());
            }
            assert_eq!(snapshot(directory), before, "{what}");
            drop(kept);
            remove(&planted);
        }
        for thing in IN_PLACE_OF_DIRECTORIES {
            let what = format!("{thing:?} above {place:?} in {}", directory.display());
            let planted = directory.join("parent");
            let kept = thing.plant(&planted, FOREIGN, &outside);
            let before = snapshot(directory);
            let setup = by_root().option(place.option(&planted.join("thing")));
            assert!(!serves(setup, port, &outside, &what), "{what}: it served");
            assert_eq!(snapshot(directory), before, "{what}");
            drop(kept);
            remove(&planted);
        }
    }
}

fn remove(path: &Path) {
    let Ok(there) = path.symlink_metadata() else {
        return;
    };
    match there.is_dir() {
        true => fs::remove_dir_all(path).expect("cannot remove the directory"),
        false => fs::remove_file(path).expect("cannot remove the file"),
    }
}

#[test]
fn what_is_planted_in_a_directory_of_the_user_stays() {
    if !can_drop() {
        return;
    }
    let folder = Folder::new(Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
    assert_planted_things_stay(folder.path(), true);
}

#[test]
fn what_is_planted_in_a_directory_of_root_stays() {
    if !can_drop() {
        return;
    }
    let folder = RootFolder::new();
    assert_planted_things_stay(folder.path(), true);
}

#[test]
fn what_is_planted_in_a_sticky_directory_stays() {
    if !can_drop() {
        return;
    }
    let folder = RootFolder::new();
    let sticky = folder.path().join("sticky");
    make_directory(&sticky, 0o1777, 0);
    assert_planted_things_stay(&sticky, false);
}

#[test]
fn what_comes_to_the_path_while_a_binder_of_root_waits_stays() {
    if !can_drop() {
        return;
    }
    let (outside, roots) = (Outside::new(), RootFolder::new());
    let path = roots.path().join("socket");
    for (thing, was_stale) in THINGS.into_iter().flat_map(|it| [(it, false), (it, true)]) {
        let what = format!("{thing:?}, after a stale socket: {was_stale}");
        if was_stale {
            Thing::Stale.plant(&path, 0, &outside);
        }
        let setup = by_root().pid_file().option(Place::Path.option(&path));
        let held = hold(&setup);
        let mut server = setup.start();
        server.wait_until(
            "its binder waits for a request",
            |server| matches!(binders(server)[..], [binder] if waits_for_requests(binder)),
        );
        // It has looked at the path by now.
        remove(&path);
        let kept = thing.plant(&path, FOREIGN, &outside);
        let before = snapshot(roots.path());
        drop(held);
        let status = server.wait_exit();
        assert_eq!(status.code(), Some(1), "{what}: {}", server.log());
        assert_eq!(server.count_in_log("cannot listen on --path="), 1, "{what}");
        assert_eq!(snapshot(roots.path()), before, "{what}");
        outside.assert_untouched(&what);
        drop(kept);
        remove(&path);
    }
}

#[test]
fn a_log_file_that_is_opened_again_is_not_what_was_planted_there() {
    if !can_drop() {
        return;
    }
    let (outside, port) = (Outside::new(), ports::low());
    let setup = by_root().port(port).option("--log-file=server.log");
    let path = setup.folder().join("server.log");
    let server = setup.start();
    server.ask(port);
    for (times, thing) in THINGS.into_iter().enumerate() {
        if thing == Thing::Device {
            continue;
        }
        fs::rename(&path, path.with_extension("old")).expect("cannot move the log away");
        let kept = thing.plant(&path, FOREIGN, &outside);
        let before = snapshot(server.folder());
        server.signal(Signal::SIGUSR1);
        let log = || fs::read_to_string(path.with_extension("old")).expect("no log");
        wait::until("it says that it cannot", log, || {
            let said = log().matches("cannot reopen").count();
            (said > times - usize::from(times > 3)).then_some(())
        });
        server.ask(port);
        let planted = path.display().to_string();
        assert_eq!(
            snapshot(server.folder()).get(&planted),
            before.get(&planted)
        );
        outside.assert_untouched(&format!("{thing:?}"));
        drop(kept);
        remove(&path);
        fs::rename(path.with_extension("old"), &path).expect("cannot move the log back");
    }
}

/// A user who keeps putting other things in the place of one, as long as this lives.
struct Swapper {
    stop: Arc<AtomicBool>,
    swaps: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
    target: PathBuf,
    aside: Vec<PathBuf>,
    /// What must not be deleted, by inode.
    inodes: BTreeSet<u64>,
    _kept: Vec<UnixListener>,
}

impl Swapper {
    /// All `things` of this user, and nothing at all, come to be at `target` in turn. They wait in `directory`.
    fn start(
        user: u32,
        target: &Path,
        directory: &Path,
        things: &[Thing],
        outside: &Outside,
    ) -> Swapper {
        let name = |number: usize| directory.join(format!("{number}"));
        let aside: Vec<PathBuf> = (0..things.len()).map(name).collect();
        let planted = things.iter().zip(&aside);
        let kept = planted.filter_map(|(thing, path)| thing.plant(path, user, outside));
        let kept = kept.collect();
        let may_go = |thing: &Thing| *thing == Thing::Stale;
        let inodes = things
            .iter()
            .zip(&aside)
            .filter(|(thing, _)| !may_go(thing))
            .map(|(_, path)| inode(path).expect("it was just planted"))
            .collect();
        let (stop, swaps) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let thread = {
            let (stop, swaps) = (Arc::clone(&stop), Arc::clone(&swaps));
            let (target, aside) = (target.to_owned(), aside.clone());
            thread::spawn(move || swap(user, &target, &aside, &stop, &swaps))
        };
        Swapper {
            stop,
            swaps,
            thread: Some(thread),
            target: target.to_owned(),
            aside,
            inodes,
            _kept: kept,
        }
    }

    fn wait_for_more(&self, more: u64) {
        let wanted = self.swaps.load(Ordering::Relaxed) + more;
        wait::until("more was swapped", String::new, || {
            (self.swaps.load(Ordering::Relaxed) >= wanted).then_some(())
        });
    }

    /// Ends it. Nothing but what may go is gone.
    #[track_caller]
    fn assert_everything_is_left(mut self) {
        self.end();
        let places = self.aside.iter().chain([&self.target]);
        let left: BTreeSet<u64> = places.filter_map(|path| inode(path)).collect();
        let gone: Vec<&u64> = self.inodes.difference(&left).collect();
        assert!(gone.is_empty(), "{gone:?} of {:?}", self.inodes);
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the swapper panicked");
        }
    }
}

impl Drop for Swapper {
    fn drop(&mut self) {
        self.end();
    }
}

fn inode(path: &Path) -> Option<u64> {
    path.symlink_metadata().ok().map(|it| it.ino())
}

fn swap(user: u32, target: &Path, aside: &[PathBuf], stop: &AtomicBool, swaps: &AtomicU64) {
    // Of this thread alone: it has no other right to files than the user has.
    setfsgid(Gid::from_raw(user));
    setfsuid(Uid::from_raw(user));
    // Things are there, and not there, for as long as some system calls of the server take.
    let linger = |number: u64| (0..number % 64).for_each(|_| thread::yield_now());
    while !stop.load(Ordering::Relaxed) {
        for waiting in aside {
            let swapped = swaps.fetch_add(1, Ordering::Relaxed);
            linger(swapped / 64);
            // What the server has made in between is lost, where this user may; a directory goes nowhere then.
            drop(fs::rename(waiting, target));
            linger(swapped);
            drop(fs::rename(target, waiting));
        }
    }
}

/// As many starts as this while things are swapped.
const STARTS: usize = 50;

/// Starts it again and again with these options while things are swapped: it serves or not, as it finds them.
#[track_caller]
fn start_while_swapping(option: &str, swapper: &Swapper, outside: &Outside) {
    let port = ports::low();
    for number in 0..STARTS {
        let what = format!("start {number} with {option}");
        serves(by_root().option(option), port, outside, &what);
        swapper.wait_for_more(1);
    }
}

/// A directory of the user, below root's alone, with a directory in it for what waits to be swapped.
fn folder_of_user() -> (RootFolder, PathBuf, PathBuf) {
    let roots = RootFolder::new();
    let folder = roots.path().join("user");
    let aside = folder.join("aside");
    make_directory(&folder, 0o755, NOBODY);
    make_directory(&aside, 0o755, NOBODY);
    (roots, folder, aside)
}

/// What is at this place before the start is stale, so that it is replaced.
fn plant_stale(place: Place, path: &Path) {
    let text = match place {
        Place::Path => {
            client::leave_stale_socket(path);
            None
        }
        Place::PidFile => Some("1\n"),
        Place::StatusFile => Some("1:1\n"),
        Place::PidJson | Place::StatusJson => Some(r#"{"supervisor":{},"generations":[]}"#),
        Place::LogFile => Some("a line\n"),
    };
    if let Some(text) = text {
        fs::write(path, text).expect("cannot write the file");
    }
    lchown(path, Some(NOBODY), Some(NOBODY)).expect("cannot give it away");
}

/// Starts it, and lets it end by itself, with something of the user put in the place of what it is about to remove or to
/// replace, after its last look, the `nth` time that it does so. Whether there was such a time: then the thing is there.
fn swap_in_the_last_moment(place: Place, nth: usize) -> bool {
    let (_parent, folder, aside) = folder_of_user();
    let path = folder.join("thing");
    let target = place.beside(&path);
    plant_stale(place, &target);
    let precious = aside.join("precious");
    fs::write(&precious, "precious").expect("cannot write the file");
    lchown(&precious, Some(NOBODY), Some(NOBODY)).expect("cannot give it away");
    let expected = inode(&precious);
    let mut server = by_root()
        .option(place.option(&path))
        .option("--start-limit=1")
        .program(["false"])
        .traced()
        .start();
    let (mut seen, mut swapped) = (0, false);
    trace::at_each_removal(server.pid(), |paths| {
        let name = target.file_name();
        if swapped || !paths.iter().any(|path| path.file_name() == name) {
            return;
        }
        if seen == nth {
            // What was there is kept too; nothing may have been there.
            drop(fs::rename(&target, aside.join("was there")));
            fs::rename(&precious, &target).expect("cannot put it there");
            swapped = true;
        }
        seen += 1;
    });
    let status = server.wait_exit();
    if swapped {
        let what = format!("{place:?}, removal {nth}: {}", server.log());
        assert_eq!(inode(&target), expected, "{what}");
        assert_eq!(status.code(), Some(1), "{what}");
        assert!(!server.log().contains("panicked"), "{what}");
        let left: Vec<String> = snapshot(&folder).into_keys().collect();
        assert!(
            !left
                .iter()
                .any(|path| path.contains("thing.") && !path.ends_with(".json")),
            "{what} {left:?}"
        );
    }
    swapped
}

#[test]
fn what_comes_to_a_name_after_the_last_look_is_neither_removed_nor_replaced() {
    if !can_drop() {
        return;
    }
    for place in PLACES.into_iter().filter(|place| *place != Place::LogFile) {
        let times = (0..)
            .take_while(|nth| swap_in_the_last_moment(place, *nth))
            .count();
        assert!(times >= 1, "{place:?}");
    }
}

#[test]
fn a_path_that_is_swapped_during_the_start_leads_nowhere_else() {
    if !can_drop() {
        return;
    }
    let (outside, (_parent, folder, aside)) = (Outside::new(), folder_of_user());
    let target = folder.join("thing");
    let swapper = Swapper::start(NOBODY, &target, &aside, &THINGS, &outside);
    start_while_swapping(&Place::Path.option(&target), &swapper, &outside);
    swapper.assert_everything_is_left();
}

#[test]
fn a_directory_of_the_user_that_is_swapped_during_the_start_leads_root_nowhere() {
    if !can_drop() {
        return;
    }
    let (outside, (_parent, folder, aside)) = (Outside::new(), folder_of_user());
    let target = folder.join("parent");
    // The first part of the path is root's, and root follows its own links.
    let roots = RootFolder::new();
    let link = roots.path().join("link");
    symlink(&target, &link).expect("cannot make the link");
    let before = snapshot(roots.path());
    let things = [
        Thing::Directory,
        Thing::Link("closed"),
        Thing::RegularFile,
        Thing::Link("closed/file"),
        Thing::Dangling("open/new"),
        Thing::Stale,
    ];
    let swapper = Swapper::start(NOBODY, &target, &aside, &things, &outside);
    let options = [
        Place::Path,
        Place::PidFile,
        Place::StatusFile,
        Place::LogFile,
    ]
    .map(|place| place.option(&link.join(format!("{place:?}"))));
    for option in &options {
        start_while_swapping(option, &swapper, &outside);
        assert_eq!(snapshot(roots.path()), before, "{option}");
    }
    swapper.assert_everything_is_left();
}

#[test]
fn files_that_their_user_swaps_during_the_start_lead_nowhere_else() {
    if !can_drop() {
        return;
    }
    for place in PLACES {
        let (outside, (_parent, folder, aside)) = (Outside::new(), folder_of_user());
        let path = folder.join("thing");
        let target = place.beside(&path);
        let swapper = Swapper::start(NOBODY, &target, &aside, &THINGS, &outside);
        start_while_swapping(&place.option(&path), &swapper, &outside);
        // What the user itself moves there in the very moment in which a status is renamed is replaced by it, as by any
        // rename in a directory of one's own.
        if [Place::PidFile, Place::LogFile].contains(&place) {
            swapper.assert_everything_is_left();
        }
    }
}

#[test]
fn what_another_user_swaps_in_a_sticky_directory_leads_nowhere_and_stays() {
    if !can_drop() {
        return;
    }
    for place in PLACES {
        let (outside, roots) = (Outside::new(), RootFolder::new());
        let sticky = roots.path().join("sticky");
        make_directory(&sticky, 0o1777, 0);
        let aside = sticky.join("aside");
        make_directory(&aside, 0o755, FOREIGN);
        let path = sticky.join("thing");
        let target = place.beside(&path);
        let swapper = Swapper::start(FOREIGN, &target, &aside, &THINGS, &outside);
        start_while_swapping(&place.option(&path), &swapper, &outside);
        swapper.assert_everything_is_left();
    }
}
