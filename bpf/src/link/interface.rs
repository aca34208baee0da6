//! Network namespaces and interfaces: where a network hook is.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Weak};

use ebpf_manager_sys::netns::{self, NamespaceId};
use ebpf_manager_sys::rtnl::Rtnl;
use ebpf_manager_sys::{Errno, SysError};
use parking_lot::{MappedMutexGuard, Mutex, MutexGuard};

use crate::error::LinkError;

/// A network namespace.
///
/// A value keeps the namespace alive, and so does an attachment that was made
/// over netlink inside it. All values of one namespace share one rtnetlink
/// socket, opened when it is first needed and closed with the last of them, or
/// by [`NetNamespace::close_socket`].
#[derive(Clone)]
pub struct NetNamespace(Arc<Shared>);

struct Shared {
    id: NamespaceId,
    fd: OwnedFd,
    rtnl: Mutex<Option<Rtnl>>,
}

/// Namespaces in use. A namespace that is alive keeps its id, so an entry that
/// can be upgraded is the right one.
static KNOWN: Mutex<Vec<Weak<Shared>>> = Mutex::new(Vec::new());

impl NetNamespace {
    /// The calling thread's. Requires a mounted proc.
    pub fn current() -> Result<NetNamespace, SysError> {
        NetNamespace::from_fd(netns::current()?)
    }

    /// The one at a path such as `/proc/1/ns/net`.
    pub fn open(path: &Path) -> Result<NetNamespace, SysError> {
        NetNamespace::from_fd(netns::open(path)?)
    }

    /// The one that `ip netns add` gave this name.
    pub fn named(name: &str) -> Result<NetNamespace, SysError> {
        NetNamespace::from_fd(netns::open_named(name)?)
    }

    /// Takes over a descriptor of a network namespace. Whether it is one shows
    /// when it is used.
    pub fn from_fd(fd: OwnedFd) -> Result<NetNamespace, SysError> {
        let id = netns::id(fd.as_fd())?;
        let mut known = KNOWN.lock();
        known.retain(|entry| entry.strong_count() > 0);
        let found = known.iter().filter_map(Weak::upgrade).find(|n| n.id == id);
        Ok(NetNamespace(found.unwrap_or_else(|| {
            let shared = Arc::new(Shared {
                id,
                fd,
                rtnl: Mutex::new(None),
            });
            known.push(Arc::downgrade(&shared));
            shared
        })))
    }

    /// Closes the rtnetlink socket; what needs one opens another.
    pub fn close_socket(&self) {
        *self.0.rtnl.lock() = None;
    }

    /// The socket, locked: what is asked and then done on the answer is one
    /// step among the attachments of this process.
    pub(super) fn rtnl(&self) -> Result<MappedMutexGuard<'_, Rtnl>, SysError> {
        let mut socket = self.0.rtnl.lock();
        if socket.is_none() {
            *socket = Some(if self.is_current() {
                Rtnl::open()?
            } else {
                Rtnl::open_in(self.0.fd.as_fd())?
            });
        }
        MutexGuard::try_map(socket, Option::as_mut)
            .map_err(|_| SysError::new("socket", Errno::EBADF))
    }

    /// Runs `work` in the namespace: here if the calling thread is in it, else
    /// on a thread of its own.
    pub(super) fn run(
        &self,
        work: &mut (dyn FnMut() -> Result<(), SysError> + Send),
    ) -> Result<(), SysError> {
        if self.is_current() {
            return work();
        }
        netns::with_netns(self.0.fd.as_fd(), work)?
    }

    fn is_current(&self) -> bool {
        netns::current()
            .and_then(|here| netns::id(here.as_fd()))
            .is_ok_and(|here| here == self.0.id)
    }
}

impl AsFd for NetNamespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.fd.as_fd()
    }
}

impl PartialEq for NetNamespace {
    fn eq(&self, other: &NetNamespace) -> bool {
        self.0.id == other.0.id
    }
}

impl Eq for NetNamespace {}

/// As in `/proc/PID/ns`: `net:[4026531840]`.
impl fmt::Display for NetNamespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "net:[{}]", self.0.id.inode)
    }
}

impl fmt::Debug for NetNamespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A network interface, by index or by name, in the calling thread's network
/// namespace or in another.
///
/// A name is looked up each time something is attached; alternative names
/// (Linux 5.5) are names too.
///
/// ```
/// use ebpf_manager_bpf::Interface;
/// let by_name = Interface::from("eth0");
/// let by_index = Interface::from(2);
/// assert_eq!(by_index.to_string(), "interface 2");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    by: Key,
    namespace: Option<NetNamespace>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Key {
    Index(u32),
    Name(String),
}

impl From<u32> for Interface {
    fn from(index: u32) -> Interface {
        Interface {
            by: Key::Index(index),
            namespace: None,
        }
    }
}

impl From<&str> for Interface {
    fn from(name: &str) -> Interface {
        Interface {
            by: Key::Name(name.to_owned()),
            namespace: None,
        }
    }
}

impl fmt::Display for Interface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.by {
            Key::Index(index) => write!(f, "interface {index}")?,
            Key::Name(name) => f.write_str(name)?,
        }
        match &self.namespace {
            Some(namespace) => write!(f, " in {namespace}"),
            None => Ok(()),
        }
    }
}

impl Interface {
    /// The interface of that index or name in `namespace`.
    #[must_use]
    pub fn in_namespace(mut self, namespace: &NetNamespace) -> Interface {
        self.namespace = Some(namespace.clone());
        self
    }

    /// Its index now.
    ///
    /// # Errors
    /// [`LinkError::NoInterface`].
    pub fn index(&self) -> Result<u32, LinkError> {
        match &self.by {
            Key::Index(index) => Ok(*index),
            Key::Name(name) => self
                .namespace()
                .and_then(|namespace| Ok(namespace.rtnl()?.link_by_name(name)?.index))
                .map_err(|source| self.missing(source)),
        }
    }

    /// The namespace it is in.
    pub(super) fn namespace(&self) -> Result<NetNamespace, SysError> {
        match &self.namespace {
            Some(namespace) => Ok(namespace.clone()),
            None => NetNamespace::current(),
        }
    }

    /// The namespace that [`Interface::in_namespace`] named.
    pub fn declared_namespace(&self) -> Option<&NetNamespace> {
        self.namespace.as_ref()
    }

    /// The namespace to enter, if one was named.
    pub(super) fn named_namespace(&self) -> Option<&NetNamespace> {
        self.namespace.as_ref()
    }

    #[cold]
    pub(super) fn missing(&self, source: SysError) -> LinkError {
        LinkError::NoInterface {
            interface: self.to_string(),
            source,
        }
    }
}
