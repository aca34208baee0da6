//! What the kernel says it is: uname(2) and its version number.

use std::fmt;
use std::path::Path;

use super::{decimal, read_small};
use crate::Result;
use crate::errno::{Errno, SysError, retry_eintr};

/// Answer of uname(2).
#[derive(Clone)]
pub struct Uname([[u8; 65]; 6]);

const _: () = assert!(size_of::<Uname>() == size_of::<libc::utsname>());

impl Uname {
    /// Asks the kernel.
    ///
    /// # Errors
    /// None that a working system gives; whatever uname(2) returns otherwise.
    pub fn get() -> Result<Uname> {
        let mut name = Uname([[0; 65]; 6]);
        let to = name.0.as_mut_ptr().cast::<libc::utsname>();
        retry_eintr("uname", || {
            // SAFETY: `to` points at `name`, which has the size of `utsname`
            // (asserted above) and lives through the call; both are bytes.
            i64::from(unsafe { libc::uname(to) })
        })?;
        Ok(name)
    }

    /// Release, such as `6.1.0-18-amd64`.
    pub fn release(&self) -> &str {
        self.field(2)
    }

    /// Build line, such as `#1 SMP Debian 6.1.76-1`.
    pub fn version(&self) -> &str {
        self.field(3)
    }

    /// Machine, such as `x86_64` or `aarch64`. A 32-bit personality changes
    /// it: it names what the process sees, not what the kernel is.
    pub fn machine(&self) -> &str {
        self.field(4)
    }

    fn field(&self, index: usize) -> &str {
        let bytes = self.0.get(index).map_or(&[][..], |field| &field[..]);
        let text = bytes.split(|&b| b == 0).next().unwrap_or_default();
        str::from_utf8(text).unwrap_or_default()
    }
}

impl fmt::Debug for Uname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Uname({} {} {})",
            self.release(),
            self.version(),
            self.machine()
        )
    }
}

/// Version of a Linux kernel, as `LINUX_VERSION_CODE` counts it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct KernelVersion {
    /// The 6 of 6.1.76.
    pub major: u32,
    /// The 1 of 6.1.76.
    pub minor: u32,
    /// The 76 of 6.1.76.
    pub patch: u32,
}

impl KernelVersion {
    /// A version from its three numbers.
    pub const fn new(major: u32, minor: u32, patch: u32) -> KernelVersion {
        KernelVersion {
            major,
            minor,
            patch,
        }
    }

    /// The running kernel's.
    ///
    /// Kernels before 5.0 compare it with `kern_version` when a kprobe program
    /// is loaded, so it must be the number the kernel was built with. Debian
    /// and Ubuntu print another one in their release string and the true one
    /// elsewhere; see [`KernelVersion::from_text`].
    ///
    /// # Errors
    /// `EBADMSG` if no version can be read from uname(2).
    pub fn current() -> Result<KernelVersion> {
        let uname = Uname::get()?;
        let mut buf = [0; 256];
        let signature = read_small(Path::new("/proc/version_signature"), &mut buf).ok();
        KernelVersion::from_text(
            uname.release(),
            uname.version(),
            signature.unwrap_or_default(),
        )
        .ok_or_else(|| SysError::new("uname", Errno::EBADMSG).with_detail(uname.release()))
    }

    /// The version, from the texts a kernel gives about itself.
    ///
    /// In order: the third word of Ubuntu's `/proc/version_signature` (empty
    /// elsewhere), the number after `Debian ` in `uname -v`, the release.
    pub fn from_text(release: &str, version: &str, signature: &[u8]) -> Option<KernelVersion> {
        let ubuntu = signature
            .split(u8::is_ascii_whitespace)
            .filter(|word| !word.is_empty())
            .nth(2);
        ubuntu
            .and_then(|word| KernelVersion::parse(word, true))
            .or_else(|| {
                let (_, debian) = version.split_once("Debian ")?;
                KernelVersion::parse(debian.as_bytes(), true)
            })
            .or_else(|| KernelVersion::parse(release.as_bytes(), false))
    }

    /// Reads `a.b.c` and ignores what follows; `a.b` too unless all three
    /// numbers are asked for.
    fn parse(text: &[u8], three: bool) -> Option<KernelVersion> {
        let (major, rest) = decimal(text)?;
        let (minor, rest) = decimal(rest.strip_prefix(b".")?)?;
        let patch = match rest.strip_prefix(b".").and_then(decimal) {
            Some((patch, _)) => patch,
            None if three => return None,
            None => 0,
        };
        Some(KernelVersion {
            major: u32::try_from(major).ok()?,
            minor: u32::try_from(minor).ok()?,
            patch: u32::try_from(patch).ok()?,
        })
    }

    /// `LINUX_VERSION_CODE`: one byte each for minor and patch. A patch above
    /// 255 counts as 255, as every kernel released since 2021 counts it.
    pub const fn code(self) -> u32 {
        let patch = if self.patch > 255 { 255 } else { self.patch };
        (self.major << 16) | ((self.minor & 0xff) << 8) | patch
    }
}

impl fmt::Display for KernelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_versions_by_distribution() {
        let v = |release, version, signature: &str| {
            KernelVersion::from_text(release, version, signature.as_bytes()).map(|v| v.to_string())
        };
        assert_eq!(v("6.18.44-fc", "#1 SMP", "").as_deref(), Some("6.18.44"));
        assert_eq!(v("6.18-rc1", "", "").as_deref(), Some("6.18.0"));
        assert_eq!(v("6.18", "", "").as_deref(), Some("6.18.0"));
        assert_eq!(
            v(
                "5.10.0-28-amd64",
                "#1 SMP Debian 5.10.209-2 (2024-01-31)",
                ""
            )
            .as_deref(),
            Some("5.10.209")
        );
        // A Debian kernel whose build line has no third number.
        assert_eq!(
            v("6.5.0-1-amd64", "#1 SMP Debian 6.5-1", "").as_deref(),
            Some("6.5.0")
        );
        assert_eq!(
            v(
                "5.15.0-91-generic",
                "#101-Ubuntu SMP",
                "Ubuntu 5.15.0-91.101-generic 5.15.131\n"
            )
            .as_deref(),
            Some("5.15.131")
        );
        assert_eq!(v("4.4.0", "", "Ubuntu x y\n").as_deref(), Some("4.4.0"));
        for bad in ["", "6", "six.one", "6.", "99999999999.1.1"] {
            assert_eq!(v(bad, "", ""), None, "{bad:?}");
        }
    }

    #[test]
    fn version_codes() {
        assert_eq!(KernelVersion::new(4, 14, 336).code(), 0x04_0e_ff);
        assert_eq!(KernelVersion::new(6, 1, 76).code(), 0x06_01_4c);
        assert!(KernelVersion::new(5, 9, 300) < KernelVersion::new(5, 10, 0));
        let current = KernelVersion::current().unwrap();
        assert!(current > KernelVersion::new(4, 0, 0), "{current}");
        assert!(!Uname::get().unwrap().machine().is_empty());
    }
}
