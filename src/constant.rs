//! Constants: values that are put into programs before they are loaded.

use std::fmt;
use std::sync::Arc;

use ebpf_manager_bpf::elf::edit::Patcher;
use ebpf_manager_bpf::elf::{ExternKind, ProgramSpec};
use ebpf_manager_bpf::{Pod, pod};

use crate::error::ManagerError;
use crate::wiring::Draft;

/// A value that is put into programs before they are loaded.
///
/// What it names has to be in the object, unless it says
/// [`Constant::if_present`].
///
/// ```
/// use ebpf_manager::{Constant, Manager};
///
/// let builder = Manager::builder()
///     // const volatile __u32 min_uid;
///     .edit(Constant::global("min_uid", 1000_u32))
///     // asm("%0 = sampling_rate ll" : "=r"(rate)), in one program only.
///     .edit(Constant::symbol("sampling_rate", 100).only_for("on_packet").if_present());
/// # let _ = builder;
/// ```
#[derive(Clone)]
pub struct Constant {
    name: String,
    value: Value,
    required: bool,
    everywhere: bool,
    programs: Vec<String>,
}

type ComputeBytes = dyn Fn() -> Vec<u8> + Send + Sync;
type ComputeNumber = dyn Fn(&ProgramSpec) -> u64 + Send + Sync;

#[derive(Clone)]
enum Value {
    Global(Arc<ComputeBytes>),
    Symbol(Arc<ComputeNumber>),
}

impl fmt::Debug for Constant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Constant")
            .field("name", &self.name)
            .field("programs", &self.programs)
            .finish_non_exhaustive()
    }
}

impl Constant {
    fn new(name: String, value: Value) -> Constant {
        Constant {
            name,
            value,
            required: true,
            everywhere: false,
            programs: Vec::new(),
        }
    }

    /// A global variable, usually a `const volatile` one; `value` has its size.
    /// For all programs, or for copies of a program
    /// ([`Probe::copied`](crate::Probe::copied)).
    pub fn global(name: impl Into<String>, value: impl Pod) -> Constant {
        let bytes = pod::bytes_of(&value).to_vec();
        Constant::new(name.into(), Value::Global(Arc::new(move || bytes.clone())))
    }

    /// As [`Constant::global`], with the bytes of the value in this machine's
    /// order.
    pub fn global_bytes(name: impl Into<String>, value: impl Into<Vec<u8>>) -> Constant {
        let value = value.into();
        Constant::new(name.into(), Value::Global(Arc::new(move || value.clone())))
    }

    /// As [`Constant::global`], with a value that is asked for at each load.
    pub fn global_with<T: Pod>(
        name: impl Into<String>,
        value: impl Fn() -> T + Send + Sync + 'static,
    ) -> Constant {
        let bytes = move || pod::bytes_of(&value()).to_vec();
        Constant::new(name.into(), Value::Global(Arc::new(bytes)))
    }

    /// A symbol that nothing defines and that programs load as a number of 64
    /// bits: `asm("%0 = NAME ll" : "=r"(x))`.
    pub fn symbol(name: impl Into<String>, value: u64) -> Constant {
        Constant::symbol_with(name, move |_| value)
    }

    /// As [`Constant::symbol`], with a value that is asked for at each load,
    /// for each program that uses the symbol.
    pub fn symbol_with(
        name: impl Into<String>,
        value: impl Fn(&ProgramSpec) -> u64 + Send + Sync + 'static,
    ) -> Constant {
        Constant::new(name.into(), Value::Symbol(Arc::new(value)))
    }

    /// Only for the program of this C function, or for the copy of this name.
    /// May be said several times. Excluded functions do not count; if all are,
    /// neither does the constant.
    #[must_use]
    pub fn only_for(mut self, program: impl Into<String>) -> Constant {
        self.programs.push(program.into());
        self
    }

    /// It may be missing in the object, or in the programs it is for.
    #[must_use]
    pub fn if_present(mut self) -> Constant {
        self.required = false;
        self
    }

    /// For a symbol: every program of the object has to use it.
    #[must_use]
    pub fn in_every_program(mut self) -> Constant {
        self.everywhere = true;
        self
    }

    /// The variable or symbol.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Puts the value into the object.
    pub(crate) fn apply(&self, draft: &mut Draft) -> Result<(), ManagerError> {
        let left = |name: &&String| !draft.excluded.contains(name);
        let programs: Vec<String> = self.programs.iter().filter(left).cloned().collect();
        if programs.is_empty() && !self.programs.is_empty() {
            return Ok(());
        }
        match &self.value {
            Value::Global(value) => self.apply_global(draft, &programs, &value()),
            Value::Symbol(value) => self.apply_symbol(draft, &programs, value),
        }
    }

    fn missing(&self, kind: &'static str) -> Result<(), ManagerError> {
        if !self.required {
            return Ok(());
        }
        let name = self.name.clone();
        Err(ManagerError::NoSuch { kind, name })
    }

    fn apply_global(
        &self,
        draft: &mut Draft,
        programs: &[String],
        value: &[u8],
    ) -> Result<(), ManagerError> {
        if draft.object.variable(&self.name).is_none() {
            return self.missing("variable");
        }
        if programs.is_empty() {
            return draft
                .object
                .set_variable(&self.name, value)
                .map_err(ManagerError::Constant);
        }
        for program in programs {
            let mut copies = draft.options.copies.iter_mut();
            // The programs of an object share its variables.
            let Some(copy) = copies.find(|copy| copy.name == *program) else {
                return Err(ManagerError::NotCopied {
                    variable: self.name.clone(),
                    program: program.clone(),
                });
            };
            copy.variables.push((self.name.clone(), value.to_vec()));
        }
        Ok(())
    }

    fn apply_symbol(
        &self,
        draft: &mut Draft,
        programs: &[String],
        value: &Arc<ComputeNumber>,
    ) -> Result<(), ManagerError> {
        let symbol = draft.object.externs().iter().find(|e| e.name == self.name);
        let Some(symbol) = symbol else {
            return self.missing("symbol");
        };
        draft.place_numbers = Some(place_numbers);
        // What is no constant is a mistake, wanted or not.
        let is_constant = symbol.kind == ExternKind::Constant;
        let names = match programs {
            [] => draft.program_names(),
            named => named.to_vec(),
        };
        let strict = self.required && (self.everywhere || !programs.is_empty());
        let before = draft.numbers.len();
        for program in names {
            let function = draft.function_of(&program).to_owned();
            let Some(spec) = draft.object.program(&function) else {
                let (kind, name) = ("program", program);
                return Err(ManagerError::NoSuch { kind, name });
            };
            if is_constant && draft.object.refers_to(&function, &self.name) {
                draft.numbers.push(Number {
                    symbol: self.name.clone(),
                    value: value(spec),
                    program,
                });
            } else if !is_constant || strict && !draft.excluded.contains(&function) {
                let refused = draft
                    .object
                    .set_symbol_constant(&self.name, 0, &[&function]);
                return refused.map_err(ManagerError::Constant);
            }
        }
        if draft.numbers.len() == before {
            return self.missing("symbol");
        }
        Ok(())
    }
}

/// A symbol's number in one program.
pub(crate) struct Number {
    symbol: String,
    value: u64,
    program: String,
}

/// Puts numbers where their symbols are. A copy has the instructions of its
/// function, numbers included: with copies they are put into each program when
/// it is loaded.
pub(crate) fn place_numbers(draft: &mut Draft) -> Result<(), ManagerError> {
    if draft.options.copies.is_empty() {
        return draft.set_numbers();
    }
    let mut numbers: Vec<(String, String, u64)> = Vec::new();
    for number in &draft.numbers {
        numbers
            .retain(|(program, symbol, _)| *program != number.program || *symbol != number.symbol);
        numbers.push((number.program.clone(), number.symbol.clone(), number.value));
    }
    let patcher = Patcher::new(move |spec, editor| {
        for (program, symbol, value) in &numbers {
            if *program == spec.name {
                editor.set_constant(symbol, *value)?;
            }
        }
        Ok(())
    });
    draft.options.patchers.insert(0, patcher);
    Ok(())
}

impl Draft {
    /// The names of all programs and copies.
    fn program_names(&self) -> Vec<String> {
        let programs = self.object.programs().iter().map(|p| p.name.clone());
        let copies = self.options.copies.iter().map(|c| c.name.clone());
        programs.chain(copies).collect()
    }

    /// The function that a program of this name has.
    fn function_of<'n>(&'n self, name: &'n str) -> &'n str {
        let mut copies = self.options.copies.iter();
        copies
            .find(|copy| copy.name == name)
            .map_or(name, |copy| &copy.program)
    }

    /// Puts numbers into the object, for the programs of their functions.
    pub(crate) fn set_numbers(&mut self) -> Result<(), ManagerError> {
        for number in &self.numbers {
            let (symbol, program) = (&number.symbol, number.program.as_str());
            if self.object.program(program).is_some() {
                self.object
                    .set_symbol_constant(symbol, number.value, &[program])
                    .map_err(ManagerError::Constant)?;
            }
        }
        Ok(())
    }
}
