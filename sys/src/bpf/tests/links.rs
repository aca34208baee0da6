//! Links, and attachments without.

use std::ffi::CStr;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;

use super::*;
use crate::abi::bpf::{AttachFlags, AttachType, LinkType, TaskFdType};

/// A program of `prog_type` for `attach_type` that returns `value`.
fn attachable(prog_type: ProgramType, attach_type: AttachType, value: i32) -> Result<OwnedFd> {
    prog_load(
        &ProgLoad {
            prog_type,
            insns: &returns(value),
            license: c"GPL",
            expected_attach_type: attach_type,
            ..Default::default()
        },
        None,
    )
}

fn prog_id(prog: &OwnedFd) -> u32 {
    prog_info(prog.as_fd()).unwrap().id
}

/// Where cgroup v2 is mounted.
fn cgroup_root() -> Option<String> {
    std::fs::read_to_string("/proc/self/mounts")
        .ok()?
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .find(|fields| fields.get(2) == Some(&"cgroup2"))
        .map(|fields| fields[1].to_owned())
}

/// Runs `test` in a network namespace of its own, in a thread of its own.
fn in_private_netns(name: &'static str, test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(move || {
        // SAFETY: changes the calling thread's namespace and no memory.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            return skip(name, Errno::last());
        }
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn raw_tracepoints() {
    const TEST: &str = "raw_tracepoints";
    let prog = require!(
        "raw_tracepoints",
        load(ProgramType::RAW_TRACEPOINT, &returns(0))
    );
    let link = raw_tracepoint_open(Some(c"sys_enter"), prog.as_fd(), 0);
    let link = require!("raw_tracepoints", link);
    let missing = raw_tracepoint_open(Some(c"no_such_tracepoint"), prog.as_fd(), 0);
    assert!(missing.unwrap_err().is(Errno::ENOENT));

    let info = link_info(link.as_fd()).unwrap();
    assert_eq!(info.link_type, LinkType::RAW_TRACEPOINT);
    assert_eq!(info.prog_id, prog_id(&prog));
    assert_ne!(info.id, 0);
    assert!(matches!(info.detail, LinkDetail::RawTracepoint(_)));
    let name = link_name(link.as_fd()).unwrap();
    assert_eq!(name.unwrap(), "sys_enter");
    assert!(link_detach(link.as_fd()).unwrap_err().is(Errno::EOPNOTSUPP));

    let by_id = fd_by_id(ObjectKind::Link, info.id, 0).unwrap();
    assert_eq!(link_info(by_id.as_fd()).unwrap(), info);

    let mut name = [0xff; 32];
    let pid = std::process::id();
    let task = task_fd_query(pid, link.as_raw_fd(), &mut name).unwrap();
    assert_eq!(task.fd_type, TaskFdType::RAW_TRACEPOINT);
    assert_eq!(task.prog_id, info.prog_id);
    assert_eq!(&name[..=task.name_len], b"sys_enter\0");
    let mut short = [0xff; 8];
    let err = task_fd_query(pid, link.as_raw_fd(), &mut short[..4]).unwrap_err();
    assert!(err.is(Errno::ENOSPC));
    assert_eq!(short, *b"sys\0\xff\xff\xff\xff");

    let cookie = raw_tracepoint_open(Some(c"sys_enter"), prog.as_fd(), 0x1234_5678_9abc_def0);
    match cookie {
        Ok(link) => match link_info(link.as_fd()).unwrap().detail {
            LinkDetail::RawTracepoint(detail) if detail.cookie != 0 => {
                assert_eq!(detail.cookie, 0x1234_5678_9abc_def0);
            }
            _ => skip_before(TEST, (6, 17)),
        },
        Err(err) => skip(TEST, err),
    }
}

/// Id of kernel function `name` in the BTF at `/sys/kernel/btf/vmlinux`.
fn kernel_function(name: &str) -> Option<u32> {
    let data = std::fs::read("/sys/kernel/btf/vmlinux").ok()?;
    let word = |at: usize| {
        let bytes = data.get(at..at + 4)?;
        Some(u32::from_ne_bytes(bytes.try_into().ok()?) as usize)
    };
    let header = word(4)?;
    let (types, types_len, strings) = (word(8)?, word(12)?, word(16)?);
    let (mut at, end) = (header + types, header + types + types_len);
    let mut id = 1;
    while at < end {
        let info = word(at + 4)?;
        let (kind, count) = (info >> 24 & 31, info & 0xffff);
        if kind == 12 {
            let text = data.get(header + strings + word(at)?..)?;
            if CStr::from_bytes_until_nul(text).ok()?.to_bytes() == name.as_bytes() {
                return Some(id);
            }
        }
        at += 12
            + match kind {
                1 | 14 | 17 => 4,
                3 => 12,
                4 | 5 | 15 | 19 => 12 * count,
                6 | 13 => 8 * count,
                _ => 0,
            };
        id += 1;
    }
    None
}

fn iterator(function: &str) -> Result<OwnedFd> {
    prog_load(
        &ProgLoad {
            prog_type: ProgramType::TRACING,
            insns: &returns(0),
            license: c"GPL",
            expected_attach_type: AttachType::TRACE_ITER,
            attach_btf_id: kernel_function(function).unwrap_or(0),
            ..Default::default()
        },
        None,
    )
}

#[test]
fn iterators() {
    if kernel_function("bpf_iter_bpf_map_elem").is_none() {
        return skip("iterators", "no BTF of the kernel");
    }
    let map = require!("iterators", hash(4, 8, 4));
    let over_map = require!("iterators", iterator("bpf_iter_bpf_map_elem"));
    let link = |prog: &OwnedFd, target| {
        link_create(&LinkCreate {
            object: prog.as_fd(),
            target: Target::None,
            attach_type: AttachType::TRACE_ITER,
            flags: 0,
            options: LinkOptions::Iter(target),
        })
    };
    let elements = link(&over_map, IterTarget::Map(map.as_fd())).unwrap();
    let name = link_name(elements.as_fd()).unwrap();
    assert_eq!(name.unwrap(), "bpf_map_elem");
    let map_id = map_info(map.as_fd()).unwrap().id;
    let detail = link_info(elements.as_fd()).unwrap().detail;
    assert!(matches!(detail, LinkDetail::Iter(iter) if iter.map_id == map_id));
    assert!(link(&over_map, IterTarget::All).is_err(), "needs a map");

    let mut text = String::new();
    let read = iter_create(elements.as_fd()).unwrap();
    File::from(read).read_to_string(&mut text).unwrap();
    assert_eq!(text, "", "the program prints nothing");

    let over_tasks = require!("iterators over tasks", iterator("bpf_iter_task"));
    let pid = std::process::id();
    let tasks = link(&over_tasks, IterTarget::Task { tid: 0, pid });
    let tasks = require!("iterators over tasks", tasks);
    let LinkDetail::Iter(iter) = link_info(tasks.as_fd()).unwrap().detail else {
        panic!("not an iterator");
    };
    let [.., a, b, c, d] = iter.cgroup_id_or_task.to_ne_bytes();
    assert_eq!(u32::from_ne_bytes([a, b, c, d]), pid);
}

#[test]
fn cgroups() {
    const EGRESS: AttachType = AttachType::CGROUP_INET_EGRESS;
    let Some(root) = cgroup_root() else {
        return skip("cgroups", "no cgroup v2");
    };
    let make = |value| attachable(ProgramType::CGROUP_SKB, EGRESS, value);
    let (first, second) = (require!("cgroups", make(1)), make(1).unwrap());
    let dir = match TempDir::new(&root, "cgroups") {
        Ok(dir) => dir,
        Err(err) => return skip("cgroups", err),
    };
    let cgroup = File::open(&dir.0).unwrap();
    let target = Target::Fd(cgroup.as_fd());
    let link = link_create(&LinkCreate {
        object: first.as_fd(),
        target,
        attach_type: EGRESS,
        flags: 0,
        options: LinkOptions::None,
    });
    let link = require!("cgroups", link);
    let info = link_info(link.as_fd()).unwrap();
    assert_eq!(info.link_type, LinkType::CGROUP);
    let LinkDetail::Cgroup(detail) = info.detail else {
        panic!("{info:?}");
    };
    assert_eq!(detail.attach_type, EGRESS);
    assert_eq!(detail.cgroup_id, cgroup.metadata().unwrap().ino());
    assert!(link_name(link.as_fd()).unwrap().is_none());

    let mut ids = [0; 4];
    let mut flags = [0; 4];
    let mut out = QueryBuffers {
        prog_ids: &mut ids,
        prog_attach_flags: &mut flags,
        ..Default::default()
    };
    let query = require!("cgroups", prog_query(target, EGRESS, 0, &mut out));
    assert_eq!(query.count, 1);
    assert_eq!(ids, [prog_id(&first), 0, 0, 0]);

    // Another program of the same kind takes the place, once.
    link_update(link.as_fd(), second.as_fd(), Some(first.as_fd())).unwrap();
    let err = link_update(link.as_fd(), second.as_fd(), Some(first.as_fd()));
    assert!(err.unwrap_err().is(Errno::EPERM));
    link_update(link.as_fd(), first.as_fd(), None).unwrap();
    assert_eq!(link_info(link.as_fd()).unwrap().prog_id, prog_id(&first));

    // Beside it without a link.
    let mut attach = ProgAttach::new(target, EGRESS, second.as_fd());
    attach.flags = AttachFlags::ALLOW_MULTI;
    prog_attach(&attach).unwrap();
    let mut one = [0; 1];
    let mut out = QueryBuffers {
        prog_ids: &mut one,
        ..Default::default()
    };
    let query = prog_query(target, EGRESS, 0, &mut out).unwrap();
    assert_eq!(query.count, 2, "more than there is room for");
    assert_eq!(query.attach_flags, AttachFlags::ALLOW_MULTI);
    assert_eq!(one, [prog_id(&first)]);
    let mut out = QueryBuffers::default();
    assert_eq!(prog_query(target, EGRESS, 0, &mut out).unwrap().count, 2);
    let mut uneven = QueryBuffers {
        prog_ids: &mut [0; 2],
        link_ids: &mut [0; 1],
        ..Default::default()
    };
    assert!(prog_query(target, EGRESS, 0, &mut uneven).is_err());

    let third = make(0).unwrap();
    let mut replace = ProgAttach::new(target, EGRESS, third.as_fd());
    replace.flags = AttachFlags::ALLOW_MULTI;
    replace.replace = Some(second.as_fd());
    prog_attach(&replace).unwrap();
    prog_detach(&ProgAttach::new(target, EGRESS, third.as_fd())).unwrap();
    let err = prog_detach(&ProgAttach::new(target, EGRESS, third.as_fd()));
    assert!(err.unwrap_err().is(Errno::ENOENT));

    link_detach(link.as_fd()).unwrap();
    let mut out = QueryBuffers::default();
    assert_eq!(prog_query(target, EGRESS, 0, &mut out).unwrap().count, 0);
}

#[test]
fn network_devices() {
    in_private_netns("network_devices", || {
        const INGRESS: AttachType = AttachType::TCX_INGRESS;
        // The loopback device is the first of every namespace.
        let lo = Target::Ifindex(1);
        let xdp = attachable(ProgramType::XDP, AttachType::XDP, 2);
        let xdp = require!("network_devices", xdp);
        let link = link_create(&LinkCreate {
            object: xdp.as_fd(),
            target: lo,
            attach_type: AttachType::XDP,
            flags: 1 << 1, // XDP_FLAGS_SKB_MODE
            options: LinkOptions::None,
        });
        let link = require!("network_devices", link);
        let detail = link_info(link.as_fd()).unwrap().detail;
        assert!(matches!(detail, LinkDetail::Xdp(xdp) if xdp.ifindex == 1));

        let cls = |value| attachable(ProgramType::SCHED_CLS, INGRESS, value).unwrap();
        let (a, b) = (cls(-1), cls(-1));
        let tcx = |prog: &OwnedFd, flags: AttachFlags, relative, expected_revision| {
            link_create(&LinkCreate {
                object: prog.as_fd(),
                target: lo,
                attach_type: INGRESS,
                flags: flags.bits(),
                options: LinkOptions::Order {
                    relative,
                    expected_revision,
                },
            })
        };
        let first = require!("tcx", tcx(&a, AttachFlags::empty(), None, 0));
        let id = link_info(first.as_fd()).unwrap().id;
        let stale = tcx(&b, AttachFlags::empty(), None, 77).unwrap_err();
        assert!(stale.is(Errno::ESTALE));
        let before = Some(Relative::LinkId(id));
        let second = tcx(&b, AttachFlags::BEFORE, before, 0).unwrap();
        let (mut progs, mut links) = ([0; 4], [0; 4]);
        let mut out = QueryBuffers {
            prog_ids: &mut progs,
            link_ids: &mut links,
            ..Default::default()
        };
        let query = prog_query(lo, INGRESS, 0, &mut out).unwrap();
        assert_eq!(query.count, 2);
        assert!(query.revision > 1);
        assert_eq!(progs, [prog_id(&b), prog_id(&a), 0, 0]);
        assert_eq!(links[0], link_info(second.as_fd()).unwrap().id);
        let detail = link_info(second.as_fd()).unwrap().detail;
        assert!(
            matches!(detail, LinkDetail::Tcx(tcx) if (tcx.ifindex, tcx.attach_type) == (1, INGRESS))
        );

        // Without a link, behind the first, at the revision just seen.
        let c = cls(-1);
        let mut attach = ProgAttach::new(lo, INGRESS, c.as_fd());
        attach.flags = AttachFlags::AFTER;
        attach.relative = Some(Relative::Program(c.as_fd()));
        assert!(prog_attach(&attach).unwrap_err().is(Errno::ENOENT));
        attach.relative = Some(Relative::Link(second.as_fd()));
        attach.expected_revision = query.revision;
        prog_attach(&attach).unwrap();
        let mut progs = [0; 4];
        let mut out = QueryBuffers {
            prog_ids: &mut progs,
            ..Default::default()
        };
        prog_query(lo, INGRESS, 0, &mut out).unwrap();
        assert_eq!(progs, [prog_id(&b), prog_id(&c), prog_id(&a), 0]);
    });
}

#[test]
fn netfilter() {
    in_private_netns("netfilter", || {
        let prog = attachable(ProgramType::NETFILTER, AttachType::NETFILTER, 1);
        let prog = require!("netfilter", prog);
        let link = link_create(&LinkCreate {
            object: prog.as_fd(),
            target: Target::None,
            attach_type: AttachType::NETFILTER,
            flags: 0,
            options: LinkOptions::Netfilter {
                family: 2, // NFPROTO_IPV4
                hook: 1,   // NF_INET_LOCAL_IN
                priority: -128,
                flags: 0,
            },
        });
        let link = require!("netfilter", link);
        let LinkDetail::Netfilter(detail) = link_info(link.as_fd()).unwrap().detail else {
            panic!("not netfilter");
        };
        assert_eq!((detail.pf, detail.hooknum, detail.priority), (2, 1, -128));
    });
}

/// A software event that never happens.
fn dummy_event() -> std::io::Result<OwnedFd> {
    // type, size, config, sample_period: the fields of the first version.
    let mut attr = [0_u64; 8];
    attr[0] = 1 | 64 << 32;
    attr[1] = 9; // PERF_COUNT_SW_DUMMY
    attr[2] = 1_000_000_000;
    // SAFETY: the kernel reads the 64 bytes that the second field announces.
    let raw = unsafe { libc::syscall(libc::SYS_perf_event_open, attr.as_ptr(), 0, -1, -1, 0) };
    if raw < 0 {
        return Err(std::io::Error::last_os_error());
    }
    fd::own("perf_event_open", raw).map_err(|err| err.errno().into())
}

#[test]
fn perf_events() {
    let event = match dummy_event() {
        Ok(event) => event,
        Err(err) => return skip("perf_events", err),
    };
    let prog = require!("perf_events", load(ProgramType::PERF_EVENT, &returns(0)));
    let link = link_create(&LinkCreate {
        object: prog.as_fd(),
        target: Target::Fd(event.as_fd()),
        attach_type: AttachType::PERF_EVENT,
        flags: 0,
        options: LinkOptions::PerfEvent { cookie: 77 },
    });
    let link = require!("perf_events", link);
    match link_info(link.as_fd()).unwrap().detail {
        LinkDetail::PerfEvent(PerfEvent::Event {
            perf_type,
            config,
            cookie,
        }) => {
            assert_eq!((perf_type, config), (1, 9));
            assert!([0, 77].contains(&cookie), "told since Linux 6.9");
        }
        LinkDetail::None => skip_before("perf_events", (6, 6)),
        other => panic!("{other:?}"),
    }
    assert!(link_name(link.as_fd()).unwrap().is_none());
}

#[inline(never)]
extern "C" fn probed() {
    std::hint::black_box(());
}

/// Offset of a function of this binary in its file.
fn file_offset(function: usize) -> Option<u64> {
    std::fs::read_to_string("/proc/self/maps")
        .ok()?
        .lines()
        .find_map(|line| {
            let mut fields = line.split(' ');
            let (start, end) = fields.next()?.split_once('-')?;
            let hex = |text| u64::from_str_radix(text, 16).ok();
            let (start, end) = (hex(start)?, hex(end)?);
            let offset = hex(fields.nth(1)?)?;
            let function = function as u64;
            (start..end)
                .contains(&function)
                .then(|| function - start + offset)
        })
}

#[test]
fn many_user_places() {
    let attach_type = AttachType::TRACE_UPROBE_MULTI;
    let prog = attachable(ProgramType::KPROBE, attach_type, 0);
    let prog = require!("many_user_places", prog);
    let exe = std::env::current_exe().unwrap();
    let path = std::ffi::CString::new(exe.as_os_str().as_encoded_bytes()).unwrap();
    let offset = file_offset(probed as *const () as usize).unwrap();
    let create = |cookies| {
        link_create(&LinkCreate {
            object: prog.as_fd(),
            target: Target::None,
            attach_type,
            flags: 0,
            options: LinkOptions::UprobeMulti {
                path: &path,
                offsets: &[offset],
                ref_ctr_offsets: &[],
                cookies,
                flags: 0,
                pid: std::process::id(),
            },
        })
    };
    let link = require!("many_user_places", create(&[5]));
    probed();
    let LinkDetail::UprobeMulti(detail) = link_info(link.as_fd()).unwrap().detail else {
        panic!("not uprobe_multi");
    };
    if detail.count == 0 {
        return skip_before("many_user_places", (6, 8));
    }
    assert_eq!((detail.count, detail.pid), (1, std::process::id()));
    assert_eq!(link_name(link.as_fd()).unwrap().unwrap(), *exe);
    let err = create(&[5, 6]).unwrap_err();
    assert_eq!(err.detail(), Some("one value for each place, or none"));
}

#[test]
fn many_kernel_functions() {
    let attach_type = AttachType::TRACE_KPROBE_MULTI;
    let prog = attachable(ProgramType::KPROBE, attach_type, 0);
    let prog = require!("many_kernel_functions", prog);
    let create = |symbols, cookies| {
        link_create(&LinkCreate {
            object: prog.as_fd(),
            target: Target::None,
            attach_type,
            flags: 0,
            options: LinkOptions::KprobeMulti {
                symbols,
                cookies,
                flags: 0,
            },
        })
    };
    let names = KprobeSymbols::Names(&[c"vfs_read", c"vfs_write"]);
    let err = create(names, &[1]).unwrap_err();
    assert_eq!(err.detail(), Some("one value for each place, or none"));
    let link = require!("many_kernel_functions", create(names, &[1, 2]));
    let detail = link_info(link.as_fd()).unwrap().detail;
    assert!(matches!(detail, LinkDetail::KprobeMulti(multi) if [0, 2].contains(&multi.count)));
}

#[test]
fn options_of_another_kind_are_refused() {
    // Refused before the kernel sees the descriptor, which is no program.
    let file = File::open("/dev/null").unwrap();
    let cookie = LinkOptions::Tracing {
        target_btf_id: 0,
        cookie: 1,
    };
    let detail = |attach_type, options| {
        let create = LinkCreate {
            object: file.as_fd(),
            target: Target::None,
            attach_type,
            flags: 0,
            options,
        };
        let err = link_create(&create).unwrap_err();
        err.detail().map(str::to_owned)
    };
    let iter = LinkOptions::Iter(IterTarget::All);
    let other = Some("options of another kind of link".to_owned());
    assert_eq!(detail(AttachType::TRACE_UPROBE_MULTI, cookie), other);
    assert_eq!(detail(AttachType::TRACE_KPROBE_MULTI, iter), other);
    assert_eq!(detail(AttachType::TRACE_KPROBE_SESSION, cookie), other);
    assert_eq!(detail(AttachType::TRACE_ITER, cookie), other);
    assert_eq!(detail(AttachType::TRACE_ITER, iter), None);
    assert_eq!(detail(AttachType::TRACE_FENTRY, cookie), None);
    assert_eq!(detail(AttachType::TRACE_ITER, LinkOptions::None), None);
}
