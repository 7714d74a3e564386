//! Default seccomp profile; compiling OCI seccomp to BPF; the cache of compiled filters.
