//! Where a client connects to, as whom.

use std::time::Duration;

use tokio_postgres::{Client, Error, NoTls, SimpleQueryMessage};

/// How long a test waits for a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(20);

/// An address with user, password and database.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// Host name, or the directory of a Unix socket.
    pub host: String,
    /// Port.
    pub port: u16,
    /// User.
    pub user: String,
    /// Password; empty if there is none.
    pub password: String,
    /// Database.
    pub database: String,
}

impl Endpoint {
    /// As `app`, with its password, to the database `app`, on this machine.
    #[must_use]
    pub fn app(port: u16) -> Self {
        Self {
            host: "127.0.0.1".into(),
            port,
            user: "app".into(),
            password: "app-secret".into(),
            database: "app".into(),
        }
    }

    /// The same with another user and password.
    #[must_use]
    pub fn with_user(&self, user: &str, password: &str) -> Self {
        Self { user: user.into(), password: password.into(), ..self.clone() }
    }

    /// The same with another database.
    #[must_use]
    pub fn with_database(&self, database: &str) -> Self {
        Self { database: database.into(), ..self.clone() }
    }

    /// As libpq takes it.
    #[must_use]
    pub fn conninfo(&self) -> String {
        let Self { host, port, user, password, database } = self;
        format!("host={host} port={port} user={user} password={password} dbname={database}")
    }

    /// As a URI without the password.
    #[must_use]
    pub fn uri(&self) -> String {
        format!("postgresql://{}@{}:{}/{}", self.user, self.host, self.port, self.database)
    }

    /// Connects; the connection lives until the client is dropped.
    ///
    /// # Errors
    /// What the server or the network answered.
    ///
    /// # Panics
    /// When there is no answer at all.
    pub async fn connect(&self) -> Result<Client, Error> {
        let config: tokio_postgres::Config = self.conninfo().parse().expect("our own conninfo is valid");
        let connected = tokio::time::timeout(CONNECT_LIMIT, config.connect(NoTls)).await;
        let (client, connection) = connected.unwrap_or_else(|_| panic!("no answer to a login at {}", self.uri()))?;
        tokio::spawn(connection);
        Ok(client)
    }

    /// Connects, or the test fails.
    ///
    /// # Panics
    /// When the login is refused.
    pub async fn client(&self) -> Client {
        self.connect().await.unwrap_or_else(|error| panic!("{}: {}", self.uri(), say(&error)))
    }
}

/// Runs SQL by the simple protocol and gives the first column of each row; NULL is empty.
///
/// # Errors
/// What the server answered.
pub async fn column(client: &Client, sql: &str) -> Result<Vec<String>, Error> {
    let messages = client.simple_query(sql).await?;
    let rows = messages.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or_default().to_owned()),
        _ => None,
    });
    Ok(rows.collect())
}

/// The first column of the first row.
///
/// # Panics
/// When the query fails or gives no row.
pub async fn value(client: &Client, sql: &str) -> String {
    let rows = column(client, sql).await.unwrap_or_else(|error| panic!("{sql}: {}", say(&error)));
    rows.into_iter().next().unwrap_or_else(|| panic!("{sql}: no row"))
}

/// SQLSTATE of an error, or an empty text if it did not come from the server.
#[must_use]
pub fn sqlstate(error: &Error) -> &str {
    error.code().map_or("", |code| code.code())
}

/// An error with its SQLSTATE, for people.
#[must_use]
pub fn say(error: &Error) -> String {
    match error.as_db_error() {
        Some(db) => format!("{} {}: {}", db.severity(), db.code().code(), db.message()),
        None => format!("{error:?}"),
    }
}
