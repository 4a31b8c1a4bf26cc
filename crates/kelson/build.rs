//! Links the program at a fixed address.
//!
//! Relocating it would copy 160 pages whenever it is executed, which `kelson oci` is four times for a
//! container, and keep them for the daemon and the zygote. Heap and stacks stay where the kernel's chance
//! puts them.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let target = |key: &str| std::env::var(format!("CARGO_CFG_TARGET_{key}")).unwrap_or_default();
    if target("OS") != "linux" || target("ENV") != "gnu" {
        return;
    }
    println!("cargo::rustc-link-arg-bins=-no-pie");
    if target("FEATURE")
        .split(',')
        .any(|feature| feature == "crt-static")
    {
        // It is what rustc asks for by `-static-pie`, which `-no-pie` takes back.
        println!("cargo::rustc-link-arg-bins=-static");
    }
}
