//! Progress of layers: a bar for people, nothing for pipes.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};
use selkie_engine::images::LoadEvent;

/// Follows one load.
#[derive(Debug)]
pub struct LayerProgress {
    /// Absent when nobody looks.
    current: Option<ProgressBar>,
    enabled: bool,
}

impl LayerProgress {
    /// Shows something only when standard error is a terminal and `quiet` is off.
    pub fn new(quiet: bool) -> Self {
        Self {
            current: None,
            enabled: !quiet && std::io::stderr().is_terminal(),
        }
    }

    /// The next thing that happened.
    pub fn show(&mut self, event: LoadEvent<'_>) {
        if !self.enabled {
            return;
        }
        match event {
            LoadEvent::Layer {
                diff_id,
                size,
                present,
            } => {
                let short: String = diff_id
                    .trim_start_matches("sha256:")
                    .chars()
                    .take(12)
                    .collect();
                let bar = ProgressBar::new(size);
                if let Ok(style) =
                    ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes}")
                {
                    bar.set_style(style);
                }
                bar.set_message(format!("Layer {short}"));
                if present {
                    bar.finish_with_message(format!("Layer {short} already exists"));
                } else {
                    self.current = Some(bar);
                }
            }
            LoadEvent::Read(bytes) => {
                if let Some(bar) = &self.current {
                    bar.set_position(bytes);
                }
            }
            LoadEvent::LayerDone => {
                if let Some(bar) = self.current.take() {
                    bar.finish();
                }
            }
        }
    }

    /// Leaves the terminal tidy, also after a failure.
    pub fn finish(&mut self) {
        if let Some(bar) = self.current.take() {
            bar.abandon();
        }
    }
}
