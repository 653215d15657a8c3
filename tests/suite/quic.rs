//! `--udp-flows=quic:OFFSET`: connections of QUIC stay with the worker that has accepted them, over restarts.

use std::fs;
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use e2e::skip::original_differs;
use e2e::{Server, Setup, ports, programs, wait};
use nix::sys::signal::{Signal, kill};
use quinn::rustls::RootCertStore;
use quinn::rustls::pki_types::CertificateDer;
use quinn::rustls::pki_types::pem::PemObject;
use quinn::{ClientConfig, Connection, ConnectionError, Endpoint, ReadToEndError, TransportConfig};
use tokio::runtime::Runtime;

/// Valid for any time, for `localhost`.
const CERTIFICATE: &str = include_str!("quic/certificate.pem");
const KEY: &str = include_str!("quic/key.pem");

/// How many connections there are all the time.
const CLIENTS: u32 = 200;

/// Whoever waits this long for an answer gets none.
const PATIENCE: Duration = Duration::from_secs(25);

fn is_ours() -> bool {
    !original_differs("all its generations share their sockets")
}

/// The example, whose connection IDs have this length.
fn quic(port: u16, length: usize) -> Setup {
    let setup = Server::setup().without_interval().pid_file().status_file();
    for (name, content) in [("certificate", CERTIFICATE), ("key", KEY)] {
        fs::write(setup.folder().join(name), content).expect("cannot write it");
    }
    let program = programs::quic().into_os_string();
    let words = [
        "certificate".into(),
        "key".into(),
        length.to_string().into(),
    ];
    let setup = setup.option(format!("--port=127.0.0.1:u{port}"));
    let setup = setup.options(["--switch", "--udp-flows=quic:0"]);
    setup.program([program].into_iter().chain(words))
}

#[track_caller]
fn serving(setup: Setup) -> Server {
    let server = setup.start();
    server.wait_until_accepted();
    server
}

/// Returns when new connections go to the next generation, which has this number.
#[track_caller]
fn restart(server: &Server, generation: u32) {
    server.signal(Signal::SIGHUP);
    server.wait_for_log(&format!("new connections go to generation {generation} "));
}

/// Clients of one socket.
struct Clients {
    runtime: Runtime,
    endpoint: Endpoint,
}

impl Clients {
    fn new() -> Clients {
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_all().build().expect("no runtime");
        let mut roots = RootCertStore::empty();
        let certificate = CertificateDer::from_pem_slice(CERTIFICATE.as_bytes());
        roots
            .add(certificate.expect("no certificate"))
            .expect("it is not accepted");
        let mut config = ClientConfig::with_root_certificates(Arc::new(roots)).expect("no client");
        // By default a first packet is sent again after a second, and on a busy machine an answer may take longer. If there
        // was a switch meanwhile, two generations answer, and quinn-proto 0.11.19 takes some of what the second one says (it
        // should not: RFC 9000, section 7.2).
        let mut transport = TransportConfig::default();
        transport.initial_rtt(Duration::from_secs(1));
        config.transport_config(Arc::new(transport));
        let guard = runtime.enter();
        let mut endpoint = Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).expect("no socket");
        drop(guard);
        endpoint.set_default_client_config(config);
        Clients { runtime, endpoint }
    }

    fn run<T>(&self, what: impl Future<Output = T>) -> T {
        self.runtime.block_on(what)
    }
}

async fn connect(endpoint: Endpoint, port: u16) -> Result<Connection, ConnectionError> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let connecting = endpoint.connect(address, "localhost");
    let connecting = connecting.expect("it cannot be tried");
    let outcome = tokio::time::timeout(PATIENCE, connecting).await;
    outcome.unwrap_or(Err(ConnectionError::TimedOut))
}

/// Which generation answers.
async fn ask(connection: &Connection) -> Result<u32, ConnectionError> {
    let exchange = async {
        let (mut question, mut answer) = connection.open_bi().await?;
        // What goes wrong here does so for whoever waits for the answer.
        question.write_all(b"hello").await.ok();
        question.finish().ok();
        let answer = answer.read_to_end(100).await.map_err(|error| match error {
            ReadToEndError::Read(quinn::ReadError::ConnectionLost(error)) => error,
            error => panic!("no answer: {error}"),
        })?;
        let answer = String::from_utf8(answer).expect("text");
        let generation = answer.strip_prefix("generation ");
        let generation = generation.and_then(|it| it.strip_suffix(": hello"));
        Ok(generation
            .and_then(|it| it.parse().ok())
            .unwrap_or_else(|| panic!("{answer}")))
    };
    let outcome = tokio::time::timeout(PATIENCE, exchange).await;
    outcome.unwrap_or(Err(ConnectionError::TimedOut))
}

/// What the clients of a load share with the test.
#[derive(Default)]
struct Load {
    /// The number of the generation that gets new connections.
    latest: AtomicU32,
    is_over: AtomicBool,
    /// The latest generation that each client knew of when it was answered last.
    seen: Mutex<Vec<u32>>,
    failures: Mutex<Vec<String>>,
    /// How many connections there were, and how many restarts each has seen.
    lives: Mutex<Vec<u32>>,
    newcomers: AtomicU32,
    /// For whoever connects: more at a time than this would fill the queue of a socket.
    entry: Entry,
}

struct Entry(tokio::sync::Semaphore);

impl Default for Entry {
    fn default() -> Entry {
        Entry(tokio::sync::Semaphore::new(16))
    }
}

impl Load {
    fn latest(&self) -> u32 {
        self.latest.load(Ordering::SeqCst)
    }

    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::SeqCst)
    }

    async fn connect(&self, endpoint: Endpoint, port: u16) -> Result<Connection, ConnectionError> {
        let _one_of_few = self.entry.0.acquire().await.expect("it stays open");
        connect(endpoint, port).await
    }

    fn fails(&self, client: u32, what: impl std::fmt::Display) {
        let mut failures = self.failures.lock().expect("a client has panicked");
        failures.push(format!("client {client}: {what}"));
    }

    /// Holds one connection after another, each over up to six restarts: there are eight lanes.
    async fn hold(self: Arc<Load>, endpoint: Endpoint, port: u16, client: u32) {
        let most = 1 + client % 6;
        while !self.is_over() {
            let connection = match self.connect(endpoint.clone(), port).await {
                Ok(connection) => connection,
                Err(error) => return self.fails(client, format!("it cannot connect: {error}")),
            };
            let mut accepted_by = None;
            loop {
                let latest = self.latest();
                let generation = match ask(&connection).await {
                    Ok(generation) => generation,
                    Err(error) => {
                        return self.fails(client, format!("{accepted_by:?} was lost: {error}"));
                    }
                };
                let first = *accepted_by.get_or_insert(generation);
                if first != generation {
                    return self.fails(client, format!("{generation} answers for {first}"));
                }
                self.seen.lock().expect("a client has panicked")[client as usize] = latest;
                let age = latest.saturating_sub(first);
                if age >= most || self.is_over() {
                    self.lives.lock().expect("a client has panicked").push(age);
                    connection.close(0_u8.into(), b"");
                    break;
                }
                tokio::time::sleep(Duration::from_millis(400)).await;
            }
        }
    }

    /// Connects again and again, so that handshakes are under way at each switch.
    async fn come_and_go(self: Arc<Load>, endpoint: Endpoint, port: u16, client: u32) {
        while !self.is_over() {
            let outcome = async {
                let connection = self.connect(endpoint.clone(), port).await?;
                ask(&connection).await?;
                connection.close(0_u8.into(), b"");
                Ok(())
            };
            let outcome: Result<(), ConnectionError> = outcome.await;
            if let Err(error) = outcome {
                return self.fails(client, format!("a newcomer was lost: {error}"));
            }
            self.newcomers.fetch_add(1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn run(self: Arc<Load>, endpoint: Endpoint, port: u16) {
        let mut tasks = tokio::task::JoinSet::new();
        for client in 0..CLIENTS {
            tasks.spawn(Arc::clone(&self).hold(endpoint.clone(), port, client));
        }
        for client in CLIENTS..CLIENTS + 3 {
            tasks.spawn(Arc::clone(&self).come_and_go(endpoint.clone(), port, client));
        }
        while let Some(ended) = tasks.join_next().await {
            ended.expect("a client has panicked");
        }
        endpoint.wait_idle().await;
    }

    /// Each client was answered since the last restart, or something has failed.
    #[track_caller]
    fn wait_for_all(&self, server: &Server) {
        let latest = self.latest();
        server.wait_until("each connection is used", |_| {
            let seen = self.seen.lock().expect("a client has panicked");
            let failures = self.failures.lock().expect("a client has panicked");
            !failures.is_empty() || seen.iter().all(|seen| *seen >= latest)
        });
    }
}

/// How many restarts a load is to survive; more take longer.
fn restarts() -> u32 {
    let asked = std::env::var("E2E_SWITCH_RESTARTS").ok();
    asked.and_then(|asked| asked.parse().ok()).unwrap_or(8)
}

#[test]
fn no_connection_is_lost_or_misrouted_by_a_restart() {
    if !is_ours() {
        return;
    }
    let port = ports::udp();
    let setup = quic(port, 7).options(["--lanes=8", "--quiet-time=1"]);
    let server = serving(setup);
    let load = Arc::new(Load::default());
    load.latest.store(1, Ordering::SeqCst);
    *load.seen.lock().expect("nobody has it") = vec![0; CLIENTS as usize];
    let clients = {
        let load = Arc::clone(&load);
        thread::spawn(move || {
            let clients = Clients::new();
            clients.run(load.run(clients.endpoint.clone(), port));
        })
    };
    load.wait_for_all(&server);
    for restarts in 1..=restarts() {
        restart(&server, 1 + restarts);
        load.latest.store(1 + restarts, Ordering::SeqCst);
        load.wait_for_all(&server);
        if !load
            .failures
            .lock()
            .expect("a client has panicked")
            .is_empty()
        {
            break;
        }
    }
    load.is_over.store(true, Ordering::SeqCst);
    clients.join().expect("the clients have panicked");
    let failures = load.failures.lock().expect("it is over");
    assert_eq!(*failures, [""; 0], "{}", server.log());
    assert_eq!(server.count_in_log("starting a worker for them"), 0);
    let lives = load.lives.lock().expect("it is over");
    let sum: u32 = lives.iter().sum();
    let newcomers = load.newcomers.load(Ordering::SeqCst);
    assert!(
        sum >= CLIENTS * (restarts() - 1),
        "{} connections lived over {sum} restarts in sum, and {newcomers} newcomers were served",
        lives.len()
    );
}

/// Datagrams that are not passed on; `None` once they are again.
type Kept = Option<Vec<Vec<u8>>>;

/// Passes datagrams on between a client and a server, and keeps what the client says after the first answer.
struct Relay {
    port: u16,
    /// Whether the server has answered, and what is kept since then.
    shared: Arc<(AtomicBool, Mutex<Kept>)>,
    server: Arc<UdpSocket>,
}

impl Relay {
    fn new(port: u16) -> Relay {
        let open = || Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("no socket"));
        let (front, back) = (open(), open());
        back.connect((Ipv4Addr::LOCALHOST, port)).expect("no peer");
        let shared = Arc::new((AtomicBool::new(false), Mutex::new(Some(Vec::new()))));
        let relay = Relay {
            port: front.local_addr().expect("no address").port(),
            shared: Arc::clone(&shared),
            server: Arc::clone(&back),
        };
        let client = Arc::new(Mutex::new(None));
        // Both end with the test.
        let (ours, theirs) = (Arc::clone(&front), Arc::clone(&client));
        let has_answered = Arc::clone(&shared);
        let answers = Arc::clone(&back);
        thread::spawn(move || {
            let mut data = [0; 2000];
            while let Ok(length) = answers.recv(&mut data) {
                has_answered.0.store(true, Ordering::SeqCst);
                let to: SocketAddr = theirs.lock().expect("it is over").expect("a client");
                ours.send_to(&data[..length], to).expect("cannot answer");
            }
        });
        thread::spawn(move || {
            let mut data = [0; 2000];
            while let Ok((length, from)) = front.recv_from(&mut data) {
                *client.lock().expect("it is over") = Some(from);
                let mut kept = shared.1.lock().expect("it is over");
                match &mut *kept {
                    Some(kept) if shared.0.load(Ordering::SeqCst) => {
                        kept.push(data[..length].to_vec());
                    }
                    Some(_) | None => drop(back.send(&data[..length])),
                }
            }
        });
        relay
    }

    fn has_kept(&self, number: usize) -> bool {
        let kept = self.shared.1.lock().expect("it is over");
        kept.as_ref().is_some_and(|kept| kept.len() >= number)
    }

    /// All that was kept goes to the server, and so does whatever comes.
    fn release(&self) {
        let mut kept = self.shared.1.lock().expect("it is over");
        for data in kept.take().expect("it was kept") {
            self.server.send(&data).expect("cannot send it");
        }
    }
}

#[test]
fn a_handshake_that_began_before_the_switch_is_finished_by_the_same_worker() {
    if !is_ours() {
        return;
    }
    // Clients make up IDs of eight bytes and more.
    for length in [7, 20] {
        let port = ports::udp();
        let server = serving(quic(port, length));
        let relay = Relay::new(port);
        let asked = relay.port;
        let client = thread::spawn(move || {
            let clients = Clients::new();
            clients.run(async {
                let connection = connect(clients.endpoint.clone(), asked).await?;
                let answered = ask(&connection).await;
                connection.close(0_u8.into(), b"");
                clients.endpoint.wait_idle().await;
                answered
            })
        });
        // The client's second flight, and some of it again.
        server.wait_until("the client has been answered", |_| relay.has_kept(3));
        restart(&server, 2);
        server.wait_for_log("killing old workers");
        relay.release();
        let answered = client.join().expect("the client has panicked");
        assert_eq!(answered, Ok(1), "{length}: {}", server.log());
        server.wait_for_generations(&[2]);
    }
}

#[test]
fn a_dead_generation_has_no_flows_and_its_clients_learn_of_it() {
    if !is_ours() {
        return;
    }
    let port = ports::udp();
    let server = serving(quic(port, 7).option("--lanes=3"));
    let clients = Clients::new();
    let connection = clients.run(connect(clients.endpoint.clone(), port));
    let connection = connection.expect("it is not accepted");
    assert_eq!(clients.run(ask(&connection)), Ok(1));
    restart(&server, 2);
    server.wait_for_log("killing old workers");
    assert_eq!(clients.run(ask(&connection)), Ok(1), "it drains");
    let old = server.workers()[0];
    assert_eq!(old.generation, 1);
    kill(old.pid, Signal::SIGKILL).expect("it is gone");
    server.wait_for_generations(&[2]);
    server.wait_for_log(&format!("old worker {} died", old.pid));
    // By the next one, which has the same key for that.
    assert_eq!(clients.run(ask(&connection)), Err(ConnectionError::Reset));
    // Anybody can send such packets.
    let anybody = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("no socket");
    for lane in 0..=4 {
        for first in [0x40, 0xe0] {
            let data = [first, lane, 0, 0, 1, 7, lane, lane, lane, lane];
            let sent = anybody.send_to(&data, (Ipv4Addr::LOCALHOST, port));
            sent.expect("cannot send it");
        }
    }
    wait::let_pass(Duration::from_millis(600));
    assert_eq!(server.count_in_log("starting a worker for them"), 0);
    restart(&server, 3);
    let connection = clients.run(connect(clients.endpoint.clone(), port));
    let connection = connection.expect("it is not accepted");
    assert_eq!(clients.run(ask(&connection)), Ok(3));
}

#[test]
fn a_sweeper_takes_no_packets_from_a_draining_worker() {
    if !is_ours() {
        return;
    }
    let (port, tcp) = (ports::udp(), ports::tcp());
    let setup = quic(port, 7).port(tcp).option("--switch-timeout=0.3");
    let server = serving(setup);
    let clients = Clients::new();
    let connection = clients.run(connect(clients.endpoint.clone(), port));
    let connection = connection.expect("it is not accepted");
    assert_eq!(clients.run(ask(&connection)), Ok(1));
    // The example accepts none of TCP.
    let _left = TcpStream::connect((Ipv4Addr::LOCALHOST, tcp)).expect("cannot connect");
    restart(&server, 2);
    server.wait_for_log("starting a worker for them");
    server.wait_until("the sweeper lives", |server| {
        server.generations() == [1, 2, 3]
    });
    for _ in 0..100 {
        assert_eq!(clients.run(ask(&connection)), Ok(1), "{}", server.log());
    }
}

#[test]
fn upgrades_and_a_guardian_keep_the_flows() {
    if !is_ours() {
        return;
    }
    let port = ports::udp();
    let server = serving(quic(port, 7).options(["--guardian", "--lanes=3"]));
    let clients = Clients::new();
    let open = || {
        let connection = clients.run(connect(clients.endpoint.clone(), port));
        connection.expect("it is not accepted")
    };
    let first = open();
    assert_eq!(clients.run(ask(&first)), Ok(1));
    restart(&server, 2);
    let second = open();
    let all_are_answered = || {
        assert_eq!(clients.run(ask(&first)), Ok(1));
        assert_eq!(clients.run(ask(&second)), Ok(2));
        assert_eq!(clients.run(ask(&open())), Ok(2));
    };
    all_are_answered();
    let words = ["--upgrade", "--pid-file=pid", "--timeout=60"];
    let mut client = crate::commands::run(&server, &words);
    assert_eq!(client.wait(), 0, "{}\n{}", client.said(), server.log());
    all_are_answered();
    let supervisor = server.wait_for("a supervisor lives", Server::supervisor);
    kill(supervisor, Signal::SIGKILL).expect("it is gone");
    server.wait_for_log("; a new one goes on with its ");
    all_are_answered();
    restart(&server, 3);
    assert_eq!(clients.run(ask(&first)), Ok(1));
    assert_eq!(clients.run(ask(&second)), Ok(2));
    assert_eq!(clients.run(ask(&open())), Ok(3));
}

#[test]
fn with_several_workers_and_a_canary_each_connection_stays_with_its_worker() {
    if !is_ours() {
        return;
    }
    let port = ports::udp();
    let server = serving(quic(port, 7).options(["--lanes=3", "--workers=2"]));
    let clients = Clients::new();
    let mut open = Vec::new();
    // Another worker than its own would answer with a reset.
    let mut more = |server: &Server| {
        for _ in 0..16 {
            let connection = clients.run(connect(clients.endpoint.clone(), port));
            let connection = connection.expect("it is not accepted");
            let generation = clients.run(ask(&connection)).expect("it was lost");
            open.push((connection, generation));
        }
        for (connection, generation) in &open {
            let again = clients.run(ask(connection));
            assert_eq!(again, Ok(*generation), "{}", server.log());
        }
        let newest = open[open.len() - 16..].iter();
        newest.filter(|(_, one)| *one == 2).count()
    };
    let does = |words: &[&str]| {
        let words: Vec<&str> = [words, &["--pid-file=pid"]].concat();
        let mut client = crate::commands::run(&server, &words);
        assert_eq!(client.wait(), 0, "{}\n{}", client.said(), server.log());
    };
    assert_eq!(more(&server), 0);
    does(&["--restart", "--canary=50%"]);
    let count = more(&server) + more(&server);
    assert!((1..32).contains(&count), "{count} of 32");
    does(&["--rollback", "--no-wait"]);
    server.wait_for_log("new connections go to generation 1 ");
    assert_eq!(more(&server), 0);
    does(&["--restart", "--no-wait"]);
    server.wait_for_log("new connections go to generation 3 ");
    assert_eq!(more(&server), 0);
}

#[test]
fn a_worker_knows_the_number_of_its_sockets_if_it_has_some_of_its_own() {
    if !is_ours() {
        return;
    }
    const LANE: &str = "SERVER_STARTER_LANE";
    let lane = |server: &Server, port: u16| server.ask(port).environment.get(LANE).cloned();
    let port = ports::tcp();
    let setup = || Server::setup().without_interval().env(LANE, "7").port(port);
    let server = serving(setup().status_file());
    assert_eq!(lane(&server, port), None);
    drop(server);
    let server = serving(setup().status_file().option("--switch"));
    assert_eq!(lane(&server, port).as_deref(), Some("0"));
    restart(&server, 2);
    assert_eq!(lane(&server, port).as_deref(), Some("1"));
}

#[test]
fn a_dry_run_takes_the_option() {
    if !is_ours() {
        return;
    }
    let setup = quic(ports::udp(), 7).option("--check-config");
    let finished = setup.run();
    assert_eq!(finished.status.code(), Some(0), "{}", finished.log);
}
