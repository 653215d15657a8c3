//! `--rolling`: a restart that replaces the workers one after the other.

use std::fs;

use e2e::journal::Happened;
use e2e::{Server, Setup, proc};
use nix::unistd::Pid;

use crate::bad_input::assert_usage;
use crate::commands::run;
use crate::many_workers::{
    all_of, fails, places, restart, serving, status, succeeds, wait_for_whole, worker_in,
};
use crate::readiness::{Gate, gated_by, is_ours, scripted, with_files};

const WORKERS: usize = 4;

fn rolling() -> Setup {
    with_files().options(["--rolling", "--ready=notify"])
}

/// A server whose workers with a number from 1 on fail while there is a file `broken`.
fn breakable() -> (Server, u16) {
    let before = "[ $SERVER_STARTER_WORKER = 0 ] || [ ! -e broken ] || exit 1";
    serving(scripted(rolling(), before, "--notify"), WORKERS)
}

fn break_it(server: &Server) {
    fs::write(server.folder().join("broken"), "").expect("cannot break it");
}

fn mend_it(server: &Server) {
    fs::remove_file(server.folder().join("broken")).expect("cannot mend it");
}

/// A server whose worker 1 waits at a gate in the second generation.
fn half_way() -> (Server, u16, Gate) {
    let before = "[ $SERVER_STARTER_GENERATION != 2 ] || [ $SERVER_STARTER_WORKER != 1 ]";
    let (setup, gate) = gated_by(rolling(), before, "--notify");
    let (server, port) = serving(setup, WORKERS);
    (server, port, gate)
}

/// Generation 2 serves in the first place alone, and starts in the second.
#[track_caller]
fn wait_until_half_way(server: &Server) {
    server.wait_until("one is replaced and the next one starts", |server| {
        places(server) == [(1, 1), (1, 2), (1, 3), (2, 0), (2, 1)]
    });
}

#[test]
fn at_no_time_fewer_than_all_serve_or_more_than_one_too_many_live() {
    if !is_ours() {
        return;
    }
    // A worker is ready when the journal says so, so that the order of its entries is that of the events.
    let ready = "--ready=exec:test $(grep -c \"^$SERVER_STARTER_GENERATION .* serves\" journal) \
                 -gt $SERVER_STARTER_WORKER";
    let setup = with_files().options(["--rolling", ready]);
    let (server, _) = serving(scripted(setup, ":", ""), WORKERS);
    let old: Vec<Pid> = (0..WORKERS)
        .map(|place| worker_in(&server, 1, place).pid)
        .collect();
    let client = restart(&server);
    server.wait_until("the second generation serves alone", |server| {
        let mut workers = server.workers();
        // One look at /proc takes its time: those that are left after it lived all at once.
        workers.retain(|one| proc::alive(one.pid));
        // The command that asks for readiness is a child with the same environment.
        let started = server.started();
        workers.retain(|one| started.contains(one));
        assert!(workers.len() <= WORKERS + 1, "{workers:?}");
        places(server) == all_of(2, WORKERS)
    });
    succeeds(client);
    let mut new = 0;
    let mut told = Vec::new();
    for entry in server.journal() {
        match entry.happened {
            Happened::Served if entry.generation == 2 => new += 1,
            Happened::Caught(_) => {
                told.push(Pid::from_raw(entry.pid));
                assert!(new >= told.len(), "{} were told for {new}", told.len());
            }
            _ => {}
        }
    }
    assert_eq!(told, old, "in the order of their numbers");
}

#[test]
fn two_at_a_time_are_replaced_where_there_is_room() {
    if !is_ours() {
        return;
    }
    let setup = with_files().options(["--rolling=2", "--start-parallel=2", "--ready=notify"]);
    let before = "[ $SERVER_STARTER_GENERATION = 1 ] || until [ -e go ]; do sleep 0.01; done";
    let (server, _) = serving(scripted(setup, before, "--notify"), WORKERS);
    let client = restart(&server);
    server.wait_until("two more live", |server| {
        let expected = [(1, 0), (1, 1), (1, 2), (1, 3), (2, 0), (2, 1)];
        places(server) == expected
    });
    fs::write(server.folder().join("go"), "").expect("cannot write");
    succeeds(client);
    wait_for_whole(&server, 2, WORKERS);
}

#[test]
fn one_that_fails_stops_it_and_the_next_restart_replaces_all() {
    if !is_ours() {
        return;
    }
    let (server, _) = breakable();
    break_it(&server);
    let said = fails(restart(&server));
    let stopped = "1 of 4 workers are of generation 2";
    assert!(said.contains(stopped), "{said}");
    let mixed = [(1, 1), (1, 2), (1, 3), (2, 0)];
    server.wait_until("both serve", |server| places(server) == mixed);
    let line = server.wait_for_log("start_server: the rolling restart stops: ");
    assert!(line.contains(stopped), "{line}");
    let said = status(&server);
    assert!(said.contains(stopped), "{said}");
    mend_it(&server);
    succeeds(restart(&server));
    wait_for_whole(&server, 3, WORKERS);
    let said = status(&server);
    assert!(!said.contains(stopped), "{said}");
}

#[test]
fn the_first_one_that_fails_changes_nothing() {
    if !is_ours() {
        return;
    }
    let before = "[ $SERVER_STARTER_GENERATION = 1 ] || exit 1";
    let (server, _) = serving(scripted(rolling(), before, "--notify"), WORKERS);
    let old = server.workers();
    let said = fails(restart(&server));
    assert!(said.contains("the old one keeps serving"), "{said}");
    let hint = "the restart is not tried again by itself";
    assert!(said.contains(hint), "{said}");
    server.wait_until("the old ones are alone", |server| server.workers() == old);
}

#[test]
fn a_rollback_in_the_middle_brings_the_old_generation_back_everywhere() {
    if !is_ours() {
        return;
    }
    let (server, _, _gate) = half_way();
    let mut waiting = restart(&server);
    wait_until_half_way(&server);
    let said = succeeds(run(&server, &["--rollback", "--pid-file=pid"]));
    assert_eq!(waiting.wait(), 1, "{}", waiting.said());
    assert!(said.contains("(generation 1 again) serves"), "{said}");
    wait_for_whole(&server, 3, WORKERS);
}

#[test]
fn an_abort_in_the_middle_stops_it_there() {
    if !is_ours() {
        return;
    }
    let (server, _, _gate) = half_way();
    let mut waiting = restart(&server);
    wait_until_half_way(&server);
    let said = succeeds(run(&server, &["--abort", "--pid-file=pid"]));
    assert!(said.contains("generation 1"), "{said}");
    assert_eq!(waiting.wait(), 1, "{}", waiting.said());
    let mixed = [(1, 1), (1, 2), (1, 3), (2, 0)];
    server.wait_until("both serve", |server| places(server) == mixed);
    let said = status(&server);
    assert!(
        said.contains("1 of 4 workers are of generation 2"),
        "{said}"
    );
    succeeds(restart(&server));
    wait_for_whole(&server, 3, WORKERS);
}

#[test]
fn a_restart_that_stops_first_cannot_roll() {
    if !is_ours() {
        return;
    }
    let setup = Server::setup().options(["--rolling", "--replace=stop-first"]);
    let line = "start_server: cannot use --rolling: --replace=stop-first stops all old servers before it starts a new one";
    assert_usage(setup, &[line]);
}
