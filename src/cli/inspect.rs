//! `ebpf-manager inspect`: what an object file declares, without privileges.

use std::io::{self, Write};
use std::path::Path;

use ebpf_manager::bpf::open_object;
use ebpf_manager::elf::core_relo::{ReloKind, describe};
use ebpf_manager::elf::{
    ExternKind, LinkedProgram, MapSpec, Object, ObjectError, Pinning, ProgramSpec, Slot,
};

use super::format::json_string;

/// Prints the object at `path`, as tables or as one JSON object.
pub(crate) fn run(path: &Path, json: bool) -> Result<(), String> {
    let object = open_object(path).map_err(|err| err.to_string())?;
    let facts = Facts::of(&object).map_err(|err| format!("{}: {err}", path.display()))?;
    let mut out = Vec::new();
    if json {
        facts.json(&mut out);
    } else {
        facts.text(&mut out);
    }
    let mut stdout = io::stdout().lock();
    match stdout.write_all(&out).and_then(|()| stdout.flush()) {
        Err(err) if err.kind() != io::ErrorKind::BrokenPipe => Err(format!("write: {err}")),
        _ => Ok(()),
    }
}

/// What is printed, gathered from the object.
struct Facts<'o> {
    object: &'o Object,
    damage: Option<ObjectError>,
    programs: Vec<Program<'o>>,
}

struct Program<'o> {
    spec: &'o ProgramSpec,
    /// Instructions with all subprograms.
    linked_insns: usize,
    core: Vec<Core>,
}

struct Core {
    insn: u32,
    kind: ReloKind,
    what: Box<str>,
}

impl<'o> Facts<'o> {
    fn of(object: &'o Object) -> Result<Facts<'o>, ObjectError> {
        let linker = object.linker()?;
        let mut linked = LinkedProgram::default();
        let mut programs = Vec::new();
        for spec in object.programs() {
            linker.link(spec, &mut linked)?;
            let core = linked.core_relos.iter().filter_map(|relo| {
                Some(Core {
                    insn: relo.insn,
                    kind: ReloKind(relo.record.kind),
                    what: describe(linker.btf()?, &relo.record),
                })
            });
            programs.push(Program {
                spec,
                core: core.collect(),
                linked_insns: linked.insns.len(),
            });
        }
        Ok(Facts {
            object,
            damage: object.btf_damage(),
            programs,
        })
    }

    fn text(&self, out: &mut Vec<u8>) {
        let mut about = Table::new(&["LICENCE", "BTF", "KERNEL VERSION"]);
        about.row(vec![
            self.object.license().unwrap_or("none").to_owned(),
            yes_no(self.object.btf().is_some()),
            self.object
                .kernel_version()
                .map_or("-".to_owned(), |v| format!("{v:#x}")),
        ]);
        about.print(out);

        let mut table = Table::new(&["LEFT OUT"]);
        if let Some(damage) = &self.damage {
            table.row(vec![damage.to_string()]);
        }
        table.print(out);

        let mut table = Table::new(&[
            "PROGRAM",
            "SECTION",
            "TYPE",
            "ATTACH TYPE",
            "TARGET",
            "FLAGS",
            "LOADED",
            "INSNS",
            "LINKED",
            "CO-RE",
        ]);
        for program in &self.programs {
            let spec = program.spec;
            table.row(vec![
                spec.name.clone(),
                spec.section.clone(),
                spec.program_type.to_string(),
                spec.attach_type.map_or("-".to_owned(), |t| t.to_string()),
                spec.target.clone().unwrap_or_else(|| "-".to_owned()),
                format!("{:#x}", spec.flags.bits()),
                yes_no(spec.autoload),
                spec.insn_count.to_string(),
                program.linked_insns.to_string(),
                program.core.len().to_string(),
            ]);
        }
        table.print(out);

        let mut table = Table::new(&[
            "MAP",
            "TYPE",
            "KEY",
            "VALUE",
            "MAX ENTRIES",
            "FLAGS",
            "PINNING",
            "CREATED",
            "INNER",
        ]);
        for map in self.object.maps() {
            table.row(vec![
                map.name.clone(),
                map.map_type.to_string(),
                map.key_size.to_string(),
                map.value_size.to_string(),
                map.max_entries.to_string(),
                format!("{:#x}", map.flags.bits()),
                pinning(map),
                yes_no(!map.skip && !map.external),
                map.inner
                    .as_ref()
                    .map_or("-".to_owned(), |i| i.map_type.to_string()),
            ]);
        }
        table.print(out);

        let mut table = Table::new(&["MAP", "SLOT", "HOLDS"]);
        for map in self.object.maps() {
            for (key, slot) in &map.slots {
                let (Slot::Map(held) | Slot::Program(held)) = slot;
                table.row(vec![map.name.clone(), key.to_string(), held.clone()]);
            }
            for operation in map.operations.iter().flat_map(|o| &o.programs) {
                let (member, held) = (operation.member.clone(), operation.program.clone());
                table.row(vec![map.name.clone(), member, held]);
            }
        }
        table.print(out);

        let mut table = Table::new(&["VARIABLE", "SECTION", "OFFSET", "SIZE", "CONSTANT"]);
        for variable in self.object.variables() {
            let Some(map) = self.object.maps().get(variable.map as usize) else {
                continue;
            };
            table.row(vec![
                variable.name.clone(),
                map.name.clone(),
                variable.offset.to_string(),
                variable.size.to_string(),
                yes_no(map.freeze),
            ]);
        }
        table.print(out);

        let mut table = Table::new(&["EXTERN", "KIND", "WEAK"]);
        for symbol in self.object.externs() {
            let kind = extern_kind(symbol.kind).to_owned();
            table.row(vec![symbol.name.clone(), kind, yes_no(symbol.weak)]);
        }
        table.print(out);

        let mut table = Table::new(&["PROGRAM", "INSN", "CO-RE RELOCATION", "OF"]);
        for program in &self.programs {
            for core in &program.core {
                table.row(vec![
                    program.spec.name.clone(),
                    core.insn.to_string(),
                    core.kind.name().to_owned(),
                    core.what.to_string(),
                ]);
            }
        }
        table.print(out);
    }

    fn json(&self, out: &mut Vec<u8>) {
        let object = self.object;
        let mut json = Json { out, first: true };
        json.open(None, b'{');
        json.optional("license", object.license());
        json.flag("btf", object.btf().is_some());
        if let Some(damage) = &self.damage {
            json.text("left_out", &damage.to_string());
        }
        if let Some(version) = object.kernel_version() {
            json.number("kernel_version", version.into());
        }
        json.list("programs", &self.programs, |json, program| {
            let spec = program.spec;
            json.text("name", &spec.name);
            json.text("section", &spec.section);
            json.text("type", &spec.program_type.to_string());
            json.optional(
                "attach_type",
                spec.attach_type.map(|t| t.to_string()).as_deref(),
            );
            json.optional("target", spec.target.as_deref());
            json.number("flags", spec.flags.bits().into());
            json.flag("autoload", spec.autoload);
            json.number("insns", spec.insn_count.into());
            json.number("linked_insns", program.linked_insns as u64);
            json.list("core_relocations", &program.core, |json, core| {
                json.number("insn", core.insn.into());
                json.text("kind", core.kind.name());
                json.text("of", &core.what);
            });
        });
        json.list("maps", object.maps(), map_json);
        json.list("variables", object.variables(), |json, variable| {
            let map = object.maps().get(variable.map as usize);
            json.text("name", &variable.name);
            json.optional("section", map.map(|m| m.name.as_str()));
            json.number("offset", variable.offset.into());
            json.number("size", variable.size.into());
            json.flag("constant", map.is_some_and(|m| m.freeze));
        });
        json.list("externs", object.externs(), |json, symbol| {
            json.text("name", &symbol.name);
            json.text("kind", extern_kind(symbol.kind));
            json.flag("weak", symbol.weak);
        });
        json.close(b'}');
        json.out.push(b'\n');
    }
}

fn map_json(json: &mut Json<'_>, map: &MapSpec) {
    json.text("name", &map.name);
    json.text("type", &map.map_type.to_string());
    json.number("key_size", map.key_size.into());
    json.number("value_size", map.value_size.into());
    json.number("max_entries", map.max_entries.into());
    json.number("flags", map.flags.bits().into());
    json.number("map_extra", map.map_extra);
    if let Some(node) = map.numa_node {
        json.number("numa_node", node.into());
    }
    json.text("pinning", &pinning(map));
    json.flag("extern", map.external);
    json.flag("created", !map.skip && !map.external);
    if let Some(inner) = &map.inner {
        json.open(Some("inner"), b'{');
        map_json(json, inner);
        json.close(b'}');
    }
    json.list("slots", &map.slots, |json, (key, slot)| {
        json.number("key", (*key).into());
        match slot {
            Slot::Map(name) => json.text("map", name),
            Slot::Program(name) => json.text("program", name),
        }
    });
    if let Some(operations) = &map.operations {
        json.text("structure", &operations.type_name);
        json.list("operations", &operations.programs, |json, operation| {
            json.text("member", &operation.member);
            json.text("program", &operation.program);
        });
    }
}

/// What an undefined symbol stands for.
fn extern_kind(kind: ExternKind) -> &'static str {
    match kind {
        ExternKind::Constant => "constant",
        ExternKind::Undefined => "undefined",
        ExternKind::Config { .. } => "kernel configuration",
        ExternKind::Address => "kernel address",
        ExternKind::Variable { .. } => "kernel variable",
        ExternKind::Function { .. } => "kernel function",
        _ => "unknown",
    }
}

fn yes_no(value: bool) -> String {
    if value { "yes" } else { "no" }.to_owned()
}

fn pinning(map: &MapSpec) -> String {
    match map.pinning {
        Pinning::None => "none".to_owned(),
        Pinning::ByName => "by-name".to_owned(),
        Pinning::Custom(value) => value.to_string(),
    }
}

/// Rows with aligned columns; prints nothing if there are none.
pub(super) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new(header: &[&str]) -> Table {
        Table {
            rows: vec![header.iter().map(|h| (*h).to_owned()).collect()],
        }
    }

    /// Adds a row. What an object chose to call things cannot disturb a
    /// terminal.
    pub(super) fn row(&mut self, cells: Vec<String>) {
        let clean = |cell: String| {
            if cell.is_empty() {
                return "-".to_owned();
            }
            if cell.chars().any(char::is_control) {
                cell.escape_debug().to_string()
            } else {
                cell
            }
        };
        self.rows.push(cells.into_iter().map(clean).collect());
    }

    pub(super) fn print(&self, out: &mut Vec<u8>) {
        let [header, rows @ ..] = self.rows.as_slice() else {
            return;
        };
        if rows.is_empty() {
            return;
        }
        if !out.is_empty() {
            out.push(b'\n');
        }
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..header.len()).map(width).collect();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(cell);
                line.extend(std::iter::repeat_n(' ', width - cell.chars().count() + 2));
            }
            out.extend_from_slice(line.trim_end().as_bytes());
            out.push(b'\n');
        }
    }
}

/// Writes JSON: commas, names and brackets.
pub(super) struct Json<'w> {
    pub(super) out: &'w mut Vec<u8>,
    /// True right after a bracket was opened.
    pub(super) first: bool,
}

impl Json<'_> {
    fn name(&mut self, name: Option<&str>) {
        if !std::mem::take(&mut self.first) {
            self.out.push(b',');
        }
        if let Some(name) = name {
            json_string(self.out, name.as_bytes());
            self.out.push(b':');
        }
    }

    pub(super) fn open(&mut self, name: Option<&str>, bracket: u8) {
        self.name(name);
        self.out.push(bracket);
        self.first = true;
    }

    pub(super) fn close(&mut self, bracket: u8) {
        self.out.push(bracket);
        self.first = false;
    }

    pub(super) fn text(&mut self, name: &str, value: &str) {
        self.name(Some(name));
        json_string(self.out, value.as_bytes());
    }

    pub(super) fn optional(&mut self, name: &str, value: Option<&str>) {
        match value {
            Some(value) => self.text(name, value),
            None => self.word(name, "null"),
        }
    }

    pub(super) fn flag(&mut self, name: &str, value: bool) {
        self.word(name, if value { "true" } else { "false" });
    }

    pub(super) fn number(&mut self, name: &str, value: u64) {
        self.word(name, &value.to_string());
    }

    fn word(&mut self, name: &str, value: &str) {
        self.name(Some(name));
        self.out.extend_from_slice(value.as_bytes());
    }

    /// A list of objects.
    pub(super) fn list<T>(&mut self, name: &str, items: &[T], mut each: impl FnMut(&mut Self, &T)) {
        self.open(Some(name), b'[');
        for item in items {
            self.open(None, b'{');
            each(self, item);
            self.close(b'}');
        }
        self.close(b']');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(name: &str, json: bool) -> String {
        let path = format!("{}/tests/programs/{name}", env!("CARGO_MANIFEST_DIR"));
        let object = open_object(path).unwrap();
        let facts = Facts::of(&object).unwrap();
        let mut out = Vec::new();
        if json {
            facts.json(&mut out);
        } else {
            facts.text(&mut out);
        }
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn tables_show_what_is_declared() {
        let text = printed("tailcall.bpf.o", false);
        let row = text.lines().find(|l| l.starts_with("jumps")).unwrap();
        assert!(row.contains("prog_array"), "{text}");
        let row = text
            .lines()
            .find(|l| l.starts_with("tailcall_entry"))
            .unwrap();
        assert!(row.contains("socket_filter"), "{text}");
        assert!(text.lines().all(|l| l == l.trim_end()));
        let trace = printed("trace.bpf.o", false);
        assert!(trace.contains("struct task_struct"), "{trace}");
        assert!(trace.contains("sched/sched_process_exec"), "{trace}");
    }

    #[test]
    fn what_is_left_out_is_said() {
        let path = format!(
            "{}/tests/programs/globals.bpf.o",
            env!("CARGO_MANIFEST_DIR")
        );
        let mut bytes = std::fs::read(path).unwrap();
        // The version in the header of `.BTF`.
        let start = [0x9f, 0xeb, 1, 0, 24, 0, 0, 0];
        let at = bytes.windows(8).position(|b| b == start).unwrap();
        bytes[at + 2] = 7;
        let object = Object::parse(bytes).unwrap();
        let facts = Facts::of(&object).unwrap();
        let (mut text, mut json) = (Vec::new(), Vec::new());
        facts.text(&mut text);
        facts.json(&mut json);
        let text = String::from_utf8(text).unwrap();
        let json = String::from_utf8(json).unwrap();
        let reason = object.btf_damage().unwrap().to_string();
        assert!(text.contains(&format!("\nLEFT OUT\n{reason}\n")), "{text}");
        assert!(json.contains(&format!(r#""btf":false,"left_out":"{reason}""#)));
    }

    #[test]
    fn json_is_balanced_and_names_everything() {
        for object in [
            "tailcall.bpf.o",
            "maps.bpf.o",
            "trace.bpf.o",
            "globals.bpf.o",
        ] {
            let json = printed(object, true);
            let count = |c: char| json.chars().filter(|x| *x == c).count();
            assert_eq!(count('{'), count('}'), "{json}");
            assert_eq!(count('['), count(']'), "{json}");
            for wrong in [",,", "{,", "[,", ",}", ",]", ":,"] {
                assert!(!json.contains(wrong), "{wrong} in {json}");
            }
        }
        let json = printed("tailcall.bpf.o", true);
        assert!(
            json.contains(r#""slots":[{"key":0,"program":"tailcall_first"}"#),
            "{json}"
        );
        let json = printed("maps.bpf.o", true);
        assert!(
            json.contains(r#""inner":{"name":"outer_hash.inner","type":"hash""#),
            "{json}"
        );
    }
}
