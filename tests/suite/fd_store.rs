//! Listeners that the service manager keeps (`FDSTORE=1`): a start after any end gets them back, and clients only wait.

use std::fs::{self, File};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;

use e2e::client::{self, At, Load};
use e2e::fd_store::Manager;
use e2e::folder::Folder;
use e2e::server::{NOBODY, Setup};
use e2e::skip::{needs_root, original_differs};
use e2e::start::InTurn;
use e2e::{Server, ports, proc, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::bad_input::{FAILED, assert_refused};
use crate::launch::{RootFolder, ordinary_folder};

/// Whether the program under test stores its listeners.
fn stores() -> bool {
    !original_differs("it stores nothing")
}

/// A manager for services of one kind, with what outlives them: a folder of theirs.
struct Host {
    manager: Manager,
    folder: Folder,
    is_root: bool,
    _run: Option<RootFolder>,
}

impl Host {
    /// One whose services an ordinary user runs.
    fn ordinary(most: usize) -> Host {
        let folder = ordinary_folder();
        Host {
            manager: Manager::new(&folder.path().join("notify"), most),
            folder,
            is_root: false,
            _run: None,
        }
    }

    /// One for an ordinary user, and one for root with `--user`.
    fn each() -> Vec<Host> {
        let mut hosts = vec![Host::ordinary(100)];
        if needs_root() {
            let run = RootFolder::new();
            hosts.push(Host {
                manager: Manager::new(&run.path().join("notify"), 100),
                folder: ordinary_folder(),
                is_root: true,
                _run: Some(run),
            });
        }
        hosts
    }

    fn setup(&self) -> Setup {
        let setup = Server::setup().pid_file().status_file();
        match self.is_root {
            true => setup.as_root().option("--user=nobody"),
            false => setup,
        }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    /// Adds `--path` for a socket that outlives the service's own folder.
    fn with_path(&self, setup: Setup) -> Setup {
        setup.option(format!("--path={}", self.path().display()))
    }

    fn name_of_path(&self) -> String {
        format!("start_server.unix.{}", self.path().display())
    }
}

fn name_of(kind: &str, port: u16) -> String {
    format!("start_server.{kind}.127.0.0.1%3a{port}")
}

/// Ends it as the kernel does when it is out of memory, and its workers as a service manager does then.
fn kill_all(server: &Server) {
    let workers = server.workers();
    kill(server.pid(), Signal::SIGKILL).expect("cannot kill");
    for worker in &workers {
        // It may have ended by itself.
        let _ = kill(worker.pid, Signal::SIGKILL);
    }
    wait::until("they have ended", String::new, || {
        let is_gone = |pid: Pid| !proc::alive(pid);
        let workers = workers.iter().map(|it| it.pid);
        workers.chain([server.pid()]).all(is_gone).then_some(())
    });
}

fn restart(server: &Server) {
    let words = ["--restart", "--pid-file=pid", "--timeout=60"];
    let output = server.client(words).output_in_turn().expect("no client");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{}", server.log());
}

#[test]
fn after_a_kill_the_next_start_has_the_same_sockets_and_no_client_is_refused() {
    if !stores() {
        return;
    }
    for host in Host::each() {
        let (port, udp) = (ports::tcp(), ports::udp());
        let launch = || {
            let setup = host
                .setup()
                .port(port)
                .options([format!("--port=127.0.0.1:u{udp}")])
                .options([
                    "--port=127.0.0.1:0",
                    "--port=127.0.0.1:0",
                    "--port=localhost:0",
                ]);
            let server = host.manager.launch(host.with_path(setup)).start();
            server.wait_until_accepted();
            server
        };
        let server = launch();
        let first = server.ask(port);
        let [_, _, one, other, local, _] = &first.listeners[..] else {
            panic!("six listeners, not {:?}", first.listeners);
        };
        assert_ne!(one.name, other.name);
        assert!(local.name.starts_with("localhost:"), "{local:?}");
        let zero = "start_server.tcp.127.0.0.1%3a0";
        let names = [
            name_of("tcp", port),
            name_of("udp", udp),
            format!("{zero}.0"),
            format!("{zero}.1"),
            "start_server.tcp.localhost%3a0.0".to_owned(),
            host.name_of_path(),
        ];
        host.manager.wait_for_names(&names);
        let keys = |report: &e2e::Report| -> Vec<(String, i32)> {
            let listeners = report.listeners.iter();
            listeners.map(|it| (it.name.clone(), it.fd)).collect()
        };
        let inode = fs::metadata(host.path()).expect("no socket").ino();
        let loads = [At::from(port), At::from(&host.path())].map(|at| Load::start(at, 3));
        let mut server = server;
        for _ in 0..3 {
            loads.iter().for_each(|load| load.wait_for_more(20));
            kill_all(&server);
            drop(server);
            server = launch();
            let report = server.ask(port);
            assert_eq!(keys(&report), keys(&first));
            assert!(!report.environment.contains_key("FDSTORE"));
            assert_eq!(fs::metadata(host.path()).expect("no socket").ino(), inode);
            let took = "start_server: took back from the service manager: ";
            server.wait_for_log(took);
            let json = server.status_json().expect("no status");
            assert_eq!(json["listeners"][0]["inherited"], serde_json::Value::Null);
        }
        loads.iter().for_each(|load| load.wait_for_more(20));
        for load in loads {
            // What a killed worker had accepted is lost with it.
            let failures = load.stop().failures.into_iter();
            let lost = ["reset", "unexpected end", "Broken pipe"];
            let is_lost = |it: &String| lost.iter().any(|lost| it.contains(lost));
            let refused: Vec<String> = failures.filter(|it| !is_lost(it)).collect();
            assert_eq!(refused, [""; 0]);
        }
        host.manager.wait_for_names(&names);
        // An orderly end: the file is removed, and the socket that only it leads to.
        assert!(server.stop().success());
        assert!(!host.path().exists());
        host.manager.wait_for_names(&names[..5]);
        let entries = fs::read_dir(host.folder.path()).expect("no folder");
        let entries = entries.map(|it| it.expect("an entry").file_name());
        assert!(
            entries.into_iter().all(|it| it == "notify"),
            "something is left"
        );
    }
}

#[test]
fn what_is_no_longer_wanted_leaves_the_store_before_anything_is_bound() {
    if !stores() {
        return;
    }
    for host in Host::each() {
        let (kept, gone) = (ports::tcp(), ports::tcp());
        let server = host.setup().port(kept).port(gone);
        // Which makes them non-blocking.
        let server = server.option("--fd-env=nginx");
        let server = host.manager.launch(host.with_path(server)).start();
        server.wait_until_accepted();
        let all = [
            name_of("tcp", kept),
            name_of("tcp", gone),
            host.name_of_path(),
        ];
        host.manager.wait_for_names(&all);
        let before = fs::metadata(host.path()).expect("no socket");
        kill_all(&server);
        drop(server);
        // Another mode needs another socket; and what is bound by its name is the same listener.
        let setup = host.setup().option(format!("--port=localhost:{kept}"));
        let setup = setup.option(format!("--path={},mode=0700", host.path().display()));
        let server = host.manager.launch(setup).start();
        server.wait_until_accepted();
        let report = server.ask(kept);
        assert!(!report.socket(&format!("localhost:{kept}")).nonblocking);
        client::ask(&host.path());
        let after = fs::metadata(host.path()).expect("no socket");
        assert_eq!(after.permissions().mode() & 0o777, 0o700);
        assert_ne!(after.ino(), before.ino());
        let localhost = format!("start_server.tcp.localhost%3a{kept}");
        host.manager
            .wait_for_names(&[localhost, host.name_of_path()]);
        TcpListener::bind(("127.0.0.1", gone)).expect("the port is not free");
        assert!(host.manager.messages().iter().any(|it| it == "BARRIER=1"));
    }
}

#[test]
fn a_unix_socket_that_has_lost_its_path_is_made_anew() {
    if !stores() {
        return;
    }
    for host in Host::each() {
        let launch = || {
            let server = host.manager.launch(host.with_path(host.setup())).start();
            server.wait_until_accepted();
            server
        };
        let server = launch();
        host.manager.wait_for_names(&[host.name_of_path()]);
        kill_all(&server);
        drop(server);
        fs::remove_file(host.path()).expect("cannot remove");
        // Another socket, which nobody serves.
        client::leave_stale_socket(&host.path());
        let everybody = fs::Permissions::from_mode(0o777);
        fs::set_permissions(host.path(), everybody).expect("cannot set the mode");
        let server = launch();
        client::ask(&host.path());
        host.manager.wait_for_names(&[host.name_of_path()]);
        // So is one that a worker has shut down, and the store has the new one.
        let key = host.path().display().to_string();
        client::request(&host.path(), &format!("shutdown {key}")).expect("no answer");
        restart(&server);
        client::ask(&host.path());
        host.manager.wait_for_names(&[host.name_of_path()]);
        let inode = fs::metadata(host.path()).expect("no socket").ino();
        kill_all(&server);
        drop(server);
        let _server = launch();
        client::ask(&host.path());
        assert_eq!(fs::metadata(host.path()).expect("no socket").ino(), inode);
    }
}

#[test]
fn a_tcp_listener_that_a_worker_shuts_down_stays_in_the_store() {
    if !stores() {
        return;
    }
    let host = Host::ordinary(100);
    let port = ports::tcp();
    let server = host.manager.launch(host.setup().port(port)).start();
    server.wait_until_accepted();
    let names = [name_of("tcp", port)];
    host.manager.wait_for_names(&names);
    client::request(port, &format!("shutdown 127.0.0.1:{port}")).expect("no answer");
    host.manager.wait_for_names(&names);
    // It is killed before it has mended that.
    kill_all(&server);
    drop(server);
    let server = host.manager.launch(host.setup().port(port)).start();
    server.ask(port);
}

#[test]
fn sockets_of_a_socket_unit_come_beside_those_of_the_store() {
    if !stores() {
        return;
    }
    for host in Host::each() {
        let (port, own) = (ports::tcp(), ports::tcp());
        let unit = TcpListener::bind(("127.0.0.1", port)).expect("cannot bind");
        let launch = || {
            let copy = unit.try_clone().expect("cannot duplicate");
            let setup = host.setup().port(own).pass_on(copy);
            let server = host.manager.launch_after(setup, &["web"]).start();
            server.wait_until_accepted();
            server
        };
        let server = launch();
        let keys = |server: &Server| -> Vec<String> {
            let listeners = server.ask(port).listeners.into_iter();
            listeners.map(|it| it.name).collect()
        };
        let expected = [own, port].map(|port| format!("127.0.0.1:{port}"));
        assert_eq!(keys(&server), expected);
        // The unit has its own.
        host.manager.wait_for_names(&[name_of("tcp", own)]);
        kill_all(&server);
        drop(server);
        let server = launch();
        assert_eq!(keys(&server), expected);
        let json = server.status_json().expect("no status");
        let inherited = json["listeners"].as_array().expect("a list").iter();
        let inherited: Vec<bool> = inherited.map(|it| it["inherited"] == true).collect();
        assert_eq!(inherited, [false, true]);
    }
}

#[test]
fn a_store_that_is_too_small_is_said_once() {
    if !stores() {
        return;
    }
    let host = Host::ordinary(1);
    let all = [ports::tcp(), ports::tcp(), ports::tcp()];
    let setup = all.into_iter().fold(host.setup(), Setup::port);
    let server = host.manager.launch(setup).start();
    server.ask(all[2]);
    let line = "start_server: the service manager keeps 1 listeners and no more: raise FileDescriptorStoreMax= to keep all if \
                start_server is killed";
    server.wait_for_log(line);
    assert_eq!(server.count_in_log(line), 1);
    host.manager.wait_for_names(&[name_of("tcp", all[0])]);
}

#[test]
fn what_cannot_be_served_is_removed_or_refused() {
    if !stores() {
        return;
    }
    for host in Host::each() {
        let port = ports::tcp();
        let opened = || File::open("/etc/passwd").expect("cannot open");
        // What has our names, and is not what we have stored.
        host.manager.plant(&name_of("tcp", port), opened());
        host.manager.plant("start_server.unix.", opened());
        host.manager.plant(
            "start_server.tcp.0.0",
            TcpListener::bind("127.0.0.1:0").expect("bind"),
        );
        let mut server = host.manager.launch(host.setup().port(port)).start();
        server.wait_until_accepted();
        server.ask(port);
        host.manager.wait_for_names(&[name_of("tcp", port)]);
        assert!(server.stop().success());
        // Another program's.
        host.manager.plant("session-keys", opened());
        let setup = host.manager.launch(host.setup().port(port));
        let line = "start_server: cannot take over descriptor 3 (session-keys) of LISTEN_FDS: it is a regular file, neither a \
                    socket nor a FIFO";
        let hint = "hint: correct what the launcher passes on (sd_listen_fds(3)), or unset LISTEN_PID to start without its \
                    sockets";
        assert_refused(setup, FAILED, &[line, hint]);
        let both = [name_of("tcp", port), "session-keys".to_owned()];
        host.manager.wait_for_names(&both);
    }
}

#[test]
fn a_manager_that_does_not_read_holds_up_no_start_for_long() {
    if !stores() {
        return;
    }
    let folder = ordinary_folder();
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).expect("cannot bind");
    let everybody = fs::Permissions::from_mode(0o777);
    fs::set_permissions(&path, everybody).expect("cannot set the mode");
    // More than its queue holds.
    let limit = fs::read_to_string("/proc/sys/net/unix/max_dgram_qlen").expect("no limit");
    let limit: usize = limit.trim().parse().expect("a number");
    let all: Vec<u16> = (0..limit.min(600) + 5).map(|_| ports::tcp()).collect();
    let setup = all.iter().copied().fold(Server::setup(), Setup::port);
    let server = setup.env("NOTIFY_SOCKET", &path).start();
    server.ask(all[0]);
    server.wait_for_log("start_server: cannot store ");
    assert_eq!(server.count_in_log("start_server: cannot store "), 1);
    drop(socket);
}

#[test]
fn nobody_gets_the_sockets_who_should_not() {
    if !stores() {
        return;
    }
    // A manager that would have told has no store.
    let host = Host::ordinary(100);
    let port = ports::tcp();
    let mut server = host
        .setup()
        .port(port)
        .env("NOTIFY_SOCKET", host.folder.path().join("notify"))
        .env("MEMORY_PRESSURE_WATCH", "/dev/null")
        .start();
    server.ask(port);
    assert!(server.stop().success());
    assert_eq!(host.manager.names(), [""; 0]);
    let is_ours = |it: &String| it.contains("FDSTORE");
    assert!(!host.manager.messages().iter().any(is_ours));
    if !needs_root() {
        return;
    }
    // A socket that the user, or anybody, may have made takes none from root.
    let setup = host.setup().as_root().option("--user=nobody").port(port);
    let mut server = host.manager.launch(setup).start();
    server.ask(port);
    assert!(server.stop().success());
    assert!(!host.manager.messages().iter().any(is_ours));
    // Nor does root serve what a third user has stored.
    let run = RootFolder::new();
    let host = Host {
        manager: Manager::new(&run.path().join("notify"), 100),
        folder: ordinary_folder(),
        is_root: true,
        _run: Some(run),
    };
    let of_another = std::thread::spawn(move || {
        nix::unistd::setfsuid(nix::unistd::Uid::from_raw(4242));
        TcpListener::bind(("127.0.0.1", port)).expect("cannot bind")
    });
    let of_another = of_another.join().expect("a thread");
    host.manager.plant(&name_of("tcp", port), of_another);
    let server = host.manager.launch(host.setup().port(port)).start();
    assert_eq!(server.ask(port).status.uids, [NOBODY; 4]);
    assert!(!server.log().contains("took back"), "{}", server.log());
    TcpStream::connect(("127.0.0.1", port)).expect("it is not served");
}

#[test]
fn what_a_worker_has_shut_down_for_good_is_made_anew() {
    if !stores() {
        return;
    }
    let host = Host::ordinary(100);
    let (port, udp) = (ports::tcp(), ports::udp());
    let launch = || {
        let setup = host.setup().port(port);
        let setup = setup.option(format!("--port=127.0.0.1:u{udp}"));
        let server = host.manager.launch(host.with_path(setup)).start();
        server.wait_until_accepted();
        server
    };
    let server = launch();
    let path = host.path().display().to_string();
    for key in [format!("127.0.0.1:{udp}"), path] {
        client::request(port, &format!("shutdown {key}")).expect("no answer");
    }
    kill_all(&server);
    drop(server);
    let server = launch();
    server.ask(client::udp(udp));
    server.ask(&host.path());
    server.wait_for_log(&format!(
        "start_server: took back from the service manager: 127.0.0.1:{port}"
    ));
    let names = [
        name_of("tcp", port),
        name_of("udp", udp),
        host.name_of_path(),
    ];
    host.manager.wait_for_names(&names);
}

#[test]
fn lanes_survive_a_kill_with_what_waits_in_them() {
    if !stores() {
        return;
    }
    let host = Host::ordinary(100);
    let port = ports::tcp();
    let name = name_of("tcp", port);
    let name_of_lane = |lane: usize| format!("{name},{lane}");
    let launch = |options: &[&str]| {
        let setup = host.setup().port(port).options(options.iter().copied());
        let server = host.manager.launch(setup).start();
        server.wait_until_accepted();
        server
    };
    let server = launch(&["--switch"]);
    restart(&server);
    host.manager
        .wait_for_names(&[name.clone(), name_of_lane(1)]);
    kill_all(&server);
    // It waits in the lane of the second generation.
    let question = std::thread::spawn(move || client::try_ask(port));
    wait::until("it is connected", String::new, || {
        let table = fs::read_to_string("/proc/net/tcp").expect("cannot read it");
        table.contains(&format!(":{port:04X} 01 ")).then_some(())
    });
    drop(server);
    let server = launch(&["--switch", "--lanes=3"]);
    let answer = question.join().expect("it panicked");
    assert_eq!(
        answer.expect("it is lost").generation,
        Some(2),
        "{}",
        server.log()
    );
    let names = [name.clone(), name_of_lane(1), name_of_lane(2)];
    host.manager.wait_for_names(&names);
    for generation in 3..=5 {
        restart(&server);
        let asked = |_| server.ask(port).generation == Some(generation);
        assert!((0..20).all(asked), "{}", server.log());
    }
    kill_all(&server);
    drop(server);
    let server = launch(&[]);
    host.manager.wait_for_names(&[name]);
    let asked = |_| server.ask(port).generation == Some(1);
    assert!((0..20).all(asked), "{}", server.log());
}

#[test]
fn a_port_that_another_user_has_stored_is_made_anew() {
    if !stores() || !needs_root() {
        return;
    }
    let host = Host::ordinary(100);
    let port = ports::tcp();
    let name = name_of("tcp", port);
    let of_root = TcpListener::bind(("127.0.0.1", port)).expect("bind");
    host.manager.plant(&name, of_root);
    let server = host.manager.launch(host.setup().port(port)).start();
    server.wait_until_accepted();
    server.ask(port);
    host.manager.wait_for_names(&[name]);
    let table = fs::read_to_string("/proc/net/tcp").expect("cannot read it");
    let listening = format!("0100007F:{port:04X} 00000000:0000 0A ");
    let line = table.lines().find(|line| line.contains(&listening));
    let uid = line.and_then(|line| line.split_whitespace().nth(7));
    assert_eq!(uid, Some(NOBODY.to_string().as_str()), "{table}");
}

#[test]
fn what_only_has_the_name_of_a_lane_is_none() {
    if !stores() {
        return;
    }
    let host = Host::ordinary(100);
    let port = ports::tcp();
    let name = name_of("tcp", port);
    let lane = format!("{name},1");
    let launch = |options: &[&str]| {
        let setup = host.setup().port(port).options(options.iter().copied());
        let server = host.manager.launch(setup).start();
        server.wait_until_accepted();
        server
    };
    let server = launch(&[]);
    host.manager.wait_for_names(std::slice::from_ref(&name));
    kill_all(&server);
    drop(server);
    let elsewhere = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = elsewhere.local_addr().expect("no address");
    host.manager.plant(&lane, elsewhere);
    let server = launch(&["--switch=required"]);
    host.manager.wait_for_names(&[name, lane]);
    for generation in 2..=3 {
        restart(&server);
        let asked = |_| server.ask(port).generation == Some(generation);
        assert!((0..20).all(asked), "{}", server.log());
    }
    wait::until("what was planted is closed", String::new, || {
        TcpListener::bind(address).ok()
    });
}
