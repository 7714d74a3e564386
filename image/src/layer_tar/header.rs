//! One 512-byte header block: ustar, GNU and the old V7 form.

/// Size of every block of a tar stream in bytes.
pub(super) const BLOCK: usize = 512;

/// A block as it was read.
pub(super) type Block = [u8; BLOCK];

/// Fields of a header whose meaning does not depend on extensions.
#[derive(Debug)]
pub(super) struct Header {
    pub name: Vec<u8>,
    pub link_name: Vec<u8>,
    pub kind: u8,
    pub mode: i64,
    pub uid: i64,
    pub gid: i64,
    pub size: i64,
    pub mtime: i64,
    /// GNU form: bytes after the device numbers are not a name prefix but sparse data and more.
    pub gnu: bool,
}

/// Why a block is not a header.
pub(super) type HeaderFault = String;

/// A field up to its first NUL.
pub(super) fn text(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|byte| *byte == 0);
    &field[..end.unwrap_or(field.len())]
}

/// A numeric field: octal digits, or base-256 when the first bit is set.
pub(super) fn number(field: &[u8], what: &str) -> Result<i64, HeaderFault> {
    if field[0] & 0x80 != 0 {
        // two's complement without the marker bit; the next bit is the sign
        let negative = field[0] & 0x40 != 0;
        let mut value: i128 = if negative { -1 } else { 0 };
        for (index, byte) in field.iter().enumerate() {
            let mut byte = *byte;
            if index == 0 && !negative {
                byte &= 0x7f;
            }
            value = (value << 8) | i128::from(byte);
            if i64::try_from(value).is_err() {
                return Err(format!("the {what} does not fit 64 bits"));
            }
        }
        return i64::try_from(value).map_err(|_| format!("the {what} does not fit 64 bits"));
    }
    let padding = |byte: &u8| *byte == b' ' || *byte == 0;
    let Some(start) = field.iter().position(|byte| !padding(byte)) else {
        return Ok(0);
    };
    let digits = &field[start..];
    let end = digits.iter().position(padding).unwrap_or(digits.len());
    let mut value: i64 = 0;
    for byte in &digits[..end] {
        if !(b'0'..=b'7').contains(byte) {
            return Err(format!(
                "the {what} \"{}\" is not octal",
                field.escape_ascii()
            ));
        }
        // 12 octal digits are 36 bits: no overflow
        value = value << 3 | i64::from(byte - b'0');
    }
    Ok(value)
}

/// True when every byte is zero: two such blocks end an archive.
pub(super) fn is_zero(block: &[u8]) -> bool {
    block.iter().all(|byte| *byte == 0)
}

impl Header {
    /// Checks the checksum and reads the fields.
    pub(super) fn parse(block: &Block) -> Result<Self, HeaderFault> {
        let stored = number(&block[148..156], "checksum")?;
        let blank = |index: usize| (148..156).contains(&index);
        let (mut unsigned, mut signed) = (0i64, 0i64);
        for (index, byte) in block.iter().enumerate() {
            let byte = if blank(index) { b' ' } else { *byte };
            unsigned += i64::from(byte);
            // some old writers summed signed bytes
            signed += i64::from(byte as i8);
        }
        if stored != unsigned && stored != signed {
            return Err("the checksum is wrong".to_owned());
        }
        let magic = &block[257..265];
        let gnu = magic == b"ustar  \0";
        let ustar = magic.starts_with(b"ustar\0");
        let mut name = text(&block[..100]).to_vec();
        if ustar {
            // `star` keeps times in the last 24 bytes of the prefix
            let star = &block[508..512] == b"tar\0";
            let prefix = text(&block[345..if star { 476 } else { 500 }]);
            if !prefix.is_empty() {
                let mut joined = prefix.to_vec();
                joined.push(b'/');
                joined.append(&mut name);
                name = joined;
            }
        }
        Ok(Self {
            name,
            link_name: text(&block[157..257]).to_vec(),
            kind: block[156],
            mode: number(&block[100..108], "mode")?,
            uid: number(&block[108..116], "owner")?,
            gid: number(&block[116..124], "group")?,
            size: number(&block[124..136], "size")?,
            mtime: number(&block[136..148], "time")?,
            gnu,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_all_forms() {
        assert_eq!(number(b"0000644\0", "mode"), Ok(0o644));
        assert_eq!(number(b"   644 \0", "mode"), Ok(0o644));
        assert_eq!(number(b"\0\0\0\0\0\0\0\0", "mode"), Ok(0));
        assert_eq!(number(b"77777777", "mode"), Ok(0o77777777));
        assert_eq!(number(&[0x80, 0, 0, 0, 1, 0, 0, 0], "owner"), Ok(1 << 24));
        assert_eq!(number(&[0xff; 8], "owner"), Ok(-1));
        assert_eq!(number(&[0xff; 12], "size"), Ok(-1));
        let mut large = [0; 12];
        large[0] = 0x80;
        large[4] = 0x7f;
        assert_eq!(number(&large, "size"), Ok(0x7f << 56));
        large[3] = 1;
        assert!(number(&large, "size").is_err());
        assert!(number(b"0000648\0", "mode").is_err());
        assert!(number(b"-000644\0", "mode").is_err());
    }
}
