//! The object's BTF as the kernel wants it.
//!
//! Compilers leave data sections' sizes and offsets at 0 and know nothing of
//! symbol visibility; both come from the symbol table. Places of configuration
//! values come from the layout of their map.

use object::read::elf::{FileHeader, SectionHeader, Sym};
use object::{NativeEndian, elf};

use crate::btf::encode::{BtfBuilder, BtfFeatures, ObjectFacts, VarFact};
use crate::btf::{Kind, Linkage};
use crate::error::ObjectError;
use crate::externs::{self, ExternKind};
use crate::object::{Object, SHARING};
use crate::sort::sort;

const E: NativeEndian = NativeEndian;

/// Sizes of sections and places of variables, sorted by name.
#[derive(Default)]
struct Facts<'o> {
    sections: Vec<(&'o str, u32)>,
    variables: Vec<(&'o str, VarFact)>,
}

impl ObjectFacts for Facts<'_> {
    fn section_size(&self, section: &str) -> Option<u32> {
        let at = self
            .sections
            .binary_search_by_key(&section, |(name, _)| name)
            .ok()?;
        Some(self.sections.get(at)?.1)
    }

    fn variable(&self, _section: &str, name: &str) -> Option<VarFact> {
        let at = self
            .variables
            .binary_search_by_key(&name, |(name, _)| name)
            .ok()?;
        Some(self.variables.get(at)?.1)
    }
}

impl Object {
    /// The object's BTF, completed for `BPF_BTF_LOAD` and rewritten to what a
    /// kernel with `features` understands (by the feature `old-kernels`);
    /// `None` if the object has no BTF.
    ///
    /// # Errors
    /// [`ObjectError::Btf`] if a data section in BTF has no counterpart in the
    /// object.
    pub fn btf_for_kernel(&self, features: BtfFeatures) -> Result<Option<Vec<u8>>, ObjectError> {
        let Some(btf) = self.btf() else {
            return Ok(None);
        };
        let fault = |source| ObjectError::Btf {
            section: ".BTF",
            source,
        };
        let mut builder = BtfBuilder::copy_of(&btf);
        builder.fill_datasecs(&self.facts()).map_err(fault)?;
        builder.fill_ksyms();
        builder.fill_externs();
        let hidden = self.functions.iter().filter(|f| f.hidden);
        let mut hidden: Vec<_> = hidden.map(|f| f.name.as_bytes()).collect();
        if !hidden.is_empty() {
            sort(&mut hidden, |a, b| a < b);
            for (id, ty) in btf.types() {
                if ty.kind() == Kind::FUNC
                    && hidden.binary_search(&btf.name_bytes(ty.name_off())).is_ok()
                {
                    builder.set_linkage(id, Linkage::STATIC);
                }
            }
        }
        if cfg!(feature = "old-kernels") {
            builder.sanitize(features);
        }
        builder.to_bytes().map(Some).map_err(fault)
    }

    fn facts(&self) -> Facts<'_> {
        // The file was parsed once without complaint, so what cannot be read
        // here is not there.
        self.read_facts().unwrap_or_default()
    }

    fn read_facts(&self) -> Option<Facts<'_>> {
        let data = self.bytes().as_slice();
        let header = elf::FileHeader64::<NativeEndian>::parse(data).ok()?;
        let sections = header.sections(E, data).ok()?;
        let symbols = sections.symbols(E, data, elf::SHT_SYMTAB).ok()?;
        let mut facts = Facts::default();
        // See `Parser::charge`.
        let mut left = data.len().saturating_mul(SHARING);
        for section in sections.iter() {
            // Data sections are part of the program; relocations, symbols and
            // BTF itself are not.
            if section.sh_flags(E) & u64::from(elf::SHF_ALLOC) == 0 {
                continue;
            }
            let name = sections.section_name(E, section).ok()?;
            if let (Ok(name), Ok(size)) =
                (std::str::from_utf8(name), u32::try_from(section.sh_size(E)))
            {
                facts.sections.push((name, size));
            }
        }
        for symbol in symbols.iter() {
            if symbol.st_bind() == elf::STB_LOCAL || symbol.st_type() != elf::STT_OBJECT {
                continue;
            }
            let name = symbols.symbol_name(E, symbol).ok()?;
            left = left.checked_sub(name.len())?;
            if let (Ok(name), Ok(offset)) =
                (std::str::from_utf8(name), u32::try_from(symbol.st_value(E)))
            {
                let hidden = matches!(symbol.st_visibility(), elf::STV_HIDDEN | elf::STV_INTERNAL);
                facts.variables.push((name, VarFact { offset, hidden }));
            }
        }
        if let Some(map) = self.config_map().and_then(|at| self.maps().get(at)) {
            facts.sections.push((externs::KCONFIG, map.value_size));
            for symbol in self.externs() {
                if let ExternKind::Config { offset, .. } = symbol.kind {
                    let fact = VarFact {
                        offset,
                        hidden: false,
                    };
                    facts.variables.push((&symbol.name, fact));
                }
            }
        }
        sort(&mut facts.sections, |a, b| a < b);
        sort(&mut facts.variables, |a, b| a.0 < b.0);
        Some(facts)
    }
}
