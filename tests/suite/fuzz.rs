//! The fuzz targets of `tests/fuzz` without a fuzzer: the same entry points with every seed, with seeds that were
//! changed, and with any bytes. The same inputs in every run; cargo-fuzz finds others.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use common::message::{
    Address, Allow, Ask, BadPolicy, Confinement, Escape, Grant, Identity, LineFault, Refusal,
    Reply, Request, SocketFile, Transport,
};
use common::trusted_path::{Distrust, Untrusted};
use common::wire::encode;
use proptest::collection::vec;
use proptest::prelude::{Strategy, any, prop_oneof};
use proptest::sample::{Index, select};
use proptest::test_runner::{Config, RngSeed, TestRunner};

type Target = (&'static str, fn(&[u8]));

const TARGETS: [Target; 11] = [
    ("conversation", binder::fuzz::conversation),
    ("envdir", starter::fuzz::envdir),
    ("holders", starter::fuzz::holders),
    ("lines", starter::fuzz::lines),
    ("listen_spec", starter::fuzz::listen_spec),
    ("pid_file", starter::fuzz::pid_file),
    ("policy", binder::fuzz::policy),
    ("reply", common::fuzz::reply),
    ("request", common::fuzz::request),
    ("status_file", starter::fuzz::status_file),
    ("status_json", starter::fuzz::status_json),
];

/// How many inputs of each kind: less than a second in a debug build.
const CASES: u32 = 2000;

/// The seeds of messages are written anew where this is set, after a message has changed:
/// `E2E_WRITE_SEEDS=1 cargo test -p e2e --test suite fuzz::`
const WRITE_SEEDS: &str = "E2E_WRITE_SEEDS";

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

fn names_in(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    entries
        .map(|entry| entry.expect("cannot list a folder").file_name())
        .map(|name| name.into_string().expect("UTF-8"))
        .collect()
}

fn seeds(target: &str) -> Vec<Vec<u8>> {
    let corpus = folder().join("corpus").join(target);
    let seeds: Vec<Vec<u8>> = names_in(&corpus)
        .iter()
        .map(|name| fs::read(corpus.join(name)).expect("cannot read a seed"))
        .collect();
    assert!(!seeds.is_empty(), "{target} has no seeds");
    seeds
}

/// One change of a seed; places are relative, because the length is known only when it is done.
#[derive(Debug, Clone)]
enum Mutation {
    FlipBit(Index, u8),
    Overwrite(Index, u8),
    Cut(Index, Index),
    Truncate(Index),
    Repeat(Index, Index, usize),
    /// Goes on with what another seed has from there on.
    Splice(Index, Vec<u8>, Index),
}

fn mutation(seeds: Vec<Vec<u8>>) -> impl Strategy<Value = Mutation> {
    let place = any::<Index>;
    // What parsers look for, and what they should.
    let byte = prop_oneof![
        select(b"0123456789:=,;/[]{}\"-+.u%\n\t\0\x1b\x7f\xff".as_slice()),
        any::<u8>()
    ];
    prop_oneof![
        (place(), 0..8u8).prop_map(|(at, bit)| Mutation::FlipBit(at, bit)),
        (place(), byte).prop_map(|(at, byte)| Mutation::Overwrite(at, byte)),
        (place(), place()).prop_map(|(from, to)| Mutation::Cut(from, to)),
        place().prop_map(Mutation::Truncate),
        (place(), place(), 1..40usize)
            .prop_map(|(from, to, times)| Mutation::Repeat(from, to, times)),
        (place(), select(seeds), place())
            .prop_map(|(at, seed, from)| Mutation::Splice(at, seed, from)),
    ]
}

impl Mutation {
    fn apply(self, bytes: &mut Vec<u8>) {
        let end = bytes.len() + 1;
        let range = |one: Index, other: Index| {
            let (one, other) = (one.index(end), other.index(end));
            one.min(other)..one.max(other)
        };
        match self {
            Mutation::FlipBit(..) | Mutation::Overwrite(..) if bytes.is_empty() => {}
            Mutation::FlipBit(at, bit) => *at.get_mut(bytes) ^= 1 << bit,
            Mutation::Overwrite(at, byte) => *at.get_mut(bytes) = byte,
            Mutation::Cut(from, to) => drop(bytes.drain(range(from, to))),
            Mutation::Truncate(at) => bytes.truncate(at.index(end)),
            Mutation::Repeat(from, to, times) => {
                let range = range(from, to);
                let repeated = bytes[range.clone()].repeat(times);
                bytes.splice(range.end..range.end, repeated);
            }
            Mutation::Splice(at, seed, from) => {
                bytes.truncate(at.index(end));
                bytes.extend_from_slice(&seed[from.index(seed.len() + 1)..]);
            }
        }
    }
}

fn run(inputs: impl Strategy<Value = Vec<u8>>, entry: fn(&[u8])) {
    let config = Config {
        cases: CASES,
        rng_seed: RngSeed::Fixed(0x5354_4152_5445_5221),
        failure_persistence: None,
        ..Config::default()
    };
    let mut runner = TestRunner::new(config);
    let outcome = runner.run(&inputs, |input| {
        entry(&input);
        Ok(())
    });
    outcome.unwrap_or_else(|failure| panic!("{failure}"));
}

#[track_caller]
fn exercise(target: &str) {
    let (_, entry) = TARGETS
        .into_iter()
        .find(|(name, _)| *name == target)
        .expect("no such target");
    let seeds = seeds(target);
    seeds.iter().for_each(|seed| entry(seed));
    run(vec(any::<u8>(), 0..300), entry);
    let changed = (select(seeds.clone()), vec(mutation(seeds), 1..6));
    let changed = changed.prop_map(|(mut bytes, mutations)| {
        mutations
            .into_iter()
            .for_each(|mutation| mutation.apply(&mut bytes));
        bytes
    });
    run(changed, entry);
}

#[test]
fn conversations_with_the_binder() {
    exercise("conversation");
}

#[test]
fn output_of_workers() {
    exercise("lines");
}

#[test]
fn policy_files() {
    exercise("policy");
}

#[test]
fn files_of_envdir() {
    exercise("envdir");
}

#[test]
fn tables_of_sockets() {
    exercise("holders");
}

#[test]
fn values_of_port_and_path() {
    exercise("listen_spec");
}

#[test]
fn pid_files() {
    exercise("pid_file");
}

#[test]
fn replies_of_the_binder() {
    exercise("reply");
}

#[test]
fn requests_to_the_binder() {
    exercise("request");
}

#[test]
fn status_files() {
    exercise("status_file");
}

#[test]
fn status_files_of_json() {
    exercise("status_json");
}

#[test]
fn every_target_has_a_program_seeds_and_a_run_here() {
    let here: BTreeSet<String> = TARGETS.map(|(name, _)| name.to_owned()).into();
    assert_eq!(names_in(&folder().join("corpus")), here);
    let programs = names_in(&folder().join("fuzz_targets"));
    let programs: BTreeSet<String> = programs
        .iter()
        .map(|name| name.trim_end_matches(".rs").to_owned())
        .collect();
    assert_eq!(programs, here);
    let manifest = fs::read_to_string(folder().join("Cargo.toml")).expect("cannot read");
    let listed = manifest.lines().filter_map(|line| {
        let path = line.strip_prefix("path = \"fuzz_targets/")?;
        path.strip_suffix(".rs\"").map(str::to_owned)
    });
    assert_eq!(listed.collect::<BTreeSet<String>>(), here);
    let tests = include_str!("fuzz.rs");
    for target in here {
        assert!(
            tests.contains(&format!("    exercise(\"{target}\");\n")),
            "{target}"
        );
        let program = folder().join(format!("fuzz_targets/{target}.rs"));
        let program = fs::read_to_string(program).expect("cannot read");
        assert!(
            program.contains(&format!("::fuzz::{target}(bytes)")),
            "{program}"
        );
    }
}

#[test]
fn the_seeds_of_messages_are_what_the_programs_send_today() {
    let ip = "fe80::1".parse().expect("an address");
    let port = |ip| Grant::Port {
        transport: Transport::Udp,
        port: 53,
        ip,
        freebind: false,
        lanes: 1,
    };
    let file = SocketFile {
        path: "/run/app.sock".into(),
        mode: 0o660,
        uid: None,
        gid: Some(33),
    };
    let identity = Identity {
        uid: 65534,
        gid: 65534,
        groups: vec![33, 4242],
    };
    let allow = |identity, grants, escapes, more| {
        Request::Allow(Allow {
            identity,
            grants,
            escapes,
            more,
        })
    };
    let address = Address {
        ip,
        port: 53,
        scope: 2,
    };
    let refused = |refusal| Reply::Refused { ask: 1, refusal };
    let whole = [
        allow(None, vec![port(Some(ip))], vec![Escape::OpenFile], true),
        allow(None, vec![port(None)], vec![Escape::Fork], false),
        Request::Bind(vec![Ask::Port { grant: 1, address }]),
        Request::TryEscape(Escape::OpenFile),
        Request::Bind(vec![Ask::Port { grant: 0, address }]),
        Request::TryEscape(Escape::Fork),
    ];
    let twice = [
        allow(None, vec![Grant::Path(file.clone())], vec![], false),
        Request::Bind(vec![Ask::Path { grant: 0 }]),
        Request::Bind(vec![Ask::Path { grant: 0 }]),
    ];
    for (name, seed) in [
        ("conversation/whole", Ok(conversation(&whole))),
        ("conversation/twice", Ok(conversation(&twice))),
        (
            "request/allow_nothing",
            encode(&allow(None, vec![], vec![], false)),
        ),
        (
            "request/allow_ports",
            encode(&allow(
                Some(identity),
                vec![port(Some(ip)), port(None)],
                vec![],
                true,
            )),
        ),
        (
            "request/allow_path",
            encode(&allow(None, vec![Grant::Path(file)], vec![], false)),
        ),
        (
            "request/bind",
            encode(&Request::Bind(vec![
                Ask::Port { grant: 0, address },
                Ask::Path { grant: u32::MAX },
            ])),
        ),
        ("request/bind_nothing", encode(&Request::Bind(vec![]))),
        (
            "request/allow_escape",
            encode(&allow(None, vec![], vec![Escape::TraceParent], false)),
        ),
        (
            "request/try_escape",
            encode(&Request::TryEscape(Escape::TraceParent)),
        ),
        (
            "reply/confined",
            encode(&Reply::Confined(Confinement {
                seccomp: true,
                landlock: 6,
            })),
        ),
        (
            "reply/bound",
            encode(&Reply::Bound {
                replaced: vec![0, 300],
            }),
        ),
        ("reply/errno", encode(&refused(Refusal::Errno(98)))),
        (
            "reply/untrusted",
            encode(&refused(Refusal::Untrusted(Untrusted {
                at: "/run".into(),
                why: Distrust::WritableByOthers,
            }))),
        ),
        (
            "reply/bad_policy",
            encode(&refused(Refusal::BadPolicy(BadPolicy::Line {
                number: 3,
                fault: LineFault::Ports,
            }))),
        ),
        (
            "reply/escape_tried",
            encode(&Reply::EscapeTried { errno: Some(1) }),
        ),
    ] {
        let seed = seed.expect("it is small");
        let path = folder().join("corpus").join(name);
        if std::env::var_os(WRITE_SEEDS).is_some() {
            fs::write(&path, &seed).expect("cannot write a seed");
        }
        let there = fs::read(&path).unwrap_or_default();
        assert_eq!(there, seed, "{name}: {WRITE_SEEDS}=1 writes it anew");
    }
}

/// Datagrams, each behind its length, as the target reads them.
fn conversation(requests: &[Request]) -> Vec<u8> {
    let datagram = |request| {
        let datagram = encode(request).expect("it is small");
        let length = u16::try_from(datagram.len()).expect("it is small");
        [&length.to_le_bytes()[..], &datagram].concat()
    };
    requests.iter().flat_map(datagram).collect()
}
