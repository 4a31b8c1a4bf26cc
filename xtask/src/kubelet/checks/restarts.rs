//! What happens to containers that end: restart policies, back-off, and what is told of the end.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::{Check, passed};
use crate::kubelet::manifests::{container, idle, mount, pod};
use crate::kubelet::world::World;

pub(super) const CHECKS: &[Check] = &[
    (
        "a container that crashes is restarted, with back-off",
        |world| {
            world.wait_for("crash", |pod| {
                let status = pod.container("crash");
                ensure!(
                    pod.restarts("crash") >= 2,
                    "restarted {} times",
                    pod.restarts("crash")
                );
                let waiting = &status["state"]["waiting"]["reason"];
                ensure!(
                    waiting == "CrashLoopBackOff",
                    "the state is {}",
                    status["state"]
                );
                let end = &status["lastState"]["terminated"];
                ensure!(
                    end["exitCode"] == 3 && end["reason"] == "Error",
                    "it ended with {end}"
                );
                Ok(())
            })?;
            passed()
        },
    ),
    ("the termination message comes from the file", |world| {
        world.wait_for("crash", |pod| {
            let end = &pod.container("crash")["lastState"]["terminated"];
            ensure!(end["message"] == "out of rope\n", "it ended with {end}");
            Ok(())
        })?;
        passed()
    }),
    (
        "the termination message comes from the log where there is no file",
        |world| {
            world.wait_for("crash", |pod| {
                let end = &pod.container("logs")["lastState"]["terminated"];
                ensure!(end["message"] == "last words\n", "it ended with {end}");
                Ok(())
            })?;
            passed()
        },
    ),
    (
        "a container that uses too much memory is OOMKilled",
        |world| {
            world.wait_for("crash", |pod| {
                let status = pod.container("greedy");
                let end = &status["lastState"]["terminated"];
                ensure!(
                    end["reason"] == "OOMKilled" && end["exitCode"] == 137,
                    "it is {status}"
                );
                Ok(())
            })?;
            world.take("crash")?;
            passed()
        },
    ),
    (
        "restart policy OnFailure restarts only what failed",
        |world| {
            world.wait_for("on-failure", |pod| {
                ensure!(pod.phase() == "Succeeded", "the phase is {}", pod.phase());
                ensure!(
                    pod.restarts("second-try") == 1,
                    "{}",
                    pod.container("second-try")
                );
                ensure!(pod.restarts("fine") == 0, "{}", pod.container("fine"));
                Ok(())
            })?;
            passed()
        },
    ),
    ("restart policy Never restarts nothing", |world| {
        world.wait_for("never", |pod| {
            ensure!(pod.phase() == "Failed", "the phase is {}", pod.phase());
            let status = pod.container("once");
            ensure!(status["state"]["terminated"]["exitCode"] == 5, "{status}");
            ensure!(pod.restarts("once") == 0, "it was restarted");
            Ok(())
        })?;
        passed()
    }),
    (
        "postStart runs before a container counts as running",
        |world| {
            let pod = world.wait_until_ready("post-start")?;
            let text = world.run("post-start", "fine", &["cat", "/tmp/post"])?;
            ensure!(text == "done\n", "the hook wrote {text:?}");
            ensure!(
                pod.container("fine")["state"]["running"].is_object(),
                "it does not run"
            );
            passed()
        },
    ),
    ("a postStart that fails ends the container", |world| {
        world.wait_for("post-start-fails", |pod| {
            ensure!(pod.restarts("hooked") > 0, "it is not restarted");
            ensure!(!pod.is_ready(), "it is ready");
            Ok(())
        })?;
        world.take("post-start-fails")?;
        passed()
    }),
];

pub(super) fn pods(_: &World) -> Result<Vec<Value>> {
    let from_log = json!({ "terminationMessagePolicy": "FallbackToLogsOnError" });
    let little = json!({ "resources": { "limits": { "memory": "24Mi" } } });
    let hook = |script: &str| json!({ "lifecycle": { "postStart": { "exec": { "command": ["sh", "-c", script] } } } });
    let kept = json!({ "volumeMounts": [mount("kept", "/kept")] });
    Ok(vec![
        pod(
            "crash",
            json!({ "containers": [
            container("crash", "echo out of rope > /dev/termination-log; exit 3", json!({})),
            container("logs", "echo last words; exit 4", from_log),
            container("greedy", "exec tail /dev/zero", little),
        ] }),
        ),
        pod(
            "on-failure",
            json!({
                "restartPolicy": "OnFailure",
                "volumes": [{ "name": "kept", "emptyDir": {} }],
                "containers": [
                    container("second-try", "test -e /kept/try || { touch /kept/try; exit 1; }", kept),
                    container("fine", "true", json!({})),
                ],
            }),
        ),
        pod(
            "never",
            json!({
                "restartPolicy": "Never",
                "containers": [container("once", "exit 5", json!({}))],
            }),
        ),
        pod(
            "post-start",
            json!({
                "containers": [idle("fine", hook("sleep 1; echo done > /tmp/post"))],
            }),
        ),
        pod(
            "post-start-fails",
            json!({
                "terminationGracePeriodSeconds": 1,
                "containers": [idle("hooked", hook("exit 1"))],
            }),
        ),
    ])
}
