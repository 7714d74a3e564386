//! Builds tar streams byte by byte, well-formed or not.
#![allow(dead_code)] // each test file uses a part

/// One header block and the data after it.
#[derive(Clone)]
pub struct Member {
    block: [u8; 512],
    data: Vec<u8>,
}

impl Member {
    /// A ustar header of this type; mode 0644, owner 0, time 0.
    pub fn new(kind: u8, name: impl AsRef<[u8]>) -> Self {
        let name = name.as_ref();
        assert!(name.len() <= 100, "use long_name or pax");
        let mut block = [0; 512];
        block[..name.len()].copy_from_slice(name);
        block[257..265].copy_from_slice(b"ustar\x0000");
        block[156] = kind;
        let mut member = Self {
            block,
            data: Vec::new(),
        };
        member.octal(100, 8, 0o644);
        member.octal(108, 8, 0);
        member.octal(116, 8, 0);
        member.octal(124, 12, 0);
        member.octal(136, 12, 0);
        member
    }
    pub fn file(name: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> Self {
        Self::new(b'0', name).data(content)
    }
    pub fn directory(name: impl AsRef<[u8]>) -> Self {
        Self::new(b'5', name)
    }
    pub fn symlink(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        Self::new(b'2', name).field(157, target)
    }
    pub fn hard_link(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        Self::new(b'1', name).field(157, target)
    }
    /// A PAX header with these records.
    pub fn pax(records: &[(&str, &[u8])]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while rest + length.to_string().len() != length {
                length += 1;
            }
            data.extend_from_slice(format!("{length} {key}=").as_bytes());
            data.extend_from_slice(value);
            data.push(b'\n');
        }
        Self::new(b'x', "PaxHeaders/x").data(data)
    }
    /// A GNU long name (`L`) or long link (`K`) header.
    pub fn long(kind: u8, name: impl AsRef<[u8]>) -> Self {
        let mut data = name.as_ref().to_vec();
        data.push(0);
        Self::new(kind, "././@LongLink").data(data).gnu()
    }
    /// Sets data and size.
    pub fn data(mut self, data: impl AsRef<[u8]>) -> Self {
        self.data = data.as_ref().to_vec();
        self.octal(124, 12, self.data.len() as u64);
        self
    }
    /// Overwrites bytes of the header.
    pub fn field(mut self, at: usize, value: impl AsRef<[u8]>) -> Self {
        let value = value.as_ref();
        self.block[at..at + value.len()].copy_from_slice(value);
        self
    }
    pub fn size(mut self, size: u64) -> Self {
        self.octal(124, 12, size);
        self
    }
    pub fn gnu(self) -> Self {
        self.field(257, b"ustar  \0")
    }
    pub fn owner(mut self, uid: u64, gid: u64) -> Self {
        self.octal(108, 8, uid);
        self.octal(116, 8, gid);
        self
    }
    pub fn mode(mut self, mode: u64) -> Self {
        self.octal(100, 8, mode);
        self
    }
    fn octal(&mut self, at: usize, width: usize, value: u64) {
        let text = format!("{value:0digits$o}\0", digits = width - 1);
        self.block[at..at + width].copy_from_slice(text.as_bytes());
    }
    /// The bytes, checksum computed and data padded.
    pub fn bytes(&self) -> Vec<u8> {
        let mut block = self.block;
        block[148..156].copy_from_slice(b"        ");
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let mut bytes = block.to_vec();
        bytes.extend_from_slice(&self.data);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        bytes
    }
}

/// Members without an end mark.
pub fn open_tar(members: &[Member]) -> Vec<u8> {
    members.iter().flat_map(Member::bytes).collect()
}

/// Members and the end mark.
pub fn tar(members: &[Member]) -> Vec<u8> {
    let mut bytes = open_tar(members);
    bytes.extend_from_slice(&[0; 1024]);
    bytes
}
