//! tracefs: mount discovery, probe events, event ids and formats.
