//! Sockets, maps of sockets and infrared receivers.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use ebpf_manager_sys::abi::bpf::{AttachFlags, AttachType, MapType, ProgramType};
use ebpf_manager_sys::bpf::{LinkCreate, LinkOptions, Target};
use ebpf_manager_sys::socket::{self, Filter};
use ebpf_manager_sys::{Errno, SysError, fd};

use super::net::{self, Method};
use super::standing::{Attachment, Owner, ProgramAttached, Standing};
use super::trace::expect_type;
use super::{Inner, Link, Mechanism};
use crate::error::LinkError;
use crate::map::Map;
use crate::program::Program;

/// A program in a socket's option.
#[derive(Debug)]
pub(super) struct SocketOption {
    socket: OwnedFd,
    kind: Filter,
}

impl SocketOption {
    fn set(&self, program: &Program) -> Result<(), SysError> {
        socket::attach(self.socket.as_fd(), self.kind, program.as_fd())
    }
}

impl Attachment for SocketOption {
    fn detach(&self) -> Result<(), SysError> {
        socket::detach(self.socket.as_fd(), self.kind)
    }

    fn update(&mut self, program: &Program) -> Result<(), SysError> {
        self.set(program)
    }

    fn is_attached(&self) -> Result<Option<bool>, SysError> {
        Ok(None)
    }
}

impl Link {
    /// Lets a program decide which packets a socket receives
    /// (`SO_ATTACH_BPF`), in the place of a filter it may have.
    ///
    /// The link keeps the socket open. Requires at least Linux 3.19.
    ///
    /// # Errors
    /// [`LinkError::WrongType`]; [`LinkError::Attach`], with `ENOTSOCK` if it
    /// is no socket.
    pub fn socket_filter(program: &Program, socket: BorrowedFd<'_>) -> Result<Link, LinkError> {
        expect_type(program, "socket filter", &[ProgramType::SOCKET_FILTER])?;
        by_option(program, socket, Filter::Packets, "filter of a socket")
    }

    /// Lets a program choose among the sockets of a reuseport group, given by
    /// one of them, which receives a packet or connection
    /// (`SO_ATTACH_REUSEPORT_EBPF`).
    ///
    /// The link keeps the socket open. Requires at least Linux 4.5 (4.19 for
    /// programs of type `sk_reuseport`); it can be detached from Linux 5.3 on
    /// and stays with the group below that.
    ///
    /// # Errors
    /// As [`Link::socket_filter`].
    pub fn reuseport(program: &Program, socket: BorrowedFd<'_>) -> Result<Link, LinkError> {
        let types = [ProgramType::SK_REUSEPORT, ProgramType::SOCKET_FILTER];
        expect_type(program, "reuseport group", &types)?;
        by_option(
            program,
            socket,
            Filter::ReusePort,
            "reuseport group of a socket",
        )
    }

    /// Attaches a program to a map of sockets: parser, verdict or message
    /// verdict, as the program was loaded.
    ///
    /// A link is used from Linux 6.10; `BPF_PROG_ATTACH` below. Sockets are
    /// under the program's rule if they enter the map while it is attached.
    /// Requires at least Linux 4.14.
    ///
    /// # Errors
    /// [`LinkError::WrongType`], also for a map of another type;
    /// [`LinkError::AlreadyAttached`]; [`LinkError::Attach`].
    pub fn sockmap(program: &Program, map: &Map, method: Method) -> Result<Link, LinkError> {
        let types = [ProgramType::SK_SKB, ProgramType::SK_MSG];
        expect_type(program, "map of sockets", &types)?;
        let target = format!("map of sockets {}", map.name());
        if !matches!(map.map_type(), MapType::SOCKMAP | MapType::SOCKHASH) {
            return Err(LinkError::NoTarget {
                kind: "map of sockets",
                name: map.name().to_owned(),
                source: SysError::new("map type", Errno::EINVAL),
                cure: None,
            });
        }
        let attach_type = program.attach_type().unwrap_or(AttachType::SK_MSG_VERDICT);
        let map = map.raw().as_fd();
        let mut tried = Vec::new();
        if method != Method::Classic {
            let create = LinkCreate {
                object: program.as_fd(),
                target: Target::Fd(map),
                attach_type,
                flags: 0,
                options: LinkOptions::None,
            };
            match net::link_create_in(None, &create) {
                Ok(fd) => return Ok(net::link(target, Mechanism::SockmapLink, fd)),
                Err(err) => {
                    let next = method == Method::Auto && net::too_old(&err);
                    tried.push(("link", err));
                    if !next {
                        let last = Mechanism::SockmapLink;
                        return Err(taken(map, attach_type, last, target, tried));
                    }
                }
            }
        }
        by_attach(
            program,
            map,
            attach_type,
            Mechanism::SockmapAttach,
            target,
            tried,
        )
    }

    /// Attaches a decoder to an infrared receiver such as `/dev/lirc0`.
    ///
    /// Requires at least Linux 4.18.
    ///
    /// # Errors
    /// [`LinkError::WrongType`]; [`LinkError::NoTarget`];
    /// [`LinkError::Attach`].
    pub fn lirc(program: &Program, device: &Path) -> Result<Link, LinkError> {
        expect_type(program, "infrared receiver", &[ProgramType::LIRC_MODE2])?;
        let file = File::open(device).map_err(|e| LinkError::NoTarget {
            kind: "infrared receiver",
            name: device.display().to_string(),
            source: SysError::from_io("open", &e).with_path(device),
            cure: None,
        })?;
        let target = format!("infrared receiver {}", device.display());
        let (kind, how) = (AttachType::LIRC_MODE2, Mechanism::LircAttach);
        by_attach(program, file.as_fd(), kind, how, target, Vec::new())
    }
}

fn by_option(
    program: &Program,
    socket: BorrowedFd<'_>,
    kind: Filter,
    what: &str,
) -> Result<Link, LinkError> {
    let attach = || {
        let option = SocketOption {
            socket: fd::dup(socket)?,
            kind,
        };
        option.set(program)?;
        Ok(option)
    };
    match attach() {
        Ok(option) => {
            let inner = Inner::Standing(Standing::new(option));
            Ok(Link::new(what.to_owned(), Mechanism::SocketOption, inner))
        }
        Err(err) => {
            let tried = vec![("socket option", err)];
            let last = Mechanism::SocketOption;
            Err(net::refused(last, what.to_owned(), tried))
        }
    }
}

fn by_attach(
    program: &Program,
    target_fd: BorrowedFd<'_>,
    attach_type: AttachType,
    mechanism: Mechanism,
    target: String,
    mut tried: Vec<(&'static str, SysError)>,
) -> Result<Link, LinkError> {
    // A map of sockets replaces another program without being asked. A
    // receiver shares, and says itself if the program is there.
    if mechanism == Mechanism::SockmapAttach
        && let Ok(found) = net::programs_on(Target::Fd(target_fd), attach_type, 0)
        && let Some(by) = found.programs.into_iter().next()
    {
        let source = SysError::new("bpf(BPF_PROG_ATTACH)", Errno::EEXIST);
        return Err(LinkError::AlreadyAttached { target, by, source });
    }
    let attached = fd::dup(target_fd).and_then(|owner| {
        let none = AttachFlags::empty();
        ProgramAttached::new(Owner::Fd(owner), attach_type, none, program, None)
    });
    match attached {
        Ok(attached) => {
            let inner = Inner::Standing(Standing::new(attached));
            Ok(Link::new(target, mechanism, inner).after(tried))
        }
        Err(err) => {
            tried.push(("prog_attach", err));
            Err(taken(target_fd, attach_type, mechanism, target, tried))
        }
    }
}

#[cold]
fn taken(
    target_fd: BorrowedFd<'_>,
    attach_type: AttachType,
    last: Mechanism,
    target: String,
    tried: Vec<(&'static str, SysError)>,
) -> LinkError {
    let holder = net::holder(&tried, Target::Fd(target_fd), attach_type);
    net::refused_for(last, holder, target, tried)
}
