//! What a connection, an entry or a comment asks for: the words are the configuration's; the most specific one counts.

pub use crate::config::Route;

impl Route {
    /// The name of the parameter, in a startup packet's `options` (`-c pgsteady.route=replica`), in SET and in a comment.
    pub const PARAMETER: &'static str = "pgsteady.route";

    /// Reads `auto`, `primary` or `replica` in any case, as PostgreSQL reads its own words; anything else is `None`.
    #[must_use]
    pub fn parse(word: &[u8]) -> Option<Self> {
        let mut all = [Self::Auto, Self::Primary, Self::Replica].into_iter();
        all.find(|route| word.eq_ignore_ascii_case(route.word().as_bytes()))
    }

    /// The one that counts of what a comment, a session and an entry of the configuration ask for.
    #[must_use]
    pub fn decided(hint: Option<Self>, session: Option<Self>, entry: Self) -> Self {
        hint.or(session).unwrap_or(entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_is_one_of_three_words() {
        assert_eq!(Route::parse(b"Replica"), Some(Route::Replica));
        assert_eq!(Route::parse(b"auto"), Some(Route::Auto));
        assert_eq!(Route::parse(b"PRIMARY"), Some(Route::Primary));
        assert_eq!(Route::parse(b"standby\xff"), None);
        assert_eq!(Route::parse(b""), None);
    }

    #[test]
    fn a_comment_counts_before_the_session_and_the_session_before_the_entry() {
        let (auto, primary, replica) = (Route::Auto, Route::Primary, Route::Replica);
        assert_eq!(Route::decided(Some(primary), Some(replica), auto), primary);
        assert_eq!(Route::decided(None, Some(replica), auto), replica);
        assert_eq!(Route::decided(None, None, auto), auto);
    }
}
