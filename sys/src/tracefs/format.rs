//! Format files: the fields of an event's record.

use std::ops::ControlFlow;

use crate::proc::whole_decimal;

/// Layout of an event's record.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct EventFormat {
    /// Name of the event.
    pub name: String,
    /// Id, as [`Tracefs::event_id`](super::Tracefs::event_id).
    pub id: u64,
    /// Fields in the order of the record, the four or so `common_` ones first.
    pub fields: Vec<EventField>,
}

/// One field of an event's record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EventField {
    /// Name.
    pub name: String,
    /// C type as the kernel prints it, an array's length at its end:
    /// `unsigned long`, `char[16]`.
    pub type_name: String,
    /// Bytes from the start of the record.
    pub offset: u32,
    /// Size in bytes; of the descriptor, not the data, unless inline.
    pub size: u32,
    /// Signed integer.
    pub signed: bool,
    /// Where the data are.
    pub data: DataLocation,
}

/// Where a field keeps its data.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DataLocation {
    /// In the field itself.
    Inline,
    /// `__data_loc`: the field is a `u32`, the length in its upper half and the
    /// offset from the start of the record in the lower one.
    Record,
    /// `__rel_loc`: the same, but counted from the end of the field. Linux 5.17.
    Field,
}

impl EventFormat {
    /// Parses the text of a `format` file. `None` unless it has a name, an id
    /// and only fields of the known form.
    pub fn parse(text: &[u8]) -> Option<EventFormat> {
        let mut parser = FormatParser::default();
        for line in text.split(|&b| b == b'\n') {
            if parser.line(line).is_break() {
                break;
            }
        }
        parser.finish()
    }

    /// The field of that name.
    pub fn field(&self, name: &str) -> Option<&EventField> {
        self.fields.iter().find(|field| field.name == name)
    }
}

#[derive(Default)]
pub(super) struct FormatParser {
    format: EventFormat,
    has_id: bool,
    bad: bool,
}

impl FormatParser {
    pub(super) fn line(&mut self, line: &[u8]) -> ControlFlow<()> {
        let line = line.trim_ascii();
        if let Some(name) = line.strip_prefix(b"name:") {
            self.format.name = String::from_utf8_lossy(name.trim_ascii()).into_owned();
        } else if let Some(id) = line.strip_prefix(b"ID:") {
            match whole_decimal(id) {
                Some(id) => (self.format.id, self.has_id) = (id, true),
                None => self.bad = true,
            }
        } else if let Some(field) = line.strip_prefix(b"field:") {
            match parse_field(field) {
                Some(field) => self.format.fields.push(field),
                None => self.bad = true,
            }
        } else if line.starts_with(b"print fmt:") {
            // The rest says how to print it and can be long.
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }

    pub(super) fn finish(self) -> Option<EventFormat> {
        let complete = self.has_id && !self.bad && !self.format.name.is_empty();
        complete.then_some(self.format)
    }
}

/// Parses `__data_loc char[] comm;<tab>offset:8;<tab>size:4;<tab>signed:1;`.
fn parse_field(text: &[u8]) -> Option<EventField> {
    let mut parts = text.split(|&b| b == b';').map(<[u8]>::trim_ascii);
    let declaration = str::from_utf8(parts.next()?).ok()?;
    let (mut offset, mut size, mut signed) = (None, None, false);
    for part in parts {
        if let Some(value) = part.strip_prefix(b"offset:") {
            offset = u32::try_from(whole_decimal(value)?).ok();
        } else if let Some(value) = part.strip_prefix(b"size:") {
            size = u32::try_from(whole_decimal(value)?).ok();
        } else if let Some(value) = part.strip_prefix(b"signed:") {
            signed = whole_decimal(value)? != 0;
        }
    }
    let (data, declaration) = if let Some(rest) = declaration.strip_prefix("__data_loc ") {
        (DataLocation::Record, rest)
    } else if let Some(rest) = declaration.strip_prefix("__rel_loc ") {
        (DataLocation::Field, rest)
    } else {
        (DataLocation::Inline, declaration)
    };
    // `char comm[16]`: the length belongs to the type.
    let bracket = match declaration.strip_suffix(']') {
        Some(_) => declaration.rfind('['),
        None => None,
    };
    let (front, array) = declaration.split_at_checked(bracket.unwrap_or(declaration.len()))?;
    let front = front.trim_ascii_end();
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let type_name = front.trim_end_matches(is_name);
    let name = front.get(type_name.len()..)?;
    let type_name = type_name.trim_ascii();
    if name.is_empty() || type_name.is_empty() {
        return None;
    }
    Some(EventField {
        name: name.to_owned(),
        type_name: [type_name, array].concat(),
        offset: offset?,
        size: size?,
        signed,
        data,
    })
}
