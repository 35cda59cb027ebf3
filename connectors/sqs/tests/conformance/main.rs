//! The sink against a real server, and against one that answers by a script in front of it.

mod kit;
mod server;
mod stub;
