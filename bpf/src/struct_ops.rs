//! Structures of the kernel that programs fill, as this kernel has them.

use std::ops::ControlFlow;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use ebpf_manager_elf::btf::{Btf, Kind, KindSet, NameHit, NameQuery};
use ebpf_manager_elf::{MapSpec, Object, ObjectError, OperationsLayout};
use ebpf_manager_sys::abi::bpf::AttachType;
use ebpf_manager_sys::{SysError, fd};

use crate::attach_btf::AttachPoint;
use crate::error::{LoadError, MapError, ProgramError};
use crate::kernel_btf::KernelBtf;
use crate::map::Map;
use crate::program::Program;

/// A map of type `STRUCT_OPS`, resolved.
#[derive(Debug)]
pub(crate) struct Operations {
    /// Index of the map in the object.
    pub(crate) map: usize,
    pub(crate) layout: OperationsLayout,
    /// BTF of the module that has the structure.
    module: Option<Arc<OwnedFd>>,
}

impl Operations {
    /// BTF of the module that has the structure; `None` for the kernel image.
    pub(crate) fn module(&self) -> Option<BorrowedFd<'_>> {
        self.module.as_ref().map(|fd| fd.as_fd())
    }
}

/// Lays out the object's maps of type `STRUCT_OPS` that are to be created;
/// `existing` ones need it for their programs only.
///
/// # Errors
/// [`MapError::Spec`] if this kernel has no such structure, or another one.
pub(crate) fn resolve(object: &Object) -> Result<Vec<Operations>, LoadError> {
    let wanted: Vec<_> = (0..)
        .zip(object.maps())
        .filter(|(_, spec)| !spec.skip)
        .filter_map(|(index, spec)| {
            let name = spec.operations.as_ref()?.value_name();
            Some((index, spec, name))
        })
        .collect();
    if wanted.is_empty() || !cfg!(feature = "struct-ops") {
        return Ok(Vec::new());
    }
    let mut query = NameQuery::new();
    for (.., name) in &wanted {
        query.add(name.as_bytes(), KindSet::of(&[Kind::STRUCT]));
    }
    query.finish();
    // Ids are the running kernel's, whichever BTF CO-RE is told to use.
    let kernel = KernelBtf::vmlinux()?;
    let mut hits = Vec::new();
    let kernel = kernel.scan(&query, &mut hits)?;

    let mut found: Vec<Option<Operations>> = wanted.iter().map(|_| None).collect();
    let mut fault = None;
    let mut look = |btf: &Btf<'_>, hits: &[NameHit], module: Option<&Arc<OwnedFd>>| {
        for ((map, spec, name), slot) in wanted.iter().zip(&mut found) {
            let position = query.position(name.as_bytes());
            let hit = hits.iter().find(|hit| Some(hit.name) == position);
            let Some(hit) = hit.filter(|_| slot.is_none()) else {
                continue;
            };
            match object.lay_out_operations(spec, btf, hit.id) {
                Ok(layout) => {
                    *slot = Some(Operations {
                        map: *map,
                        layout,
                        module: module.cloned(),
                    });
                }
                Err(err) => fault = Some(err),
            }
        }
        found.iter().all(Option::is_some)
    };
    if !look(&kernel, &hits, None) {
        crate::modules::search(&kernel, &query, &mut |btf, hits, fd| {
            if look(btf, hits, Some(&Arc::new(fd))) {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
    }
    if let Some(ObjectError::Map { map, what }) = fault {
        return Err(MapError::Spec { map, what }.into());
    }
    let mut operations = Vec::with_capacity(found.len());
    for (found, (_, spec, _)) in found.into_iter().zip(&wanted) {
        operations.push(found.ok_or_else(|| absent(spec))?);
    }
    Ok(operations)
}

#[cold]
fn absent(spec: &MapSpec) -> MapError {
    let name = spec.operations.as_ref().map(|o| o.type_name.as_str());
    let name = name.unwrap_or_default();
    MapError::Spec {
        map: spec.name.clone(),
        what: format!("this kernel has no struct {name} that programs can fill"),
    }
}

/// The operations of the map with this index.
pub(crate) fn of_map(operations: &[Operations], map: usize) -> Option<&Operations> {
    operations.iter().find(|o| o.map == map)
}

/// What a program of type `STRUCT_OPS` is loaded for.
///
/// # Errors
/// [`ProgramError::NoAttachTarget`] if no structure that is created has it, or
/// this kernel's has no such member; [`ProgramError::Operation`] if the
/// module's descriptor cannot be duplicated.
pub(crate) fn attach_point(
    operations: &[Operations],
    program: &str,
) -> Result<AttachPoint, ProgramError> {
    for structure in operations {
        let places = &structure.layout.programs;
        let Some(place) = places.iter().find(|p| p.program == program) else {
            continue;
        };
        let module = structure.module().map(fd::dup).transpose();
        return Ok(AttachPoint {
            btf_id: structure.layout.type_id,
            of: module.map_err(|source| failed(program, source))?,
            member: Some(AttachType(place.member)),
        });
    }
    Err(ProgramError::NoAttachTarget {
        program: program.to_owned(),
        what: "member of a structure",
        name: String::new(),
    })
}

/// Whether the structures that have a program have no place for it in this
/// kernel.
pub(crate) fn is_absent(operations: &[Operations], program: &str) -> bool {
    let placed = |o: &Operations| o.layout.programs.iter().any(|p| p.program == program);
    let absent = |o: &Operations| o.layout.absent.iter().any(|name| name == program);
    !operations.iter().any(placed) && operations.iter().any(absent)
}

/// Completes the value of a map with its programs. Without one of them the
/// value is not complete, and the map cannot be attached.
pub(crate) fn complete(operations: Operations, map: &Map, programs: &[Program]) {
    let mut value = operations.layout.value;
    for place in &operations.layout.programs {
        let program = programs.iter().find(|p| p.name() == place.program);
        let start = place.offset as usize;
        let (Some(program), Some(to)) = (program, value.get_mut(start..start + 8)) else {
            return;
        };
        to.copy_from_slice(&(program.as_raw_fd() as u64).to_ne_bytes());
    }
    map.set_operations(value);
}

#[cold]
fn failed(program: &str, source: SysError) -> ProgramError {
    ProgramError::Operation {
        program: program.to_owned(),
        source,
        cure: None,
    }
}
