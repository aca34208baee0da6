//! Traffic control: clsact and its BPF filters.

use std::os::fd::BorrowedFd;

use super::{ClsBpfFlags, Rtnl, TcParent, kernel_index, no_answer};
use crate::Result;
use crate::abi::netlink::{ETH_P_ALL, TcHeader, flag, message, tca};
use crate::errno::{Errno, SysError};
use crate::netlink::{Attrs, Request};

/// Protocol number of filters that see every packet: `ETH_P_ALL`.
pub const ALL_PROTOCOLS: u16 = ETH_P_ALL;

/// Handle of clsact itself.
pub(super) const CLSACT_HANDLE: u32 = 0xffff_0000;

/// A queueing discipline.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Qdisc {
    /// Interface.
    pub index: u32,
    /// Handle, the major number in the upper half.
    pub handle: u32,
    /// What it hangs on.
    pub parent: TcParent,
    /// Kind, such as `clsact` or `fq`.
    pub kind: String,
}

/// What names one filter.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FilterId {
    /// Interface.
    pub index: u32,
    /// [`TcParent::INGRESS`] or [`TcParent::EGRESS`] for clsact.
    pub parent: TcParent,
    /// Lower numbers run first. When adding, 0 lets the kernel choose one.
    pub priority: u16,
    /// Protocol as in `ETH_P_*`, in this machine's byte order.
    pub protocol: u16,
    /// Number within its priority. When adding, 0 lets the kernel choose one.
    pub handle: u32,
}

/// A filter of any kind.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Filter {
    /// Which one.
    pub id: FilterId,
    /// Kind; the fields below are empty unless it is `bpf`.
    pub kind: String,
    /// Chain; 0 unless somebody made others. Linux 4.13.
    pub chain: u32,
    /// Name given when it was added.
    pub name: String,
    /// Id of its program; 0 on kernels before 4.14, which do not tell.
    pub program_id: u32,
    /// Tag of its program. Linux 4.10.
    pub tag: [u8; 8],
    /// How the program's return value is read.
    pub flags: ClsBpfFlags,
}

/// A BPF filter to be added.
#[derive(Clone, Copy, Debug)]
pub struct FilterSpec<'a> {
    /// Where, and which number.
    pub id: FilterId,
    /// Name shown by tc(8); the kernel only stores it.
    pub name: &'a str,
    /// Program of type `SCHED_CLS`.
    pub program: BorrowedFd<'a>,
    /// How its return value is read.
    pub flags: ClsBpfFlags,
}

impl Rtnl {
    // ---------------------------------------------- queueing disciplines

    /// The queueing disciplines of an interface.
    ///
    /// # Errors
    /// As [`Netlink::query`](crate::netlink::Netlink::query).
    pub fn qdiscs(&mut self, index: u32) -> Result<Vec<Qdisc>> {
        let op = "RTM_GETQDISC";
        let header = tc_header(op, index)?;
        let request = Request::new(op, message::RTM_GETQDISC, flag::DUMP, &header);
        let answer = self.0.query(request)?;
        // The kernel lists those of all interfaces.
        let all = answer.iter().filter_map(|m| parse_qdisc(m.payload));
        Ok(all.filter(|qdisc| qdisc.index == index).collect())
    }

    /// The discipline in the place of clsact: that, or the older `ingress`,
    /// which has no filters for leaving packets.
    ///
    /// # Errors
    /// `ENODEV` if there is no such interface.
    pub fn clsact(&mut self, index: u32) -> Result<Option<Qdisc>> {
        let op = "RTM_GETQDISC";
        let header = TcHeader {
            parent: TcParent::CLSACT.0,
            ..tc_header(op, index)?
        };
        // The kernel answers by a notification, which goes to others unless
        // it is echoed.
        let request = Request::new(op, message::RTM_GETQDISC, flag::ECHO, &header);
        match self.0.query(request) {
            // Where there was one once, the kernel answers without a word.
            Ok(answer) => Ok(answer.iter().find_map(|m| parse_qdisc(m.payload))),
            Err(err) if err.is(Errno::ENOENT) => Ok(None),
            Err(err) => Err(err),
        }
    }

    /// Adds clsact, which holds the filters for arriving and leaving packets.
    /// Linux 4.5.
    ///
    /// # Errors
    /// `EEXIST` if it, or `ingress`, is there; `ENOENT` without the module.
    pub fn clsact_add(&mut self, index: u32) -> Result<()> {
        let flags = flag::CREATE | flag::EXCL;
        self.change_clsact("RTM_NEWQDISC", message::RTM_NEWQDISC, flags, index)
    }

    /// Deletes clsact and every filter on it, whoever added them.
    ///
    /// # Errors
    /// `EINVAL` or `ENOENT` if it is not there.
    pub fn clsact_delete(&mut self, index: u32) -> Result<()> {
        self.change_clsact("RTM_DELQDISC", message::RTM_DELQDISC, 0, index)
    }

    fn change_clsact(&mut self, op: &'static str, kind: u16, flags: u16, index: u32) -> Result<()> {
        let header = TcHeader {
            handle: CLSACT_HANDLE,
            parent: TcParent::CLSACT.0,
            ..tc_header(op, index)?
        };
        let mut request = Request::new(op, kind, flags, &header);
        request.attr_str(tca::KIND, "clsact");
        self.0.call(request)
    }

    // ------------------------------------------------------------ filters

    /// The filters on `parent` of an interface, in the order they run.
    ///
    /// # Errors
    /// As [`Netlink::query`](crate::netlink::Netlink::query); `EINVAL` or an empty list if there is no such
    /// parent, depending on the kernel.
    pub fn filters(&mut self, index: u32, parent: TcParent) -> Result<Vec<Filter>> {
        let op = "RTM_GETTFILTER";
        let header = TcHeader {
            parent: parent.0,
            ..tc_header(op, index)?
        };
        let request = Request::new(op, message::RTM_GETTFILTER, flag::DUMP, &header);
        let answer = self.0.query(request)?;
        Ok(answer
            .iter()
            .filter_map(|m| parse_filter(m.payload))
            .collect())
    }

    /// Adds a BPF filter and returns it with the priority, handle and program
    /// id the kernel gave it.
    ///
    /// # Errors
    /// `EEXIST` if priority and handle are taken, `EINVAL` if clsact is not
    /// there or the program has another type, `ENOENT` without the classifier.
    pub fn filter_add(&mut self, spec: &FilterSpec<'_>) -> Result<Filter> {
        self.filter_new(spec, flag::CREATE | flag::EXCL)
    }

    /// Puts a BPF filter in the place of the one with the same priority and
    /// handle, without a gap, or adds it if there is none.
    ///
    /// # Errors
    /// As [`Rtnl::filter_add`]; `EINVAL` if priority or handle is 0, because
    /// then the kernel would add instead of replacing.
    pub fn filter_replace(&mut self, spec: &FilterSpec<'_>) -> Result<Filter> {
        definite("RTM_NEWTFILTER", &spec.id)?;
        self.filter_new(spec, flag::CREATE | flag::REPLACE)
    }

    fn filter_new(&mut self, spec: &FilterSpec<'_>, flags: u16) -> Result<Filter> {
        let op = "RTM_NEWTFILTER";
        let header = filter_header(op, &spec.id)?;
        // The echo tells what the kernel chose.
        let mut request = Request::new(op, message::RTM_NEWTFILTER, flags | flag::ECHO, &header);
        request.attr_str(tca::KIND, "bpf");
        let options = request.nest(tca::OPTIONS);
        request.attr_fd(tca::bpf::FD, spec.program);
        request.attr_str(tca::bpf::NAME, spec.name);
        request.attr_u32(tca::bpf::FLAGS, spec.flags.bits());
        request.end(options);
        let answer = self.0.query(request)?;
        let filter = answer.iter().find_map(|m| parse_filter(m.payload));
        filter.ok_or_else(|| no_answer(op))
    }

    /// Deletes one BPF filter, of chain 0.
    ///
    /// # Errors
    /// `ENOENT` if it is not there (`EINVAL` if clsact is not); `EINVAL` if
    /// priority or handle is 0, because that would delete others too.
    pub fn filter_delete(&mut self, id: &FilterId) -> Result<()> {
        let op = "RTM_DELTFILTER";
        definite(op, id)?;
        let header = filter_header(op, id)?;
        let mut request = Request::new(op, message::RTM_DELTFILTER, 0, &header);
        request.attr_str(tca::KIND, "bpf");
        self.0.call(request)
    }
}

fn tc_header(op: &'static str, index: u32) -> Result<TcHeader> {
    Ok(TcHeader {
        index: kernel_index(op, index)?,
        ..TcHeader::default()
    })
}

pub(super) fn filter_header(op: &'static str, id: &FilterId) -> Result<TcHeader> {
    Ok(TcHeader {
        handle: id.handle,
        parent: id.parent.0,
        info: u32::from(id.priority) << 16 | u32::from(id.protocol.to_be()),
        ..tc_header(op, id.index)?
    })
}

fn definite(op: &'static str, id: &FilterId) -> Result<()> {
    if id.priority == 0 || id.handle == 0 {
        return Err(SysError::new(op, Errno::EINVAL)
            .with_detail("priority and handle 0 do not name one filter"));
    }
    Ok(())
}

/// Reads the payload of a queueing-discipline message.
pub fn parse_qdisc(payload: &[u8]) -> Option<Qdisc> {
    let (header, attrs) = Attrs::after::<TcHeader>(payload)?;
    Some(Qdisc {
        index: u32::try_from(header.index).ok()?,
        handle: header.handle,
        parent: TcParent(header.parent),
        kind: attrs.get(tca::KIND)?.text(),
    })
}

/// Reads the payload of a filter message. `None` also for the entry with
/// handle 0 that stands for a whole priority.
pub fn parse_filter(payload: &[u8]) -> Option<Filter> {
    let (header, attrs) = Attrs::after::<TcHeader>(payload)?;
    if header.handle == 0 {
        return None;
    }
    let mut filter = Filter {
        id: FilterId {
            index: u32::try_from(header.index).ok()?,
            parent: TcParent(header.parent),
            priority: (header.info >> 16) as u16,
            protocol: u16::from_be(header.info as u16),
            handle: header.handle,
        },
        kind: attrs.get(tca::KIND)?.text(),
        chain: attrs.get(tca::CHAIN).and_then(|a| a.u32()).unwrap_or(0),
        name: String::new(),
        program_id: 0,
        tag: [0; 8],
        flags: ClsBpfFlags::empty(),
    };
    if filter.kind == "bpf"
        && let Some(options) = attrs.get(tca::OPTIONS)
    {
        for attr in options.nested() {
            match attr.kind {
                tca::bpf::NAME => filter.name = attr.text(),
                tca::bpf::ID => filter.program_id = attr.u32().unwrap_or(0),
                tca::bpf::TAG => filter.tag = attr.data.try_into().unwrap_or_default(),
                tca::bpf::FLAGS => {
                    filter.flags = ClsBpfFlags::from_bits_retain(attr.u32().unwrap_or(0));
                }
                _ => {}
            }
        }
    }
    Some(filter)
}
