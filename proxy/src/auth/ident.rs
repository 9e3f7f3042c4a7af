//! The maps of an ident file, from names of certificates and of the operating system to users, as PgBouncer reads them.

use super::hba::{Word, text_of, words};

/// The maps of an ident file: name of the map, name in the system or the certificate, user (none: all).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Ident(Vec<(String, String, Option<String>)>);

impl Ident {
    /// Reads the maps; a line that is none is passed over, and told, where PgBouncer does it with the reason.
    pub(super) fn parse(text: &str) -> (Self, Vec<(usize, Option<String>)>) {
        let (mut maps, mut bad) = (Vec::new(), Vec::new());
        for (index, line) in text.lines().enumerate() {
            match words(line).as_deref() {
                Ok([]) => {}
                Ok([map, system, user]) => match (map, system, user) {
                    (Word::Comma, ..) | (_, Word::Comma, _) | (.., Word::Comma) => {
                        bad.push((index + 1, None));
                    }
                    (map, system, Word::Plain(user)) if user == "all" => {
                        maps.push((text_of(map), text_of(system), None));
                    }
                    (map, system, user) => maps.push((text_of(map), text_of(system), Some(text_of(user)))),
                },
                Ok([_, _, _, ..]) => bad.push((index + 1, Some("unsupported parameters".to_owned()))),
                Ok(_) | Err(_) => bad.push((index + 1, None)),
            }
        }
        (Self(maps), bad)
    }

    /// Whether there is a map of this name.
    pub(super) fn has(&self, map: &str) -> bool {
        self.0.iter().any(|(name, ..)| name == map)
    }

    /// Whether a map lets somebody with this name be this user.
    pub(super) fn allows(&self, map: &str, system: &str, user: &str) -> bool {
        self.0.iter().any(|(name, from, to)| name == map && from == system && to.as_deref().is_none_or(|to| to == user))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_lets_a_name_be_users() {
        let (ident, bad) = Ident::parse("# x\nm cn joe\nm \"c n\" all\nn cn jane\nm cn\n");
        assert_eq!(bad.len(), 1);
        assert!(
            ident.allows("m", "cn", "joe") && ident.allows("m", "c n", "whoever") && ident.allows("n", "cn", "jane")
        );
        assert!(!ident.allows("m", "cn", "jane") && !ident.allows("x", "cn", "joe"));
    }
}
