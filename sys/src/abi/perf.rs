//! Attribute struct, records and shared page of perf_event_open(2).
