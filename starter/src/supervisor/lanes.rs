//! The lanes of the listeners at run time: which one is selected, and what workers have done to them.

use nix::unistd::Pid;

use crate::listeners::health::Occasion;
use crate::listeners::lanes::NotSelected;
use crate::machine::{By, Event, Machine, Selection, Share, Sockets};
use crate::supervisor::resources::Resources;
use crate::words::canary::Trial;
use crate::words::notice::Notice;
use crate::words::start_failure::StartFailure;
use crate::words::switch::Switching;

/// What is said about it.
fn switched(selection: &Selection) -> Notice {
    let Share {
        generation, lane, ..
    } = selection.main;
    match &selection.canary {
        None => Notice::Switching(Switching::Switched { generation, lane }),
        Some(canary) => Notice::Trial(Trial::Shared {
            generation: canary.share.generation,
            percent: canary.percent,
            is_by_client: canary.by == By::Client,
            serving: generation,
        }),
    }
}

impl Resources {
    /// Gives new traffic to these. Returns the event if that is refused.
    pub fn select(&mut self, selection: &Selection) -> Option<Event> {
        let selected = self.blueprint.lanes.selected();
        let is_of_flows = selection.is_same(selected);
        // More sockets of what nobody else has had.
        let is_nobodys = selected.main.generation == 0 && selection.canary.is_none();
        let begins = is_nobodys && selected.main.lane == selection.main.lane;
        let before = switched(selected);
        let outcome = self.select_lanes(selection);
        if is_of_flows {
            // If that has failed, packets that name a lane without a worker wait there until the next time.
            return None;
        }
        let Err(NotSelected { listener, errno }) = outcome else {
            // Perhaps they are other workers of the same generations.
            let notice = Some(switched(selection)).filter(|notice| *notice != before && !begins);
            notice.iter().for_each(|notice| self.log.say(notice));
            return None;
        };
        let announced = self.blueprint.announced.get(listener);
        let listener = announced.map(|one| one.name.to_string_lossy().into_owned());
        let listener = listener.unwrap_or_default();
        let cause = StartFailure::not_switched(&listener, errno);
        let failed = Switching::NotSwitched { listener, errno };
        self.log.say(&Notice::Switching(failed));
        let selected = self.blueprint.lanes.selected().clone();
        Some(Event::NotSelected { selected, cause })
    }

    /// After an upgrade: the program before may have left a switch half done.
    pub fn select_again(&mut self, machine: &Machine) {
        if let Some(selection) = machine.selected() {
            // If that fails, it is as that program has left it.
            let _ = self.select_lanes(selection);
        }
    }

    fn select_lanes(&mut self, selection: &Selection) -> Result<(), NotSelected> {
        let blueprint = &mut self.blueprint;
        blueprint.lanes.select(&blueprint.sockets, selection)
    }

    /// Which sockets that no worker serves have something waiting, and which of them were shut down.
    pub fn look_at_unattended(&self, machine: &Machine) -> (Vec<u8>, Vec<u8>) {
        let (lanes, sockets) = (&self.blueprint.lanes, &self.blueprint.sockets);
        let watched: Vec<u8> = machine.watched_sockets().collect();
        let waits = |one: &u8| lanes.count_waiting(sockets, Sockets::one(*one)) > 0;
        let is_shut_down = |one: &u8| lanes.is_shut_down(sockets, Sockets::one(*one));
        let waiting = watched.iter().copied().filter(waits).collect();
        (waiting, watched.into_iter().filter(is_shut_down).collect())
    }

    /// A worker that ends may shut down its sockets, which others need.
    pub fn mend_socket(&mut self, number: u8) {
        self.mend_lanes(None);
        let blueprint = &mut self.blueprint;
        blueprint
            .lanes
            .give_up_shut_down(&blueprint.sockets, number);
    }

    /// The same for all lanes, whoever has them.
    pub fn mend_lanes(&mut self, occasion: Option<Occasion>) {
        let worker: Option<Pid> = occasion.and_then(Occasion::worker);
        let (blueprint, health) = (&mut self.blueprint, &self.health);
        let again = |place: usize, socket: &_| health.listen_again(place, socket);
        let files = &mut self.socket_files;
        let missed = blueprint
            .lanes
            .listen_again(&blueprint.sockets, files, again);
        for place in missed {
            let notice = health.mended(place, worker);
            notice.iter().for_each(|notice| self.log.say(notice));
        }
    }
}
