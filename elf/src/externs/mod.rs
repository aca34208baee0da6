//! Symbols that an object uses and does not define: what each one is, and
//! what a loader puts in its place.
//!
//! The declaration in BTF tells: section `.kconfig` holds values of the
//! kernel's configuration, `.ksyms` functions and variables of the kernel. A
//! symbol without a declaration is a number of the loader's choice. What the
//! kernel has comes in as arguments: its BTF, and its configuration line by
//! line ([`KernelConfig`]).

mod config;
mod constant;
mod declared;
mod kernel;

use crate::btf::TypeId;
use crate::object::{Object, Target};
use crate::spec::ProgramSpec;

pub use config::KernelConfig;
pub(crate) use constant::Constant;
pub(crate) use declared::{Declarations, classify};

/// Name of the section, and of the map, that holds configuration values.
pub(crate) const KCONFIG: &str = ".kconfig";

/// Name of the section that declares kernel symbols.
pub(crate) const KSYMS: &str = ".ksyms";

/// What a symbol stands for that an object uses and does not define.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExternKind {
    /// A number to be set before loading
    /// ([`Object::set_symbol_constant`]); 0 unless it is. Nothing declares
    /// it: `asm("%0 = NAME ll" : "=r"(x))`.
    Constant,
    /// Something declared like a part of another object. Only linking both
    /// would define it.
    Undefined,
    /// A value of the kernel's configuration (`__kconfig`).
    Config {
        /// Offset in the value of [`Object::config_map`], in bytes.
        offset: u32,
        /// Size in bytes.
        size: u32,
        /// What it can hold.
        value: ConfigType,
    },
    /// The address of a kernel symbol, of whatever type
    /// (`extern const void x __ksym`), as `/proc/kallsyms` has it.
    Address,
    /// A variable of the kernel, with its type in the object's BTF. Loaded by
    /// the id of the variable in the kernel's BTF; needs Linux 5.10.
    Variable {
        /// Its type, typedefs and qualifiers taken off.
        type_id: TypeId,
    },
    /// A function of the kernel, with its prototype in the object's BTF.
    /// Called by its id in the kernel's BTF; needs Linux 5.13.
    Function {
        /// The prototype.
        type_id: TypeId,
    },
}

/// What a configuration variable can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigType {
    /// `bool`: `y` or absent.
    Bool,
    /// `enum libbpf_tristate`: 0 for absent, 1 for `y`, 2 for `m`.
    Tristate,
    /// `char`: the letter `y`, `m` or `n`, or a small number.
    Char {
        /// Whether numbers may be negative.
        signed: bool,
    },
    /// A number of the variable's size.
    Int {
        /// Whether it may be negative.
        signed: bool,
    },
    /// An array of `char`: text, cut to fit and ended by a zero byte.
    Text,
}

impl Object {
    /// For each of [`Object::externs`], whether one of these programs uses it.
    pub fn used_externs<'p>(
        &self,
        programs: impl IntoIterator<Item = &'p ProgramSpec>,
    ) -> Vec<bool> {
        let mut used = vec![false; self.externs().len()];
        let roots = programs.into_iter().map(|p| p.function).collect();
        self.for_each_target(roots, &mut |target| {
            if let Target::Extern(index) = target
                && let Some(used) = used.get_mut(index as usize)
            {
                *used = true;
            }
        });
        used
    }

    /// True if a function or one that it calls refers to `target`.
    fn uses(&self, function: u32, target: Target) -> bool {
        let mut found = false;
        self.for_each_target(vec![function], &mut |t| found |= t == target);
        found
    }

    /// Calls `visit` with everything that these functions, and those they
    /// refer to, refer to.
    fn for_each_target(&self, mut functions: Vec<u32>, visit: &mut dyn FnMut(Target)) {
        let mut seen = vec![false; self.functions.len()];
        while let Some(index) = functions.pop() {
            let function = self.functions.get(index as usize);
            let (Some(function), Some(seen)) = (function, seen.get_mut(index as usize)) else {
                continue;
            };
            if std::mem::replace(seen, true) {
                continue;
            }
            let relocs = function.relocs.start as usize..function.relocs.end as usize;
            for reloc in self.relocs.get(relocs).unwrap_or_default() {
                visit(reloc.target);
                if let Target::Call(next) | Target::Address(next) = reloc.target {
                    functions.push(next);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
