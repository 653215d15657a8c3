//! The files of the sockets: who removes which at the end, and which sockets the service manager keeps.

use std::ffi::OsString;
use std::os::fd::OwnedFd;

use common::unix_socket::MadeFile;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::host::luggage::{Carried, Luggage};
use crate::listeners::binder::{Binder, PackedBinder};
use crate::listeners::second_name::SecondName;
use crate::listeners::spec::PathSpec;
use crate::listeners::store::{PackedStore, Store, name_of_path};
use crate::listeners::user_directory::UserDirectory;
use crate::words::notice::Notice;

/// The socket files, each removed by the process that created it.
pub struct SocketFiles {
    /// In the order of their listeners.
    pub(super) ours: Vec<OurFile>,
    pub(super) binder: Option<Binder>,
    pub(super) store: Option<Store>,
}

/// The file of a socket that we have made.
pub(super) struct OurFile {
    pub made: MadeFile<UserDirectory>,
    pub second_name: SecondName,
    /// The name of its socket in the store.
    stored_as: String,
}

/// The same for the next program.
#[derive(Debug, Serialize, Deserialize)]
pub struct PackedFiles {
    ours: Vec<PackedFile>,
    binder: Option<PackedBinder>,
    store: Option<PackedStore>,
}

#[derive(Debug, Serialize, Deserialize)]
struct PackedFile {
    directory: Carried,
    name: OsString,
    file: Option<Carried>,
    second_name: SecondName,
    stored_as: String,
}

impl OurFile {
    pub fn new(made: MadeFile<UserDirectory>, spec: &PathSpec) -> OurFile {
        OurFile {
            made,
            second_name: SecondName::of(&spec.path),
            stored_as: name_of_path(spec),
        }
    }

    fn pack(&self, luggage: &mut Luggage) -> PackedFile {
        let (directory, name) = self.made.place();
        PackedFile {
            directory: luggage.put(directory),
            name: name.to_owned(),
            file: self.made.file().map(|file| luggage.put(file)),
            second_name: self.second_name.clone(),
            stored_as: self.stored_as.clone(),
        }
    }

    fn unpack(packed: PackedFile) -> OurFile {
        let directory = UserDirectory(packed.directory.take());
        let file = packed.file.map(Carried::take);
        OurFile {
            made: MadeFile::of(directory, packed.name, file),
            second_name: packed.second_name,
            stored_as: packed.stored_as,
        }
    }

    /// Removes both names, where they are still the file's.
    pub fn remove(&self) {
        let file = self.made.file();
        file.into_iter()
            .for_each(|file| self.second_name.remove(file));
        self.made.remove();
    }
}

impl SocketFiles {
    /// For the next program, which removes them at the end.
    pub fn pack(&self, luggage: &mut Luggage) -> PackedFiles {
        PackedFiles {
            ours: self.ours.iter().map(|file| file.pack(luggage)).collect(),
            binder: self.binder.as_ref().map(|binder| binder.pack(luggage)),
            store: self.store.as_ref().map(|store| store.pack(luggage)),
        }
    }

    /// What another program has packed.
    pub fn unpack(packed: PackedFiles) -> SocketFiles {
        SocketFiles {
            ours: packed.ours.into_iter().map(OurFile::unpack).collect(),
            binder: packed.binder.map(Binder::unpack),
            store: packed.store.map(Store::unpack),
        }
    }

    /// The binder that waits to remove its files at the end.
    pub fn binder(&self) -> Option<Pid> {
        self.binder.as_ref().map(Binder::pid)
    }

    /// The service manager is about to start the server again: it gets the sockets from the store, and their files stay.
    pub fn leave_what_is_stored(&mut self) {
        if let Some(store) = &self.store {
            self.ours.retain(|file| !store.keeps(&file.stored_as));
        }
    }

    /// The binder has exited by itself and was reaped; there is nothing to wait for any more.
    pub fn binder_is_gone(&mut self) {
        self.binder = None;
    }

    /// A new socket has taken the place of an earlier one: in the store too.
    pub(super) fn store_again(&mut self, place: usize, socket: &OwnedFd) -> Vec<Notice> {
        let (Some(store), Some(file)) = (&mut self.store, self.ours.get(place)) else {
            return Vec::new();
        };
        store.remove(file.stored_as.as_ref());
        store.keep(&file.stored_as, socket);
        store.take_notices()
    }
}

/// Removes every socket file that is still ours, here and by the binder, and waits for the binder to exit.
impl Drop for SocketFiles {
    fn drop(&mut self) {
        for file in &self.ours {
            // First, or the next start could get a socket that nobody can reach.
            if let Some(store) = &mut self.store {
                store.remove(file.stored_as.as_ref());
            }
            file.remove();
        }
        if let Some(binder) = self.binder.take() {
            // Nothing can be done about a binder that exited in another way.
            drop(binder.end());
        }
    }
}
