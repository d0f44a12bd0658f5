//! Compiles the client of the Container Runtime Interface (CRI v1) from its proto; protox needs no protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let proto = "proto/cri/v1/api.proto";
    println!("cargo:rerun-if-changed={proto}");
    let descriptors = protox::compile([proto], ["proto"])?;
    tonic_prost_build::configure().build_server(false).build_transport(false).compile_fds(descriptors)?;
    Ok(())
}
