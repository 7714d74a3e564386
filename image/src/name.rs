//! Image names: `[registry/]path[:tag][@digest]`, normalised as Podman does.
