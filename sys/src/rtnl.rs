//! rtnetlink: links, queueing disciplines, filters, XDP.
