//! The settings of `[pgbouncer]`, said once: name, type, default, whether a reload changes it. Not what they do.

use std::time::Duration;

use super::value::{AuthType, Seconds, SettingValue};
use crate::config::{PoolMode, SslMode};

/// One setting, as data.
#[derive(Debug)]
pub struct Setting {
    /// Its name.
    pub name: &'static str,
    /// The default as it would be written; `None`: there is none, and nothing sets it back.
    pub default: Option<&'static str>,
    /// Whether RELOAD and SET change it.
    pub live: bool,
    /// Why it is accepted and does nothing here; `None`: it acts.
    pub inert: Option<&'static str>,
    set: fn(&mut Settings, &str) -> Result<(), String>,
    get: fn(&Settings) -> Option<String>,
}

impl Setting {
    /// The setting of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Self> {
        SETTINGS.binary_search_by(|setting| setting.name.cmp(name)).ok().map(|found| &SETTINGS[found])
    }

    /// The value as `SHOW CONFIG` prints it; `None`: NULL.
    #[must_use]
    pub fn shown(&self, settings: &Settings) -> Option<String> {
        (self.get)(settings)
    }

    /// Takes a text.
    ///
    /// # Errors
    /// What the text is not; the old value stays.
    pub fn set(&self, settings: &mut Settings, text: &str) -> Result<(), String> {
        (self.set)(settings, text)
    }

    /// Back to the default, where there is one.
    pub(super) fn reset(&self, settings: &mut Settings) {
        if let Some(default) = self.default {
            (self.set)(settings, default).expect("a default is a value of its setting");
        }
    }
}

macro_rules! settings {
    ($( $name:ident : $type:ty $(= $default:literal)? , $live:ident $(, $inert:literal)? ; )+) => {
        /// The values of all settings of `[pgbouncer]`.
        #[derive(Debug, Clone, PartialEq)]
        #[allow(missing_docs, reason = "the manual of PgBouncer describes them, and docs/pgbouncer.md what they do here")]
        pub struct Settings {
            $( pub $name: $type, )+
        }

        impl Default for Settings {
            fn default() -> Self {
                Self { $( $name: settings!(@value $type $(, $default)?), )+ }
            }
        }

        /// All of them, in the order of `SHOW CONFIG`.
        pub const SETTINGS: &[Setting] = &[$( Setting {
            name: stringify!($name),
            default: settings!(@default $($default)?),
            live: settings!(@live $live),
            inert: settings!(@default $($inert)?),
            set: |settings, text| {
                settings.$name = <$type as SettingValue>::read(text)?;
                Ok(())
            },
            get: |settings| settings.$name.shown(),
        } ),+];
    };
    (@default) => { None };
    (@default $default:literal) => { Some($default) };
    (@live live) => { true };
    (@live boot) => { false };
    (@value $type:ty) => { <$type>::default() };
    (@value $type:ty, $default:literal) => {
        <$type as SettingValue>::read($default).expect("a default is a value of its setting")
    };
}

settings! {
    admin_users: String = "", live;
    application_name_add_host: i32 = "0", live;
    auth_dbname: Option<String>, live;
    auth_file: Option<String>, live;
    auth_hba_file: String = "", live;
    auth_ident_file: Option<String>, live;
    auth_ldap_options: Option<String>, live;
    auth_query: String = "SELECT rolname, CASE WHEN rolvaliduntil < now() THEN NULL ELSE rolpassword END FROM pg_authid WHERE rolname=$1 AND rolcanlogin", live;
    auth_type: AuthType = "md5", live;
    auth_user: Option<String>, live;
    autodb_idle_timeout: Seconds = "3600", live;
    cancel_wait_timeout: Seconds = "10", live;
    client_idle_timeout: Seconds = "0", live;
    client_login_timeout: Seconds = "60", live;
    client_tls13_ciphers: Option<String>, live;
    client_tls_ca_file: String = "", live;
    client_tls_cert_file: String = "", live;
    client_tls_ciphers: String = "default", live;
    client_tls_dheparams: String = "auto", live, "OpenSSL chooses the parameters itself";
    client_tls_ecdhcurve: String = "auto", live, "OpenSSL chooses the curve itself";
    client_tls_key_file: String = "", live;
    client_tls_protocols: String = "secure", live;
    client_tls_sslmode: SslMode = "disable", live;
    conffile: Option<String>, live;
    default_pool_size: i32 = "20", live;
    disable_pqexec: i32 = "0", boot;
    dns_max_ttl: Seconds = "15", live;
    dns_nxdomain_ttl: Seconds = "15", live;
    dns_zone_check_period: Seconds = "0", live;
    idle_transaction_timeout: Seconds = "0", live;
    ignore_startup_parameters: String = "", live;
    job_name: String = "pgbouncer", boot, "it names a service of Windows";
    listen_addr: String = "", boot;
    listen_backlog: i32 = "128", boot;
    listen_port: i32 = "6432", boot;
    log_connections: i32 = "1", live;
    log_disconnections: i32 = "1", live;
    log_pooler_errors: i32 = "1", live;
    log_stats: i32 = "1", live;
    logfile: String = "", live;
    max_client_conn: i32 = "100", live;
    max_db_client_connections: i32 = "0", live;
    max_db_connections: i32 = "0", live;
    max_packet_size: u32 = "2147483647", live;
    max_prepared_statements: i32 = "200", live;
    max_user_client_connections: i32 = "0", live;
    max_user_connections: i32 = "0", live;
    min_pool_size: i32 = "0", live;
    peer_id: i32 = "0", live;
    pidfile: String = "", boot;
    pkt_buf: i32 = "4096", boot, "a worker reads into one buffer of 64 KiB, and idle clients have none";
    pool_mode: PoolMode = "session", live;
    query_timeout: Seconds = "0", live;
    query_wait_notify: i32 = "5", live;
    query_wait_timeout: Seconds = "120", live;
    reserve_pool_size: i32 = "0", live;
    reserve_pool_timeout: Seconds = "5", live;
    resolv_conf: String = "", boot, "there is no c-ares: names are asked of the system's resolver";
    sbuf_loopcnt: i32 = "5", live, "the runtime shares the processor between connections";
    scram_iterations: i32 = "4096", live;
    server_check_delay: Seconds = "30", live;
    server_check_query: String = "<empty>", live;
    server_connect_timeout: Seconds = "15", live;
    server_fast_close: i32 = "0", live;
    server_idle_timeout: Seconds = "600", live;
    server_lifetime: Seconds = "3600", live;
    server_login_retry: Seconds = "15", live;
    server_reset_query: String = "DISCARD ALL", live;
    server_reset_query_always: i32 = "0", live;
    server_round_robin: i32 = "0", live;
    server_tls13_ciphers: Option<String>, live;
    server_tls_ca_file: String = "", live;
    server_tls_cert_file: String = "", live;
    server_tls_ciphers: String = "default", live;
    server_tls_key_file: String = "", live;
    server_tls_protocols: String = "secure", live;
    server_tls_sslmode: SslMode = "prefer", live;
    service_name: Option<String>, boot, "it names a service of Windows";
    so_reuseport: i32 = "0", boot;
    stats_period: i32 = "60", live;
    stats_users: String = "", live;
    suspend_timeout: Seconds = "10", live;
    syslog: i32 = "0", live;
    syslog_facility: String = "daemon", live;
    syslog_ident: String = "pgbouncer", live;
    tcp_defer_accept: i32 = "1", live;
    tcp_keepalive: i32 = "1", live;
    tcp_keepcnt: i32 = "0", live;
    tcp_keepidle: i32 = "0", live;
    tcp_keepintvl: i32 = "0", live;
    tcp_socket_buffer: i32 = "0", live;
    tcp_user_timeout: i32 = "0", live;
    track_extra_parameters: String = "IntervalStyle", boot;
    transaction_timeout: Seconds = "0", live;
    unix_socket_dir: String = "/tmp", boot;
    unix_socket_group: String = "", boot;
    unix_socket_mode: i32 = "0777", boot;
    user: Option<String>, boot;
    verbose: i32, live;
}

impl Settings {
    /// After which idle time a server is asked what before it is lent; none: it is not.
    pub(crate) fn check_query(&self) -> Option<(Duration, String)> {
        let query = match self.server_check_query.as_str() {
            "" => return None,
            "<empty>" => String::new(),
            query => query.to_owned(),
        };
        Some((self.server_check_delay.duration(), query))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_there_in_the_order_of_show_config() {
        assert_eq!(SETTINGS.len(), 99, "98, and job_name, which is service_name");
        let names: Vec<_> = SETTINGS.iter().map(|setting| setting.name).collect();
        assert!(names.is_sorted(), "{names:?}");
        assert_eq!(Setting::named("client_tls13_ciphers").map(|found| found.live), Some(true));
        assert!(Setting::named("nothing").is_none());
    }

    #[test]
    fn every_value_is_shown_as_its_default_reads() {
        let settings = Settings::default();
        for setting in SETTINGS {
            let shown = setting.shown(&settings);
            match (setting.name, setting.default) {
                ("unix_socket_mode", _) => assert_eq!(shown.as_deref(), Some("511")),
                ("verbose", _) => assert_eq!(shown.as_deref(), Some("0")),
                (name, default) => assert_eq!(shown.as_deref(), default, "{name}"),
            }
        }
    }
}
