//! The /proc and /sys files a loader reads.
