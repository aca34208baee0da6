//! Where the names of sections send their programs.

use ebpf_manager_bpf::elf::section;
use ebpf_manager_bpf::{
    AttachType, IterOver, Kprobe, KprobeMulti, Link, LinkError, Method, ProgramType, Tracing,
    Uprobe, UprobeMulti, Usdt,
};

use crate::hook::Site;

/// Attaches where the section name says; `None` if it names no target or a
/// kind of hook that needs more than a name.
pub(crate) fn attach(site: &Site<'_>) -> Option<Result<Link, LinkError>> {
    let Site {
        program,
        collection,
        ..
    } = *site;
    if let Some(hook) = site.defaults.hook_of(program.section()) {
        // One that leaves it to the section is not asked again.
        let defaults = &site.defaults.without_hooks();
        return hook.attach(&Site { defaults, ..*site }).transpose();
    }
    match (program.program_type(), program.attach_type()) {
        (ProgramType::SK_LOOKUP, _) => return Some(Link::sk_lookup(program, None)),
        (ProgramType::FLOW_DISSECTOR, _) => {
            return Some(Link::flow_dissector(program, None, Method::Auto));
        }
        (ProgramType::TRACING, Some(AttachType::TRACE_ITER)) => {
            return Some(Link::iter(program, IterOver::All));
        }
        (ProgramType::TRACING | ProgramType::EXT, _)
        | (ProgramType::LSM, Some(AttachType::LSM_MAC)) => {
            return Some(Link::tracing(program, &Tracing::new()));
        }
        _ => {}
    }
    let target = program.target()?;
    match program.program_type() {
        ProgramType::TRACEPOINT => target
            .split_once('/')
            .map(|(category, name)| Link::tracepoint(program, category, name)),
        ProgramType::RAW_TRACEPOINT | ProgramType::RAW_TRACEPOINT_WRITABLE => {
            Some(Link::raw_tracepoint(program, target))
        }
        ProgramType::KPROBE => {
            SectionProbe::parse(program.section(), target).map(|probe| match probe {
                SectionProbe::Kprobe(probe) => site.kprobe(probe),
                SectionProbe::KprobeMulti(probe) => Link::kprobe_multi(program, &probe),
                SectionProbe::Uprobe(probe) => site.uprobe(probe),
                SectionProbe::UprobeMulti(probe) => Link::uprobe_multi(program, &probe),
                SectionProbe::Usdt(probe) => collection
                    .usdt_specs()
                    .and_then(|specs| Link::usdt(program, specs.as_ref(), &probe)),
            })
        }
        _ => None,
    }
}

/// What the section name of a program of type kprobe stands for.
#[cfg_attr(test, derive(Debug, PartialEq))]
enum SectionProbe {
    Kprobe(Kprobe),
    KprobeMulti(KprobeMulti),
    Uprobe(Uprobe),
    UprobeMulti(UprobeMulti),
    Usdt(Usdt),
}

impl SectionProbe {
    /// `kprobe/vfs_read+8`, `ksyscall/openat`, `kprobe.multi/tcp_*`,
    /// `uprobe/libc.so.6:getpid`, `uprobe.multi//bin/bash:*`,
    /// `usdt/libc.so.6:libc:setjmp`.
    fn parse(section: &str, target: &str) -> Option<SectionProbe> {
        let prefix = section::parse(section).prefix;
        let prefix = prefix.strip_suffix(".s").unwrap_or(prefix);
        let returns = prefix.starts_with("kret") || prefix.starts_with("uret");
        Some(match prefix {
            "kprobe" | "kretprobe" => {
                let (symbol, offset) = split_offset(target);
                let probe = Kprobe::new(symbol).offset(offset);
                SectionProbe::Kprobe(if returns { probe.on_return() } else { probe })
            }
            "ksyscall" | "kretsyscall" => {
                let probe = Kprobe::syscall(target);
                SectionProbe::Kprobe(if returns { probe.on_return() } else { probe })
            }
            "kprobe.multi" | "kretprobe.multi" | "kprobe.session" => {
                let probe = KprobeMulti::pattern(target);
                SectionProbe::KprobeMulti(if returns { probe.on_return() } else { probe })
            }
            "uprobe" | "uretprobe" => {
                let (path, place) = target.rsplit_once(':')?;
                let (symbol, offset) = split_offset(place);
                let probe = match number(symbol) {
                    Some(offset) => Uprobe::offset(path, offset),
                    None => Uprobe::symbol(path, symbol).into_symbol(offset),
                };
                SectionProbe::Uprobe(if returns { probe.on_return() } else { probe })
            }
            "uprobe.multi" | "uretprobe.multi" | "uprobe.session" => {
                let (path, pattern) = target.rsplit_once(':')?;
                let probe = UprobeMulti::pattern(path, pattern);
                SectionProbe::UprobeMulti(if returns { probe.on_return() } else { probe })
            }
            "usdt" => {
                let (path, name) = target.rsplit_once(':')?;
                let (path, provider) = path.rsplit_once(':')?;
                SectionProbe::Usdt(Usdt::new(path, provider, name))
            }
            _ => return None,
        })
    }
}

/// `symbol+8` in its parts; without a number behind the sign it is all symbol.
fn split_offset(place: &str) -> (&str, u64) {
    place
        .rsplit_once('+')
        .and_then(|(symbol, offset)| Some((symbol, number(offset)?)))
        .unwrap_or((place, 0))
}

/// Decimal, or hexadecimal after `0x`.
pub(crate) fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_name_probes() {
        let hook = |section: &str, target: &str| SectionProbe::parse(section, target);
        assert_eq!(
            hook("kprobe/vfs_read+0x8", "vfs_read+0x8"),
            Some(SectionProbe::Kprobe(Kprobe::new("vfs_read").offset(8)))
        );
        assert_eq!(
            hook("kretprobe/vfs_read", "vfs_read"),
            Some(SectionProbe::Kprobe(Kprobe::new("vfs_read").on_return()))
        );
        assert_eq!(
            hook("kretsyscall/openat", "openat"),
            Some(SectionProbe::Kprobe(Kprobe::syscall("openat").on_return()))
        );
        assert_eq!(
            hook("?kprobe.multi/tcp_*", "tcp_*"),
            Some(SectionProbe::KprobeMulti(KprobeMulti::pattern("tcp_*")))
        );
        assert_eq!(
            hook("usdt.s//bin/a:b:c:d", "/bin/a:b:c:d"),
            Some(SectionProbe::Usdt(Usdt::new("/bin/a:b", "c", "d")))
        );
        assert_eq!(hook("usdt/libc.so.6:setjmp", "libc.so.6:setjmp"), None);
        assert_eq!(
            hook("uprobe.s//bin/bash:readline", "/bin/bash:readline"),
            Some(SectionProbe::Uprobe(Uprobe::symbol(
                "/bin/bash",
                "readline"
            )))
        );
        assert_eq!(
            hook("uretprobe//bin/bash:0x1234", "/bin/bash:0x1234"),
            Some(SectionProbe::Uprobe(
                Uprobe::offset("/bin/bash", 0x1234).on_return()
            ))
        );
        assert_eq!(
            hook("uprobe/libc.so.6:getpid+4", "libc.so.6:getpid+4"),
            Some(SectionProbe::Uprobe(
                Uprobe::symbol("libc.so.6", "getpid").into_symbol(4)
            ))
        );
        assert_eq!(
            hook("uprobe.multi/libc.so.6:get*", "libc.so.6:get*"),
            Some(SectionProbe::UprobeMulti(UprobeMulti::pattern(
                "libc.so.6",
                "get*"
            )))
        );
        // No file to look in.
        assert_eq!(hook("uprobe/readline", "readline"), None);
        assert_eq!(
            hook("kprobe.session/x", "x"),
            Some(SectionProbe::KprobeMulti(KprobeMulti::pattern("x")))
        );
    }
}
