//! What every test against a live kernel shares: skipping honestly, leak
//! checks, namespaces and fixtures.
//!
//! A kernel test starts like this:
//!
//! ```ignore
//! #[test]
//! fn attaches_many_functions_at_once() {
//!     if !require(&KPROBE_MULTI) {
//!         return;
//!     }
//!     let _leaks = LeakCheck::begin();
//!     ...
//! }
//! ```
#![allow(
    dead_code,
    unused_imports,
    reason = "each test binary uses its own part of this"
)]
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test's helpers fail the test"
)]

use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use ebpf_manager_sys::mntns;
use ebpf_manager_sys::netns;
use ebpf_manager_sys::rtnl::Rtnl;

pub(crate) mod cycle;
mod leak;
pub(crate) mod net;
mod objects;
mod programs;

#[allow(unused_imports, reason = "see above")]
pub(crate) use leak::LeakCheck;
pub(crate) use programs::{check, load, load_alone, map, object, run};

/// Something a test needs from the kernel, and since when every kernel has it.
///
/// The version is what keeps a skip honest: from `since` on, with the
/// privileges and build options named here, [`require`] does not skip any more
/// but lets the test run, or fails it when `check` says no.
#[derive(Clone, Copy)]
pub(crate) struct Feature {
    name: &'static str,
    since: (u32, u32),
    config: &'static [&'static str],
    lockdown: bool,
    mount: Option<&'static str>,
    check: Option<fn() -> Result<(), String>>,
}

impl Feature {
    /// A feature every root has from Linux `major.minor` on.
    pub(crate) const fn new(name: &'static str, major: u32, minor: u32) -> Feature {
        Feature {
            name,
            since: (major, minor),
            config: &[],
            lockdown: false,
            mount: None,
            check: None,
        }
    }

    /// Needs these build options, spelled `CONFIG_…`.
    pub(crate) const fn config(mut self, options: &'static [&'static str]) -> Feature {
        self.config = options;
        self
    }

    /// Needs a file system of this type to be mounted.
    #[must_use]
    pub(crate) const fn mounted(mut self, fstype: &'static str) -> Feature {
        self.mount = Some(fstype);
        self
    }

    /// Refused by a kernel in lockdown, whatever its version.
    pub(crate) const fn refused_in_lockdown(mut self) -> Feature {
        self.lockdown = true;
        self
    }

    /// Tries the feature: `Err` says what is missing. It must not use the code
    /// under test, or a defect there would pass for a missing feature.
    pub(crate) const fn check(mut self, check: fn() -> Result<(), String>) -> Feature {
        self.check = Some(check);
        self
    }

    /// What becomes of a test that needs the feature.
    pub(crate) fn verdict(&self) -> Verdict {
        match (self.excuse(), self.check) {
            (None, None) => Verdict::Run,
            (None, Some(check)) => match check() {
                Ok(()) => Verdict::Run,
                Err(reason) => {
                    let (major, minor) = kernel_version();
                    let name = self.name;
                    Verdict::Fail(format!(
                        "{name} must be there on Linux {major}.{minor}: {reason}"
                    ))
                }
            },
            // A distribution may have brought the feature to an older kernel.
            (Some(_), Some(check)) if privileged() && check().is_ok() => Verdict::Run,
            (Some(excuse), _) => Verdict::Skip(excuse),
        }
    }

    /// Why this kernel or process need not have the feature.
    fn excuse(&self) -> Option<String> {
        if !privileged() {
            return Some(format!("{} needs root with all capabilities", self.name));
        }
        let (major, minor) = self.since;
        let running = kernel_version();
        if running < self.since {
            return Some(format!(
                "{} needs Linux {major}.{minor}, this is {}.{}",
                self.name, running.0, running.1
            ));
        }
        if let Some(option) = self.config.iter().find(|o| built_with(o) == Some(false)) {
            return Some(format!("{} needs {option}", self.name));
        }
        if let Some(fstype) = self.mount.filter(|fstype| !mounted(fstype)) {
            return Some(format!("{} needs a mounted {fstype}", self.name));
        }
        if self.lockdown && locked_down() {
            return Some(format!("{} is refused in lockdown", self.name));
        }
        None
    }
}

/// What becomes of a test, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Run,
    Skip(String),
    Fail(String),
}

/// A process with full privileges, nothing more.
pub(crate) const ROOT: Feature = Feature::new("the test", 0, 0);
/// Attaching to tracepoints.
pub(crate) const TRACEPOINT: Feature = Feature::new("tracepoint", 4, 7).mounted("tracefs");
/// Pins.
pub(crate) const PINS: Feature = Feature::new("pins", 4, 4).mounted("bpf");
/// Kprobes for BPF programs by any method.
pub(crate) const KPROBE: Feature =
    Feature::new("kprobe", 4, 1).config(&["CONFIG_KPROBES", "CONFIG_KPROBE_EVENTS"]);
/// Kprobes through the perf PMU instead of tracefs.
pub(crate) const KPROBE_PMU: Feature =
    Feature::new("perf_kprobe", 4, 17).config(&["CONFIG_KPROBES", "CONFIG_KPROBE_EVENTS"]);
/// Many kernel functions behind one link.
pub(crate) const KPROBE_MULTI: Feature =
    Feature::new("kprobe.multi", 5, 18).config(&["CONFIG_KPROBES", "CONFIG_FPROBE"]);
/// Uprobes by any method.
pub(crate) const UPROBE: Feature =
    Feature::new("uprobe", 4, 3).config(&["CONFIG_UPROBES", "CONFIG_UPROBE_EVENTS"]);
/// Many user functions behind one link.
pub(crate) const UPROBE_MULTI: Feature =
    Feature::new("uprobe.multi", 6, 6).config(&["CONFIG_UPROBES", "CONFIG_UPROBE_EVENTS"]);
/// `bpf_link` on perf events.
pub(crate) const PERF_LINK: Feature = Feature::new("perf_event link", 5, 15);
/// fentry, fexit, fmod_ret and freplace.
pub(crate) const TRAMPOLINE: Feature = Feature::new("fentry", 5, 5)
    .config(&["CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS"])
    .refused_in_lockdown();
/// BPF programs as a security module, and active.
pub(crate) const BPF_LSM: Feature = Feature::new("BPF LSM", 5, 7)
    .config(&["CONFIG_BPF_LSM", "CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS"])
    .refused_in_lockdown();
/// Ring buffer maps.
pub(crate) const RING_BUFFER: Feature = Feature::new("ring buffer", 5, 8);
/// tc programs behind a link.
pub(crate) const TCX: Feature = Feature::new("tcx", 6, 6).config(&["CONFIG_NET_XGRESS"]);
/// Netfilter programs.
pub(crate) const NETFILTER_LINK: Feature =
    Feature::new("netfilter link", 6, 4).config(&["CONFIG_NETFILTER_BPF_LINK"]);
/// netkit devices.
pub(crate) const NETKIT: Feature = Feature::new("netkit", 6, 7).config(&["CONFIG_NETKIT"]);

/// True if the calling test can run; otherwise prints
/// `skipped: TEST: REASON` past the test runner's capture and returns false.
///
/// # Panics
/// If the kernel must have the feature and its check does not find it: a skip
/// would hide a defect.
#[must_use]
pub(crate) fn require(feature: &Feature) -> bool {
    match feature.verdict() {
        Verdict::Run => true,
        Verdict::Skip(reason) => {
            skip(&reason);
            false
        }
        Verdict::Fail(reason) => panic!("{reason}"),
    }
}

/// Says that the calling test does not run, and why. Prefer [`require`], which
/// refuses to skip where it must not.
pub(crate) fn skip(reason: &str) {
    let line = format!("skipped: {}: {reason}\n", test_name());
    // Not eprintln!, which the test runner captures and drops.
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// What a test may take that could go on for long, such as one that tries all
/// of something: 40 seconds, or `EBPF_MANAGER_TEST_SECONDS`.
pub(crate) fn time_for_a_long_test() -> Duration {
    let seconds = std::env::var("EBPF_MANAGER_TEST_SECONDS").ok();
    let seconds = seconds.and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(40))
}

/// Prints past the test runner's capture.
pub(crate) fn say(text: &str) {
    let line = format!("{}: {text}\n", test_name());
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// Numbers that a seed repeats (xorshift64*).
pub(crate) struct Random {
    seed: u64,
    state: u64,
}

impl Random {
    /// From `EBPF_MANAGER_TEST_SEED`, or from the clock.
    pub(crate) fn from_environment() -> Random {
        let seed = std::env::var("EBPF_MANAGER_TEST_SEED").ok();
        let seed = seed.map(|text| text.parse().expect("a seed is a number"));
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let seed = seed.unwrap_or_else(|| now.expect("after 1970").as_nanos() as u64);
        // The state must not be zero.
        let state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        Random { seed, state }
    }

    pub(crate) fn seed(&self) -> u64 {
        self.seed
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// From 0 to less than `end`.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        (((self.next() >> 32) * end as u64) >> 32) as usize
    }

    /// From 0 to less than 1.
    pub(crate) fn fraction(&mut self) -> f64 {
        f64::from(self.below(1 << 20) as u32) / f64::from(1 << 20)
    }

    pub(crate) fn pick<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }
}

/// Name of the calling test, as the runner prints it.
pub(crate) fn test_name() -> String {
    std::thread::current().name().unwrap_or("main").to_owned()
}

/// Path of a fixture of `tests/programs`.
pub(crate) fn testdata(name: &str) -> PathBuf {
    let dir = std::env::var_os("EBPF_MANAGER_TESTDATA").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/programs")),
        PathBuf::from,
    );
    dir.join(name)
}

/// Version of the running kernel. Read here rather than with the code under
/// test.
pub(crate) fn kernel_version() -> (u32, u32) {
    static VERSION: OnceLock<(u32, u32)> = OnceLock::new();
    *VERSION.get_or_init(|| {
        let release = release();
        let mut numbers = release
            .split(|c: char| !c.is_ascii_digit())
            .map_while(|part| part.parse().ok());
        let major = numbers.next().expect("a release starts with two numbers");
        let minor = numbers.next().expect("a release starts with two numbers");
        (major, minor)
    })
}

fn release() -> String {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease");
    release.expect("/proc is mounted").trim().to_owned()
}

/// True for a process with the capabilities that loading and attaching need:
/// CAP_NET_ADMIN, CAP_SYS_ADMIN and, where the kernel has them, CAP_PERFMON and
/// CAP_BPF.
pub(crate) fn privileged() -> bool {
    const NET_ADMIN: u64 = 1 << 12;
    const SYS_ADMIN: u64 = 1 << 21;
    let status = std::fs::read_to_string("/proc/self/status").expect("/proc is mounted");
    let effective = status.lines().find_map(|l| l.strip_prefix("CapEff:"));
    let effective = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    effective.is_some_and(|caps| caps & (NET_ADMIN | SYS_ADMIN) == NET_ADMIN | SYS_ADMIN)
}

/// Whether the kernel was built with `option` (as `y` or `m`); `None` where it
/// does not tell its configuration.
pub(crate) fn built_with(option: &str) -> Option<bool> {
    static CONFIG: OnceLock<Option<String>> = OnceLock::new();
    let config = CONFIG
        .get_or_init(|| {
            let release = release();
            let zipped = Command::new("gzip")
                .args(["-dc", "/proc/config.gz"])
                .stderr(std::process::Stdio::null())
                .output();
            match zipped {
                Ok(out) if out.status.success() => String::from_utf8(out.stdout).ok(),
                _ => std::fs::read_to_string(format!("/boot/config-{release}"))
                    .or_else(|_| std::fs::read_to_string(format!("/lib/modules/{release}/config")))
                    .ok(),
            }
        })
        .as_deref()?;
    Some(config.lines().any(|line| {
        line.strip_prefix(option)
            .is_some_and(|value| value == "=y" || value == "=m")
    }))
}

/// True if the kernel is in lockdown mode.
pub(crate) fn locked_down() -> bool {
    static LOCKED: OnceLock<bool> = OnceLock::new();
    *LOCKED.get_or_init(|| {
        // Where securityfs is not mounted, a mount namespace of a short-lived
        // process shows it without changing the machine.
        let mode = std::fs::read_to_string("/sys/kernel/security/lockdown").or_else(|_| {
            let script = "mount -t securityfs none /sys/kernel/security &&
                          cat /sys/kernel/security/lockdown";
            Command::new("unshare")
                .args(["-m", "sh", "-c", script])
                .output()
                .map(|out| String::from_utf8_lossy(&out.stdout).into_owned())
        });
        mode.is_ok_and(|mode| mode.contains("[integrity]") || mode.contains("[confidentiality]"))
    })
}

/// True if a file system of this type is mounted. Where it is not, the calling
/// test gets a view of its own with it: the machine stays as it was.
fn mounted(fstype: &str) -> bool {
    let target = match fstype {
        "tracefs" => "/sys/kernel/tracing",
        "bpf" => "/sys/fs/bpf",
        _ => return mount_of(fstype).is_some(),
    };
    mount_of(fstype).is_some() || mntns::mount_privately(fstype, Path::new(target)).is_ok()
}

/// Where the calling thread sees a file system of this type; of several, the
/// first.
pub(crate) fn mount_of(fstype: &str) -> Option<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/thread-self/mounts").ok()?;
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let path = fields.next()?;
        (fields.next()? == fstype).then(|| PathBuf::from(path))
    })
}

/// A directory of the test's own, removed at the drop with all that is in it.
///
/// Its name carries the process, so that the leak check of another process
/// knows whose it is.
pub(crate) struct TempDir(PathBuf);

impl TempDir {
    /// On the ordinary file system.
    pub(crate) fn new() -> TempDir {
        TempDir::below(&std::env::temp_dir())
    }

    /// On bpffs, for pins.
    ///
    /// # Panics
    /// If bpffs is not mounted; mount it with `mount -t bpf bpf /sys/fs/bpf`.
    pub(crate) fn on_bpffs() -> TempDir {
        TempDir::below(&mount_of("bpf").expect("bpffs is mounted"))
    }

    /// A control group (version 2) without members.
    ///
    /// # Panics
    /// If the hierarchy is not mounted.
    pub(crate) fn cgroup() -> TempDir {
        TempDir::below(&mount_of("cgroup2").expect("cgroup2 is mounted"))
    }

    fn below(parent: &Path) -> TempDir {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("ebpf_manager_test_{}_{count}", std::process::id()));
        std::fs::create_dir(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        TempDir(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        // The files of a control group go with it and cannot be removed.
        if std::fs::remove_dir(&self.0).is_err() {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}

/// A network namespace of the test's own; it ends with this value.
pub(crate) struct NetNs(OwnedFd);

impl NetNs {
    /// An empty one, its `lo` down.
    pub(crate) fn new() -> NetNs {
        NetNs(netns::create().expect("a namespace"))
    }

    /// One with a connected pair of interfaces, `veth0` and `veth1`, both up;
    /// their indices.
    pub(crate) fn with_veth() -> (NetNs, u32, u32) {
        let ns = NetNs::new();
        let mut rtnl = Rtnl::open_in(ns.0.as_fd()).expect("a socket");
        rtnl.link_add_veth("veth0", "veth1", None)
            .expect("a veth pair");
        let [left, right] = ["veth0", "veth1"].map(|name| {
            let index = rtnl.link_by_name(name).expect("just made").index;
            rtnl.link_set_up(index).expect("interface up");
            index
        });
        (ns, left, right)
    }

    /// Runs `work` inside, on a thread of its own (which has no test's name:
    /// call [`require`] before).
    ///
    /// # Panics
    /// If `work` does.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        netns::with_netns(self.0.as_fd(), work).expect("runs in the namespace")
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
