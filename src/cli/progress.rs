//! Progress on a terminal; nothing elsewhere. Must not print to standard output.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// A bar of bytes. On what is no terminal it draws nothing.
pub fn bar(label: &str, total: u64) -> ProgressBar {
    let bar = ProgressBar::new(total).with_message(label.to_owned());
    let style = "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}";
    if let Ok(style) = ProgressStyle::with_template(style) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}
