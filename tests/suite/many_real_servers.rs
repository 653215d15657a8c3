//! Servers that others wrote, several workers of each side by side: all are replaced under load, at once and one by one.

use e2e::skip::needs_program;
use e2e::{Server, ports, wait};

use crate::many_workers::{number_or, restart, succeeds, tell};
use crate::real_servers::{
    Load, NODE, PUMA, Recipe, UVICORN_THAT_WAITS, accepted, ask, can_run, cook, processes_in,
};

const WORKERS: usize = 4;

/// Waits until so many workers of this generation are accepted, and no other.
#[track_caller]
fn wait_for_all(server: &Server, generation: u32) {
    server.wait_until(&format!("all of {generation} are accepted"), |server| {
        let accepted = accepted(server);
        let is_new = accepted.iter().all(|one| one.generation == generation);
        is_new && accepted.len() == WORKERS
    });
}

/// With more rounds and clients as the environment says: see `many_workers`.
fn loses_nothing(recipe: &Recipe) {
    if !can_run(recipe) {
        return;
    }
    for rolling in [false, true] {
        let port = ports::tcp();
        let setup = cook(recipe, Server::setup(), port).interval("0.3");
        let setup = setup.pid_file().option(format!("--workers={WORKERS}"));
        let mut server = setup.options(rolling.then_some("--rolling")).start();
        wait_for_all(&server, 1);
        server.wait_until("it answers", |_| ask(port).is_ok());
        let rounds = number_or("E2E_ROUNDS", 2);
        let clients = number_or("E2E_CLIENTS", 8);
        let load = Load::start(port, clients.try_into().expect("a number"));
        for _ in 0..rounds {
            load.wait_for_more(&server, 50);
            succeeds(restart(&server));
        }
        wait_for_all(&server, rounds + 1);
        load.wait_for_more(&server, 50);
        let answers = load.successes();
        let failures = load.stop();
        tell(&format!(
            "{}: rolling: {rolling}, restarts: {rounds}, clients: {clients}, answers: {answers}, failures: {}",
            recipe.program.join(" "),
            failures.len()
        ));
        assert_eq!(failures, [""; 0], "{}", server.log());
        assert!(server.stop().success());
        let evidence = || format!("{:?}", processes_in(server.folder()));
        wait::until("no process is left", evidence, || {
            processes_in(server.folder()).is_empty().then_some(())
        });
    }
}

#[test]
fn four_of_node_lose_nothing() {
    loses_nothing(&Recipe {
        options: &["--preset=node"],
        ..NODE
    });
}

#[test]
fn four_of_puma_lose_nothing() {
    loses_nothing(&Recipe {
        options: &["--preset=puma"],
        ..PUMA
    });
}

#[test]
fn four_of_uvicorn_that_waits_lose_nothing() {
    // It is a program of its own, for Python.
    if needs_program("uvicorn") {
        loses_nothing(&Recipe {
            options: &["--preset=uvicorn"],
            ..UVICORN_THAT_WAITS
        });
    }
}
