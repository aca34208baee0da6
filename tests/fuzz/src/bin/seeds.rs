//! Writes what the fuzzers start from: `seeds PROGRAMS OUTPUT` makes of the
//! objects in one directory a directory of inputs per target in the other.

use std::error::Error;
use std::path::Path;
use std::{env, fs};

use ebpf_manager_elf::Object;

fn main() -> Result<(), Box<dyn Error>> {
    let [programs, output] = [1, 2].map(|nth| env::args_os().nth(nth).unwrap_or_default());
    let output = Path::new(&output);
    let mut objects = Vec::new();
    for entry in fs::read_dir(&programs)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "o") {
            let name = path.file_stem().unwrap_or_default().to_os_string();
            objects.push((name, fs::read(&path)?));
        }
    }
    for target in ["object", "btf", "core_relo"] {
        fs::create_dir_all(output.join(target))?;
    }
    for (name, file) in &objects {
        fs::write(output.join("object").join(name), file)?;
        let Ok(object) = Object::parse(file.clone()) else {
            continue;
        };
        let Some(types) = object.btf().map(|btf| btf.raw()) else {
            continue;
        };
        fs::write(output.join("btf").join(name), types)?;
        let length = u32::try_from(file.len())?.to_le_bytes();
        let pair = [file, types, &length].concat();
        fs::write(output.join("core_relo").join(name), pair)?;
    }
    Ok(())
}
