//! `/etc/subuid` and `/etc/subgid` (subuid(5)), and NSS through `getsubids` where installed.
