//! A sink that keeps everything it is given.
#![allow(dead_code)] // each test file uses a part

use std::io::Read;

use selkie_image::layer_tar::{
    EntryKind, Expected, LayerEntry, LayerError, LayerReport, LayerSink, Limits, SinkError,
    read_layer,
};

#[derive(Default)]
pub struct Recorder {
    pub entries: Vec<Recorded>,
    /// The stream put together again.
    pub rebuilt: Vec<u8>,
}

pub struct Recorded {
    pub meta: LayerEntry,
    pub sparse_map: Option<Vec<(u64, u64)>>,
    pub content: Vec<u8>,
}

impl Recorded {
    pub fn path(&self) -> &str {
        std::str::from_utf8(&self.meta.path).unwrap()
    }
    /// The file's content with its holes.
    pub fn expanded(&self) -> Vec<u8> {
        let EntryKind::File { size } = self.meta.kind else {
            panic!("not a file");
        };
        let Some(map) = &self.sparse_map else {
            return self.content.clone();
        };
        let mut whole = vec![0; size as usize];
        let mut rest = &self.content[..];
        for (offset, length) in map {
            let (part, tail) = rest.split_at(*length as usize);
            whole[*offset as usize..][..part.len()].copy_from_slice(part);
            rest = tail;
        }
        whole
    }
}

impl LayerSink for Recorder {
    fn raw(&mut self, bytes: &[u8]) -> Result<(), SinkError> {
        self.rebuilt.extend_from_slice(bytes);
        Ok(())
    }
    fn entry(
        &mut self,
        meta: LayerEntry,
        sparse_map: Option<&[(u64, u64)]>,
        content: &mut dyn Read,
    ) -> Result<(), SinkError> {
        let mut bytes = Vec::new();
        content.read_to_end(&mut bytes)?;
        self.rebuilt.extend_from_slice(&bytes);
        self.entries.push(Recorded {
            meta,
            sparse_map: sparse_map.map(<[_]>::to_vec),
            content: bytes,
        });
        Ok(())
    }
}

/// Reads a whole stream with default limits and nothing expected.
pub fn read(bytes: &[u8]) -> Result<(LayerReport, Recorder), LayerError> {
    let mut recorder = Recorder::default();
    let mut source = bytes;
    let report = read_layer(
        &mut source,
        &Expected::default(),
        &Limits::default(),
        None,
        &mut recorder,
    )?;
    Ok((report, recorder))
}
