//! The token that clients carry: up to where they have seen each database. Must not
//! know how it travels or what is done with it.
//!
//! `txid/checksum` where one database is tracked, as `<db>-pos` has it, and
//! `name=txid/checksum&…` (names percent-encoded) where there are several. What LiteFS
//! gives out, a bare TXID, is read, too: it says nothing of a branch.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use url::form_urlencoded;

use crate::words::{Checksum, DbName, Pos, Txid};

/// How far a client has seen one database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its last transaction.
    pub txid: Txid,
    /// The checksum after it, which tells branches apart; LiteFS's tokens have none.
    pub checksum: Option<Checksum>,
}

impl Seen {
    /// Whether who stands at `pos` has what the client has, as far as can be told.
    pub fn is_met_by(&self, pos: Pos) -> bool {
        let same = |checksum| checksum == pos.checksum;
        pos.txid > self.txid || (pos.txid == self.txid && self.checksum.is_none_or(same))
    }

    /// Whether `pos`, the primary's, shows that the client has seen a branch that lost:
    /// nobody is ahead of the primary.
    pub fn is_lost_to(&self, pos: Pos) -> bool {
        let other = |checksum| checksum != pos.checksum;
        pos.txid < self.txid || (pos.txid == self.txid && self.checksum.is_some_and(other))
    }
}

impl Seen {
    /// The whole position, if the branch is known.
    pub fn as_pos(&self) -> Option<Pos> {
        self.checksum.map(|checksum| Pos { txid: self.txid, checksum })
    }
}

impl From<Pos> for Seen {
    fn from(pos: Pos) -> Seen {
        Seen { txid: pos.txid, checksum: Some(pos.checksum) }
    }
}

/// How far a client has seen the tracked databases.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Token(BTreeMap<DbName, Seen>);

impl Token {
    /// Reads a token; what is not understood, or of a database that is not in `tracked`,
    /// is left out: it never keeps a client from being answered.
    pub fn parse(text: &str, tracked: &[DbName]) -> Token {
        let mut token = Token::default();
        if !text.contains('=') {
            if let (Some(db), Some(seen)) = (tracked.first(), seen(text)) {
                token.0.insert(db.clone(), seen);
            }
            return token;
        }
        for (name, value) in form_urlencoded::parse(text.as_bytes()) {
            let db = tracked.iter().find(|db| db.as_str() == name);
            if let (Some(db), Some(seen)) = (db, seen(&value)) {
                token.see(db, seen);
            }
        }
        token
    }

    /// The client has seen this much of a database, or more.
    pub fn see(&mut self, db: &DbName, seen: Seen) {
        let entry = self.0.entry(db.clone()).or_insert(seen);
        if seen.txid >= entry.txid {
            *entry = seen;
        }
    }

    /// The client has seen what either says.
    pub fn merge(&mut self, other: Token) {
        for (db, seen) in other.0 {
            self.see(&db, seen);
        }
    }

    /// What the token says of a database.
    pub fn get(&self, db: &DbName) -> Option<Seen> {
        self.0.get(db).copied()
    }

    /// Each database of the token.
    pub fn iter(&self) -> impl Iterator<Item = (&DbName, Seen)> {
        self.0.iter().map(|(db, seen)| (db, *seen))
    }

    /// The token's text where these databases are tracked.
    pub fn text(&self, tracked: &[DbName]) -> String {
        let mut text = String::new();
        for (db, seen) in &self.0 {
            if tracked.len() > 1 {
                let and = if text.is_empty() { "" } else { "&" };
                text.push_str(and);
                text.extend(form_urlencoded::byte_serialize(db.as_str().as_bytes()));
                text.push('=');
            }
            let _ = write!(text, "{}", seen.txid);
            if let Some(checksum) = seen.checksum {
                let _ = write!(text, "/{checksum}");
            }
        }
        text
    }
}

fn seen(text: &str) -> Option<Seen> {
    match text.split_once('/') {
        Some((txid, checksum)) => {
            Some(Seen { txid: txid.parse().ok()?, checksum: Some(checksum.parse().ok()?) })
        }
        None => Some(Seen { txid: text.parse().ok()?, checksum: None }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn db(name: &str) -> DbName {
        DbName::new(name).expect("a name")
    }

    fn pos(txid: u64, checksum: u64) -> Pos {
        Pos {
            txid: Txid::new(txid),
            checksum: Checksum::from_stored(1 << 63 | checksum).expect("a checksum"),
        }
    }

    #[test]
    fn a_token_reads_back_what_it_writes() {
        let names = [db("app.db"), db("a b&c=d/ü.db"), db("third")];
        for tracked in [&names[..1], &names[..]] {
            let mut token = Token::default();
            for (n, name) in tracked.iter().enumerate() {
                token.see(name, pos(n as u64 + 1, 7).into());
            }
            let text = token.text(tracked);
            assert_eq!(Token::parse(&text, tracked), token, "{text}");
            let cookie =
                |byte: u8| matches!(byte, 0x21 | 0x23..=0x2b | 0x2d..=0x3a | 0x3c..=0x5b | 0x5d..=0x7e);
            assert!(text.bytes().all(cookie), "{text:?} is no cookie's value (RFC 6265 §4.1.1)");
        }
    }

    #[test]
    fn one_database_has_the_text_of_its_position() {
        let mut token = Token::default();
        token.see(&db("app.db"), pos(42, 1).into());
        assert_eq!(token.text(&[db("app.db")]), "000000000000002a/8000000000000001");
    }

    #[test]
    fn what_litefs_gives_out_is_read_and_nonsense_is_not() {
        let tracked = [db("app.db"), db("b")];
        let token = Token::parse("000000000000002a", &tracked);
        assert_eq!(token.get(&tracked[0]), Some(Seen { txid: Txid::new(42), checksum: None }));
        for bad in ["", "x", "1/2", "other=1", "app.db=zz", "=", "&&&", "1/8000000000000001/2", "-1"] {
            assert_eq!(Token::parse(bad, &tracked), Token::default(), "{bad:?}");
        }
    }

    #[test]
    fn a_token_of_a_branch_that_lost_is_told_by_the_position_of_the_primary() {
        let seen = Seen::from(pos(5, 1));
        assert!(seen.is_met_by(pos(5, 1)) && !seen.is_lost_to(pos(5, 1)));
        assert!(seen.is_met_by(pos(6, 9)) && !seen.is_lost_to(pos(6, 9)));
        assert!(!seen.is_met_by(pos(5, 2)) && seen.is_lost_to(pos(5, 2)));
        assert!(!seen.is_met_by(pos(4, 1)) && seen.is_lost_to(pos(4, 1)));
        let bare = Seen { checksum: None, ..seen };
        assert!(bare.is_met_by(pos(5, 2)) && !bare.is_lost_to(pos(5, 2)));
    }

    #[test]
    fn the_later_of_two_positions_counts() {
        let (name, tracked) = (db("a"), [db("a")]);
        let mut token = Token::parse("5/8000000000000001", &tracked);
        token.merge(Token::parse("3/8000000000000001", &tracked));
        assert_eq!(token.get(&name).map(|seen| seen.txid), Some(Txid::new(5)));
        token.merge(Token::parse("9", &tracked));
        assert_eq!(token.get(&name).map(|seen| seen.txid), Some(Txid::new(9)));
    }
}
