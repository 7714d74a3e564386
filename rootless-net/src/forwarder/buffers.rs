//! Memory for what is under way between two sockets, used again and again.
//!
//! Clients decide how many connections move at a time, and one whose reader has stopped keeps its
//! buffer. So only so many are large; any further ones are small, which is slower and takes less than
//! the kernel's own buffers of that connection.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes of a large buffer. Each time one is filled the sender is told that there is room again, which
/// costs as much as moving many bytes; and a processor's own cache holds no more.
const LARGE: usize = 512 * 1024;

/// Bytes of a small one.
const SMALL: usize = 8 * 1024;

/// How many large ones there are at most.
const MOST: usize = 32;

/// How many of them are kept while nothing moves.
const KEPT: usize = 2;

/// See the module.
#[derive(Clone, Default)]
pub(super) struct Buffers(Arc<Mutex<Large>>);

#[derive(Default)]
struct Large {
    idle: Vec<Box<[u8]>>,
    in_use: usize,
}

impl Buffers {
    /// A buffer with anything in it.
    pub(super) fn take(&self) -> Buffer {
        let mut large = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if large.in_use == MOST {
            return Buffer {
                bytes: vec![0; SMALL].into(),
                home: None,
            };
        }
        large.in_use += 1;
        let idle = large.idle.pop();
        drop(large);
        Buffer {
            bytes: idle.unwrap_or_else(|| vec![0; LARGE].into()),
            home: Some(self.clone()),
        }
    }
}

/// Goes back to the others when it is dropped.
pub(super) struct Buffer {
    bytes: Box<[u8]>,
    /// Where a large one belongs.
    home: Option<Buffers>,
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let Some(home) = self.home.take() else { return };
        let mut large = home.0.lock().unwrap_or_else(PoisonError::into_inner);
        large.in_use -= 1;
        if large.idle.len() < KEPT {
            large.idle.push(std::mem::take(&mut self.bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_so_many_are_large() {
        let buffers = Buffers::default();
        let mut all: Vec<Buffer> = (0..MOST).map(|_| buffers.take()).collect();
        assert!(all.iter().all(|buffer| buffer.len() == LARGE));
        let further = buffers.take();
        assert_eq!(further.len(), SMALL);
        drop(further);
        assert_eq!(buffers.take().len(), SMALL);
        all.pop();
        assert_eq!(buffers.take().len(), LARGE);
        all.clear();
        let large = buffers.0.lock().unwrap();
        assert_eq!((large.in_use, large.idle.len()), (0, KEPT));
    }
}
