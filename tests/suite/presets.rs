//! `--preset=NAME`, with the real servers: each restarts under load without a lost request by its preset alone, and loses
//! one where the preset differs from the defaults and these are used.

use std::{fs, thread};

use e2e::skip::{needs_program, original_differs};
use e2e::{Server, Worker, ports, proc};
use nix::sys::signal::Signal;

use crate::real_servers::{
    GUNICORN, H2O, Held, NGINX, NODE, PUMA, Recipe, Request, STARLET, STARMAN, UNICORN, UVICORN,
    UVICORN_THAT_WAITS, accepted, ask, can_run, cook, needs_plack_server,
    restarts_without_a_failed_request,
};

/// Restarts it by its preset under load.
fn loses_nothing(recipe: &Recipe) {
    if can_run(recipe) {
        restarts_without_a_failed_request(recipe, Server::setup());
    }
}

/// A request that has begun is lost if the old generation gets TERM, the default.
fn loses_by_the_default(recipe: &Recipe) {
    if !can_run(recipe) {
        return;
    }
    let port = ports::tcp();
    let setup = cook(recipe, Server::setup(), port);
    let server = setup.option("--signal-on-hup=TERM").start();
    let old = first(&server);
    let request = Request::begin(port, Held::Line).expect("cannot begin a request");
    // Connections are accepted in their order: when a later one is answered, this one was accepted.
    ask(port).expect("no answer");
    replace(&server, old);
    let answer = request.finish();
    assert!(answer.is_err(), "{answer:?}");
}

/// Restarts it, and waits for the end of the old worker.
fn replace(server: &Server, old: Worker) {
    server.signal(Signal::SIGHUP);
    server.wait_until(
        "the new generation alone is accepted",
        |server| matches!(accepted(server)[..], [new] if new > old),
    );
}

fn first(server: &Server) -> Worker {
    server.wait_for("the first generation is accepted", |server| {
        accepted(server).first().copied()
    })
}

#[test]
fn unicorn_loses_nothing_by_its_preset() {
    loses_nothing(&Recipe {
        options: &["--preset=unicorn"],
        ..UNICORN
    });
}

#[test]
fn puma_loses_nothing_by_its_preset() {
    loses_nothing(&Recipe {
        options: &["--preset=puma"],
        ..PUMA
    });
}

#[test]
fn nginx_loses_nothing_by_its_preset() {
    loses_nothing(&Recipe {
        options: &["--preset=nginx"],
        ..NGINX
    });
}

#[test]
fn gunicorn_loses_nothing_by_its_preset() {
    loses_nothing(&Recipe {
        options: &["--preset=gunicorn"],
        ..GUNICORN
    });
}

#[test]
fn h2o_loses_nothing_by_its_preset() {
    loses_nothing(&Recipe {
        options: &["--preset=h2o"],
        ..H2O
    });
}

#[test]
fn node_loses_nothing_by_its_preset() {
    loses_nothing(&Recipe {
        options: &["--preset=node"],
        ..NODE
    });
}

#[test]
fn starlet_loses_nothing_by_its_preset() {
    // plackup runs other servers too.
    if needs_plack_server("Starlet") {
        loses_nothing(&Recipe {
            options: &["--preset=starlet"],
            ..STARLET
        });
    }
}

/// Even by QUIT it drops a connection that it has only just accepted, so it is restarted between requests.
#[test]
fn starman_is_restarted_by_its_preset() {
    loses_nothing(&Recipe {
        options: &["--preset=starman"],
        ..STARMAN
    });
}

#[test]
fn starman_finishes_a_response_by_its_preset_and_not_by_the_default() {
    let recipe = Recipe {
        program: &["starman", "--workers=2", "slow.psgi"],
        files: &["slow.psgi"],
        options: &["--preset=starman"],
        ..STARMAN
    };
    if !can_run(&recipe) {
        return;
    }
    for (besides, is_answered) in [(None, true), (Some("--signal-on-hup=TERM"), false)] {
        let port = ports::tcp();
        let setup = cook(&recipe, Server::setup(), port);
        let server = setup.options(besides).start();
        let old = first(&server);
        let request = thread::spawn(move || ask(port));
        let folder = server.folder();
        server.wait_until("the request has begun", |_| folder.join("begun").exists());
        server.signal(Signal::SIGHUP);
        match is_answered {
            true => {
                server.wait_for_log("sending QUIT to old workers");
                let new = |server: &Server| accepted(server).iter().any(|one| *one > old);
                server.wait_until("the new generation is accepted", new);
            }
            false => server.wait_until("the old generation is gone", |server| {
                !accepted(server).contains(&old)
            }),
        }
        fs::write(folder.join("finish"), "").expect("cannot create the file");
        let answer = request.join().expect("the client panicked");
        assert_eq!(answer.is_ok(), is_answered, "{answer:?}");
    }
}

/// No load: when it is told to stop it drops the connections of which it has not read a request yet.
#[test]
fn hypercorn_answers_by_its_preset_what_it_has_begun_to_read() {
    loses_nothing(&Recipe {
        program: &["hypercorn", "--bind=fd://3", "app:asgi"],
        files: &["app.py"],
        options: &["--preset=hypercorn"],
        clients: 0,
        held: Some(Held::Head),
    });
}

#[test]
fn uvicorn_answers_by_its_preset_what_it_has_begun_to_read() {
    loses_nothing(&Recipe {
        options: &["--preset=uvicorn"],
        ..UVICORN
    });
}

#[test]
fn uvicorn_that_waits_loses_nothing_by_its_preset() {
    // It is a program of its own, for Python.
    if needs_program("uvicorn") {
        loses_nothing(&Recipe {
            options: &["--preset=uvicorn"],
            ..UVICORN_THAT_WAITS
        });
    }
}

#[test]
fn a_plain_server_gets_the_variables_of_both_kinds_by_its_preset() {
    if original_differs("it has no --preset") {
        return;
    }
    let setup = Server::setup().port(ports::tcp());
    let server = setup.option("--preset=plain").start();
    let worker = server.wait_for_service(1);
    let variables = proc::environment(worker.pid);
    assert_eq!(variables["LISTEN_FDS"], "1");
    assert_eq!(variables["LISTEN_PID"], worker.pid.to_string());
    assert!(variables.contains_key("SERVER_STARTER_PORT"));
}

#[test]
fn unicorn_loses_what_has_begun_by_the_default_signal() {
    loses_by_the_default(&Recipe {
        options: &["--preset=unicorn"],
        ..UNICORN
    });
}

#[test]
fn nginx_loses_what_has_begun_by_the_default_signal() {
    loses_by_the_default(&Recipe {
        options: &["--preset=nginx"],
        ..NGINX
    });
}
