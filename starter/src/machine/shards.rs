//! Several workers with `--switch`: each slot has sockets of its own in each generation, its shard, and the kernel spreads
//! new traffic over those of the workers that serve.
//!
//! | what happens | what follows |
//! |---|---|
//! | a worker is proved, or dies while others serve | its shard gets its part of new traffic, or none; what waits there waits for the worker that replaces it |
//! | fewer workers are wanted | the shards of those that leave get no new traffic any more; each is told to stop once nothing has waited there for `--quiet-time`, or after `--switch-timeout` |
//! | more workers are wanted than there were at the start | they share the shards of the others |

use super::generation::{Content, Generation, Leaver, Slot};
use super::lane::{Quiet, Sockets, look_time};
use super::model::{Machine, Settings};
use crate::host::moment::Moment;

impl Machine {
    /// Workers that have just lost their slots leave once nothing waits in sockets that are theirs alone.
    pub(super) fn quiet_leavers(&mut self, now: Moment) {
        let Some(quiet) = self.quiet_from(now, now) else {
            return;
        };
        let shards = self.settings.shards;
        for generation in &mut self.generations {
            let kept: Vec<u8> = generation.shards_in_use(shards).collect();
            let number_of =
                |leaver: &Leaver, one: &Generation| one.shard_of(leaver.worker.slot, shards);
            let alone: Vec<usize> = (0..generation.leavers.len())
                .filter(|place| {
                    let leaver = &generation.leavers[*place];
                    let is_new = leaver.told_at.is_some() && leaver.quiet.is_none();
                    is_new && !kept.contains(&number_of(leaver, generation))
                })
                .collect();
            for place in alone {
                generation.leavers[place].quiet = Some(quiet);
            }
        }
    }

    /// When the next look at their sockets is due.
    pub(super) fn leavers_looked_at(&self) -> Option<Moment> {
        let untold = self.untold_leavers();
        let succeeded =
            untold.filter(|(number, one, _)| self.is_succeeded(*number, one.worker.slot));
        succeeded
            .filter_map(|(_, leaver, _)| Some(leaver.quiet?.look_at))
            .min()
    }

    /// Their sockets, as far as a look is due now.
    pub(super) fn looks_at_leavers(&mut self, now: Moment) -> Vec<Sockets> {
        let Settings {
            quiet_time, shards, ..
        } = self.settings;
        let mut looks = Vec::new();
        for generation in &mut self.generations {
            let lane = Sockets::of_lane(generation.lane, shards);
            for (place, quiet) in generation.quiet_leavers(shards) {
                if quiet.look_at <= now {
                    quiet.look_at = now + look_time(quiet_time);
                    looks.push(Sockets::one(lane.first.saturating_add(place)));
                }
            }
        }
        looks
    }

    /// Returns whether any of them is told to stop although something waits.
    pub(super) fn looked_at_leavers(
        &mut self,
        sockets: Sockets,
        waiting: usize,
        now: Moment,
    ) -> bool {
        let Settings {
            quiet_time,
            switch_timeout,
            shards,
            ..
        } = self.settings;
        let selected = self.selected.clone();
        let mut is_late = false;
        for generation in &mut self.generations {
            let (lane, number) = (generation.lane, generation.number);
            let first = Sockets::of_lane(lane, shards).first;
            let shared: Vec<u8> = generation.shards_in_use(shards).collect();
            for (shard, quiet) in generation.quiet_leavers(shards) {
                if Sockets::one(first.saturating_add(shard)) != sockets {
                    continue;
                }
                if shared.contains(&shard) {
                    quiet.is_over = true;
                    continue;
                }
                // As long as nobody else serves, it still gets new traffic.
                let mut shares = selected.shares();
                let is_selected =
                    shares.any(|one| one.generation == number && one.shards.contains(&shard));
                if is_selected {
                    quiet.not_before = now;
                    quiet.busy_at = now;
                }
                is_late |= quiet.looked(waiting, quiet_time, switch_timeout, now);
            }
        }
        is_late
    }
}

impl Generation {
    /// The sockets of those of its workers that serve and keep their slots.
    fn shards_in_use(&self, shards: u8) -> impl Iterator<Item = u8> {
        let serving = self.in_slots().filter(|worker| worker.is_proved());
        serving.map(move |worker| self.shard_of(worker.slot, shards))
    }

    /// Workers without a slot that leave once nothing waits in their sockets, each with the number of its shard.
    fn quiet_leavers(&mut self, shards: u8) -> impl Iterator<Item = (u8, &mut Quiet)> {
        let first = usize::from(self.shard);
        self.leavers.iter_mut().filter_map(move |leaver| {
            let shard = (first + leaver.worker.slot) % usize::from(shards.max(1));
            let quiet = leaver.quiet.as_mut().filter(|_| leaver.told_at.is_some())?;
            Some((u8::try_from(shard).ok()?, quiet))
        })
    }
}

impl Slot {
    /// Whether it has a worker, or is to get one.
    pub(super) fn is_wanted(&self) -> bool {
        match self.content {
            Content::Waiting | Content::Empty | Content::AskedFor | Content::Occupied(_) => true,
            Content::GivenUp | Content::Elsewhere => false,
        }
    }
}
