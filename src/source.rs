//! Where an object comes from.

use std::path::PathBuf;

use ebpf_manager_bpf::elf::{Bytes, Object};
use ebpf_manager_bpf::{LoadError, open_object};

/// Where an object comes from.
#[derive(Clone, Debug)]
pub enum ObjectSource {
    /// A file.
    Path(PathBuf),
    /// Bytes: an `include_bytes!`, or a file that was read already.
    Bytes(Bytes),
}

impl ObjectSource {
    /// An object file.
    pub fn path(path: impl Into<PathBuf>) -> ObjectSource {
        ObjectSource::Path(path.into())
    }

    /// An object in memory.
    pub fn bytes(bytes: impl AsRef<[u8]> + Send + Sync + 'static) -> ObjectSource {
        ObjectSource::Bytes(Bytes::new(bytes))
    }

    pub(crate) fn parse(&self) -> Result<Object, LoadError> {
        match self {
            ObjectSource::Path(path) => open_object(path),
            ObjectSource::Bytes(bytes) => {
                Object::from_bytes(bytes).map_err(|source| LoadError::Object { path: None, source })
            }
        }
    }
}
