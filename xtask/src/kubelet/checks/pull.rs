//! Image pull policies: what is pulled when, and what is said when it cannot be.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::{Check, passed};
use crate::kubelet::image::IMAGE;
use crate::kubelet::manifests::{idle, pod};
use crate::kubelet::world::World;

pub(super) const CHECKS: &[Check] = &[
    (
        "pull policy Never does not pull: ErrImageNeverPull",
        |world| {
            world.wait_for("never-pull", |pod| {
                let reason = &pod.container("absent")["state"]["waiting"]["reason"];
                ensure!(reason == "ErrImageNeverPull", "it waits for {reason}");
                ensure!(
                    pod.container("present")["ready"] == true,
                    "the other one is not ready"
                );
                Ok(())
            })?;
            world.take("never-pull")?;
            passed()
        },
    ),
    (
        "an image that does not exist: ErrImagePull and ImagePullBackOff",
        |world| {
            world.wait_for("no-image", |pod| {
                let waiting = &pod.container("absent")["state"]["waiting"];
                ensure!(
                    waiting["reason"] == "ImagePullBackOff",
                    "it waits for {waiting}"
                );
                let message = waiting["message"].as_str().unwrap_or_default();
                let said = ["ErrImagePull", "127.0.0.1:9/nowhere:1"];
                ensure!(
                    said.iter().all(|part| message.contains(part)),
                    "it says {message}"
                );
                Ok(())
            })?;
            world.take("no-image")?;
            passed()
        },
    ),
    (
        "without a registry IfNotPresent and Never take the image that is there",
        |world| {
            world.mirror.hide()?;
            let started = (|| {
                world.apply(&policy("if-not-present", "IfNotPresent"))?;
                world.apply(&policy("never-asked", "Never"))?;
                world.wait_until_ready("if-not-present")?;
                world.wait_until_ready("never-asked").map(|_| ())
            })();
            world.mirror.show()?;
            started?;
            world.take("if-not-present")?;
            world.take("never-asked")?;
            passed()
        },
    ),
    (
        "without a registry Always fails, and goes on when it is back",
        |world| {
            world.mirror.hide()?;
            let failed = (|| {
                world.apply(&policy("always", "Always"))?;
                world.wait_for("always", |pod| {
                    let waiting = &pod.container("main")["state"]["waiting"];
                    let reason = waiting["reason"].as_str().unwrap_or_default();
                    ensure!(
                        ["ErrImagePull", "ImagePullBackOff", "RegistryUnavailable"]
                            .contains(&reason),
                        "it waits for {waiting}"
                    );
                    Ok(())
                })
            })();
            world.mirror.show()?;
            failed?;
            world.wait_until_ready("always")?;
            world.take("always")?;
            passed()
        },
    ),
];

fn policy(name: &str, policy: &str) -> Value {
    let container = idle("main", json!({ "image": IMAGE, "imagePullPolicy": policy }));
    pod(
        name,
        json!({ "terminationGracePeriodSeconds": 1, "containers": [container] }),
    )
}

pub(super) fn pods(_: &World) -> Result<Vec<Value>> {
    let image = |image: &str, policy: &str| json!({ "image": image, "imagePullPolicy": policy });
    let absent = image("127.0.0.1:9/busybox:other", "Never");
    Ok(vec![
        pod(
            "never-pull",
            json!({ "containers": [
            idle("absent", absent),
            idle("present", json!({})),
        ] }),
        ),
        pod(
            "no-image",
            json!({
                "containers": [idle("absent", image("127.0.0.1:9/nowhere:1", "Always"))],
            }),
        ),
    ])
}
