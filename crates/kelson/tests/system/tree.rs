//! An image of several layers made by other people's tools (tar, umoci), with everything that a
//! layer can hold, and the check that a container sees what it should.

use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context, ensure};
use kelson_cri::v1;
use rustix::fs::{FileType, Mode, XattrFlags};
use serde_json::Value;

use crate::debian_registry::umoci;
use crate::node::Node;
use crate::pod::{command, pod};
use crate::tool;

/// File capabilities as the kernel keeps them (version 2): `cap_net_raw=ep`.
const CAPABILITY: [u8; 20] = [
    1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
];
/// A name that does not fit an old tar header.
const LONG: &str = "a-name-of-more-than-a-hundred-bytes-a-name-of-more-than-a-hundred-bytes-a-name-of-more-than-a-hundred-bytes";
/// Seconds since 1970 of a file with an old date.
const OLD: u64 = 981_173_106;
/// Length of the sparse file.
const SPARSE: u64 = 8 << 20;

/// Makes an image in an OCI layout below `dir`; `directory:tag`.
pub(crate) async fn make(dir: &Path) -> anyhow::Result<String> {
    let work = dir.join("tree");
    std::fs::create_dir(&work)?;
    lowest(&work.join("lowest"))?;
    middle(&work.join("middle"))?;
    let layout = work.join("layout").display().to_string();
    let image = format!("{layout}:tree");
    umoci(&["init", "--layout", &layout]).await?;
    umoci(&["new", "--image", &image]).await?;
    for layer in ["lowest", "middle"] {
        let (folder, archive) = (work.join(layer), work.join(format!("{layer}.tar")));
        let (folder, archive) = (folder.display().to_string(), archive.display().to_string());
        let options = ["--format=pax", "--sparse", "--xattrs", "--xattrs-include=*"];
        let rest = ["-cf", &archive, "-C", &folder, "."];
        tool::output("tar", options.iter().chain(&rest)).await?;
        umoci(&["raw", "add-layer", "--image", &image, &archive]).await?;
    }
    // The upmost layer is what umoci finds changed in an unpacked image.
    let bundle = work.join("bundle");
    let bundle_name = bundle.display().to_string();
    umoci(&["unpack", "--image", &image, &bundle_name]).await?;
    let data = bundle.join("rootfs/data");
    std::fs::remove_file(data.join("removed-by-umoci"))?;
    std::fs::remove_dir_all(data.join("replaced"))?;
    std::fs::write(data.join("replaced"), "now a file\n")?;
    umoci(&["repack", "--image", &image, &bundle_name]).await?;
    umoci(&[
        "config",
        "--image",
        &image,
        "--config.env",
        "PATH=/bin",
        "--config.cmd",
        "/bin/sh",
    ])
    .await?;
    Ok(image)
}

fn lowest(root: &Path) -> anyhow::Result<()> {
    for folder in ["bin", "data/opaque/below", "data/replaced/below"] {
        std::fs::create_dir_all(root.join(folder))?;
    }
    std::fs::copy("/bin/busybox", root.join("bin/busybox"))?;
    for applet in ["sh", "sleep"] {
        symlink("busybox", root.join("bin").join(applet))?;
    }
    let data = root.join("data");
    for name in [
        "file",
        "whiteout",
        "removed-by-umoci",
        "opaque/old",
        LONG,
        "ünïcode ☸",
    ] {
        std::fs::write(data.join(name), "lowest\n")?;
    }
    std::fs::hard_link(data.join("file"), data.join("hard-link"))?;
    symlink("/data/file", data.join("absolute-link"))?;
    symlink("../../../data/file", data.join("climbing-link"))?;
    std::fs::write(data.join("setuid"), "x")?;
    chown(data.join("setuid"), Some(1000), Some(1001))?;
    std::fs::set_permissions(data.join("setuid"), PermissionsExt::from_mode(0o6751))?;
    let old = SystemTime::UNIX_EPOCH + Duration::from_secs(OLD);
    std::fs::File::options()
        .write(true)
        .open(data.join("setuid"))?
        .set_modified(old)?;
    std::fs::File::create(data.join("sparse"))?.set_len(SPARSE)?;
    let mode = Mode::from_raw_mode(0o640);
    rustix::fs::mknodat(rustix::fs::CWD, data.join("fifo"), FileType::Fifo, mode, 0)?;
    let zero = rustix::fs::makedev(1, 5);
    rustix::fs::mknodat(
        rustix::fs::CWD,
        data.join("zero"),
        FileType::CharacterDevice,
        mode,
        zero,
    )?;
    let (file, capable) = (data.join("file"), data.join("capable"));
    std::fs::write(&capable, "")?;
    rustix::fs::setxattr(&file, "user.kelson", b"deck", XattrFlags::empty())?;
    rustix::fs::setxattr(
        &capable,
        "security.capability",
        &CAPABILITY,
        XattrFlags::empty(),
    )?;
    Ok(())
}

fn middle(root: &Path) -> anyhow::Result<()> {
    let data = root.join("data");
    std::fs::create_dir_all(data.join("opaque"))?;
    std::fs::write(data.join("opaque/.wh..wh..opq"), "")?;
    std::fs::write(data.join("opaque/new"), "middle\n")?;
    std::fs::write(data.join(".wh.whiteout"), "")?;
    Ok(())
}

/// Runs a container from `image` and looks at everything in it.
pub(crate) async fn check(node: &Node, image: &str) -> anyhow::Result<()> {
    let sleep = command("tree", image, &["/bin/sleep", "1000"]);
    let (pod, container) = node.run(&pod(&node.logs()), sleep).await?;
    let list = "cd /data && busybox find . | busybox sort";
    let mut expected = [
        ".",
        "./absolute-link",
        "./capable",
        "./climbing-link",
        "./fifo",
        "./file",
        "./hard-link",
        "./opaque",
        "./opaque/new",
        "./replaced",
        "./setuid",
        "./sparse",
        "./ünïcode ☸",
        "./zero",
    ]
    .map(str::to_owned)
    .to_vec();
    expected.push(format!("./{LONG}"));
    expected.sort();
    let list = node.output(&container, list).await?;
    ensure!(list.lines().eq(&expected), "the tree is {list}");
    let stat = "cd /data; busybox stat -c '%n %a %u %g %h %Y %F' setuid file fifo; \
                busybox stat -c '%n %t %T' zero; busybox stat -c '%n %s' sparse; \
                busybox cat file absolute-link climbing-link replaced; busybox head -c 2 zero | busybox wc -c";
    let stat = node.output(&container, stat).await?;
    let lines: Vec<&str> = stat.lines().collect();
    ensure!(
        lines[0] == format!("setuid 6751 1000 1001 1 {OLD} regular file"),
        "{stat}"
    );
    ensure!(lines[1].starts_with("file 644 0 0 2 "), "{stat}");
    ensure!(
        lines[2].starts_with("fifo 640 0 0 1 ") && lines[2].ends_with("fifo"),
        "{stat}"
    );
    ensure!(
        lines[3] == "zero 1 5" && lines[4] == format!("sparse {SPARSE}"),
        "{stat}"
    );
    ensure!(
        lines[5..] == ["lowest", "lowest", "lowest", "now a file", "2"],
        "{stat}"
    );
    // What busybox cannot show is looked at from outside, through the container's root.
    let request = v1::ContainerStatusRequest {
        container_id: container,
        verbose: true,
    };
    let info = node.client.container_status(request).await?.info;
    let info: Value = serde_json::from_str(info.get("info").context("no info")?)?;
    let root = format!("/proc/{}/root/data", info["pid"]);
    let mut value = [0_u8; 64];
    let length = rustix::fs::getxattr(format!("{root}/file"), "user.kelson", &mut value)?;
    ensure!(value[..length] == *b"deck", "{value:?}");
    let length =
        rustix::fs::getxattr(format!("{root}/capable"), "security.capability", &mut value)?;
    ensure!(value[..length] == CAPABILITY, "{value:?}");
    let blocks = rustix::fs::stat(format!("{root}/sparse"))?.st_blocks;
    ensure!(
        u64::try_from(blocks)? * 512 < SPARSE / 2,
        "the sparse file has {blocks} blocks"
    );
    node.remove_pod(&pod).await
}
