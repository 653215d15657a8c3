//! The whole machine as plain data and back: another program, or another run of this one, can continue where it stopped.
//!
//! Restored data is checked: a state that no machine can be in is refused, because a machine that believed it could wait
//! forever, or signal processes that are not its workers.

use std::collections::BTreeSet;

use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::generation::{Content, Generation, Slot, State};
use super::history::{History, REMEMBERED};
use super::lane::Share;
use super::model::{Machine, Phase, Settings};

/// Incremented with every change of the format; other versions are not understood.
const VERSION: u32 = 5;

/// The state of a machine. Its moments are meaningful until the host reboots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// First, so that data of another version is refused for that reason.
    version: Version,
    machine: Machine,
}

/// The only version that is understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
struct Version;

impl TryFrom<u32> for Version {
    type Error = String;

    fn try_from(version: u32) -> Result<Version, String> {
        match version {
            VERSION => Ok(Version),
            other => Err(format!(
                "it is of version {other}, and this program knows version {VERSION} alone"
            )),
        }
    }
}

impl From<Version> for u32 {
    fn from(Version: Version) -> u32 {
        VERSION
    }
}

impl Machine {
    /// Take it between events, when all actions of the last one are done: pending actions are not in it.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            version: Version,
            machine: self.clone(),
        }
    }

    /// Restores the machine.
    ///
    /// # Errors
    /// Why no machine can be in this state.
    pub fn restore(snapshot: Snapshot) -> Result<Machine, String> {
        let machine = snapshot.machine;
        check_settings(&machine.settings)?;
        check_numbers(&machine)?;
        for generation in &machine.generations {
            check_slots(generation, &machine.settings)?;
            // While it is stopping, they end in any order.
            if !machine.is_stopping() {
                check_start(generation)?;
            }
        }
        check_pids(&machine)?;
        check_states(&machine)?;
        check_phase(&machine)?;
        let History {
            decisions,
            departed,
            ..
        } = &machine.history;
        refuse_if(
            decisions.len() > REMEMBERED || departed.len() > REMEMBERED,
            || format!("more than the last {REMEMBERED} decisions or workers are remembered"),
        )?;
        Ok(machine)
    }
}

fn check_settings(settings: &Settings) -> Result<(), String> {
    refuse_if(settings.workers == 0, || {
        "a generation has no slot".to_owned()
    })
}

/// Numbers rise from 1 to that of the last generation.
fn check_numbers(machine: &Machine) -> Result<(), String> {
    let mut before = 0;
    for Generation { number, .. } in &machine.generations {
        refuse_if(*number <= before, || {
            format!("generation {number} comes after generation {before}")
        })?;
        before = *number;
    }
    let last = machine.last_number;
    refuse_if(before > last, || {
        format!("there is a generation {before}, and the last one was {last}")
    })
}

fn check_slots(generation: &Generation, settings: &Settings) -> Result<(), String> {
    let (number, workers) = (generation.number, settings.workers);
    let slots = &generation.slots;
    let is_old = generation.state() == State::Old;
    refuse_if(
        slots.len() != workers && !is_old && !generation.is_sweeper(),
        || {
            let slots = slots.len();
            format!("generation {number} has {slots} slots, where each is to have {workers}")
        },
    )?;
    for (place, slot) in slots.iter().enumerate() {
        check_slot(generation, place, slot)?;
    }
    refuse_if(generation.is_gone(), || {
        format!("generation {number} has no worker")
    })
}

fn check_slot(generation: &Generation, place: usize, slot: &Slot) -> Result<(), String> {
    let number = generation.number;
    match &slot.content {
        Content::Occupied(worker) => {
            refuse_if((worker.generation, worker.slot) != (number, place), || {
                let (pid, of, its) = (worker.pid, worker.generation, worker.slot);
                format!(
                    "worker {pid} of slot {its} of generation {of} is in slot {place} of generation {number}"
                )
            })
        }
        Content::AskedFor => Err(format!(
            "a worker was asked for in slot {place} of generation {number}, and nobody has said what became of it"
        )),
        Content::Waiting | Content::Empty | Content::GivenUp | Content::Elsewhere => Ok(()),
    }
}

/// A start without one of its workers has failed.
fn check_start(generation: &Generation) -> Result<(), String> {
    let (number, slots) = (generation.number, &generation.slots);
    let empty = slots
        .iter()
        .position(|slot| slot.worker().is_none() && slot.content != Content::Waiting);
    match empty.filter(|_| generation.state() == State::Starting) {
        Some(place) => Err(format!(
            "generation {number} is starting without a worker in slot {place}"
        )),
        None => Ok(()),
    }
}

/// Each of these will be signalled sooner or later: 0 and below stand for many processes (kill(2)), and 1 cannot be our
/// child.
fn check_pids(machine: &Machine) -> Result<(), String> {
    let mut known = BTreeSet::new();
    for pid in machine.all_pids().into_iter().map(Pid::as_raw) {
        refuse_if(pid <= 1, || format!("{pid} is no pid of a worker"))?;
        refuse_if(!known.insert(pid), || {
            format!("two workers have the pid {pid}")
        })?;
    }
    Ok(())
}

/// At most one generation is current, at most one is starting, and a retiring one has a successor.
fn check_states(machine: &Machine) -> Result<(), String> {
    let numbers = |state: State| -> Vec<u32> {
        machine
            .generations()
            .filter(|generation| generation.state() == state)
            .map(|generation| generation.number)
            .collect()
    };
    for (state, name) in [(State::Current, "current"), (State::Starting, "starting")] {
        if let [first, second, ..] = numbers(state)[..] {
            return Err(format!("generations {first} and {second} are both {name}"));
        }
    }
    let current = machine.current().map(|generation| generation.number);
    // While it is stopping, they end in any order.
    if !machine.is_stopping() {
        for number in numbers(State::Retiring) {
            refuse_if(current.is_none_or(|current| current < number), || {
                format!("generation {number} is retiring, and no newer one serves")
            })?;
        }
    }
    if let Some(starting) = machine.starting() {
        let (number, last) = (starting.number, machine.last_number);
        // Sweepers have numbers too.
        refuse_if(number != last && !machine.has_lanes(), || {
            format!("generation {number} is starting, and the last one was {last}")
        })?;
    }
    check_health(machine)?;
    check_canary(machine)?;
    check_lanes(machine)?;
    check_served(machine)
}

/// Only what is current is asked.
fn check_health(machine: &Machine) -> Result<(), String> {
    let mut generations = machine.generations();
    let unhealthy =
        generations.find(|one| one.unhealthy.is_some() && one.state() != State::Current);
    match unhealthy {
        Some(Generation { number, .. }) => Err(format!(
            "generation {number} is unhealthy, and it is not current"
        )),
        None => Ok(()),
    }
}

/// A canary has been given a share, beside an older generation that is current.
fn check_canary(machine: &Machine) -> Result<(), String> {
    let mut canaries = machine
        .generations()
        .filter(|one| one.state() == State::Canary);
    let (Some(canary), another) = (canaries.next(), canaries.next()) else {
        return Ok(());
    };
    let number = canary.number;
    refuse_if(another.is_some(), || {
        format!("generation {number} is a canary, and another one is as well")
    })?;
    if machine.is_stopping() {
        return Ok(());
    }
    let current = machine.current().map(|one| one.number);
    refuse_if(current.is_none_or(|current| current > number), || {
        format!("generation {number} is a canary, and nothing older is current")
    })?;
    refuse_if(machine.is_starting() || machine.planned.is_some(), || {
        format!("generation {number} is a canary, and something newer is started")
    })?;
    let share = machine.selected.canary.as_ref().map(|one| &one.share);
    let is_shared =
        share.is_some_and(|share| (share.generation, share.lane) == (number, canary.lane));
    refuse_if(!is_shared || !machine.has_lanes(), || {
        format!("generation {number} is a canary without a share")
    })
}

/// Each generation has a lane that is there.
fn check_lanes(machine: &Machine) -> Result<(), String> {
    let Settings { lanes, shards, .. } = machine.settings;
    let canary = machine.selected.canary.as_ref();
    let shares = || std::iter::once(&machine.selected.main).chain(canary.map(|one| &one.share));
    let of_generations = machine.generations().map(|one| one.lane);
    let mut all = of_generations.chain(shares().map(|share| share.lane));
    let mut all = all.by_ref().chain(machine.selected.flows.iter().copied());
    if let Some(lane) = all.find(|lane| *lane >= lanes) {
        return Err(format!("there is no lane {lane} of {lanes}"));
    }
    let is_wrong = |share: &Share| {
        share.shards.is_empty() || share.shards.iter().any(|shard| *shard >= shards)
    };
    refuse_if(shares().any(is_wrong), || {
        format!(
            "a share is of sockets that are not there: {:?}",
            machine.selected
        )
    })?;
    let percent = canary.map_or(1, |canary| canary.percent);
    refuse_if(!(1..=99).contains(&percent), || {
        format!("a share of {percent} of 100")
    })
}

/// Whoever is current has served last, after what a restart replaced.
fn check_served(machine: &Machine) -> Result<(), String> {
    let Machine {
        served,
        served_before,
        last_number,
        ..
    } = machine;
    if let Some(current) = machine.current().map(|generation| generation.number) {
        refuse_if(served.is_none(), || {
            "a generation is current, and none has ever committed".to_owned()
        })?;
        refuse_if(*served != Some(current), || {
            format!("generation {current} is current, and another one has served last")
        })?;
    }
    let is_in_order = served_before.is_none_or(|before| Some(before) < *served);
    refuse_if(!is_in_order || *served > Some(*last_number), || {
        "what has served is in no order".to_owned()
    })
}

/// Something is going on, and it is consistent with everything else.
fn check_phase(machine: &Machine) -> Result<(), String> {
    let is_empty = machine.generations.is_empty();
    let (is_starting, is_planned) = (machine.is_starting(), machine.planned.is_some());
    match machine.phase {
        Phase::Serving => {
            refuse_if(is_starting && is_planned, || {
                "a start is under way, and another one is planned".to_owned()
            })?;
            let is_checking = machine.checking.is_some();
            let (is_stopping_first, stops_first) =
                (machine.stopping_first.is_some(), machine.stops_first());
            let may_wait = stops_first || machine.has_lanes();
            let is_held_up = is_stopping_first || (is_planned && may_wait);
            refuse_if(
                machine.restart_wanted && !is_starting && !is_checking && !is_held_up,
                || "a restart waits for the end of a start, and none is under way".to_owned(),
            )?;
            refuse_if(
                machine.postponed.is_some() && machine.current().is_some(),
                || "a restart waits for what served, and that serves".to_owned(),
            )?;
            check_stopping_first(machine)?;
            let is_hopeless = machine.current().is_none()
                && !(is_starting || is_planned || is_checking || is_stopping_first);
            refuse_if(is_hopeless, || {
                "nothing serves, and nothing will".to_owned()
            })
        }
        Phase::Stopping { .. } => {
            let is_postponed = machine.postponed.is_some() || machine.stopping_first.is_some();
            refuse_if(is_planned || is_postponed || machine.restart_wanted, || {
                "it is stopping, and a start is planned".to_owned()
            })?;
            refuse_if(is_empty, || {
                "it is stopping, and no worker is left".to_owned()
            })
        }
        Phase::Finished => refuse_if(!is_empty, || {
            "it has finished, and workers are left".to_owned()
        }),
    }
}

/// A restart that waits for the end of what served is all that is going on.
fn check_stopping_first(machine: &Machine) -> Result<(), String> {
    let Some(number) = machine.stopping_first() else {
        return Ok(());
    };
    let is_other = machine.is_starting() || machine.planned.is_some();
    refuse_if(
        !machine.stops_first() || is_other || machine.current().is_some(),
        || format!("generation {number} is to stop before a start, and something else goes on"),
    )?;
    refuse_if(machine.is_alone() || machine.outage.is_none(), || {
        format!("generation {number} is to stop before a start, and has stopped")
    })
}

fn refuse_if(is_wrong: bool, why: impl FnOnce() -> String) -> Result<(), String> {
    match is_wrong {
        true => Err(why()),
        false => Ok(()),
    }
}
