//! Which method a client has to pass, by where it comes from and what for: the rules of an HBA file, as PgBouncer reads them
//! (its manual, "HBA file format"). And the maps of an ident file, from names of certificates and of the operating system to
//! users. What the methods do is in `client.rs`.

use std::net::IpAddr;

use super::client::Came;

/// Longest file that is read, in bytes.
pub(super) const MAX_FILE_BYTES: u64 = 16 << 20;

/// A method that a rule may name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Method {
    Trust,
    Reject,
    Md5,
    Password,
    Scram,
    Peer,
    Cert,
    Ldap,
}

impl Method {
    fn named(word: &str) -> Option<Self> {
        Some(match word {
            "trust" => Self::Trust,
            "reject" => Self::Reject,
            "md5" => Self::Md5,
            "password" => Self::Password,
            "scram-sha-256" => Self::Scram,
            "peer" => Self::Peer,
            "cert" => Self::Cert,
            "ldap" => Self::Ldap,
            _ => return None,
        })
    }
}

/// How a client has to have come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Local,
    Host,
    Ssl,
    NoSsl,
}

/// A list of names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Names {
    all: bool,
    same_user: bool,
    replication: bool,
    names: Vec<String>,
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    way: Way,
    databases: Names,
    users: Names,
    /// Address and length of its prefix; none: any.
    network: Option<(IpAddr, u8)>,
    /// What the client has to pass.
    pub(super) method: Method,
    /// The map of the ident file, for `cert` and `peer`.
    pub(super) map: Option<String>,
    /// The options of `ldap`.
    pub(super) ldap: String,
}

/// The rules of a file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Hba(Vec<Rule>);

/// A line that is no rule.
pub(super) type Bad = (usize, String);

impl Hba {
    /// Reads the rules; a line that is none is passed over, and told.
    pub(super) fn parse(text: &str, read_file: impl Fn(&str) -> Option<String>) -> (Self, Vec<Bad>) {
        let (mut rules, mut bad) = (Vec::new(), Vec::new());
        for (index, line) in text.lines().enumerate() {
            match words(line).and_then(|words| rule(line, &words, &read_file)) {
                Ok(Some(rule)) => rules.push(rule),
                Ok(None) => {}
                Err(why) => bad.push((index + 1, why)),
            }
        }
        (Self(rules), bad)
    }

    /// The first rule that is for this client.
    pub(super) fn find(&self, user: &str, came: &Came<'_>) -> Option<&Rule> {
        self.0.iter().find(|rule| rule.is_for(user, came))
    }
}

impl Rule {
    fn is_for(&self, user: &str, came: &Came<'_>) -> bool {
        let by_way = match self.way {
            Way::Local => came.address.is_none(),
            Way::Host => came.address.is_some(),
            Way::Ssl => came.address.is_some() && came.is_encrypted,
            Way::NoSsl => came.address.is_some() && !came.is_encrypted,
        };
        let by_address = match (self.network, came.address) {
            (Some((network, prefix)), Some(address)) => is_within(address, network, prefix),
            _ => true,
        };
        by_way && by_address && self.databases.has_database(user, came) && self.users.has(user)
    }
}

impl Names {
    fn has(&self, name: &str) -> bool {
        self.all || self.names.iter().any(|known| known == name)
    }

    fn has_database(&self, user: &str, came: &Came<'_>) -> bool {
        if came.replicates {
            return self.replication;
        }
        self.has(came.database) || (self.same_user && came.database == user)
    }
}

/// A word, and whether it stood in quotes: then it is a name and no keyword.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Word {
    Plain(String),
    Quoted(String),
    Comma,
}

fn words(line: &str) -> Result<Vec<Word>, String> {
    let mut words = Vec::new();
    let mut rest = line.trim_start();
    while let Some(first) = rest.chars().next() {
        match first {
            '#' => break,
            ',' => {
                words.push(Word::Comma);
                rest = &rest[1..];
            }
            '"' => {
                let mut name = String::new();
                rest = &rest[1..];
                loop {
                    let (part, behind) = rest.split_once('"').ok_or("a quote is not closed")?;
                    name.push_str(part);
                    rest = behind;
                    match rest.strip_prefix('"') {
                        Some(more) => {
                            name.push('"');
                            rest = more;
                        }
                        None => break,
                    }
                }
                words.push(Word::Quoted(name));
            }
            _ => {
                let end = rest.find(|c: char| c.is_whitespace() || c == ',' || c == '#').unwrap_or(rest.len());
                // The value of an option may be in quotes.
                let end = match rest[..end].find("=\"") {
                    Some(at) => rest[at + 2..].find('"').map_or(end, |close| at + 2 + close + 1),
                    None => end,
                };
                words.push(Word::Plain(rest[..end].to_owned()));
                rest = &rest[end..];
            }
        }
        rest = rest.trim_start();
    }
    Ok(words)
}

fn rule(line: &str, words: &[Word], read_file: &impl Fn(&str) -> Option<String>) -> Result<Option<Rule>, String> {
    let Some(first) = words.first() else { return Ok(None) };
    let way = match first {
        Word::Plain(word) => match word.as_str() {
            "local" => Way::Local,
            "host" => Way::Host,
            "hostssl" => Way::Ssl,
            "hostnossl" => Way::NoSsl,
            other => return Err(format!("unknown type: {other}")),
        },
        _ => return Err("unknown type".to_owned()),
    };
    let mut rest = words.iter().skip(1).peekable();
    let databases = names(&mut rest, true, read_file)?;
    let users = names(&mut rest, false, read_file)?;
    let mut plain = || match rest.next() {
        Some(Word::Plain(word) | Word::Quoted(word)) => Some(word.as_str()),
        _ => None,
    };
    let mut word = plain();
    let mut network = None;
    if way != Way::Local {
        let address = word.ok_or("did not find address")?;
        word = plain();
        if address != "all" {
            let (address, prefix) = match address.split_once('/') {
                Some((address, prefix)) => (parse_ip(address)?, prefix.parse().map_err(|_| "invalid mask")?),
                None => {
                    let address = parse_ip(address)?;
                    match word.and_then(|mask| mask.parse::<IpAddr>().ok()) {
                        Some(mask) => {
                            word = plain();
                            (address, prefix_of(mask).ok_or("invalid mask")?)
                        }
                        None => (address, if address.is_ipv4() { 32 } else { 128 }),
                    }
                }
            };
            if prefix > if address.is_ipv4() { 32 } else { 128 } {
                return Err("invalid mask".to_owned());
            }
            network = Some((address, prefix));
        }
    }
    let word = word.ok_or("did not find method")?;
    let method = Method::named(word).ok_or_else(|| format!("unsupported method: {word}"))?;
    if method == Method::Peer && way != Way::Local {
        return Err("peer is for local connections alone".to_owned());
    }
    if method == Method::Ldap {
        let ldap = behind_word(line, word).trim().to_owned();
        return Ok(Some(Rule { way, databases, users, network, method, map: None, ldap }));
    }
    let mut map = None;
    while let Some(option) = plain() {
        match option.split_once('=') {
            Some(("map", name)) => map = Some(name.trim_matches('"').to_owned()),
            _ => return Err(format!("unsupported option: {option}")),
        }
    }
    Ok(Some(Rule { way, databases, users, network, method, map, ldap: String::new() }))
}

/// What stands behind the last place of a word that stands for itself.
fn behind_word<'l>(line: &'l str, word: &str) -> &'l str {
    let is_blank = |c: Option<char>| c.is_none_or(char::is_whitespace);
    let places = line.match_indices(word).filter(|(at, _)| {
        is_blank(line[..*at].chars().next_back()) && is_blank(line[at + word.len()..].chars().next())
    });
    places.last().map_or("", |(at, _)| &line[at + word.len()..])
}

fn names<'w>(
    words: &mut std::iter::Peekable<impl Iterator<Item = &'w Word>>,
    of_databases: bool,
    read_file: &impl Fn(&str) -> Option<String>,
) -> Result<Names, String> {
    let mut list = Names::default();
    loop {
        match words.next() {
            Some(Word::Quoted(name)) => list.names.push(name.clone()),
            Some(Word::Plain(word)) => match word.as_str() {
                "all" => list.all = true,
                "sameuser" if of_databases => list.same_user = true,
                "replication" if of_databases => list.replication = true,
                word => match word.strip_prefix('@') {
                    Some(file) => {
                        let text = read_file(file).ok_or_else(|| format!("cannot load file: {file}"))?;
                        list.names
                            .extend(text.split([' ', '\t', '\n', ',']).filter(|n| !n.is_empty()).map(str::to_owned));
                    }
                    None => list.names.push(word.to_owned()),
                },
            },
            Some(Word::Comma) | None => return Err("did not find a name".to_owned()),
        }
        match words.peek() {
            Some(Word::Comma) => drop(words.next()),
            _ => return Ok(list),
        }
    }
}

fn parse_ip(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| format!("failed to parse address: {text}"))
}

/// The length of the prefix that a mask stands for; `None` if it has holes.
fn prefix_of(mask: IpAddr) -> Option<u8> {
    let (bits, width) = match mask {
        IpAddr::V4(mask) => (u128::from(u32::from(mask)) << 96, 32),
        IpAddr::V6(mask) => (u128::from(mask), 128),
    };
    let ones = bits.leading_ones();
    let is_whole = bits.checked_shl(ones).unwrap_or(0) == 0;
    u8::try_from(ones).ok().filter(|ones| is_whole && *ones <= width)
}

fn is_within(address: IpAddr, network: IpAddr, prefix: u8) -> bool {
    let bits = |address: IpAddr| match address {
        IpAddr::V4(address) => u128::from(u32::from(address)) << 96,
        IpAddr::V6(address) => u128::from(address),
    };
    let differs = (bits(address) ^ bits(network)).checked_shr(u32::from(128 - prefix)).unwrap_or(0);
    address.is_ipv4() == network.is_ipv4() && differs == 0
}

/// The maps of an ident file: name of the map, name in the system or the certificate, user (none: all).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Ident(Vec<(String, String, Option<String>)>);

impl Ident {
    /// Reads the maps; a line that is none is passed over, and told.
    pub(super) fn parse(text: &str) -> (Self, Vec<Bad>) {
        let (mut maps, mut bad) = (Vec::new(), Vec::new());
        for (index, line) in text.lines().enumerate() {
            match words(line).as_deref() {
                Ok([]) => {}
                Ok([map, system, user]) => match (map, system, user) {
                    (Word::Comma, ..) | (_, Word::Comma, _) | (.., Word::Comma) => {
                        bad.push((index + 1, "a comma".into()));
                    }
                    (map, system, Word::Plain(user)) if user == "all" => {
                        maps.push((text_of(map), text_of(system), None));
                    }
                    (map, system, user) => maps.push((text_of(map), text_of(system), Some(text_of(user)))),
                },
                Ok(_) => bad.push((index + 1, "three words are wanted".to_owned())),
                Err(why) => bad.push((index + 1, why.clone())),
            }
        }
        (Self(maps), bad)
    }

    /// Whether a map lets somebody with this name be this user.
    pub(super) fn allows(&self, map: &str, system: &str, user: &str) -> bool {
        self.0.iter().any(|(name, from, to)| name == map && from == system && to.as_deref().is_none_or(|to| to == user))
    }
}

fn text_of(word: &Word) -> String {
    match word {
        Word::Plain(text) | Word::Quoted(text) => text.clone(),
        Word::Comma => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hba(text: &str) -> Hba {
        let (hba, bad) = Hba::parse(text, |file| (file == "names").then(|| "joe, jane\n jim".to_owned()));
        assert_eq!(bad, [], "{text}");
        hba
    }

    fn from(address: &str, is_encrypted: bool) -> Came<'static> {
        Came { database: "db", address: Some(address.parse().unwrap()), is_encrypted, ..Came::default() }
    }

    fn method(hba: &Hba, user: &str, came: &Came<'_>) -> Option<Method> {
        hba.find(user, came).map(|rule| rule.method)
    }

    #[test]
    fn the_first_rule_that_fits_counts() {
        let hba = hba("# comment\n\n local all all peer map=m\n\
             hostssl db joe 10.0.0.0/8 cert # why\n\
             host db all 10.1.0.0 255.255.0.0 md5\n\
             host \"all\" all all trust\n\
             host sameuser @names ::1/128 password\n\
             host db,replication x , y ff10::/12 scram-sha-256\n");
        let local = Came { database: "db", ..Came::default() };
        assert_eq!(method(&hba, "joe", &local), Some(Method::Peer));
        assert_eq!(hba.find("joe", &local).unwrap().map.as_deref(), Some("m"));
        assert_eq!(method(&hba, "joe", &from("10.1.2.3", true)), Some(Method::Cert));
        assert_eq!(method(&hba, "joe", &from("10.1.2.3", false)), Some(Method::Md5));
        assert_eq!(method(&hba, "joe", &from("10.2.2.3", false)), None);
        assert_eq!(method(&hba, "joe", &Came { database: "all", ..from("1.2.3.4", false) }), Some(Method::Trust));
        assert_eq!(method(&hba, "jim", &Came { database: "jim", ..from("::1", false) }), Some(Method::Password));
        assert_eq!(method(&hba, "jim", &Came { database: "joe", ..from("::1", false) }), None);
        assert_eq!(method(&hba, "y", &from("ff1f::1", false)), Some(Method::Scram));
        assert_eq!(method(&hba, "y", &from("ff20::1", false)), None);
        let replication = Came { database: "replication", replicates: true, ..from("ff1f::1", false) };
        assert_eq!(method(&hba, "y", &replication), Some(Method::Scram));
    }

    #[test]
    fn what_is_no_rule_is_told_and_passed_over() {
        let text = "nothing\nhost all all 1.2.3.4/33 md5\nhost all all 1.2.3 md5\nhost all all 1.2.3.4 255.0.255.0 md5\n\
                    host all all all gss\nhost all, all\nlocal all \"x md5\nhost all all all peer\nhost all all 1.2.3.4/32\n\
                    host a a all md5 x=y\nlocal all all trust";
        let (hba, bad) = Hba::parse(text, |_| None);
        assert_eq!(bad.iter().map(|(line, _)| *line).collect::<Vec<_>>(), (1..=10).collect::<Vec<_>>());
        assert_eq!(hba.0.len(), 1);
    }

    #[test]
    fn every_prefix_cuts_where_it_says() {
        let within = |a: &str, b: &str, prefix| is_within(a.parse().unwrap(), b.parse().unwrap(), prefix);
        assert!(within("1.2.3.4", "9.9.9.9", 0) && within("1.2.3.4", "1.2.3.4", 32));
        assert!(!within("1.2.3.5", "1.2.3.4", 32) && within("1.2.3.5", "1.2.3.4", 31));
        assert!(!within("::1", "0.0.0.1", 0));
        assert!(within("::1", "::2", 126) && !within("::1", "::2", 127));
        assert_eq!(prefix_of("255.255.255.255".parse().unwrap()), Some(32));
        assert_eq!(prefix_of("0.0.0.0".parse().unwrap()), Some(0));
        assert_eq!(prefix_of("255.0.255.0".parse().unwrap()), None);
    }

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
