//! Structures of the kernel made of programs: a congestion control for TCP,
//! which a network of the test's own uses.

use std::io::{Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use ebpf_manager::bpf::{Collection, Errno, Link, LoadOptions, Map, Mechanism, open_object};

use super::life::{begin, count, failures, impossible};
use crate::common::net::{Net, connection};
use crate::common::{Feature, PINS, TempDir, Verdict, testdata};

const CONFIG: &[&str] = &["CONFIG_BPF_JIT", "CONFIG_DEBUG_INFO_BTF", "CONFIG_INET"];
const BY_MAP: Feature = Feature::new("struct_ops", 5, 6).config(CONFIG);
const BY_LINK: Feature = Feature::new("struct_ops link", 6, 4).config(CONFIG);

/// What the fixture calls it.
const NAME: &str = "em_suite";

/// The collection has one of the fixture's maps, with its programs.
fn load(map: &str) -> Collection {
    let mut object = open_object(testdata("congestion.bpf.o")).unwrap();
    for spec in object.maps_mut() {
        spec.skip &= spec.name != map;
    }
    let mut options = LoadOptions::default();
    options.include = ["ssthresh", "undo_cwnd", "cong_avoid"]
        .map(str::to_owned)
        .into();
    Collection::load(&object, options).unwrap_or_else(|e| panic!("{map}: {e}"))
}

fn is_there() -> bool {
    let path = "/proc/sys/net/ipv4/tcp_available_congestion_control";
    std::fs::read_to_string(path).unwrap().contains(NAME)
}

/// Lets new sockets of the network use it: false if there is no such.
fn choose(net: &Net, name: &str) -> bool {
    let path = "/proc/sys/net/ipv4/tcp_congestion_control";
    net.ns.run(|| std::fs::write(path, name)).is_ok()
}

/// Bytes over a connection of new sockets.
fn transfer(net: &Net) {
    let (mut client, mut server) = connection(net);
    for _ in 0..3 {
        client.write_all(&[0; 4096]).unwrap();
        server.read_exact(&mut [0; 4096]).unwrap();
    }
}

struct Suite {
    net: Net,
    map: &'static str,
    first: Collection,
    second: Collection,
}

impl Suite {
    fn new(map: &'static str) -> Suite {
        Suite {
            net: Net::new(),
            map,
            first: load(map),
            second: load(map),
        }
    }

    fn map<'a>(&self, of: &'a Collection) -> &'a Map {
        of.map(self.map).unwrap()
    }

    fn attach(&self) -> Link {
        Link::struct_ops(self.map(&self.first)).unwrap_or_else(|e| panic!("{}: {e}", self.map))
    }

    /// It is what new sockets use, and nobody's any more in the end.
    fn fires(&self, which: &Collection) {
        let before = count(which, "congestion");
        let deadline = Instant::now() + Duration::from_secs(20);
        assert!(choose(&self.net, NAME));
        while count(which, "congestion") == before {
            assert!(Instant::now() < deadline, "it does not fire");
            transfer(&self.net);
        }
        assert!(choose(&self.net, "reno"));
    }

    fn silent(&self) {
        let counts = || [&self.first, &self.second].map(|which| count(which, "congestion"));
        let before = counts();
        assert!(!is_there(), "it can be chosen");
        assert!(!choose(&self.net, NAME));
        transfer(&self.net);
        assert_eq!(counts(), before);
    }

    /// What is the same by map and by link.
    fn common(&self, mechanism: Mechanism) {
        self.silent();
        let mut link = self.attach();
        assert_eq!(link.mechanism(), mechanism);
        assert!(link.is_attached().unwrap());
        self.fires(&self.first);
        // A program alone cannot be exchanged.
        let program = self.first.program("cong_avoid").unwrap();
        link.update(program).map(drop).unwrap_err();
        // Another of the name is in the way.
        let err = Link::struct_ops(self.map(&self.second)).unwrap_err();
        assert!(err.is(Errno::EEXIST), "{err}");
        self.fires(&self.first);
        link.detach().unwrap();
        self.silent();
    }
}

#[test]
fn struct_ops_by_map() {
    let Some(_leaks) = begin(&[&BY_MAP]) else {
        return;
    };
    let suite = Suite::new("by_map");
    suite.common(Mechanism::StructOpsMap);
    // It may still be on its way out: the kernel counts its users.
    let suite = Suite::new("by_map");
    let mut link = suite.attach();
    suite.fires(&suite.first);
    assert_eq!(link.info().unwrap(), None);
    impossible(link.pin(Path::new("/tmp/no_pin")));
    impossible(link.update_map(suite.map(&suite.second)));
    drop(link);
    suite.silent();
}

#[test]
fn struct_ops_by_link() {
    let Some(_leaks) = begin(&[&BY_LINK]) else {
        return;
    };
    let suite = Suite::new("by_link");
    suite.common(Mechanism::StructOpsLink);
    drop(suite.attach());
    suite.silent();
    let mut link = suite.attach();
    let info = link.info().unwrap().unwrap();
    assert_eq!(Some(info.id), link.id().unwrap());
    link.update_map(suite.map(&suite.second)).unwrap();
    suite.fires(&suite.second);
    link.update_map(suite.map(&suite.first)).unwrap();
    suite.fires(&suite.first);
    link.detach().unwrap();
    suite.silent();
    failures(&|| Link::struct_ops(suite.map(&suite.first)), &|| {
        suite.silent();
    })
    .detach()
    .unwrap();
    suite.silent();
    if PINS.verdict() != Verdict::Run {
        return;
    }
    let dir = TempDir::on_bpffs();
    let pin = dir.path().join("link");
    let link = suite.attach();
    link.pin(&pin).unwrap();
    let id = link.id().unwrap();
    drop(link);
    suite.fires(&suite.first);
    let link = Link::from_pin(&pin).unwrap();
    assert_eq!(link.id().unwrap(), id);
    assert_eq!(link.mechanism(), Mechanism::StructOpsLink);
    std::fs::remove_file(&pin).unwrap();
    suite.fires(&suite.first);
    drop(link);
    suite.silent();
}
