//! The default OCI spec: mounts, devices, capabilities, masked and read-only paths as Podman has them.
