//! Directories with files as vendors and attackers write them.

use std::fs;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;

use super::*;

struct Dirs(tempfile::TempDir);

impl Dirs {
    fn new() -> Self {
        let dirs = Self(tempfile::tempdir().unwrap());
        for name in ["low", "high"] {
            fs::create_dir(dirs.0.path().join(name)).unwrap();
        }
        dirs
    }

    fn paths(&self) -> Vec<PathBuf> {
        ["low", "none", "high"]
            .map(|name| self.0.path().join(name))
            .into()
    }

    fn file(&self, path: &str, text: &str) {
        fs::write(self.0.path().join(path), text).unwrap();
    }

    fn resolve(&self, names: &[&str]) -> Result<Injection, Vec<CdiError>> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        resolve(&self.paths(), &names)
    }

    /// The environment that a device gives.
    fn env(&self, name: &str) -> Vec<String> {
        let mut spec = spec();
        self.resolve(&[name]).unwrap().apply(&mut spec).unwrap();
        spec.process().as_ref().unwrap().env().clone().unwrap()
    }
}

fn spec() -> Spec {
    let json = r#"{"ociVersion":"1.2.0","process":{"user":{"uid":7,"gid":8,"additionalGids":[8]},
        "args":["x"],"cwd":"/","env":["A=1","PATH=/bin"]},"linux":{},
        "mounts":[{"destination":"/proc","type":"proc","source":"proc"}]}"#;
    serde_json::from_str(json).unwrap()
}

fn describing(kind: &str, devices: &[(&str, &str)]) -> String {
    let devices: Vec<String> = devices
        .iter()
        .map(|(name, env)| format!(r#"{{"name":"{name}","containerEdits":{{"env":["{env}"]}}}}"#))
        .collect();
    format!(
        r#"{{"cdiVersion":"0.6.0","kind":"{kind}","devices":[{}]}}"#,
        devices.join(",")
    )
}

#[test]
fn everything_of_a_device_comes_into_the_specification() {
    let dirs = Dirs::new();
    dirs.file(
        "low/vendor.yaml",
        r#"
cdiVersion: "1.1.0"
kind: vendor.com/gpu
containerEdits:
  env: ["ALL=1"]
devices:
- name: "0"
  annotations: {colour: red}
  containerEdits:
    env: ["A=2"]
    deviceNodes:
    - path: /dev/gpu0
      hostPath: /dev/null
      permissions: rw
    - {path: /dev/made, type: c, major: 10, minor: 229, fileMode: 0o660, uid: 5, gid: 6}
    mounts:
    - {hostPath: /usr/lib, containerPath: /opt/lib, options: [ro, rbind]}
    - {hostPath: tmpfs, containerPath: /proc, type: tmpfs}
    hooks:
    - {hookName: createContainer, path: /bin/hook, args: [hook, update], env: ["H=1"], timeout: 3}
    additionalGids: [0, 44]
- name: "1"
"#,
    );
    let mut spec = spec();
    let injection = dirs.resolve(&["vendor.com/gpu=0", "vendor.com/gpu=1", "vendor.com/gpu=0"]);
    injection.unwrap().apply(&mut spec).unwrap();
    let process = spec.process().as_ref().unwrap();
    assert_eq!(
        process.env().as_deref().unwrap(),
        ["PATH=/bin", "ALL=1", "A=2"]
    );
    assert_eq!(
        process.user().additional_gids().as_deref().unwrap(),
        [8, 44]
    );
    let linux = spec.linux().as_ref().unwrap();
    let devices = linux.devices().as_deref().unwrap();
    let null = &devices[0];
    assert_eq!(
        (null.path().as_path(), null.major(), null.minor()),
        (Path::new("/dev/gpu0"), 1, 3)
    );
    assert_eq!((null.uid(), null.gid()), (Some(7), Some(8)));
    assert_eq!((devices[1].major(), devices[1].uid()), (10, Some(5)));
    assert_eq!(devices[1].file_mode(), Some(0o660));
    let rules = linux.resources().as_ref().unwrap();
    let rules = rules.devices().as_deref().unwrap();
    assert_eq!(rules[0].access().as_deref(), Some("rw"));
    assert_eq!(rules[1].access().as_deref(), Some("rwm"));
    let mounts = spec.mounts().as_deref().unwrap();
    assert_eq!(mounts[0].typ().as_deref(), Some("tmpfs"));
    assert_eq!(
        (
            mounts[1].destination().as_path(),
            mounts[1].typ().as_deref()
        ),
        (Path::new("/opt/lib"), Some("bind"))
    );
    let hooks = spec.hooks().as_ref().unwrap();
    let hook = &hooks.create_container().as_ref().unwrap()[0];
    assert_eq!(hook.path(), Path::new("/bin/hook"));
    assert_eq!(hook.timeout(), Some(3));
}

#[test]
fn a_later_directory_wins_and_the_same_one_does_not() {
    let dirs = Dirs::new();
    dirs.file(
        "low/a.json",
        &describing("v.com/c", &[("d", "D=low"), ("only", "D=only")]),
    );
    dirs.file("high/a.json", &describing("v.com/c", &[("d", "D=high")]));
    assert!(dirs.env("v.com/c=d").contains(&"D=high".to_owned()));
    assert!(dirs.env("v.com/c=only").contains(&"D=only".to_owned()));
    dirs.file(
        "high/b.json",
        &describing("v.com/c", &[("d", "D=other"), ("e", "D=e")]),
    );
    let errors = dirs.resolve(&["v.com/c=d"]).unwrap_err();
    let text = errors[0].to_string();
    assert!(text.contains("a.json") && text.contains("b.json"), "{text}");
    assert!(dirs.env("v.com/c=e").contains(&"D=e".to_owned()));
}

#[test]
fn unknown_and_wrong_names_are_all_told() {
    let dirs = Dirs::new();
    let errors = dirs
        .resolve(&["v.com/c=none", "nonsense", "v.com/c=more"])
        .unwrap_err();
    let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
    assert_eq!(texts.len(), 3);
    assert!(texts[0].contains("v.com/c=none") && texts[0].contains("low"));
    assert!(texts[1].contains("nonsense"), "{texts:?}");
    for bad in [
        "",
        "a/b",
        "a=b",
        "1v/c=d",
        "v/c=",
        "v/c=-d",
        "v/c=d-",
        "v/c/d=e f",
        "v.com/c=d\n",
    ] {
        assert!(name::check(bad).is_err(), "{bad:?}");
    }
    for good in ["v.com/c=0", "vendor/class-x=a:b.c_d-e", "v/c=d"] {
        assert!(name::check(good).is_ok(), "{good:?}");
    }
}

#[test]
fn a_wrong_file_harms_no_other_one() {
    let dirs = Dirs::new();
    dirs.file("low/good.json", &describing("v.com/c", &[("d", "D=1")]));
    let wrong = [
        "{".to_owned(),
        "[]".to_owned(),
        "\u{0}".to_owned(),
        describing("nokind", &[("d", "D=2")]),
        describing("w.com/c", &[]),
        describing("w.com/c", &[("d", "D=2"), ("d", "D=3")]),
        describing("w.com/c", &[("d e", "D=2")]),
        describing("w.com/c", &[("d", "NOVALUE")]),
        describing("w.com/c", &[("d", "D=2")]).replace("0.6.0", "9.0.0"),
        describing("w.com/c", &[("d", "D=2")]).replace("0.6.0", "1"),
        describing("w.com/c", &[("d", "D=2")])
            .replace(r#""env":["D=2"]"#, r#""deviceNodes":[{"path":"dev/x"}]"#),
        describing("w.com/c", &[("d", "D=2")]).replace(
            r#""env":["D=2"]"#,
            r#""mounts":[{"hostPath":"/a/../b","containerPath":"/x"}]"#,
        ),
    ];
    for text in wrong {
        for name in ["low/wrong.json", "low/wrong.yaml"] {
            dirs.file(name, &text);
            assert!(dirs.env("v.com/c=d").contains(&"D=1".to_owned()));
            assert!(dirs.resolve(&["w.com/c=d"]).is_err(), "{text}");
            fs::remove_file(dirs.0.path().join(name)).unwrap();
        }
    }
    // Files of other kinds are nobody's business.
    dirs.file("low/readme.txt", &describing("w.com/c", &[("d", "D=2")]));
    assert!(dirs.resolve(&["w.com/c=d"]).is_err());
}

#[test]
fn huge_files_and_many_are_bounded() {
    let dirs = Dirs::new();
    let huge = " ".repeat(usize::try_from(file::MAX_FILE).unwrap());
    dirs.file(
        "low/huge.json",
        &(huge + &describing("v.com/c", &[("d", "D=1")])),
    );
    assert!(dirs.resolve(&["v.com/c=d"]).is_err());
    let many: Vec<String> = (0..=file::MAX_DEVICES).map(|n| format!("d{n}")).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|name| (name.as_str(), "A=1")).collect();
    dirs.file("low/many.json", &describing("w.com/c", &many));
    assert!(dirs.resolve(&["w.com/c=d1"]).is_err());
    for n in 0..=file::MAX_FILES {
        dirs.file(
            &format!("high/{n:05}.json"),
            &describing("x.com/c", &[(&format!("d{n}"), "A=1")]),
        );
    }
    assert!(dirs.resolve(&["x.com/c=d0"]).is_ok());
    let last = format!("x.com/c=d{}", file::MAX_FILES);
    assert!(dirs.resolve(&[last.as_str()]).is_err());
    // An expansion of aliases is stopped by the parser's budget.
    let mut bomb = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
    for n in 1..12 {
        let line = format!(
            "a{n}: &a{n} [{}]\n",
            vec![format!("*a{}", n - 1); 10].join(",")
        );
        bomb.push_str(&line);
    }
    dirs.file("low/bomb.yaml", &bomb);
    assert!(dirs.resolve(&["y.com/c=d"]).is_err());
}

#[test]
fn what_cannot_be_done_is_refused() {
    let dirs = Dirs::new();
    for (edit, word) in [
        (
            r#""hooks":[{"hookName":"poststop","path":"/x"}]"#,
            "poststop",
        ),
        (r#""intelRdt":{"closID":"x"}"#, "intelRdt"),
        (
            r#""netDevices":[{"hostInterfaceName":"a","name":"b"}]"#,
            "netDevices",
        ),
        (
            r#""deviceNodes":[{"path":"/dev/no-such-node"}]"#,
            "no-such-node",
        ),
        (
            r#""deviceNodes":[{"path":"/dev/x","hostPath":"/proc/version"}]"#,
            "no device",
        ),
        (
            r#""deviceNodes":[{"path":"/dev/null","type":"b"}]"#,
            "another type",
        ),
    ] {
        let text = describing("v.com/c", &[("d", "D=1")]).replace(r#""env":["D=1"]"#, edit);
        dirs.file("low/a.json", &text);
        let error = dirs.resolve(&["v.com/c=d"]).unwrap().apply(&mut spec());
        let error = error.unwrap_err().to_string();
        assert!(error.contains(word), "{edit}: {error}");
    }
}

#[test]
fn annotations_ask_for_devices() {
    let ask = |value: &str| {
        let map = [
            ("cdi.k8s.io/plugin_0".to_owned(), value.to_owned()),
            ("other".to_owned(), "v/c=no".to_owned()),
        ];
        from_annotations(&map.into())
    };
    assert_eq!(ask("v/c=a,v/c=b").unwrap(), ["v/c=a", "v/c=b"]);
    assert_eq!(ask("v/c=a,").unwrap_err().0, "cdi.k8s.io/plugin_0");
}
