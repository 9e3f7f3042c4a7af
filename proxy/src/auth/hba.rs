//! Which method a client has to pass, by where it comes from and what for: the rules of an HBA file, as PgBouncer reads them
//! (its manual, "HBA file format"). What the methods do is in `client.rs`.

use std::net::IpAddr;

use super::client::Came;
use super::ident::Ident;

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

/// What is to be said of a line, in PgBouncer's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Told {
    /// It is no rule, and passed over.
    Refused(String),
    /// It is one that there is not here, and passed over.
    Unsupported(String),
    /// It is a rule, and its address has bits beyond its mask.
    Odd(IpAddr, IpAddr),
}

impl Hba {
    /// Reads the rules; a line that is none is passed over, and told.
    pub(super) fn parse(
        text: &str,
        maps: &Ident,
        read_file: impl Fn(&str) -> Option<String>,
    ) -> (Self, Vec<(usize, Told)>) {
        let (mut rules, mut told) = (Vec::new(), Vec::new());
        for (index, line) in text.lines().enumerate() {
            match words(line).map_err(Told::Refused).and_then(|words| rule(line, &words, maps, &read_file)) {
                Ok(Some(rule)) => {
                    if let Some((address, prefix)) = rule.network
                        && within(address, prefix) != address
                    {
                        told.push((index + 1, Told::Odd(address, mask_of(address, prefix))));
                    }
                    rules.push(rule);
                }
                Ok(None) => {}
                Err(why) => told.push((index + 1, why)),
            }
        }
        (Self(rules), told)
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
pub(super) enum Word {
    Plain(String),
    Quoted(String),
    Comma,
}

pub(super) fn words(line: &str) -> Result<Vec<Word>, String> {
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

fn rule(
    line: &str,
    words: &[Word],
    maps: &Ident,
    read_file: &impl Fn(&str) -> Option<String>,
) -> Result<Option<Rule>, Told> {
    let refused = |why: &str| Told::Refused(why.to_owned());
    let Some(first) = words.first() else { return Ok(None) };
    let way = match first {
        Word::Plain(word) if word == "local" => Way::Local,
        Word::Plain(word) if word == "host" => Way::Host,
        Word::Plain(word) if word == "hostssl" => Way::Ssl,
        Word::Plain(word) if word == "hostnossl" => Way::NoSsl,
        _ => return Err(refused("unknown type")),
    };
    let mut rest = words.iter().skip(1).peekable();
    let databases = names(&mut rest, true, read_file)?;
    let users = names(&mut rest, false, read_file)?;
    let mut network = None;
    if way != Way::Local {
        network = read_network(&mut rest, words)?;
    }
    let word = match rest.next() {
        Some(Word::Plain(word)) => word.as_str(),
        other => return Err(Told::Refused(format!("unsupported method: buf={}", last(other, words)))),
    };
    let method = Method::named(word).ok_or_else(|| Told::Refused(format!("unsupported method: buf={word}")))?;
    if method == Method::Peer && way != Way::Local {
        return Err(refused("peer is for local connections alone"));
    }
    if method == Method::Ldap {
        let ldap = behind_word(line, word).trim().to_owned();
        return Ok(Some(Rule { way, databases, users, network, method, map: None, ldap }));
    }
    let mut map = None;
    if let Some(Word::Plain(option)) = rest.peek() {
        rest.next();
        let name = option
            .strip_prefix("map=")
            .map(|name| name.trim_matches('"').to_owned())
            .ok_or_else(|| Told::Refused(format!("Ident map {option} is malformed. It is not in map=value format.")))?;
        if !maps.has(&name) {
            return Err(Told::Refused(format!("Ident map {name} is not found in ident config file")));
        }
        map = Some(name);
    }
    if rest.next().is_some() {
        return Err(refused("unsupported parameters"));
    }
    Ok(Some(Rule { way, databases, users, network, method, map, ldap: String::new() }))
}

/// The address of a rule, and the length of its prefix; none: any address.
fn read_network<'w>(
    rest: &mut impl Iterator<Item = &'w Word>,
    words: &'w [Word],
) -> Result<Option<(IpAddr, u8)>, Told> {
    let address = match rest.next() {
        Some(Word::Plain(address)) => address,
        other => {
            // the number that PgBouncer has for what it found
            let found = match other {
                Some(Word::Quoted(_)) => 0,
                Some(Word::Comma) => 2,
                _ => 4,
            };
            return Err(Told::Refused(format!("did not find address - {found} - '{}'", last(other, words))));
        }
    };
    if address == "all" {
        return Ok(None);
    }
    let parse = |text: &str| -> Result<IpAddr, Told> {
        text.parse().map_err(|_| Told::Refused(format!("failed to parse address - {text}")))
    };
    let invalid = || Told::Refused("invalid mask".to_owned());
    let (address, prefix) = match address.split_once('/') {
        Some((address, prefix)) => (parse(address)?, prefix.parse().map_err(|_| invalid())?),
        None => {
            let address = parse(address)?;
            let Some(Word::Plain(mask)) = rest.next() else {
                return Err(Told::Refused("did not find mask".to_owned()));
            };
            let parsed = mask.parse::<IpAddr>().ok().filter(|mask| mask.is_ipv4() == address.is_ipv4());
            let parsed = parsed.ok_or_else(|| Told::Refused(format!("failed to parse mask: {mask}")))?;
            (address, prefix_of(parsed).ok_or_else(invalid)?)
        }
    };
    if prefix > if address.is_ipv4() { 32 } else { 128 } {
        return Err(invalid());
    }
    Ok(Some((address, prefix)))
}

/// The text that PgBouncer read last: of this word, or at the end of the line, and at a comma, of the one before.
fn last(found: Option<&Word>, words: &[Word]) -> String {
    match found {
        Some(word @ (Word::Plain(_) | Word::Quoted(_))) => text_of(word),
        _ => words.iter().rev().find(|word| **word != Word::Comma).map(text_of).unwrap_or_default(),
    }
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
) -> Result<Names, Told> {
    let mut list = Names::default();
    loop {
        match words.next() {
            Some(Word::Quoted(name)) => list.names.push(name.clone()),
            Some(Word::Plain(word)) => match word.as_str() {
                "all" => list.all = true,
                "sameuser" if of_databases => list.same_user = true,
                "replication" if of_databases => list.replication = true,
                word @ ("samerole" | "samegroup") => {
                    return Err(Told::Unsupported(format!("{word} is not supported")));
                }
                word => match word.strip_prefix('@') {
                    Some(file) => {
                        let text = read_file(file);
                        let text = text.ok_or_else(|| Told::Refused(format!("cannot load file: {file}")))?;
                        list.names
                            .extend(text.split([' ', '\t', '\n', ',']).filter(|n| !n.is_empty()).map(str::to_owned));
                    }
                    None => list.names.push(word.to_owned()),
                },
            },
            Some(Word::Comma) | None => return Err(Told::Refused("did not find a name".to_owned())),
        }
        match words.peek() {
            Some(Word::Comma) => drop(words.next()),
            _ => return Ok(list),
        }
    }
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

/// The bits of an address that a prefix leaves.
fn within(address: IpAddr, prefix: u8) -> IpAddr {
    let shift = |width: u32| width - u32::from(prefix);
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(shift(32)).unwrap_or(0);
            IpAddr::V4((u32::from(address) & mask).into())
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(shift(128)).unwrap_or(0);
            IpAddr::V6((u128::from(address) & mask).into())
        }
    }
}

/// A prefix as a mask for an address of this kind.
fn mask_of(address: IpAddr, prefix: u8) -> IpAddr {
    let ones = match address {
        IpAddr::V4(_) => IpAddr::V4(u32::MAX.into()),
        IpAddr::V6(_) => IpAddr::V6(u128::MAX.into()),
    };
    within(ones, prefix)
}

fn is_within(address: IpAddr, network: IpAddr, prefix: u8) -> bool {
    let bits = |address: IpAddr| match address {
        IpAddr::V4(address) => u128::from(u32::from(address)) << 96,
        IpAddr::V6(address) => u128::from(address),
    };
    let differs = (bits(address) ^ bits(network)).checked_shr(u32::from(128 - prefix)).unwrap_or(0);
    address.is_ipv4() == network.is_ipv4() && differs == 0
}

pub(super) fn text_of(word: &Word) -> String {
    match word {
        Word::Plain(text) | Word::Quoted(text) => text.clone(),
        Word::Comma => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hba(text: &str) -> Hba {
        let maps = Ident::parse("m postgres joe").0;
        let (hba, bad) = Hba::parse(text, &maps, |file| (file == "names").then(|| "joe, jane\n jim".to_owned()));
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
        let (hba, bad) = Hba::parse(text, &Ident::default(), |_| None);
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
}
