//! fstab-style mount options of an OCI spec, sorted into what the kernel calls need.

use selkie_sys::mount::MountAttributes;

/// `MOUNT_ATTR_*` (mount_setattr(2)), as plain bits.
pub(crate) mod attribute {
    pub(crate) const READ_ONLY: u64 = 0x1;
    pub(crate) const NO_SUID: u64 = 0x2;
    pub(crate) const NO_DEV: u64 = 0x4;
    pub(crate) const NO_EXEC: u64 = 0x8;
    /// Mask of the three access time modes; relatime is zero.
    pub(crate) const ATIME_MASK: u64 = 0x70;
    pub(crate) const NO_ATIME: u64 = 0x10;
    pub(crate) const STRICT_ATIME: u64 = 0x20;
    pub(crate) const NO_DIR_ATIME: u64 = 0x80;
    pub(crate) const NO_SYM_FOLLOW: u64 = 0x20_0000;
}

/// `MS_*` propagation kinds as `mount_setattr` takes them.
mod propagation {
    pub(super) const UNBINDABLE: u64 = 1 << 17;
    pub(super) const PRIVATE: u64 = 1 << 18;
    pub(super) const SLAVE: u64 = 1 << 19;
    pub(super) const SHARED: u64 = 1 << 20;
}

/// Options of one mount.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct MountOptions {
    /// `MOUNT_ATTR_*` of the mount itself.
    pub(crate) set: u64,
    /// `MOUNT_ATTR_*` of the mount and all below it (`rro` and its like).
    pub(crate) set_recursive: u64,
    /// `bind` or `rbind` was given; true for `rbind`.
    pub(crate) bind: Option<bool>,
    /// `MS_*` kind, and whether it goes for the whole tree.
    pub(crate) propagation: Option<(u64, bool)>,
    /// `tmpcopyup`.
    pub(crate) copy_up: bool,
    /// The rest, for the file system: a flag or `key=value`.
    pub(crate) data: Vec<(String, Option<String>)>,
}

impl MountOptions {
    /// Sorts `options`. Whatever is no option of a mount as such goes to the file system, which
    /// refuses what it does not know.
    ///
    /// Options that would take a restriction away (`rw`, `suid`, `dev`, `exec`) only undo an
    /// earlier one of the same list: a mount never gets more than its source has on the host.
    pub(crate) fn parse(options: &[String]) -> Self {
        use attribute::*;
        let mut parsed = Self::default();
        for option in options {
            match option.as_str() {
                "defaults" | "async" | "loud" | "nomand" => {}
                "bind" => parsed.bind = Some(false),
                "rbind" => parsed.bind = Some(true),
                "tmpcopyup" => parsed.copy_up = true,
                "notmpcopyup" => parsed.copy_up = false,
                "ro" => parsed.set |= READ_ONLY,
                "rw" => parsed.clear(READ_ONLY),
                "nosuid" => parsed.set |= NO_SUID,
                "suid" => parsed.clear(NO_SUID),
                "nodev" => parsed.set |= NO_DEV,
                "dev" => parsed.clear(NO_DEV),
                "noexec" => parsed.set |= NO_EXEC,
                "exec" => parsed.clear(NO_EXEC),
                "nosymfollow" => parsed.set |= NO_SYM_FOLLOW,
                "symfollow" => parsed.clear(NO_SYM_FOLLOW),
                "noatime" => parsed.set_atime(NO_ATIME),
                "strictatime" => parsed.set_atime(STRICT_ATIME),
                "atime" | "relatime" | "norelatime" | "nostrictatime" => parsed.clear(ATIME_MASK),
                "nodiratime" => parsed.set |= NO_DIR_ATIME,
                "diratime" => parsed.clear(NO_DIR_ATIME),
                "rro" => parsed.set_recursive |= READ_ONLY,
                "rrw" => parsed.clear(READ_ONLY),
                "rnosuid" => parsed.set_recursive |= NO_SUID,
                "rsuid" => parsed.clear(NO_SUID),
                "rnodev" => parsed.set_recursive |= NO_DEV,
                "rdev" => parsed.clear(NO_DEV),
                "rnoexec" => parsed.set_recursive |= NO_EXEC,
                "rexec" => parsed.clear(NO_EXEC),
                "rnosymfollow" => parsed.set_recursive |= NO_SYM_FOLLOW,
                "rsymfollow" => parsed.clear(NO_SYM_FOLLOW),
                "private" => parsed.propagation = Some((propagation::PRIVATE, false)),
                "rprivate" => parsed.propagation = Some((propagation::PRIVATE, true)),
                "slave" => parsed.propagation = Some((propagation::SLAVE, false)),
                "rslave" => parsed.propagation = Some((propagation::SLAVE, true)),
                "shared" => parsed.propagation = Some((propagation::SHARED, false)),
                "rshared" => parsed.propagation = Some((propagation::SHARED, true)),
                "unbindable" => parsed.propagation = Some((propagation::UNBINDABLE, false)),
                "runbindable" => parsed.propagation = Some((propagation::UNBINDABLE, true)),
                other => parsed.data.push(match other.split_once('=') {
                    Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                    None => (other.to_owned(), None),
                }),
            }
        }
        parsed
    }

    fn clear(&mut self, bits: u64) {
        self.set &= !bits;
        self.set_recursive &= !bits;
    }

    fn set_atime(&mut self, mode: u64) {
        self.set = self.set & !attribute::ATIME_MASK | mode;
    }

    /// The `mount_setattr` calls that give a detached bind these options: (attributes, recursive).
    pub(crate) fn bind_attributes(&self) -> impl Iterator<Item = (MountAttributes, bool)> {
        let (kind, tree) = self.propagation.unwrap_or((propagation::PRIVATE, true));
        let own = MountAttributes {
            set: self.set,
            // The kernel wants the whole access time field cleared when a mode is set.
            clear: if self.set & attribute::ATIME_MASK == 0 {
                0
            } else {
                attribute::ATIME_MASK
            },
            propagation: if tree { 0 } else { kind },
        };
        let whole = MountAttributes {
            set: self.set_recursive,
            clear: 0,
            propagation: if tree { kind } else { 0 },
        };
        [(own, false), (whole, true)]
            .into_iter()
            .filter(|(attributes, _)| attributes.set != 0 || attributes.propagation != 0)
    }
}

/// The propagation named by `linux.rootfsPropagation`, as `MS_*`.
pub(crate) fn root_propagation(name: &str) -> Option<(u64, bool)> {
    MountOptions::parse(&[name.to_owned()]).propagation
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &[&str]) -> MountOptions {
        let options: Vec<String> = options.iter().map(|&option| option.into()).collect();
        MountOptions::parse(&options)
    }

    #[test]
    fn later_options_win_and_the_rest_is_data() {
        let options = parse(&[
            "ro",
            "nosuid",
            "rw",
            "noatime",
            "strictatime",
            "size=64k",
            "x",
        ]);
        assert_eq!(options.set, attribute::NO_SUID | attribute::STRICT_ATIME);
        assert_eq!(
            options.data,
            [("size".into(), Some("64k".into())), ("x".into(), None)]
        );
    }

    #[test]
    fn a_bind_is_private_unless_it_says_otherwise() {
        let calls: Vec<_> = parse(&["rbind", "ro"]).bind_attributes().collect();
        assert_eq!(calls.len(), 2);
        assert_eq!((calls[0].0.set, calls[0].1), (attribute::READ_ONLY, false));
        assert_eq!(
            (calls[1].0.propagation, calls[1].1),
            (propagation::PRIVATE, true)
        );
        let calls: Vec<_> = parse(&["bind", "slave"]).bind_attributes().collect();
        assert_eq!(calls.len(), 1);
        assert_eq!(
            (calls[0].0.propagation, calls[0].1),
            (propagation::SLAVE, false)
        );
    }
}
