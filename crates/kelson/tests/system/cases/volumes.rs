//! Images as volumes, and volumes that images declare.

use anyhow::{Context, ensure};
use kelson_client::{Code, Error};
use kelson_cri::v1;

use crate::case::{Case, Outcome, on_node};
use crate::node::Node;
use crate::pod::{pod, shell};

pub(super) fn cases() -> Vec<Case> {
    vec![
        on_node("volumes::an_image_is_mounted_read_only", |node| {
            Box::pin(image_volume(node))
        }),
        on_node("volumes::wrong_images_and_sub_paths_are_refused", |node| {
            Box::pin(refusals(node))
        }),
        on_node("volumes::an_images_own_are_copied", |node| {
            Box::pin(declared(node))
        }),
    ]
}

fn of_image(image: &str, container_path: &str, sub_path: &str) -> v1::Mount {
    v1::Mount {
        container_path: container_path.to_owned(),
        image: Some(v1::ImageSpec {
            image: image.to_owned(),
            user_specified_image: "content".to_owned(),
            ..Default::default()
        }),
        image_sub_path: sub_path.to_owned(),
        ..Default::default()
    }
}

async fn remove_image(node: &Node, image: &str) -> Outcome {
    let request = v1::RemoveImageRequest {
        image: Some(v1::ImageSpec {
            image: image.to_owned(),
            ..Default::default()
        }),
    };
    node.client.remove_image(request).await?;
    Ok(())
}

async fn image_volume(node: &mut Node) -> Outcome {
    let image = node.busybox().await?;
    let content = node.pull("content").await?;
    let mut config = shell("main", &image, "sleep 1000");
    config.mounts = vec![
        of_image(&content, "/whole", ""),
        of_image(&content, "/part", "docs/deep/"),
        of_image(&content, "/etc/one-file", "docs/page"),
    ];
    let pod_config = pod(&node.logs());
    let pod = node.run_pod(&pod_config).await?;
    let id = node.create(&pod, &pod_config, config).await?;
    // In use by a container that does not even run yet.
    remove_image(node, &content).await?;
    node.start_container(&id).await?;
    let read = node
        .output(
            &id,
            "cat /whole/docs/page /part/leaf /etc/one-file; ls /part; ls -a /whole | wc -l",
        )
        .await?;
    ensure!(read == "a pagea leafa pageleaf\n5", "{read}");
    for (script, word) in [
        ("touch /whole/x 2>&1", "Read-only"),
        ("echo x 2>&1 > /etc/one-file", "Read-only"),
        ("/whole/bin/run true 2>&1", "ermission denied"),
    ] {
        let answer = node.exec(&id, &format!("exec 2>&1; {script}")).await?;
        let text = String::from_utf8_lossy(&answer.stdout).into_owned();
        ensure!(
            answer.exit_code != 0 && text.contains(word),
            "{script}: {text}"
        );
    }
    let status = node.status(&id).await?;
    let mount = status.mounts.first().context("no mount")?;
    let reported = mount.image.clone().unwrap_or_default();
    ensure!(
        reported.image == content
            && reported.user_specified_image == "content"
            && reported.image_ref.contains("@sha256:")
            && mount.readonly,
        "{mount:?}"
    );
    ensure!(
        status.mounts[1].image_sub_path == "docs/deep/",
        "{status:?}"
    );
    // Nothing of it is in the host's table of mounts.
    let table = std::fs::read_to_string("/proc/self/mountinfo")?;
    let dir = node.dir().display().to_string();
    let own = table
        .lines()
        .filter(|line| line.contains(&dir) && !line.contains("/shm"));
    ensure!(own.count() == 0, "{table}");
    // A daemon that comes back knows that the layers are in use, and that the image is gone.
    node.kill().await?;
    node.restart().await?;
    ensure!(node.output(&id, "cat /part/leaf").await? == "a leaf");
    let layers = || std::fs::read_dir(node.dir().join("root/layers")).map(Iterator::count);
    ensure!(layers()? == 2, "{:?}", layers()?);
    let request = v1::RemoveContainerRequest { container_id: id };
    node.client.remove_container(request).await?;
    Ok(())
}

async fn refusals(node: &mut Node) -> Outcome {
    let image = node.busybox().await?;
    let content = node.pull("content").await?;
    let pod_config = pod(&node.logs());
    let pod = node.run_pod(&pod_config).await?;
    let missing = node.registry.reference("missing:latest");
    let failed = "ImageVolumeMountFailed";
    for (mount, code, words) in [
        (
            of_image(&missing, "/v", ""),
            Code::NotFound,
            [failed, "mounts[0].image"],
        ),
        (
            of_image(&content, "/v", "docs/none"),
            Code::InvalidArgument,
            [failed, "mounts[0].image_sub_path"],
        ),
        (
            // Resolved in the image, where there is no such place.
            of_image(&content, "/v", "out/passwd"),
            Code::InvalidArgument,
            [failed, "mounts[0].image_sub_path"],
        ),
        (
            of_image(&content, "/v", "../x"),
            Code::InvalidArgument,
            ["mounts[0].image_sub_path", "plain path"],
        ),
        (
            v1::Mount {
                host_path: "/etc".into(),
                ..of_image(&content, "/v", "")
            },
            Code::InvalidArgument,
            ["mounts[0].host_path", "image"],
        ),
    ] {
        let mut config = shell("main", &image, "true");
        config.mounts = vec![mount.clone()];
        let error = node.create(&pod, &pod_config, config).await.err();
        let error = error.with_context(|| format!("{mount:?} was accepted"))?;
        let got = error.downcast_ref::<Error>().and_then(Error::code);
        let text = format!("{error:#}");
        ensure!(
            got == Some(code) && words.iter().all(|word| text.contains(word)),
            "{mount:?}: {text}"
        );
    }
    for name in ["hostile-up", "hostile-empty", "hostile-proc"] {
        let hostile = node.pull(name).await?;
        let created = node
            .create(&pod, &pod_config, shell("main", &hostile, "true"))
            .await;
        let text = format!("{:#}", created.err().context("it was accepted")?);
        ensure!(text.contains("the image declares "), "{text}");
    }
    let list = node
        .client
        .list_containers(v1::ListContainersRequest::default())
        .await?;
    ensure!(list.containers.is_empty(), "{list:?}");
    let left = std::fs::read_dir(node.dir().join("root/containers"))?.count();
    ensure!(left == 0, "{left} containers were left");
    Ok(())
}

async fn declared(node: &mut Node) -> Outcome {
    let image = node.pull("declaring").await?;
    let cover = node.dir().join("cover");
    let mut config = shell("main", &image, "sleep 1000");
    config.mounts = vec![v1::Mount {
        container_path: "/covered".into(),
        host_path: cover.display().to_string(),
        ..Default::default()
    }];
    let security = config
        .linux
        .as_mut()
        .and_then(|linux| linux.security_context.as_mut());
    security.context("no security")?.readonly_rootfs = true;
    let pod_config = pod(&node.logs());
    let (pod, id) = node.run(&pod_config, config.clone()).await?;
    let found = node
        .output(
            &id,
            "cat /data/file; echo; ls -ld /data | head -c 10; echo; readlink /data/link; ls -ld /none/yet | head -c 10",
        )
        .await?;
    ensure!(
        found == "of the image\ndrwxr-x---\n/etc/passwd\ndrwxr-xr-x",
        "{found}"
    );
    // Written to although the root is read-only; every container has its own.
    node.output(&id, "echo mine > /data/file; echo x > /none/yet/x")
        .await?;
    ensure!(node.exec(&id, "touch /x").await?.exit_code != 0);
    ensure!(
        std::fs::read_dir(&cover)?.count() == 0,
        "a volume was made in a mount of the request"
    );
    config.metadata.as_mut().context("no metadata")?.name = "second".into();
    let second = node.create(&pod, &pod_config, config).await?;
    node.start_container(&second).await?;
    ensure!(node.output(&second, "cat /data/file").await? == "of the image");
    let request = v1::RemoveContainerRequest {
        container_id: id.clone(),
    };
    node.client.remove_container(request).await?;
    ensure!(!node.dir().join("root/containers").join(&id).exists());
    Ok(())
}
