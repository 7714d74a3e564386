//! Named volumes.
