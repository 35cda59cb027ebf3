//! The sink against a real server, and against one that answers by a script in front of it.

mod credentials;
mod faults;
mod kit;
mod misconfigured;
mod refusals;
mod server;
mod session;
mod stub;
