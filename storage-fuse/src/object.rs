//! Objects: file contents by digest, mode 0400, owned by the login.
