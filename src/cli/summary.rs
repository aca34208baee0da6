//! What a trace amounted to.

use std::io::Write;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ebpf_manager::bpf::Loss;
use ebpf_manager::{Manager, Outcome, ProbeId, Times};
use ebpf_manager_sys::proc::Uname;

use super::format::{duration, json_string};
use super::trace::Counts;

#[derive(Debug)]
pub(crate) struct Summary {
    exec: u64,
    exit: u64,
    malformed: u64,
    /// `None` if the kernel would not tell.
    lost: Option<u64>,
    times: Times,
    /// From the object's bytes to running, all phases and what is between.
    total: Duration,
    kernel: String,
    probes: Vec<(ProbeId, Outcome)>,
    /// What the kernel is too old to give, and what lost it.
    losses: Vec<(String, Loss)>,
}

impl Summary {
    /// What is known when a manager has started, which took `total`.
    pub(crate) fn of(manager: &Manager, total: Duration) -> Summary {
        Summary {
            exec: 0,
            exit: 0,
            malformed: 0,
            lost: None,
            times: manager.times(),
            total,
            kernel: Uname::get().map_or_else(|_| String::from("?"), |u| u.release().to_owned()),
            probes: manager.probes(),
            losses: manager.losses(),
        }
    }

    /// Adds what is known when it has stopped.
    pub(crate) fn count(&mut self, counts: &Counts, lost: Option<u64>) {
        self.exec = counts.exec.load(Ordering::Relaxed);
        self.exit = counts.exit.load(Ordering::Relaxed);
        self.malformed = counts.malformed.load(Ordering::Relaxed);
        self.lost = lost;
    }

    fn phases(&self) -> [(&'static str, u64); 6] {
        let ns = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        [
            ("parse", ns(self.times.parse)),
            ("relocate", ns(self.times.relocate)),
            ("maps", ns(self.times.maps)),
            ("verify", ns(self.times.verify)),
            ("attach", ns(self.times.attach)),
            ("total", ns(self.total)),
        ]
    }

    /// A few lines for people.
    pub(crate) fn text(&self, out: &mut Vec<u8>) {
        let (exec, exit) = (self.exec, self.exit);
        // Writing to a vector cannot fail.
        let _ = write!(
            out,
            "\nevents  {} ({exec} exec, {exit} exit), ",
            exec + exit
        );
        let _ = match self.lost {
            Some(lost) => write!(out, "{lost} lost"),
            None => write!(out, "losses unknown"),
        };
        if self.malformed != 0 {
            let _ = write!(out, ", {} unreadable", self.malformed);
        }
        let _ = write!(out, "\nload    ");
        for (i, (phase, ns)) in self.phases().into_iter().enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            let _ = write!(out, "{comma}{phase} {}", duration(ns));
        }
        let _ = writeln!(out, "\nkernel  {}", self.kernel);
        for (i, (id, outcome)) in self.probes.iter().enumerate() {
            let label = if i == 0 { "probes" } else { "" };
            let _ = writeln!(out, "{label:7} {id}: {outcome}");
        }
        for (i, (whose, loss)) in self.losses.iter().enumerate() {
            let label = if i == 0 { "without" } else { "" };
            let Loss { what, since, .. } = loss;
            let _ = writeln!(out, "{label:7} {whose}: {what} (Linux {since})");
        }
    }

    /// One line of JSON.
    pub(crate) fn json(&self, out: &mut Vec<u8>) {
        let (exec, exit) = (self.exec, self.exit);
        let _ = write!(
            out,
            "{{\"event\":\"summary\",\"events\":{},\"exec\":{exec},\"exit\":{exit},\"lost\":",
            exec + exit
        );
        let _ = match self.lost {
            Some(lost) => write!(out, "{lost}"),
            None => write!(out, "null"),
        };
        let _ = write!(out, ",\"malformed\":{},\"load_ns\":{{", self.malformed);
        for (i, (phase, ns)) in self.phases().into_iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            let _ = write!(out, "{comma}\"{phase}\":{ns}");
        }
        out.extend_from_slice(b"},\"kernel\":");
        json_string(out, self.kernel.as_bytes());
        out.extend_from_slice(b",\"probes\":[");
        for (i, (id, outcome)) in self.probes.iter().enumerate() {
            out.extend_from_slice(if i == 0 {
                b"{\"name\":"
            } else {
                b",{\"name\":"
            });
            json_string(out, id.to_string().as_bytes());
            out.extend_from_slice(b",\"outcome\":");
            json_string(out, outcome.to_string().as_bytes());
            out.push(b'}');
        }
        out.extend_from_slice(b"],\"without\":[");
        for (i, (whose, loss)) in self.losses.iter().enumerate() {
            out.extend_from_slice(if i == 0 { b"{\"of\":" } else { b",{\"of\":" });
            json_string(out, whose.as_bytes());
            out.extend_from_slice(b",\"what\":");
            json_string(out, loss.what.as_bytes());
            out.extend_from_slice(b",\"since\":");
            json_string(out, loss.since.as_bytes());
            out.push(b'}');
        }
        out.extend_from_slice(b"]}\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary() -> Summary {
        Summary {
            exec: 3,
            exit: 2,
            malformed: 0,
            lost: Some(0),
            times: Times {
                parse: Duration::from_micros(80),
                verify: Duration::from_millis(3),
                ..Times::default()
            },
            total: Duration::from_millis(4),
            kernel: "6.1.0-18-amd64".to_owned(),
            probes: Vec::new(),
            losses: vec![(
                "on_exec".to_owned(),
                Loss {
                    what: "a \"thing\"",
                    since: "9.9",
                },
            )],
        }
    }

    #[test]
    fn text_for_people() {
        let mut out = Vec::new();
        summary().text(&mut out);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "\nevents  5 (3 exec, 2 exit), 0 lost\n\
             load    parse 80us, relocate 0ns, maps 0ns, verify 3.00ms, attach 0ns, total 4.00ms\n\
             kernel  6.1.0-18-amd64\n\
             without on_exec: a \"thing\" (Linux 9.9)\n"
        );
        let mut out = Vec::new();
        let lossy = Summary {
            malformed: 2,
            lost: None,
            ..summary()
        };
        lossy.text(&mut out);
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains(", losses unknown, 2 unreadable\n"), "{text}");
    }

    #[test]
    fn json_for_programs() {
        let mut out = Vec::new();
        summary().json(&mut out);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "{\"event\":\"summary\",\"events\":5,\"exec\":3,\"exit\":2,\"lost\":0,\
             \"malformed\":0,\"load_ns\":{\"parse\":80000,\"relocate\":0,\"maps\":0,\
             \"verify\":3000000,\"attach\":0,\"total\":4000000},\
             \"kernel\":\"6.1.0-18-amd64\",\"probes\":[],\
             \"without\":[{\"of\":\"on_exec\",\"what\":\"a \\\"thing\\\"\",\"since\":\"9.9\"}]}\n"
        );
        assert_eq!(summary().phases().len(), 6);
    }
}
