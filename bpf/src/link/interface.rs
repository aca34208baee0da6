//! Network namespaces and interfaces: where a network hook is.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

use ebpf_manager_sys::lock::{Mutex, MutexGuard};
use ebpf_manager_sys::netns::{self, NamespaceId};
use ebpf_manager_sys::rtnl::Rtnl;
use ebpf_manager_sys::{Errno, SysError};

use crate::error::LinkError;

/// A network namespace.
///
/// A value keeps the namespace alive, and so does an attachment that was made
/// over netlink inside it. All values of one namespace share one rtnetlink
/// socket, opened when it is first needed and closed with the last of them, or
/// by [`NetNamespace::close_socket`]. Which namespace a value is of is the
/// kernel's identity of it, [`NetNamespace::id`]: however many descriptors it
/// was opened by, there is one socket, and none is taken for another's.
#[derive(Clone)]
pub struct NetNamespace(Arc<Shared>);

struct Shared {
    id: NamespaceId,
    fd: OwnedFd,
    /// Empty or one.
    rtnl: Mutex<Vec<Rtnl>>,
    /// Filters of ours: interface and how many.
    filters: Mutex<Vec<(u32, usize)>>,
}

/// The socket of a namespace, locked.
pub(super) struct Socket<'a>(MutexGuard<'a, Vec<Rtnl>>);

impl Deref for Socket<'_> {
    type Target = Rtnl;

    fn deref(&self) -> &Rtnl {
        // This is not made before there is one.
        &self.0[0]
    }
}

impl DerefMut for Socket<'_> {
    fn deref_mut(&mut self) -> &mut Rtnl {
        &mut self.0[0]
    }
}

/// How long to wait for other processes that change filters of the same
/// namespace. They are at it for less than a millisecond.
const LOCK_ATTEMPTS: u32 = 100;

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
                rtnl: Mutex::default(),
                filters: Mutex::new(Vec::new()),
            });
            known.push(Arc::downgrade(&shared));
            shared
        })))
    }

    /// The kernel's identity of the namespace: the same for all values of it,
    /// and no other's while one of them exists.
    pub fn id(&self) -> NamespaceId {
        self.0.id
    }

    /// How many filters on clsact this process has on the interface with that
    /// index.
    pub fn filter_count(&self, index: u32) -> usize {
        let filters = self.0.filters.lock();
        filters.iter().find(|f| f.0 == index).map_or(0, |f| f.1)
    }

    /// Counts one filter more.
    pub(super) fn filter_added(&self, index: u32) {
        let mut filters = self.0.filters.lock();
        match filters.iter_mut().find(|f| f.0 == index) {
            Some(found) => found.1 += 1,
            None => filters.push((index, 1)),
        }
    }

    /// Counts one filter less.
    pub(super) fn filter_removed(&self, index: u32) {
        let mut filters = self.0.filters.lock();
        if let Some(found) = filters.iter_mut().find(|f| f.0 == index) {
            found.1 = found.1.saturating_sub(1);
        }
        filters.retain(|f| f.1 > 0);
    }

    /// Keeps other processes that use this library from changing filters of
    /// the namespace; `None` if one of them does not let go in a tenth of a
    /// second, or without a proc.
    pub(super) fn lock(&self) -> Option<netns::Lock> {
        for _ in 0..LOCK_ATTEMPTS {
            match netns::try_lock(self.0.fd.as_fd()) {
                Ok(Some(lock)) => return Some(lock),
                Err(err) if err.is(Errno::ENOENT) => return None,
                // Locked, or no descriptor to be had at the moment.
                _ => std::thread::sleep(Duration::from_millis(1)),
            }
        }
        None
    }

    /// Closes the rtnetlink socket; what needs one opens another.
    pub fn close_socket(&self) {
        self.0.rtnl.lock().clear();
    }

    /// The socket, locked: what is asked and then done on the answer is one
    /// step among the attachments of this process.
    pub(super) fn rtnl(&self) -> Result<Socket<'_>, SysError> {
        let mut socket = self.0.rtnl.lock();
        // What was lost once may be in the way of everything after it.
        socket.retain(|socket| !socket.is_torn());
        if socket.is_empty() {
            socket.push(if self.is_current() {
                Rtnl::open()?
            } else {
                Rtnl::open_in(self.0.fd.as_fd())?
            });
        }
        Ok(Socket(socket))
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
