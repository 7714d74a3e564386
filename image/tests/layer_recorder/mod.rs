//! A sink that keeps everything it is given.
#![allow(dead_code)] // each test file uses a part

use std::io::Read;

use selkie_image::layer_tar::{
    Expected, LayerEntry, LayerError, LayerReport, LayerSink, Limits, SinkError, read_layer,
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
        match sparse_map {
            None => self.rebuilt.extend_from_slice(&bytes),
            Some(map) => {
                for (offset, length) in map {
                    let part = &bytes[*offset as usize..][..*length as usize];
                    self.rebuilt.extend_from_slice(part);
                }
            }
        }
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
