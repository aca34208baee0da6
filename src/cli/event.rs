//! Records of the `events` ring buffer of `tests/programs/trace.bpf.c`.

/// Bytes of a record before its file name.
const HEADER_BYTES: usize = 56;

/// A process executed a file, or ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Event<'r> {
    /// `CLOCK_MONOTONIC`, when it happened.
    pub(crate) time_ns: u64,
    /// `CLOCK_MONOTONIC`, when the process began.
    pub(crate) start_ns: u64,
    /// Process, in the initial namespace.
    pub(crate) pid: u32,
    /// Its parent.
    pub(crate) ppid: u32,
    /// Real user.
    pub(crate) uid: u32,
    /// Name of the task, up to 15 bytes.
    pub(crate) comm: &'r [u8],
    pub(crate) what: What<'r>,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What<'r> {
    /// The file as it was passed to execve(2), cut to 255 bytes; `None` if
    /// the kernel could not read it.
    Exec(Option<&'r [u8]>),
    Exit(WaitStatus),
}

/// How a process ended, as wait(2) tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WaitStatus(pub(crate) u32);

impl WaitStatus {
    /// The code it passed to exit(2); `None` if a signal ended it.
    pub(crate) fn code(self) -> Option<u8> {
        self.signal().is_none().then_some((self.0 >> 8) as u8)
    }

    /// The signal that ended it.
    pub(crate) fn signal(self) -> Option<u8> {
        let signal = (self.0 & 0x7f) as u8;
        (signal != 0).then_some(signal)
    }

    pub(crate) fn core_dumped(self) -> bool {
        self.0 & 0x80 != 0
    }
}

impl Event<'_> {
    /// Reads a record; `None` if it is too short or of an unknown kind.
    pub(crate) fn decode(record: &[u8]) -> Option<Event<'_>> {
        let u32_at = |at: usize| {
            let bytes = record.get(at..at + 4)?;
            Some(u32::from_ne_bytes(bytes.try_into().ok()?))
        };
        let u64_at = |at: usize| {
            let bytes = record.get(at..at + 8)?;
            Some(u64::from_ne_bytes(bytes.try_into().ok()?))
        };
        let what = match u32_at(16)? {
            1 => {
                let size = u32_at(36)? as usize;
                let name = record.get(HEADER_BYTES..HEADER_BYTES.checked_add(size)?)?;
                What::Exec((size != 0).then_some(until_nul(name)))
            }
            2 => What::Exit(WaitStatus(u32_at(32)?)),
            _ => return None,
        };
        Some(Event {
            time_ns: u64_at(0)?,
            start_ns: u64_at(8)?,
            pid: u32_at(20)?,
            ppid: u32_at(24)?,
            uid: u32_at(28)?,
            comm: until_nul(record.get(40..HEADER_BYTES)?),
            what,
        })
    }
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|&b| b == 0).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn record(kind: u32, status: u32, name: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(5_000_u64.to_ne_bytes());
        bytes.extend(2_000_u64.to_ne_bytes());
        for number in [kind, 42, 41, 1000, status, name.len() as u32] {
            bytes.extend(number.to_ne_bytes());
        }
        bytes.extend(b"sh\0leftover\0\0\0\0\0");
        bytes.extend(name);
        bytes
    }

    #[test]
    fn both_kinds_are_read() {
        let exec = record(1, 0, b"/bin/sh\0");
        let event = Event::decode(&exec).unwrap();
        assert_eq!(event.what, What::Exec(Some(b"/bin/sh")));
        assert_eq!((event.time_ns, event.start_ns), (5_000, 2_000));
        assert_eq!((event.pid, event.ppid, event.uid), (42, 41, 1000));
        assert_eq!(event.comm, b"sh");

        let exit = record(2, 3 << 8, b"");
        assert_eq!(exit.len(), HEADER_BYTES);
        let event = Event::decode(&exit).unwrap();
        assert_eq!(event.what, What::Exit(WaitStatus(0x300)));

        let unreadable = record(1, 0, b"");
        let event = Event::decode(&unreadable).unwrap();
        assert_eq!(event.what, What::Exec(None));
    }

    #[test]
    fn a_name_of_16_bytes_needs_no_nul() {
        let mut bytes = record(2, 0, b"");
        bytes[40..56].copy_from_slice(b"0123456789abcdef");
        assert_eq!(Event::decode(&bytes).unwrap().comm, b"0123456789abcdef");
    }

    #[test]
    fn cut_and_unknown_records_are_refused() {
        for whole in [record(1, 0, b"/bin/sh\0"), record(2, 9, b"")] {
            for len in 0..whole.len() {
                assert_eq!(Event::decode(&whole[..len]), None, "{len} bytes");
            }
        }
        assert_eq!(Event::decode(&record(0, 0, b"")), None);
        assert_eq!(Event::decode(&record(3, 0, b"")), None);
        let mut liar = record(1, 0, b"x\0");
        liar[36..40].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert_eq!(Event::decode(&liar), None);
    }

    #[test]
    fn wait_statuses() {
        let parts = |raw| {
            let status = WaitStatus(raw);
            (status.code(), status.signal(), status.core_dumped())
        };
        assert_eq!(parts(0), (Some(0), None, false));
        assert_eq!(parts(3 << 8), (Some(3), None, false));
        assert_eq!(parts(255 << 8), (Some(255), None, false));
        assert_eq!(parts(9), (None, Some(9), false));
        assert_eq!(parts(0x80 + 11), (None, Some(11), true));
    }
}
