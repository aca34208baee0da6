//! bpf(2): one choke point and a safe wrapper per command.
