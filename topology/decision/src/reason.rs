//! Why clients are held, or what is less than it should be: what is missing, and what the operator can do.

use std::fmt;

/// One reason, as text made in one place. Equal reasons have equal texts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    /// What is the matter.
    pub what: String,
    /// What the operator can do; empty if waiting is all.
    pub remedy: String,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        if self.remedy.is_empty() { Ok(()) } else { write!(f, "; {}", self.remedy) }
    }
}
