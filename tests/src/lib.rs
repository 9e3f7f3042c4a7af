//! What the end-to-end tests stand on: real PostgreSQL, a real pgsteady, links that can be cut. One helper a subject;
//! nothing here knows how pgsteady works inside.

pub mod source;
