//! Any bytes as an uncompressed layer.
#![no_main]

use std::io::Read;

use libfuzzer_sys::fuzz_target;
use selkie_image::layer_tar::{EntryKind, LayerEntry, LayerSink, Limits, SinkError, read_tar};

#[derive(Default)]
struct Checker {
    rebuilt: Vec<u8>,
    content: u64,
    entries: u64,
}

fn assert_clean(path: &[u8]) {
    assert!(path.len() < 4096 && !path.contains(&0));
    assert!(
        path.is_empty()
            || path
                .split(|byte| *byte == b'/')
                .all(|part| !matches!(part, b"" | b"." | b".."))
    );
}

impl LayerSink for Checker {
    fn raw(&mut self, bytes: &[u8]) -> Result<(), SinkError> {
        self.rebuilt.extend_from_slice(bytes);
        Ok(())
    }
    fn entry(
        &mut self,
        entry: LayerEntry,
        sparse_map: Option<&[(u64, u64)]>,
        content: &mut dyn Read,
    ) -> Result<(), SinkError> {
        assert_clean(&entry.path);
        self.entries += 1;
        let mut bytes = Vec::new();
        content.read_to_end(&mut bytes)?;
        match entry.kind {
            EntryKind::File { size } => assert_eq!(size, bytes.len() as u64),
            EntryKind::HardLink { target } => {
                assert_clean(&target);
                assert_ne!(target, entry.path);
            }
            _ => assert!(bytes.is_empty()),
        }
        self.content += bytes.len() as u64;
        match sparse_map {
            None => self.rebuilt.extend_from_slice(&bytes),
            Some(parts) => {
                for (offset, length) in parts {
                    let part = &bytes[*offset as usize..][..*length as usize];
                    self.rebuilt.extend_from_slice(part);
                }
            }
        }
        Ok(())
    }
}

fuzz_target!(|data: &[u8]| {
    let limits = Limits {
        tar_bytes: 1 << 20,
        entries: 1000,
        header_bytes: 1 << 16,
        content_bytes: 1 << 20,
    };
    let mut checker = Checker::default();
    let mut input = data;
    if let Ok(report) = read_tar(&mut input, &limits, &mut checker) {
        assert!(checker.rebuilt == data);
        assert_eq!(report.entries, checker.entries);
        assert_eq!(report.tar_bytes, data.len() as u64);
    }
    assert!(checker.entries <= limits.entries);
    assert!(checker.content <= limits.content_bytes);
});
