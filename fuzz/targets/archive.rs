//! Any bytes as an archive of images.
#![no_main]

use std::io::{Read, Seek, SeekFrom, Write};

use libfuzzer_sys::fuzz_target;
use selkie_image::platform::Platform;
use selkie_image::transport::{Input, Source, Spool};

fuzz_target!(|data: &[u8]| {
    let spool = Spool {
        directory: std::env::temp_dir(),
        limit: 1 << 20,
    };
    let name = "archive";
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let mut file = std::fs::File::from(rustix::fs::memfd_create(name, flags).unwrap());
    file.write_all(data).unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    let Ok(source) = Source::detect(Input::Stream(file), &spool) else {
        return;
    };
    let Ok(images) = source.images(None, &Platform::host()) else {
        return;
    };
    for image in images {
        assert_eq!(image.layers.len(), image.config.diff_ids.len());
        for layer in &image.layers {
            if let Ok(opened) = source.open_layer(layer) {
                let read = opened.reader.take(u64::MAX).bytes().count() as u64;
                assert_eq!(read, opened.size);
            }
        }
    }
});
