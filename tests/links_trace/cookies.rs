//! Cookies: the number that a link hands its program.

use common::{KPROBE_MULTI, PERF_LINK, UPROBE_MULTI};
use ebpf_manager::bpf::{KprobeMulti, UprobeMulti};

use super::*;

const RAW_TP_COOKIE: Feature = Feature::new("raw tracepoint cookie", 6, 10);

#[test]
fn links_trace_cookies() {
    if !require(&PERF_LINK.mounted("tracefs")) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let sum = |fixture: &Fixture, link: Link, act: &dyn Fn()| {
        let before = fixture.variable("last_cookie");
        act();
        link.detach().unwrap();
        fixture.variable("last_cookie") - before
    };
    if tracepoints_of_system_calls() {
        let fixture = Fixture::load(&["on_tracepoint_cookie"]);
        let program = fixture.program("on_tracepoint_cookie");
        let link = Link::tracepoint_with(program, "syscalls", "sys_enter_getpid", 7).unwrap();
        assert_eq!(sum(&fixture, link, &getpid), 7);
    }
    // Loading it needs what attaching needs.
    if require(&RAW_TP_COOKIE) {
        let fixture = Fixture::load(&["on_raw_tp_cookie"]);
        let program = fixture.program("on_raw_tp_cookie");
        let link = Link::raw_tracepoint_with(program, "sys_enter", 8).unwrap();
        assert_eq!(sum(&fixture, link, &getpid), 8);
    } else {
        let fixture = Fixture::load(&["on_raw_tp_writable"]);
        let program = fixture.program("on_raw_tp_writable");
        let err = Link::raw_tracepoint_with(program, "sys_enter", 8).unwrap_err();
        assert!(matches!(err, LinkError::Unsupported { .. }), "{err}");
    }
    if require(&KPROBE_MULTI) {
        let fixture = Fixture::load(&["on_kprobe_multi_cookie"]);
        let program = fixture.program("on_kprobe_multi_cookie");
        // The kernel sorts the functions, and the cookies with them.
        let names = ["getppid", "getpid"].map(|name| syscall_function(name).unwrap());
        let probe = KprobeMulti::symbols(names).cookies([100, 1]);
        let link = Link::kprobe_multi(program, &probe).unwrap();
        assert_eq!(sum(&fixture, link, &getpid), 1);
    }
    if require(&UPROBE_MULTI) {
        let fixture = Fixture::load(&["on_uprobe_multi_cookie"]);
        let program = fixture.program("on_uprobe_multi_cookie");
        let names = symbols_with("probed_function");
        let cookies = names
            .iter()
            .map(|name| if name.contains("_two") { 100 } else { 1 });
        let cookies: Vec<u64> = cookies.collect();
        let probe = UprobeMulti::symbols("/proc/self/exe", names).cookies(cookies);
        let link = Link::uprobe_multi(program, &probe).unwrap();
        assert_eq!(sum(&fixture, link, &call_both), 101);
        let two = UprobeMulti::symbols("/proc/self/exe", [probed_symbol()]).cookies([1, 2]);
        let err = Link::uprobe_multi(program, &two).unwrap_err();
        assert!(err.is(Errno::EINVAL), "{err}");
    }
}
