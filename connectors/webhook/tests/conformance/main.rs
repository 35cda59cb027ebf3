//! The connector on a real HTTP server, which judges every signature.

mod answers;
mod delivery;
mod example;
mod kit;
mod setup;
mod targets;
