//! Files and a directory for the user, where only root can make them: the binder of paths does, as it makes sockets there.
//! The list says which; each is requested once it is known that nobody else's is replaced.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use common::for_user::Place;
use common::message::{Ask, ForUser, Grant, Identity, Kind, Refusal};
use common::trusted_path::{Trust, open_directory};
use common::unix_socket::RootDirectory;
use nix::errno::Errno;

use crate::listeners::binder::{Answer, Binder, channel_failed};
use crate::words::failure::Failure;
use crate::words::file_type::name_of_type;
use crate::words::{distrust, remedy};

/// What the user needs, wherever it is.
#[derive(Debug, Default)]
pub struct Wanted {
    pub directory: Option<PathBuf>,
    pub files: Vec<PathBuf>,
}

/// What of it root makes.
#[derive(Debug, Default)]
pub struct Granted {
    all: Vec<One>,
}

#[derive(Debug)]
struct One {
    /// As the user has named it.
    path: PathBuf,
    kind: Kind,
    /// Its number in the list; `None` once it was requested.
    grant: Option<u32>,
}

impl Granted {
    /// Chooses from what is wanted, and adds to the list. With the launcher's privileges.
    pub fn choose(wanted: &Wanted, grants: &mut Vec<Grant>) -> Granted {
        let directory = wanted.directory.iter().map(|one| (one, Kind::Directory));
        let files = wanted.files.iter().map(|one| (one, Kind::File));
        let mut all = Vec::new();
        for (path, kind) in directory.chain(files) {
            // Where a path begins in a directory that is gone, the user finds out what is wrong.
            if let Ok(absolute) = std::path::absolute(path)
                && open_directory(parent(&absolute), &Trust::ROOT).is_ok()
                && let Ok(number) = u32::try_from(grants.len())
            {
                grants.push(Grant::ForUser(ForUser {
                    path: absolute.into(),
                    kind,
                }));
                let (path, grant) = (path.clone(), Some(number));
                all.push(One { path, kind, grant });
            }
        }
        Granted { all }
    }

    pub fn has(&self, path: &Path) -> bool {
        self.all.iter().any(|one| one.path == path)
    }

    /// All paths.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.all.iter().map(|one| one.path.as_path())
    }

    /// Whether something of it must be removed at the end.
    pub fn lasts(&self) -> bool {
        self.all.iter().any(|one| one.kind == Kind::File)
    }

    /// Lets the binder make it; `None` if that is not up to root.
    ///
    /// # Errors
    /// Why it was refused, after which the binder makes nothing more.
    pub fn make(
        &mut self,
        path: &Path,
        binder: Option<&mut Binder>,
        cannot: impl Fn(&str) -> Failure,
    ) -> Result<Option<OwnedFd>, Failure> {
        let one = self.all.iter_mut().find(|one| one.path == path);
        let (Some(one), Some(binder)) = (one, binder) else {
            return Ok(None);
        };
        let Some(grant) = one.grant.take() else {
            return Ok(None);
        };
        match binder.bind(vec![Ask::Path { grant }], 1)? {
            Answer::Sockets { mut sockets, .. } => match sockets.pop() {
                Some(descriptor) => Ok(Some(descriptor)),
                None => Err(channel_failed("a file is missing")),
            },
            Answer::Refused { refusal, .. } => {
                let failure = cannot(&cause(&refusal, one.kind));
                Err(failure.hint_if(hint(&refusal, path)))
            }
        }
    }

    /// For a dry run, with the launcher's privileges: what the binder would refuse.
    pub fn examine(
        &self,
        path: &Path,
        user: &Identity,
        cannot: impl Fn(&str) -> Failure,
    ) -> Result<(), Failure> {
        let Some(one) = self.all.iter().find(|one| one.path == path) else {
            return Ok(());
        };
        let examined = std::path::absolute(path)
            .map_err(|_| Refusal::NamesDirectory)
            .and_then(|path| {
                let directory = open_directory(parent(&path), &Trust::ROOT);
                let directory = RootDirectory(directory.map_err(Refusal::Untrusted)?);
                Place::examine(directory, &path, one.kind, user.uid)
            });
        examined
            .map(drop)
            .map_err(|refusal| cannot(&cause(&refusal, one.kind)).hint_if(hint(&refusal, path)))
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

fn cause(refusal: &Refusal, kind: Kind) -> String {
    let wanted = match kind {
        Kind::File => "a regular file",
        Kind::Directory => "a directory",
    };
    match refusal {
        Refusal::Errno(errno) => Errno::from_raw(*errno).desc().to_owned(),
        Refusal::NamesDirectory => "it names a directory".to_owned(),
        Refusal::OtherType { file_type } => {
            format!(
                "it exists and is {}, not {wanted}",
                name_of_type(*file_type)
            )
        }
        Refusal::OfAnother { uid: 0 } => "it exists and belongs to root".to_owned(),
        Refusal::OfAnother { uid } => format!("it exists and belongs to uid {uid}"),
        Refusal::HardLinks => "it exists and has other names too".to_owned(),
        Refusal::Changing => "it changed while it was being examined".to_owned(),
        Refusal::Replaced => "something else has appeared there during the start".to_owned(),
        Refusal::Untrusted(untrusted) => distrust::of_path(untrusted),
        // Of these no binder speaks where no socket is asked for.
        Refusal::NotASocket { .. }
        | Refusal::Served
        | Refusal::MaybeServed(_)
        | Refusal::NotAllowed
        | Refusal::BadPolicy(_) => "it was refused".to_owned(),
    }
}

fn hint(refusal: &Refusal, path: &Path) -> Option<String> {
    match refusal {
        Refusal::OfAnother { .. } | Refusal::HardLinks => Some(remedy::LEFT_ALONE.to_owned()),
        // From the change of owner, the only step here for which root needs a capability.
        Refusal::Errno(libc::EPERM) => Some(remedy::CHOWN_AS_ROOT.to_owned()),
        Refusal::Errno(errno) => remedy::of_file(path, Errno::from_raw(*errno)),
        _ => None,
    }
}
