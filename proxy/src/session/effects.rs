//! What statements leave behind in the session: settings that follow the client, and state that only its server has.

use std::collections::VecDeque;

use pgwire::conversation::TransactionStatus;

use super::note::About;
use super::{Mode, Session};
use crate::routing::{Change, Class, Effect, Kind, Route, SettingChange};
use crate::settings::{Setting, Settings, is_settable};

/// Classes of portals that are remembered between Bind and Execute.
const MAX_PORTALS: usize = 256;

/// What the client's portals will execute.
#[derive(Debug, Default)]
pub(super) struct Portals {
    /// None before the first, and after their server was lost: many clients never have any.
    bound: Option<Box<Bound>>,
}

#[derive(Debug, Default)]
struct Bound {
    unnamed: Option<Class>,
    named: Vec<(Box<[u8]>, Class)>,
}

impl Portals {
    /// A Bind was sent.
    pub(super) fn bind(&mut self, portal: &[u8], class: Class) {
        let bound = self.bound.get_or_insert_default();
        if portal.is_empty() {
            bound.unnamed = Some(class);
            return;
        }
        bound.named.retain(|(name, _)| **name != *portal);
        if bound.named.len() < MAX_PORTALS {
            bound.named.push((portal.into(), class));
        }
    }

    /// What Execute of this portal executes; the worst if that is not known.
    pub(super) fn get(&self, portal: &[u8]) -> Class {
        let known = self.bound.as_ref().and_then(|bound| match portal {
            [] => bound.unnamed.as_ref(),
            portal => bound.named.iter().find(|(name, _)| **name == *portal).map(|(_, class)| class),
        });
        known.cloned().unwrap_or_else(Class::unknown)
    }

    /// The transaction is over, and portals with it.
    pub(super) fn clear(&mut self) {
        self.bound = None;
    }
}

/// What statements of the transaction leave behind, as long as it is not certain that they do.
#[derive(Debug, Default)]
pub(super) struct Unsettled {
    /// None while there is nothing: that is so for most clients, most of the time.
    kept: Option<Box<Kept>>,
}

#[derive(Debug, Default)]
struct Kept {
    /// Statements with effects that have not been answered.
    sent: VecDeque<Class>,
    /// What was set, in the order of the answers.
    settings: Vec<SettingChange>,
}

impl Unsettled {
    /// A statement with effects was sent.
    pub(super) fn sent(&mut self, class: Class) {
        self.kept.get_or_insert_default().sent.push_back(class);
    }

    /// The oldest of them was answered.
    pub(super) fn answered(&mut self) -> Option<Class> {
        self.kept.as_mut()?.sent.pop_front()
    }

    /// A setting was changed, if the transaction is committed.
    fn set(&mut self, change: SettingChange) {
        self.kept.get_or_insert_default().settings.push(change);
    }

    fn has_settings(&self) -> bool {
        self.kept.as_ref().is_some_and(|kept| !kept.settings.is_empty())
    }

    /// What was set; no more than was sent and not answered is kept.
    fn take_settings(&mut self) -> Vec<SettingChange> {
        let settings = self.kept.as_mut().map(|kept| std::mem::take(&mut kept.settings)).unwrap_or_default();
        self.kept.take_if(|kept| kept.sent.is_empty());
        settings
    }

    /// Their server is lost: nothing of them counts.
    pub(super) fn clear(&mut self) {
        self.kept = None;
    }
}

impl Session {
    /// What is to be noted of a statement that is being sent.
    pub(super) fn effects_of(&mut self, class: &Class) -> About {
        if self.mode == Mode::Session {
            return self.resets_of(class);
        }
        if self.is_plain || !leaves_something(class) {
            return About::Nothing;
        }
        self.effects.sent(class.clone());
        About::Effects
    }

    /// A statement with effects was answered.
    pub(super) fn take_effect(&mut self, class: &Class, done: bool) {
        if !done {
            if matches!(class.kind, Kind::Several) {
                self.soil(); // the part before the error may have had its effect
            }
            return;
        }
        for part in std::iter::once(class).chain(class.parts.iter()) {
            self.take_effects_of(part);
        }
        let idle = self.server.as_ref().is_none_or(|server| server.conversation.status() == TransactionStatus::Idle);
        if idle && matches!(class.kind, Kind::Several) {
            self.settle_settings();
        }
    }

    fn take_effects_of(&mut self, class: &Class) {
        if class.kind == Kind::RollbackTo && self.effects.has_settings() {
            self.pin("SET before ROLLBACK TO SAVEPOINT");
        }
        if class.kind == Kind::Unknown {
            self.soil(); // DO and CALL can set anything
        }
        for effect in class.effects.iter() {
            match effect {
                Effect::Pin(reason) => self.pin(&reason.to_string()),
                Effect::Setting(change) if change.local => {}
                Effect::Setting(change) => {
                    self.follow_login(change);
                    if self.mode != Mode::Session {
                        self.effects.set(change.clone());
                    }
                }
            }
        }
    }

    /// A transaction ended: what was set in it holds, or never did.
    pub(super) fn settle_settings(&mut self) {
        let changes = self.effects.take_settings();
        if changes.is_empty() || self.rolled_back {
            return;
        }
        let Some(server) = self.server.as_mut() else { return };
        for SettingChange { name, change, .. } in changes {
            if *name == *Route::PARAMETER {
                self.route = asked_route(&change);
            }
            if *name == *"session_authorization" {
                self.settings.reset("role"); // PostgreSQL manual, SET SESSION AUTHORIZATION: the role goes with it
            }
            match change {
                // What PostgreSQL reports follows the client by itself.
                Change::Set(_) | Change::Reset if is_settable(&name) && server.reported.get(&name).is_some() => {}
                Change::Set(sql) => {
                    if !self.settings.set(&name, Setting::Statement(sql)) {
                        server.dirty = true;
                        self.pinned = Some("too many settings".into());
                    }
                }
                Change::Reset => match self.startup.get(&name) {
                    Some(value) => drop(self.settings.set(&name, value.clone())),
                    None => self.settings.reset(&name),
                },
                Change::ResetAll => {
                    self.settings.reset_all();
                    for (name, value) in self.startup.iter().filter(|(name, _)| !Settings::outlives_reset_all(name)) {
                        let _ = self.settings.set(name, value.clone());
                    }
                }
            }
        }
        server.applied = self.settings.clone();
    }

    /// Nothing that the lost transaction set ever held.
    pub(super) fn forget_settings_of_transaction(&mut self) {
        self.effects.clear();
        self.rolled_back = false;
    }

    /// The session keeps its server from now on: it has state there that cannot be moved.
    pub(super) fn pin(&mut self, reason: &str) {
        if self.mode == Mode::Session || self.is_plain {
            return;
        }
        if self.pinned.is_none() {
            tracing::info!(session = %self.name(), reason, "the session keeps its server");
        }
        self.pinned = Some(reason.into());
        self.soil();
    }

    /// The server has state that must not reach the next session.
    pub(super) fn soil(&mut self) {
        if self.is_plain {
            return;
        }
        if let Some(server) = self.server.as_mut() {
            server.dirty = true;
        }
    }

    /// DISCARD ALL was done: the server is as new, and the session as it began.
    pub(super) fn discarded_all(&mut self) {
        self.pinned = None;
        drop(self.effects.take_settings());
        self.settings = self.startup.clone();
        self.login.all_reset();
        if let Some(server) = self.server.as_mut() {
            server.dirty = false;
            server.applied = Settings::default();
        }
    }
}

/// Whether a statement is to be looked at again when it has been answered.
fn leaves_something(class: &Class) -> bool {
    let one = |class: &Class| !class.effects.is_empty() || matches!(class.kind, Kind::RollbackTo | Kind::Unknown);
    one(class) || class.parts.iter().any(one)
}

/// The route that `SET pgsteady.route = …` asks for; PostgreSQL took the word, whatever it is.
fn asked_route(change: &Change) -> Option<Route> {
    let Change::Set(sql) = change else { return None };
    let last = sql.trim_end_matches([';', ' ', '\'', '"']).rsplit(['=', ' ', '\'', '"', ',', '(']).next()?;
    Route::parse(last.as_bytes())
}
