//! Tests of the commands against the running kernel, and of the parts that
//! need none.

mod links;
mod maps;
mod progs;

use std::os::fd::{AsFd, OwnedFd};

use super::*;
use crate::abi::bpf::{ElemFlags, MapType, ProgramType};
use crate::testing::{TempDir, create_map, load, require, returns, with_mounted};

/// A hash with keys of 4 and values of 8 bytes.
fn hash(max_entries: u32) -> Result<MapFd> {
    create_map(MapType::HASH, 4, 8, max_entries)
}

#[test]
fn names_the_kernel_takes() {
    assert_eq!(&obj_name("probe"), b"probe\0\0\0\0\0\0\0\0\0\0\0");
    assert_eq!(&obj_name("a-b c.d_é"), b"a_b_c.d___\0\0\0\0\0\0");
    assert_eq!(&obj_name("exactly_16_bytes"), b"exactly_16_byte\0");
    assert_eq!(obj_name("with\0nul")[4], b'_');
    assert_eq!(obj_name(""), [0; OBJ_NAME_LEN]);
}

#[test]
fn interrupted_commands_are_tried_five_times_and_no_others() {
    let mut calls = 0;
    let mut fail_until = |succeed_at: u32, errno: Errno| {
        calls = 0;
        let result = again(Command::PROG_LOAD, ATTEMPTS, &mut || {
            calls += 1;
            if calls == succeed_at {
                return i64::from(calls);
            }
            // SAFETY: takes no argument and returns this thread's location.
            let location = unsafe { libc::__errno_location() };
            // SAFETY: the location is valid and writable for this thread.
            unsafe { *location = errno.raw() };
            -1
        });
        (calls, result.map_err(|err| err.errno()))
    };
    for errno in [Errno::EAGAIN, Errno::EINTR] {
        assert_eq!(fail_until(5, errno), (5, Ok(5)));
        assert_eq!(fail_until(6, errno), (5, Err(errno)));
    }
    assert_eq!(fail_until(2, Errno::EBUSY), (1, Err(Errno::EBUSY)));
}

#[test]
fn errors_name_the_command() {
    // Descriptor of no BPF object at all, which needs no privilege.
    let file = std::fs::File::open("/dev/null").unwrap();
    let err = link_detach(file.as_fd()).unwrap_err();
    assert_eq!(err.op(), "bpf(BPF_LINK_DETACH)");
}

#[test]
fn ids() {
    let map = require!((4, 13), hash(16));
    let id = map_info(map.as_fd()).unwrap().id;
    let mut seen = false;
    let mut at = 0;
    while let Some(next) = require!((4, 13), next_id(ObjectKind::Map, at)) {
        assert!(next > at);
        seen |= next == id;
        at = next;
    }
    assert!(seen, "map {id} is listed");
    let again = MapFd::from_fd(fd_by_id(ObjectKind::Map, id, 0).unwrap()).unwrap();
    assert_eq!(map_info(again.as_fd()).unwrap().id, id);

    let err = fd_by_id(ObjectKind::Program, u32::MAX - 1, 0).unwrap_err();
    assert!(err.is(Errno::ENOENT));
    assert_eq!(err.op(), "bpf(BPF_PROG_GET_FD_BY_ID)");
    let beyond = |kind| next_id(kind, i32::MAX as u32 - 1);
    assert_eq!(require!((4, 13), beyond(ObjectKind::Program)), None);
    assert_eq!(require!((5, 4), beyond(ObjectKind::Btf)), None);
    assert_eq!(require!((5, 8), beyond(ObjectKind::Link)), None);
}

#[test]
fn kinds_are_told_to_a_thread_with_descriptors_of_its_own() {
    let told: Result<_> = std::thread::scope(|scope| {
        let work = || {
            // SAFETY: gives this thread, which ends here, a table of its own.
            assert_eq!(unsafe { libc::unshare(libc::CLONE_FILES) }, 0);
            // A number that the other threads have no use for.
            let map = fd::dup(hash(16)?.as_fd())?;
            // SAFETY: F_DUPFD_CLOEXEC takes two integers.
            let high = unsafe { libc::fcntl(map.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 900) };
            let high = fd::own("fcntl", high.into())?;
            Ok(info::is_kind(high.as_fd(), "bpf-map"))
        };
        scope.spawn(work).join().unwrap()
    });
    assert_eq!(require!((3, 18), told), Some(true));
}

#[test]
fn pins() {
    with_mounted("bpf", |bpffs| {
        let map = require!((4, 4), hash(16));
        let path = bpffs.join("map");
        obj_pin(map.as_fd(), &path, None).unwrap();
        let err = obj_pin(map.as_fd(), &path, None).unwrap_err();
        assert!(err.is(Errno::EEXIST));
        assert_eq!(err.path(), Some(path.as_path()));

        let opened = MapFd::from_fd(obj_get(&path, 0, None).unwrap()).unwrap();
        let id = map_info(map.as_fd()).unwrap().id;
        assert_eq!(map_info(opened.as_fd()).unwrap().id, id);
        assert_eq!((opened.key_size(), opened.value_size()), (4, 8));

        // BPF_F_RDONLY is kept.
        let readonly = require!((4, 15), obj_get(&path, 1 << 3, None));
        let readonly = MapFd::from_fd(readonly).unwrap();
        let err = readonly.update(&[0; 4], &[0; 8], ElemFlags::empty());
        assert!(err.unwrap_err().is(Errno::EPERM));

        // Another kind of object is not taken for a map.
        let prog = load(ProgramType::SOCKET_FILTER, &returns(0));
        let path = bpffs.join("prog");
        obj_pin(prog.as_fd(), &path, None).unwrap();
        let err = MapFd::from_fd(obj_get(&path, 0, None).unwrap()).unwrap_err();
        assert_eq!(err.errno(), Errno::EINVAL);
        assert_eq!(err.detail(), Some("not a map"));

        let (prog, info) = prog_from_fd(obj_get(&path, 0, None).unwrap()).unwrap();
        assert_eq!(info, prog_info(prog.as_fd()).unwrap());
        let err = prog_from_fd(opened.into()).unwrap_err();
        assert_eq!(err.detail(), Some("not a program"));

        let missing = obj_get(&bpffs.join("missing"), 0, None).unwrap_err();
        assert!(missing.is(Errno::ENOENT));
        let nul = obj_get(std::path::Path::new("a\0b"), 0, None).unwrap_err();
        assert!(nul.is(Errno::EINVAL));
    });
}

#[test]
fn pins_below_a_directory() {
    with_mounted("bpf", |bpffs| {
        let map = require!((4, 4), hash(16));
        let dir = std::fs::File::open(bpffs).unwrap();
        let (name, dir) = (std::path::Path::new("map"), Some(dir.as_fd()));
        require!((6, 5), obj_pin(map.as_fd(), name, dir));
        let id = map_info(map.as_fd()).unwrap().id;
        for opened in [
            obj_get(name, 0, dir),
            obj_get(&bpffs.join(name), 0, None),
            obj_get(&bpffs.join(name), 0, dir),
        ] {
            let opened = MapFd::from_fd(opened.unwrap()).unwrap();
            assert_eq!(map_info(opened.as_fd()).unwrap().id, id);
        }
    });
}

#[test]
fn stats_and_tokens() {
    use crate::abi::bpf::StatsType;
    let map = require!((3, 18), hash(16));
    let stats = require!((5, 8), enable_stats(StatsType::RUN_TIME));
    let prog = load(ProgramType::SOCKET_FILTER, &returns(0));
    let mut run = TestRun {
        data_in: &[0; 64],
        repeat: 10,
        ..Default::default()
    };
    prog_test_run(prog.as_fd(), &mut run).unwrap();
    drop(stats);
    // Test runs are not timed, so the counters say nothing; what counts is
    // that the kernel took the command and the program is unharmed.
    assert_ne!(prog_info(prog.as_fd()).unwrap().id, 0);

    // Not the root directory of a BPF file system.
    let err = token_create(map.as_fd()).unwrap_err();
    assert_eq!(err.op(), "bpf(BPF_TOKEN_CREATE)");
}
