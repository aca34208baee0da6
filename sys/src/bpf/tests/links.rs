//! Links, and attachments without.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;

use super::*;
use crate::abi::bpf::{AttachFlags, AttachType, LinkType, TaskFdType};
use crate::abi::perf::{OpenFlags, software};
use crate::perf::{PerfEvent as Event, PerfEventAttr, Scope};
use crate::testing::{NO_LOCKDOWN, code_at, in_private};

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

#[test]
fn raw_tracepoints() {
    let prog = attachable(ProgramType::RAW_TRACEPOINT, AttachType::default(), 0);
    let prog = require!((4, 17), prog);
    let link = raw_tracepoint_open(Some(c"sys_enter"), prog.as_fd(), 0);
    let link = require!((4, 17), link);
    let missing = raw_tracepoint_open(Some(c"no_such_tracepoint"), prog.as_fd(), 0);
    assert!(missing.unwrap_err().is(Errno::ENOENT));

    let info = require!((5, 8), link_info(link.as_fd()));
    assert_eq!(info.link_type, LinkType::RAW_TRACEPOINT);
    assert_eq!(info.prog_id, prog_id(&prog));
    assert_ne!(info.id, 0);
    assert!(matches!(info.detail, LinkDetail::RawTracepoint(_)));
    let name = link_name(link.as_fd()).unwrap();
    assert_eq!(name.unwrap(), "sys_enter");
    assert!(link_detach(link.as_fd()).unwrap_err().is(Errno::EOPNOTSUPP));

    let by_id = fd_by_id(ObjectKind::Link, info.id, 0).unwrap();
    assert_eq!(link_info(by_id.as_fd()).unwrap(), info);
    let name = link_name(by_id.as_fd()).unwrap();
    assert_eq!(name.unwrap(), "sys_enter");

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
}

#[test]
fn raw_tracepoints_with_a_cookie() {
    const COOKIE: u64 = 0x1234_5678_9abc_def0;
    let prog = attachable(ProgramType::RAW_TRACEPOINT, AttachType::default(), 0);
    let prog = require!((4, 17), prog);
    let link = raw_tracepoint_open(Some(c"sys_enter"), prog.as_fd(), COOKIE);
    let link = require!((6, 10), link);
    let LinkDetail::RawTracepoint(detail) = link_info(link.as_fd()).unwrap().detail else {
        panic!("not a raw tracepoint");
    };
    let told = Some(detail.cookie).filter(|&cookie| cookie != 0);
    assert_eq!(require!((6, 17), told.ok_or("no cookie")), COOKIE);
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

fn iterate(prog: &OwnedFd, target: IterTarget<'_>) -> Result<OwnedFd> {
    link_create(&LinkCreate {
        object: prog.as_fd(),
        target: Target::None,
        attach_type: AttachType::TRACE_ITER,
        flags: 0,
        options: LinkOptions::Iter(target),
    })
}

#[test]
fn iterators() {
    let map = require!((3, 18), hash(4));
    // A locked-down kernel may refuse programs that can write what they visit.
    let prog = require!(
        (5, 9),
        ["CONFIG_DEBUG_INFO_BTF", NO_LOCKDOWN],
        iterator("bpf_iter_bpf_map_elem")
    );
    let elements = iterate(&prog, IterTarget::Map(map.as_fd())).unwrap();
    let name = link_name(elements.as_fd()).unwrap();
    assert_eq!(name.unwrap(), "bpf_map_elem");
    let map_id = map_info(map.as_fd()).unwrap().id;
    let detail = link_info(elements.as_fd()).unwrap().detail;
    assert!(matches!(detail, LinkDetail::Iter(iter) if iter.map_id == map_id));
    assert!(iterate(&prog, IterTarget::All).is_err(), "needs a map");

    let mut text = String::new();
    let read = iter_create(elements.as_fd()).unwrap();
    File::from(read).read_to_string(&mut text).unwrap();
    assert_eq!(text, "", "the program prints nothing");
}

#[test]
fn iterators_over_one_process() {
    let prog = iterator("bpf_iter_task");
    let prog = require!((5, 8), ["CONFIG_DEBUG_INFO_BTF"], prog);
    let pid = std::process::id();
    let link = iterate(&prog, IterTarget::Task { tid: 0, pid });
    let link = require!((6, 1), link);
    let LinkDetail::Iter(iter) = link_info(link.as_fd()).unwrap().detail else {
        panic!("not an iterator");
    };
    let [.., a, b, c, d] = iter.cgroup_id_or_task.to_ne_bytes();
    assert_eq!(u32::from_ne_bytes([a, b, c, d]), pid);
}

const EGRESS: AttachType = AttachType::CGROUP_INET_EGRESS;

/// Runs `test` with a cgroup that has no members.
fn with_cgroup(test: impl FnOnce(&File) + Send) {
    with_mounted("cgroup2", |root| {
        let dir = TempDir::below(root);
        test(&File::open(dir.path()).unwrap());
    });
}

fn cgroup_link(prog: &OwnedFd, cgroup: &File) -> Result<OwnedFd> {
    link_create(&LinkCreate {
        object: prog.as_fd(),
        target: Target::Fd(cgroup.as_fd()),
        attach_type: EGRESS,
        flags: 0,
        options: LinkOptions::None,
    })
}

fn query(target: Target<'_>, attach_type: AttachType, ids: &mut [u32]) -> Result<ProgQuery> {
    let mut out = QueryBuffers {
        prog_ids: ids,
        ..Default::default()
    };
    prog_query(target, attach_type, 0, &mut out)
}

#[test]
fn cgroup_links() {
    with_cgroup(|cgroup| {
        let make = || attachable(ProgramType::CGROUP_SKB, EGRESS, 1);
        let first = require!((4, 10), ["CONFIG_CGROUP_BPF"], make());
        let second = make().unwrap();
        let link = require!((5, 7), cgroup_link(&first, cgroup));
        let info = require!((5, 8), link_info(link.as_fd()));
        assert_eq!(info.link_type, LinkType::CGROUP);
        let LinkDetail::Cgroup(detail) = info.detail else {
            panic!("{info:?}");
        };
        assert_eq!(detail.attach_type, EGRESS);
        assert_eq!(detail.cgroup_id, cgroup.metadata().unwrap().ino());
        assert!(link_name(link.as_fd()).unwrap().is_none());

        // Another program of the same kind takes the place, once.
        link_update(link.as_fd(), second.as_fd(), Some(first.as_fd())).unwrap();
        let err = link_update(link.as_fd(), second.as_fd(), Some(first.as_fd()));
        assert!(err.unwrap_err().is(Errno::EPERM));
        link_update(link.as_fd(), first.as_fd(), None).unwrap();
        assert_eq!(link_info(link.as_fd()).unwrap().prog_id, prog_id(&first));

        let target = Target::Fd(cgroup.as_fd());
        let mut ids = [0; 2];
        assert_eq!(query(target, EGRESS, &mut ids).unwrap().count, 1);
        assert_eq!(ids, [prog_id(&first), 0]);
        require!((5, 9), link_detach(link.as_fd()));
        assert_eq!(query(target, EGRESS, &mut []).unwrap().count, 0);
    });
}

#[test]
fn cgroup_programs_beside_each_other() {
    with_cgroup(|cgroup| {
        let target = Target::Fd(cgroup.as_fd());
        let make = || attachable(ProgramType::CGROUP_SKB, EGRESS, 1);
        let first = require!((4, 10), ["CONFIG_CGROUP_BPF"], make());
        let (second, third) = (make().unwrap(), make().unwrap());
        for prog in [&first, &second] {
            let mut attach = ProgAttach::new(target, EGRESS, prog.as_fd());
            attach.flags = AttachFlags::ALLOW_MULTI;
            require!((4, 15), prog_attach(&attach));
        }
        let mut one = [0; 1];
        let there = query(target, EGRESS, &mut one).unwrap();
        assert_eq!(there.count, 2, "more than there is room for");
        assert_eq!(there.attach_flags, AttachFlags::ALLOW_MULTI);
        assert_eq!(one, [prog_id(&first)]);
        assert_eq!(query(target, EGRESS, &mut []).unwrap().count, 2);
        let mut uneven = QueryBuffers {
            prog_ids: &mut [0; 2],
            link_ids: &mut [0; 1],
            ..Default::default()
        };
        let err = prog_query(target, EGRESS, 0, &mut uneven).unwrap_err();
        assert_eq!(err.detail(), Some("lists of different lengths"));

        let mut replace = ProgAttach::new(target, EGRESS, third.as_fd());
        replace.flags = AttachFlags::ALLOW_MULTI;
        replace.replace = Some(second.as_fd());
        require!((5, 6), prog_attach(&replace));
        let mut ids = [0; 2];
        assert_eq!(query(target, EGRESS, &mut ids).unwrap().count, 2);
        assert_eq!(ids, [prog_id(&first), prog_id(&third)]);
        prog_detach(&ProgAttach::new(target, EGRESS, third.as_fd())).unwrap();
        let err = prog_detach(&ProgAttach::new(target, EGRESS, third.as_fd()));
        assert!(err.unwrap_err().is(Errno::ENOENT));
        prog_detach(&ProgAttach::new(target, EGRESS, first.as_fd())).unwrap();
        assert_eq!(query(target, EGRESS, &mut []).unwrap().count, 0);
    });
}

#[test]
fn cgroups_tell_the_flags_of_each_program() {
    with_cgroup(|cgroup| {
        let prog = attachable(ProgramType::CGROUP_SKB, EGRESS, 1);
        let prog = require!((4, 10), ["CONFIG_CGROUP_BPF"], prog);
        let _link = require!((5, 7), cgroup_link(&prog, cgroup));
        let (mut ids, mut flags) = ([0; 2], [0; 2]);
        let mut out = QueryBuffers {
            prog_ids: &mut ids,
            prog_attach_flags: &mut flags,
            ..Default::default()
        };
        let target = Target::Fd(cgroup.as_fd());
        let there = require!((6, 0), prog_query(target, EGRESS, 0, &mut out));
        assert_eq!(there.count, 1);
        assert_eq!(ids, [prog_id(&prog), 0]);
        // Links always leave room for others.
        assert_eq!(flags, [AttachFlags::ALLOW_MULTI.bits(), 0]);
    });
}

/// The loopback device is the first of every network namespace.
const LOOPBACK: Target<'_> = Target::Ifindex(1);

#[test]
fn xdp_links() {
    in_private(libc::CLONE_NEWNET, || {
        let xdp = attachable(ProgramType::XDP, AttachType::XDP, 2);
        let xdp = require!((5, 9), xdp);
        let link = link_create(&LinkCreate {
            object: xdp.as_fd(),
            target: LOOPBACK,
            attach_type: AttachType::XDP,
            flags: 1 << 1, // XDP_FLAGS_SKB_MODE
            options: LinkOptions::None,
        });
        let link = require!((5, 9), link);
        let detail = link_info(link.as_fd()).unwrap().detail;
        assert!(matches!(detail, LinkDetail::Xdp(xdp) if xdp.ifindex == 1));
    });
}

#[test]
fn tcx_programs_in_order() {
    const INGRESS: AttachType = AttachType::TCX_INGRESS;
    in_private(libc::CLONE_NEWNET, || {
        let cls = || attachable(ProgramType::SCHED_CLS, INGRESS, -1);
        let a = require!((6, 6), ["CONFIG_NET_XGRESS"], cls());
        let b = cls().unwrap();
        let tcx = |prog: &OwnedFd, flags: AttachFlags, relative, expected_revision| {
            link_create(&LinkCreate {
                object: prog.as_fd(),
                target: LOOPBACK,
                attach_type: INGRESS,
                flags: flags.bits(),
                options: LinkOptions::Order {
                    relative,
                    expected_revision,
                },
            })
        };
        let first = tcx(&a, AttachFlags::empty(), None, 0);
        let first = require!((6, 6), ["CONFIG_NET_XGRESS"], first);
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
        let there = prog_query(LOOPBACK, INGRESS, 0, &mut out).unwrap();
        assert_eq!(there.count, 2);
        assert!(there.revision > 1);
        assert_eq!(progs, [prog_id(&b), prog_id(&a), 0, 0]);
        assert_eq!(links[0], link_info(second.as_fd()).unwrap().id);
        let detail = link_info(second.as_fd()).unwrap().detail;
        assert!(
            matches!(detail, LinkDetail::Tcx(tcx) if (tcx.ifindex, tcx.attach_type) == (1, INGRESS))
        );

        // Without a link, behind the first, at the revision just seen.
        let c = cls().unwrap();
        let mut attach = ProgAttach::new(LOOPBACK, INGRESS, c.as_fd());
        attach.flags = AttachFlags::AFTER;
        attach.relative = Some(Relative::Program(c.as_fd()));
        assert!(prog_attach(&attach).unwrap_err().is(Errno::ENOENT));
        attach.relative = Some(Relative::Link(second.as_fd()));
        attach.expected_revision = there.revision;
        prog_attach(&attach).unwrap();
        let mut progs = [0; 4];
        query(LOOPBACK, INGRESS, &mut progs).unwrap();
        assert_eq!(progs, [prog_id(&b), prog_id(&c), prog_id(&a), 0]);
    });
}

#[test]
fn netfilter() {
    const NEEDS: &str = "CONFIG_NETFILTER_BPF_LINK";
    in_private(libc::CLONE_NEWNET, || {
        let prog = attachable(ProgramType::NETFILTER, AttachType::NETFILTER, 1);
        let prog = require!((6, 4), [NEEDS], prog);
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
        let link = require!((6, 4), [NEEDS], link);
        let LinkDetail::Netfilter(detail) = link_info(link.as_fd()).unwrap().detail else {
            panic!("not netfilter");
        };
        assert_eq!((detail.pf, detail.hooknum, detail.priority), (2, 1, -128));
    });
}

/// A software event that never happens, and a program.
fn event_and_program() -> Result<(Event, OwnedFd)> {
    let attr = PerfEventAttr::software(software::DUMMY);
    let (scope, flags) = (Scope::CallingThread, OpenFlags::empty());
    let event = Event::open(&attr, scope, None, None, flags)?;
    let prog = attachable(ProgramType::PERF_EVENT, AttachType::default(), 0)?;
    Ok((event, prog))
}

fn perf_link(event: &Event, prog: &OwnedFd) -> Result<OwnedFd> {
    link_create(&LinkCreate {
        object: prog.as_fd(),
        target: Target::Fd(event.as_fd()),
        attach_type: AttachType::PERF_EVENT,
        flags: 0,
        options: LinkOptions::PerfEvent { cookie: 77 },
    })
}

#[test]
fn perf_event_links() {
    let (event, prog) = require!((4, 9), event_and_program());
    let link = require!((5, 15), perf_link(&event, &prog));
    let info = link_info(link.as_fd()).unwrap();
    assert_eq!(info.link_type, LinkType::PERF_EVENT);
    assert_eq!(info.prog_id, prog_id(&prog));
    assert!(link_name(link.as_fd()).unwrap().is_none());
}

#[test]
fn perf_event_links_tell_their_event() {
    let (event, prog) = require!((4, 9), event_and_program());
    let link = require!((5, 15), perf_link(&event, &prog));
    let told = match link_info(link.as_fd()).unwrap().detail {
        LinkDetail::PerfEvent(told) => Ok(told),
        other => Err(format!("{other:?}")),
    };
    let PerfEvent::Event {
        perf_type,
        config,
        cookie,
    } = require!((6, 6), told)
    else {
        panic!("not the event it is on");
    };
    assert_eq!((perf_type, config), (1, 9));
    let cookie = Some(cookie).filter(|&cookie| cookie != 0);
    assert_eq!(require!((6, 9), cookie.ok_or("no cookie")), 77);
}

#[inline(never)]
extern "C" fn probed() {
    std::hint::black_box(());
}

#[test]
fn many_user_places() {
    let attach_type = AttachType::TRACE_UPROBE_MULTI;
    let prog = attachable(ProgramType::KPROBE, attach_type, 0);
    // Kernels without the hook load the program all the same.
    let prog = require!((4, 17), prog);
    let (exe, offset) = code_at(probed as *const () as usize);
    let path = CString::new(exe.as_os_str().as_encoded_bytes()).unwrap();
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
    let err = create(&[5, 6]).unwrap_err();
    assert_eq!(err.detail(), Some("one value for each place, or none"));
    let link = require!((6, 6), ["CONFIG_UPROBES"], create(&[5]));
    probed();
    let LinkDetail::UprobeMulti(detail) = link_info(link.as_fd()).unwrap().detail else {
        panic!("not uprobe_multi");
    };
    let name = link_name(link.as_fd()).unwrap();
    assert_eq!(require!((6, 8), name.ok_or("no path")), *exe);
    assert_eq!((detail.count, detail.pid), (1, std::process::id()));
}

#[test]
fn many_kernel_functions() {
    let attach_type = AttachType::TRACE_KPROBE_MULTI;
    let prog = attachable(ProgramType::KPROBE, attach_type, 0);
    let prog = require!((4, 17), prog);
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
    let link = create(names, &[1, 2]);
    let link = require!((5, 18), ["CONFIG_FPROBE"], link);
    let info = link_info(link.as_fd()).unwrap();
    assert_eq!(info.link_type, LinkType::KPROBE_MULTI);
    let LinkDetail::KprobeMulti(detail) = info.detail else {
        panic!("{info:?}");
    };
    let count = Some(detail.count).filter(|&count| count != 0);
    assert_eq!(require!((6, 6), count.ok_or("no count")), 2);
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
