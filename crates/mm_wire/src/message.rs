//! Payloads of the handlers that platforms commonly have: what follows the communicate header.

pub mod supervisor;
pub mod variable;
