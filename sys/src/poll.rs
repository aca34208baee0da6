//! epoll and eventfd.
