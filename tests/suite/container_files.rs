//! The files in `starter/share/containers`. No runtime for containers is needed: the commands by which the Dockerfile puts
//! the image together are run as they are, and what the image and the manifest start is started in the result.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use e2e::folder::Folder;
use e2e::programs::{hello, installed, start_server};
use e2e::skip::{missing, needs_program, needs_root};
use e2e::start::InTurn;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Gid, Uid};
use serde_json::Value;

use crate::commands::{Client, is_ours};
use crate::containers::first;
use crate::launch::{Launched, launch_program};

fn shared(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../starter/share/containers");
    folder.join(name)
}

/// The instructions of the Dockerfile, each in one line.
fn dockerfile() -> Vec<String> {
    let text = fs::read_to_string(shared("Dockerfile")).expect("no Dockerfile");
    let text = text.replace("\\\n", "");
    text.lines().map(str::to_owned).collect()
}

/// The value of an instruction that occurs once.
fn instruction(name: &str) -> String {
    let lines = dockerfile();
    let mut values = lines.iter().filter_map(|line| line.strip_prefix(name));
    let value = values.next().expect(name).trim().to_owned();
    assert_eq!(values.next(), None, "{name}");
    value
}

/// The words of an instruction in JSON, such as CMD.
fn words(json: &str) -> Vec<String> {
    serde_json::from_str(json).expect("not a list of words")
}

/// The documents of the manifest.
fn manifest() -> Option<Vec<Value>> {
    let parse =
        "import json, sys, yaml; print(json.dumps(list(yaml.safe_load_all(open(sys.argv[1])))))";
    let mut python = Command::new("python3");
    let python = python.args(["-c", parse]).arg(shared("kubernetes.yaml"));
    let parsed = python.output_in_turn().expect("cannot run python3");
    let said = String::from_utf8_lossy(&parsed.stderr);
    if said.contains("No module named 'yaml'") {
        missing("needs the yaml module of python3");
        return None;
    }
    assert!(parsed.status.success(), "{said}");
    Some(serde_json::from_slice(&parsed.stdout).expect("not JSON"))
}

fn strings(list: &Value) -> Vec<String> {
    serde_json::from_value(list.clone()).expect("not a list of words")
}

/// The root of an image, put together by the `count` first scripts of the Dockerfile.
fn image(count: usize) -> Folder {
    let folder = Folder::new(Uid::from_raw(0), Gid::from_raw(0));
    let top = folder.path().to_str().expect("UTF-8");
    let lines = dockerfile();
    let scripts = lines
        .iter()
        .filter_map(|line| line.strip_prefix("RUN set -eu;"));
    let scripts: Vec<&str> = scripts.take(count).collect();
    assert_eq!(scripts.len(), count);
    let mut script = format!("set -eu; {}", scripts.join("; "));
    for name in ["/image", "/owned", "/libraries"] {
        script = script.replace(name, &format!("{top}{name}"));
    }
    let hello = hello();
    let built = installed().to_str().expect("UTF-8");
    let script = script
        .replace(
            "target/release/examples/hello",
            hello.to_str().expect("UTF-8"),
        )
        .replace("target/release", built);
    let mut shell = Command::new("sh");
    let status = shell.arg("-c").arg(&script).status_in_turn();
    assert!(status.expect("cannot run sh").success(), "{script}");
    // What a runtime mounts is mounted there.
    for name in ["dev", "run/app"] {
        fs::create_dir_all(folder.path().join("image").join(name)).expect("cannot make it");
    }
    folder
}

/// What a runtime does before it starts the first process: a root that nobody can write, and the mounts of every container.
const RUNTIME: &str = "set -eu; image=$1 low=$2 limits=$3 program=$4; shift 4
    mount --bind $image $image
    mount -o remount,bind,ro $image
    mount -t proc proc $image/proc
    mount -t tmpfs tmpfs $image/dev
    touch $image/dev/null
    mount --bind /dev/null $image/dev/null
    mount -t tmpfs -o mode=777 tmpfs $image/run/app
    ip link set lo up
    echo $low > /proc/sys/net/ipv4/ip_unprivileged_port_start
    exec capsh --chroot=$image $limits --gid=65532 --groups=65532 --uid=65532 --shell=$program -- \"$@\"";

/// Starts what the image starts, with these arguments.
fn run(image: &Folder, low: &str, limits: &str, arguments: &[String]) -> Launched {
    let root = image.path().join("image");
    let entry = words(&instruction("ENTRYPOINT"));
    let environment = instruction("ENV");
    let before = [
        "env",
        &environment,
        "unshare",
        "--pid",
        "--fork",
        "--mount",
        "--net",
        "--kill-child",
        "sh",
        "-c",
        RUNTIME,
        "sh",
        root.to_str().expect("UTF-8"),
        low,
        limits,
    ];
    let arguments: Vec<&str> = entry[1..]
        .iter()
        .chain(arguments)
        .map(String::as_str)
        .collect();
    launch_program(&before, Path::new(&entry[0]), &arguments)
}

/// Runs a command as the runtime's exec does. Its exit code and what it said.
fn exec(launched: &Launched, words: &[String]) -> (i32, String) {
    let mut command = Command::new("nsenter");
    command
        .arg(format!("--target={}", first(launched)))
        .args(["--pid", "--mount", "--net", "--root", "--wd"])
        .args(["--setuid=65532", "--setgid=65532"])
        .args(words);
    let mut client = Client::start(command, launched.folder());
    (client.wait(), client.said())
}

/// It answers at port 80, the command for readiness says so, and it ends at TERM.
#[track_caller]
fn assert_works(mut launched: Launched, probe: &[String]) {
    let said = launched.wait_for("it is ready", || {
        let (code, said) = exec(&launched, probe);
        (code == 0).then_some(said)
    });
    assert!(said.starts_with("serving\npid 1, "), "{said}");
    assert!(said.contains(" 0.0.0.0:80\n"), "{said}");
    kill(first(&launched), Signal::SIGTERM).expect("cannot send TERM");
    assert_eq!(launched.wait_exit(), 0, "{}", launched.log());
}

fn can_run() -> bool {
    let programs = ["unshare", "nsenter", "capsh", "setcap", "ip", "ldd"];
    is_ours() && needs_root() && programs.into_iter().all(needs_program)
}

#[test]
fn the_image_serves_port_80_for_an_ordinary_user_by_a_file_capability() {
    if !can_run() {
        return;
    }
    let probe = words(
        instruction("HEALTHCHECK")
            .rsplit_once("CMD ")
            .expect("CMD")
            .1,
    );
    let lines = dockerfile();
    let command = lines.iter().find_map(|line| line.strip_prefix("CMD "));
    let command = words(command.expect("no CMD"));
    let image = image(2);
    assert_works(run(&image, "1024", "", &command), &probe);
    // That is what it needs the capability for.
    let limits = "--no-new-privs";
    let mut refused = run(&image, "1024", limits, &command);
    assert_eq!(refused.wait_exit(), 1, "{}", refused.log());
    assert!(
        refused.log().contains("cannot listen on --port=80"),
        "{}",
        refused.log()
    );
}

#[test]
fn the_image_serves_port_80_without_any_privilege_as_the_manifest_starts_it() {
    if !can_run() || !needs_program("python3") {
        return;
    }
    let Some(documents) = manifest() else {
        return;
    };
    let pod = &documents[0]["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    let sysctl = &pod["securityContext"]["sysctls"][0];
    assert_eq!(sysctl["name"], "net.ipv4.ip_unprivileged_port_start");
    assert_eq!(pod["securityContext"]["runAsUser"], 65532);
    assert_eq!(instruction("USER"), "65532:65532");
    let confined = &container["securityContext"];
    assert_eq!(confined["allowPrivilegeEscalation"], false);
    assert_eq!(confined["readOnlyRootFilesystem"], true);
    assert_eq!(confined["capabilities"]["drop"][0], "ALL");
    assert_eq!(container["volumeMounts"][0]["mountPath"], "/run/app");
    let low = sysctl["value"].as_str().expect("a number");
    let limits = "--no-new-privs --drop=all";
    let arguments = strings(&container["args"]);
    let probe = strings(&container["readinessProbe"]["exec"]["command"]);
    let image = image(1);
    assert_works(run(&image, low, limits, &arguments), &probe);
    // What needs a directory of its own has one.
    let with_socket = [vec!["--probe=unix".to_owned()], arguments].concat();
    assert_works(run(&image, low, limits, &with_socket), &probe);
}

#[test]
fn the_manifest_leaves_time_for_a_graceful_end() {
    if !is_ours() || !needs_program("python3") {
        return;
    }
    let Some(documents) = manifest() else {
        return;
    };
    let [deployment, service] = &documents[..] else {
        panic!("{documents:?}");
    };
    let pod = &deployment["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    let seconds = |value: &Value| value.as_u64().expect("seconds");
    let arguments = strings(&container["args"]);
    let mut limits = arguments.iter();
    let limit = limits.find_map(|one| one.strip_prefix("--stop-timeout="));
    let limit: u64 = limit.expect("no limit").parse().expect("seconds");
    let before = seconds(&container["lifecycle"]["preStop"]["sleep"]["seconds"]);
    let grace = seconds(&pod["terminationGracePeriodSeconds"]);
    assert!(
        before > 0 && before + limit < grace,
        "{before} {limit} {grace}"
    );
    let labels = &deployment["spec"]["template"]["metadata"]["labels"];
    assert_eq!(labels, &deployment["spec"]["selector"]["matchLabels"]);
    assert_eq!(labels, &service["spec"]["selector"]);
    assert_eq!(
        container["ports"][0]["name"],
        service["spec"]["ports"][0]["targetPort"]
    );
    // Where the image keeps its files.
    let name = words(&instruction("ENTRYPOINT"))
        .pop()
        .expect("no pid file");
    let probe = strings(&container["readinessProbe"]["exec"]["command"]);
    assert_eq!(probe.last(), Some(&name));
    assert_eq!(Path::new(&probe[0]).file_name(), start_server().file_name());
}
