//! A password checked by the system: Pluggable Authentication Modules, as the service that `/etc/pam.d` has rules for. They may
//! take their time, and are asked away from the worker, few at a time.

use std::ffi::{OsStr, OsString};
use std::net::IpAddr;
use std::sync::Arc;

use nonstick::items::ItemsMut;
use nonstick::{
    AuthnFlags, ConversationAdapter, ErrorCode, PamShared, Result as PamResult, Transaction, TransactionBuilder,
};
use tokio::sync::Semaphore;

use pgwire::auth::Secret;

/// Questions at a time; those who ask more wait, for no longer than their login may take.
const MAX_QUESTIONS: usize = 8;

/// The way to the system's modules.
#[derive(Debug)]
pub(super) struct Pam {
    permits: Arc<Semaphore>,
}

impl Default for Pam {
    fn default() -> Self {
        Self { permits: Arc::new(Semaphore::new(MAX_QUESTIONS)) }
    }
}

/// Who wants to log in.
pub(super) struct Question {
    /// The name of the rules: the file in `/etc/pam.d`.
    pub(super) service: String,
    pub(super) user: String,
    pub(super) password: Secret,
    /// From where (`PAM_RHOST`); none: from this host.
    pub(super) address: Option<IpAddr>,
}

impl Pam {
    /// Whether the modules take the password, and let the user in today; if not, why.
    pub(super) async fn check(&self, question: Question) -> Result<(), String> {
        let stopping = "pgsteady stops";
        let permit = self.permits.clone().acquire_owned().await.map_err(|_| stopping)?;
        let work = move || {
            // A client that gives up does not stop a module: its permit is kept until the end.
            let _permit = permit;
            question.ask().map_err(|error| error.to_string())
        };
        tokio::task::spawn_blocking(work).await.map_err(|_| stopping)?
    }
}

impl Question {
    fn ask(self) -> PamResult<()> {
        let Self { service, user, password, address } = self;
        // Modules are written in C, for which a text ends at its first NUL.
        if password.reveal().contains(&0) {
            return Err(ErrorCode::AuthenticationError);
        }
        let builder = TransactionBuilder::new_with_service(service).username(user);
        let mut transaction = builder.build(Knows(password).into_conversation())?;
        if let Some(address) = address {
            transaction.items_mut().set_remote_host(Some(address.to_string().as_ref()))?;
        }
        transaction.authenticate(AuthnFlags::SILENT)?;
        transaction.account_management(AuthnFlags::SILENT)
    }
}

/// Answers what is asked for in secret with the password, and nothing else.
struct Knows(Secret);

impl ConversationAdapter for Knows {
    fn prompt(&self, _: impl AsRef<OsStr>) -> PamResult<OsString> {
        Err(ErrorCode::ConversationError)
    }

    fn masked_prompt(&self, _: impl AsRef<OsStr>) -> PamResult<OsString> {
        use std::os::unix::ffi::OsStrExt;
        Ok(OsStr::from_bytes(self.0.reveal()).to_owned())
    }

    fn error_msg(&self, message: impl AsRef<OsStr>) {
        tracing::info!(message = %message.as_ref().display(), "a PAM module");
    }

    fn info_msg(&self, message: impl AsRef<OsStr>) {
        tracing::debug!(message = %message.as_ref().display(), "a PAM module");
    }
}
