//! Tests of tracefs: texts, a directory of ours, and a mount nobody else sees.

use super::event::is_event_name;
use super::*;
use crate::testing::{NO_LOCKDOWN, Random, TempDir, require, with_mounted};

/// Runs `test` with a tracefs that nobody else sees mounted.
fn with_tracefs(test: impl FnOnce(&Tracefs) + Send) {
    with_mounted("tracefs", |root| test(&Tracefs::at(root)));
}

#[test]
fn the_mounted_tracefs_is_found() {
    let mounted = mounts_of("tracefs").unwrap();
    match Tracefs::find() {
        Ok(found) => assert_eq!(fs_magic(found.root()), Ok(TRACEFS_MAGIC)),
        Err(err) => assert!(mounted.is_empty() && err.is(Errno::ENOENT), "{err}"),
    }
}

#[test]
fn names_are_made_acceptable() {
    assert_eq!(event_name("vfs_read", "_p_12"), "vfs_read_p_12");
    assert_eq!(event_name("std::io::Read<T>", ""), "std__io__Read_T_");
    assert_eq!(event_name("7zip", "x"), "_7zipx");
    assert_eq!(event_name("", ""), "_");
    assert_eq!(event_name("", "1"), "_1");
    assert_eq!(event_name("é", ""), "__");
    let long = event_name(&"x".repeat(100), "_end");
    assert_eq!(long.len(), MAX_EVENT_NAME_LEN);
    assert!(long.ends_with("xx_end"));
    assert_eq!(event_name("9", &"y".repeat(100)).len(), MAX_EVENT_NAME_LEN);
    for (stem, suffix) in [("", ""), ("9", "9"), ("\u{1f980}", "-"), ("a/b", "\n")] {
        assert!(
            is_event_name(&event_name(stem, suffix)),
            "{stem:?} {suffix:?}"
        );
    }
    for bad in ["", "9a", "a-b", "a b", "a\n", &"x".repeat(64)] {
        assert!(!is_event_name(bad), "{bad:?}");
    }
}

#[test]
fn lines_of_probe_events() {
    let kernel = |kind, symbol, offset| {
        ProbeSpec {
            kind,
            group: "g",
            name: "n",
            place: ProbePlace::Kernel { symbol, offset },
        }
        .line()
    };
    let user = |kind, path, ref_counter| {
        ProbeSpec {
            kind,
            group: "g",
            name: "n",
            place: ProbePlace::User {
                path,
                offset: 0x1a0,
                ref_counter,
            },
        }
        .line()
    };
    let ret = |maxactive| ProbeKind::Return { maxactive };
    let ok = |line: Result<String>, text: &str| assert_eq!(line.as_deref(), Ok(text));
    ok(kernel(ProbeKind::Entry, "vfs_read", 0), "p:g/n vfs_read");
    ok(kernel(ProbeKind::Entry, "veth:x", 8), "p:g/n veth:x+8");
    ok(kernel(ret(0), "vfs_read", 0), "r:g/n vfs_read");
    ok(kernel(ret(16), "vfs_read", 0), "r16:g/n vfs_read");
    ok(user(ProbeKind::Entry, "/bin/x", None), "p:g/n /bin/x:0x1a0");
    ok(user(ret(0), "/b", Some(0x20)), "r:g/n /b:0x1a0(0x20)");
    for bad in [
        kernel(ProbeKind::Entry, "a b", 0),
        kernel(ProbeKind::Entry, "", 0),
        user(ProbeKind::Entry, "/a\nb", None),
        user(ret(1), "/b", None),
    ] {
        assert!(bad.is_err_and(|e| e.is(Errno::EINVAL)));
    }
    let spec = ProbeSpec {
        kind: ProbeKind::Entry,
        group: "g/x",
        name: "n",
        place: ProbePlace::Kernel {
            symbol: "s",
            offset: 0,
        },
    };
    assert!(spec.line().is_err_and(|e| e.is(Errno::EINVAL)));
}

#[test]
fn listed_probe_events() {
    let event = parse_probe(b"r16:kprobes/myretprobe do_sys_open arg=$retval").unwrap();
    assert_eq!(event.kind, ProbeKind::Return { maxactive: 16 });
    assert_eq!((event.group, event.name), ("kprobes", "myretprobe"));
    assert_eq!(event.rest, b"do_sys_open arg=$retval");
    let event = parse_probe(b"p:uprobes/t /bin/true:0x0000000000001234").unwrap();
    assert_eq!(event.kind, ProbeKind::Entry);
    assert_eq!(event.rest, b"/bin/true:0x0000000000001234");
    assert_eq!(parse_probe(b"p:g/n").unwrap().rest, b"");
    for bad in [
        &b""[..],
        b"p",
        b"x:g/n y",
        b"p:g y",
        b"p:/n y",
        b"p:g/ y",
        b"r99999999999:g/n y",
        b"r1g/n y",
        b"p:\xff/n y",
    ] {
        assert_eq!(parse_probe(bad), None, "{bad:?}");
    }
}

#[test]
fn filter_functions() {
    let parse = |line| parse_function(line).map(|f| (f.name, f.module));
    assert_eq!(parse(b"vfs_read"), Some((&b"vfs_read"[..], None)));
    let module = Some(&b"veth"[..]);
    assert_eq!(
        parse(b"veth_xmit [veth]"),
        Some((&b"veth_xmit"[..], module))
    );
    assert_eq!(
        parse(b"veth_xmit\t[veth]"),
        Some((&b"veth_xmit"[..], module))
    );
    assert_eq!(parse_function(b""), None);
    assert_eq!(parse_function(b"__ftrace_invalid_address___64"), None);
}

const FORMAT: &[u8] = b"name: sched_process_exec
ID: 312
format:
\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;
\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;

\tfield:__data_loc char[] filename;\toffset:8;\tsize:4;\tsigned:0;
\tfield:__rel_loc u8[] blob;\toffset:12;\tsize:4;\tsigned:0;
\tfield:char comm[16];\toffset:16;\tsize:16;\tsigned:0;
\tfield:const char * name;\toffset:32;\tsize:8;\tsigned:0;
\tfield:unsigned long args[6];\toffset:40;\tsize:48;

print fmt: \"field:x\"
\tfield:this is not one
";

#[test]
fn formats() {
    let format = EventFormat::parse(FORMAT).unwrap();
    assert_eq!(
        (format.name.as_str(), format.id),
        ("sched_process_exec", 312)
    );
    let shape: Vec<_> = format
        .fields
        .iter()
        .map(|f| {
            (
                f.name.as_str(),
                f.type_name.as_str(),
                f.offset,
                f.size,
                f.signed,
            )
        })
        .collect();
    assert_eq!(
        shape,
        [
            ("common_type", "unsigned short", 0, 2, false),
            ("common_pid", "int", 4, 4, true),
            ("filename", "char[]", 8, 4, false),
            ("blob", "u8[]", 12, 4, false),
            ("comm", "char[16]", 16, 16, false),
            ("name", "const char *", 32, 8, false),
            ("args", "unsigned long[6]", 40, 48, false),
        ]
    );
    let data = |name| format.field(name).unwrap().data;
    assert_eq!(data("filename"), DataLocation::Record);
    assert_eq!(data("blob"), DataLocation::Field);
    assert_eq!(data("comm"), DataLocation::Inline);
    assert!(format.field("nothing").is_none());
}

#[test]
fn damaged_formats_do_not_panic() {
    for bad in [
        &b""[..],
        b"name: x\n",
        b"ID: 1\n",
        b"name: x\nID: y\n",
        b"name: x\nID: 1\n field:int;\toffset:0;\tsize:4;\n",
        b"name: x\nID: 1\n field:int x;\toffset:z;\tsize:4;\n",
        b"name: x\nID: 1\n field:int x;\tsize:4;\n",
        b"name: x\nID: 1\n field:[];\toffset:0;\tsize:4;\n",
        b"name: x\nID: 1\n field:int x;\toffset:4294967296;\tsize:4;\n",
    ] {
        assert_eq!(EventFormat::parse(bad), None, "{bad:?}");
    }
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for _ in 0..5_000 {
        let text = random.damaged(FORMAT);
        let _ = EventFormat::parse(&text);
        for line in text.split(|&b| b == b'\n') {
            let _ = parse_probe(line);
            let _ = parse_function(line);
            let _ = crate::proc::parse_symbol(line);
            let _ = crate::proc::parse_mount(line).map(|m| m.target());
            let _ = crate::proc::parse_cpu_list(line);
            let _ = crate::proc::parse_start_time(line);
            let _ = crate::proc::parse_lockdown(line);
        }
    }
}

#[test]
fn event_names_cannot_leave_the_tree() {
    let tracefs = Tracefs::at("/nowhere");
    for (category, name) in [("..", "x"), ("sched", "../x"), ("", "x"), ("sched", ".")] {
        let err = tracefs.event_id(category, name).unwrap_err();
        assert!(err.is(Errno::EINVAL), "{err}");
    }
    let err = tracefs
        .append(ProbeFile::Uprobe, "p:a/b c\n-:*")
        .unwrap_err();
    assert!(err.is(Errno::EINVAL), "{err}");
    assert!(!tracefs.has(ProbeFile::Kprobe));
}

#[test]
fn commands_are_appended() {
    // On tracefs, truncating would remove everybody's events.
    let dir = TempDir::new();
    let tracefs = Tracefs::at(dir.path());
    let file = dir.path().join(ProbeFile::Uprobe.name());
    std::fs::write(&file, "p:theirs/x /bin/true:0x10\n").unwrap();
    tracefs
        .remove_probe(ProbeFile::Uprobe, "ours", "y")
        .unwrap();
    let content = std::fs::read_to_string(&file).unwrap();
    let mut seen = Vec::new();
    tracefs
        .for_each_probe(ProbeFile::Uprobe, &mut |event| {
            seen.push((event.group.to_owned(), event.name.to_owned()));
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(content, "p:theirs/x /bin/true:0x10\n-:ours/y");
    assert_eq!(seen, [("theirs".to_owned(), "x".to_owned())]);
}

#[test]
fn tracepoint_of_this_kernel() {
    with_tracefs(|tracefs| {
        let (category, name) = ("sched", "sched_process_exec");
        let id = tracefs.event_id(category, name).unwrap();
        let format = tracefs.event_format(category, name).unwrap();
        assert_eq!((format.id, format.name.as_str()), (id, name));
        let filename = format.field("filename").unwrap();
        assert_eq!(filename.data, DataLocation::Record);
        assert_eq!((filename.offset, filename.size), (8, 4));
        assert!(format.field("pid").unwrap().signed);
        tracefs.event_enabled(category, name).unwrap();
        let err = tracefs.event_id(category, "nothing").unwrap_err();
        assert!(err.is(Errno::ENOENT), "{err}");
    });
}

#[test]
fn functions_of_this_kernel() {
    with_tracefs(|tracefs| {
        let mut found = false;
        let result = tracefs.for_each_function(&mut |function| {
            found = function.name == b"vfs_read";
            if found {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        require!((4, 1), ["CONFIG_DYNAMIC_FTRACE", NO_LOCKDOWN], result);
        assert!(found);
    });
}

fn listed(tracefs: &Tracefs, name: &str) -> Option<(ProbeKind, String, Vec<u8>)> {
    let mut found = None;
    tracefs
        .for_each_probe(ProbeFile::Uprobe, &mut |event| {
            if event.name == name {
                found = Some((event.kind, event.group.to_owned(), event.rest.to_vec()));
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        })
        .unwrap();
    found
}

#[test]
fn uprobe_event_life() {
    with_tracefs(life_of_a_uprobe_event);
}

fn life_of_a_uprobe_event(tracefs: &Tracefs) {
    let exe = std::env::current_exe().unwrap();
    let name = event_name("sys_test", &format!("_{}", std::process::id()));
    let group = "ebpf_manager_test";
    let spec = ProbeSpec {
        kind: ProbeKind::Return { maxactive: 0 },
        group,
        name: &name,
        place: ProbePlace::User {
            path: exe.to_str().unwrap(),
            offset: 0x1000,
            ref_counter: None,
        },
    };
    let added = tracefs.add_probe(&spec);
    require!((4, 1), ["CONFIG_UPROBE_EVENTS"], added);
    assert!(tracefs.has(ProbeFile::Uprobe));
    let seen = listed(tracefs, &name);
    let id = tracefs.event_id(group, &name);
    tracefs
        .remove_probe(ProbeFile::Uprobe, group, &name)
        .unwrap();
    let (kind, seen_group, rest) = seen.unwrap();
    assert_eq!(kind, spec.kind);
    assert_eq!(seen_group, group);
    assert!(rest.starts_with(exe.to_str().unwrap().as_bytes()));
    assert_ne!(id.unwrap(), 0);
    assert_eq!(listed(tracefs, &name), None);
    let err = tracefs
        .remove_probe(ProbeFile::Uprobe, group, &name)
        .unwrap_err();
    assert!(err.is(Errno::ENOENT), "{err}");
    assert_eq!(err.detail(), Some(format!("-:{group}/{name}").as_str()));
    let place = ProbePlace::User {
        path: "/nonexistent",
        offset: 0,
        ref_counter: None,
    };
    let err = tracefs.add_probe(&ProbeSpec { place, ..spec }).unwrap_err();
    assert!(err.is(Errno::ENOENT), "{err}");
}
