//! An echo server over QUIC that start_server can replace without losing a connection:
//! `start_server --port=u4433 --switch --lanes=4 --udp-flows=quic:0 -- quic CERTIFICATE KEY`.
//!
//! It shows what such a worker has to do: put the number of its lane into every connection ID that it issues, and at
//! SIGTERM accept nothing more and end once its last connection is closed. It answers each stream with the number of its
//! generation and what the client has sent.

use std::env;
use std::error::Error;
use std::io::{self, Write};
use std::net::UdpSocket;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use common::{Listener, lane, put_lane};
use quinn::rustls::pki_types::pem::PemObject;
use quinn::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use quinn::{
    Connecting, Connection, ConnectionId, ConnectionIdGenerator, Endpoint, EndpointConfig,
    ServerConfig, TokioRuntime,
};
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;

/// What `--udp-flows` says.
const OFFSET: usize = 0;

/// IDs that clients make up have at least 8 bytes. As ours are shorter, start_server finds the lane in all of them, even in
/// the first packets of a handshake. Six of their bytes are random.
const LENGTH: usize = 7;

const LONGEST_MESSAGE: usize = 64 * 1024;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // If stderr is closed there is no other place to report to.
            writeln!(io::stderr(), "quic: {error}").ok();
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args_os().skip(1);
    let mut file = || arguments.next().map(PathBuf::from);
    let (certificate, key) = file()
        .zip(file())
        .ok_or("it takes the files of a certificate and of its key")?;
    let length = arguments.next().and_then(|it| it.to_str()?.parse().ok());
    let certificate = CertificateDer::pem_file_iter(certificate)?.collect::<Result<_, _>>()?;
    let key = PrivateKeyDer::from_pem_file(key)?;

    // All generations have the same key. If one dies, the generation that gets the packets of its connections can tell the
    // clients that these are over (RFC 9000, section 10.3).
    let of_resets = hmac::Key::new(hmac::HMAC_SHA256, key.secret_der());
    let mut endpoint = EndpointConfig::new(Arc::new(of_resets));
    endpoint.cid_generator(move || Box::new(Generator(length.unwrap_or(LENGTH))));
    let mut server = ServerConfig::with_single_cert(certificate, key)?;
    let transport = Arc::get_mut(&mut server.transport).ok_or("the transport is shared")?;
    transport.max_idle_timeout(Some(Duration::from_secs(60).try_into()?));

    let generation = env::var("SERVER_STARTER_GENERATION")?;
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }.enable_all().build()?;
    runtime.block_on(async {
        let mut serving = JoinSet::new();
        for port in common::server_ports()? {
            // It serves UDP alone. If it is a sweeper, that socket receives nothing.
            let Listener::Udp(socket) = port.listener else {
                continue;
            };
            let endpoint = open(socket, endpoint.clone(), server.clone())?;
            // Before it accepts anything: until then the signal would end it.
            let sigterm = signal(SignalKind::terminate())?;
            serving.spawn(serve(endpoint, sigterm, generation.clone()));
        }
        while let Some(served) = serving.join_next().await {
            served?;
        }
        Ok(())
    })
}

fn open(socket: UdpSocket, config: EndpointConfig, server: ServerConfig) -> io::Result<Endpoint> {
    socket.set_nonblocking(true)?;
    Endpoint::new(config, Some(server), socket, Arc::new(TokioRuntime))
}

/// Connection IDs that name the lane of this process.
struct Generator(usize);

impl ConnectionIdGenerator for Generator {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = ConnectionId::new(&[0; 20][..self.0]);
        // Where that fails, no handshake succeeds either.
        SystemRandom::new().fill(&mut id).ok();
        if let Some(lane) = lane() {
            put_lane(&mut id, OFFSET, lane);
        }
        id
    }

    fn cid_len(&self) -> usize {
        self.0
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// Serves until it is told to stop, and then serves its connections until they are closed. New ones do not arrive any more:
/// start_server gives them to the next generation.
async fn serve(endpoint: Endpoint, mut sigterm: Signal, generation: String) {
    loop {
        let incoming = tokio::select! {
            // Clients that were there before the signal are served.
            biased;
            incoming = endpoint.accept() => incoming,
            _ = sigterm.recv() => None,
        };
        let Some(incoming) = incoming else { break };
        // At once, so that it counts as a connection. A broken one harms its client alone.
        if let Ok(connecting) = incoming.accept() {
            tokio::spawn(converse(connecting, generation.clone()));
        }
    }
    endpoint.set_server_config(None);
    endpoint.wait_idle().await;
}

async fn converse(connecting: Connecting, generation: String) {
    let Ok(connection) = connecting.await else {
        return;
    };
    while let Ok((answer, question)) = connection.accept_bi().await {
        tokio::spawn(echo(
            connection.clone(),
            (answer, question),
            generation.clone(),
        ));
    }
}

async fn echo(
    _open: Connection,
    (mut answer, mut question): (quinn::SendStream, quinn::RecvStream),
    generation: String,
) -> Option<()> {
    let message = question.read_to_end(LONGEST_MESSAGE).await.ok()?;
    let heading = format!("generation {generation}: ");
    answer.write_all(heading.as_bytes()).await.ok()?;
    answer.write_all(&message).await.ok()?;
    answer.finish().ok()
}
