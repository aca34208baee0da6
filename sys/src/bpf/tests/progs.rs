//! Programs and BTF.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::*;
use crate::abi::bpf::log_level;
use crate::abi::info::{FuncInfo, LineInfo, name_str};
use crate::abi::insn::{Insn, class, mode, pseudo, size};
use crate::abi::pod::slice_bytes;
use crate::proc::KernelVersion;

const FILTER: ProgramType = ProgramType::SOCKET_FILTER;

fn try_load(prog_type: ProgramType, insns: &[Insn]) -> Result<OwnedFd> {
    let load = ProgLoad {
        prog_type,
        insns,
        license: c"GPL",
        ..Default::default()
    };
    prog_load(&load, None)
}

/// Types `int` (1), `int main()` (2, 3) and the strings they and a source line
/// need.
fn small_btf() -> Vec<u8> {
    const STRINGS: &[u8] = b"\0int\0main\0main.c\0return 0;\0";
    const INT: u32 = 1 << 24;
    const FUNC: u32 = 12 << 24;
    const FUNC_PROTO: u32 = 13 << 24;
    let types = [
        [1, INT, 4].as_slice(),
        &[1 << 24 | 32],
        &[0, FUNC_PROTO, 1],
        &[5, FUNC, 2],
    ]
    .concat();
    let len = types.len() as u32 * 4;
    let header = [24, 0, len, len, STRINGS.len() as u32];
    let mut btf = Vec::new();
    btf.extend_from_slice(&0xeb9f_u16.to_ne_bytes());
    btf.extend_from_slice(&[1, 0]);
    btf.extend_from_slice(slice_bytes(&header));
    btf.extend_from_slice(slice_bytes(&types));
    btf.extend_from_slice(STRINGS);
    btf
}

#[test]
fn load_and_run() {
    let prog = require!((3, 19), try_load(FILTER, &returns(42)));
    let packet: Vec<u8> = (0..64).collect();
    let mut out = [0xff; 80];
    let mut run = TestRun {
        data_in: &packet,
        data_out: &mut out,
        repeat: 3,
        ..Default::default()
    };
    let result = require!((5, 0), prog_test_run(prog.as_fd(), &mut run));
    assert_eq!(result.retval, 42);
    assert_eq!(result.data_size_out, 64);
    // A socket filter runs behind the link header, which comes back zero.
    assert_eq!(out[14..64], packet[14..]);
    assert_eq!(out[64..], [0xff; 16], "nothing behind the packet");

    // Too little room: an error, and not a byte more than there is.
    let mut out = [0xff; 16];
    let mut run = TestRun {
        data_in: &packet,
        data_out: &mut out[..8],
        ..Default::default()
    };
    let err = prog_test_run(prog.as_fd(), &mut run).unwrap_err();
    assert!(err.is(Errno::ENOSPC));
    assert_eq!(out[8..], [0xff; 8]);

    // No room asked for: null, or the kernel would write all of it.
    let mut run = TestRun {
        data_in: &packet,
        ..Default::default()
    };
    assert_eq!(prog_test_run(prog.as_fd(), &mut run).unwrap().retval, 42);
}

#[test]
fn syscall_programs_write_their_context() {
    // *(u32 *)(r1 + 0) = r2, by way of a register: the verifier lets programs
    // store constants to their context only since Linux 6.4.
    let store = Insn::new(class::STX | mode::MEM | size::W, 1, 2, 0, 0);
    let [clear, exit] = returns(0);
    let insns = [Insn::mov64_imm(2, 7), store, clear, exit];
    let prog = prog_load(
        &ProgLoad {
            prog_type: ProgramType::SYSCALL,
            insns: &insns,
            license: c"GPL",
            flags: crate::abi::bpf::ProgramFlags::SLEEPABLE,
            ..Default::default()
        },
        None,
    );
    let prog = require!((5, 14), prog);
    let mut context = [0_u8; 8];
    let mut run = TestRun {
        ctx_in: &mut context,
        ..Default::default()
    };
    prog_test_run(prog.as_fd(), &mut run).unwrap();
    assert_eq!(context[..4], 7_u32.to_ne_bytes());
}

/// What the verifier says about a program that returns no value.
fn refused(log: &mut Log<'_>) -> SysError {
    let load = ProgLoad {
        prog_type: FILTER,
        insns: &[Insn::exit()],
        license: c"GPL",
        ..Default::default()
    };
    prog_load(&load, Some(log)).unwrap_err()
}

#[test]
fn refusals_are_explained() {
    require!((3, 19), try_load(FILTER, &returns(0)));
    let mut buf = vec![0xff; 4096];
    let mut log = Log::new(log_level::BASIC, &mut buf);
    let err = refused(&mut log);
    assert!(err.is(Errno::EACCES), "{err}");
    let text = String::from_utf8_lossy(log.bytes());
    assert!(text.contains("R0 !read_ok"), "{text}");
    // Level 0 beside a buffer, which the kernel itself would refuse.
    let mut buf = vec![0xff; 4096];
    let mut log = Log::new(0, &mut buf);
    let err = refused(&mut log);
    assert!(err.is(Errno::EACCES), "{err}");
    assert_eq!((log.bytes(), log.true_size()), (&b""[..], None));
}

#[test]
fn logs_tell_the_size_of_the_whole() {
    require!((3, 19), try_load(FILTER, &returns(0)));
    let mut buf = vec![0xff; 4096];
    let mut log = Log::new(log_level::BASIC, &mut buf);
    refused(&mut log);
    let true_size = require!((6, 4), log.true_size().ok_or("no true size"));
    let whole = log.bytes().to_vec();
    assert_eq!(true_size as usize, whole.len() + 1);

    // Too small: the size is still that of the whole.
    let mut buf = vec![0; whole.len() / 2];
    let mut log = Log::new(log_level::BASIC | log_level::FIXED, &mut buf);
    let err = refused(&mut log);
    assert!(err.is(Errno::ENOSPC), "{err}");
    assert_eq!(log.true_size(), Some(true_size));
    assert!(whole.starts_with(log.bytes()));
    assert!(!log.bytes().is_empty());
    // No memory at all: the size alone.
    let mut log = Log::new(log_level::BASIC, &mut []);
    refused(&mut log);
    assert_eq!(log.true_size(), Some(true_size));

    let mut buf = vec![0; 4096];
    let mut log = Log::new(log_level::BASIC, &mut buf);
    refused_btf(&mut log);
    let len = log.bytes().len() as u32;
    assert_eq!(log.true_size(), Some(len + 1));
}

#[test]
fn maps_by_index() {
    let map = require!((3, 18), hash(16));
    let [lo, hi] = Insn::ld_imm64(1, pseudo::MAP_IDX, 1);
    let insns = [lo, hi, Insn::mov64_imm(0, 0), Insn::exit()];
    let fds = [map.as_fd(), map.as_fd()];
    let load = |fd_array| {
        prog_load(
            &ProgLoad {
                prog_type: FILTER,
                insns: &insns,
                license: c"GPL",
                fd_array,
                ..Default::default()
            },
            None,
        )
    };
    let err = load(&fds[..1]).unwrap_err();
    assert_eq!(err.detail(), Some("index beyond fd_array"));
    assert!(load(&[]).is_err());
    let prog = require!((5, 14), load(&fds));
    let id = map_info(map.as_fd()).unwrap().id;
    assert_eq!(prog_map_ids(prog.as_fd()).unwrap(), [id]);
}

#[test]
fn bound_maps_are_listed() {
    let map = require!((3, 18), hash(16));
    let prog = load(FILTER, &returns(0));
    assert!(prog_map_ids(prog.as_fd()).unwrap().is_empty());
    let bound = prog_bind_map(prog.as_fd(), map.as_fd());
    require!((5, 10), bound);
    let id = map_info(map.as_fd()).unwrap().id;
    assert_eq!(prog_map_ids(prog.as_fd()).unwrap(), [id]);
    // Lists are asked of programs only.
    let err = prog_map_ids(map.as_fd()).unwrap_err();
    assert_eq!(err.detail(), Some("another kind of object"));
}

#[test]
fn btf_and_records() {
    let blob = small_btf();
    let mut buf = vec![0; 4096];
    let mut log = Log::new(log_level::BASIC, &mut buf);
    let load = BtfLoad {
        btf: &blob,
        ..Default::default()
    };
    let btf = require!((5, 0), btf_load(&load, Some(&mut log)));
    assert_eq!(btf_data(btf.as_fd()).unwrap(), blob);
    let info = btf_info(btf.as_fd()).unwrap();
    assert_ne!(info.id, 0);
    assert_eq!(info.kernel_btf, 0);

    let insns = returns(0);
    let funcs = [FuncInfo {
        insn_off: 0,
        type_id: 3,
    }];
    let lines = [LineInfo {
        insn_off: 0,
        file_name_off: 10,
        line_off: 17,
        line_col: 1 << 10,
    }];
    let prog = prog_load(
        &ProgLoad {
            prog_type: FILTER,
            insns: &insns,
            license: c"GPL",
            name: "main",
            btf: Some(btf.as_fd()),
            func_info: Records {
                bytes: slice_bytes(&funcs),
                rec_size: 8,
            },
            line_info: Records {
                bytes: slice_bytes(&lines),
                rec_size: 16,
            },
            ..Default::default()
        },
        None,
    )
    .unwrap();
    let told = prog_info(prog.as_fd()).unwrap();
    assert_eq!((told.prog_type, told.btf_id), (FILTER, info.id));
    assert_eq!(name_str(&told.name), "main");
    assert!(told.is_gpl_compatible());
    assert_eq!(prog_func_info(prog.as_fd()).unwrap(), funcs);
    assert_eq!(prog_line_info(prog.as_fd()).unwrap(), lines);
    assert_eq!(prog_insns(prog.as_fd()).unwrap(), insns);

    // Types for a map.
    let map = map_create(&MapCreate {
        map_type: MapType::ARRAY,
        key_size: 4,
        value_size: 4,
        max_entries: 1,
        btf: Some(btf.as_fd()),
        btf_key_type_id: 1,
        btf_value_type_id: 1,
        ..Default::default()
    })
    .unwrap();
    let told = map_info(map.as_fd()).unwrap();
    assert_eq!((told.btf_id, told.btf_key_type_id), (info.id, 1));
}

/// What the kernel says about BTF whose strings reach beyond its end.
fn refused_btf(log: &mut Log<'_>) -> SysError {
    let mut blob = small_btf();
    blob[20] = 0xff;
    let load = BtfLoad {
        btf: &blob,
        ..Default::default()
    };
    btf_load(&load, Some(log)).unwrap_err()
}

#[test]
fn bad_btf_is_explained() {
    let good = BtfLoad {
        btf: &small_btf(),
        ..Default::default()
    };
    require!((4, 18), btf_load(&good, None));
    let mut buf = vec![0; 4096];
    let mut log = Log::new(log_level::BASIC, &mut buf);
    let err = refused_btf(&mut log);
    assert!(err.is(Errno::EINVAL), "{err}");
    assert!(!log.bytes().is_empty());
}

#[test]
fn kernel_btf_has_a_name() {
    let own = small_btf();
    let own = BtfLoad {
        btf: &own,
        ..Default::default()
    };
    let own = require!((4, 18), btf_load(&own, None));
    assert_eq!(require!((5, 11), btf_name(own.as_fd())), "");
    let mut id = 0;
    let vmlinux = loop {
        let Some(next) = next_id(ObjectKind::Btf, id).unwrap() else {
            break None;
        };
        id = next;
        // It may be gone by now.
        let Ok(btf) = fd_by_id(ObjectKind::Btf, id, 0) else {
            continue;
        };
        if btf_info(btf.as_fd()).unwrap().kernel_btf == 1
            && btf_name(btf.as_fd()).unwrap() == "vmlinux"
        {
            break Some(btf);
        }
    };
    let vmlinux = vmlinux.ok_or("no BTF of the kernel in the list");
    let vmlinux = require!((5, 11), ["CONFIG_DEBUG_INFO_BTF"], vmlinux);
    let data = btf_data(vmlinux.as_fd()).unwrap();
    let info = btf_info(vmlinux.as_fd()).unwrap();
    assert_eq!(data.len(), info.btf_size as usize);
    assert_eq!(data[..2], 0xeb9f_u16.to_ne_bytes());
}

#[test]
fn test_runs_end_though_signals_keep_coming() {
    extern "C" fn nothing(_: libc::c_int) {}
    let prog = require!((3, 19), try_load(FILTER, &returns(42)));
    let handler: extern "C" fn(libc::c_int) = nothing;
    // SAFETY: the handler does nothing, and no other code of this test binary
    // uses SIGURG.
    unsafe { libc::signal(libc::SIGURG, handler as usize) };
    // SAFETY: takes no argument and returns this thread's handle.
    let runner = unsafe { libc::pthread_self() };
    let done = AtomicBool::new(false);
    let result = std::thread::scope(|scope| {
        scope.spawn(|| {
            // Enough for a machine that is busy, and far more than five.
            for _ in 0..200 {
                if done.load(Ordering::Relaxed) {
                    break;
                }
                std::thread::sleep(Duration::from_millis(5));
                // SAFETY: the runner is alive: it waits for this thread.
                unsafe { libc::pthread_kill(runner, libc::SIGURG) };
            }
        });
        let mut run = TestRun {
            data_in: &[0; 64],
            // Longer than the signals come.
            repeat: 1 << 26,
            ..Default::default()
        };
        let result = prog_test_run(prog.as_fd(), &mut run);
        done.store(true, Ordering::Relaxed);
        result
    });
    match result {
        Err(err) if err.is(Errno::EINTR) => {}
        // Before 5.0 a run ends early and calls that a success.
        Ok(_) => assert!(
            KernelVersion::current().unwrap().major < 5,
            "begun for ever"
        ),
        Err(err) => require!((5, 0), Err(err)),
    }
}
