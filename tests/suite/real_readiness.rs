//! Servers that others wrote prove with `--ready` that they serve, under load: versions that hang or are unwell are
//! refused, and the next good one replaces the old. None has a line of code for it: they serve every listener they get.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use e2e::{Server, Worker, ports, wait};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::commands::run;
use crate::readiness::is_ours;
use crate::real_servers::{
    GUNICORN, Load, NGINX, NODE, PUMA, Recipe, STARLET, UNICORN, accepted, can_run, cook,
    needs_plack_server, processes_in, wait_until_it_serves_alone,
};

/// In seconds. A good version must be ready by then, however busy the machine is.
const START_TIMEOUT: &str = "6";

/// What nginx hangs on: whoever opens it for reading waits for a writer.
const FIFO: &str = "fifo";

/// A server and the versions of its application, or of its configuration.
struct Case {
    recipe: Recipe,
    /// The one of its files that makes a version.
    file: &'static str,
    /// The version that never gets through its start.
    hangs: Edit,
    /// The version that answers 500 to `/health`. What it answers to clients is good.
    unwell: Edit,
}

/// What is replaced in the file, and by what.
type Edit = (&'static str, &'static str);

/// Without `preload_app` the workers of a version that hangs do not hear of the end, and a master that is killed leaves
/// them behind.
const UNICORN_CASE: Case = Case {
    recipe: Recipe {
        program: &["unicorn", "-c", "unicorn_preloads.rb", "config.ru"],
        files: &["unicorn_preloads.rb", "config.ru"],
        ..UNICORN
    },
    file: "config.ru",
    hangs: RACK_HANGS,
    unwell: RACK_UNWELL,
};

const RACK_HANGS: Edit = ("run lambda", "sleep 600\nrun lambda");

const RACK_UNWELL: Edit = (
    "run lambda",
    "map('/health') { run lambda { |_env| [500, {}, []] } }\nrun lambda",
);

/// With `-b` it would serve that address alone.
const PUMA_CASE: Case = Case {
    recipe: Recipe {
        program: &[
            "puma",
            "-C",
            "puma.rb",
            "--bind-to-activated-sockets=only",
            "config.ru",
        ],
        ..PUMA
    },
    file: "config.ru",
    hangs: RACK_HANGS,
    unwell: RACK_UNWELL,
};

/// It finds the inherited listeners by their addresses, so they are written to its configuration before it starts.
const NGINX_CASE: Case = Case {
    recipe: Recipe {
        program: &[
            "/bin/sh",
            "-c",
            r#"echo "$SERVER_STARTER_PORT" | tr ";" "\n" | sed "s/\(.*\)=.*/listen \1;/" >listen.conf
            exec nginx -p . -c nginx.conf"#,
        ],
        files: &["nginx.conf"],
        ..NGINX
    },
    file: "nginx.conf",
    hangs: ("daemon off;", "daemon off; include fifo;"),
    unwell: (
        "return 200",
        "if ($uri = /health) { return 500; } return 200",
    ),
};

/// A master that is told to stop kills the children that hang, by itself only after 30 seconds. A failed start is killed
/// after 10, and they would be left.
const GUNICORN_CASE: Case = Case {
    recipe: Recipe {
        program: &[
            "gunicorn",
            "--workers=2",
            "--graceful-timeout=5",
            "app:wsgi",
        ],
        ..GUNICORN
    },
    file: "app.py",
    hangs: ("import os", "import os, time; time.sleep(600)"),
    unwell: (
        "\"200 OK\"",
        "'500 Internal Server Error' if environ['PATH_INFO'] == '/health' else '200 OK'",
    ),
};

const NODE_CASE: Case = Case {
    recipe: NODE,
    file: "server.js",
    hangs: (
        "'use strict';",
        "Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0);",
    ),
    unwell: (
        "response.end(",
        "response.writeHead(request.url === '/health' ? 500 : 200).end(",
    ),
};

const STARLET_CASE: Case = Case {
    recipe: STARLET,
    file: "app.psgi",
    hangs: ("use strict;", "sleep 600;"),
    unwell: ("[200,", "[$_[0]{PATH_INFO} eq '/health' ? 500 : 200,"),
};

/// A case that runs under load.
struct Deployed {
    server: Server,
    port: u16,
    file: PathBuf,
    good: String,
    load: Load,
    /// What has served first.
    old: Worker,
}

impl Deployed {
    fn start(case: &Case, ready: &str) -> Deployed {
        let port = ports::tcp();
        let setup = cook(&case.recipe, Server::setup(), port)
            .pid_file()
            // Otherwise some log every request.
            .env("RACK_ENV", "production")
            .env("PLACK_ENV", "production")
            .options([
                format!("--ready={ready}"),
                format!("--start-timeout={START_TIMEOUT}"),
                // Otherwise a version that was refused is tried again and again.
                "--start-limit=1".to_owned(),
            ]);
        let file = setup.folder().join(case.file);
        let good = fs::read_to_string(&file).expect("cannot read the application");
        let fifo = setup.folder().join(FIFO);
        mkfifo(&fifo, Mode::from_bits_truncate(0o644)).expect("cannot make a FIFO");
        let server = setup.start();
        let old = server.wait_for("the first generation is accepted", |server| {
            accepted(server).first().copied()
        });
        let load = Load::start(port, case.recipe.clients);
        load.wait_for_more(&server, 50);
        Deployed {
            server,
            port,
            file,
            good,
            load,
            old,
        }
    }

    fn deploy(&self, (good, bad): Edit) {
        assert!(self.good.contains(good), "{}", self.good);
        fs::write(&self.file, self.good.replacen(good, bad, 1)).expect("cannot deploy");
    }

    /// Restarts it with a version that must be refused for this reason, after which the old one serves alone.
    #[track_caller]
    fn refuses(&self, bad: Edit, known: &str) {
        self.deploy(bad);
        let mut client = run(&self.server, &["--restart", "--pid-file=pid"]);
        self.server
            .wait_until("a new version is tried", |server| workers(server) > Some(1));
        self.load.wait_for_more(&self.server, 50);
        let (code, said, log) = (client.wait(), client.said(), self.server.log());
        assert_eq!(code, 1, "{said}\n{log}");
        let reason = format!("was not ready within {START_TIMEOUT} secs: {known}; the old one");
        assert!(said.contains(&reason), "{reason}: {said}\n{log}");
        self.server.wait_until("the new version is gone", |server| {
            workers(server) == Some(1)
        });
        assert_eq!(accepted(&self.server), [self.old]);
        wait_until_it_serves_alone(&self.server, self.old, self.port);
        self.load.wait_for_more(&self.server, 50);
    }

    /// Nobody but the old version has answered so far.
    #[track_caller]
    fn only_the_old_has_answered(&self) {
        let mut answerers = self.load.answerers();
        answerers.retain(|answerer| !answerer.belongs_to(self.old));
        assert_eq!(answerers, BTreeSet::new(), "{}", self.server.log());
    }

    /// Deploys the good version again, and ends. No request has failed in all.
    #[track_caller]
    fn commits(mut self) {
        fs::write(&self.file, &self.good).expect("cannot deploy");
        let mut client = run(&self.server, &["--restart", "--pid-file=pid"]);
        assert_eq!(client.wait(), 0, "{}\n{}", client.said(), self.server.log());
        let new = self.server.wait_for(
            "the new one is alone",
            |server| match accepted(server)[..] {
                [new] if new > self.old => Some(new),
                _ => None,
            },
        );
        wait_until_it_serves_alone(&self.server, new, self.port);
        self.load.wait_for_more(&self.server, 50);
        assert_eq!(self.load.stop(), [""; 0], "{}", self.server.log());

        assert!(self.server.stop().success());
        let folder = self.server.folder();
        let left = || processes_in(folder);
        wait::until(
            "no process is left",
            || format!("{:?}", left()),
            || left().is_empty().then_some(()),
        );
    }
}

/// How many workers there are, the one that is tried included.
fn workers(server: &Server) -> Option<usize> {
    let json = server.status_json()?;
    let generations = json["generations"].as_array()?.iter();
    let workers = generations.filter_map(|one| one["workers"].as_array());
    Some(workers.map(Vec::len).sum())
}

/// What hangs is refused, and nobody notices.
fn deploys_with_accept(case: &Case) {
    if !is_ours() || !can_run(&case.recipe) {
        return;
    }
    let deployed = Deployed::start(case, "accept");
    deployed.refuses(case.hangs, "it has not accepted a connection");
    deployed.only_the_old_has_answered();
    deployed.commits();
}

/// What hangs is refused, and nobody notices. What is unwell is refused; it answers clients until then, as any worker
/// does that has the listeners.
fn deploys_with_http(case: &Case) {
    if !is_ours() || !can_run(&case.recipe) {
        return;
    }
    let deployed = Deployed::start(case, "http:/health");
    let asked = "GET /health on the new generation";
    deployed.refuses(case.hangs, &format!("{asked}: no answer within a second"));
    deployed.only_the_old_has_answered();
    deployed.refuses(case.unwell, &format!("{asked}: 500 Internal Server Error"));
    deployed.commits();
}

#[test]
fn unicorn_is_asked_over_http_and_no_request_fails() {
    deploys_with_http(&UNICORN_CASE);
}

#[test]
fn puma_is_asked_over_http_and_no_request_fails() {
    deploys_with_http(&PUMA_CASE);
}

#[test]
fn nginx_is_asked_over_http_and_no_request_fails() {
    deploys_with_http(&NGINX_CASE);
}

#[test]
fn gunicorn_is_asked_over_http_and_no_request_fails() {
    deploys_with_http(&GUNICORN_CASE);
}

#[test]
fn node_is_asked_over_http_and_no_request_fails() {
    deploys_with_http(&NODE_CASE);
}

#[test]
fn starlet_is_asked_over_http_and_no_request_fails() {
    // plackup runs other servers too.
    if needs_plack_server("Starlet") {
        deploys_with_http(&STARLET_CASE);
    }
}

#[test]
fn unicorn_proves_itself_by_accepting_and_no_request_fails() {
    deploys_with_accept(&UNICORN_CASE);
}

#[test]
fn puma_proves_itself_by_accepting_and_no_request_fails() {
    deploys_with_accept(&PUMA_CASE);
}

#[test]
fn nginx_proves_itself_by_accepting_and_no_request_fails() {
    deploys_with_accept(&NGINX_CASE);
}

#[test]
fn gunicorn_proves_itself_by_accepting_and_no_request_fails() {
    deploys_with_accept(&GUNICORN_CASE);
}

#[test]
fn node_proves_itself_by_accepting_and_no_request_fails() {
    deploys_with_accept(&NODE_CASE);
}

#[test]
fn starlet_proves_itself_by_accepting_and_no_request_fails() {
    if needs_plack_server("Starlet") {
        deploys_with_accept(&STARLET_CASE);
    }
}
