//! A network of the test's own, and what sends over it.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV6, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::path::PathBuf;

use ebpf_manager::bpf::{Interface, NetNamespace};
use ebpf_manager_sys::fd;
use ebpf_manager_sys::rtnl::Rtnl;

use super::{NetNs, TempDir, mount_of};

/// The port that the fixtures look for.
pub(crate) const PORT: u16 = 4242;

/// A namespace with a connected pair of interfaces, and a socket in it that
/// sends to the test's port over `left`, to arrive at `right`.
pub(crate) struct Net {
    pub(crate) ns: NetNs,
    pub(crate) namespace: NetNamespace,
    pub(crate) left: u32,
    pub(crate) right: u32,
    pub(crate) sender: UdpSocket,
}

impl Net {
    pub(crate) fn new() -> Net {
        let ns = NetNs::new();
        // Addresses may be used at once, without asking whether others have
        // them.
        ns.run(|| {
            for conf in ["all", "default"] {
                let path = format!("/proc/sys/net/ipv6/conf/{conf}/accept_dad");
                std::fs::write(path, "0").unwrap();
            }
        });
        let mut rtnl = Rtnl::open_in(ns.as_fd()).unwrap();
        rtnl.link_add_veth("left", "right", None).unwrap();
        let [left, right, _] = ["left", "right", "lo"].map(|name| {
            let index = rtnl.link_by_name(name).unwrap().index;
            rtnl.link_set_up(index).unwrap();
            index
        });
        let sender = ns.run(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap());
        Net {
            namespace: NetNamespace::from_fd(fd::dup(ns.as_fd()).unwrap()).unwrap(),
            ns,
            left,
            right,
            sender,
        }
    }

    /// The receiving interface, seen from another namespace.
    pub(crate) fn right(&self) -> Interface {
        Interface::from("right").in_namespace(&self.namespace)
    }

    /// Sends one packet; fails silently until the interfaces are ready.
    pub(crate) fn send(&self) {
        self.send_from(&self.sender);
    }

    pub(crate) fn send_from(&self, sender: &UdpSocket) {
        Net::send_over(sender, self.left);
    }

    pub(crate) fn send_over(sender: &UdpSocket, interface: u32) {
        let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
        let _ = sender.send_to(b"x", SocketAddrV6::new(all_nodes, PORT, 0, interface));
    }

    pub(crate) fn rtnl(&self) -> Rtnl {
        Rtnl::open_in(self.ns.as_fd()).unwrap()
    }

    pub(crate) fn has_clsact(&self) -> bool {
        let qdiscs = self.rtnl().qdiscs(self.right).unwrap();
        qdiscs.iter().any(|qdisc| qdisc.kind == "clsact")
    }
}

/// The test process inside a cgroup of its own.
pub(crate) struct InCgroup {
    pub(crate) dir: TempDir,
    pub(crate) home: PathBuf,
}

impl InCgroup {
    pub(crate) fn enter() -> InCgroup {
        let mount = mount_of("cgroup2").unwrap();
        let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap();
        let home = groups.lines().find_map(|l| l.strip_prefix("0::/")).unwrap();
        let dir = TempDir::cgroup();
        std::fs::write(dir.path().join("cgroup.procs"), "0").unwrap();
        InCgroup {
            home: mount.join(home),
            dir,
        }
    }
}

impl Drop for InCgroup {
    fn drop(&mut self) {
        std::fs::write(self.home.join("cgroup.procs"), "0").unwrap();
    }
}

/// Two sockets in a namespace: one sends to the other over loopback.
pub(crate) fn local_pair(net: &Net) -> (UdpSocket, UdpSocket) {
    net.ns.run(|| {
        let receiver = UdpSocket::bind((Ipv4Addr::LOCALHOST, PORT)).unwrap();
        (UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap(), receiver)
    })
}

/// A connection over loopback.
pub(crate) fn connection(net: &Net) -> (TcpStream, TcpStream) {
    net.ns.run(|| {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    })
}
