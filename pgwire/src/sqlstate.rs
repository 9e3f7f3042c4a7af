//! The SQLSTATEs that pgsteady writes or looks for, by PostgreSQL's names (manual, appendix A). Not the whole list.

use std::fmt;

/// Five characters that say what happened.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SqlState([u8; 5]);

impl SqlState {
    /// From its five characters; `None` unless they are digits and capital letters.
    #[must_use]
    pub fn new(code: &[u8]) -> Option<Self> {
        let code: [u8; 5] = code.try_into().ok()?;
        code.iter().all(|c| c.is_ascii_digit() || c.is_ascii_uppercase()).then_some(Self(code))
    }

    const fn known(code: &[u8; 5]) -> Self {
        Self(*code)
    }

    /// The five characters.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // `new` and the constants below let ASCII through and nothing else.
        std::str::from_utf8(&self.0).unwrap_or("XX000")
    }

    /// Whether it belongs to the class of these two characters, e.g. `"08"`: connection exceptions.
    #[must_use]
    pub fn is_class(&self, class: &str) -> bool {
        self.0.starts_with(class.as_bytes())
    }
}

impl fmt::Display for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

macro_rules! states {
    ($($name:ident = $code:literal, $meaning:literal;)*) => {
        $(#[doc = $meaning] pub const $name: SqlState = SqlState::known($code);)*
    };
}

states! {
    SUCCESSFUL_COMPLETION = b"00000", "successful_completion";
    WARNING = b"01000", "warning";
    CONNECTION_EXCEPTION = b"08000", "connection_exception";
    CONNECTION_DOES_NOT_EXIST = b"08003", "connection_does_not_exist";
    CONNECTION_FAILURE = b"08006", "connection_failure: the server was lost";
    TRANSACTION_RESOLUTION_UNKNOWN = b"08007", "transaction_resolution_unknown: a commit was sent and nobody knows";
    PROTOCOL_VIOLATION = b"08P01", "protocol_violation";
    FEATURE_NOT_SUPPORTED = b"0A000", "feature_not_supported";
    INVALID_PARAMETER_VALUE = b"22023", "invalid_parameter_value";
    CHARACTER_NOT_IN_REPERTOIRE = b"22021", "character_not_in_repertoire: bytes that are not text";
    ACTIVE_SQL_TRANSACTION = b"25001", "active_sql_transaction";
    READ_ONLY_SQL_TRANSACTION = b"25006", "read_only_sql_transaction: a write came to a standby";
    IN_FAILED_SQL_TRANSACTION = b"25P02", "in_failed_sql_transaction";
    INVALID_SQL_STATEMENT_NAME = b"26000", "invalid_sql_statement_name: no such prepared statement";
    INVALID_AUTHORIZATION_SPECIFICATION = b"28000", "invalid_authorization_specification";
    INVALID_PASSWORD = b"28P01", "invalid_password";
    INVALID_CATALOG_NAME = b"3D000", "invalid_catalog_name: no such database";
    SERIALIZATION_FAILURE = b"40001", "serialization_failure: rolled back, safe to run again";
    STATEMENT_COMPLETION_UNKNOWN = b"40003", "statement_completion_unknown";
    DEADLOCK_DETECTED = b"40P01", "deadlock_detected";
    SYNTAX_ERROR = b"42601", "syntax_error";
    INSUFFICIENT_PRIVILEGE = b"42501", "insufficient_privilege";
    UNDEFINED_OBJECT = b"42704", "undefined_object: e.g. a setting that does not exist";
    DUPLICATE_PREPARED_STATEMENT = b"42P05", "duplicate_prepared_statement";
    INSUFFICIENT_RESOURCES = b"53000", "insufficient_resources";
    OUT_OF_MEMORY = b"53200", "out_of_memory";
    TOO_MANY_CONNECTIONS = b"53300", "too_many_connections";
    CONFIGURATION_LIMIT_EXCEEDED = b"53400", "configuration_limit_exceeded";
    OBJECT_NOT_IN_PREREQUISITE_STATE = b"55000", "object_not_in_prerequisite_state";
    CANT_CHANGE_RUNTIME_PARAM = b"55P02", "cant_change_runtime_param";
    QUERY_CANCELED = b"57014", "query_canceled";
    ADMIN_SHUTDOWN = b"57P01", "admin_shutdown";
    CRASH_SHUTDOWN = b"57P02", "crash_shutdown";
    CANNOT_CONNECT_NOW = b"57P03", "cannot_connect_now: starting up, or no primary yet";
    DATABASE_DROPPED = b"57P04", "database_dropped";
    IDLE_SESSION_TIMEOUT = b"57P05", "idle_session_timeout";
    IDLE_IN_TRANSACTION_SESSION_TIMEOUT = b"25P03", "idle_in_transaction_session_timeout";
    TRANSACTION_TIMEOUT = b"25P04", "transaction_timeout";
    SYSTEM_ERROR = b"58000", "system_error";
    CONFIG_FILE_ERROR = b"F0000", "config_file_error";
    INTERNAL_ERROR = b"XX000", "internal_error";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_five_digits_or_capitals() {
        assert_eq!(SqlState::new(b"08P01"), Some(PROTOCOL_VIOLATION));
        assert_eq!(PROTOCOL_VIOLATION.as_str(), "08P01");
        assert!(PROTOCOL_VIOLATION.is_class("08") && !PROTOCOL_VIOLATION.is_class("57"));
        for wrong in [&b""[..], b"08P0", b"08P011", b"08p01", b"08P0\n", b"\xff\xff\xff\xff\xff"] {
            assert_eq!(SqlState::new(wrong), None, "{wrong:?}");
        }
    }
}
