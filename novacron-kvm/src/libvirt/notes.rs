//! What NovaCron writes into a domain's definition: whose it is, that it was started, what was asked of it, how it ended.
//!
//! ```text
//!   domain   at define                     cluster, VM, epoch
//!   media    at define, and before one is put into a CD-ROM drive    which volume each is: a drive has a name of its own
//!   started  before it is started          from here on it is never Defined again
//!   asked    before a request to end       what tells a request from the guest's own doing
//!   ended    after the end, by whoever sees it first; before it, where NovaCron makes it
//! ```
//! Each lies in a namespace of its own and is written by one call of libvirt's, all but `media` once: so nothing is read,
//! changed and written back, and two writers cannot undo each other. `media` has one writer, who has the domain's turn. They
//! stay with the definition, over every restart.

use std::fmt;

use novacron_core::driver::DomainId;
use novacron_core::model::{ClusterId, Epoch, Exit, VmId, VolumeId};
use serde::{Deserialize, Serialize};

use super::xml::Disk;

/// The metadata of a domain, as far as it is NovaCron's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Metadata {
    #[serde(
        rename(
            serialize = "novacron:novacron-domain",
            deserialize = "novacron-domain"
        ),
        skip_serializing_if = "Option::is_none"
    )]
    pub(super) domain: Option<Identity>,
    #[serde(
        rename(serialize = "media:novacron-media", deserialize = "novacron-media"),
        skip_serializing_if = "Option::is_none"
    )]
    pub(super) media: Option<Media>,
    #[serde(rename = "novacron-started", skip_serializing)]
    pub(super) started: Option<Started>,
    #[serde(rename = "novacron-asked", skip_serializing)]
    pub(super) asked: Option<Asked>,
    #[serde(rename = "novacron-ended", skip_serializing)]
    pub(super) ended: Option<Ended>,
}

/// The identity's namespace.
pub(super) const IDENTITY: &str = "https://github.com/khryptorgraphics/novacron/xmlns/domain/1";

/// Whose a domain is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Identity {
    #[serde(rename(serialize = "@xmlns:novacron"), skip_deserializing)]
    namespace: &'static str,
    #[serde(rename = "@cluster")]
    cluster: ClusterId,
    #[serde(rename = "@vm")]
    vm: VmId,
    #[serde(rename = "@epoch")]
    epoch: Epoch,
}

impl Identity {
    pub(super) fn of(id: DomainId) -> Self {
        Self {
            namespace: IDENTITY,
            cluster: id.cluster,
            vm: id.vm,
            epoch: id.epoch,
        }
    }

    pub(super) fn id(&self) -> DomainId {
        DomainId {
            cluster: self.cluster,
            vm: self.vm,
            epoch: self.epoch,
        }
    }
}

impl Metadata {
    /// The volume of a disk, or of the medium in a drive.
    pub(super) fn volume(&self, disk: &Disk) -> Option<VolumeId> {
        if !disk.is_drive() {
            return disk.volume();
        }
        let place = disk.place()?;
        let mut known = self.media.iter().flat_map(|media| &media.media);
        let medium = known.find(|medium| medium.source == place)?;
        Some(medium.volume)
    }
}

/// Which volumes the media in its drives are, or were.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename = "novacron-media")]
pub(super) struct Media {
    #[serde(rename(serialize = "@xmlns:media"), skip_deserializing)]
    namespace: String,
    #[serde(rename = "medium", default)]
    media: Vec<Medium>,
}

/// A medium: what stands in a drive's `<source>`, and the volume that this is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Medium {
    #[serde(rename = "@volume")]
    volume: VolumeId,
    #[serde(rename = "@source")]
    source: String,
}

impl Media {
    /// That these volumes are in these drives; none if none is.
    pub(super) fn of<'a>(media: impl Iterator<Item = (VolumeId, &'a Disk)>) -> Option<Self> {
        let medium = |(volume, drive): (VolumeId, &Disk)| {
            let source = drive.place()?;
            Some(Medium { volume, source })
        };
        let media: Vec<_> = media.filter_map(medium).collect();
        (!media.is_empty()).then(|| Self {
            namespace: Self::namespace(),
            media,
        })
    }
}

impl Note for Media {
    const KEY: &'static str = "media";
}

/// Something that is written into a definition later on.
pub(super) trait Note: Serialize {
    /// Its element's namespace prefix, and the last part of its namespace.
    const KEY: &'static str;

    /// The namespace.
    fn namespace() -> String {
        format!(
            "https://github.com/khryptorgraphics/novacron/xmlns/{}/1",
            Self::KEY
        )
    }
}

/// It was started.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename = "novacron-started")]
pub(super) struct Started {}

impl Note for Started {
    const KEY: &'static str = "started";
}

/// It was asked to end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename = "novacron-asked")]
pub(super) struct Asked {
    #[serde(rename = "@how")]
    pub(super) how: How,
}

/// How it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum How {
    /// By its power button.
    Shutdown,
    /// It was not asked, but ended.
    Kill,
}

impl Note for Asked {
    const KEY: &'static str = "asked";
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename = "novacron-ended")]
pub(super) struct Ended {
    #[serde(rename = "@how")]
    how: End,
    #[serde(rename = "@detail", default, skip_serializing_if = "String::is_empty")]
    detail: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum End {
    GuestShutdown,
    Requested,
    Panicked,
    Crashed,
    Terminated,
    StartFailed,
}

impl Note for Ended {
    const KEY: &'static str = "ended";
}

impl Ended {
    pub(super) fn of(exit: &Exit) -> Self {
        let (how, detail) = match exit {
            Exit::GuestShutdown => (End::GuestShutdown, ""),
            Exit::Requested => (End::Requested, ""),
            Exit::Panicked => (End::Panicked, ""),
            Exit::Crashed { detail } => (End::Crashed, detail.as_str()),
            Exit::Terminated { detail } => (End::Terminated, detail.as_str()),
            Exit::StartFailed { detail } => (End::StartFailed, detail.as_str()),
        };
        // XML takes no control characters, and the definition should stay small.
        let clean = |c: char| if c.is_control() { ' ' } else { c };
        let detail = detail.chars().map(clean).take(1000).collect();
        Self { how, detail }
    }

    pub(super) fn exit(&self) -> Exit {
        let detail = self.detail.clone();
        match self.how {
            End::GuestShutdown => Exit::GuestShutdown,
            End::Requested => Exit::Requested,
            End::Panicked => Exit::Panicked,
            End::Crashed => Exit::Crashed { detail },
            End::Terminated => Exit::Terminated { detail },
            End::StartFailed => Exit::StartFailed { detail },
        }
    }
}

impl fmt::Display for How {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Shutdown => "shutdown",
            Self::Kill => "kill",
        })
    }
}
