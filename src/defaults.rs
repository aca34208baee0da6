//! What holds for hooks, buffers and loads that say nothing themselves.

use std::path::PathBuf;
use std::sync::Arc;

use ebpf_manager_bpf::elf::section::SectionKind;
use ebpf_manager_bpf::{
    KernelFunction, Kprobe, LinkError, LoadOptions, MapType, Mechanism, PerfBufferOptions, ProbeOn,
    Uprobe, syscall_function_in,
};

use crate::hook::Hook;
use crate::options::{Builder, Phase};
use crate::probe::Retry;
use crate::stream::Stream;

type HookOf = dyn Fn(&str) -> Option<Hook> + Send + Sync;
type CompleteKprobe = fn(&Defaults, &mut Kprobe) -> Result<(), LinkError>;

/// What a manager says for all its probes.
#[derive(Clone, Default)]
pub(crate) struct Defaults {
    pub(crate) retry: Retry,
    kprobe_maxactive: u32,
    kprobe_by: Option<Mechanism>,
    kallsyms: Option<PathBuf>,
    /// There if any of the above is.
    complete_kprobe: Option<CompleteKprobe>,
    uprobe_by: Option<Mechanism>,
    hook_of: Option<Arc<HookOf>>,
}

impl Defaults {
    /// Fills in what a kprobe leaves open.
    pub(crate) fn complete(&self, probe: &mut Kprobe) -> Result<(), LinkError> {
        match self.complete_kprobe {
            Some(complete) => complete(self, probe),
            None => Ok(()),
        }
    }

    /// As [`Defaults::complete`], for an uprobe.
    pub(crate) fn complete_user(&self, probe: &mut Uprobe) {
        probe.by = probe.by.or(self.uprobe_by);
    }

    /// The same, but for what section names stand for.
    pub(crate) fn without_hooks(&self) -> Defaults {
        Defaults {
            hook_of: None,
            ..self.clone()
        }
    }

    /// The hook that a section's name stands for, by the declaration.
    pub(crate) fn hook_of(&self, section: &str) -> Option<Hook> {
        self.hook_of.as_ref()?(section)
    }
}

fn complete_kprobe(defaults: &Defaults, probe: &mut Kprobe) -> Result<(), LinkError> {
    // Only events in tracefs have it.
    let may = matches!(probe.by, None | Some(Mechanism::ProbeEvent));
    if may && probe.on == ProbeOn::Return && probe.maxactive == 0 {
        probe.maxactive = defaults.kprobe_maxactive;
    }
    if probe.maxactive == 0 {
        probe.by = probe.by.or(defaults.kprobe_by);
    }
    if let (Some(file), KernelFunction::Syscall(name)) = (&defaults.kallsyms, &probe.function) {
        probe.function = KernelFunction::Symbol(syscall_function_in(file, name)?);
    }
    Ok(())
}

/// Changes a stream that left its options open.
pub(crate) type Settle = fn(&mut Stream, &PerfBufferOptions);

/// What is said once for many probes, buffers or programs. What one of them
/// says itself counts more.
impl Builder {
    /// Calls that can be in flight at once at each kprobe on a function's
    /// return that does not say so itself ([`Kprobe::maxactive`]). The kernel
    /// chooses unless set. Also for probes whose section says where they go;
    /// not for those of [`KprobeMulti`](crate::bpf::KprobeMulti), nor for one
    /// that names a kernel interface without that number. Linux 4.12.
    #[must_use]
    pub fn kprobe_maxactive(mut self, calls: u32) -> Builder {
        self.defaults.kprobe_maxactive = calls;
        self.defaults.complete_kprobe = Some(complete_kprobe);
        self
    }

    /// The only kernel interface for kprobes that name none and have no
    /// maxactive: [`Mechanism::PerfEventLink`], [`Mechanism::PerfEventIoctl`]
    /// or [`Mechanism::ProbeEvent`]. All are tried, the newest first, unless
    /// set. Also for probes whose section says where they go.
    #[must_use]
    pub fn kprobes_by(mut self, mechanism: Mechanism) -> Builder {
        self.defaults.kprobe_by = Some(mechanism);
        self.defaults.complete_kprobe = Some(complete_kprobe);
        self
    }

    /// As [`Builder::kprobes_by`], for uprobes.
    #[must_use]
    pub fn uprobes_by(mut self, mechanism: Mechanism) -> Builder {
        self.defaults.uprobe_by = Some(mechanism);
        self
    }

    /// Looks for the functions of system calls in this copy of
    /// `/proc/kallsyms` instead of there: see
    /// [`Kprobe::syscall`].
    #[must_use]
    pub fn symbol_file(mut self, path: impl Into<PathBuf>) -> Builder {
        self.defaults.kallsyms = Some(path.into());
        self.defaults.complete_kprobe = Some(complete_kprobe);
        self
    }

    /// Options of the perf buffers whose streams were given `None`; those of
    /// `PerfBufferOptions::default()` unless set.
    #[must_use]
    pub fn perf_buffers(mut self, options: PerfBufferOptions) -> Builder {
        self.perf_buffers = Some((options, Stream::settle));
        self
    }

    /// Size in bytes of ring buffers that the object gives none; of the others
    /// with [`Builder::edit_map`]. Such a map cannot be created unless set. As
    /// the kernel has it: pages, a power of two of them.
    #[must_use]
    pub fn ring_buffer_bytes(mut self, bytes: u32) -> Builder {
        self.push(Phase::Defaults, move |draft| {
            for map in draft.object.maps_mut() {
                if map.map_type == MapType::RINGBUF && map.max_entries == 0 {
                    map.max_entries = bytes;
                }
            }
            Ok(())
        });
        self
    }

    /// Gives programs the type that `kind` finds in the names of their
    /// sections, for names that [`section::parse`] does not know or knows
    /// otherwise. Sections without an answer stay as they are.
    ///
    /// ```
    /// use ebpf_manager::{Hook, Manager, bpf::Kprobe};
    /// use ebpf_manager::elf::section::{self, SectionKind};
    ///
    /// let builder = Manager::builder()
    ///     .section_types(|name| {
    ///         let target = name.strip_prefix("agent/call/")?;
    ///         Some(SectionKind { target: Some(target), ..section::parse("kprobe") })
    ///     })
    ///     .section_hooks(|name| Some(Kprobe::syscall(name.strip_prefix("agent/call/")?).into()));
    /// # let _ = builder;
    /// ```
    ///
    /// [`section::parse`]: crate::elf::section::parse
    #[must_use]
    pub fn section_types(
        mut self,
        kind: impl for<'s> Fn(&'s str) -> Option<SectionKind<'s>> + Send + Sync + 'static,
    ) -> Builder {
        self.push(Phase::Types, move |draft| {
            draft.object.type_sections(&mut |name| kind(name));
            Ok(())
        });
        self
    }

    /// Says where probes go that leave it to the name of their section, for
    /// names that the manager does not know or knows otherwise; see
    /// [`Builder::section_types`]. Called when such a probe is attached.
    #[must_use]
    pub fn section_hooks(
        mut self,
        hook: impl Fn(&str) -> Option<Hook> + Send + Sync + 'static,
    ) -> Builder {
        self.defaults.hook_of = Some(Arc::new(hook));
        self
    }

    /// Changes the options of the loader at every load, clones of programs
    /// included, after the manager has set its own: the kernel configuration,
    /// who resolves CO-RE relocations, whatever has no method here. What the
    /// manager decides by itself (maps and programs by name) is added later.
    #[must_use]
    pub fn load_options(
        mut self,
        edit: impl Fn(&mut LoadOptions) + Send + Sync + 'static,
    ) -> Builder {
        self.load_options.push(Box::new(edit));
        self
    }
}
