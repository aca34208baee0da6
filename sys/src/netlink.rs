//! Netlink sockets, attributes and extended acknowledgements.
