//! The kernel's own fields that the programs read: which of them this kernel has.

use std::ffi::CString;

use libbpf_rs::AsRawLibbpf;
use libbpf_rs::btf::types::{Array, Composite};
use libbpf_rs::btf::{Btf, BtfType, TypeId};

use crate::{Error, Result};

/// From the relocations of the linked object: the field, and whether a program asks first whether it exists.
static FIELDS: &[(&str, bool)] = include!(concat!(env!("OUT_DIR"), "/fields.rs"));

/// A field that the programs read.
#[derive(Debug)]
pub struct Field {
    /// `sock.sk_rcvbuf`
    pub name: &'static str,
    /// A program asks whether it exists, and does without.
    pub optional: bool,
    /// This kernel has it.
    pub exists: bool,
}

/// Looks each field up in the running kernel's BTF.
pub fn fields() -> Result<Vec<Field>> {
    let btf = Btf::from_vmlinux().map_err(|e| Error::libbpf("reading the kernel's BTF", e))?;
    Ok(FIELDS
        .iter()
        .map(|&(name, optional)| {
            let mut parts = name.split('.');
            let start = parts.next().and_then(|first| named(&btf, first));
            let end = start.and_then(|start| parts.try_fold(start, |at, part| member(&btf, at, part)));
            Field { name, optional, exists: end.is_some() }
        })
        .collect())
}

/// A struct, union or typedef by its name: functions and variables may have the same one.
fn named<'b>(btf: &'b Btf<'_>, name: &str) -> Option<BtfType<'b>> {
    let name = CString::new(name).ok()?;
    [libbpf_sys::BTF_KIND_STRUCT, libbpf_sys::BTF_KIND_UNION, libbpf_sys::BTF_KIND_TYPEDEF].into_iter().find_map(
        |kind| {
            // SAFETY: the BTF is alive as long as `btf` is borrowed, and the name is a C string.
            let id =
                unsafe { libbpf_sys::btf__find_by_name_kind(btf.as_libbpf_object().as_ptr(), name.as_ptr(), kind) };
            btf.type_by_id(TypeId::from(u32::try_from(id).ok()?))
        },
    )
}

/// The type of a member, looked for in anonymous structs and unions too, as C does.
fn member<'b>(btf: &'b Btf<'_>, of: BtfType<'b>, name: &str) -> Option<BtfType<'b>> {
    let mut at = of.skip_mods_and_typedefs();
    if let Ok(array) = Array::try_from(at) {
        at = array.contained_type().skip_mods_and_typedefs();
    }
    let composite = Composite::try_from(at).ok()?;
    for index in 0..composite.len() {
        let found = composite.get(index)?;
        let ty: Option<BtfType<'b>> = btf.type_by_id(found.ty);
        match found.name {
            Some(own) if own == name => return ty,
            Some(own) if !own.is_empty() => {}
            _ => {
                if let Some(inner) = ty.and_then(|t| member(btf, t, name)) {
                    return Some(inner);
                }
            }
        }
    }
    None
}
