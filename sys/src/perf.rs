//! perf_event_open(2) and its ioctls.
