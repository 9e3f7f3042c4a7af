//! What a session set for itself, and how it gets to the server that serves the next transaction.
//!
//! Two kinds. *Reported* parameters come back from PostgreSQL in ParameterStatus, so the server itself says what holds,
//! after a rollback too. All others are *settings* that we track by the SET statements that ran.
//! Both are shared (`Arc`) and compared by address first: in the common case nothing has to be done.

use std::sync::Arc;

use bytes::BytesMut;
use pgwire::backend;
use pgwire::parameters::CHANGEABLE;

/// Reported parameters kept for one connection.
const MAX_REPORTED: usize = 64;
/// Settings tracked for one session.
pub(crate) const MAX_SETTINGS: usize = 256;

/// The parameters that a server reported, in the order of their first report.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reported(Arc<Vec<(Arc<str>, Arc<str>)>>);

impl Reported {
    /// Those that were told of, names and values in turn.
    pub(crate) fn of(parameters: &[(String, String)]) -> Self {
        let mut reported = Self::default();
        parameters.iter().for_each(|(name, value)| reported.set(name, value));
        reported
    }

    /// Notes one ParameterStatus; beyond [`MAX_REPORTED`] names it is ignored.
    pub(crate) fn set(&mut self, name: &str, value: &str) {
        match self.0.iter().position(|(known, _)| &**known == name) {
            Some(at) if *self.0[at].1 == *value => {} // what others share stays shared
            Some(at) => Arc::make_mut(&mut self.0)[at].1 = value.into(),
            None if self.0.len() >= MAX_REPORTED => {}
            None => Arc::make_mut(&mut self.0).push((name.into(), value.into())),
        }
    }

    /// Writes a ParameterStatus for each.
    pub(crate) fn write(&self, out: &mut BytesMut) {
        for (name, value) in self.iter() {
            let _ = backend::write_parameter_status(out, name.as_bytes(), value.as_bytes());
        }
    }

    /// The value of a parameter.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| &**value)
    }

    /// A parameter's name as the server writes it.
    pub(crate) fn name_of(&self, name: &str) -> Option<Arc<str>> {
        self.0.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(known, _)| known.clone())
    }

    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (&**name, &**value))
    }

    /// Whether both are surely the same, by address; the fast answer.
    #[inline]
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// If both say the same, they are one from now on: of two copies all holders come to keep the same.
    pub(crate) fn unify(&mut self, other: &mut Self) {
        if !self.is(other) && self.0 == other.0 {
            keep_one(&mut self.0, &mut other.0);
        }
    }

    /// What differs from `server` and can be set there: name and wanted value.
    pub(crate) fn to_assign(&self, server: &Self) -> Vec<(&str, &str)> {
        self.iter()
            .filter(|(name, value)| is_settable(name) && server.get(name).is_some_and(|held| held != *value))
            .collect()
    }

    /// What a client that believes `self` has to be told to believe `server`.
    pub(crate) fn to_tell<'s>(&self, server: &'s Self) -> Vec<(&'s str, &'s str)> {
        server.iter().filter(|(name, value)| self.get(name) != Some(value)).collect()
    }
}

/// Whether PostgreSQL may report this parameter and a session may set it.
pub(crate) fn is_settable(name: &str) -> bool {
    CHANGEABLE.iter().any(|known| known.eq_ignore_ascii_case(name))
}

/// Whether `synchronous_commit` with this value lets a commit be acknowledged that no standby has flushed. What PostgreSQL does
/// not take for a value is not.
pub(crate) fn is_below_on(value: &str) -> bool {
    let weak = ["off", "false", "no", "0", "local", "remote_write"];
    weak.iter().any(|word| value.eq_ignore_ascii_case(word))
}

/// Of two copies the one at the lower address stays, so that all holders who meet come to share one.
fn keep_one<T>(one: &mut Arc<T>, two: &mut Arc<T>) {
    if Arc::as_ptr(one) < Arc::as_ptr(two) { two.clone_from(one) } else { one.clone_from(two) }
}

/// How a setting is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Setting {
    /// By `set_config` with this value (startup parameters).
    Value(Box<str>),
    /// By the statement that the client used.
    Statement(Box<str>),
}

/// The settings of a session that PostgreSQL does not report, in the order of their lower-case names. None at all cost nothing.
#[derive(Debug, Clone, Default)]
pub(crate) struct Settings(Option<Arc<Vec<Named>>>);

/// A setting and its lower-case name.
type Named = (Box<str>, Setting);

impl Settings {
    /// Whether both are surely the same, by address.
    #[inline]
    pub(crate) fn is(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (None, None) => true,
            (Some(one), Some(two)) => Arc::ptr_eq(one, two),
            _ => false,
        }
    }

    /// As [`Reported::unify`].
    pub(crate) fn unify(&mut self, other: &mut Self) {
        if let (Some(one), Some(two)) = (&mut self.0, &mut other.0)
            && !Arc::ptr_eq(one, two)
            && one == two
        {
            keep_one(one, two);
        }
    }

    /// Whether both say the same.
    pub(crate) fn equals(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }

    /// Makes or replaces one; `false` if there are too many.
    pub(crate) fn set(&mut self, name: &str, setting: Setting) -> bool {
        let name = name.to_ascii_lowercase().into_boxed_str();
        let settings = Arc::make_mut(self.0.get_or_insert_default());
        match settings.binary_search_by(|(known, _)| known.cmp(&name)) {
            Ok(at) => settings[at].1 = setting,
            Err(_) if settings.len() >= MAX_SETTINGS => return false,
            Err(at) => {
                settings.reserve_exact(1); // there are few, in many sessions
                settings.insert(at, (name, setting));
            }
        }
        true
    }

    /// Forgets one.
    pub(crate) fn reset(&mut self, name: &str) {
        let name = name.to_ascii_lowercase();
        self.retain(|known| known != name);
    }

    /// Forgets those that PostgreSQL reports.
    pub(crate) fn leave_out(&mut self, reported: &Reported) {
        self.retain(|name| reported.get(name).is_none());
    }

    /// Forgets all but the two that RESET ALL leaves.
    pub(crate) fn reset_all(&mut self) {
        self.retain(Self::outlives_reset_all);
    }

    fn retain(&mut self, stays: impl Fn(&str) -> bool) {
        let Some(settings) = &mut self.0 else { return };
        if settings.iter().any(|(name, _)| !stays(name)) {
            Arc::make_mut(settings).retain(|(name, _)| stays(name));
        }
        if settings.is_empty() {
            self.0 = None;
        }
    }

    /// Whether RESET ALL leaves this one as it is.
    pub(crate) fn outlives_reset_all(name: &str) -> bool {
        matches!(name, "role" | "session_authorization")
    }

    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Setting)> {
        self.0.iter().flat_map(|settings| settings.iter()).map(|(name, setting)| (&**name, setting))
    }

    /// The setting of this lower-case name.
    pub(crate) fn get(&self, name: &str) -> Option<&Setting> {
        let settings = self.0.as_ref()?;
        let at = settings.binary_search_by(|(known, _)| (**known).cmp(name)).ok()?;
        Some(&settings[at].1)
    }

    /// The names that `server` holds and this session does not.
    pub(crate) fn to_reset<'s>(&self, server: &'s Self) -> Vec<&'s str> {
        server.iter().map(|(name, _)| name).filter(|name| self.get(name).is_none()).collect()
    }

    /// What this session holds and `server` does not, or otherwise.
    pub(crate) fn to_make(&self, server: &Self) -> Vec<(&str, &Setting)> {
        self.iter().filter(|(name, setting)| server.get(name) != Some(setting)).collect()
    }
}
