//! What the launching process and the child it cloned say to each other.
//!
//! One `SOCK_SEQPACKET` pair carries everything; a message is a tag byte and a fixed body, with at
//! most one descriptor. The order is fixed:
//!
//! ```text
//! intermediate → parent  Child + pidfd   (only where one is needed, see passage.rs)
//! parent → child   Maps        the ID maps are written
//! parent → child   Root + fd   the root file system, a detached mount
//! parent → child   User        who to be
//! child → parent   Network+fd  its network namespace, where the parent wants it
//! child → parent   Terminal+fd the master side, when there is a terminal
//! child → parent   Ready       set up; about to wait before exec
//! parent → child   Go          exec now
//! ```
//!
//! At any time the child may say `Failed` and is gone. Its end of the socket is close-on-exec, so
//! the parent reads end-of-file after `Go` exactly when `exec` has worked; the child reads
//! end-of-file when the parent has died and then exits, so nothing is left half made.

use rustix::io::Errno;

/// Tag of a message: `M`aps and so on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Tag {
    Maps = b'M',
    Root = b'R',
    User = b'U',
    Go = b'G',
    Network = b'N',
    Terminal = b'T',
    Ready = b'W',
    Failed = b'E',
    Child = b'C',
}

/// A step of the child's script that did not work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Failure {
    /// Index into the script.
    pub(crate) step: u32,
    /// What the kernel said.
    pub(crate) errno: Errno,
    /// Which part of the step; its meaning depends on the step.
    pub(crate) detail: u32,
}

impl Failure {
    pub(crate) const LENGTH: usize = 13;
    /// As `step`: it was not the child but the intermediate process that failed.
    pub(crate) const PASSAGE: u32 = u32::MAX;
    /// As `detail` of [`Self::PASSAGE`]: at the clone.
    pub(crate) const CLONE_DETAIL: u32 = u32::MAX;

    pub(crate) fn encode(&self) -> [u8; Self::LENGTH] {
        let mut bytes = [0; Self::LENGTH];
        bytes[0] = Tag::Failed as u8;
        bytes[1..5].copy_from_slice(&self.step.to_ne_bytes());
        bytes[5..9].copy_from_slice(&self.errno.raw_os_error().to_ne_bytes());
        bytes[9..13].copy_from_slice(&self.detail.to_ne_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; Self::LENGTH] = bytes.try_into().ok()?;
        let word = |at: usize| [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
        (bytes[0] == Tag::Failed as u8).then(|| Self {
            step: u32::from_ne_bytes(word(1)),
            errno: Errno::from_raw_os_error(i32::from_ne_bytes(word(5))),
            detail: u32::from_ne_bytes(word(9)),
        })
    }
}

/// Most supplementary groups passed on; the kernel would take 65536.
pub(crate) const MAX_GROUPS: usize = 4096;

/// Bytes that hold any `User` message.
pub(crate) const USER_LENGTH: usize = 13 + 4 * MAX_GROUPS + 4096 + 6;

/// Writes the body of a `User` message: IDs, group count, groups, and `HOME=…` (may be empty).
pub(crate) fn encode_user(uid: u32, gid: u32, groups: &[u32], home: &[u8]) -> Vec<u8> {
    let mut bytes = vec![Tag::User as u8];
    for word in [uid, gid, groups.len() as u32] {
        bytes.extend(word.to_ne_bytes());
    }
    for group in groups {
        bytes.extend(group.to_ne_bytes());
    }
    bytes.extend(home);
    bytes
}

/// A received `User` message, read in place.
#[derive(Debug, Clone, Copy)]
pub(crate) struct UserMessage<'a> {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    groups: &'a [u8],
    /// `HOME=…`, or empty.
    pub(crate) home: &'a [u8],
}

impl<'a> UserMessage<'a> {
    pub(crate) fn decode(bytes: &'a [u8]) -> Option<Self> {
        let (&tag, rest) = bytes.split_first()?;
        let (uid, rest) = split_word(rest)?;
        let (gid, rest) = split_word(rest)?;
        let (count, rest) = split_word(rest)?;
        let (groups, home) = rest.split_at_checked(count as usize * 4)?;
        (tag == Tag::User as u8).then_some(Self {
            uid,
            gid,
            groups,
            home,
        })
    }

    pub(crate) fn groups(&self) -> impl Iterator<Item = u32> + use<'a> {
        self.groups
            .chunks_exact(4)
            .map(|word| u32::from_ne_bytes([word[0], word[1], word[2], word[3]]))
    }
}

fn split_word(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (word, rest) = bytes.split_first_chunk()?;
    Some((u32::from_ne_bytes(*word), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_the_socket() {
        let failure = Failure {
            step: 7,
            errno: Errno::NOENT,
            detail: 3,
        };
        assert_eq!(Failure::decode(&failure.encode()), Some(failure));
        assert_eq!(Failure::decode(b"E123"), None);
        let bytes = encode_user(33, 34, &[34, 50], b"HOME=/x");
        let user = UserMessage::decode(&bytes).unwrap();
        assert_eq!((user.uid, user.gid, user.home), (33, 34, &b"HOME=/x"[..]));
        assert_eq!(user.groups().collect::<Vec<_>>(), [34, 50]);
        assert!(UserMessage::decode(&bytes[..14]).is_none());
    }
}
