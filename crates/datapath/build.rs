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
    let objects: Vec<PathBuf> = sources(&bpf).iter().map(|source| compile(source, &headers, &out)).collect();
    let linked = out.join("shared_socket.bpf.o");
    let mut linker = libbpf_rs::Linker::new(&linked).expect("start libbpf's static linker");
    for object in &objects {
        linker.add_file(object).unwrap_or_else(|e| panic!("link {}: {e}", object.display()));
    }
    linker.link().expect("link the BPF objects");
    SkeletonBuilder::new().obj(&linked).generate(out.join("shared_socket.skel.rs")).expect("generate the skeleton");

    for source in sources(&root.join("bench")) {
        compile(&source, &headers, &out);
    }
    reasons(&bpf.join("reasons.h"), &out.join("reasons.rs"));
    println!("cargo:rerun-if-changed={}", bpf.display());
    println!("cargo:rerun-if-changed={}", root.join("bench").display());
    println!("cargo:rerun-if-env-changed=CLANG");
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut sources: Vec<PathBuf> =
        fs::read_dir(folder).map(|entries| entries.flatten().map(|e| e.path()).collect()).unwrap_or_default();
    sources.retain(|p| p.to_string_lossy().ends_with(".bpf.c"));
    sources.sort();
    sources
}

fn compile(source: &Path, headers: &Path, out: &Path) -> PathBuf {
    let arch = match env::var("CARGO_CFG_TARGET_ARCH").as_deref() {
        Ok("x86_64") => "x86",
        Ok("aarch64") => "arm64",
        other => panic!("no BPF register layout is known for the target {other:?}"),
    };
    let multiarch = match arch {
        "x86" => "/usr/include/x86_64-linux-gnu",
        _ => "/usr/include/aarch64-linux-gnu",
    };
    let name = source.file_name().expect("a source has a name").to_string_lossy().replace(".bpf.c", ".bpf.o");
    let object = out.join(name);
    let clang = env::var_os("CLANG").unwrap_or_else(|| OsString::from("clang"));
    let status = Command::new(&clang)
        .args(["-g", "-O2", "-target", "bpf", "-mcpu=v3", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter"])
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
    let text = fs::read_to_string(header).expect("read reasons.h");
    let mut table = String::from("&[\n");
    for line in text.lines().filter(|l| l.starts_with("REASON(")) {
        let body = line.trim_start_matches("REASON(").trim_end_matches(')');
        let mut parts = body.splitn(3, ',').map(str::trim);
        let (number, name, text) = (parts.next(), parts.next(), parts.next());
        let (Some(number), Some(name), Some(text)) = (number, name, text) else {
            panic!("reasons.h: cannot read `{line}`");
        };
        table += &format!("    Reason {{ number: {number}, name: \"{name}\", text: {text} }},\n");
    }
    table += "]\n";
    fs::write(target, table).expect("write reasons.rs");
}
