//! Many processes that start at the same time over what dead ones left.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;

use ebpf_manager::bpf::{
    Errno, Interface, LinkError, remove_stale_filters, remove_stale_probe_events,
};

use super::*;

const NAME: &str = "together::killed_leftovers_are_swept_by_many_at_once";

/// Processes that sweep at the same time.
const SWEEPERS: usize = 8;
/// What the dead left, each time: events, and filters.
const LEFT: usize = 12;

/// Waits to be told, sweeps, says what it removed, and then does what managers
/// do when they start.
fn sweep_when_told() {
    let namespace = NetNamespace::open(Path::new(&env::var_os(NAMESPACE).unwrap())).unwrap();
    let interface = Interface::from("veth0").in_namespace(&namespace);
    let manager = manager(&namespace, true, None);
    manager.init(&cycle_object()).unwrap();
    let mut stdout = std::io::stdout();
    stdout.write_all(b"\nready\n").unwrap();
    stdout.flush().unwrap();
    // Until the other end is closed.
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    let events = remove_stale_probe_events().unwrap();
    // Where all are slow, one may have to wait for longer than it does.
    let filters = loop {
        match remove_stale_filters(&interface) {
            Err(LinkError::Operation { source, .. }) if source.is(Errno::EBUSY) => {}
            removed => break removed.unwrap(),
        }
    };
    manager.start().unwrap();
    check_runs(&manager, "on_user", true);
    manager.stop_with(Cleanup::ALL).unwrap();
    stdout
        .write_all(format!("\nremoved {events} {filters}\n").as_bytes())
        .unwrap();
}

struct Sweeper {
    child: Child,
    output: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Sweeper {
    fn spawn(ns: &NetNs) -> Sweeper {
        let namespace = format!("/proc/{}/fd/{}", std::process::id(), ns.as_fd().as_raw_fd());
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", NAME, "--nocapture"])
            .env(NAMESPACE, namespace)
            .env("EBPF_MANAGER_TEST_OFFSET", user_offset().to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap()).lines();
        Sweeper { child, output }
    }

    fn line(&mut self, start: &str) -> String {
        let mut lines = self.output.by_ref().map(Result::unwrap);
        let found = lines.find_map(|line| line.strip_prefix(start).map(str::to_owned));
        found.unwrap_or_else(|| panic!("it does not say {start}"))
    }
}

/// Names of what the dead left.
struct Leftovers {
    events: Vec<String>,
    filters: Vec<String>,
}

impl Leftovers {
    /// By processes that are not there, of this pid namespace.
    fn make(round: usize, ns: &NetNs, program: &ebpf_manager::bpf::Program) -> Leftovers {
        let count = fs::metadata("/proc/self/ns/pid").unwrap().ino();
        let group = |n: usize| format!("ebpf_manager_{NOBODY}_{}_{count}", 1 + round * LEFT + n);
        let events: Vec<String> = (0..LEFT)
            .map(|n| format!("{}_{n}/p_left_{NOBODY}", group(n)))
            .collect();
        for event in &events {
            append(&format!("p:{event} /proc/self/exe:{:#x}", user_offset()));
        }
        let filters: Vec<String> = (0..LEFT)
            .map(|n| format!("{} tc__{NOBODY}", group(n)))
            .collect();
        let mut rtnl = Rtnl::open_in(ns.as_fd()).unwrap();
        let index = rtnl.link_by_name("veth0").unwrap().index;
        for (priority, name) in (20..).zip(&filters) {
            rtnl.filter_add(&FilterSpec {
                id: FilterId {
                    index,
                    parent: TcParent::INGRESS,
                    priority,
                    protocol: ALL_PROTOCOLS,
                    handle: 0,
                },
                name,
                program: program.as_fd(),
                flags: ClsBpfFlags::DIRECT_ACTION,
            })
            .unwrap();
        }
        Leftovers { events, filters }
    }

    fn there(&self, ns: &NetNs) -> usize {
        let events = probe_events("ebpf_manager_");
        let is_there = |event: &&String| events.iter().any(|line| line.contains(event.as_str()));
        let filters = filters(ns).0;
        self.events.iter().filter(is_there).count()
            + self.filters.iter().filter(|f| filters.contains(f)).count()
    }
}

#[test]
fn killed_leftovers_are_swept_by_many_at_once() {
    if env::var_os(NAMESPACE).is_some() {
        return sweep_when_told();
    }
    if !require(&LEAVINGS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let ns = NetNs::with_veth().0;
    let namespace = NetNamespace::from_fd(fd::dup(ns.as_fd()).unwrap()).unwrap();
    // What others have and what this process has, all the time.
    let survivor = manager(&namespace, true, None);
    survivor.init(&cycle_object()).unwrap();
    let program = survivor.program("on_packet").unwrap();
    let foreign = Foreign::make(&ns, &program);
    survivor.start().unwrap();
    let own = |start: &str| -> Vec<String> {
        let this = format!("ebpf_manager_{}_", std::process::id());
        let mut all = probe_events(&this);
        all.extend(
            filters(&ns)
                .0
                .into_iter()
                .filter(|name| name.contains(&this)),
        );
        assert!(!all.is_empty(), "{start}");
        all
    };
    let before = own("started");
    // An emulated machine takes fifteen times as long.
    let rounds = if Path::new("/matrix/environment").exists() {
        1
    } else {
        3
    };
    for round in 0..rounds {
        let mut sweepers: Vec<Sweeper> = (0..SWEEPERS).map(|_| Sweeper::spawn(&ns)).collect();
        for sweeper in &mut sweepers {
            sweeper.line("ready");
        }
        let left = Leftovers::make(round, &ns, &program);
        assert_eq!(left.there(&ns), 2 * LEFT);
        for sweeper in &mut sweepers {
            drop(sweeper.child.stdin.take());
        }
        let mut removed = [0; 2];
        for sweeper in &mut sweepers {
            let said = sweeper.line("removed ");
            for (sum, number) in removed.iter_mut().zip(said.split(' ')) {
                *sum += number.parse::<usize>().unwrap();
            }
            assert!(sweeper.child.wait().unwrap().success());
        }
        assert_eq!(left.there(&ns), 0);
        assert_eq!(removed, [LEFT; 2], "each by one");
        foreign.check(&ns);
        assert_eq!(own("swept"), before);
        check_runs(&survivor, "on_user", true);
    }
    drop(program);
    survivor.stop().unwrap();
}
