//! The process of a container: arguments, environment, working directory.

use std::collections::HashMap;

use crate::config::ContainerConfig;

/// The search path of a process whose image says nothing.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What an image says about its process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ImageProcess {
    pub(crate) entrypoint: Vec<String>,
    pub(crate) cmd: Vec<String>,
    pub(crate) env: Vec<String>,
    pub(crate) working_dir: String,
}

/// The program and its arguments; empty when neither the request nor the image names a program.
///
/// A command replaces the image's entry point and drops its arguments; arguments replace the image's.
pub(crate) fn args(config: &ContainerConfig, image: &ImageProcess) -> Vec<String> {
    let (program, args) = match (config.command.is_empty(), config.args.is_empty()) {
        (false, _) => (&config.command, &config.args),
        (true, false) => (&image.entrypoint, &config.args),
        (true, true) => (&image.entrypoint, &image.cmd),
    };
    program.iter().chain(args).cloned().collect()
}

/// The environment: defaults, then the image's, then the request's; the last value of a name counts.
pub(crate) fn env(
    config: &ContainerConfig,
    image: &ImageProcess,
    hostname: &str,
    home: &str,
) -> Vec<String> {
    let mut all = vec![DEFAULT_PATH.to_owned(), format!("HOSTNAME={hostname}")];
    if config.tty {
        all.push("TERM=xterm".to_owned());
    }
    all.push(format!("HOME={home}"));
    // A string without `=` is no variable.
    all.extend(
        image
            .env
            .iter()
            .filter(|one| one.contains('=') && !one.contains('\0'))
            .cloned(),
    );
    all.extend(
        config
            .envs
            .iter()
            .map(|(key, value)| format!("{key}={value}")),
    );

    let mut positions: HashMap<String, usize> = HashMap::new();
    let mut merged: Vec<String> = Vec::with_capacity(all.len());
    for one in all {
        let key = one.split('=').next().unwrap_or_default().to_owned();
        match positions.get(&key) {
            Some(position) => merged[*position] = one,
            None => {
                positions.insert(key, merged.len());
                merged.push(one);
            }
        }
    }
    merged
}

/// The working directory.
pub(crate) fn cwd(config: &ContainerConfig, image: &ImageProcess) -> String {
    let wanted = [&config.working_dir, &image.working_dir]
        .into_iter()
        .find(|path| !path.is_empty());
    match wanted {
        Some(path) if path.starts_with('/') => path.clone(),
        Some(path) => format!("/{path}"),
        None => "/".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    fn image() -> ImageProcess {
        ImageProcess {
            entrypoint: words("/entry -e"),
            cmd: words("serve all"),
            env: words("PATH=/image A=1 B=2 nonsense"),
            working_dir: "/app".into(),
        }
    }

    #[test]
    fn command_and_arguments() {
        let cases = [
            ("", "", "/entry -e serve all"),
            ("", "x y", "/entry -e x y"),
            ("sh", "", "sh"),
            ("sh", "-c true", "sh -c true"),
        ];
        for (command, arguments, expected) in cases {
            let config = ContainerConfig {
                command: words(command),
                args: words(arguments),
                ..ContainerConfig::default()
            };
            assert_eq!(
                args(&config, &image()),
                words(expected),
                "{command} | {arguments}"
            );
        }
        assert!(args(&ContainerConfig::default(), &ImageProcess::default()).is_empty());
    }

    #[test]
    fn environment() {
        let config = ContainerConfig {
            envs: vec![("B".into(), "3".into()), ("C".into(), "x=y".into())],
            tty: true,
            ..ContainerConfig::default()
        };
        assert_eq!(
            env(&config, &image(), "web", "/root"),
            words("PATH=/image HOSTNAME=web TERM=xterm HOME=/root A=1 B=3 C=x=y")
        );
        let bare = env(
            &ContainerConfig::default(),
            &ImageProcess::default(),
            "h",
            "/",
        );
        assert_eq!(bare, [DEFAULT_PATH, "HOSTNAME=h", "HOME=/"]);
    }

    #[test]
    fn working_directory() {
        let config = ContainerConfig {
            working_dir: "/work".into(),
            ..ContainerConfig::default()
        };
        assert_eq!(cwd(&config, &image()), "/work");
        assert_eq!(cwd(&ContainerConfig::default(), &image()), "/app");
        assert_eq!(
            cwd(&ContainerConfig::default(), &ImageProcess::default()),
            "/"
        );
        let relative = ImageProcess {
            working_dir: "app".into(),
            ..ImageProcess::default()
        };
        assert_eq!(cwd(&ContainerConfig::default(), &relative), "/app");
    }
}
