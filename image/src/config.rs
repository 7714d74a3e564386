//! Image configs: checking those that come, making those of imported file systems.

use std::collections::BTreeMap;

use oci_spec::image::ImageConfiguration;
use serde::Serialize;

use crate::changes::Changes;
use crate::digest::Digest;
use crate::manifest::ManifestError;
use crate::platform::Platform;

/// A config that was parsed and checked.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageConfig {
    /// All of it that the OCI specification knows.
    pub parsed: ImageConfiguration,
    /// Digests of the uncompressed layers, lowest first.
    pub diff_ids: Vec<Digest>,
}

impl ImageConfig {
    /// Parses the bytes of a config, OCI's or Docker's.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        let malformed = |source| ManifestError::Malformed {
            what: "config",
            source,
        };
        let parsed: ImageConfiguration = serde_json::from_slice(bytes).map_err(malformed)?;
        let diff_ids = parsed
            .rootfs()
            .diff_ids()
            .iter()
            .map(|text| text.parse::<Digest>())
            .collect::<Result<_, _>>()
            .map_err(|error| malformed(serde::de::Error::custom(error)))?;
        Ok(Self { parsed, diff_ids })
    }

    /// Fails unless there are as many diff IDs as `layers`.
    pub fn check_layer_count(&self, layers: usize) -> Result<(), ManifestError> {
        let diff_ids = self.diff_ids.len();
        if diff_ids != layers {
            return Err(ManifestError::Contradiction(format!(
                "the manifest has {layers} layers, the config {diff_ids}"
            )));
        }
        Ok(())
    }
}

/// The config of an imported file system: one layer, `changes` applied. The bytes are those Podman
/// makes from the same input. `created` is RFC 3339.
pub fn for_import(diff_id: &Digest, created: &str, message: &str, changes: &Changes) -> Vec<u8> {
    let platform = Platform::host();
    let config = NewConfig {
        created,
        architecture: &platform.architecture,
        os: &platform.os,
        config: changes,
        rootfs: RootFs {
            kind: "layers",
            diff_ids: [diff_id],
        },
        history: [History {
            created,
            created_by: format!("/bin/sh -c #(nop) ADD file:{} in /", diff_id.hex()),
            comment: message,
        }],
    };
    // this structure holds nothing that JSON cannot say
    serde_json::to_vec(&config).unwrap_or_default()
}

#[derive(Serialize)]
struct NewConfig<'c> {
    created: &'c str,
    architecture: &'c str,
    os: &'c str,
    config: &'c Changes,
    rootfs: RootFs<'c>,
    history: [History<'c>; 1],
}

#[derive(Serialize)]
struct RootFs<'c> {
    #[serde(rename = "type")]
    kind: &'static str,
    diff_ids: [&'c Digest; 1],
}

#[derive(Serialize)]
struct History<'c> {
    created: &'c str,
    created_by: String,
    comment: &'c str,
}

/// What `ExposedPorts` and `Volumes` map their keys to.
pub(crate) type GoSet = BTreeMap<String, BTreeMap<(), ()>>;

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "45098d8a5ab8b05dd4be0996008327671911ba9487a5533694d66fdeb53ad5fd";

    #[test]
    fn configs_of_docker_are_read() {
        let text = format!(
            r#"{{"architecture":"amd64","config":{{"Hostname":"","Domainname":"","User":"",
            "AttachStdin":false,"ExposedPorts":{{"80/tcp":{{}}}},"Tty":false,"Env":["PATH=/bin"],
            "Cmd":["nginx"],"Healthcheck":{{"Test":["NONE"]}},"Image":"sha256:x","Volumes":null,
            "WorkingDir":"","Entrypoint":null,"OnBuild":null,"Labels":null,"StopSignal":"SIGQUIT"}},
            "container":"x","container_config":{{}},"created":"2024-01-01T00:00:00.123456789Z",
            "docker_version":"20.10","history":[{{"created":"2024-01-01T00:00:00Z",
            "created_by":"x","empty_layer":true}}],"os":"linux","variant":"v8",
            "rootfs":{{"type":"layers","diff_ids":["sha256:{HEX}"]}}}}"#
        );
        let config = ImageConfig::parse(text.as_bytes()).unwrap();
        assert_eq!(config.diff_ids, [Digest::from_hex(HEX).unwrap()]);
        let process = config.parsed.config().as_ref().unwrap();
        assert_eq!(process.cmd().as_deref(), Some(&["nginx".to_owned()][..]));
        config.check_layer_count(1).unwrap();
        assert!(config.check_layer_count(2).is_err());
        let bad = text.replace(HEX, "45");
        let error = ImageConfig::parse(bad.as_bytes()).unwrap_err().to_string();
        assert!(error.contains("64 lower-case"), "{error}");
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn import_makes_the_config_podman_makes() {
        let changes = Changes::parse(&[
            "CMD=/bin/sh",
            "ENV A=b",
            "LABEL x=\"y z\"",
            "EXPOSE 80",
            "ENTRYPOINT [\"/a\",\"b\"]",
            "USER foo",
            "WORKDIR /x",
            "VOLUME /v",
            "STOPSIGNAL 15",
            "ONBUILD RUN x",
        ])
        .unwrap();
        let diff_id = Digest::from_hex(HEX).unwrap();
        let bytes = for_import(&diff_id, "2026-11-23T02:17:04.061362301Z", "msg", &changes);
        assert_eq!(
            Digest::of(&bytes).hex(),
            "04b11794695dc445335af3f551717fbdde42ba08a8dc84d87f4d91503d5b5be8"
        );
        let config = ImageConfig::parse(&bytes).unwrap();
        assert_eq!(config.diff_ids, [diff_id]);
    }
}
