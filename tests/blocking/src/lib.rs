//! The suite of connections that block is in `tests`.
