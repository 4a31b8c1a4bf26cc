//! Networks: pods reach each other and the host reaches them, natively and by external plugins.

use anyhow::{Context, ensure};
use kelson_cri::v1;

use crate::case::{Case, Need, Outcome, on_node};
use crate::node::Node;
use crate::pod::{pod, shell};

/// A shell that serves one line over HTTP for ever.
const SERVER: &str = "mkdir -p /www; hostname > /www/index.html; httpd -f -p 80 -h /www";

pub(super) fn cases() -> Vec<Case> {
    vec![
        on_node("network::pods_reach_each_other", |node| {
            Box::pin(reach(node))
        }),
        on_node("network::host_ports", |node| Box::pin(host_ports(node))),
        on_node("network::a_conflist_is_taken_when_it_appears", |node| {
            Box::pin(conflist(node))
        }),
        on_node("network::external_plugins", |node| Box::pin(external(node))).needs(Need::Program(
            "/usr/lib/cni/bridge",
            "containernetworking-plugins",
        )),
        on_node("network::an_exhausted_subnet_is_told", |node| {
            Box::pin(exhausted(node))
        }),
    ]
}

/// Fetches from `address` inside a container until it answers.
async fn fetch(node: &Node, container: &str, address: &str) -> anyhow::Result<String> {
    let script = format!(
        "for i in 1 2 3 4 5 6 7 8 9 10; do \
         printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 2 {address} 80 | tail -n 1 | grep . && exit 0; sleep 0.2; done; exit 1"
    );
    node.output(container, &script).await
}

async fn address(node: &Node, pod: &str) -> anyhow::Result<String> {
    Ok(node.pod_status(pod).await?.network.unwrap_or_default().ip)
}

async fn reach(node: &mut Node) -> Outcome {
    let image = node.busybox().await?;
    let mut config = pod(&node.logs());
    config.hostname = "server".into();
    let (server, own) = node.run(&config, shell("main", &image, SERVER)).await?;
    let (_, client) = node
        .run(&pod(&node.logs()), shell("main", &image, "sleep 1000"))
        .await?;
    let ip = address(node, &server).await?;
    ensure!(fetch(node, &client, &ip).await? == "server");
    ensure!(fetch(node, &own, "127.0.0.1").await? == "server");
    Ok(())
}

async fn host_ports(node: &mut Node) -> Outcome {
    let image = node.busybox().await?;
    let port = std::net::TcpListener::bind("127.0.0.1:0")?
        .local_addr()?
        .port();
    let mut config = pod(&node.logs());
    config.hostname = "server".into();
    config.port_mappings = vec![v1::PortMapping {
        container_port: 80,
        host_port: port.into(),
        ..Default::default()
    }];
    let (pod, container) = node.run(&config, shell("main", &image, SERVER)).await?;
    fetch(node, &container, "127.0.0.1").await?;
    let get = || {
        use std::io::{Read, Write};
        let mut stream = std::net::TcpStream::connect_timeout(
            &([127, 0, 0, 1], port).into(),
            std::time::Duration::from_secs(5),
        )?;
        stream.set_read_timeout(Some(std::time::Duration::from_secs(5)))?;
        write!(stream, "GET / HTTP/1.0\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        anyhow::Ok(text)
    };
    ensure!(get()?.ends_with("server\n"));
    node.remove_pod(&pod).await?;
    ensure!(get().is_err(), "the port still leads somewhere");
    Ok(())
}

fn write_conflist(node: &Node, name: &str, text: &str) -> anyhow::Result<()> {
    let dir = node.dir().join("net.d");
    std::fs::create_dir_all(&dir)?;
    std::fs::write(dir.join(name), text).context("cannot write the conflist")
}

fn bridge_conflist(node: &Node, subnet: &str, more: &str) -> String {
    format!(
        r#"{{"cniVersion":"1.0.0","name":"{name}-list","plugins":[{{"type":"bridge","bridge":"{name}","isGateway":true,
        "ipMasq":true,{more}"ipam":{{"type":"host-local","dataDir":"{dir}/ipam","ranges":[[{{"subnet":"{subnet}"}}]],
        "routes":[{{"dst":"0.0.0.0/0"}}]}}}},{{"type":"portmap","capabilities":{{"portMappings":true}}}}]}}"#,
        name = node.name(),
        dir = node.dir().display(),
    )
}

async fn conflist(node: &mut Node) -> Outcome {
    write_conflist(node, "10-broken.conflist", "{ this is not JSON")?;
    write_conflist(
        node,
        "20-good.conflist",
        &bridge_conflist(node, "198.19.200.0/24", ""),
    )?;
    let pod = node.run_pod(&pod(&node.logs())).await?;
    let ip = address(node, &pod).await?;
    ensure!(ip.starts_with("198.19.200."), "{ip}");
    ensure!(
        node.dir()
            .join(format!("ipam/{}-list/{ip}", node.name()))
            .exists()
    );
    Ok(())
}

async fn external(node: &mut Node) -> Outcome {
    // Kelson has no tuning plugin, so the whole list is run by the programs.
    let list = bridge_conflist(node, "198.19.201.0/24", "").replace(
        r#"{"type":"portmap""#,
        r#"{"type":"tuning"},{"type":"portmap""#,
    );
    write_conflist(node, "10-external.conflist", &list)?;
    let image = node.busybox().await?;
    let mut config = pod(&node.logs());
    config.hostname = "server".into();
    let (server, _) = node.run(&config, shell("main", &image, SERVER)).await?;
    let (_, client) = node
        .run(&pod(&node.logs()), shell("main", &image, "sleep 1000"))
        .await?;
    let ip = address(node, &server).await?;
    ensure!(ip.starts_with("198.19.201."), "{ip}");
    ensure!(fetch(node, &client, &ip).await? == "server");
    Ok(())
}

async fn exhausted(node: &mut Node) -> Outcome {
    write_conflist(
        node,
        "10-small.conflist",
        &bridge_conflist(node, "198.19.202.0/30", ""),
    )?;
    let first = node.run_pod(&pod(&node.logs())).await?;
    let error = node
        .run_pod(&pod(&node.logs()))
        .await
        .err()
        .context("there was an address")?;
    let text = format!("{error:#}");
    ensure!(
        text.contains("198.19.202.0/30") || text.contains("address"),
        "{text}"
    );
    node.remove_pod(&first).await?;
    node.run_pod(&pod(&node.logs())).await?;
    Ok(())
}
