//! The running kernel's types.
//!
//! Read only when an object needs them, shared by all loads that run at the
//! same time, and released with the last of them unless a caller keeps a
//! reference.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use ebpf_manager_elf::btf::{Btf, NameHit, NameQuery};
use ebpf_manager_elf::sort::sort;
use ebpf_manager_sys::bpf::{self, ObjectKind};
use ebpf_manager_sys::mmap::{self, ReadOnlyMapping};
use ebpf_manager_sys::{Errno, SysError};

use crate::cure::Cure;
use crate::error::KernelBtfError;

/// Where the kernel shows its own BTF. Linux 5.4.
const VMLINUX: &str = "/sys/kernel/btf/vmlinux";
/// Beside it, that of its modules. Linux 5.11.
const DIRECTORY: &str = "/sys/kernel/btf";

/// BTF of a kernel: the running one's, or a file for it.
#[derive(Debug)]
pub struct KernelBtf {
    data: Data,
}

#[derive(Debug)]
enum Data {
    /// The kernel's own memory. Linux 6.16.
    Mapped(ReadOnlyMapping),
    /// A copy.
    Owned(Vec<u8>),
}

/// The copy that is in use at the moment.
static SHARED: Mutex<Weak<KernelBtf>> = Mutex::new(Weak::new());

impl KernelBtf {
    /// The running kernel's BTF. The first caller maps it (Linux 6.16 and
    /// later: no memory is used) or reads it (older: some megabytes); callers
    /// at the same time share it. It goes away with the last reference.
    ///
    /// Requires at least Linux 5.4 with `CONFIG_DEBUG_INFO_BTF`.
    ///
    /// # Errors
    /// [`KernelBtfError::Read`], with [`Cure::NoKernelBtf`] if the kernel has
    /// none.
    pub fn vmlinux() -> Result<Arc<KernelBtf>, KernelBtfError> {
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(btf) = shared.upgrade() {
            return Ok(btf);
        }
        let data = match mmap::map_vmlinux_btf() {
            Ok(mapping) => Data::Mapped(mapping),
            Err(_) => Data::Owned(read(Path::new(VMLINUX))?),
        };
        let btf = Arc::new(KernelBtf { data });
        *shared = Arc::downgrade(&btf);
        Ok(btf)
    }

    /// BTF from a file, for a kernel that has none of its own. Whether it is
    /// whole shows at [`KernelBtf::btf`], or when an object is loaded with it.
    ///
    /// # Errors
    /// [`KernelBtfError::Read`].
    pub fn from_file(path: &Path) -> Result<Arc<KernelBtf>, KernelBtfError> {
        Ok(Arc::new(KernelBtf {
            data: Data::Owned(read(path)?),
        }))
    }

    /// The BTF of each loaded module, in order of names, read as the iterator
    /// gets there. They are split BTF on top of [`KernelBtf::vmlinux`]: use
    /// [`KernelBtf::as_bytes`] with [`Btf::parse_split`]. A module that goes
    /// away in between is left out.
    ///
    /// Requires at least Linux 5.11 with `CONFIG_DEBUG_INFO_BTF_MODULES`;
    /// otherwise there are none.
    pub fn modules() -> impl Iterator<Item = KernelBtf> {
        let paths = modules_of(Path::new(DIRECTORY)).unwrap_or_default();
        paths.into_iter().filter_map(|path| {
            let data = Data::Owned(read(&path).ok()?);
            Some(KernelBtf { data })
        })
    }

    /// The same of another kernel, from a copy of its `/sys/kernel/btf`: all
    /// files of the directory `dir` but `vmlinux`.
    ///
    /// # Errors
    /// [`KernelBtfError::Read`].
    pub fn modules_in(dir: &Path) -> Result<Vec<KernelBtf>, KernelBtfError> {
        let paths = modules_of(dir).map_err(|err| KernelBtfError::Read {
            source: SysError::from_io("readdir", &err).with_path(dir),
            cure: None,
        })?;
        let read = |path: PathBuf| {
            let data = Data::Owned(read(&path)?);
            Ok(KernelBtf { data })
        };
        paths.into_iter().map(read).collect()
    }

    /// The BTF that the kernel numbers `id`: its own, a module's or one that a
    /// process has loaded.
    ///
    /// Requires `CAP_SYS_ADMIN` and at least Linux 4.18.
    ///
    /// # Errors
    /// [`KernelBtfError::Read`]: `ENOENT` if there is none.
    pub fn from_id(id: u32) -> Result<Arc<KernelBtf>, KernelBtfError> {
        let bytes = bpf::fd_by_id(ObjectKind::Btf, id, 0).and_then(|fd| bpf::btf_data(fd.as_fd()));
        let fail = |source| KernelBtfError::Read { source, cure: None };
        Ok(Arc::new(KernelBtf {
            data: Data::Owned(bytes.map_err(fail)?),
        }))
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        match &self.data {
            Data::Mapped(mapping) => mapping.as_slice(),
            Data::Owned(bytes) => bytes,
        }
    }

    /// Opens the types and finds those of given names in the same walk.
    pub(crate) fn scan(
        &self,
        query: &NameQuery<'_>,
        hits: &mut Vec<NameHit>,
    ) -> Result<Btf<'_>, KernelBtfError> {
        Btf::scan(self.as_bytes(), None, query, hits)
            .map_err(|source| KernelBtfError::Parse { source })
    }

    /// Opens the types for general lookups: one walk over all of them.
    ///
    /// # Errors
    /// [`KernelBtfError::Parse`] if the bytes are damaged.
    pub fn btf(&self) -> Result<Btf<'_>, KernelBtfError> {
        Btf::parse_trusted(self.as_bytes(), None).map_err(|source| KernelBtfError::Parse { source })
    }
}

/// The files of a directory but `vmlinux`, in order of names.
fn modules_of(dir: &Path) -> std::io::Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(dir)?.flatten().map(|entry| entry.path());
    let mut paths: Vec<PathBuf> = entries
        .filter(|path| path.file_name().is_some_and(|name| name != "vmlinux"))
        .collect();
    // All are in one directory.
    sort(&mut paths, |a, b| a.as_os_str() < b.as_os_str());
    Ok(paths)
}

fn read(path: &Path) -> Result<Vec<u8>, KernelBtfError> {
    let fail = |op, err: &std::io::Error| {
        let source = SysError::from_io(op, err).with_path(path);
        let absent = source.is(Errno::ENOENT) && path.as_os_str() == VMLINUX;
        KernelBtfError::Read {
            source,
            cure: absent.then_some(Cure::NoKernelBtf),
        }
    };
    let mut file = File::open(path).map_err(|e| fail("open", &e))?;
    let size = file.metadata().map_err(|e| fail("fstat", &e))?.len();
    let mut bytes = Vec::with_capacity(size as usize + 1);
    file.read_to_end(&mut bytes).map_err(|e| fail("read", &e))?;
    Ok(bytes)
}
