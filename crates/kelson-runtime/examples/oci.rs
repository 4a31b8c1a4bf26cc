//! The OCI runtime command line as a program of its own, for engines: `podman --runtime …/oci`.

fn main() -> std::process::ExitCode {
    kelson_runtime::cli::main(std::env::args_os())
}
