//! A configuration made from a template: for nodes whose pod address ranges come with the kubelet.
//!
//! The template is a conflist with placeholders: `{{.PodCIDR}}` is the first range, `{{.PodCIDRRanges}}`
//! all of them as host-local's `ranges`, `{{.Routes}}` a default route for each of their families as its
//! `routes`. The names are those of containerd's templates; there are no others, and no other commands.

use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use ipnet::IpNet;

use crate::conf::{ConfError, MAX_CONF_BYTES, NetworkConf};
use crate::network::Network;

/// The file that is made in the directory of configurations.
const FILE: &str = "10-kelson.conflist";
/// Most ranges of a node: one of each family is what there is.
const MAX_RANGES: usize = 16;

/// Why no configuration could be made from the template.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// The ranges cannot be used.
    #[error(
        "{text:?} is not a list of at most {max} ranges such as 10.1.0.0/24,fd01::/64",
        max = MAX_RANGES
    )]
    Ranges {
        /// As they were given, cut.
        text: String,
    },
    /// The template has something in braces that is no placeholder.
    #[error(
        "{path} has {placeholder:?}; use {{{{.PodCIDR}}}}, {{{{.PodCIDRRanges}}}} or {{{{.Routes}}}}",
        path = path.display()
    )]
    Placeholder {
        /// The template.
        path: PathBuf,
        /// What was found, cut.
        placeholder: String,
    },
    /// What comes out of the template is no network configuration.
    #[error("{path} does not make a conflist", path = path.display())]
    Conflist {
        /// The template.
        path: PathBuf,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A file operation failed.
    #[error("cannot {op} {path}", path = path.display())]
    Io {
        /// What was tried.
        op: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl Network {
    /// Makes a configuration of the template for these address ranges, separated by commas, unless
    /// there is no template or a usable configuration already. The file, if one was made. Blocks.
    ///
    /// # Errors
    /// Ranges that are none, and a template that cannot be read or makes no conflist; then there
    /// is no file.
    pub fn configure(&self, pod_cidr: &str) -> Result<Option<PathBuf>, TemplateError> {
        let ranges = parse(pod_cidr)?;
        let config = self.config();
        let Some(template) = &config.conf_template else {
            return Ok(None);
        };
        if ranges.is_empty() || self.is_configured() {
            return Ok(None);
        }
        let text = render(template, &read(template)?, &ranges)?;
        let conf = NetworkConf::parse(text.as_bytes(), true);
        conf.map_err(|error| TemplateError::Conflist {
            path: template.clone(),
            source: Box::new(error),
        })?;
        write(&config.conf_dir, &text).map(Some)
    }
}

fn parse(pod_cidr: &str) -> Result<Vec<IpNet>, TemplateError> {
    if pod_cidr.is_empty() {
        return Ok(Vec::new());
    }
    let ranges: Result<Vec<IpNet>, _> = pod_cidr.split(',').map(|one| one.trim().parse()).collect();
    match ranges {
        Ok(ranges) if ranges.len() <= MAX_RANGES => Ok(ranges),
        _ => Err(TemplateError::Ranges {
            text: pod_cidr.chars().take(80).collect(),
        }),
    }
}

fn read(template: &Path) -> Result<String, TemplateError> {
    let error = |source| TemplateError::Io {
        op: "read",
        path: template.to_owned(),
        source,
    };
    let mut text = String::new();
    let file = fs::File::open(template).map_err(error)?;
    file.take(MAX_CONF_BYTES + 1)
        .read_to_string(&mut text)
        .map_err(error)?;
    if text.len() as u64 > MAX_CONF_BYTES {
        return Err(TemplateError::Conflist {
            path: template.to_owned(),
            source: Box::new(ConfError::TooLong),
        });
    }
    Ok(text)
}

fn render(template: &Path, text: &str, ranges: &[IpNet]) -> Result<String, TemplateError> {
    let subnets = ranges
        .iter()
        .map(|range| [serde_json::json!({ "subnet": range })]);
    let has = |v4: bool| ranges.iter().any(|range| range.addr().is_ipv4() == v4);
    let routes = [("0.0.0.0/0", has(true)), ("::/0", has(false))];
    let routes = routes.iter().filter(|(_, wanted)| *wanted);
    let routes = routes.map(|(route, _)| serde_json::json!({ "dst": route }));
    let values = [
        (
            ".PodCIDR",
            ranges.first().map(IpNet::to_string).unwrap_or_default(),
        ),
        (
            ".PodCIDRRanges",
            serde_json::json!(subnets.collect::<Vec<_>>()).to_string(),
        ),
        (
            ".Routes",
            serde_json::json!(routes.collect::<Vec<_>>()).to_string(),
        ),
    ];
    let mut made = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{{") {
        let (inside, behind) = after.split_once("}}").unwrap_or((after, ""));
        let value = values.iter().find(|(name, _)| *name == inside.trim());
        let Some((_, value)) = value else {
            return Err(TemplateError::Placeholder {
                path: template.to_owned(),
                placeholder: inside.chars().take(40).collect(),
            });
        };
        made.push_str(before);
        made.push_str(value);
        rest = behind;
    }
    made.push_str(rest);
    Ok(made)
}

/// Puts the file there as a whole: whoever reads the directory sees all of it or nothing.
fn write(dir: &Path, text: &str) -> Result<PathBuf, TemplateError> {
    let error = |op, path: &Path| {
        let path = path.to_owned();
        move |source| TemplateError::Io { op, path, source }
    };
    let (path, new) = (dir.join(FILE), dir.join(format!(".{FILE}.new")));
    fs::create_dir_all(dir).map_err(error("create directory", dir))?;
    let mut file = fs::File::create(&new).map_err(error("create", &new))?;
    file.write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(error("write", &new))?;
    fs::rename(&new, &path).map_err(error("put in place", &path))?;
    tracing::info!(file = %path.display(), "network configuration made from the template");
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NetworkConfig;

    const TEMPLATE: &str = r#"{"cniVersion":"1.0.0","name":"pods","plugins":[{"type":"bridge",
        "bridge":"k0","isGateway":true,"comment":"{{.PodCIDR}}","ipam":{"type":"host-local",
        "ranges":{{.PodCIDRRanges}},"routes":{{ .Routes }}}}]}"#;

    fn network(dir: &Path, template: Option<&str>) -> Network {
        let path = dir.join("template");
        if let Some(text) = template {
            fs::write(&path, text).unwrap();
        }
        Network::open(NetworkConfig {
            conf_dir: dir.join("net.d"),
            cache_dir: dir.join("cache"),
            ipam_dir: dir.join("ipam"),
            conf_template: template.map(|_| path),
            ..NetworkConfig::default()
        })
        .unwrap()
    }

    #[test]
    fn a_conflist_is_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let network = network(dir.path(), Some(TEMPLATE));
        assert!(network.configure("").unwrap().is_none());
        let path = network
            .configure("10.1.2.0/24, fd01::/64")
            .unwrap()
            .unwrap();
        assert_eq!(path, dir.path().join("net.d/10-kelson.conflist"));
        let made: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let plugin = &made["plugins"][0];
        assert_eq!(plugin["comment"], "10.1.2.0/24");
        assert_eq!(plugin["ipam"]["ranges"][1][0]["subnet"], "fd01::/64");
        assert_eq!(plugin["ipam"]["routes"][0]["dst"], "0.0.0.0/0");
        assert_eq!(plugin["ipam"]["routes"][1]["dst"], "::/0");
        assert_eq!(fs::read_dir(dir.path().join("net.d")).unwrap().count(), 1);
        // Now there is a network.
        assert!(network.configure("10.9.0.0/24").unwrap().is_none());
    }

    #[test]
    fn nothing_is_made_of_nonsense() {
        let dir = tempfile::tempdir().unwrap();
        assert!(
            network(dir.path(), None)
                .configure("10.1.0.0/24")
                .unwrap()
                .is_none()
        );
        for (template, ranges) in [
            (TEMPLATE, "10.1.0.0"),
            (TEMPLATE, "10.1.0.0/24,"),
            ("{{range .PodCIDRRanges}}", "10.1.0.0/24"),
            ("{{.PodCIDR", "10.1.0.0/24"),
            ("{}", "10.1.0.0/24"),
        ] {
            let network = network(dir.path(), Some(template));
            assert!(network.configure(ranges).is_err(), "{template} {ranges}");
            assert!(!dir.path().join("net.d").exists());
        }
        let many = vec!["10.1.0.0/24"; MAX_RANGES + 1].join(",");
        let error = network(dir.path(), None).configure(&many).unwrap_err();
        assert!(error.to_string().contains("16"), "{error}");
    }
}
