//! What a client asked for at its login is what RESET goes back to, as with PostgreSQL itself.
//!
//! The server was opened for somebody else and goes back to its own default, so the value of the login is set again:
//! before the client's next message, or before the server goes back.

use super::Session;
use super::note::About;
use crate::routing::{Change, Class, Effect, SettingChange};
use crate::settings::{Setting, Settings};
use pgwire::conversation::TransactionStatus;

/// The settings in a client's startup packet.
#[derive(Debug, Default)]
pub(super) struct Login {
    asked: Settings,
    /// Those that were reset since, and have to be made again.
    again: Vec<Box<str>>,
    /// In session mode: what the client parsed last, if it resets.
    parsed: Option<Box<Class>>,
}

impl Login {
    /// A client that asked for these.
    pub(super) fn new(asked: Settings) -> Self {
        Self { asked, again: Vec::new(), parsed: None }
    }

    /// A setting was changed.
    fn follow(&mut self, SettingChange { name, change, .. }: &SettingChange) {
        match change {
            Change::Set(_) => self.again.retain(|reset| reset != name),
            Change::Reset => self.make_again(name),
            Change::ResetAll => {
                let names = self.asked.iter().map(|(name, _)| Box::from(name));
                let names: Vec<Box<str>> = names.filter(|name| !Settings::outlives_reset_all(name)).collect();
                names.iter().for_each(|name| self.make_again(name));
            }
        }
    }

    fn make_again(&mut self, name: &str) {
        if self.asked.get(name).is_some() && !self.again.iter().any(|reset| **reset == *name) {
            self.again.push(name.into());
        }
    }

    /// DISCARD ALL was done.
    pub(super) fn all_reset(&mut self) {
        self.again = self.asked.iter().map(|(name, _)| name.into()).collect();
    }

    /// Nothing was reset after all, or not on the server that is next.
    pub(super) fn forget(&mut self) {
        self.again.clear();
    }

    /// Whether there is something to make again.
    #[inline]
    pub(super) fn is_due(&self) -> bool {
        !self.again.is_empty()
    }

    /// What is to be made again, with its value; it counts as made.
    pub(super) fn take(&mut self) -> Vec<(Box<str>, Box<str>)> {
        let again = std::mem::take(&mut self.again).into_iter();
        let value = |name: Box<str>| match self.asked.get(&name) {
            Some(Setting::Value(value)) => Some((name, value.clone())),
            _ => None,
        };
        again.filter_map(value).collect()
    }

    /// Whether a statement resets one of them.
    fn is_reset_by(&self, class: &Class) -> bool {
        let resets = |change: &Change| matches!(change, Change::Reset | Change::ResetAll);
        let one = |class: &Class| {
            class.effects.iter().any(|effect| matches!(effect, Effect::Setting(setting) if resets(&setting.change)))
        };
        self.asked.iter().next().is_some() && (one(class) || class.parts.iter().any(one))
    }
}

impl Session {
    /// A setting was changed by the client, for longer than its transaction.
    pub(super) fn follow_login(&mut self, change: &SettingChange) {
        self.login.follow(change);
    }

    /// In session mode: the client parses this, and is taken to execute it next.
    pub(super) fn note_parsed(&mut self, class: Class) {
        self.login.parsed = self.login.is_reset_by(&class).then(|| Box::new(class));
    }

    /// In session mode, where no other effects are looked at: what is to be noted of a statement that is being sent.
    pub(super) fn resets_of(&mut self, class: &Class) -> About {
        if !self.login.is_reset_by(class) {
            return About::Nothing;
        }
        self.effects.sent(class.clone());
        About::Effects
    }

    /// As [`Session::resets_of`], of what was parsed last.
    pub(super) fn resets_of_parsed(&mut self) -> About {
        match self.login.parsed.clone() {
            Some(class) => self.resets_of(&class),
            None => About::Nothing,
        }
    }

    /// Whether settings of the login have to be made again now, before anything else is sent to the server.
    #[inline]
    pub(super) fn login_is_due(&self) -> bool {
        self.login.is_due()
            && self.server.as_ref().is_some_and(|server| {
                server.conversation.quiet() && server.conversation.status() != TransactionStatus::Failed
            })
    }
}
