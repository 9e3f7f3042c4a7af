//! What is known of each user: from `[[user]]`, from the list of users, and from the lookup. Not the exchange with a client.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use pgwire::auth::scram::{self, Keys};
use pgwire::auth::{Secret, Stored};
use tokio::sync::OnceCell;

use super::client::Came;
use super::hba::{self, Hba, Told};
use super::ident::Ident;
use super::lookup::{Lookup, LookupError, Place};
use super::pam::Pam;
use super::{Hashing, ServerLogin, userlist};
use crate::config::{self, AuthMethod, Config};
use crate::pgbouncer::errno_text;
use crate::pgbouncer::log::{Level, say};

/// Everybody who may log in. Shared; a reload replaces what it holds.
#[derive(Debug)]
pub struct Store {
    users: RwLock<Arc<Users>>,
    /// Drawn once: what an unknown user is told must not change while the process lives, nor be foreseen.
    mock: Secret,
    pub(super) hashing: Hashing,
    pub(super) pam: Pam,
}

/// The users of one configuration.
#[derive(Debug)]
pub(super) struct Users {
    method: AuthMethod,
    pub(super) listed: HashMap<Arc<str>, Arc<Known>>,
    lookup: Option<Lookup>,
    hba: Hba,
    ident: Ident,
    ldap: String,
    pam_service: String,
    is_pgbouncer: bool,
    /// Unknown users are asked by SCRAM where known ones would be.
    mock_is_scram: bool,
    /// Of SCRAM keys that are made of a plain password, and of a mock's.
    iterations: u32,
}

/// What is known of a user.
#[derive(Debug)]
pub(super) struct Known {
    /// What is stored of the password; none: no password is right.
    pub(super) stored: Option<Stored>,
    /// With what it logs in on a server if the client adds nothing.
    pub(super) login: ServerLogin,
    /// It stands in the list of users, perhaps without a password.
    is_listed: bool,
    /// The SCRAM keys of a plain password, made at the first login.
    made: OnceCell<Option<Keys>>,
}

impl Known {
    pub(super) fn new(secret: Option<&str>) -> Self {
        let stored = secret.filter(|text| !text.is_empty()).map(|text| Stored::parse(text.as_bytes()));
        let login = stored.as_ref().map_or(ServerLogin::Nothing, ServerLogin::stored);
        Self { stored, login, is_listed: false, made: OnceCell::new() }
    }
}

impl Store {
    /// Reads the files that a configuration names.
    ///
    /// # Errors
    /// The list of users cannot be read: where and why.
    pub fn load(config: &Config) -> Result<Self, String> {
        let users = RwLock::new(Arc::new(Users::load(config)?));
        Ok(Self {
            users,
            mock: Secret::new(rand::random::<[u8; 32]>()),
            hashing: Hashing::default(),
            pam: Pam::default(),
        })
    }

    /// Takes a new configuration, and its list of users anew.
    ///
    /// # Errors
    /// As [`Store::load`]; the users in force stay.
    pub fn replace(&self, config: &Config) -> Result<(), String> {
        let users = Arc::new(Users::load(config)?);
        *self.users.write().unwrap_or_else(PoisonError::into_inner) = users;
        Ok(())
    }

    /// With what a user logs in on servers without a client's help: for entries with a forced user and no password.
    /// `Nothing` if the list of users has none that is good for it.
    #[must_use]
    pub fn server_login(&self, user: &str) -> ServerLogin {
        self.users().listed.get(user).map_or(ServerLogin::Nothing, |known| known.login.clone())
    }

    /// The users that are listed.
    #[must_use]
    pub fn listed(&self) -> Vec<Arc<str>> {
        self.users().listed.keys().cloned().collect()
    }

    /// Whether there are users who are looked up.
    pub(crate) fn looks_up(&self) -> bool {
        self.users().lookup.is_some()
    }

    pub(super) fn users(&self) -> Arc<Users> {
        self.users.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The SCRAM keys by which a user is checked: for a user who is not known, or has no password for SCRAM, keys that no
    /// password opens. A plain password is salted as a mock would be, so that nobody can tell the two apart.
    pub(super) async fn scram_keys(&self, user: &str, known: Option<&Known>) -> Option<Keys> {
        let mock = Keys::mock(self.mock.reveal(), user, self.users().iterations);
        let Some(known) = known else { return Some(mock) };
        match &known.stored {
            Some(Stored::Scram(keys)) => Some(keys.clone()),
            Some(Stored::Plain(password)) => {
                let make = || self.hashing.keys_of(password, mock.salt(), mock.iterations());
                known.made.get_or_init(make).await.clone()
            }
            Some(Stored::Md5(_)) | None => Some(mock),
        }
    }
}

impl Users {
    fn load(config: &Config) -> Result<Self, String> {
        let mut listed = HashMap::new();
        if let Some(file) = &config.auth.users_file {
            let users = read_list(file, config.dialect.pgbouncer().is_some())
                .map_err(|said| format!("auth.users_file {}: {said}", file.display()))?;
            listed.extend(users.into_iter().map(|(user, known)| (user.into(), Arc::new(known))));
        }
        for (name, user) in &config.users {
            let secret = user.password.as_ref().map(|secret| secret.reveal());
            let is_listed = secret.is_some() || config.dialect.pgbouncer().is_none();
            if is_listed && (secret.is_some() || !listed.contains_key(name)) {
                listed.insert(name.clone(), Arc::new(Known::new(secret)));
            }
        }
        let lookup = Lookup::new(config, |user| match listed.get(user)?.stored.as_ref()? {
            Stored::Plain(password) => Some(config::Secret::new(&String::from_utf8_lossy(password.reveal()))),
            Stored::Md5(_) | Stored::Scram(_) => None,
        });
        let is_scram = |known: &Arc<Known>| matches!(known.stored, Some(Stored::Scram(_)));
        let mock_is_scram = config.dialect.pgbouncer().is_none()
            && (lookup.is_some() || (!listed.is_empty() && listed.values().all(is_scram)));
        let is_pgbouncer = config.dialect.pgbouncer().is_some();
        let (hba, ident) = read_rules(config)?;
        let ldap = config.auth.ldap_options.clone().unwrap_or_default();
        let asked = config.dialect.pgbouncer().and_then(|loaded| u32::try_from(loaded.settings.scram_iterations).ok());
        let iterations = asked.filter(|asked| *asked > 0).unwrap_or(scram::DEFAULT_ITERATIONS);
        Ok(Self {
            method: config.auth.method,
            listed,
            lookup,
            hba,
            ident,
            ldap,
            pam_service: config.auth.pam_service.clone(),
            is_pgbouncer,
            mock_is_scram,
            iterations,
        })
    }

    /// What is known of a user; `None` if nothing.
    pub(super) async fn find(&self, user: &str, place: Option<&Place>) -> Result<Option<Arc<Known>>, LookupError> {
        let listed = self.listed.get(user);
        match (listed, &self.lookup, place) {
            (Some(known), Some(lookup), Some(place)) if known.stored.is_none() && !known.is_listed => {
                Ok(Box::pin(lookup.find(user, place)).await?.or_else(|| Some(known.clone())))
            }
            (Some(known), _, _) => Ok(Some(known.clone())),
            (None, Some(lookup), Some(place)) => Box::pin(lookup.find(user, place)).await,
            (None, _, _) => Ok(None),
        }
    }

    /// After a failed login: what the lookup found may have changed since.
    pub(super) fn forget(&self, user: &str, place: Option<&Place>) {
        if let (Some(lookup), Some(place)) = (&self.lookup, place) {
            lookup.forget(user, place);
        }
    }

    /// Whether users are looked up at this place, and nobody pretends to know those who are not found there (as PgBouncer).
    pub(super) fn tells_unknown(&self, place: Option<&Place>) -> bool {
        self.is_pgbouncer && self.lookup.as_ref().zip(place).is_some_and(|(lookup, place)| lookup.is_for(place))
    }

    /// Whether there is any word of who may log in; without one, `trust` trusts everybody.
    pub(super) fn is_open(&self) -> bool {
        self.listed.is_empty() && self.lookup.is_none()
    }

    /// What a client has to pass.
    pub(super) fn demand(&self, user: &str, came: &Came<'_>) -> Demand {
        let rule = match self.method {
            AuthMethod::Any => return Demand::Any,
            AuthMethod::Trust => return Demand::Trust,
            AuthMethod::Password => return Demand::Password,
            AuthMethod::Md5 => return Demand::Md5,
            AuthMethod::ScramSha256 => return Demand::Scram,
            AuthMethod::Cert => return Demand::Certificate { map: None },
            AuthMethod::Ldap => return Demand::Ldap { options: self.ldap.clone() },
            AuthMethod::Pam => return Demand::Pam { service: self.pam_service.clone() },
            AuthMethod::Hba => self.hba.find(user, came),
        };
        let Some(rule) = rule else { return Demand::NoRule };
        match rule.method {
            hba::Method::Trust => Demand::Trust,
            hba::Method::Reject => Demand::Reject,
            hba::Method::Md5 => Demand::Md5,
            hba::Method::Password => Demand::Password,
            hba::Method::Scram => Demand::Scram,
            hba::Method::Peer => Demand::Peer { map: rule.map.clone() },
            hba::Method::Cert => Demand::Certificate { map: rule.map.clone() },
            hba::Method::Ldap => Demand::Ldap { options: rule.ldap.clone() },
        }
    }

    /// Whether one of these names, of a certificate or the system, may be this user.
    pub(super) fn is_named(&self, names: &[String], map: Option<&str>, user: &str) -> bool {
        match map {
            None => names.iter().any(|name| name == user),
            Some(map) => names.iter().any(|name| self.ident.allows(map, name, user)),
        }
    }
}

/// What a client has to pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Demand {
    Any,
    Trust,
    Password,
    Md5,
    Scram,
    Peer {
        map: Option<String>,
    },
    Certificate {
        map: Option<String>,
    },
    Ldap {
        options: String,
    },
    Pam {
        service: String,
    },
    /// It is not let in.
    Reject,
    /// No rule is for it.
    NoRule,
}

impl Demand {
    /// Whether a user is asked by SCRAM.
    pub(super) fn asks_scram(&self, known: Option<&Known>, users: &Users) -> bool {
        match (self, known.and_then(|known| known.stored.as_ref())) {
            (Self::Scram, _) | (Self::Md5, Some(Stored::Scram(_))) => true,
            (Self::Md5, None) => users.mock_is_scram,
            _ => false,
        }
    }

    /// Whether it may be passed by somebody of whom nothing is stored.
    pub(super) fn needs_nobody(&self) -> bool {
        matches!(self, Self::Any | Self::Ldap { .. } | Self::Pam { .. })
    }
}

/// The rules and the maps that a configuration names.
fn read_rules(config: &Config) -> Result<(Hba, Ident), String> {
    let is_pgbouncer = config.dialect.pgbouncer().is_some();
    let (mut rules, mut maps) = (Hba::default(), Ident::default());
    if config.auth.method != AuthMethod::Hba {
        return Ok((rules, maps));
    }
    if let Some(file) = &config.auth.ident_file {
        match read_text(file, hba::MAX_FILE_BYTES) {
            Ok(text) => {
                let (parsed, bad) = Ident::parse(&text);
                maps = parsed;
                for (line, why) in bad {
                    if let Some(why) = &why {
                        say(Level::Warning, format_args!("ident line {line}: {why}"));
                    }
                    say(Level::Warning, format_args!("could not parse ident config line {line}"));
                    passed_over(config, file, line, why.as_deref().unwrap_or("three words are wanted"));
                }
            }
            Err(why) if is_pgbouncer => cannot_open("ident config file", file, &why),
            Err(why) => return Err(format!("auth.ident_file {}: {why}", file.display())),
        }
    }
    let file = config.auth.hba_file.clone().or_else(|| is_pgbouncer.then(PathBuf::new));
    if let Some(file) = &file {
        match read_text(file, hba::MAX_FILE_BYTES) {
            Ok(text) => {
                let beside = |name: &str| {
                    let file = file.parent().unwrap_or(Path::new("")).join(name);
                    read_text(&file, hba::MAX_FILE_BYTES).ok()
                };
                let (parsed, said) = Hba::parse(&text, &maps, beside);
                rules = parsed;
                for (line, said) in said {
                    tell_of_rule(config, file, line, said);
                }
            }
            Err(why) if is_pgbouncer => cannot_open("hba config file", file, &why),
            Err(why) => return Err(format!("auth.hba_file {}: {why}", file.display())),
        }
    }
    Ok((rules, maps))
}

/// What is to be said of a line of the HBA file.
fn tell_of_rule(config: &Config, file: &Path, line: usize, said: Told) {
    let why = match said {
        Told::Odd(address, mask) => {
            let file = file.display();
            let what = format_args!("address does not match mask in {file} line #{line}: {address} / {mask}");
            return say(Level::Warning, what);
        }
        Told::Refused(why) => {
            say(Level::Warning, format_args!("hba line {line}: {why}"));
            why
        }
        Told::Unsupported(why) => {
            say(Level::Warning, format_args!("{why}"));
            why
        }
    };
    say(Level::Warning, format_args!("could not parse hba config line {line}"));
    passed_over(config, file, line, &why);
}

fn passed_over(config: &Config, file: &Path, line: usize, why: &str) {
    if config.dialect.pgbouncer().is_none() {
        tracing::warn!(file = %file.display(), line, why, "a line is not understood, and passed over");
    }
}

/// PgBouncer goes on without a file.
fn cannot_open(what: &str, file: &Path, why: &str) {
    say(Level::Error, format_args!("could not open {what} {}: {why}", file.display()));
}

/// The text of a file that is not too long; why not.
fn read_text(file: &Path, most: u64) -> Result<String, String> {
    let said = |error: std::io::Error| errno_text(&error);
    if std::fs::metadata(file).map_err(said)?.len() > most {
        return Err(format!("it is longer than {most} bytes"));
    }
    std::fs::read_to_string(file).map_err(said)
}

/// The users of a list. PgBouncer goes on with those before a mistake, and without a list.
fn read_list(file: &Path, is_pgbouncer: bool) -> Result<Vec<(String, Known)>, String> {
    let users = match read_text(file, userlist::MAX_FILE_BYTES) {
        Ok(text) if is_pgbouncer => {
            let (users, wrong) = userlist::parse_in_part(&text);
            if let Some(wrong) = wrong {
                say(Level::Error, format_args!("{wrong}"));
            }
            users
        }
        Ok(text) => userlist::parse(&text)?,
        Err(why) if is_pgbouncer => {
            cannot_open("auth_file", file, &why);
            Vec::new()
        }
        Err(why) => return Err(why),
    };
    Ok(users
        .into_iter()
        .map(|(user, secret)| (user, Known { is_listed: true, ..Known::new(Some(secret.reveal())) }))
        .collect())
}
