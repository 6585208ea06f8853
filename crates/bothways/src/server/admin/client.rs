//! What tools ask the admin service with.

use std::time::Duration;

use bothways_proto::Metadata;

use super::{
    SERVICE_PATH, TOKEN_KEY,
    mail::{LetterNamed, LettersAsked, LettersListed, MailboxesAsked},
    push::{AdminPush, AdminPushOutcome, PUSH_WAIT_MAX, STORED_WAIT_MAX},
    views::{
        AdminDrain, AdminExplained, AdminKick, AdminKicked, AdminNode, AdminStats, AuditAsked, AuditEntry,
        ConnectionView, EventsAsked, EventsListed, MembersAsked, MembersListed, OperatorView, Page, PushReceipt,
        PushTarget, ReceiptAsked, SessionsAsked, SessionsListed, TopicsAsked, TopicsListed,
    },
};
use crate::{
    CallOptions, Caller, Payload,
    error::CallError,
    session::{DeadLetter, Explanation, MailboxView},
};

/// What a question waits longer that a store answers.
const STORE_WAIT: Duration = Duration::from_secs(10);

/// A client of a server's admin service, over a [`Client`](crate::Client) that is connected to an
/// address where it answers ([`Server::listen_admin`](crate::Server::listen_admin)).
///
/// The client need not negotiate, and no auth hook is asked. `Debug` shows no token.
///
/// ```
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use bothways::{
///     Client, ClientOptions, Server,
///     server::{AdminClient, AdminOptions, Page},
/// };
///
/// let server = Server::builder().admin(AdminOptions::token("a long secret")?).build();
/// let listening = server.listen_admin("memory@operators").await?;
/// let client = Client::connect(listening.address(), ClientOptions::new().negotiate(false)).await?;
/// let operator = AdminClient::new(client, "a long secret");
/// assert!(operator.connections(Page::default()).await?.is_empty());
/// # Ok(()) }
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(example()).unwrap();
/// ```
#[derive(Clone)]
pub struct AdminClient<C> {
    caller: C,
    token: String,
    timeout: Duration,
}

impl<C: Caller> AdminClient<C> {
    /// Presents this token with each question. Each answer is waited for 5 s, beyond what the question itself asks
    /// to wait.
    pub fn new(caller: C, token: impl Into<String>) -> Self {
        Self { caller, token: token.into(), timeout: Duration::from_secs(5) }
    }

    /// Waits this long for each answer.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// A page of the open connections, oldest first.
    ///
    /// # Errors
    /// Any [`CallError`]; after a wrong token the server closes the connection.
    pub async fn connections(&self, page: Page) -> Result<Vec<ConnectionView>, CallError> {
        self.ask("Connections", &Some(page), Duration::ZERO).await
    }

    /// A page of sessions, by user and number.
    ///
    /// # Errors
    /// As [`Self::connections`].
    pub async fn sessions(&self, asked: &SessionsAsked) -> Result<SessionsListed, CallError> {
        self.ask("Sessions", asked, Duration::ZERO).await
    }

    /// The recent events of sessions: 100 at most.
    ///
    /// # Errors
    /// As [`Self::connections`].
    pub async fn explain(&self, target: &PushTarget) -> Result<Vec<Explanation>, CallError> {
        self.ask("Explain", target, Duration::ZERO).await
    }

    /// The nodes of the cluster; of a server alone, itself. Each is asked whether it is there, and has 3 s to answer.
    ///
    /// # Errors
    /// As [`Self::connections`].
    pub async fn nodes(&self) -> Result<Vec<AdminNode>, CallError> {
        self.ask("Nodes", &(), Duration::ZERO).await
    }

    /// As [`Self::sessions`], of all nodes: 256 at most, and possibly fewer than asked for where more are to come. The list
    /// ends with an empty page.
    ///
    /// # Errors
    /// As [`Self::connections`].
    pub async fn sessions_everywhere(&self, asked: &SessionsAsked) -> Result<SessionsListed, CallError> {
        self.ask("SessionsEverywhere", asked, Duration::ZERO).await
    }

    /// As [`Self::explain`], of all nodes.
    ///
    /// # Errors
    /// As [`Self::connections`].
    pub async fn explain_everywhere(&self, target: &PushTarget) -> Result<AdminExplained, CallError> {
        self.ask("ExplainEverywhere", target, Duration::ZERO).await
    }

    /// As [`Self::kick`], at all nodes.
    ///
    /// # Errors
    /// As [`Self::connections`].
    pub async fn kick_everywhere(&self, kick: &AdminKick) -> Result<AdminKicked, CallError> {
        self.ask("KickEverywhere", kick, Duration::ZERO).await
    }

    /// Ends sessions, and returns how many.
    ///
    /// # Errors
    /// As [`Self::connections`].
    pub async fn kick(&self, kick: &AdminKick) -> Result<usize, CallError> {
        self.ask("Kick", kick, Duration::ZERO).await
    }

    /// Pushes, and returns what became of it.
    ///
    /// # Errors
    /// As [`Self::connections`]. What is to be stored was not, or its store has not answered for 12 s: the text says which.
    pub async fn push(&self, push: &AdminPush) -> Result<AdminPushOutcome, CallError> {
        let more = Duration::from_millis(push.wait_ms).min(PUSH_WAIT_MAX);
        self.ask("Push", push, STORED_WAIT_MAX + more).await
    }

    /// Pushes, and returns a number for [`Self::receipt`]: at once, or when a store has what is to be stored.
    ///
    /// # Errors
    /// As [`Self::push`].
    pub async fn begin_push(&self, push: &AdminPush) -> Result<PushReceipt, CallError> {
        self.ask("BeginPush", push, STORED_WAIT_MAX).await
    }

    /// How far such a push has come.
    ///
    /// # Errors
    /// As [`Self::connections`]; 64 pushes later the server does not know it any more.
    pub async fn receipt(&self, asked: &ReceiptAsked) -> Result<PushReceipt, CallError> {
        let more = Duration::from_millis(asked.wait_ms).min(PUSH_WAIT_MAX);
        self.ask("Receipt", asked, more).await
    }

    /// Who the server takes this operator for.
    ///
    /// # Errors
    /// As [`Self::connections`].
    pub async fn me(&self) -> Result<OperatorView, CallError> {
        self.ask("Me", &(), Duration::ZERO).await
    }

    /// Counters.
    ///
    /// # Errors
    /// As [`Self::connections`].
    pub async fn stats(&self) -> Result<AdminStats, CallError> {
        self.ask("Stats", &(), Duration::ZERO).await
    }

    /// What happened to all sessions since the last look.
    ///
    /// # Errors
    /// As [`Self::connections`].
    pub async fn events(&self, asked: &EventsAsked) -> Result<EventsListed, CallError> {
        self.ask("Events", asked, Duration::ZERO).await
    }

    /// A page of topics.
    ///
    /// # Errors
    /// As [`Self::connections`].
    pub async fn topics(&self, asked: &TopicsAsked) -> Result<TopicsListed, CallError> {
        self.ask("Topics", asked, Duration::ZERO).await
    }

    /// The members of a topic with presence.
    ///
    /// # Errors
    /// As [`Self::connections`].
    pub async fn members(&self, asked: &MembersAsked) -> Result<MembersListed, CallError> {
        self.ask("Members", asked, Duration::ZERO).await
    }

    /// What operators did, newest first.
    ///
    /// # Errors
    /// As [`Self::connections`].
    pub async fn audit(&self, asked: &AuditAsked) -> Result<Vec<AuditEntry>, CallError> {
        self.ask("Audit", asked, Duration::ZERO).await
    }

    /// A page of the users who have mail, or dead letters.
    ///
    /// # Errors
    /// As [`Self::connections`]; a server without a store for durable pushes says so.
    pub async fn mailboxes(&self, asked: &MailboxesAsked) -> Result<Vec<MailboxView>, CallError> {
        self.ask("Mailboxes", asked, STORE_WAIT).await
    }

    /// A page of a mailbox, and how far its devices have come.
    ///
    /// # Errors
    /// As [`Self::mailboxes`].
    pub async fn letters(&self, asked: &LettersAsked) -> Result<LettersListed, CallError> {
        self.ask("Letters", asked, STORE_WAIT).await
    }

    /// A page of the letters that a user's devices could not handle.
    ///
    /// # Errors
    /// As [`Self::mailboxes`].
    pub async fn dead_letters(&self, asked: &LettersAsked) -> Result<Vec<DeadLetter>, CallError> {
        self.ask("DeadLetters", asked, STORE_WAIT).await
    }

    /// Puts a dead letter into its user's mailbox again. False: it is not there.
    ///
    /// # Errors
    /// As [`Self::mailboxes`]; see [`Mail::send_again`](crate::session::Mail::send_again).
    pub async fn send_again(&self, letter: &LetterNamed) -> Result<bool, CallError> {
        self.ask("SendAgain", letter, STORE_WAIT).await
    }

    /// Deletes a letter, or a dead one. False: it is not there.
    ///
    /// # Errors
    /// As [`Self::mailboxes`].
    pub async fn delete_letter(&self, letter: &LetterNamed) -> Result<bool, CallError> {
        self.ask("DeleteLetter", letter, STORE_WAIT).await
    }

    /// Begins to drain the server, and returns how many clients are connected.
    ///
    /// # Errors
    /// As [`Self::connections`].
    pub async fn drain(&self, drain: &AdminDrain) -> Result<usize, CallError> {
        self.ask("Drain", drain, Duration::ZERO).await
    }

    pub(super) async fn ask<R: Payload>(
        &self,
        method: &str,
        args: &(impl Payload + Sync),
        more: Duration,
    ) -> Result<R, CallError> {
        let metadata = Metadata::new().with(TOKEN_KEY, &self.token);
        let mut options = CallOptions::new().metadata(metadata).timeout(self.timeout.saturating_add(more));
        options.is_own = true;
        Ok(self.caller.call_typed(SERVICE_PATH, method, args, options).await?.value)
    }
}

impl<C> std::fmt::Debug for AdminClient<C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AdminClient").field("token", &"***").finish_non_exhaustive()
    }
}
