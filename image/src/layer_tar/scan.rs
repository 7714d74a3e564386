//! Finds the members of a tar file without reading their content.
//!
//! For archives *of* images (`docker-archive`, `oci-archive`), whose members are then read by
//! offset. Layers go through [`super::read_tar`] instead.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::extensions::{Extensions, PaxFields};
use super::header::{self, BLOCK, Block, Header};
use super::{LayerError, Limits, member_path};

/// One member.
pub(crate) struct ArchiveMember {
    /// Clean relative path.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: MemberKind,
}

/// What a member is.
pub(crate) enum MemberKind {
    /// A regular file, its bytes at this offset.
    File { offset: u64, size: u64 },
    /// A symbolic or hard link to this clean path of the same archive.
    Link(Vec<u8>),
    /// A directory or something else without a use here.
    Other,
}

/// The member whose header is at `offset` of a file of `length` bytes, and where the next one is.
/// `None` at the end.
pub(crate) fn next_member(
    file: &File,
    length: u64,
    mut offset: u64,
) -> Result<Option<(ArchiveMember, u64)>, LayerError> {
    let mut extensions = Extensions::default();
    loop {
        let at = offset;
        let fault = |what: String| LayerError::Header { at, what };
        if offset == length && offset > 0 {
            return Ok(None);
        }
        let block = read_block(file, length, offset)?;
        if header::is_zero(&block) {
            return Ok(None);
        }
        let header = Header::parse(&block).map_err(fault)?;
        offset += BLOCK as u64;
        let size = match header.kind {
            b'1'..=b'6' => 0,
            _ => match extensions.pax.size {
                Some(size) if !matches!(header.kind, b'x' | b'g' | b'L' | b'K') => size,
                _ => u64::try_from(header.size)
                    .map_err(|_| LayerError::entry(&header.name, "its size is negative"))?,
            },
        };
        if size > length.saturating_sub(offset) {
            return Err(LayerError::Truncated {
                at: length,
                within: format!("within \"{}\"", super::printable(&header.name)),
            });
        }
        let data_at = offset;
        offset += size.next_multiple_of(BLOCK as u64);
        match header.kind {
            b'x' => {
                let data = small(file, data_at, size, &header)?;
                extensions.pax = PaxFields::parse(&data).map_err(fault)?;
            }
            b'L' => {
                let data = small(file, data_at, size, &header)?;
                extensions.long_name = Some(header::text(&data).to_vec());
            }
            b'K' => {
                let data = small(file, data_at, size, &header)?;
                extensions.long_link = Some(header::text(&data).to_vec());
            }
            b'g' => {}
            kind => {
                if kind == b'S' || extensions.pax.take_sparse().map_err(fault)?.is_some() {
                    return Err(LayerError::entry(
                        &header.name,
                        "sparse files cannot be read by offset: pack the archive without --sparse",
                    ));
                }
                let name = extensions.long_name.or(extensions.pax.path);
                let name = name.unwrap_or(header.name);
                let link = extensions.long_link.or(extensions.pax.link_path);
                let link = link.unwrap_or(header.link_name);
                let path = member_path::clean(&name)?;
                let kind = match kind {
                    0 if name.ends_with(b"/") => MemberKind::Other,
                    0 | b'0' | b'7' => MemberKind::File {
                        offset: data_at,
                        size,
                    },
                    b'1' => MemberKind::Link(member_path::clean(&link)?),
                    b'2' => match beside(&path, &link) {
                        Some(target) => MemberKind::Link(target),
                        None => MemberKind::Other,
                    },
                    _ => MemberKind::Other,
                };
                return Ok(Some((ArchiveMember { path, kind }, offset)));
            }
        }
    }
}

fn read_block(file: &File, length: u64, offset: u64) -> Result<Block, LayerError> {
    let mut block = [0; BLOCK];
    if length.saturating_sub(offset) < BLOCK as u64 {
        return Err(LayerError::Truncated {
            at: length,
            within: "within a header".to_owned(),
        });
    }
    file.read_exact_at(&mut block, offset)
        .map_err(LayerError::Read)?;
    Ok(block)
}

fn small(file: &File, offset: u64, size: u64, header: &Header) -> Result<Vec<u8>, LayerError> {
    let limit = Limits::default().header_bytes;
    if size > limit {
        return Err(LayerError::Limit(format!(
            "the extended header \"{}\" has {size} bytes; {limit} are allowed",
            super::printable(&header.name)
        )));
    }
    // bounded by `limit`, which fits
    let mut data = vec![0; usize::try_from(size).unwrap_or(0)];
    file.read_exact_at(&mut data, offset)
        .map_err(LayerError::Read)?;
    Ok(data)
}

/// Where a symbolic link at `path` leads, when that is inside the archive. Other than in layers,
/// `..` is common here: Docker's layers link to `../OTHER/layer.tar`.
fn beside(path: &[u8], target: &[u8]) -> Option<Vec<u8>> {
    let (parent, _) = member_path::split(path);
    let mut parts: Vec<&[u8]> = Vec::new();
    let parent = parent.split(|byte| *byte == b'/');
    let target = match target.strip_prefix(b"/") {
        Some(_) => return None,
        None => target.split(|byte| *byte == b'/'),
    };
    for part in parent.chain(target) {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts.join(&b'/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn symbolic_links_stay_inside() {
        assert_eq!(
            beside(b"a/layer.tar", b"../b/layer.tar").unwrap(),
            b"b/layer.tar"
        );
        assert_eq!(beside(b"x", b"y").unwrap(), b"y");
        assert_eq!(beside(b"a/x", b"../../y"), None);
        assert_eq!(beside(b"a/x", b"/y"), None);
    }
}
