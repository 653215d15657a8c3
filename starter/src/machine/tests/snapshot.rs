//! What a snapshot is refused for. That nothing is missing in one is checked after each step of the [`walk`](super::walk).

use serde_json::{Value, json};

use super::*;

/// Generation 1 is retiring, 2 is current, and 3 is starting, with two workers each: 100 to 105.
fn three_generations() -> World {
    let mut world = World::new(Settings {
        knobs: delayed(60),
        start_limit: NonZeroU32::new(3),
        ..with_workers(2)
    });
    world.pass_deadline();
    world.restart();
    world.pass_deadline();
    world.restart();
    world
}

/// Why a snapshot is refused in which the value at this place is another one.
fn refusal(machine: &Machine, place: &str, other: Value) -> String {
    let mut value = serde_json::to_value(machine.snapshot()).unwrap();
    *value.pointer_mut(place).unwrap() = other;
    read(&value.to_string()).unwrap_err()
}

#[test]
fn another_version_is_refused() {
    let machine = World::new(settings()).machine;
    assert_eq!(
        read(&written(&machine).replacen("\"version\":5", "\"version\":6", 1)).unwrap_err(),
        "it is of version 6, and this program knows version 5 alone at line 1 column 12"
    );
    // Whatever else is in it.
    assert!(
        read(r#"{"version":6,"rooms":[]}"#)
            .unwrap_err()
            .contains("version 6")
    );
}

#[test]
fn numbers_that_mean_nothing_are_refused() {
    let machine = three_generations().machine;
    let slot = "/machine/generations/0/slots/0";
    for (place, other, why) in [
        (
            "/machine/settings/signal_on_hup",
            json!(999),
            "999 is the number of no signal",
        ),
        (
            "/machine/settings/workers",
            json!(0),
            "a generation has no slot",
        ),
        (
            &format!("{slot}/content/Occupied/pid"),
            json!(-1),
            "-1 is no pid of a worker",
        ),
        (
            &format!("{slot}/content/Occupied/pid"),
            json!(101),
            "two workers have the pid 101",
        ),
        (
            &format!("{slot}/content/Occupied/slot"),
            json!(2),
            "worker 100 of slot 2 of generation 1 is in slot 0 of generation 1",
        ),
        (
            &format!("{slot}/content/Occupied/generation"),
            json!(2),
            "worker 100 of slot 0 of generation 2 is in slot 0 of generation 1",
        ),
        (
            "/machine/generations/1/number",
            json!(1),
            "generation 1 comes after generation 1",
        ),
        (
            "/machine/last_number",
            json!(2),
            "there is a generation 3, and the last one was 2",
        ),
    ] {
        let refused = refusal(&machine, place, other);
        assert!(refused.contains(why), "{place}: {refused}");
    }
}

#[test]
fn states_that_no_machine_can_be_in_are_refused() {
    let machine = three_generations().machine;
    for (place, other, why) in [
        (
            "/machine/generations/0/stage",
            json!("Current"),
            "generations 1 and 2 are both current",
        ),
        (
            "/machine/generations/1/stage",
            json!("Uncommitted"),
            "generations 2 and 3 are both starting",
        ),
        (
            "/machine/generations/1/stage",
            json!("Draining"),
            "generation 1 is retiring, and no newer one serves",
        ),
        (
            "/machine/last_number",
            json!(4),
            "generation 3 is starting, and the last one was 4",
        ),
        (
            "/machine/planned",
            json!({"at": 0, "why": "Asked"}),
            "a start is under way, and another one is planned",
        ),
        (
            "/machine/served",
            Value::Null,
            "a generation is current, and none has ever committed",
        ),
        (
            "/machine/served",
            json!(1),
            "generation 2 is current, and another one has served last",
        ),
        (
            "/machine/served_before",
            json!(2),
            "what has served is in no order",
        ),
        (
            "/machine/postponed",
            json!("Asked"),
            "a restart waits for what served, and that serves",
        ),
        (
            "/machine/phase",
            json!("Finished"),
            "it has finished, and workers are left",
        ),
    ] {
        assert_eq!(refusal(&machine, place, other), why);
    }
}

#[test]
fn slots_that_no_generation_can_have_are_refused() {
    let machine = three_generations().machine;
    let empty = json!({"asked_at": 0, "failures": 0, "content": "Empty"});
    let asked = json!({"asked_at": 0, "failures": 0, "content": "AskedFor"});
    for (place, other, why) in [
        (
            "/machine/generations/2/slots/1",
            empty.clone(),
            "generation 3 is starting without a worker in slot 1",
        ),
        (
            "/machine/generations/0/slots",
            json!([empty, empty]),
            "generation 1 has no worker",
        ),
        (
            "/machine/generations/0/slots",
            json!([empty]),
            "generation 1 has 1 slots, where each is to have 2",
        ),
        (
            "/machine/generations/1/slots/0",
            asked,
            "a worker was asked for in slot 0 of generation 2, and nobody has said what became of it",
        ),
    ] {
        assert_eq!(refusal(&machine, place, other), why);
    }
}

#[test]
fn a_machine_that_would_wait_for_ever_is_refused() {
    let mut world = World::new(settings());
    world.exit_newest(256);
    let nothing = refusal(&world.machine, "/machine/planned", Value::Null);
    assert_eq!(nothing, "nothing serves, and nothing will");
    let wanted = refusal(&world.machine, "/machine/restart_wanted", json!(true));
    assert_eq!(
        wanted,
        "a restart waits for the end of a start, and none is under way"
    );
    let mut world = World::new(settings());
    world.stop(Signal::SIGTERM);
    let ended = refusal(&world.machine, "/machine/generations", json!([]));
    assert_eq!(ended, "it is stopping, and no worker is left");
    let planned = json!({"at": 0, "why": "First"});
    for (place, other) in [("planned", planned), ("postponed", json!("Asked"))] {
        assert_eq!(
            refusal(&world.machine, &format!("/machine/{place}"), other),
            "it is stopping, and a start is planned"
        );
    }
}

#[test]
fn everything_has_its_place_in_the_text() {
    let mut world = three_generations();
    world.fail_to_spawn = true;
    world.exit(Pid::from_raw(102), 9);
    world.fail_to_spawn = false;
    world.execute = false;
    world.exit_newest(256);
    world.check();
    let value = serde_json::to_value(world.machine.snapshot()).unwrap();
    for (place, expected) in [
        ("/version", json!(5)),
        ("/machine/settings/signal_on_hup", json!(10)),
        ("/machine/settings/knobs/kill_old_delay/secs", json!(60)),
        ("/machine/generations/1/stage", json!("Current")),
        ("/machine/generations/1/slots/0/failures", json!(1)),
        ("/machine/generations/1/slots/0/content", json!("Empty")),
        (
            "/machine/generations/2/slots/0/content/Occupied/pid",
            json!(104),
        ),
        (
            "/machine/generations/2/steps/asked_at",
            json!(1_002_000_000_000_u64),
        ),
        ("/machine/generations/2/steps/ready_at", Value::Null),
        ("/machine/history/decisions/1/replaces", json!(1)),
        (
            "/machine/history/decisions/1/steps/ready_at",
            json!(1_002_000_000_000_u64),
        ),
        ("/machine/served", json!(2)),
        ("/machine/served_before", json!(1)),
        ("/machine/history/counters/restarts", json!(2)),
    ] {
        assert_eq!(value.pointer(place), Some(&expected), "{place}");
    }
}

/// Every single number in the text becomes others: what is not refused is a machine that takes events.
#[test]
fn a_snapshot_with_any_number_in_it_is_refused_or_works() {
    let machine = three_generations().machine;
    let mut places = Vec::new();
    let value = serde_json::to_value(machine.snapshot()).unwrap();
    find_numbers(&value, String::new(), &mut places);
    assert!(places.len() > 50, "only {} numbers", places.len());
    let mut works = 0;
    for place in places {
        for number in [
            json!(-1),
            json!(0),
            json!(7),
            json!(u32::MAX),
            json!(u64::MAX),
        ] {
            let mut value = value.clone();
            *value.pointer_mut(&place).unwrap() = number;
            if let Ok(machine) = read(&value.to_string()) {
                takes_events(machine);
                works += 1;
            }
        }
    }
    assert!(works > 50, "only {works} of them work");
}

fn find_numbers(value: &Value, place: String, found: &mut Vec<String>) {
    match value {
        Value::Number(_) => found.push(place),
        Value::Array(all) => {
            for (number, one) in all.iter().enumerate() {
                find_numbers(one, format!("{place}/{number}"), found);
            }
        }
        Value::Object(all) => {
            for (key, one) in all {
                find_numbers(one, format!("{place}/{key}"), found);
            }
        }
        _ => {}
    }
}

fn takes_events(mut machine: Machine) {
    let pids = machine.all_pids();
    let mut now = Moment::of_test(Duration::from_secs(2000));
    for event in [
        Event::Executed(pids[0]),
        Event::DeadlinePassed,
        Event::Restart,
        Event::Exited {
            pid: pids[pids.len() - 1],
            status: 256,
        },
        Event::DeadlinePassed,
        Event::Exited {
            pid: pids[0],
            status: 0,
        },
        Event::Stop(Signal::SIGTERM),
    ] {
        now = now + Duration::from_secs(100);
        machine.on(event, now);
        machine.deadline();
    }
}
