//! Platforms, and the choice of the manifest that suits this machine best.

use std::fmt;

/// Operating system, architecture and variant in the words of the OCI image index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    /// `linux`, always, unless a test says otherwise.
    pub os: String,
    /// `amd64`, `arm64`, `arm`, `riscv64` …
    pub architecture: String,
    /// The best variant that the machine runs: `v1` to `v4` of amd64, `v8` of arm64, `v5` to `v7`
    /// of arm; empty for others.
    pub variant: String,
}

impl Platform {
    /// The platform of this machine.
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "x86" => "386",
            "aarch64" => "arm64",
            "loongarch64" => "loong64",
            "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
            other => other,
        };
        let variant = match architecture {
            "amd64" => x86_level(),
            "arm64" => "v8",
            "arm" => "v7",
            _ => "",
        };
        Self {
            os: "linux".to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.to_owned(),
        }
    }

    /// How well an image for `offered` suits this platform: higher is better, `None` not at all.
    /// Within an architecture a lower variant runs on a higher one.
    pub(crate) fn suits(&self, offered: &Platform) -> Option<u32> {
        let (architecture, variant) = normalised(&offered.architecture, &offered.variant);
        let (own_architecture, own_variant) = normalised(&self.architecture, &self.variant);
        if offered.os != self.os || architecture != own_architecture {
            return None;
        }
        match (level(variant), level(own_variant)) {
            (Some(offered), Some(own)) => (offered <= own).then_some(offered),
            _ => (variant == own_variant).then_some(0),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if !self.variant.is_empty() {
            write!(f, "/{}", self.variant)?;
        }
        Ok(())
    }
}

/// Other names of architectures, and the variant that an absent one means.
fn normalised<'a>(architecture: &'a str, variant: &'a str) -> (&'a str, &'a str) {
    let architecture = match architecture {
        "x86_64" | "x86-64" => "amd64",
        "i386" | "i686" => "386",
        "aarch64" => "arm64",
        "armhf" => "arm",
        other => other,
    };
    let variant = match (architecture, variant) {
        ("amd64", "") => "v1",
        ("arm64", "" | "8") => "v8",
        ("arm", "" | "7") => "v7",
        (_, variant) => variant,
    };
    (architecture, variant)
}

/// `v8` is 80, `v8.2` is 82.
fn level(variant: &str) -> Option<u32> {
    let (major, minor) = match variant.strip_prefix('v')?.split_once('.') {
        Some((major, minor)) => (
            major,
            minor.parse::<u32>().ok().filter(|minor| *minor < 10)?,
        ),
        None => (variant.strip_prefix('v')?, 0),
    };
    Some(major.parse::<u32>().ok().filter(|major| *major < 100)? * 10 + minor)
}

/// The micro-architecture level of this x86-64 machine (x86-64 psABI).
fn x86_level() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::is_x86_feature_detected as has;
        let v2 = has!("sse4.2") && has!("ssse3") && has!("popcnt") && has!("cmpxchg16b");
        let v3 = has!("avx2")
            && has!("bmi1")
            && has!("bmi2")
            && has!("f16c")
            && has!("fma")
            && has!("lzcnt")
            && has!("movbe");
        let v4 = has!("avx512f")
            && has!("avx512bw")
            && has!("avx512cd")
            && has!("avx512dq")
            && has!("avx512vl");
        match (v2, v3, v4) {
            (true, true, true) => "v4",
            (true, true, false) => "v3",
            (true, false, _) => "v2",
            _ => "v1",
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    ""
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        let mut parts = text.split('/').map(str::to_owned);
        let mut next = || parts.next().unwrap_or_default();
        Platform {
            os: next(),
            architecture: next(),
            variant: next(),
        }
    }

    #[test]
    fn lower_variants_run_on_higher_ones() {
        let host = platform("linux/amd64/v3");
        let suits = |text| host.suits(&platform(text));
        assert!(suits("linux/amd64/v3") > suits("linux/amd64/v2"));
        assert!(suits("linux/amd64/v2") > suits("linux/amd64"));
        assert_eq!(suits("linux/amd64"), suits("linux/amd64/v1"));
        assert_eq!(suits("linux/amd64/v4"), None);
        assert_eq!(suits("linux/arm64"), None);
        assert_eq!(suits("windows/amd64"), None);
        assert_eq!(suits("linux/amd64/odd"), None);
    }

    #[test]
    fn other_architectures_have_their_own_rules() {
        let arm = platform("linux/arm64/v8");
        assert!(arm.suits(&platform("linux/arm64")).is_some());
        assert!(arm.suits(&platform("linux/aarch64/v8")).is_some());
        assert!(arm.suits(&platform("linux/arm64/v8.2")).is_none());
        assert!(
            platform("linux/arm/v7")
                .suits(&platform("linux/arm/v6"))
                .is_some()
        );
        assert!(
            platform("linux/riscv64")
                .suits(&platform("linux/riscv64"))
                .is_some()
        );
        assert!(Platform::host().suits(&Platform::host()).is_some());
    }
}
