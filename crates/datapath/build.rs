//! clang -> BPF objects -> one linked object -> libbpf skeleton; and the table of reasons, from the C header.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use libbpf_cargo::SkeletonBuilder;

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR")).join("../..");
    let headers = out.join("include");
    fs::create_dir_all(headers.join("bpf")).expect("create the folder for libbpf's headers");
    for header in libbpf_sys::API_HEADERS {
        fs::write(headers.join("bpf").join(header.0), header.1).expect("write libbpf's header");
    }

    let bpf = root.join("bpf");
    // the tap is loaded by itself, and only while somebody captures
    let (tap, datapath): (Vec<_>, Vec<_>) = sources(&bpf).into_iter().partition(|p| p.ends_with("tap.bpf.c"));
    let linked = link(&datapath, &headers, &out, Build::Current);
    let old = link(&datapath, &headers, &out, Build::Old);
    assert_eq!(settings_place(&linked), settings_place(&old), "both builds have `settings` at one place in .rodata");
    println!("cargo:rustc-env=SHARED_SOCKET_PROGRAMS={}", programs_id(&[&linked, &old]));
    skeleton(&linked, &out.join("shared_socket.skel.rs"));
    for source in tap {
        let object = compile(&source, &headers, &out, Build::Current);
        SkeletonBuilder::new().obj(object).generate(out.join("tap.skel.rs")).expect("generate the tap's skeleton");
    }

    for source in sources(&root.join("bench")).into_iter().chain(sources(&root.join("crates/datapath/probe"))) {
        compile(&source, &headers, &out, Build::Current);
    }
    relocations(&linked, &out.join("fields.rs"));
    reasons(&bpf.join("reasons.h"), &out.join("reasons.rs"));
    hazards(&bpf.join("hazards.h"), &out.join("hazards.rs"));
    println!("cargo:rerun-if-changed={}", bpf.display());
    println!("cargo:rerun-if-changed={}", root.join("bench").display());
    println!("cargo:rerun-if-changed={}", root.join("crates/datapath/probe").display());
    println!("cargo:rerun-if-env-changed=CLANG");
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut sources: Vec<PathBuf> =
        fs::read_dir(folder).map(|entries| entries.flatten().map(|e| e.path()).collect()).unwrap_or_default();
    sources.retain(|p| p.to_string_lossy().ends_with(".bpf.c"));
    sources.sort();
    sources
}

/// The programs are built twice, from one source (bpf/words.bpf.h); crates/datapath/src/load.rs chooses when it loads.
#[derive(Clone, Copy)]
enum Build {
    Current,
    /// For kernels before 5.12.
    Old,
}

impl Build {
    fn flags(self) -> &'static [&'static str] {
        match self {
            Self::Current => &["-mcpu=v3"],
            Self::Old => &["-mcpu=v2", "-DOLD_KERNEL"],
        }
    }

    /// "pair.bpf.o" and "pair.old.bpf.o"
    fn object(self, stem: &str) -> String {
        match self {
            Self::Current => format!("{stem}.bpf.o"),
            Self::Old => format!("{stem}.old.bpf.o"),
        }
    }
}

fn link(sources: &[PathBuf], headers: &Path, out: &Path, build: Build) -> PathBuf {
    let linked = out.join(build.object("shared_socket"));
    let mut linker = libbpf_rs::Linker::new(&linked).expect("start libbpf's static linker");
    for source in sources {
        let object = compile(source, headers, out, build);
        linker.add_file(&object).unwrap_or_else(|e| panic!("link {}: {e}", object.display()));
    }
    linker.link().expect("link the BPF objects");
    linked
}

/// One number for both builds (FNV-1a): the agent knows by it that what is pinned is not its own.
fn programs_id(objects: &[&Path]) -> String {
    let bytes = objects.iter().flat_map(|o| fs::read(o).expect("read a linked object"));
    let hash =
        bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    format!("{hash:016x}")
}

/// libbpf's skeleton of one object, which takes the bytes of either: names, maps and types are the same in both.
fn skeleton(object: &Path, target: &Path) {
    const BYTES: &str = "ObjectSkeletonConfigBuilder::new(&DATA)";
    SkeletonBuilder::new().obj(object).generate(target).expect("generate the skeleton");
    let text = fs::read_to_string(target).expect("read the skeleton");
    assert_eq!(text.matches(BYTES).count(), 1, "the skeleton takes its bytes at one place");
    let chosen = text.replace(BYTES, "ObjectSkeletonConfigBuilder::new(crate::load::object(&DATA))");
    fs::write(target, chosen).expect("write the skeleton");
}

/// Offset of `settings` in .rodata and the section's size: userspace writes there before either object is loaded.
fn settings_place(object: &Path) -> (u32, u32) {
    use std::ffi::{CStr, CString};

    const DATASEC: u32 = 15;
    let path = CString::new(object.to_string_lossy().as_bytes()).expect("a path without NUL");
    // SAFETY: the path is a C string; what comes lives until this build ends.
    let btf = unsafe { libbpf_sys::btf__parse(path.as_ptr(), std::ptr::null_mut()) };
    assert!(!btf.is_null(), "the linked object has BTF");
    // SAFETY: the BTF is alive, the name a C string.
    let id = unsafe { libbpf_sys::btf__find_by_name_kind(btf, c".rodata".as_ptr(), DATASEC) };
    let id = u32::try_from(id).expect("the linked object has .rodata");
    // SAFETY: the id was found just now.
    let section = unsafe { &*libbpf_sys::btf__type_by_id(btf, id) };
    // SAFETY: `vlen` entries follow the type of a section; each names a variable of this BTF.
    let variables = unsafe {
        let first = std::ptr::from_ref(section).add(1).cast::<libbpf_sys::btf_var_secinfo>();
        std::slice::from_raw_parts(first, (section.info & 0xffff) as usize)
    };
    let is_settings = |v: &&libbpf_sys::btf_var_secinfo| {
        // SAFETY: as above.
        let name =
            unsafe { libbpf_sys::btf__name_by_offset(btf, (*libbpf_sys::btf__type_by_id(btf, v.type_)).name_off) };
        // SAFETY: names of a BTF are C strings inside it.
        !name.is_null() && unsafe { CStr::from_ptr(name) } == c"settings"
    };
    let settings = variables.iter().find(is_settings).expect("`settings` is in .rodata");
    // SAFETY: of a section the union holds its size.
    (settings.offset, unsafe { section.__bindgen_anon_1.size })
}

fn compile(source: &Path, headers: &Path, out: &Path, build: Build) -> PathBuf {
    let arch = match env::var("CARGO_CFG_TARGET_ARCH").as_deref() {
        Ok("x86_64") => "x86",
        Ok("aarch64") => "arm64",
        other => panic!("no BPF register layout is known for the target {other:?}"),
    };
    let multiarch = match arch {
        "x86" => "/usr/include/x86_64-linux-gnu",
        _ => "/usr/include/aarch64-linux-gnu",
    };
    let name = source.file_name().expect("a source has a name").to_string_lossy();
    let object = out.join(build.object(name.trim_end_matches(".bpf.c")));
    let clang = env::var_os("CLANG").unwrap_or_else(|| OsString::from("clang"));
    let status = Command::new(&clang)
        .args(["-g", "-O2", "-target", "bpf", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter"])
        .args(build.flags())
        .arg(format!("-D__TARGET_ARCH_{arch}"))
        .arg("-I")
        .arg(headers)
        .args(["-isystem", multiarch, "-c"])
        .arg(source)
        .arg("-o")
        .arg(&object)
        .status()
        .unwrap_or_else(|e| panic!("run {}: {e}; install clang (Debian: apt-get install clang)", clang.display()));
    assert!(status.success(), "clang failed on {}", source.display());
    object
}

/// `REASON(3, not_drained, "text")` -> `Reason { number: 3, name: "not_drained", text: "text" }`
fn reasons(header: &Path, target: &Path) {
    let rows = entries(header, "REASON").into_iter().map(|e| {
        let [number, name, text] = &e[..] else { panic!("reasons.h: {e:?} is not (number, name, text)") };
        format!("    Reason {{ number: {number}, name: \"{name}\", text: {text} }},\n")
    });
    fs::write(target, format!("&[\n{}]\n", rows.collect::<String>())).expect("write reasons.rs");
}

/// `HAZARD(5, splice, splice, "text")` -> `Hazard { bit: 5, name: "splice", text: "text" }`
fn hazards(header: &Path, target: &Path) {
    let rows = entries(header, "HAZARD").into_iter().map(|e| {
        let [bit, name, _reason, text] = &e[..] else { panic!("hazards.h: {e:?} is not (bit, name, reason, text)") };
        format!("    Hazard {{ bit: {bit}, name: \"{name}\", text: {text} }},\n")
    });
    fs::write(target, format!("&[\n{}]\n", rows.collect::<String>())).expect("write hazards.rs");
}

/// The arguments of each `NAME(a, b, "text")` that starts a line; it may go on on the next. Only the text, which is last,
/// may hold commas and brackets.
fn entries(header: &Path, name: &str) -> Vec<Vec<String>> {
    let source = fs::read_to_string(header).unwrap_or_else(|e| panic!("read {}: {e}", header.display()));
    let starts = format!("\n{name}(");
    let parse = |entry: &str| {
        let (head, rest) =
            entry.split_once('"').unwrap_or_else(|| panic!("{}: `{entry}` has no text", header.display()));
        let (text, _) = rest.split_once("\")").unwrap_or_else(|| panic!("{}: `{entry}` has no end", header.display()));
        let words = head.split(',').map(str::trim).filter(|w| !w.is_empty()).map(str::to_owned);
        words.chain([format!("\"{text}\"")]).collect()
    };
    source.split(starts.as_str()).skip(1).map(parse).collect()
}

/// The kernel's fields that the linked object asks for, from its own CO-RE relocations: what `check` looks up in the
/// running kernel can so never fall behind the programs.
fn relocations(object: &Path, target: &Path) {
    use std::collections::BTreeMap;
    use std::ffi::CString;

    let path = CString::new(object.to_string_lossy().as_bytes()).expect("a path without NUL");
    let mut ext = std::ptr::null_mut();
    // SAFETY: the path is a C string, and `ext` a place for one pointer. Both results live until this build ends.
    let btf = unsafe { libbpf_sys::btf__parse(path.as_ptr(), &raw mut ext) };
    assert!(!btf.is_null() && !ext.is_null(), "the linked object has BTF and relocations");
    let mut size = 0;
    // SAFETY: `ext` is what libbpf has just made; it stays alive, and its bytes with it.
    let bytes = unsafe {
        let data: *const u8 = libbpf_sys::btf_ext__raw_data(ext, &raw mut size).cast();
        assert!(!data.is_null(), "raw .BTF.ext");
        std::slice::from_raw_parts(data, size as usize)
    };
    let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes")) as usize;
    // struct btf_ext_header: magic, version and flags, its length, then offset and length of three parts
    let header = word(4);
    let (start, length) = (header + word(24), word(28));
    let record = word(start);
    let mut fields: BTreeMap<String, bool> = BTreeMap::new();
    let mut at = start + 4;
    while at < start + length {
        let count = word(at + 4);
        at += 8;
        for _ in 0..count {
            // struct bpf_core_relo: instruction, type, access string, kind
            let (kind, id, access) = (word(at + 12), word(at + 4) as u32, word(at + 8) as u32);
            at += record;
            // BPF_CORE_FIELD_EXISTS is 2; 0 to 5 are fields, the rest are types and enums
            if kind > 5 {
                continue;
            }
            let Some(name) = field_name(btf, id, access) else { continue };
            *fields.entry(name).or_default() |= kind == 2;
        }
    }
    assert!(fields.len() > 10, "the relocations of the linked object were not understood");
    let rows: String = fields.iter().map(|(name, guarded)| format!("    (\"{name}\", {guarded}),\n")).collect();
    fs::write(target, format!("&[\n{rows}]\n")).expect("write fields.rs");
}

/// `struct sock` and "0:0:1" -> "sock.__sk_common.skc_state"
fn field_name(btf: *const libbpf_sys::btf, id: u32, access: u32) -> Option<String> {
    const ARRAY: u32 = 3;
    const MODIFIERS: [u32; 4] = [8, 9, 10, 11]; // typedef, volatile, const, restrict
    let text = |offset: u32| -> String {
        // SAFETY: the BTF is alive, and its names are C strings inside it.
        let name = unsafe { libbpf_sys::btf__name_by_offset(btf, offset) };
        // SAFETY: as above; NULL is looked for first.
        if name.is_null() { String::new() } else { unsafe { std::ffi::CStr::from_ptr(name) }.to_string_lossy().into() }
    };
    // SAFETY: the BTF is alive; an unknown id gives NULL, which is looked for before the reference is made.
    let type_of = |id: u32| unsafe { libbpf_sys::btf__type_by_id(btf, id).as_ref() };
    let skip = |mut id: u32| -> Option<u32> {
        loop {
            let t = type_of(id)?;
            if !MODIFIERS.contains(&(t.info >> 24 & 0x1f)) {
                return Some(id);
            }
            // SAFETY: of a modifier, the union holds the id of the type it modifies.
            id = unsafe { t.__bindgen_anon_1.type_ };
        }
    };
    let mut at = skip(id)?;
    // of a typedef to an anonymous struct, the typedef has the name
    let own = [at, id].map(|id| type_of(id).map(|t| text(t.name_off)).unwrap_or_default());
    let mut name = own.iter().find(|n| !n.is_empty())?.split("___").next()?.to_owned();
    let path = text(access);
    for index in path.split(':').skip(1) {
        let index: usize = index.parse().ok()?;
        let t = type_of(at)?;
        if t.info >> 24 & 0x1f == ARRAY {
            // SAFETY: struct btf_array follows the type of an array.
            at = skip(unsafe { (*std::ptr::from_ref(t).add(1).cast::<libbpf_sys::btf_array>()).type_ })?;
            continue;
        }
        // SAFETY: `vlen` members follow the type of a struct or union, and clang's index is below it.
        let member = unsafe { *std::ptr::from_ref(t).add(1).cast::<libbpf_sys::btf_member>().add(index) };
        let part = text(member.name_off);
        if !part.is_empty() {
            name = format!("{name}.{part}");
        }
        at = skip(member.type_)?;
    }
    name.contains('.').then_some(name)
}
