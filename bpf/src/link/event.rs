//! Probe events in tracefs: named after their process, removed with their
//! link, swept up when their process died without doing so.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use ebpf_manager_sys::tracefs::{ProbeFile, Tracefs, event_name};
use ebpf_manager_sys::{Errno, SysError, proc};

/// What every group of ours starts with.
const PREFIX: &str = "ebpf_manager_";

/// Bytes of a label that go into a name, at most.
const MAX_LABEL: usize = 30;

/// How often a removal is tried while the kernel still closes the event: on a
/// busy machine that takes it a second or more.
const REMOVE_ATTEMPTS: u32 = 20;

/// And how often if something else was wanting, such as a descriptor.
const OTHER_ATTEMPTS: u32 = 4;

/// Pauses between them: the first, which doubles, and the longest.
const REMOVE_PAUSE: [Duration; 2] = [Duration::from_millis(5), Duration::from_millis(250)];

/// An event that exists until this is dropped.
#[derive(Debug)]
pub(super) struct ProbeEvent {
    tracefs: &'static Tracefs,
    file: ProbeFile,
    group: String,
    name: String,
}

impl ProbeEvent {
    /// Makes a name that nobody uses, `stem` and `label` being what people may
    /// know it by, and lets `add` create the event.
    ///
    /// The name is what the managers before this one made of them, `stem`,
    /// `label` and the process's number; the group tells it from others.
    pub(super) fn create(
        tracefs: &'static Tracefs,
        file: ProbeFile,
        stem: &str,
        label: &str,
        add: &mut dyn FnMut(&str, &str) -> Result<(), SysError>,
    ) -> Result<ProbeEvent, SysError> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        // Asked each time: a fork would inherit an answer that is kept.
        let owner = Owner::this_process()?;
        // One for each event, so that names need not differ.
        let group = format!("{}_{number}", owner.group());
        let label = String::from_utf8_lossy(
            label
                .as_bytes()
                .get(..MAX_LABEL)
                .unwrap_or(label.as_bytes()),
        );
        let name = event_name(stem, &format!("_{label}_{}", owner.pid));
        add(&group, &name)?;
        Ok(ProbeEvent {
            tracefs,
            file,
            group,
            name,
        })
    }

    pub(super) fn group(&self) -> &str {
        &self.group
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for ProbeEvent {
    fn drop(&mut self) {
        let mut attempt = 0;
        // Nobody else removes it while this process lives.
        while let Err(err) = self
            .tracefs
            .remove_probe(self.file, &self.group, &self.name)
        {
            let Some(pause) = pause_after(err.errno(), attempt) else {
                return;
            };
            std::thread::sleep(pause);
            attempt += 1;
        }
    }
}

/// How long to wait after the removal number `attempt` failed, from 0 on;
/// `None` if there is no use in another.
fn pause_after(errno: Errno, attempt: u32) -> Option<Duration> {
    let attempts = match errno {
        // It is gone.
        Errno::ENOENT => 0,
        // Its perf event is on its way out.
        Errno::EBUSY => REMOVE_ATTEMPTS,
        _ => OTHER_ATTEMPTS,
    };
    let [first, longest] = REMOVE_PAUSE;
    (attempt + 1 < attempts).then(|| longest.min(first * (1 << attempt.min(16))))
}

/// A process that names probe events. The start time tells it from a later
/// process of the same number, the namespace from one in another container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) pid: u32,
    start_time: u64,
    pid_namespace: u64,
}

impl Owner {
    pub(super) fn this_process() -> Result<Owner, SysError> {
        let root = proc::host_proc();
        let pid = proc::self_pid(&root)?;
        Owner::of(&root, pid)
    }

    fn of(proc_root: &Path, pid: u32) -> Result<Owner, SysError> {
        Ok(Owner {
            pid,
            start_time: proc::start_time(proc_root, pid)?,
            pid_namespace: proc::pid_namespace(proc_root, proc::self_pid(proc_root)?)?,
        })
    }

    pub(super) fn group(&self) -> String {
        let Owner {
            pid,
            start_time,
            pid_namespace,
        } = self;
        format!("{PREFIX}{pid}_{start_time}_{pid_namespace}")
    }

    pub(super) fn parse(group: &str) -> Option<Owner> {
        let mut numbers = group.strip_prefix(PREFIX)?.split('_');
        let owner = Owner {
            pid: numbers.next()?.parse().ok()?,
            start_time: numbers.next()?.parse().ok()?,
            pid_namespace: numbers.next()?.parse().ok()?,
        };
        // The number of the event, or none.
        let number = numbers.next().map(str::parse::<u32>);
        (numbers.next().is_none() && !matches!(number, Some(Err(_)))).then_some(owner)
    }

    /// Whether the process is certainly gone, as far as this one sees.
    pub(super) fn is_gone_here(&self) -> bool {
        let root = proc::host_proc();
        proc::self_pid(&root)
            .and_then(|own| proc::pid_namespace(&root, own))
            .is_ok_and(|own| self.is_gone(&root, own))
    }

    /// Whether the process is certainly gone: looked for with the same count
    /// of processes as it was named by.
    fn is_gone(&self, proc_root: &Path, own_namespace: u64) -> bool {
        if self.pid_namespace != own_namespace {
            return false;
        }
        match proc::start_time(proc_root, self.pid) {
            Ok(start_time) => start_time != self.start_time,
            Err(err) => err.is(Errno::ENOENT) || err.is(Errno::ESRCH),
        }
    }
}

/// Removes the probe events that processes using this library left in tracefs
/// when they were killed, and returns how many.
///
/// An event is known by its group, which carries the process's number, start
/// time and pid namespace: those of living processes, of other namespaces and
/// of other programs are not touched. Several processes may sweep at the same
/// time. Call it once when the program starts; without a tracefs there is
/// nothing to do.
///
/// # Errors
/// Those of reading tracefs or `/proc`. An event that cannot be removed is
/// left for the next sweep.
pub fn remove_stale_probe_events() -> Result<usize, SysError> {
    let tracefs = match Tracefs::find() {
        Ok(tracefs) => tracefs,
        Err(err) if err.is(Errno::ENOENT) => return Ok(0),
        Err(err) => return Err(err),
    };
    let root = proc::host_proc();
    let own_namespace = proc::pid_namespace(&root, proc::self_pid(&root)?)?;
    let mut removed = 0;
    for file in [ProbeFile::Kprobe, ProbeFile::Uprobe] {
        let mut stale = Vec::new();
        let listed = tracefs.for_each_probe(file, &mut |event| {
            if Owner::parse(event.group).is_some_and(|o| o.is_gone(&root, own_namespace)) {
                stale.push((event.group.to_owned(), event.name.to_owned()));
            }
            ControlFlow::Continue(())
        });
        match listed {
            Err(err) if err.is(Errno::ENOENT) => continue,
            result => result?,
        }
        for (group, name) in stale {
            // Somebody else may have been faster.
            removed += usize::from(tracefs.remove_probe(file, &group, &name).is_ok());
        }
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_name_their_process() {
        let own = Owner::this_process().unwrap();
        assert_eq!(Owner::parse(&own.group()), Some(own));
        assert!(own.group().len() <= ebpf_manager_sys::tracefs::MAX_EVENT_NAME_LEN);
        let longest = Owner {
            pid: u32::MAX >> 9,
            start_time: u64::MAX >> 10,
            pid_namespace: u64::from(u32::MAX),
        };
        assert!(longest.group().len() + 11 <= ebpf_manager_sys::tracefs::MAX_EVENT_NAME_LEN);
        for foreign in [
            "kprobes",
            "ebpf_manager_",
            "ebpf_manager_1",
            "ebpf_manager_1_2",
            "ebpf_manager_1_2_3_4_5",
            "ebpf_manager_1_2_3_x",
            "ebpf_manager_a_2_3",
            "my_ebpf_manager_1_2_3",
        ] {
            assert_eq!(Owner::parse(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn only_a_busy_event_is_waited_for() {
        let waited =
            |errno| -> Duration { (0..).map_while(|attempt| pause_after(errno, attempt)).sum() };
        assert_eq!(waited(Errno::ENOENT), Duration::ZERO);
        assert_eq!(waited(Errno::EMFILE), Duration::from_millis(5 + 10 + 20));
        assert_eq!(waited(Errno::EACCES), waited(Errno::EMFILE));
        let busy = waited(Errno::EBUSY);
        assert!(busy > Duration::from_secs(3), "{busy:?}");
        assert!(busy < Duration::from_secs(4), "{busy:?}");
    }

    #[test]
    fn the_dead_are_told_from_the_living() {
        let root = proc::host_proc();
        let own = Owner::this_process().unwrap();
        let here = own.pid_namespace;
        assert!(!own.is_gone(&root, here));
        let recycled = Owner {
            start_time: own.start_time + 1,
            ..own
        };
        assert!(recycled.is_gone(&root, here));
        assert!(!recycled.is_gone(&root, here + 1));
        let absent = Owner {
            pid: u32::MAX >> 1,
            ..own
        };
        assert!(absent.is_gone(&root, here));
    }
}
