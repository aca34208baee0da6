//! Symbols without a declaration: numbers of the loader's choice.

use super::ExternKind;
use crate::error::ObjectError;
use crate::object::{Object, Target};

/// A number for a symbol in some programs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Constant {
    /// Index into the externs.
    symbol: u32,
    /// The program's function; `None` for all programs.
    program: Option<u32>,
    value: u64,
}

impl Object {
    /// Gives a number to a symbol that the object loads and nothing declares
    /// ([`ExternKind::Constant`]), in the named programs and the subprograms
    /// they use, or in all of them if `programs` is empty. The last number
    /// given counts.
    ///
    /// # Errors
    /// [`ObjectError::NoSuchProgram`]; [`ObjectError::Symbol`] if one of the
    /// programs (or, without any named, the whole object) does not use the
    /// symbol, or if it is no constant. Nothing is changed then.
    pub fn set_symbol_constant(
        &mut self,
        symbol: &str,
        value: u64,
        programs: &[&str],
    ) -> Result<(), ObjectError> {
        let fault = |what: String| ObjectError::Symbol {
            symbol: symbol.to_owned(),
            what,
        };
        let Some(index) = self.externs().iter().position(|e| e.name == symbol) else {
            return Err(fault("nothing in the object refers to it".to_owned()));
        };
        if self.externs()[index].kind != ExternKind::Constant {
            return Err(fault("it is declared, so it is no constant".to_owned()));
        }
        let mut constants = Vec::with_capacity(programs.len().max(1));
        for name in programs {
            let Some(program) = self.program(name) else {
                return Err(ObjectError::NoSuchProgram {
                    name: (*name).to_owned(),
                });
            };
            if !self.uses(program.function, Target::Extern(index as u32)) {
                return Err(fault(format!("program {name} does not refer to it")));
            }
            constants.push(Constant {
                symbol: index as u32,
                program: Some(program.function),
                value,
            });
        }
        if programs.is_empty() {
            constants.push(Constant {
                symbol: index as u32,
                program: None,
                value,
            });
        }
        self.constants.append(&mut constants);
        Ok(())
    }

    /// True if a program, or a subprogram that it uses, refers to a symbol
    /// that the object does not define.
    pub fn refers_to(&self, program: &str, symbol: &str) -> bool {
        let index = self.externs().iter().position(|e| e.name == symbol);
        match (index, self.program(program)) {
            (Some(index), Some(program)) => {
                self.uses(program.function, Target::Extern(index as u32))
            }
            _ => false,
        }
    }

    /// The number for a constant in a program.
    pub(crate) fn constant(&self, symbol: u32, program: u32) -> Option<u64> {
        let fits = |c: &&Constant| c.symbol == symbol && c.program.is_none_or(|p| p == program);
        Some(self.constants.iter().rev().find(fits)?.value)
    }
}
