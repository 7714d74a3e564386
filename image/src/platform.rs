//! Operating system and processor an image is for, in Go's words.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// E.g. `linux/amd64` or `linux/arm/v7`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// Processor, e.g. `amd64`.
    pub architecture: String,
    /// Operating system, e.g. `linux`.
    pub os: String,
    /// Sub-architecture, e.g. `v7` of `arm`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// Why a text is not a platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a platform: it must look like linux/amd64 or linux/arm/v7")]
pub struct PlatformError(String);

impl Platform {
    /// This machine's.
    pub fn host() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", None),
            "x86" => ("386", None),
            "aarch64" => ("arm64", Some("v8")),
            "arm" => ("arm", Some("v7")),
            "powerpc64" if cfg!(target_endian = "little") => ("ppc64le", None),
            "powerpc64" => ("ppc64", None),
            "loongarch64" => ("loong64", None),
            other => (other, None),
        };
        Self {
            architecture: architecture.to_owned(),
            os: "linux".to_owned(),
            variant: variant.map(str::to_owned),
        }
    }

    /// How well something built for `image` runs on this platform: `None` not at all, else the
    /// more the better.
    pub(crate) fn runs(&self, image: &Self) -> Option<u32> {
        if self.os != image.os || self.architecture != image.architecture {
            return None;
        }
        let number = |variant: &Option<String>| {
            let variant = variant.as_deref().filter(|text| !text.is_empty())?;
            variant.strip_prefix('v')?.parse::<u32>().ok()
        };
        // what a machine has when it does not say: the baseline of its architecture
        let baseline = match self.architecture.as_str() {
            "arm64" => 8,
            "arm" => 7,
            _ => 1,
        };
        let mine = number(&self.variant).unwrap_or(baseline);
        let theirs = number(&image.variant).unwrap_or(baseline);
        (theirs <= mine).then_some(theirs)
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) if !variant.is_empty() => write!(out, "/{variant}"),
            _ => Ok(()),
        }
    }
}

impl FromStr for Platform {
    type Err = PlatformError;
    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let parts: Vec<_> = text.split('/').collect();
        let (os, architecture, variant) = match parts[..] {
            [os, architecture] => (os, architecture, None),
            [os, architecture, variant] => (os, architecture, Some(variant)),
            _ => return Err(PlatformError(text.to_owned())),
        };
        if parts.iter().any(|part| part.is_empty()) {
            return Err(PlatformError(text.to_owned()));
        }
        Ok(Self {
            architecture: architecture.to_owned(),
            os: os.to_owned(),
            variant: variant.map(str::to_owned),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newer_variants_do_not_run_on_older_machines() {
        let platform = |text: &str| text.parse::<Platform>().unwrap();
        let arm = platform("linux/arm/v7");
        assert_eq!(arm.runs(&platform("linux/arm/v6")), Some(6));
        assert_eq!(arm.runs(&platform("linux/arm")), Some(7));
        assert_eq!(arm.runs(&platform("linux/arm/v8")), None);
        assert_eq!(arm.runs(&platform("linux/arm64")), None);
        let amd64 = platform("linux/amd64");
        assert_eq!(amd64.runs(&platform("linux/amd64/v1")), Some(1));
        assert_eq!(amd64.runs(&platform("linux/amd64/v3")), None);
        assert_eq!(amd64.runs(&platform("windows/amd64")), None);
        assert_eq!(platform("linux/arm/v6").to_string(), "linux/arm/v6");
        assert!("linux".parse::<Platform>().is_err());
        assert!("linux//v7".parse::<Platform>().is_err());
    }
}
