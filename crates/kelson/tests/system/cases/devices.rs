//! Devices that files describe by name (CDI), and other devices of the host.

use std::os::unix::fs::PermissionsExt as _;

use anyhow::{Context, ensure};
use kelson_client::{Code, Error};
use kelson_cri::v1;
use serde_json::json;

use crate::case::{Case, Outcome, on_node};
use crate::node::Node;
use crate::pod::{pod, shell};

pub(super) fn cases() -> Vec<Case> {
    vec![
        on_node("devices::by_cdi_name", |node| Box::pin(cdi(node))),
        on_node("devices::wrong_ones_are_refused", |node| {
            Box::pin(refusals(node))
        }),
    ]
}

/// A file that describes two devices, whose hook writes into the container's root.
fn describe(node: &Node) -> Outcome {
    let dir = node.dir().join("cdi");
    std::fs::create_dir(&dir)?;
    let hook = node.dir().join("hook");
    // As vendors' hooks do: the root is found by the bundle that the state names.
    let script = "#!/bin/sh\nbundle=$(sed 's/.*\"bundle\":\"\\([^\"]*\\)\".*/\\1/')\n\
                  root=$(sed 's/.*\"root\":{\"path\":\"\\([^\"]*\\)\".*/\\1/' \"$bundle/config.json\")\n\
                  echo \"$1\" > \"$root/hooked\"\n";
    std::fs::write(&hook, script)?;
    std::fs::set_permissions(&hook, std::fs::Permissions::from_mode(0o755))?;
    std::fs::create_dir(node.dir().join("library"))?;
    std::fs::write(node.dir().join("library/file"), "driver")?;
    let document = json!({
        "cdiVersion": "0.6.0",
        "kind": "example.com/toy",
        "containerEdits": { "env": ["TOYS=all"] },
        "devices": [
            { "name": "one", "containerEdits": {
                "env": ["TOY=one"],
                "deviceNodes": [{ "path": "/dev/toy", "hostPath": "/dev/zero" }],
                "mounts": [{
                    "hostPath": node.dir().join("library"),
                    "containerPath": "/opt/toy",
                    "options": ["ro", "rbind", "rprivate"],
                }],
                "hooks": [{
                    "hookName": "createContainer",
                    "path": hook,
                    "args": ["hook", "was here"],
                    "env": ["PATH=/usr/bin:/bin"],
                }],
                "additionalGids": [4711],
            }},
            { "name": "two", "containerEdits": { "env": ["SECOND=yes"] } },
        ],
    });
    std::fs::write(dir.join("toy.json"), document.to_string())?;
    // Harms nobody.
    std::fs::write(dir.join("broken.yaml"), "devices: [")?;
    Ok(())
}

async fn cdi(node: &mut Node) -> Outcome {
    describe(node)?;
    let image = node.busybox().await?;
    let script = "head -c 3 /dev/toy | wc -c; echo $TOYS $TOY $SECOND; cat /opt/toy/file /hooked; id -G; touch /opt/toy/x 2>&1";
    let mut config = shell("main", &image, script);
    let device = |name: &str| v1::CdiDevice {
        name: name.to_owned(),
    };
    config.cdi_devices = vec![device("example.com/toy=one")];
    config.annotations = [(
        "cdi.k8s.io/plugin".to_owned(),
        "example.com/toy=two,example.com/toy=one".to_owned(),
    )]
    .into();
    let (log, _) = node.run_to_end(config.clone()).await?;
    let lines: Vec<&str> = log.lines().collect();
    ensure!(lines[0] == "3" && lines[1] == "all one yes", "{log}");
    ensure!(
        lines[2] == "driverwas here" && lines[3].contains("4711"),
        "{log}"
    );
    ensure!(lines[4].contains("Read-only"), "{log}");
    // Nothing is cached: what a file says now counts.
    std::fs::remove_file(node.dir().join("cdi/toy.json"))?;
    let pod_config = pod(&node.logs());
    let pod = node.run_pod(&pod_config).await?;
    let error = node.create(&pod, &pod_config, config).await.err();
    let error = error.context("a device was found that no file describes")?;
    ensure!(
        error.downcast_ref::<Error>().and_then(Error::code) == Some(Code::InvalidArgument),
        "{error:#}"
    );
    let text = format!("{error:#}");
    for word in ["CDI_devices", "example.com/toy=one", "example.com/toy=two"] {
        ensure!(text.contains(word), "{text}");
    }
    Ok(())
}

async fn refusals(node: &mut Node) -> Outcome {
    describe(node)?;
    let image = node.busybox().await?;
    let pod_config = pod(&node.logs());
    let pod = node.run_pod(&pod_config).await?;
    let with = |change: &dyn Fn(&mut v1::ContainerConfig)| {
        let mut config = shell("main", &image, "true");
        change(&mut config);
        config
    };
    let device = |host_path: &str| v1::Device {
        host_path: host_path.to_owned(),
        container_path: "/dev/x".to_owned(),
        permissions: "rwm".to_owned(),
    };
    for (config, word) in [
        (
            with(&|c| c.devices = vec![device("/dev/no-such-device")]),
            "devices[0].host_path",
        ),
        (
            with(&|c| c.devices = vec![device("/etc/passwd")]),
            "devices[0].host_path",
        ),
        (
            with(&|c| {
                c.cdi_devices = vec![v1::CdiDevice {
                    name: "example.com/toy=three".into(),
                }];
            }),
            "CDI_devices",
        ),
        (
            with(&|c| {
                let wrong = ("cdi.k8s.io/x".to_owned(), "toy".to_owned());
                c.annotations = [wrong].into();
            }),
            "annotations[cdi.k8s.io/x]",
        ),
        (
            with(&|c| {
                let security = c.linux.as_mut().and_then(|l| l.security_context.as_mut());
                if let Some(security) = security {
                    security.seccomp = Some(v1::SecurityProfile {
                        profile_type: v1::security_profile::ProfileType::Localhost.into(),
                        localhost_ref: "/etc/passwd".into(),
                    });
                }
            }),
            "linux.security_context.seccomp.localhost_ref",
        ),
    ] {
        let error = node.create(&pod, &pod_config, config).await.err();
        let error = error.with_context(|| format!("{word}: it was accepted"))?;
        let text = format!("{error:#}");
        ensure!(
            error.downcast_ref::<Error>().and_then(Error::code) == Some(Code::InvalidArgument)
                && text.contains(word),
            "{word}: {text}"
        );
    }
    let left = std::fs::read_dir(node.dir().join("root/containers"))?.count();
    ensure!(left == 0, "{left} containers were left");
    Ok(())
}
