//! `/etc/passwd` and `/etc/group` of a container root, read without following anything out of it.
