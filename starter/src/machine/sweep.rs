//! What waits in sockets that no worker serves: a handshake that began before a switch, or what a dead worker did not
//! accept.
//!
//! | what happens | what follows |
//! |---|---|
//! | something waits in a socket whose workers were all told to stop or are gone | if it still does after `--quiet-time`, a *sweeper* is started: a worker from what is current, with that socket |
//! | a sweeper is proved, and nothing has waited in its socket for `--quiet-time` | it is told to stop, as old workers are |
//! | a sweeper fails, or does not accept what waits | another one is started, each time after a longer delay |
//! | something waits while earlier sweepers of the socket still have connections | one more is started, which stays the longer the more of these there are |
//! | there are as many sweepers as there may be | whatever waits does so until one of them is gone |
//!
//! The last two rows are for clients who want it so: whoever finishes a handshake late gets a sweeper, and can keep it busy.

use std::time::Duration;

use nix::unistd::Pid;

use super::generation::{Content, Generation, Slot, Stage, Why, Worker};
use super::lane::{SHORTEST_LOOK, Sockets, Stray};
use super::model::{Action, Machine, Phase, Settings};
use crate::host::moment::Moment;
use crate::words::notice::Notice;
use crate::words::switch::Switching;

/// How long to wait for a worker that could start something that can serve.
const NOBODY_YET: Duration = Duration::from_secs(1);

/// As many sweepers may there be at a time, or as many as workers if these are more.
const MOST_SWEEPERS: usize = 8;

/// The kernel gives up a handshake after about a minute (`tcp_synack_retries`, tcp(7)), so no sweeper stays for longer.
const LONGEST_STAY: Duration = Duration::from_secs(64);

impl Machine {
    /// Sockets that no worker serves, and in which nothing waits yet: [`super::Event::Stranded`] says when something does.
    pub fn watched_sockets(&self) -> impl Iterator<Item = u8> {
        let Settings { lanes, shards, .. } = self.settings;
        let sockets = (0..lanes.saturating_mul(shards)).filter(|_| self.has_lanes());
        sockets.filter(|socket| {
            self.is_unattended(*socket) && !self.strays.iter().any(|stray| stray.socket == *socket)
        })
    }

    /// Whether something serves, but no worker serves this socket.
    fn is_unattended(&self, socket: u8) -> bool {
        let serves = self.phase == Phase::Serving && self.current().is_some();
        let shards = self.settings.shards;
        let mut generations = self.generations.iter();
        serves && !generations.any(|one| one.attends_to(socket, shards))
    }

    /// At the end of each event: the workers that had these lanes cannot accept anything any more.
    pub(super) fn look_at_freed(&mut self, now: Moment) {
        for lane in std::mem::take(&mut self.freed) {
            for socket in self.sockets_of(lane).numbers() {
                let is_known = self.strays.iter().any(|stray| stray.socket == socket);
                if self.is_unattended(socket) && !is_known {
                    self.strays.push(Stray {
                        socket,
                        look_at: now + NOBODY_YET,
                        is_looked_at: true,
                        failures: 0,
                    });
                    self.actions.push(Action::Look(Sockets::one(socket)));
                }
            }
        }
    }

    /// Something waits in a socket that no worker serves. One that was told to stop may still accept it.
    pub(super) fn stranded(&mut self, socket: u8, now: Moment) {
        if self.watched_sockets().any(|one| one == socket) {
            self.strays.push(Stray {
                socket,
                look_at: now + self.settings.quiet_time.max(SHORTEST_LOOK),
                is_looked_at: false,
                failures: 0,
            });
        }
    }

    /// When the next look at any of them is due.
    pub(super) fn looks_at(&self) -> Option<Moment> {
        let strays = self.strays.iter();
        let strays = strays.filter(|one| self.is_unattended(one.socket));
        strays.map(|stray| stray.look_at).min()
    }

    /// Those that are to be looked at now.
    pub(super) fn looks_at_strays(&mut self, now: Moment) -> Vec<Sockets> {
        self.forget_strays();
        let due = self.strays.iter_mut().filter(|stray| stray.look_at <= now);
        due.map(|stray| {
            stray.look_at = now + NOBODY_YET;
            stray.is_looked_at = true;
            Sockets::one(stray.socket)
        })
        .collect()
    }

    /// Forgets sockets that a worker serves by now.
    fn forget_strays(&mut self) {
        let mut strays = std::mem::take(&mut self.strays);
        let shards = self.settings.shards;
        strays.retain(|stray| {
            // The failures of its sweepers count until one of them has served it.
            let is_swept = |one: &Generation| {
                one.stage == Stage::Sweeping
                    && one.its_sockets(shards) == Sockets::one(stray.socket)
            };
            self.is_unattended(stray.socket) || self.generations.iter().any(is_swept)
        });
        self.strays = strays;
    }

    /// Something still waits, or nothing does any more.
    pub(super) fn sweep_if_stray(&mut self, sockets: Sockets, waiting: usize, now: Moment) {
        let mut strays = self.strays.iter_mut();
        let stray = strays.find(|stray| Sockets::one(stray.socket) == sockets);
        let is_asked = stray.is_some_and(|stray| std::mem::take(&mut stray.is_looked_at));
        let socket = sockets.first;
        if !is_asked || !self.is_unattended(socket) {
            return;
        }
        let serving = self.current().filter(|current| current.serves());
        let more = self.count_more_sweepers();
        match (waiting, serving.map(|current| current.number)) {
            (0, _) => self.strays.retain(|stray| stray.socket != socket),
            (_, Some(current)) if more > 0 => {
                let (lane, is_last) = (self.lane_of_socket(socket), more == 1);
                self.say(Notice::Switching(Switching::Sweeping {
                    waiting,
                    lane,
                    is_last,
                }));
                self.start_sweeper(socket, current, now);
            }
            // Until the next look.
            (_, Some(_) | None) => {}
        }
    }

    /// How many more sweepers there may be.
    fn count_more_sweepers(&self) -> usize {
        let sweepers = self.generations.iter().filter(|one| one.is_sweeper());
        let most = self.settings.workers.max(MOST_SWEEPERS);
        most.saturating_sub(sweepers.count())
    }

    fn lane_of_socket(&self, socket: u8) -> u8 {
        socket / self.settings.shards.max(1)
    }

    fn start_sweeper(&mut self, socket: u8, current: u32, now: Moment) {
        self.last_number = self.last_number.saturating_add(1);
        let number = self.last_number;
        let mut sweeper = Generation::new(number, Why::Sweep, 0, 1, now);
        sweeper.stage = Stage::Sweeping;
        sweeper.lane = self.lane_of_socket(socket);
        sweeper.shard = socket % self.settings.shards.max(1);
        sweeper.slots = vec![Slot::new(Content::AskedFor, now)];
        self.generations.push(sweeper);
        self.actions.push(Action::Spawn {
            generation: number,
            slot: 0,
            from: self.source_within(current),
        });
        self.save_status();
    }

    /// At the end of each event: a proved sweeper serves until nothing has waited for `--quiet-time`.
    pub(super) fn watch_sweepers(&mut self, now: Moment) {
        let shards = self.settings.shards;
        let is_new = |one: &&Generation| one.stage == Stage::Sweeping && one.quiet.is_none();
        let new = self.generations.iter().filter(is_new);
        let new = new.filter(|one| one.serves());
        let new: Vec<(u32, u8)> = new
            .map(|one| (one.number, one.its_sockets(shards).first))
            .collect();
        for (number, socket) in new {
            let quiet = self.quiet_from(now + self.stay_of(number, socket), now);
            if let Some(sweeper) = self.generation_mut(number) {
                sweeper.quiet = quiet;
            }
        }
    }

    /// How long a sweeper stays at least: longer if earlier ones of its socket are still busy.
    fn stay_of(&self, number: u32, socket: u8) -> Duration {
        let shards = self.settings.shards;
        let its = |one: &&Generation| one.its_sockets(shards) == Sockets::one(socket);
        let sweepers = self.generations.iter().filter(|one| one.is_sweeper());
        let others = sweepers.filter(its).filter(|one| one.number != number);
        match u32::try_from(others.count()) {
            Ok(0) => Duration::ZERO,
            others => {
                let times = 2_u32.saturating_pow(others.unwrap_or(u32::MAX));
                let stay = self.settings.quiet_time.max(NOBODY_YET);
                stay.saturating_mul(times).min(LONGEST_STAY)
            }
        }
    }

    /// Ends sweepers: nothing waits there any more, or they do not accept what does.
    pub(super) fn end_sweepers(&mut self, is_late: bool, now: Moment) {
        let shards = self.settings.shards;
        let over = self.generations.iter_mut().filter(|one| {
            one.stage == Stage::Sweeping && one.quiet.is_some_and(|quiet| quiet.is_over)
        });
        let mut ended: Vec<(u8, Vec<Pid>)> = Vec::new();
        for generation in over {
            generation.stage = Stage::Draining;
            generation.quiet = None;
            let socket = generation.its_sockets(shards).first;
            ended.push((socket, generation.take_untold()));
        }
        for (socket, pids) in ended {
            let patience = match is_late {
                true => {
                    self.not_swept(socket, now);
                    self.patience_with_failed()
                }
                false => {
                    self.strays.retain(|stray| stray.socket != socket);
                    self.settings.kill_old_timeout
                }
            };
            let signal = self.settings.signal_on_hup;
            self.tell_to_stop(&pids, signal, patience, now);
            self.save_status();
        }
    }

    /// A sweeper could not be started, or has died.
    pub(super) fn sweeper_failed(&mut self, number: u32, now: Moment) {
        let shards = self.settings.shards;
        if let Some(sweeper) = self.generation_mut(number) {
            sweeper.stage = Stage::Failed;
            let socket = sweeper.its_sockets(shards).first;
            self.not_swept(socket, now);
        }
        self.drop_gone();
        self.save_status();
    }

    fn not_swept(&mut self, socket: u8, now: Moment) {
        let failures = self.strays.iter().find(|stray| stray.socket == socket);
        let failures = failures.map_or(0, |stray| stray.failures).saturating_add(1);
        self.strays.retain(|stray| stray.socket != socket);
        self.strays.push(Stray {
            socket,
            look_at: now + self.backoff(failures),
            is_looked_at: false,
            failures,
        });
        let lane = self.lane_of_socket(socket);
        self.say(Notice::Switching(Switching::NotSwept { lane }));
    }
}

impl Worker {
    /// How a sweeper has ended.
    pub(super) fn says_how_it_ended(&self, status: i32) -> Notice {
        let pid = self.pid;
        match self.has_served() {
            true => Notice::DiedUnexpectedly { pid, status },
            false => Notice::FailedToStart { pid, status },
        }
    }
}
