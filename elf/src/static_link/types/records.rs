//! Records of functions, lines and CO-RE relocations, which refer to types and
//! names: `.BTF.ext` of the output.

use std::collections::BTreeMap;

use super::{Names, TOO_LARGE, Types};
use crate::btf::encode::BtfBuilder;
use crate::btf::ext::Table;
use crate::static_link::input::Input;
use crate::static_link::output::Output;
use crate::static_link::{StaticLinkError, btf_of};

/// What both sections of types start with.
const BTF_MAGIC: u16 = 0xeb9f;

/// What a word of a record is.
#[derive(Clone, Copy)]
enum Word {
    Type,
    Name,
    Rest,
}
use Word::{Name as NAME, Rest as REST, Type as TYPE};

impl<'d> Types<'_, 'd> {
    /// The section `.BTF.ext`.
    pub(super) fn records(
        &self,
        builder: &mut BtfBuilder,
        output: &Output,
        names: &mut Names<'d>,
    ) -> Result<Vec<u8>, StaticLinkError> {
        // Of each record: its words, and which of them are types and names.
        let functions = self.table(builder, output, names, |i| i.ext.func_info(), &[REST, TYPE])?;
        let lines = [REST, NAME, NAME, REST];
        let lines = self.table(builder, output, names, |i| i.ext.line_info(), &lines)?;
        let core = [REST, TYPE, NAME, REST];
        let core = self.table(builder, output, names, |i| i.ext.core_relos(), &core)?;

        let mut bytes = Vec::new();
        bytes.extend_from_slice(&BTF_MAGIC.to_ne_bytes());
        bytes.extend_from_slice(&[1, 0]);
        let mut words = vec![32];
        let mut at = 0;
        for table in [&functions, &lines, &core] {
            let len = u32::try_from(table.len()).map_err(|_| TOO_LARGE)?;
            words.extend([at, len]);
            at = len.checked_add(at).ok_or(TOO_LARGE)?;
        }
        for word in words {
            bytes.extend_from_slice(&word.to_ne_bytes());
        }
        for table in [functions, lines, core] {
            bytes.extend_from_slice(&table);
        }
        Ok(bytes)
    }

    fn table(
        &self,
        builder: &mut BtfBuilder,
        output: &Output,
        names: &mut Names<'d>,
        of: for<'t> fn(&'t Input<'d>) -> &'t Table<'d>,
        layout: &[Word],
    ) -> Result<Vec<u8>, StaticLinkError> {
        // By section of the output: records and their number.
        let mut sections: BTreeMap<usize, (Vec<u8>, u32)> = BTreeMap::new();
        for (index, input) in self.inputs.iter().enumerate() {
            let Some(btf) = btf_of(input) else { continue };
            // By offset in the strings of the input.
            let mut known = BTreeMap::new();
            for block in of(input).blocks() {
                let Some(place) = input.place_of(block.section()) else {
                    continue;
                };
                let (records, count) = sections.entry(place.section).or_default();
                for record in block.records() {
                    let (words, _) = record.as_chunks::<4>();
                    for (nth, (word, meaning)) in words.iter().zip(layout).enumerate() {
                        let word = u32::from_ne_bytes(*word);
                        let word = match meaning {
                            Word::Type => self.id(index, word),
                            Word::Name if known.contains_key(&word) => known[&word],
                            Word::Name => {
                                let name = btf.name_bytes(word);
                                names.charge(name)?;
                                let new = builder.add_string(name);
                                known.insert(word, new);
                                new
                            }
                            Word::Rest if nth == 0 => word.wrapping_add(place.offset as u32),
                            Word::Rest => word,
                        };
                        records.extend_from_slice(&word.to_ne_bytes());
                    }
                    *count += 1;
                }
            }
        }
        let mut out = Vec::new();
        for (section, (records, count)) in sections {
            let Some(section) = output.sections.get(section).filter(|_| count != 0) else {
                continue;
            };
            if out.is_empty() {
                out.extend_from_slice(&(layout.len() as u32 * 4).to_ne_bytes());
            }
            let name = builder.add_string(section.name.as_bytes());
            out.extend_from_slice(&name.to_ne_bytes());
            out.extend_from_slice(&count.to_ne_bytes());
            out.extend_from_slice(&records);
        }
        Ok(out)
    }
}
