//! What the ring tests need of bpf(2), without the wrappers they test.

use std::ffi::c_long;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use crate::abi::bpf::{Command, MapType, ProgramType};
use crate::abi::insn::{Insn, class, mode, pseudo, size};
use crate::errno::SysError;
use crate::fd::own;

/// `bpf_perf_event_output`.
pub(crate) const PERF_EVENT_OUTPUT: i32 = 25;
/// `bpf_ringbuf_output`.
pub(crate) const RINGBUF_OUTPUT: i32 = 130;
/// `bpf_ringbuf_reserve`.
pub(crate) const RINGBUF_RESERVE: i32 = 131;
/// `bpf_ringbuf_discard`.
pub(crate) const RINGBUF_DISCARD: i32 = 133;

fn bpf(command: Command, attr: &mut [u32; 32]) -> Result<c_long, SysError> {
    let at = attr.as_mut_ptr();
    // SAFETY: `attr` is as long as the size passed and lives through the call;
    // the pointers in it are the callers' live buffers.
    let ret = unsafe { libc::syscall(libc::SYS_bpf, command.0, at, size_of_val(attr)) };
    if ret < 0 {
        return Err(SysError::last("bpf"));
    }
    Ok(ret)
}

fn put_u64(attr: &mut [u32; 32], index: usize, value: u64) {
    let bytes = value.to_ne_bytes();
    let (low, high) = bytes.split_at(4);
    attr[index] = u32::from_ne_bytes(low.try_into().unwrap());
    attr[index + 1] = u32::from_ne_bytes(high.try_into().unwrap());
}

/// Creates a map, or says that `test` is skipped for lack of privilege or
/// kernel support.
pub(crate) fn create_map(
    test: &str,
    kind: MapType,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
) -> Option<OwnedFd> {
    let mut attr = [0; 32];
    attr[..4].copy_from_slice(&[kind.0, key_size, value_size, max_entries]);
    match bpf(Command::MAP_CREATE, &mut attr) {
        Ok(fd) => Some(own("bpf", fd).unwrap()),
        Err(err) => {
            eprintln!("skipped: {test}: {err}");
            None
        }
    }
}

/// Sets element `key` of an array of descriptors.
pub(crate) fn update(map: BorrowedFd<'_>, key: u32, fd: BorrowedFd<'_>) {
    let value = fd.as_raw_fd();
    let mut attr = [0; 32];
    attr[0] = map.as_raw_fd() as u32;
    put_u64(&mut attr, 2, std::ptr::from_ref(&key) as u64);
    put_u64(&mut attr, 4, std::ptr::from_ref(&value) as u64);
    bpf(Command::MAP_UPDATE_ELEM, &mut attr).unwrap();
}

pub(crate) fn load(kind: ProgramType, insns: &[Insn]) -> OwnedFd {
    let mut log = vec![0_u8; 65536];
    let mut attr = [0; 32];
    attr[0] = kind.0;
    attr[1] = insns.len() as u32;
    put_u64(&mut attr, 2, insns.as_ptr() as u64);
    put_u64(&mut attr, 4, c"GPL".as_ptr() as u64);
    attr[6] = 1;
    attr[7] = log.len() as u32;
    put_u64(&mut attr, 8, log.as_mut_ptr() as u64);
    match bpf(Command::PROG_LOAD, &mut attr) {
        Ok(fd) => own("bpf", fd).unwrap(),
        Err(err) => panic!("{err}: {}", String::from_utf8_lossy(&log)),
    }
}

/// Runs a socket filter `repeat` times; returns what the last run returned.
pub(crate) fn run(program: &OwnedFd, repeat: u32) -> i32 {
    let packet = [0_u8; 64];
    let mut attr = [0; 32];
    attr[0] = program.as_raw_fd() as u32;
    attr[2] = packet.len() as u32;
    put_u64(&mut attr, 4, packet.as_ptr() as u64);
    attr[8] = repeat;
    bpf(Command::PROG_TEST_RUN, &mut attr).unwrap();
    attr[1] as i32
}

/// `*(u64 *)(r10 + off) = imm`
pub(crate) fn store_imm(off: i16, imm: i32) -> Insn {
    Insn::new(class::ST | mode::MEM | size::DW, 10, 0, off, imm)
}

/// `r<dst> = r10 + off`
pub(crate) fn stack_addr(dst: u8, off: i32) -> [Insn; 2] {
    let add = Insn::new(class::ALU64, dst, 0, 0, off);
    [Insn::mov64_reg(dst, 10), add]
}

/// `r<dst> = map`
pub(crate) fn map_addr(dst: u8, map: &OwnedFd) -> [Insn; 2] {
    Insn::ld_imm64(dst, pseudo::MAP_FD, map.as_fd().as_raw_fd() as u64)
}
