//! A password checked by an LDAP server, in the two ways of PostgreSQL (its manual, "LDAP Authentication"): a bind with a name made of
//! prefix, user and suffix; or a search for the user, and a bind with what was found.

use std::time::Duration;

use ldap3::{LdapConnAsync, LdapConnSettings, Scope, SearchEntry, dn_escape, ldap_escape};

/// Time for each step with a server.
const STEP_TIMEOUT: Duration = Duration::from_secs(5);
/// Time to connect, and to begin TLS: a server that does not speak it there may say nothing at all.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// What the options say.
#[derive(Debug, Clone, PartialEq, Default)]
struct Options {
    servers: Vec<String>,
    port: Option<u16>,
    scheme: Option<String>,
    start_tls: bool,
    prefix: String,
    suffix: String,
    base: Option<String>,
    bind_dn: String,
    bind_password: String,
    attribute: Option<String>,
    filter: Option<String>,
    scope: Option<Scope>,
}

/// Whether an LDAP server takes this password for this user.
///
/// # Errors
/// The options make no sense, or no server could be asked.
pub(super) async fn check(options: &str, user: &str, password: &str) -> Result<bool, String> {
    let options = Options::read(options)?;
    // An empty password would be a bind without a name, which every server takes.
    if password.is_empty() {
        return Ok(false);
    }
    let mut failed = "no LDAP server is named".to_owned();
    for url in options.urls() {
        match tokio::time::timeout(STEP_TIMEOUT * 2, options.ask(&url, user, password)).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(why)) => failed = format!("{url}: {why}"),
            Err(_) => failed = format!("{url}: no answer in time"),
        }
    }
    Err(failed)
}

impl Options {
    /// Reads `name=value` pairs between blanks and commas; names and values may stand in double quotes.
    fn read(text: &str) -> Result<Self, String> {
        let mut options = Self::default();
        for (name, value) in pairs(text)? {
            options.set(&name, value)?;
        }
        if options.base.is_none() && options.prefix.is_empty() && options.suffix.is_empty() {
            return Err("neither ldapbasedn nor ldapprefix nor ldapsuffix is given".to_owned());
        }
        Ok(options)
    }

    fn set(&mut self, name: &str, value: String) -> Result<(), String> {
        match name {
            "ldapserver" => {
                self.servers = value.split([' ', ',']).filter(|name| !name.is_empty()).map(str::to_owned).collect();
            }
            "ldapport" => self.port = Some(value.parse().map_err(|_| format!("invalid ldapport: {value}"))?),
            "ldapscheme" if ["ldap", "ldaps"].contains(&value.as_str()) => self.scheme = Some(value),
            "ldapscheme" => return Err(format!("invalid ldapscheme: {value}")),
            "ldaptls" => self.start_tls = value == "1",
            "ldapprefix" => self.prefix = value,
            "ldapsuffix" => self.suffix = value,
            "ldapbasedn" => self.base = Some(value),
            "ldapbinddn" => self.bind_dn = value,
            "ldapbindpasswd" => self.bind_password = value,
            "ldapsearchattribute" => self.attribute = Some(value),
            "ldapsearchfilter" => self.filter = Some(value),
            "ldapurl" => self.set_url(&value)?,
            other => return Err(format!("unknown LDAP option: {other}")),
        }
        Ok(())
    }

    /// `ldap[s]://host[:port]/basedn[?[attribute][?[scope][?[filter]]]]` (RFC 4516).
    fn set_url(&mut self, url: &str) -> Result<(), String> {
        let (scheme, rest) = url.split_once("://").ok_or_else(|| format!("invalid ldapurl: {url}"))?;
        self.set("ldapscheme", scheme.to_owned())?;
        let (place, rest) = rest.split_once('/').unwrap_or((rest, ""));
        match place.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => {
                self.servers = vec![host.to_owned()];
                self.set("ldapport", port.to_owned())?;
            }
            _ => self.servers = vec![place.to_owned()],
        }
        let mut parts = rest.splitn(4, '?');
        self.base = parts.next().map(str::to_owned);
        self.attribute = parts.next().filter(|part| !part.is_empty()).map(str::to_owned);
        self.scope = match parts.next() {
            None | Some("") => None,
            Some("base") => Some(Scope::Base),
            Some("one") => Some(Scope::OneLevel),
            Some("sub") => Some(Scope::Subtree),
            Some(other) => return Err(format!("invalid scope in ldapurl: {other}")),
        };
        self.filter = parts.next().filter(|part| !part.is_empty()).map(str::to_owned);
        Ok(())
    }

    fn urls(&self) -> Vec<String> {
        let scheme = self.scheme.as_deref().unwrap_or("ldap");
        let port = self.port.unwrap_or(if scheme == "ldaps" { 636 } else { 389 });
        self.servers.iter().map(|server| format!("{scheme}://{server}:{port}")).collect()
    }

    async fn ask(&self, url: &str, user: &str, password: &str) -> Result<bool, String> {
        let said = |error: ldap3::LdapError| error.to_string();
        if self.start_tls && url.starts_with("ldaps:") {
            return Err("ldaptls is for the scheme ldap".to_owned());
        }
        let mut settings = LdapConnSettings::new().set_starttls(self.start_tls);
        if self.start_tls || url.starts_with("ldaps:") {
            settings = settings.set_connector(connector()?);
        }
        let connecting = tokio::time::timeout(CONNECT_TIMEOUT, LdapConnAsync::with_settings(settings, url));
        let (connection, mut ldap) = connecting.await.map_err(|_| "no connection in time".to_owned())?.map_err(said)?;
        tokio::spawn(async move {
            if let Err(error) = connection.drive().await {
                tracing::debug!(%error, "a connection to an LDAP server ended");
            }
        });
        let dn = match &self.base {
            None => Some(format!("{}{}{}", self.prefix, dn_escape(user), self.suffix)),
            Some(base) => self.search(&mut ldap, base, user).await?,
        };
        let Some(dn) = dn else { return Ok(false) };
        let bound = ldap.with_timeout(STEP_TIMEOUT).simple_bind(&dn, password).await.map_err(said)?;
        let _ = ldap.unbind().await;
        Ok(bound.success().is_ok())
    }

    /// The name of the one entry that is the user's.
    async fn search(&self, ldap: &mut ldap3::Ldap, base: &str, user: &str) -> Result<Option<String>, String> {
        let said = |error: ldap3::LdapError| error.to_string();
        // These would change what is searched; PostgreSQL refuses them too.
        if user.contains(['*', '(', ')', '\\', '/']) {
            return Ok(None);
        }
        let bound = ldap.with_timeout(STEP_TIMEOUT).simple_bind(&self.bind_dn, &self.bind_password).await;
        bound.and_then(ldap3::LdapResult::success).map_err(said)?;
        let filter = match &self.filter {
            Some(filter) => {
                let filter = filter.replace("$username", &ldap_escape(user));
                if filter.starts_with('(') { filter } else { format!("({filter})") }
            }
            None => format!("({}={})", self.attribute.as_deref().unwrap_or("uid"), ldap_escape(user)),
        };
        let scope = self.scope.unwrap_or(Scope::Subtree);
        let search = ldap.with_timeout(STEP_TIMEOUT).search(base, scope, &filter, vec!["1.1"]).await;
        let (mut found, _) = search.and_then(ldap3::SearchResult::success).map_err(said)?;
        match (found.pop(), found.is_empty()) {
            (Some(entry), true) => Ok(Some(SearchEntry::construct(entry).dn)),
            (Some(_), false) => Err(format!("more than one entry is for the user {user:?}")),
            (None, _) => Ok(None),
        }
    }
}

/// TLS as `ldap.conf` has it: its authorities, and whether a certificate is demanded at all.
fn connector() -> Result<native_tls::TlsConnector, String> {
    let file = std::env::var("LDAPCONF").unwrap_or_else(|_| "/etc/ldap/ldap.conf".to_owned());
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let option = |name: &str| {
        text.lines()
            .filter_map(|line| line.trim().split_once(char::is_whitespace))
            .find_map(|(key, value)| key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned()))
    };
    let mut builder = native_tls::TlsConnector::builder();
    if let Some(authorities) = option("TLS_CACERT").and_then(|file| std::fs::read(file).ok()) {
        for certificate in openssl::x509::X509::stack_from_pem(&authorities).unwrap_or_default() {
            let der = certificate.to_der().map_err(|error| error.to_string())?;
            builder.add_root_certificate(native_tls::Certificate::from_der(&der).map_err(|error| error.to_string())?);
        }
    }
    if option("TLS_REQCERT").is_some_and(|demand| ["never", "allow"].contains(&demand.to_ascii_lowercase().as_str())) {
        builder.danger_accept_invalid_certs(true).danger_accept_invalid_hostnames(true);
    }
    builder.build().map_err(|error| error.to_string())
}

fn pairs(text: &str) -> Result<Vec<(String, String)>, String> {
    let mut pairs = Vec::new();
    let mut rest = text.trim_start_matches([' ', '\t', ',']);
    while !rest.is_empty() {
        let (name, behind) = part(rest, |c| c == '=' || c.is_whitespace())?;
        let behind = behind.trim_start();
        let value = behind.strip_prefix('=').ok_or_else(|| format!("no value for LDAP option: {name}"))?;
        let (value, behind) = part(value.trim_start(), |c| c == ',' || c.is_whitespace())?;
        pairs.push((name, value));
        rest = behind.trim_start_matches([' ', '\t', ',']);
    }
    Ok(pairs)
}

/// A part in double quotes, or up to where it ends.
fn part(text: &str, ends: impl Fn(char) -> bool) -> Result<(String, &str), String> {
    match text.strip_prefix('"') {
        Some(quoted) => {
            let (part, rest) = quoted.split_once('"').ok_or("a quote is not closed in the LDAP options")?;
            Ok((part.to_owned(), rest))
        }
        None => {
            let (part, rest) = text.split_at(text.find(ends).unwrap_or(text.len()));
            Ok((part.to_owned(), rest))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_with_their_quotes() {
        let options = Options::read(
            "ldapserver=\"a b\" \"ldapport\"=1389 ldapbasedn=\"dc=example, dc=net\" ,ldapsearchfilter=\"uid=$username\" ldaptls=1",
        )
        .unwrap();
        assert_eq!(options.urls(), ["ldap://a:1389", "ldap://b:1389"]);
        assert_eq!(options.base.as_deref(), Some("dc=example, dc=net"));
        assert_eq!(options.filter.as_deref(), Some("uid=$username"));
        assert!(options.start_tls);
        let options = Options::read("ldapurl=\"ldaps://h/dc=x??sub?(|(uid=$username)(mail=$username))\"").unwrap();
        assert_eq!(options.urls(), ["ldaps://h:636"]);
        assert_eq!((options.attribute, options.scope), (None, Some(Scope::Subtree)));
        assert_eq!(options.filter.as_deref(), Some("(|(uid=$username)(mail=$username))"));
        for wrong in ["ldapserver", "nothing=1", "ldapserver=\"x", "ldapserver=x", "ldapport=x", "ldapscheme=http"] {
            assert!(Options::read(wrong).is_err(), "{wrong}");
        }
    }
}
