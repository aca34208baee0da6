//! Tests of the commands against the running kernel, and of the parts that
//! need none.

mod links;
mod maps;
mod progs;

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};

use super::*;
use crate::abi::bpf::{ElemFlags, MapType, ProgramType};
use crate::abi::insn::Insn;

/// Says on the real standard error, past the harness, that a test did not run.
fn skip(test: &str, reason: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "skipped: {test}: {reason}");
}

/// Skips what only kernels from `since` on tell; this one must be older.
fn skip_before(test: &str, since: (u32, u32)) {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-']).map_while(|n| n.parse().ok());
    let this = (numbers.next().unwrap(), numbers.next().unwrap());
    assert!(this < since, "{test}: Linux {release} tells this");
    skip(test, format_args!("needs Linux {}.{}", since.0, since.1));
}

/// Unwraps the answer of a command, or skips the test that asked where the
/// privilege or the kernel's support is missing.
macro_rules! require {
    ($test:literal, $result:expr) => {
        match $result {
            Ok(value) => value,
            Err(err)
                if err.errno().is_permission()
                    || err.is(Errno::EOPNOTSUPP)
                    || err.is(Errno::E2BIG)
                    || err.is(Errno::ENOSYS) =>
            {
                $crate::bpf::tests::skip($test, err);
                return;
            }
            Err(err) => panic!("{}: {err}", $test),
        }
    };
}
use require;

fn hash(key_size: u32, value_size: u32, max_entries: u32) -> Result<MapFd> {
    map_create(&MapCreate {
        map_type: MapType::HASH,
        key_size,
        value_size,
        max_entries,
        name: "test_hash",
        ..Default::default()
    })
}

/// `r0 = value; exit`.
fn returns(value: i32) -> [Insn; 2] {
    [Insn::mov64_imm(0, value), Insn::exit()]
}

fn load(prog_type: ProgramType, insns: &[Insn]) -> Result<OwnedFd> {
    prog_load(
        &ProgLoad {
            prog_type,
            insns,
            license: c"GPL",
            name: "test_prog",
            ..Default::default()
        },
        None,
    )
}

/// A directory of the test's own, removed with what it holds.
struct TempDir(std::path::PathBuf);

impl TempDir {
    fn new(parent: &str, test: &str) -> std::io::Result<TempDir> {
        let path = format!("{parent}/ebpf-manager-sys-{test}-{}", std::process::id());
        std::fs::create_dir(&path)?;
        Ok(TempDir(path.into()))
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        // A cgroup directory holds files that only go with it.
        if std::fs::remove_dir(&self.0).is_err() {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
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
fn eagain_is_tried_five_times_and_nothing_else_is() {
    let mut calls = 0;
    let mut fail_until = |succeed_at: u32, errno| {
        calls = 0;
        let result = again(|| {
            calls += 1;
            if calls == succeed_at {
                return Ok(i64::from(calls));
            }
            Err(SysError::new("test", errno))
        });
        (calls, result.map_err(|err| err.errno()))
    };
    assert_eq!(fail_until(5, Errno::EAGAIN), (5, Ok(5)));
    assert_eq!(fail_until(6, Errno::EAGAIN), (5, Err(Errno::EAGAIN)));
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
    let map = require!("ids", hash(4, 8, 16));
    let id = map_info(map.as_fd()).unwrap().id;
    let mut seen = false;
    let mut at = 0;
    while let Some(next) = require!("ids", next_id(ObjectKind::Map, at)) {
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
    for kind in [ObjectKind::Program, ObjectKind::Btf, ObjectKind::Link] {
        let beyond = next_id(kind, i32::MAX as u32 - 1);
        assert!(require!("ids", beyond).is_none());
    }
}

#[test]
fn pins() {
    let map = require!("pins", hash(4, 8, 16));
    let dir = match TempDir::new("/sys/fs/bpf", "pins") {
        Ok(dir) => dir,
        Err(err) => return skip("pins", err),
    };
    let path = dir.0.join("map");
    require!("pins", obj_pin(map.as_fd(), &path, None));
    let err = obj_pin(map.as_fd(), &path, None).unwrap_err();
    assert!(err.is(Errno::EEXIST));
    assert_eq!(err.path(), Some(path.as_path()));

    let opened = MapFd::from_fd(obj_get(&path, 0, None).unwrap()).unwrap();
    let id = map_info(map.as_fd()).unwrap().id;
    assert_eq!(map_info(opened.as_fd()).unwrap().id, id);
    assert_eq!((opened.key_size(), opened.value_size()), (4, 8));

    // BPF_F_RDONLY is kept.
    let readonly = MapFd::from_fd(obj_get(&path, 1 << 3, None).unwrap()).unwrap();
    let err = readonly
        .update(&[0; 4], &[0; 8], ElemFlags::empty())
        .unwrap_err();
    assert!(err.is(Errno::EPERM));

    // Another kind of object is not taken for a map.
    let prog = load(ProgramType::SOCKET_FILTER, &returns(0)).unwrap();
    obj_pin(prog.as_fd(), &dir.0.join("prog"), None).unwrap();
    let err = MapFd::from_fd(obj_get(&dir.0.join("prog"), 0, None).unwrap()).unwrap_err();
    assert_eq!(
        (err.errno(), err.detail()),
        (Errno::EINVAL, Some("not a map"))
    );

    let missing = obj_get(&dir.0.join("missing"), 0, None).unwrap_err();
    assert!(missing.is(Errno::ENOENT));
    let nul = obj_get(std::path::Path::new("a\0b"), 0, None).unwrap_err();
    assert!(nul.is(Errno::EINVAL));

    let root = std::fs::File::open(&dir.0).unwrap();
    let relative = obj_get(std::path::Path::new("map"), 0, Some(root.as_fd()));
    let relative = require!("pins below a directory", relative);
    let relative = MapFd::from_fd(relative).unwrap();
    assert_eq!(map_info(relative.as_fd()).unwrap().id, id);
}

#[test]
fn stats_and_tokens() {
    use crate::abi::bpf::StatsType;
    let map = require!("stats_and_tokens", hash(4, 8, 16));
    let stats = require!("stats_and_tokens", enable_stats(StatsType::RUN_TIME));
    let prog = load(ProgramType::SOCKET_FILTER, &returns(0)).unwrap();
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
