//! Our own rules as tests.

mod docs;
mod rooms;
