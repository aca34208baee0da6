//! Making an object's BTF acceptable: filling what only the linked object
//! knows, and rewriting what an older kernel would refuse.

use bitflags::bitflags;

use super::BtfBuilder;
use crate::btf::TYPE_HEADER_SIZE;
use crate::btf::parse::{BtfError, BtfProblem, HEADER_SIZE};
use crate::btf::types::{Kind, Linkage, SecVar, TypeId};
use crate::cursor::words_at;
use crate::sort::sort;

bitflags! {
    /// What a kernel's BTF loader understands.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
    pub struct BtfFeatures: u32 {
        /// `FUNC` and `FUNC_PROTO`. Linux 5.0.
        const FUNC = 1 << 0;
        /// Linkage of functions. Linux 5.6.
        const FUNC_GLOBAL = 1 << 1;
        /// `VAR` and `DATASEC`. Linux 5.2.
        const DATASEC = 1 << 2;
        /// `FLOAT`. Linux 5.13.
        const FLOAT = 1 << 3;
        /// `DECL_TAG`. Linux 5.16.
        const DECL_TAG = 1 << 4;
        /// `TYPE_TAG`. Linux 5.17.
        const TYPE_TAG = 1 << 5;
        /// `ENUM64`, and signedness of `ENUM`. Linux 6.0.
        const ENUM64 = 1 << 6;
        /// Data sections whose name has more in it than letters, digits,
        /// underscores and dots: `?.struct_ops`, `maps/events`. Linux 6.9.
        const QMARK_DATASEC = 1 << 7;
    }
}

/// Bytes of the longest name before Linux 6.1. New names may not share text as
/// those do that they replace, so none is longer.
const MAX_OLD_NAME: usize = 127;

/// What the object's symbol table says about a variable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VarFact {
    /// Offset in its section, in bytes.
    pub offset: u32,
    /// Hidden or internal visibility: counts as static from here on.
    pub hidden: bool,
}

/// What the object's section and symbol tables say, asked by
/// [`BtfBuilder::fill_datasecs`].
pub trait ObjectFacts {
    /// Size of the named section in bytes.
    fn section_size(&self, section: &str) -> Option<u32>;
    /// A global variable of that section.
    fn variable(&self, section: &str, name: &str) -> Option<VarFact>;
}

impl BtfBuilder {
    fn sec_var(&self, id: TypeId, nth: u32) -> Option<SecVar> {
        let at = self.offset(id)? + TYPE_HEADER_SIZE + nth as usize * 12;
        let [type_id, offset, size] = words_at(&self.types, at)?;
        Some(SecVar {
            type_id,
            offset,
            size,
        })
    }

    fn set_sec_var(&mut self, id: TypeId, nth: u32, var: SecVar) {
        let first = 3 + nth as usize * 3;
        self.set_word(id, first, var.type_id);
        self.set_word(id, first + 1, var.offset);
        self.set_word(id, first + 2, var.size);
    }

    /// Fills in what compilers leave at 0: sizes of data sections and offsets
    /// of their global variables. Marks hidden variables static, and puts
    /// every section's entries into the order of their offsets, as the kernel
    /// wants them.
    ///
    /// Variables that another object defines (`extern` maps), which the kernel
    /// refuses, become global ones at the end of their section.
    ///
    /// `.ksyms` has no place in the object; see [`BtfBuilder::fill_ksyms`].
    /// `.kconfig` has none either: the caller lays it out and answers for it
    /// like for a section, and its variables become global ones. Left alone if
    /// `facts` does not know the section.
    ///
    /// # Errors
    /// [`BtfProblem::MissingSection`] or [`BtfProblem::MissingVariable`] with
    /// the id of the data section, if `facts` has no answer.
    pub fn fill_datasecs(&mut self, facts: &dyn ObjectFacts) -> Result<(), BtfError> {
        for id in self.ids_of(Kind::DATASEC) {
            let section = self.name(id).to_owned();
            if section != ".ksyms" {
                self.fill_datasec(id, &section, facts)?;
            }
            self.sort_datasec(id);
        }
        Ok(())
    }

    fn fill_datasec(
        &mut self,
        id: TypeId,
        section: &str,
        facts: &dyn ObjectFacts,
    ) -> Result<(), BtfError> {
        let kconfig = section == ".kconfig";
        let linked = self.word(id, 2) != Some(0);
        let mut end = match self.word(id, 2) {
            Some(0) | None => match facts.section_size(section) {
                Some(size) => size,
                None if kconfig => return Ok(()),
                None if self.is_external(id) => 0,
                None => return Err(self.edit_error(BtfProblem::MissingSection, id)),
            },
            Some(size) => size,
        };
        for nth in 0..self.vlen(id) {
            let Some(mut entry) = self.sec_var(id, nth) else {
                break;
            };
            let var = entry.type_id;
            if self.kind(var) != Kind::VAR {
                return Err(self.edit_error(BtfProblem::TypeId, id));
            }
            let linkage = self.word(var, 3).map(Linkage);
            if linkage == Some(Linkage::EXTERN) && !kconfig {
                entry.offset = end.saturating_add(7) & !7;
                end = entry.offset.saturating_add(entry.size);
                self.set_sec_var(id, nth, entry);
                self.set_linkage(var, Linkage::GLOBAL);
                continue;
            }
            if linkage != Some(Linkage::GLOBAL) && !kconfig {
                continue;
            }
            let Some(fact) = facts.variable(section, self.name(var)) else {
                return Err(self.edit_error(BtfProblem::MissingVariable, id));
            };
            if !linked {
                entry.offset = fact.offset;
                self.set_sec_var(id, nth, entry);
            }
            if fact.hidden {
                self.set_linkage(var, Linkage::STATIC);
            } else if kconfig {
                self.set_linkage(var, Linkage::GLOBAL);
            }
        }
        self.set_word(id, 2, end);
        Ok(())
    }

    /// Whether another object defines all that a data section declares.
    fn is_external(&self, id: TypeId) -> bool {
        let external = |nth| {
            let var = self.sec_var(id, nth).map(|entry| entry.type_id);
            var.and_then(|var| self.word(var, 3)) == Some(Linkage::EXTERN.0)
        };
        self.vlen(id) != 0 && (0..self.vlen(id)).all(external)
    }

    fn sort_datasec(&mut self, id: TypeId) {
        let mut vars: Vec<SecVar> = (0..self.vlen(id))
            .map_while(|nth| self.sec_var(id, nth))
            .collect();
        if vars.is_sorted_by_key(|var| var.offset) {
            return;
        }
        // Empty variables share the offset of the next one.
        sort(&mut vars, |a, b| (a.offset, a.size) < (b.offset, b.size));
        for (nth, var) in (0..).zip(vars) {
            self.set_sec_var(id, nth, var);
        }
    }

    /// Makes a `.ksyms` section loadable: the kernel refuses external
    /// variables in data sections, so each becomes a defined 4-byte integer
    /// and each external function gives its place to a placeholder. The
    /// functions themselves become global, and unnamed parameters of theirs
    /// get a name, which the kernel wants.
    pub fn fill_ksyms(&mut self) {
        let Some(section) = self
            .ids_of(Kind::DATASEC)
            .into_iter()
            .find(|&id| self.name(id) == ".ksyms")
        else {
            return;
        };
        let int = self
            .ids_of(Kind::INT)
            .into_iter()
            // An ordinary 32-bit integer.
            .find(|&id| {
                self.word(id, 2) == Some(4) && self.word(id, 3).is_some_and(|w| w & 0xff_ffff == 32)
            })
            .unwrap_or_else(|| self.add_int("int", 4, true));
        let mut placeholder = None;
        let mut offset = 0_u32;
        for nth in 0..self.vlen(section) {
            let Some(mut entry) = self.sec_var(section, nth) else {
                break;
            };
            let symbol = entry.type_id;
            if self.kind(symbol) == Kind::FUNC {
                let var = *placeholder
                    .get_or_insert_with(|| self.add_var("ksym_placeholder", int, Linkage::GLOBAL));
                let proto = self.word(symbol, 2).unwrap_or_default();
                if self.kind(proto) == Kind::FUNC_PROTO {
                    self.name_unnamed(proto, self.word(var, 0).unwrap_or_default());
                }
                self.set_linkage(symbol, Linkage::GLOBAL);
                entry.type_id = var;
            } else {
                self.set_linkage(symbol, Linkage::GLOBAL);
                self.set_word(symbol, 2, int);
            }
            entry.offset = offset;
            entry.size = 4;
            self.set_sec_var(section, nth, entry);
            offset = offset.saturating_add(4);
        }
        self.set_word(section, 2, offset);
    }

    /// Makes functions of other objects that nothing defines loadable: the
    /// kernel refuses external ones and unnamed parameters. Whether one is
    /// called is seen elsewhere.
    pub fn fill_externs(&mut self) {
        for id in self.ids_of(Kind::FUNC) {
            if self.vlen(id) == Linkage::EXTERN.0 {
                let proto = self.word(id, 2).unwrap_or_default();
                if self.kind(proto) == Kind::FUNC_PROTO {
                    self.name_unnamed(proto, self.word(id, 0).unwrap_or_default());
                }
                self.set_linkage(id, Linkage::GLOBAL);
            }
        }
    }

    /// Gives every unnamed, typed parameter of `proto` a name.
    fn name_unnamed(&mut self, proto: TypeId, name_off: u32) {
        for nth in 0..self.vlen(proto) as usize {
            let (name, ty) = (self.word(proto, 3 + nth * 2), self.word(proto, 4 + nth * 2));
            if name == Some(0) && ty != Some(0) {
                self.set_word(proto, 3 + nth * 2, name_off);
            }
        }
    }

    /// Rewrites what a kernel with these features would refuse into something
    /// it accepts that is as large. Ids stay; names of sections may change.
    pub fn sanitize(&mut self, supported: BtfFeatures) {
        let has = |feature| supported.contains(feature);
        if supported.is_all() {
            return;
        }
        let mut enum64_member = None;
        // Types appended on the way are of kinds every kernel has.
        for id in self.first_id..self.end_id() {
            match self.kind(id) {
                Kind::VAR if !has(BtfFeatures::DATASEC) => self.make_byte(id),
                // Tags may be on variables, which went.
                Kind::DECL_TAG if !has(BtfFeatures::DECL_TAG | BtfFeatures::DATASEC) => {
                    self.make_byte(id);
                }
                Kind::DATASEC if !has(BtfFeatures::DATASEC) => self.make_struct(id),
                Kind::DATASEC if !has(BtfFeatures::QMARK_DATASEC) => self.rename(id, b"."),
                Kind::FUNC_PROTO if !has(BtfFeatures::FUNC) => {
                    // Parameters lie in memory as enumerators do, but those
                    // need names.
                    let name = self.add_string(b"parameter");
                    for nth in 0..self.vlen(id) as usize {
                        if self.word(id, 3 + nth * 2) == Some(0) {
                            self.set_word(id, 3 + nth * 2, name);
                        }
                    }
                    self.set_info(id, Kind::ENUM, self.vlen(id));
                    self.set_word(id, 2, 4);
                }
                Kind::FUNC if !has(BtfFeatures::FUNC) => self.set_info(id, Kind::TYPEDEF, 0),
                Kind::FUNC if !has(BtfFeatures::FUNC_GLOBAL) => self.set_info(id, Kind::FUNC, 0),
                Kind::FLOAT if !has(BtfFeatures::FLOAT) => {
                    // `float` is no name for a struct.
                    self.set_word(id, 0, 0);
                    self.set_info(id, Kind::STRUCT, 0);
                }
                Kind::TYPE_TAG if !has(BtfFeatures::TYPE_TAG) => {
                    self.set_word(id, 0, 0);
                    self.set_info(id, Kind::CONST, 0);
                }
                Kind::ENUM if !has(BtfFeatures::ENUM64) => {
                    self.set_info(id, Kind::ENUM, self.vlen(id));
                }
                Kind::ENUM64 if !has(BtfFeatures::ENUM64) => {
                    let member = *enum64_member
                        .get_or_insert_with(|| self.add_int("enum64_value", 1, false));
                    // Enumerators and members have three words and begin
                    // with a name.
                    for nth in 0..self.vlen(id) as usize {
                        self.set_word(id, 4 + nth * 3, member);
                        self.set_word(id, 5 + nth * 3, 0);
                    }
                    self.set_info(id, Kind::UNION, self.vlen(id));
                }
                _ => {}
            }
        }
    }

    /// Rewrites a type with one word of data into a one-byte integer: small
    /// enough for whatever it stood for.
    fn make_byte(&mut self, id: TypeId) {
        self.set_info(id, Kind::INT, 0);
        self.set_word(id, 2, 1);
        self.set_word(id, 3, 8);
    }

    /// Rewrites a `DATASEC` into a struct whose members are its variables.
    fn make_struct(&mut self, id: TypeId) {
        self.rename(id, b"");
        for nth in 0..self.vlen(id) {
            let Some(var) = self.sec_var(id, nth) else {
                break;
            };
            let name = self.word(var.type_id, 0).unwrap_or_default();
            let first = 3 + nth as usize * 3;
            self.set_word(id, first, name);
            self.set_word(id, first + 1, var.type_id);
            self.set_word(id, first + 2, var.offset.saturating_mul(8));
        }
        self.set_info(id, Kind::STRUCT, self.vlen(id));
    }

    /// Makes a name an identifier that may have the characters of `also` in it.
    fn rename(&mut self, id: TypeId, also: &[u8]) {
        let old = self.name_bytes(id);
        let good = |at: usize, byte: u8| {
            byte == b'_'
                || also.contains(&byte)
                || byte.is_ascii_alphabetic()
                || at > 0 && byte.is_ascii_digit()
        };
        let new: Vec<u8> = (0..)
            .zip(old)
            .take(MAX_OLD_NAME)
            .map(|(at, &byte)| if good(at, byte) { byte } else { b'_' })
            .collect();
        if new != old {
            let name = self.add_string(&new);
            self.set_word(id, 0, name);
        }
    }

    #[cold]
    fn edit_error(&self, what: BtfProblem, id: TypeId) -> BtfError {
        BtfError::new(what, HEADER_SIZE + self.offset(id).unwrap_or_default(), id)
    }
}
