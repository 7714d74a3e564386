//! What extended headers (PAX `x`, GNU `L` and `K`) say about the member that follows them.

use std::collections::BTreeMap;

use super::{LayerError, TarReport, attributes, pax, sparse};

const SCHILY: &[u8] = b"SCHILY.xattr.";
const LIBARCHIVE: &[u8] = b"LIBARCHIVE.xattr.";
const SPARSE: &[u8] = b"GNU.sparse.";

/// Collected until a member uses them.
#[derive(Debug, Default)]
pub(super) struct Extensions {
    /// GNU `L`.
    pub long_name: Option<Vec<u8>>,
    /// GNU `K`.
    pub long_link: Option<Vec<u8>>,
    /// PAX.
    pub pax: PaxFields,
}

/// The PAX records we understand; the rest changes nothing we keep.
#[derive(Debug, Default)]
pub(super) struct PaxFields {
    pub path: Option<Vec<u8>>,
    pub link_path: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub uid: Option<u64>,
    pub gid: Option<u64>,
    pub mtime: Option<(i64, u32)>,
    schily: BTreeMap<Vec<u8>, Vec<u8>>,
    libarchive: BTreeMap<Vec<u8>, Vec<u8>>,
    sparse: SparseFields,
}

#[derive(Debug, Default)]
struct SparseFields {
    major: Option<u64>,
    minor: Option<u64>,
    name: Option<Vec<u8>>,
    /// `size` (0.x) or `realsize` (1.0).
    size: Option<u64>,
    count: Option<u64>,
    numbers: Vec<u64>,
    /// Any record of the family but those above.
    seen: bool,
}

/// How a member is sparse, as its PAX header says.
#[derive(Debug)]
pub(super) struct PaxSparse {
    /// Replaces the name.
    pub name: Option<Vec<u8>>,
    /// The file's real size, when given.
    pub size: Option<u64>,
    /// The map of forms 0.0 and 0.1; `None`: form 1.0, the map starts the data.
    pub parts: Option<sparse::Parts>,
}

impl PaxFields {
    /// Reads the records of one extended header.
    pub(super) fn parse(data: &[u8]) -> Result<Self, String> {
        let mut fields = Self::default();
        for (key, value) in pax::records(data)? {
            // an empty value takes the key back: the plain header counts again
            if value.is_empty() && !key.starts_with(SCHILY) {
                continue;
            }
            let bad = || format!("the PAX record {} is malformed", super::printable(key));
            let number = || pax::decimal(value).ok_or_else(bad);
            let path = || {
                if value.contains(&0) {
                    return Err(format!("the PAX {} has a NUL byte", super::printable(key)));
                }
                Ok(Some(value.to_vec()))
            };
            match key {
                b"path" => fields.path = path()?,
                b"linkpath" => fields.link_path = path()?,
                b"size" => fields.size = Some(number()?),
                b"uid" => fields.uid = Some(number()?),
                b"gid" => fields.gid = Some(number()?),
                b"mtime" => fields.mtime = Some(pax::time(value).ok_or_else(bad)?),
                _ => {
                    if let Some(name) = key.strip_prefix(SCHILY) {
                        fields.schily.insert(name.to_vec(), value.to_vec());
                    } else if let Some(name) = key.strip_prefix(LIBARCHIVE) {
                        let name = attributes::percent_decoded(name).ok_or_else(bad)?;
                        let value = attributes::base64_decoded(value).ok_or_else(bad)?;
                        fields.libarchive.insert(name, value);
                    } else if let Some(name) = key.strip_prefix(SPARSE) {
                        fields.sparse.add(name, value).ok_or_else(bad)?;
                    }
                }
            }
        }
        Ok(fields)
    }

    /// The attributes of the member, checked. libarchive writes both forms of each; the plain one
    /// wins.
    pub(super) fn take_xattrs(
        &mut self,
        path: &[u8],
        report: &mut TarReport,
    ) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, LayerError> {
        let mut all = std::mem::take(&mut self.libarchive);
        all.append(&mut self.schily);
        let mut checked = BTreeMap::new();
        for (name, value) in all {
            if attributes::steers_overlay(&name) {
                report.overlay_xattrs += 1;
                continue;
            }
            let value = attributes::check(path, &name, &value)?;
            checked.insert(name, value);
        }
        Ok(checked)
    }

    /// Whether and how the member is sparse.
    pub(super) fn take_sparse(&mut self) -> Result<Option<PaxSparse>, String> {
        let fields = std::mem::take(&mut self.sparse);
        let parts = match (fields.major, fields.minor) {
            (None, None) if !fields.seen => return Ok(None),
            (None, None) | (Some(0), Some(0 | 1)) => {
                Some(sparse::pax_0(&fields.numbers, fields.count)?)
            }
            (Some(1), Some(0)) => None,
            (major, minor) => {
                return Err(format!(
                    "sparse files of form {}.{} are unknown",
                    major.unwrap_or(0),
                    minor.unwrap_or(0)
                ));
            }
        };
        Ok(Some(PaxSparse {
            name: fields.name,
            size: fields.size,
            parts,
        }))
    }
}

impl SparseFields {
    fn add(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        match key {
            b"major" => self.major = Some(pax::decimal(value)?),
            b"minor" => self.minor = Some(pax::decimal(value)?),
            b"name" => self.name = Some(value.to_vec()),
            b"size" | b"realsize" => self.size = Some(pax::decimal(value)?),
            b"numblocks" => self.count = Some(pax::decimal(value)?),
            b"offset" | b"numbytes" => {
                let offset_expected = self.numbers.len().is_multiple_of(2);
                if (key == b"offset") != offset_expected {
                    return None;
                }
                self.numbers.push(pax::decimal(value)?);
                self.seen = true;
            }
            b"map" => {
                self.numbers = value
                    .split(|byte| *byte == b',')
                    .map(pax::decimal)
                    .collect::<Option<_>>()?;
                self.seen = true;
            }
            _ => {}
        }
        Some(())
    }
}
