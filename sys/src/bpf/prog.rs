//! Programs: load, test run, attach without a link.

use std::ffi::CStr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use super::{ATTEMPTS, again, bpf, bpf_once, invalid, len32, num, num_or_none, obj_name, op};
use crate::Result;
use crate::abi::attr::{self, Attr, Ptr, PtrMut};
use crate::abi::bpf::{AttachFlags, AttachType, Command, ProgramFlags, ProgramType, TestRunFlags};
use crate::abi::insn::{CALL, Insn, pseudo};
use crate::errno::{Errno, SysError};
use crate::fd;
use crate::proc::KernelVersion;

/// Largest log any kernel takes; a longer buffer is used in part.
const LOG_SIZE_MAX: usize = (u32::MAX >> 2) as usize;

/// Where the kernel explains itself: the caller's memory and, after the call,
/// what is in it. Filled whether the call succeeds or not.
#[derive(Debug)]
pub struct Log<'a> {
    buf: &'a mut [u8],
    level: u32,
    true_size: u32,
}

impl<'a> Log<'a> {
    /// A log of `level`, a combination from [`log_level`](crate::abi::bpf::log_level); level 0 asks for no
    /// log and leaves `buf` empty.
    ///
    /// Kernels before 6.4 refuse (`EINVAL`) a buffer below 128 bytes, those
    /// before 5.2, and for BTF before 5.17, one of 16 MiB or more. From 6.4 on
    /// an empty buffer asks for the size alone.
    pub fn new(level: u32, buf: &'a mut [u8]) -> Log<'a> {
        Log {
            buf,
            level,
            true_size: 0,
        }
    }

    /// The log, without its terminator. Where it did not fit, kernels from 6.4
    /// on keep its end unless the level includes [`FIXED`](crate::abi::bpf::log_level::FIXED), older
    /// ones its start.
    pub fn bytes(&self) -> &[u8] {
        let len = self.buf.iter().position(|&b| b == 0);
        &self.buf[..len.unwrap_or(self.buf.len())]
    }

    /// Bytes the whole log takes, terminator included. `None` before Linux
    /// 6.4, which does not say.
    pub fn true_size(&self) -> Option<u32> {
        (self.true_size != 0).then_some(self.true_size)
    }

    /// Level, size and address for the attribute.
    pub(super) fn start(&mut self) -> (u32, u32, PtrMut<'_>) {
        // What an earlier call left is not this call's log.
        if let Some(first) = self.buf.first_mut() {
            *first = 0;
        }
        self.true_size = 0;
        if self.level == 0 {
            // The kernel refuses a buffer without a level.
            return (0, 0, PtrMut::default());
        }
        let len = self.buf.len().min(LOG_SIZE_MAX);
        (self.level, len as u32, PtrMut::of(&mut self.buf[..len]))
    }

    pub(super) fn finish(&mut self, true_size: u32) {
        self.true_size = true_size;
    }
}

/// Fixed-size records, as they come from an object file.
#[derive(Clone, Copy, Debug, Default)]
pub struct Records<'a> {
    /// The records. What is left behind the last whole one is not passed.
    pub bytes: &'a [u8],
    /// Bytes of each.
    pub rec_size: u32,
}

impl Records<'_> {
    fn count(&self) -> u32 {
        (self.bytes.len() / (self.rec_size as usize).max(1)) as u32
    }

    /// Record size to pass: none without records.
    fn size(&self) -> u32 {
        if self.bytes.is_empty() {
            0
        } else {
            self.rec_size
        }
    }
}

/// A program to load. Start from `Default` and set what differs.
#[derive(Clone, Copy, Debug, Default)]
pub struct ProgLoad<'a> {
    /// Kind of program.
    pub prog_type: ProgramType,
    /// Instructions.
    pub insns: &'a [Insn],
    /// License; decides whether GPL-only helpers may be called.
    pub license: &'a CStr,
    /// Name, passed through [`obj_name`]. Empty for none, which kernels before
    /// 4.15 need.
    pub name: &'a str,
    /// Flags. The one that announces `token` is added.
    pub flags: ProgramFlags,
    /// `LINUX_VERSION_CODE`, which kernels before 5.0 compare for kprobes.
    pub kern_version: u32,
    /// Network device to offload or bind to, 0 for none. Linux 4.15.
    pub ifindex: u32,
    /// Where it will be attached. Linux 4.17.
    pub expected_attach_type: AttachType,
    /// BTF with the program's own types. Linux 5.0.
    pub btf: Option<BorrowedFd<'a>>,
    /// [`FuncInfo`](crate::abi::info::FuncInfo) records. Linux 5.0.
    pub func_info: Records<'a>,
    /// [`LineInfo`](crate::abi::info::LineInfo) records. Linux 5.0.
    pub line_info: Records<'a>,
    /// Kernel type or function to attach to. Linux 5.5.
    pub attach_btf_id: u32,
    /// Program (5.5) or module's BTF (5.11) that `attach_btf_id` is from; the
    /// kernel's own BTF for `None`.
    pub attach_to: Option<BorrowedFd<'a>>,
    /// Maps and module BTFs that instructions name by index. Linux 5.14.
    pub fd_array: &'a [BorrowedFd<'a>],
    /// [`CoreRelo`](crate::abi::info::CoreRelo) records for the kernel to
    /// resolve. Linux 5.17.
    pub core_relos: Records<'a>,
    /// Token that grants the right to load. Linux 6.9.
    pub token: Option<BorrowedFd<'a>>,
}

/// `BPF_PROG_LOAD`. Linux 3.18. Tried up to five times while a pending signal
/// makes the verifier give up.
///
/// # Errors
/// `EACCES` or `EINVAL` with the reason in `log` if the verifier refuses;
/// `ENOSPC` if the log did not fit, even where the program is good; `E2BIG` if
/// a field is set that this kernel does not know.
pub fn prog_load(load: &ProgLoad<'_>, mut log: Option<&mut Log<'_>>) -> Result<OwnedFd> {
    const COMMAND: Command = Command::PROG_LOAD;
    if !load.fd_array.is_empty() && max_fd_index(load.insns) >= load.fd_array.len() as i64 {
        // The kernel is not told the length and would read behind the end.
        return Err(invalid(COMMAND, "index beyond fd_array"));
    }
    let mut flags = load.flags;
    if load.token.is_some() {
        flags |= ProgramFlags::TOKEN_FD;
    }
    let mut attr = attr::ProgLoad {
        prog_type: load.prog_type,
        insn_cnt: len32(COMMAND, load.insns.len())?,
        insns: Ptr::of(load.insns),
        license: Ptr::of_str(load.license),
        kern_version: load.kern_version,
        prog_flags: flags.bits(),
        prog_name: obj_name(load.name),
        prog_ifindex: load.ifindex,
        expected_attach_type: load.expected_attach_type,
        prog_btf_fd: num_or_none(load.btf),
        func_info_rec_size: load.func_info.size(),
        func_info: Ptr::of(load.func_info.bytes),
        func_info_cnt: load.func_info.count(),
        line_info_rec_size: load.line_info.size(),
        line_info: Ptr::of(load.line_info.bytes),
        line_info_cnt: load.line_info.count(),
        attach_btf_id: load.attach_btf_id,
        attach_prog_or_btf_obj_fd: num_or_none(load.attach_to),
        core_relo_cnt: load.core_relos.count(),
        fd_array: Ptr::of_fds(load.fd_array),
        core_relos: Ptr::of(load.core_relos.bytes),
        core_relo_rec_size: load.core_relos.size(),
        prog_token_fd: num_or_none(load.token) as i32,
        ..Default::default()
    };
    if let Some(log) = log.as_deref_mut() {
        (attr.log_level, attr.log_size, attr.log_buf) = log.start();
    }
    // SAFETY: each count was taken from the slice beside it, the license is
    // terminated, every index the instructions make into `fd_array` lies
    // inside it, and `log_size` is at most the length of the log, which alone
    // is written.
    let call = &mut || unsafe { bpf_once(COMMAND, attr.bytes_mut(), attr::ProgLoad::MIN_LEN) };
    let result = again(COMMAND, ATTEMPTS, call);
    let true_size = attr.log_true_size;
    if let Some(log) = log {
        log.finish(true_size);
    }
    fd::own(op(COMMAND), result?)
}

/// Largest index the instructions make into the descriptor array; −1 for none.
fn max_fd_index(insns: &[Insn]) -> i64 {
    let index = |insn: &Insn| match insn.src() {
        pseudo::MAP_IDX | pseudo::MAP_IDX_VALUE if insn.is_ld_imm64() => i64::from(insn.imm),
        // Offset 0 is the kernel's own BTF.
        pseudo::KFUNC_CALL if insn.code == CALL && insn.off != 0 => i64::from(insn.off),
        _ => -1,
    };
    insns.iter().map(index).max().unwrap_or(-1)
}

/// What to run a program on. Start from `Default` and set what differs; which
/// fields a kind of program takes is the kernel's to say.
#[derive(Debug, Default)]
pub struct TestRun<'a> {
    /// Packet to run on.
    pub data_in: &'a [u8],
    /// Room for the packet afterwards. Linux 5.0.
    pub data_out: &'a mut [u8],
    /// Context to run on; programs of type syscall change it. Linux 5.2.
    pub ctx_in: &'a mut [u8],
    /// Room for the context afterwards. Linux 5.2.
    pub ctx_out: &'a mut [u8],
    /// Times to run; 0 means once.
    pub repeat: u32,
    /// Flags. Linux 5.10.
    pub flags: TestRunFlags,
    /// CPU to run on, with [`TestRunFlags::RUN_ON_CPU`]. Linux 5.10.
    pub cpu: u32,
    /// Packets at a time, with [`TestRunFlags::XDP_LIVE_FRAMES`]. Linux 5.18.
    pub batch_size: u32,
}

/// Outcome of a test run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TestRunResult {
    /// What the program returned the last time.
    pub retval: u32,
    /// Nanoseconds one run took on average.
    pub duration_ns: u32,
    /// Bytes of the packet afterwards.
    pub data_size_out: u32,
    /// Bytes of the context afterwards.
    pub ctx_size_out: u32,
}

/// `BPF_PROG_TEST_RUN`. Linux 4.12. A signal interrupts it; it is then begun
/// again up to four times, unless it sends packets
/// ([`TestRunFlags::XDP_LIVE_FRAMES`]).
///
/// # Errors
/// `EINTR` if a signal interrupted the last attempt: a signal that comes more
/// often than `repeat` runs take never lets one end.
/// `ENOSPC` if a result does not fit its buffer; `ENOTSUPP` for a kind of
/// program without test run, and for `data_out` before Linux 5.0, which
/// ignores how much room there is.
pub fn prog_test_run(prog: BorrowedFd<'_>, run: &mut TestRun<'_>) -> Result<TestRunResult> {
    const COMMAND: Command = Command::PROG_TEST_RUN;
    if !run.data_out.is_empty() && !respects_output_size() {
        return Err(SysError::new(op(COMMAND), Errno::ENOTSUPP)
            .with_detail("output of a test run needs Linux 5.0"));
    }
    let mut attr = attr::TestRun {
        prog_fd: num(prog),
        data_size_in: len32(COMMAND, run.data_in.len())?,
        data_size_out: len32(COMMAND, run.data_out.len())?,
        data_in: Ptr::of(run.data_in),
        // Null when empty: size 0 beside an address means "no limit".
        data_out: PtrMut::of(run.data_out),
        repeat: run.repeat,
        ctx_size_in: len32(COMMAND, run.ctx_in.len())?,
        ctx_size_out: len32(COMMAND, run.ctx_out.len())?,
        ctx_in: PtrMut::of(run.ctx_in),
        ctx_out: PtrMut::of(run.ctx_out),
        flags: run.flags.bits(),
        cpu: run.cpu,
        batch_size: run.batch_size,
        ..Default::default()
    };
    let live = run.flags.contains(TestRunFlags::XDP_LIVE_FRAMES);
    let rooms = (attr.data_size_out, attr.ctx_size_out);
    again(COMMAND, if live { 1 } else { ATTEMPTS }, &mut || {
        // Where the kernel says how much it wrote.
        (attr.data_size_out, attr.ctx_size_out) = rooms;
        // SAFETY: each size is the length of the slice beside it, the slices
        // that any kind of program writes are exclusive borrows, and a kernel
        // that ignores the size of `data_out` was excluded.
        unsafe { bpf_once(COMMAND, attr.bytes_mut(), attr::TestRun::MIN_LEN) }
    })?;
    Ok(TestRunResult {
        retval: attr.retval,
        duration_ns: attr.duration,
        data_size_out: attr.data_size_out,
        ctx_size_out: attr.ctx_size_out,
    })
}

/// Linux 5.0 or later, from which a test run writes no more than it was given
/// room for. No trial could tell without risking the memory behind. Asked once.
fn respects_output_size() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| KernelVersion::current().is_ok_and(|kernel| kernel.major >= 5))
}

/// What a program is attached to.
#[derive(Clone, Copy, Debug)]
pub enum Target<'a> {
    /// Nothing: the program itself says, as for fentry or netfilter.
    None,
    /// A cgroup, network namespace, map, perf event or program.
    Fd(BorrowedFd<'a>),
    /// A network device.
    Ifindex(u32),
}

impl Target<'_> {
    pub(super) fn value(self) -> u32 {
        match self {
            Target::None => 0,
            Target::Fd(fd) => num(fd),
            Target::Ifindex(index) => index,
        }
    }
}

/// A neighbour among the programs of a hook. Linux 6.6.
#[derive(Clone, Copy, Debug)]
pub enum Relative<'a> {
    /// A program.
    Program(BorrowedFd<'a>),
    /// A program by its id.
    ProgramId(u32),
    /// A link.
    Link(BorrowedFd<'a>),
    /// A link by its id.
    LinkId(u32),
}

impl Relative<'_> {
    /// The attribute's value, and the flags that say what it is.
    pub(super) fn value(this: Option<Self>) -> (u32, AttachFlags) {
        match this {
            None => (0, AttachFlags::empty()),
            Some(Relative::Program(fd)) => (num(fd), AttachFlags::empty()),
            Some(Relative::ProgramId(id)) => (id, AttachFlags::ID),
            Some(Relative::Link(fd)) => (num(fd), AttachFlags::LINK),
            Some(Relative::LinkId(id)) => (id, AttachFlags::LINK | AttachFlags::ID),
        }
    }
}

/// A program to attach or detach without a link.
#[derive(Clone, Copy, Debug)]
pub struct ProgAttach<'a> {
    /// Hook's owner.
    pub target: Target<'a>,
    /// Hook.
    pub attach_type: AttachType,
    /// The program. On detach, `None` takes whatever is there, where the hook
    /// holds a single program.
    pub prog: Option<BorrowedFd<'a>>,
    /// Flags. Those that announce one of the fields below are added.
    pub flags: AttachFlags,
    /// Program to take the place of. Linux 5.6.
    pub replace: Option<BorrowedFd<'a>>,
    /// Neighbour, with [`AttachFlags::BEFORE`] or [`AttachFlags::AFTER`].
    /// Linux 6.6.
    pub relative: Option<Relative<'a>>,
    /// Fail with `ESTALE` if the hook has changed since this revision; 0 for
    /// any. Linux 6.6.
    pub expected_revision: u64,
}

impl<'a> ProgAttach<'a> {
    /// `prog` on `target`, with no flags.
    pub fn new(target: Target<'a>, attach_type: AttachType, prog: BorrowedFd<'a>) -> Self {
        ProgAttach {
            target,
            attach_type,
            prog: Some(prog),
            flags: AttachFlags::empty(),
            replace: None,
            relative: None,
            expected_revision: 0,
        }
    }

    fn call(&self, command: Command) -> Result<()> {
        let (relative, mut flags) = Relative::value(self.relative);
        flags |= self.flags;
        if self.replace.is_some() {
            flags |= AttachFlags::REPLACE;
        }
        let mut attr = attr::ProgAttach {
            target_fd_or_ifindex: self.target.value(),
            attach_bpf_fd: num_or_none(self.prog),
            attach_type: self.attach_type,
            attach_flags: flags.bits(),
            replace_bpf_fd: num_or_none(self.replace),
            relative_fd_or_id: relative,
            expected_revision: self.expected_revision,
        };
        // SAFETY: the attribute holds no address.
        unsafe { bpf(command, &mut attr) }?;
        Ok(())
    }
}

/// `BPF_PROG_ATTACH`. Linux 4.10. Stays when this process ends.
pub fn prog_attach(attach: &ProgAttach<'_>) -> Result<()> {
    attach.call(Command::PROG_ATTACH)
}

/// `BPF_PROG_DETACH`. Linux 4.10.
pub fn prog_detach(attach: &ProgAttach<'_>) -> Result<()> {
    attach.call(Command::PROG_DETACH)
}

/// Room for what a query lists: an empty slice is not asked for, the others
/// must be as long as `prog_ids`. Kernels before the version named refuse a
/// query that asks for the list (`EINVAL`).
#[derive(Debug, Default)]
pub struct QueryBuffers<'a> {
    /// Ids of the programs.
    pub prog_ids: &'a mut [u32],
    /// Flags each was attached with. Linux 6.0.
    pub prog_attach_flags: &'a mut [u32],
    /// Ids of the links that hold them, 0 without link. Linux 6.6.
    pub link_ids: &'a mut [u32],
    /// Flags of those links. Linux 6.6.
    pub link_attach_flags: &'a mut [u32],
}

/// What a query says besides the lists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProgQuery {
    /// Programs there are. More than the buffers hold means that the lists are
    /// cut short.
    pub count: usize,
    /// Flags of the hook.
    pub attach_flags: AttachFlags,
    /// Revision of the hook, which every change counts up. Linux 6.6.
    pub revision: u64,
}

/// `BPF_PROG_QUERY`. Linux 4.15. `flags` is 0 or
/// [`F_QUERY_EFFECTIVE`](crate::abi::bpf::F_QUERY_EFFECTIVE).
pub fn prog_query(
    target: Target<'_>,
    attach_type: AttachType,
    flags: u32,
    out: &mut QueryBuffers<'_>,
) -> Result<ProgQuery> {
    const COMMAND: Command = Command::PROG_QUERY;
    let len = out.prog_ids.len();
    let fits = |list: &[u32]| list.is_empty() || list.len() == len;
    if !(fits(out.prog_attach_flags) && fits(out.link_ids) && fits(out.link_attach_flags)) {
        return Err(invalid(COMMAND, "lists of different lengths"));
    }
    let mut attr = attr::ProgQuery {
        target_fd_or_ifindex: target.value(),
        attach_type,
        query_flags: flags,
        prog_ids: PtrMut::of(out.prog_ids),
        count: len32(COMMAND, len)?,
        prog_attach_flags: PtrMut::of(out.prog_attach_flags),
        link_ids: PtrMut::of(out.link_ids),
        link_attach_flags: PtrMut::of(out.link_attach_flags),
        ..Default::default()
    };
    // SAFETY: each list is null or has `count` elements.
    match unsafe { bpf(COMMAND, &mut attr) } {
        Ok(_) => {}
        // The lists are filled to their end, the count is the whole one.
        Err(err) if err.is(Errno::ENOSPC) && attr.count as usize > len => {}
        Err(err) => return Err(err),
    }
    Ok(ProgQuery {
        count: attr.count as usize,
        attach_flags: AttachFlags::from_bits_retain(attr.attach_flags),
        revision: attr.revision,
    })
}

/// `BPF_PROG_BIND_MAP`: the program keeps the map alive. Linux 5.10.
pub fn prog_bind_map(prog: BorrowedFd<'_>, map: BorrowedFd<'_>) -> Result<()> {
    let mut attr = attr::ProgBindMap {
        prog_fd: num(prog),
        map_fd: num(map),
        flags: 0,
    };
    // SAFETY: the attribute holds no address.
    unsafe { bpf(Command::PROG_BIND_MAP, &mut attr) }?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::bpf::log_level;

    #[test]
    fn indices_into_the_descriptor_array() {
        assert_eq!(max_fd_index(&[Insn::exit()]), -1);
        let [lo, hi] = Insn::ld_imm64(1, pseudo::MAP_IDX, 3);
        assert_eq!(max_fd_index(&[lo, hi, Insn::exit()]), 3);
        let [lo, hi] = Insn::ld_imm64(1, pseudo::MAP_FD, 9);
        let kfunc = Insn::new(CALL, 0, pseudo::KFUNC_CALL, 7, 1);
        assert_eq!(max_fd_index(&[lo, hi, kfunc]), 7);
        let vmlinux = Insn::new(CALL, 0, pseudo::KFUNC_CALL, 0, 1);
        assert_eq!(max_fd_index(&[vmlinux]), -1);
    }

    #[test]
    fn records_count_whole_ones() {
        let records = Records {
            bytes: &[0; 20],
            rec_size: 8,
        };
        assert_eq!((records.count(), records.size()), (2, 8));
        let none = Records {
            bytes: &[],
            rec_size: 8,
        };
        assert_eq!((none.count(), none.size()), (0, 0));
        let odd = Records {
            bytes: &[0; 3],
            rec_size: 0,
        };
        assert_eq!((odd.count(), odd.size()), (3, 0));
    }

    #[test]
    fn a_log_forgets_its_predecessor() {
        let mut buf = *b"stale\0";
        let mut log = Log::new(log_level::BASIC, &mut buf);
        assert_eq!(log.bytes(), b"stale");
        assert_eq!(log.start().1, 6);
        assert_eq!(log.bytes(), b"");
        log.finish(7);
        assert_eq!(log.true_size(), Some(7));
        let mut silent = Log::new(0, &mut buf);
        assert_eq!(silent.start().1, 0);
        assert_eq!(silent.true_size(), None);
    }
}
