//! Network namespaces by descriptor.
