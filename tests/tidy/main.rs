//! Our own rules as tests.

mod rooms;
