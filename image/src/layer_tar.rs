//! Reading a layer: decompression, digests, tar with GNU and PAX extensions, hostile input.
