//! `system check` and `system prune`: what is left behind, found and removed; `info`.
