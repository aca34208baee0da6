//! Giving the kernel an object's BTF, newest dialect first.

use std::os::fd::OwnedFd;

use ebpf_manager_elf::Object;
use ebpf_manager_elf::btf::encode::BtfFeatures;
use ebpf_manager_sys::SysError;
use ebpf_manager_sys::bpf::{self as sys, BtfLoad, Log};

use crate::cure::{self, Need};
use crate::error::LoadError;
use crate::map::Loss;
use crate::memlock;
use crate::verifier_log::VerifierLog;

/// What is given up, in this order, until the kernel accepts the rest.
const NOVELTIES: [(BtfFeatures, Loss); 7] = [
    (
        BtfFeatures::QMARK_DATASEC,
        Loss {
            what: "BTF section names that are no identifiers",
            since: "6.9",
        },
    ),
    (
        BtfFeatures::ENUM64,
        Loss {
            what: "64-bit enumerations in BTF",
            since: "6.0",
        },
    ),
    (
        BtfFeatures::TYPE_TAG,
        Loss {
            what: "type tags in BTF",
            since: "5.17",
        },
    ),
    (
        BtfFeatures::DECL_TAG,
        Loss {
            what: "declaration tags in BTF",
            since: "5.16",
        },
    ),
    (
        BtfFeatures::FLOAT,
        Loss {
            what: "floating-point types in BTF",
            since: "5.13",
        },
    ),
    (
        BtfFeatures::FUNC_GLOBAL,
        Loss {
            what: "separately verified global functions",
            since: "5.6",
        },
    ),
    (
        BtfFeatures::DATASEC,
        Loss {
            what: "types of global variables",
            since: "5.2",
        },
    ),
];

/// Loads the object's BTF; `None` if it has none or the kernel takes none at
/// all (before 4.18). Also says what had to be left out.
pub(crate) fn load(object: &Object) -> Result<(Option<OwnedFd>, Vec<Loss>), LoadError> {
    let encode = |features| {
        object
            .btf_for_kernel(features)
            .map_err(|source| LoadError::Object { path: None, source })
    };
    // What the kernel refused last time says nothing: an object's types may be
    // at fault, in a way that goes with one of the features.
    let mut features = BtfFeatures::all();
    let Some(mut bytes) = encode(features)? else {
        return Ok((None, Vec::new()));
    };
    let first = match try_load(&bytes) {
        Ok(fd) => return Ok((Some(fd), Vec::new())),
        Err(err) => err,
    };
    let missing = cure::missing_capability(Need::Bpf);
    if missing.is_some() || first.errno().is_permission() {
        let cure = missing.or_else(|| cure::find(&first, Need::Bpf));
        return Err(LoadError::Btf {
            source: first,
            log: VerifierLog::default(),
            cure,
        });
    }
    let full = bytes.clone();
    let novelties = if cfg!(feature = "old-kernels") {
        &NOVELTIES[..]
    } else {
        &[]
    };
    for (feature, _) in novelties {
        features -= *feature;
        let Some(next) = encode(features)? else { break };
        if next == bytes {
            continue;
        }
        bytes = next;
        if let Ok(fd) = try_load(&bytes) {
            return Ok((Some(fd), losses(object, features)?));
        }
    }
    explain(&full)
}

fn try_load(bytes: &[u8]) -> Result<OwnedFd, SysError> {
    memlock::retry(|| {
        sys::btf_load(
            &BtfLoad {
                btf: bytes,
                token: None,
            },
            None,
        )
    })
}

/// What leaving out the missing features took from this object.
fn losses(object: &Object, features: BtfFeatures) -> Result<Vec<Loss>, LoadError> {
    let mut lost = Vec::new();
    let encode = |features| {
        object
            .btf_for_kernel(features)
            .map_err(|source| LoadError::Object { path: None, source })
    };
    let full = encode(BtfFeatures::all())?;
    for (feature, loss) in NOVELTIES {
        if !features.contains(feature) && encode(BtfFeatures::all() - feature)? != full {
            lost.push(loss);
        }
    }
    Ok(lost)
}

/// The kernel refuses every dialect: asks it why.
fn explain(bytes: &[u8]) -> Result<(Option<OwnedFd>, Vec<Loss>), LoadError> {
    let mut buffer = vec![0; 64 * 1024];
    let mut log = Log::new(1, &mut buffer);
    let source = match sys::btf_load(
        &BtfLoad {
            btf: bytes,
            token: None,
        },
        Some(&mut log),
    ) {
        Ok(fd) => return Ok((Some(fd), Vec::new())),
        Err(err) => err,
    };
    let wanted = log.true_size();
    let truncated = wanted.is_some_and(|w| w as usize > buffer.len());
    // EINVAL without a word is what kernels before 4.18 answer.
    let log = VerifierLog::new(buffer, truncated);
    if log.is_empty() && source.is(ebpf_manager_sys::Errno::EINVAL) {
        let loss = Loss {
            what: "type information of the object (BTF)",
            since: "4.18",
        };
        return Ok((None, vec![loss]));
    }
    let cure = cure::find(&source, Need::Bpf);
    Err(LoadError::Btf { source, log, cure })
}
